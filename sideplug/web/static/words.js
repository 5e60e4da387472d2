/* Words of a text in any language, as the memory compares them: see sideplug/memory/words.py, whose twin this is. */

const UNSPACED = "\\u0e00-\\u0eff\\u1000-\\u109f\\u1780-\\u17ff\\u3005-\\u3007\\u3040-\\u30ff\\u31f0-\\u31ff\\u3400-\\u9fff\\uf900-\\ufaff\\u{20000}-\\u{3ffff}";
const RUN = new RegExp(`([${UNSPACED}]+)|[^${UNSPACED} ]+`, "gu");
const ACCENTED = /^[\p{Script=Latin}\p{Script=Greek}\p{Script=Cyrillic}]$/u;
const MARK = /^\p{Mn}$/u;
const OTHER = /[^\p{L}\p{M}\p{N}]/gu;
const STEM = 5; // letters by which two forms of a word are taken for one

/** The text in lower case, compatible characters unified, without the accents of Europe's scripts. */
export function normal(text) {
  const folded = text.normalize("NFKC").toLowerCase().replace(/ß/g, "ss").replace(/ς/g, "σ");
  let kept = "";
  let base = "";
  for (const char of folded.normalize("NFD")) {
    if (!MARK.test(char)) base = char;
    else if (ACCENTED.test(base)) continue;
    kept += char;
  }
  return kept.normalize("NFC");
}

/** The words of a text in their order, normalised; scripts without spaces as overlapping pairs of characters. */
export function words(text) {
  const found = [];
  for (const [run, unspaced] of normal(text).replace(OTHER, " ").matchAll(RUN)) {
    const characters = [...run];
    if (unspaced === undefined || characters.length < 2) found.push(run);
    else for (let n = 0; n + 1 < characters.length; n++) found.push(characters[n] + characters[n + 1]);
  }
  return found;
}

const INITIAL = /(\p{L}{2,})\s+(\p{L})\./gu;

/** The names with an initial behind them, as their two words. */
export const initials = (text) =>
  [...text.matchAll(INITIAL)].filter(([, , letter]) => letter !== letter.toLowerCase()).map(([, ...pair]) => pair.map(normal));

/** Whether a text has one of these names without its initial: it is about somebody else. */
export function isOfAnother(named, text) {
  const plain = named.length ? normal(text) : "";
  const has = (words) => new RegExp(`(?<![\\p{L}\\p{N}])${words}(?![\\p{L}\\p{N}])`, "u").test(plain);
  return named.some(([name, letter]) => has(name) && !has(`${name}\\s+${letter}`));
}

/** What a word has in common with its other forms: its first letters; numbers are kept whole. */
export const stem = (word) => (/^\p{Nd}+$/u.test(word) ? word : [...word].slice(0, STEM).join(""));

const CLOSING = "\"'”’»)\\]』」";
const STOPS = ".!?…؟۔।॥။";
const END = new RegExp(`(?<![${STOPS}])[${STOPS}]+[${CLOSING}]*(?=\\s)|[。！？｡]+[${CLOSING}]*|\n`, "gu");

/** The sentences and lines of a text, in any script, without the space around them. */
export function sentences(text) {
  const ends = [0, ...Array.from(text.matchAll(END), (match) => match.index + match[0].length), text.length];
  return ends.slice(1).map((end, n) => text.slice(ends[n], end).trim()).filter(Boolean);
}
