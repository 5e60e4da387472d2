/* The small sentence encoder, all-MiniLM-L6-v2 with int8 weights, and the verifier that reads two texts side by side
   with it: the twins of sideplug/memory/encoder.py and verifier.py, where the equations stand. */

import { text as decoded } from "./bytes.js";
import { Kernel, product } from "./kernel.js";
import { stem, words } from "./words.js";

const [WIDTH, HEADS, LAYERS] = [384, 12, 6];
const MAX_TOKENS = 128;
const [MOST_PIECES, LATIN] = [1.5, 0.8];
const [UNKNOWN, FIRST, LAST] = [100, 101, 102];
const NO_CHANGE = {};
const WORD = /[\p{L}\p{N}]+|[^\p{L}\p{N}_\s]|_/gu;
const CJK = /[\u3400-\u9fff\uf900-\ufaff]/gu;

/** The words and signs of a text, as BERT's tokenizer has them. */
const signsAndWords = (text) => text.toLowerCase().normalize("NFD").replace(/\p{Mn}/gu, "").replace(CJK, " $& ").match(WORD) ?? [];

export class Encoder {
  /** tensors: of the encoder's file, by name. */
  constructor(tensors) {
    this.w = tensors;
    this.kernel = null;
    this.pieces = new Map(decoded(tensors.vocabulary.data).split("\n").map((piece, n) => [piece, n]));
  }

  /** The word pieces of a text, without [CLS] and [SEP]. */
  tokens(text) {
    return signsAndWords(text).flatMap((word) => this.word(word));
  }

  /** Whether a text is in its language, English: in Latin letters, most words being one piece. */
  reads(text) {
    const some = signsAndWords(text).filter((word) => /\p{L}/u.test(word));
    const letters = text.match(/\p{L}/gu) ?? [];
    const latin = letters.filter((char) => /\p{Script=Latin}/u.test(char)).length;
    const pieces = some.reduce((sum, word) => sum + this.word(word).length, 0);
    return pieces <= MOST_PIECES * some.length && latin >= LATIN * letters.length;
  }

  word(whole) {
    const chars = [...whole];
    const found = [];
    for (let start = 0; start < chars.length; ) {
      let end = Math.min(chars.length, start + 32);
      const piece = () => (start ? "##" : "") + chars.slice(start, end).join("");
      while (end > start && !this.pieces.has(piece())) end--;
      if (end === start || chars.length > 100) return [UNKNOWN];
      found.push(this.pieces.get(piece()));
      start = end;
    }
    return found;
  }

  /** The unit vector of a text. */
  vector(text) {
    const rows = this.run([FIRST, ...this.tokens(text).slice(0, MAX_TOKENS - 2), LAST]);
    const mean = meanOf(rows, 0, rows.length / WIDTH);
    const size = Math.hypot(...mean);
    return mean.map((x) => x / size);
  }

  /** The last layer's rows (T, 384) of tokens. change: low-rank changes by weight; add: (row) → what is added to it. */
  run(ids, change = NO_CHANGE, add = null) {
    const w = this.w;
    const count = ids.length;
    const x = new Float32Array(count * WIDTH);
    const table = w["embeddings.word_embeddings.weight"].data;
    const scales = w["embeddings.word_embeddings.weight.scale"].data;
    const positions = w["embeddings.position_embeddings.weight"].data;
    const types = w["embeddings.token_type_embeddings.weight"].data;
    for (let t = 0; t < count; t++) {
      const more = add?.(t);
      for (let i = 0; i < WIDTH; i++)
        x[t * WIDTH + i] = table[ids[t] * WIDTH + i] * scales[ids[t]] + positions[t * WIDTH + i] + types[i] + (more ? more[i] : 0);
    }
    this.norm(x, "embeddings.LayerNorm");
    for (let layer = 0; layer < LAYERS; layer++) {
      const name = `encoder.layer.${layer}.`;
      const [query, key, value] = ["query", "key", "value"].map((each) => this.linear(x, count, `${name}attention.self.${each}`, change));
      plus(x, this.linear(mixed(query, key, value, count), count, `${name}attention.output.dense`, change));
      this.norm(x, `${name}attention.output.LayerNorm`);
      const inner = gelu(this.linear(x, count, `${name}intermediate.dense`, change));
      plus(x, this.linear(inner, count, `${name}output.dense`, change));
      this.norm(x, `${name}output.LayerNorm`);
    }
    return x;
  }

  linear(x, count, name, change) {
    if (this.kernel) return this.kernel.linear(x, count, name, change !== NO_CHANGE);
    const weight = this.w[`${name}.weight`];
    const [m, n] = weight.shape;
    const out = product(x, count, weight.data, m, n);
    const scale = this.w[`${name}.weight.scale`].data;
    const bias = this.w[`${name}.bias`].data;
    for (let t = 0; t < count; t++) for (let j = 0; j < m; j++) out[t * m + j] = out[t * m + j] * scale[j] + bias[j];
    const low = change[name];
    if (low) plus(out, product(product(x, count, low.a, low.r, n), count, low.b, m, low.r));
    return out;
  }

  /** Compute in WebAssembly from now on, with these low-rank changes; where the browser can't, it stays as it is. */
  quicken(changes) {
    const layers = {};
    for (const name of Object.keys(this.w))
      if (/^encoder\.layer\..*\.weight$/.test(name) && this.w[name].data instanceof Int8Array) {
        const layer = name.slice(0, -7);
        const [m, n] = this.w[name].shape;
        layers[layer] = { weight: this.w[name].data, scale: this.w[`${name}.scale`].data, bias: this.w[`${layer}.bias`].data, m, n };
      }
    try {
      this.kernel = new Kernel(layers, changes);
    } catch {
      return;
    }
    for (const layer of Object.keys(layers)) delete this.w[`${layer}.weight`]; // they lie in its memory now
  }

  norm(x, name) {
    const gain = this.w[`${name}.weight`].data;
    const bias = this.w[`${name}.bias`].data;
    for (let at = 0; at < x.length; at += WIDTH) {
      let mean = 0;
      for (let i = 0; i < WIDTH; i++) mean += x[at + i];
      mean /= WIDTH;
      let variance = 0;
      for (let i = 0; i < WIDTH; i++) variance += (x[at + i] - mean) ** 2;
      const spread = Math.sqrt(variance / WIDTH + 1e-12);
      for (let i = 0; i < WIDTH; i++) x[at + i] = ((x[at + i] - mean) / spread) * gain[i] + bias[i];
    }
  }
}

/** What each row takes of all rows, head by head. */
function mixed(query, key, value, count) {
  const each = WIDTH / HEADS;
  const out = new Float32Array(count * WIDTH);
  const scores = new Float32Array(count);
  for (let head = 0; head < HEADS; head++)
    for (let t = 0; t < count; t++) {
      const q = t * WIDTH + head * each;
      let peak = -Infinity;
      for (let s = 0; s < count; s++) {
        const k = s * WIDTH + head * each;
        let sum = 0;
        for (let i = 0; i < each; i++) sum += query[q + i] * key[k + i];
        scores[s] = sum / Math.sqrt(each);
        if (scores[s] > peak) peak = scores[s];
      }
      let total = 0;
      for (let s = 0; s < count; s++) total += scores[s] = Math.exp(scores[s] - peak);
      for (let s = 0; s < count; s++) {
        const weight = scores[s] / total;
        const v = s * WIDTH + head * each;
        for (let i = 0; i < each; i++) out[q + i] += weight * value[v + i];
      }
    }
  return out;
}

function plus(a, b) {
  for (let i = 0; i < a.length; i++) a[i] += b[i];
}

function meanOf(rows, from, to) {
  const mean = new Float32Array(WIDTH);
  for (let t = from; t < to; t++) for (let i = 0; i < WIDTH; i++) mean[i] += rows[t * WIDTH + i];
  return mean.map((x) => x / (to - from));
}

/** x Φ(x) of each number, with Abramowitz and Stegun's 7.1.26 for the error function; in place. */
function gelu(x) {
  for (let i = 0; i < x.length; i++) {
    const scaled = Math.abs(x[i]) * Math.SQRT1_2;
    const t = 1 / (1 + 0.3275911 * scaled);
    const series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
    x[i] = 0.5 * x[i] * (1 + Math.sign(x[i]) * (1 - series * Math.exp(-scaled * scaled)));
  }
  return x;
}

// ── the verifier ─────────────────────────────────────────────────────────────────────────────────────────────────

const PART_WORD = 2; // what a shared word more says of a part, without the encoder
const [QUESTION_TOKENS, ASKED_TOKENS, PART_TOKENS, PAIR_TOKENS] = [48, 48, 64, 128];
const [ASKED, SAID] = [1, 2]; // what a token is of; 0: of the question
const SIGNS = /[ \t\n?.!…。？]+$/u;

/** Scores passages; encoder null: by their words alone. */
export class Verifier {
  constructor(tensors, encoder) {
    [this.w, this.encoder, this.change] = [tensors, encoder, {}];
    for (const name of Object.keys(tensors))
      if (name.endsWith(".a") && name.startsWith("encoder.")) {
        const weight = name.slice(0, -2);
        this.change[weight] = { a: tensors[name].data, b: tensors[`${weight}.b`].data, r: tensors[name].shape[0] };
      }
    if (encoder && !encoder.kernel) encoder.quicken(this.change);
  }

  /** For each candidate the score of each of its parts; above 0 it is likelier than "not told" alone. */
  scores(question, candidates) {
    return candidates.map((candidate) => (this.encoder ? this.read(question, candidate) : this.byWords(question, candidate)));
  }

  read(question, { passage, near, found, covered }) {
    const { encoder, w } = this;
    let ids = [FIRST, ...encoder.tokens(question.replace(SIGNS, "")).slice(0, QUESTION_TOKENS), LAST];
    let of = ids.map(() => 0);
    const about = encoder.tokens(passage.about.replace(SIGNS, "")).slice(0, ASKED_TOKENS);
    ids = [...ids, ...about];
    of = [...of, ...about.map(() => ASKED)];
    const spans = [];
    for (const part of passage.parts) {
      const said = encoder.tokens(part).slice(0, PART_TOKENS);
      const start = Math.min(ids.length, PAIR_TOKENS - 2);
      ids = [...ids, ...said];
      of = [...of, ...said.map(() => SAID)];
      spans.push([start, Math.max(Math.min(ids.length, PAIR_TOKENS - 1), start + 1)]);
    }
    ids = [...ids.slice(0, PAIR_TOKENS - 1), LAST];
    of = [...of, SAID].slice(0, ids.length);
    const kinds = w.of.data;
    const rows = encoder.run(ids, this.change, (t) => kinds.subarray(of[t] * WIDTH, (of[t] + 1) * WIDTH));
    const first = rows.slice(0, WIDTH);
    const features = w["features.weight"].data;
    const more = near * features[0] + found * features[1] + covered * features[2];
    return spans.map(([from, to]) => {
      const row = new Float32Array(2 * WIDTH);
      row.set(first);
      row.set(meanOf(rows, from, to), WIDTH);
      const width = w["inner.weight"].shape[0];
      const inner = product(row, 1, w["inner.weight"].data, width, 2 * WIDTH);
      plus(inner, w["inner.bias"].data);
      gelu(inner);
      return product(inner, 1, w["outer.weight"].data, 1, width)[0] + w["outer.bias"].data[0] + more;
    });
  }

  byWords(question, { passage, found, covered }) {
    const weight = this.w.words.data;
    const score = weight[0] * found + weight[1] * covered + weight[2] * found * covered + weight[3];
    const asked = new Set(words(question).map(stem));
    const shared = passage.parts.map((part) => new Set(words(part).map(stem).filter((each) => asked.has(each))).size);
    return shared.map((each) => score - PART_WORD * (Math.max(...shared) - each));
  }

  /** The logit that a question with this vector is about the person. */
  personal(vector) {
    const weight = this.w.personal.data;
    let sum = weight[WIDTH];
    for (let i = 0; i < WIDTH; i++) sum += weight[i] * vector[i];
    return sum;
  }
}
