/* What the sentence encoder spends its time in, x (T, n) times the rows of a matrix (m, n), in WebAssembly with SIMD: four
   tokens at once, four numbers an instruction. The module's bytes are assembled here, from the lists below, so there is
   nothing to build. Where a browser has no SIMD, `product` does the same. */

// ── instructions (webassembly.github.io/spec, binary format) ─────────────────────────────────────────────────────

const leb = (n) => {
  const bytes = [];
  for (;;) {
    const byte = n & 127;
    n >>= 7;
    if ((n === 0 && !(byte & 64)) || (n === -1 && byte & 64)) return [...bytes, byte];
    bytes.push(byte | 128);
  }
};
const unsigned = (n) => (n < 128 ? [n] : [(n & 127) | 128, ...unsigned(n >>> 7)]);
const get = (local) => [0x20, local];
const set = (local) => [0x21, local];
const constant = (n) => [0x41, ...leb(n)];
const [plus, times] = [[0x6a], [0x6c]];
const simd = (code, ...more) => [0xfd, ...unsigned(code), ...more];
const load = simd(0, 4, 0);
const load8 = simd(1, 3, 0); // eight int8 as int16
const store = (offset) => simd(11, 4, ...unsigned(offset));
const [lowHalf, highHalf, toFloat] = [simd(167), simd(168), simd(250)];
const [add, multiply] = [simd(228), simd(230)];
const zero = simd(12, ...new Array(16).fill(0));
const [loadFloat, storeFloat] = [
  [0x2a, 2, 0],
  [0x38, 2, 0],
];
const [addFloat, timesFloat] = [0x92, 0x94];
const advance = (local, by) => [...get(local), ...by, ...plus, ...set(local)];
/** Do the body, again while one local is below another. */
const loop = (body, local, end) => [0x03, 0x40, ...body, ...get(local), ...get(end), 0x49, 0x0d, 0, 0x0b];

// ── the functions: times(x, count, weights, m, n, out, scale, row), of int8 and of float32 weights ──────────────────

const [X, COUNT, WEIGHTS, M, N, OUT, SCALE, ROW] = [0, 1, 2, 3, 4, 5, 6, 7]; // addresses in bytes, and sizes
const [J, I, T, P, END, BYTES, TO] = [8, 9, 10, 11, 12, 13, 14];
const AT = [15, 16, 17, 18]; // where each of four tokens is read
const SUM = [19, 20, 21, 22]; // their sums, four partial ones each
const [WEIGHT, SOME] = [23, 24];

/** The int8 row at WEIGHTS as float32 at ROW, eight numbers a turn. */
const widened = [
  ...[...constant(0), ...set(I), ...get(ROW), ...set(P)],
  ...loop(
    [
      ...[...get(WEIGHTS), ...get(I), ...plus, ...load8, ...set(SOME)],
      ...[...get(P), ...get(SOME), ...lowHalf, ...toFloat, ...store(0)],
      ...[...get(P), ...get(SOME), ...highHalf, ...toFloat, ...store(16)],
      ...advance(P, constant(32)),
      ...advance(I, constant(8)),
    ],
    I,
    N,
  ),
  ...advance(WEIGHTS, get(N)),
];
const asItIs = [...get(WEIGHTS), ...set(ROW), ...advance(WEIGHTS, get(BYTES))];

/** out[t, j] += scale[j] · (x[t] · row), of four tokens t. */
const fourTokens = [
  ...AT.flatMap((at, n) => (n ? [...get(AT[n - 1]), ...get(BYTES), ...plus, ...set(at)] : [...get(X), ...get(T), ...get(BYTES), ...times, ...plus, ...set(at)])),
  ...SUM.flatMap((sum) => [...zero, ...set(sum)]),
  ...[...get(ROW), ...set(P)],
  ...loop(
    [
      ...[...get(P), ...load, ...set(WEIGHT)],
      ...AT.flatMap((at, n) => [...get(SUM[n]), ...get(at), ...load, ...get(WEIGHT), ...multiply, ...add, ...set(SUM[n]), ...advance(at, constant(16))]),
      ...advance(P, constant(16)),
    ],
    P,
    END,
  ),
  ...SUM.flatMap((sum, n) => {
    const lanes = [0, 1, 2, 3].map((lane) => [...get(sum), ...simd(31, lane)]);
    const element = [...get(T), ...constant(n), ...plus, ...get(M), ...times, ...get(J), ...plus, ...constant(4), ...times];
    const total = [...lanes[0], ...lanes[1], addFloat, ...lanes[2], ...lanes[3], addFloat, addFloat];
    const scale = [...get(SCALE), ...get(J), ...constant(4), ...times, ...plus, ...loadFloat];
    return [...element, ...get(OUT), ...plus, ...set(TO), ...get(TO), ...get(TO), ...loadFloat, ...total, ...scale, timesFloat, addFloat, ...storeFloat];
  }),
  ...advance(T, constant(4)),
];

const bodyOf = (nextRow) => [
  ...[...get(N), ...constant(4), ...times, ...set(BYTES)],
  ...[...constant(0), ...set(J)],
  ...loop([...nextRow, ...get(ROW), ...get(BYTES), ...plus, ...set(END), ...constant(0), ...set(T), ...loop(fourTokens, T, COUNT), ...advance(J, constant(1))], J, M),
  0x0b,
];

const section = (id, bytes) => [id, ...unsigned(bytes.length), ...bytes];
const locals = [2, 11, 0x7f, 6, 0x7b]; // eleven i32, six v128
const functionOf = (nextRow) => {
  const code = [...locals, ...bodyOf(nextRow)];
  return [...unsigned(code.length), ...code];
};
const named = (name) => [name.length, ...Array.from(name, (char) => char.charCodeAt(0))];

const bytes = new Uint8Array([
  ...[0, 0x61, 0x73, 0x6d, 1, 0, 0, 0],
  ...section(1, [1, 0x60, 8, ...new Array(8).fill(0x7f), 0]),
  ...section(2, [1, ...named("a"), ...named("m"), 2, 0, 1]),
  ...section(3, [2, 0, 0]),
  ...section(7, [2, ...named("ofInt8"), 0, 0, ...named("ofFloat"), 0, 1]),
  ...section(10, [2, ...functionOf(widened), ...functionOf(asItIs)]),
]);

const PAGE = 65536;
const MOST_TOKENS = 128; // a multiple of four, as are all sizes
const WIDEST = 1536;

/** Layers x W + b in the module's own memory: weights of int8 with a scale a row, and low-rank changes B A of them. */
export class Kernel {
  /** layers: {name: {weight: Int8Array, scale, bias, m, n}}; changes: {name: {a (r, n), b (m, r), r}}, float32. Throws
      where the browser has no SIMD. */
  constructor(layers, changes = {}) {
    const floats = (changes_) => Object.values(changes_).reduce((sum, { a, b }) => sum + 4 * (a.length + b.length), 0);
    const sizes = Object.values(layers).reduce((sum, { weight, m }) => sum + weight.length + 4 * m + 16, 0);
    const room = 4 * (3 * WIDEST * MOST_TOKENS + 2 * WIDEST);
    this.memory = new WebAssembly.Memory({ initial: Math.ceil((sizes + floats(changes) + room) / PAGE) + 1 });
    const { exports } = new WebAssembly.Instance(new WebAssembly.Module(bytes), { a: { m: this.memory } });
    [this.ofInt8, this.ofFloat, this.end] = [exports.ofInt8, exports.ofFloat, 0];
    [this.layers, this.changes] = [{}, {}];
    for (const [name, { weight, scale, bias, m, n }] of Object.entries(layers))
      this.layers[name] = { at: this.put(weight), scale: this.put(scale), bias, m, n };
    for (const [name, { a, b, r }] of Object.entries(changes)) this.changes[name] = { a: this.put(a), b: this.put(b), r };
    this.ones = this.put(new Float32Array(WIDEST).fill(1));
    [this.x, this.out, this.inner, this.row] = [WIDEST * MOST_TOKENS, WIDEST * MOST_TOKENS, WIDEST * MOST_TOKENS, WIDEST].map((size) => this.put(null, 4 * size));
  }

  /** Put numbers, or room for so many bytes, behind what is there; return where. */
  put(numbers, size = numbers.byteLength) {
    const at = Math.ceil(this.end / 16) * 16;
    if (numbers) new Uint8Array(this.memory.buffer).set(new Uint8Array(numbers.buffer, numbers.byteOffset, size), at);
    this.end = at + size;
    return at;
  }

  /** x (T, n) through a layer: (T, m). isChanged: with its low-rank change. */
  linear(x, count, name, isChanged) {
    const { at, scale, bias, m, n } = this.layers[name];
    const change = isChanged && this.changes[name];
    const floats = new Float32Array(this.memory.buffer);
    const result = new Float32Array(count * m);
    for (let first = 0; first < count; first += MOST_TOKENS) {
      const some = Math.min(MOST_TOKENS, count - first);
      const rows = Math.ceil(some / 4) * 4;
      floats.set(x.subarray(first * n, (first + some) * n), this.x / 4);
      for (let t = 0; t < some; t++) floats.set(bias, this.out / 4 + t * m);
      this.ofInt8(this.x, rows, at, m, n, this.out, scale, this.row);
      if (change) {
        floats.fill(0, this.inner / 4, this.inner / 4 + rows * change.r);
        this.ofFloat(this.x, rows, change.a, change.r, n, this.inner, this.ones, this.row);
        this.ofFloat(this.inner, rows, change.b, m, change.r, this.out, this.ones, this.row);
      }
      result.set(floats.subarray(this.out / 4, this.out / 4 + some * m), first * m);
    }
    return result;
  }
}

/** The same without WebAssembly, for any matrix (m, n). Four rows of x share what is read of the matrix. */
export function product(x, count, matrix, m, n) {
  const out = new Float32Array(count * m);
  let t = 0;
  for (; t + 4 <= count; t += 4) {
    const x0 = t * n;
    const x1 = x0 + n;
    const x2 = x1 + n;
    const x3 = x2 + n;
    for (let j = 0; j < m; j++) {
      const row = j * n;
      let a = 0;
      let b = 0;
      let c = 0;
      let d = 0;
      for (let i = 0; i < n; i++) {
        const weight = matrix[row + i];
        a += x[x0 + i] * weight;
        b += x[x1 + i] * weight;
        c += x[x2 + i] * weight;
        d += x[x3 + i] * weight;
      }
      out[t * m + j] = a;
      out[(t + 1) * m + j] = b;
      out[(t + 2) * m + j] = c;
      out[(t + 3) * m + j] = d;
    }
  }
  for (; t < count; t++)
    for (let j = 0; j < m; j++) {
      let sum = 0;
      for (let i = 0; i < n; i++) sum += x[t * n + i] * matrix[j * n + i];
      out[t * m + j] = sum;
    }
  return out;
}
