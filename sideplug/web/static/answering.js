/* A plugin in one reply: it answers the cloud's questions, position by position, as sideplug/device/responders.py does.
   Rows of a text come in their order; a row that comes again replaces what stood there, because the text was rolled back. */

import { quant8 } from "./numbers.js";
import { ProtocolError } from "./wire.js";

const [MAX_FIRST_DRAFT, MAX_DRAFT] = [512, 32];

/** Says what is stored, token by token, as long as the text is what it said. */
class Quoting {
  wantsContext = false;

  constructor(ids) {
    [this.ids, this.start, this.text] = [ids, -1, []];
  }

  hear(start, ids) {
    if (this.start < 0) this.start = start;
    this.text.splice(start - this.start, Infinity, ...ids);
  }

  answer(at) {
    const n = at - this.start;
    if (n < 0 || n >= this.ids.length || this.ids.slice(0, n).some((id, i) => this.text[i] !== id)) return null;
    return { id: this.ids[n] };
  }

  context() {}
  trim() {}
}

const SILENT = { wantsContext: false, answer: () => null, context() {}, trim() {}, hear() {} };

export class Answering {
  /** base: the fingerprint that the cloud serves; width: of its z. */
  constructor(plugin, messages, base, width) {
    [this.plugin, this.width] = [plugin, width];
    const found = plugin.parts.map((part) => (part.memory ? part.memory.begin(messages, base) : null));
    const quote = found.find((each) => each?.ids.length);
    const isHushed = Boolean(quote || found.some((each) => each?.hushes)); // a memory that quotes speaks alone
    this.parts = plugin.parts.map((part, n) => {
      if (!part.memory) return isHushed ? SILENT : part.begin();
      return found[n].ids.length ? new Quoting(found[n].ids) : SILENT;
    });
    const gateOf = (part, n) => (part.memory ? (found[n].ids.length ? "open" : "shut") : isHushed ? "shut" : "");
    this.gates = plugin.parts.map(gateOf);
    if (!this.gates.some(Boolean)) this.gates = [];
    this.quote = quote?.ids ?? [];
    this.draft = this.quote.slice(0, MAX_FIRST_DRAFT);
    [this.source, this.entry] = [quote?.source ?? "", quote?.entry ?? 0];
    this.looksBack = this.parts.some((part) => part.wantsContext);
    [this.had, this.text, this.heard] = [0, new Map(), 0];
    this.seconds = 0;
  }

  /** How many rows of the text it has; undefined where it needs none. */
  get rows() {
    return this.looksBack ? this.had : undefined;
  }

  /** Rows for which no answer is asked. */
  context({ first, codes, scales }) {
    if (!this.looksBack) throw new ProtocolError("the cloud must not send context rows that nobody asked for");
    this.goTo(first);
    const rows = this.rowsOf(codes, scales);
    rows.forEach((row) => this.parts.forEach((part, n) => part.wantsContext && part.context(this.of(n, row))));
    this.had = first + rows.length;
  }

  /** Rows of the tap that was asked for. */
  rowsOf(codes, scales) {
    const { layers, rank } = this.plugin.tap;
    if (codes.shape[1] !== layers.length || codes.shape[2] !== rank) throw new ProtocolError("the cloud must send the rows of the tap that was asked for");
    return decodedRows(codes, scales);
  }

  /** The codes of a row that part n reads. */
  of(n, row) {
    const { layers, rank } = this.plugin.tap;
    const wanted = this.plugin.parts[n].rows;
    if (wanted.length === layers.length) return row;
    const own = new Float32Array(wanted.length * rank);
    wanted.forEach((from, to) => own.set(row.subarray(from * rank, (from + 1) * rank), to * rank));
    return own;
  }

  goTo(row) {
    if (this.looksBack && row > this.had) throw new ProtocolError(`the cloud must send the rows from ${this.had} on, got row ${row}`);
    if (row < this.had) for (const part of this.parts) part.trim(row);
    this.had = row;
  }

  /** The tensors of an ANSWER to these asks. */
  answer(asks) {
    const began = performance.now();
    const corrections = asks.flatMap((ask) => this.corrections(ask));
    const fields = packed(corrections, this.width);
    const draft = asks.flatMap((ask) => ask.at.map((at) => this.expected(at)));
    const most = Math.max(...draft.map((each) => each.length));
    const ids = new Int32Array(draft.length * most).fill(-1);
    draft.forEach((each, row) => ids.set(each, row * most));
    this.seconds += (performance.now() - began) / 1000;
    return { ...fields, draft: { data: ids, shape: [draft.length, most] } };
  }

  corrections(ask) {
    this.hear(ask);
    for (const part of this.parts) part.hear?.(ask.start, ask.ids);
    const rows = this.rowsOf(ask.codes, ask.scales);
    if (rows.length !== ask.at.length) throw new ProtocolError("the cloud must send a row for each position that it asks about");
    return ask.at.map((at, n) => this.correct(at, rows[n], ask.gates.length ? ask.gates[n] : -1));
  }

  correct(at, row, gates) {
    this.goTo(at - 1);
    this.had = at;
    let [spoken, total] = [null, null];
    this.plugin.parts.forEach(({ memory }, n) => {
      const part = this.parts[n];
      if (!((gates >> n) & 1) || (spoken && !memory)) {
        if (part.wantsContext) part.context(this.of(n, row));
        return;
      }
      const found = memory ? part.answer(at) : part.answer(this.of(n, row));
      if (!found) return;
      if (memory) spoken ??= found;
      else if (total) for (let i = 0; i < total.length; i++) total[i] += found[i];
      else total = found;
    });
    return spoken ?? { delta: total };
  }

  expected(at) {
    const part = this.parts.find((each) => each instanceof Quoting);
    return part ? part.ids.slice(Math.max(0, at - part.start), at - part.start + MAX_DRAFT) : [];
  }

  /** An ask of a run that was rolled back: it needs no answer, but its row may still stand. */
  skip(ask) {
    if (!this.looksBack) return;
    this.hear(ask);
    const rows = this.rowsOf(ask.codes, ask.scales);
    ask.at.forEach((at, row) => {
      this.goTo(at - 1);
      this.parts.forEach((part, n) => part.wantsContext && part.context(this.of(n, rows[row])));
      this.had = at;
    });
  }

  hear(ask) {
    if (!this.looksBack) return;
    ask.ids.forEach((id, n) => this.text.set(ask.start + n, id));
    this.heard = ask.start + ask.ids.length;
  }

  /** The tokens from position `at` on are final: rows behind another token are void. */
  settled(at, ids) {
    if (!this.looksBack) return;
    for (const [n, id] of ids.entries()) {
      const position = at + n;
      if (position < this.had && (this.text.get(position) ?? id) !== id) return this.goTo(position);
    }
  }

  /** The connection broke; rows count where it is known which token they stand behind. */
  resume(settled, prompt) {
    const length = Math.min(this.had, settled, Math.max(this.heard, prompt));
    if (length < this.had) this.goTo(length);
  }
}

/** Codes (T, K, R) and scales (T, K) as T rows of K · R numbers. */
function decodedRows({ data, shape }, scales) {
  const [count, layers, rank] = shape;
  const size = layers * rank;
  if (data instanceof Int8Array && (scales.shape[0] !== count || scales.shape[1] !== layers)) throw new ProtocolError("the cloud must send a scale for each code");
  return Array.from({ length: count }, (_, t) => {
    const row = new Float32Array(size);
    for (let k = 0; k < layers; k++) {
      const scale = data instanceof Int8Array ? scales.data[t * layers + k] : 1;
      for (let i = 0; i < rank; i++) row[k * rank + i] = data[t * size + k * rank + i] * scale;
    }
    return row;
  });
}

/** Corrections as an ANSWER's tensors; what nobody brings is left out. */
export function packed(corrections, width) {
  const fields = {};
  const count = corrections.length;
  if (corrections.some(({ delta }) => delta)) {
    const [data, scales] = [new Int8Array(count * width), new Float32Array(count)];
    corrections.forEach(({ delta }, row) => {
      if (!delta) return;
      const { codes, scale } = quant8(delta);
      data.set(codes, row * width);
      scales[row] = scale;
    });
    fields.delta = { data, shape: [count, width] };
    fields.scales = { data: scales, shape: [count] };
  }
  if (corrections.some(({ id }) => id !== undefined)) {
    const isSaid = corrections.map(({ id }) => Number(id !== undefined));
    fields.mix = { data: Float32Array.from(isSaid), shape: [count] };
    fields.mix_ids = { data: Int32Array.from(corrections, ({ id }) => id ?? -1), shape: [count, 1] };
    fields.mix_weights = { data: Float32Array.from(isSaid), shape: [count, 1] };
  }
  return fields;
}
