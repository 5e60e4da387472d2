/* Vectors and matrices in typed arrays. A matrix (rows, columns) lies row by row; sums are of float32 products. */

/** x (n) times a matrix (n, m) from `at` on in `matrix`, plus bias (m) from `biasAt` on: a new Float32Array (m).
    Four rows are added at once: that is what a browser's compiler does fastest. */
export function affine(x, matrix, m, bias, at = 0, biasAt = 0) {
  const out = bias ? bias.slice(biasAt, biasAt + m) : new Float32Array(m);
  const n = x.length;
  let i = 0;
  for (; i + 4 <= n; i += 4) {
    const [a, b, c, d] = [x[i], x[i + 1], x[i + 2], x[i + 3]];
    const r0 = at + i * m;
    const r1 = r0 + m;
    const r2 = r1 + m;
    const r3 = r2 + m;
    for (let j = 0; j < m; j++) out[j] += a * matrix[r0 + j] + b * matrix[r1 + j] + c * matrix[r2 + j] + d * matrix[r3 + j];
  }
  for (; i < n; i++) {
    const a = x[i];
    const row = at + i * m;
    for (let j = 0; j < m; j++) out[j] += a * matrix[row + j];
  }
  return out;
}

const ROOT = Math.sqrt(2 / Math.PI);

/** GELU, tanh form (Hendrycks and Gimpel 2016), of each number; in place. */
export function gelu(x) {
  for (let i = 0; i < x.length; i++) {
    const value = x[i];
    x[i] = 0.5 * value * (1 + Math.tanh(ROOT * (value + 0.044715 * value * value * value)));
  }
  return x;
}

/** Layer norm with a gain of 1 + gain. */
export function norm(x, gain, bias, at = 0, epsilon = 1e-5) {
  const n = x.length;
  let mean = 0;
  for (let i = 0; i < n; i++) mean += x[i];
  mean /= n;
  let variance = 0;
  for (let i = 0; i < n; i++) variance += (x[i] - mean) ** 2;
  const inverse = 1 / Math.sqrt(variance / n + epsilon);
  const out = new Float32Array(n);
  for (let i = 0; i < n; i++) out[i] = (x[i] - mean) * inverse * (1 + gain[at + i]) + bias[at + i];
  return out;
}

/** a += b. */
export function add(a, b) {
  for (let i = 0; i < a.length; i++) a[i] += b[i];
  return a;
}

/** The nearest whole number, halves to the even one, as NumPy rounds. */
function rint(x) {
  const low = Math.floor(x);
  const rest = x - low;
  if (rest !== 0.5) return rest < 0.5 ? low : low + 1;
  return low % 2 ? low + 1 : low;
}

/** A vector as int8 codes and one scale, so that x ≈ codes · scale. One that is not finite becomes zeros. */
export function quant8(x) {
  let peak = 0;
  for (let i = 0; i < x.length; i++) {
    const size = Math.abs(x[i]);
    if (!(size <= peak)) peak = size; // also where it is not a number
  }
  const codes = new Int8Array(x.length);
  if (!Number.isFinite(peak) || !(peak > 0)) return { codes, scale: 0 };
  const scale = Math.fround(peak / 127);
  const inverse = Math.fround(1 / scale);
  for (let i = 0; i < x.length; i++) codes[i] = Math.max(-127, Math.min(127, rint(Math.fround(x[i] * inverse))));
  return { codes, scale };
}
