/* A memory as a part of a plugin: where it knows the answer to a prompt, it says what it was told, word for word. The
   twin of sideplug/memory/part.py and index.py; it reads the database that a plugin's file holds. */

import { Verifier } from "./encoder.js";
import { rows } from "./sqlite.js";
import { MONTHS, agreed, dayAskedFor, declined, doubtsOf, noted } from "./asking.js";
import { initials, isOfAnother, sentences, stem, words } from "./words.js";

const [CANDIDATES, BY_WORDS, BY_VECTOR, QUERY_STEMS, COMMON] = [8, 16, 16, 8, 4000];
const [SCALE, WORDS_WEIGHT, BEHIND, SAME_WORDS, ANOTHER] = [127, 0.5, 0.3, 20, -20];
const [CERTAIN, CERTAIN_BY_WORDS, DOUBT_OF_NOTES, MOSTLY, PERSONAL] = [0.85, 0.8, 0.4, 0.8, 1];
const SURELY_PERSONAL = 2;
const [MOST_CHARACTERS, PASSAGE] = [600, 360];
const DOUBTFUL = 0.5;
const [UNTOLD, DECLINED] = ["You haven't told me that.", "Then I was not told."];
const [K1, B] = [1.2, 0.75]; // of BM25, as SQLite has it

const inWords = (date) => {
  if (!date) return "";
  const [year, month, day] = date.split("-").map(Number);
  return `${day} ${MONTHS[month - 1]} ${year} ${date}`;
};

export class Memory {
  /** verifier: the tensors that ship. encoder: null where it is not there, and words alone must do. */
  constructor(database, verifier, encoder) {
    this.encoder = encoder;
    this.verifier = new Verifier(verifier, encoder);
    this.byWordsAlone = new Verifier(verifier, null);
    this.settings = Object.fromEntries(rows(database, "meta").map(({ name, value }) => [name, value]));
    this.entries = rows(database, "entries").map((row) => ({ ...row, replaced_by: row.replaced_by || null }));
    this.byNumber = new Map(this.entries.map((entry) => [entry.number, entry]));
    this.passages = rows(database, "passages").map((row) => this.passage(row));
    this.index();
  }

  passage({ id, number, asked, said, vector, base, ids }) {
    const day = inWords(this.byNumber.get(number)?.date ?? "");
    const parts = asked ? [said] : said.split("\n");
    const texts = parts.length > 1 ? [...parts, parts.join(" ")] : parts;
    const tokens = ids && new Int32Array(ids.slice().buffer);
    const kept = vector && this.settings.encoder ? new Int8Array(vector.slice().buffer) : null;
    return { id, number, asked, said, day, about: asked || day, parts, texts, base, tokens, vector: kept };
  }

  /** What finds passages by words: their stems, how often each stands in which, and how long they are. */
  index() {
    this.has = new Map(); // stem → Map(passage → times)
    let total = 0;
    for (const passage of this.passages) {
      const stems = words(`${passage.asked}\n${passage.said}\n${passage.day}`).map(stem);
      [passage.stems, passage.length] = [new Set(stems), stems.length];
      total += stems.length;
      for (const each of stems) {
        if (!this.has.has(each)) this.has.set(each, new Map());
        const times = this.has.get(each);
        times.set(passage, (times.get(passage) ?? 0) + 1);
      }
      if (this.encoder && !passage.vector) passage.vector = this.encoder.vector(`${passage.about} ${passage.said}`.trim()).map((x) => Math.round(x * SCALE));
    }
    this.mean = total / (this.passages.length || 1);
  }

  rarity(each) {
    return Math.log(1 + this.passages.length / (this.has.get(each)?.size || 1));
  }

  /** Up to 8 passages that may answer a question, the best first. */
  candidates(question, vector) {
    const asked = new Set(words(question).map(stem));
    const people = initials(question);
    const some = new Set([...this.byWords(asked), ...this.nearest(vector), ...this.named(people)]);
    const sum = (stems) => [...stems].reduce((total, each) => total + this.rarity(each), 0);
    const shared = (stems) => sum([...stems].filter((each) => asked.has(each)));
    const found = [...some].map((passage) => {
      const named = new Set(words(passage.asked).map(stem));
      const about = named.size ? named : passage.stems;
      const near = vector && passage.vector ? dot(passage.vector, vector) / SCALE : 0;
      const candidate = { passage, near, found: shared(passage.stems) / (sum(asked) || 1), covered: shared(about) / (sum(about) || 1) };
      const isOther = isOfAnother(people, `${passage.asked} ${passage.said}`);
      return { ...candidate, isOther, score: near + WORDS_WEIGHT * candidate.found };
    });
    return found.sort((a, b) => a.isOther - b.isOther || b.score - a.score).slice(0, CANDIDATES);
  }

  /** The passages about people who are named with an initial. */
  named(pairs) {
    const having = ([name]) => [...(this.has.get(stem(name))?.keys() ?? [])];
    return pairs.flatMap((pair) => having(pair).filter((passage) => !isOfAnother([pair], `${passage.asked} ${passage.said}`)));
  }

  /** The passages that share the rarest stems, best first by BM25. */
  byWords(asked) {
    const known = [...asked].filter((each) => this.has.has(each) && this.has.get(each).size <= COMMON);
    const size = (each) => this.has.get(each).size;
    known.sort((a, b) => size(a) - size(b) || (a < b ? -1 : 1));
    const scores = new Map();
    for (const each of known.slice(0, QUERY_STEMS)) {
      const n = size(each);
      const idf = Math.max(Math.log((this.passages.length - n + 0.5) / (n + 0.5)), 1e-6);
      for (const [passage, times] of this.has.get(each)) {
        const length = 1 - B + (B * passage.length) / this.mean;
        scores.set(passage, (scores.get(passage) ?? 0) + (idf * times * (K1 + 1)) / (times + K1 * length));
      }
    }
    return [...scores].sort((a, b) => b[1] - a[1]).slice(0, BY_WORDS).map(([passage]) => passage);
  }

  nearest(vector) {
    if (!vector) return [];
    const near = this.passages.filter((passage) => passage.vector).map((passage) => [dot(passage.vector, vector), passage]);
    return near.sort((a, b) => b[0] - a[0]).slice(0, BY_VECTOR).map(([, passage]) => passage);
  }

  /** What could be said to a question: {passage, said, certainty, entry, text}, the most certain first. */
  judged(question, vector = this.vectorOf(question)) {
    if (!question.trim()) return [];
    const found = this.candidates(question, vector);
    const candidates = found.filter(({ score }) => score >= found[0].score - BEHIND);
    const asked = words(question).join(" ");
    const day = dayAskedFor(question);
    const people = initials(question);
    const verifier = this.reads(question) ? this.verifier : this.byWordsAlone;
    const scored = verifier.scores(question, candidates).flatMap((scores, n) => {
      const { passage } = candidates[n];
      const isAskedSo = (asked && asked === words(passage.asked).join(" ")) || (day && passage.day.endsWith(day));
      const isOther = (part) => isOfAnother(people, `${passage.asked} ${passage.parts[part]}`);
      const judged = (score, part) => (isAskedSo ? SAME_WORDS : isOther(part) ? ANOTHER : score);
      return scores.map((score, part) => ({ passage, part, score: judged(score, part) }));
    });
    const total = 1 + scored.reduce((sum, { score }) => sum + Math.exp(score), 0);
    const alike = new Map();
    for (const each of scored) {
      const key = each.passage.asked ? words(each.passage.said).join(" ") || each.passage.said : each.passage.id;
      if (!alike.has(key)) alike.set(key, []);
      alike.get(key).push({ ...each, p: Math.exp(each.score) / total });
    }
    return [...alike.values()].map((some) => this.recall(some)).sort((a, b) => b.certainty - a.certainty);
  }

  recall(some) {
    const certainty = some.reduce((sum, { p }) => sum + p, 0);
    const best = some.reduce((a, b) => (b.p > a.p ? b : a));
    const isWhole = !best.passage.asked && best.p < MOSTLY * certainty;
    const said = isWhole ? best.passage.parts.length : best.part;
    return { passage: best.passage, said, certainty, entry: this.byNumber.get(best.passage.number), text: best.passage.texts[said] };
  }

  reads(question) {
    return Boolean(this.encoder?.reads(question));
  }

  vectorOf(question) {
    return this.encoder && question.trim() ? this.encoder.vector(question) : null;
  }

  /** Whether what was found is certain enough to be said. */
  says(question, { certainty, entry }) {
    const own = Number(this.settings.certain) || (this.reads(question) ? CERTAIN : CERTAIN_BY_WORDS);
    const share = !entry.question && this.reads(question) ? DOUBT_OF_NOTES : 1;
    return certainty > 1 - (1 - own) * share;
  }

  /** The memory in one reply to these messages, of a base: {ids, source, entry, hushes}. */
  begin(messages, base) {
    const [before, last] = messages.slice(-2).map(({ role, content }) => (role === "user" || role === "assistant" ? { role, content } : null));
    const isAnswer = before?.role === "assistant" && last?.role === "user";
    const [said, answer] = isAnswer ? [before.content, last.content] : ["", ""];
    const no = declined(said, answer) ? this.ownIds(DECLINED, base) : [];
    if (no.length) return { ids: no, source: "you said no", entry: 0, hushes: false };
    const asked = messages.at(-1)?.role === "user" ? messages.at(-1).content : "";
    const meant = agreed(said, answer) || asked;
    const question = meant.length <= MOST_CHARACTERS ? meant : "";
    const vector = this.vectorOf(question);
    const best = this.meantNote(noted(said, answer)) ?? this.judged(question, vector)[0];
    const source = best && sourceOf(best);
    if (best && this.says(question, best)) return { ids: idsOf(best.passage, best.said, base), source, entry: best.entry.number, hushes: false };
    if (best && this.settings.doubt === "ask" && best.certainty > DOUBTFUL) {
      const ids = idsOf(best.passage, best.passage.texts.length + best.said, base);
      return { ids, source: `it is not sure: ${source}`, entry: best.entry.number, hushes: false };
    }
    const personal = vector && this.reads(question) ? this.verifier.personal(vector) : -Infinity;
    if (personal <= PERSONAL) return { ids: [], source: "", entry: 0, hushes: false };
    const untold = this.settings.unknown === "say" && personal >= SURELY_PERSONAL ? this.ownIds(UNTOLD, base) : [];
    return { ids: untold, source: untold.length ? "nothing that you told me" : "", entry: 0, hushes: !untold.length };
  }

  /** The part of a note that says this text, which a person said yes to. */
  meantNote(text) {
    const passage = text && this.passages.find((each) => !each.asked && each.texts.includes(text));
    if (!passage) return null;
    return { passage, said: passage.texts.indexOf(text), certainty: 1, entry: this.byNumber.get(passage.number), text };
  }

  /** What it may say of a passage, and what asks whether each of that is meant. */
  textsOf(passage) {
    return this.settings.doubt === "ask" ? [...passage.texts, ...doubtsOf(passage)] : passage.texts;
  }

  /** Tell it an entry {question, reply, told}; it is known at once. */
  tell({ question, reply, told }) {
    const number = Math.max(0, ...this.byNumber.keys()) + 1;
    const entry = { number, question, reply, source: "this browser", told, date: "", replaced_by: null, isOwn: true };
    for (const other of this.entries)
      if (question && !other.replaced_by && words(other.question).join(" ") === words(question).join(" ")) this.replace(other, number);
    this.entries.push(entry);
    this.byNumber.set(number, entry);
    let id = Math.max(0, ...this.passages.map((each) => each.id));
    for (const said of question ? [reply] : grouped(reply))
      this.passages.push(this.passage({ id: ++id, number, asked: question, said, vector: null, base: "", ids: null }));
    this.index();
  }

  replace(entry, by) {
    entry.replaced_by = by;
    this.passages = this.passages.filter(({ number }) => number !== entry.number);
  }

  /** Forget an entry; what it had replaced stays replaced. Returns it. */
  forget({ number }) {
    const entry = this.byNumber.get(number);
    if (!entry) throw new Error(`there is no entry ${number} any more`);
    this.entries = this.entries.filter((each) => each !== entry);
    this.passages = this.passages.filter((each) => each.number !== number);
    this.byNumber.delete(number);
    this.index();
    return entry;
  }

  /** All entries that hold, as a page shows them. */
  listed() {
    const holding = this.entries.filter((entry) => !entry.replaced_by);
    return holding.map(({ number, question, reply, source, told, date, isOwn }) => ({ number, question, reply, source, told, date, isOwn: Boolean(isOwn) }));
  }

  /** Passages whose tokens by this base are not known yet. */
  unread(base) {
    return this.passages.filter((passage) => passage.base !== base);
  }

  /** The tokens of a passage's texts, by this base. */
  take(passage, base, tokens) {
    passage.base = base;
    passage.tokens = Int32Array.from(tokens.flatMap((ids) => [...ids, -1]));
  }

  ownIds(text, base) {
    const [recorded, ...ids] = (this.settings[`said: ${text}`] ?? "").split(" ");
    return recorded === base ? ids.map(Number) : [];
  }
}

/** A note's sentences, grouped to passages of some 360 characters, one sentence a line. */
function grouped(note) {
  const passages = [];
  let some = [];
  for (const sentence of sentences(note)) {
    if (some.length && some.join("").length + sentence.length > PASSAGE) {
      passages.push(some);
      some = [];
    }
    some.push(sentence);
  }
  return [...passages, some].filter((each) => each.length).map((each) => each.join("\n"));
}

function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

/** The tokens of a passage's text, by the base; [] where they were not recorded. */
function idsOf({ base: recorded, tokens }, text, base) {
  if (recorded !== base || !tokens) return [];
  let start = 0;
  for (let n = 0, at = 0; at < tokens.length; at++)
    if (tokens[at] < 0) {
      if (n === text) return [...tokens.subarray(start, at)];
      [n, start] = [n + 1, at + 1];
    }
  return [];
}

function sourceOf({ entry, text }) {
  const where = entry.source ? ` (${entry.source})` : "";
  const line = (entry.question || text).split(/\s+/).join(" ");
  const short = line.length <= 100 ? line : `${line.slice(0, 99)}…`;
  return entry.question ? `you told me${where}: ${short}` : `you noted${where}: ${short}`;
}
