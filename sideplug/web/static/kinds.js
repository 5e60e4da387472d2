/* The kinds of parts that are trained, as the device computes them: a row's codes in, a correction Δ of z out.

   A part's parameters are {name: {data: Float32Array, shape}}. `begin` gives what answers during one reply:
   answer(at, codes) → Δ, context(codes), trim(length). The formulas are those of sideplug/plugins/. */

import { add, affine, gelu, norm } from "./numbers.js";

class Stateless {
  wantsContext = false;
  context() {}
  trim() {}
}

class Ladder extends Stateless {
  constructor(params) {
    super();
    this.p = params;
  }

  answer(codes) {
    const p = this.p;
    const [taps, rank, width] = p.a.shape;
    const modelWidth = p.c.shape[1];
    let s = new Float32Array(width);
    for (let k = 0; k < taps; k++) {
      const code = codes.subarray(k * rank, (k + 1) * rank);
      s = add(s, affine(code, p.a.data, width, p.a_bias.data, k * rank * width, k * width));
      const square = k * width * width;
      const value = gelu(affine(s, p.up.data, width, p.up_bias.data, square, k * width));
      s = add(s, affine(value, p.down.data, width, p.down_bias.data, square, k * width));
    }
    return affine(gelu(s), p.c.data, modelWidth, p.c_bias.data);
  }
}

class Mlp extends Stateless {
  constructor(params) {
    super();
    this.p = params;
  }

  answer(codes) {
    const p = this.p;
    const h = gelu(affine(codes, p.a.data, p.a.shape[1], p.a_bias.data));
    return affine(h, p.b.data, p.b.shape[1], p.b_bias.data);
  }
}

const ROLL_BACK = 1024; // rows by which a text can go back, at least

class Attention {
  wantsContext = true;

  constructor(params) {
    this.p = params;
    [this.blocks, this.heads, this.window] = params.near.shape;
    this.width = params.c.shape[0];
    this.room = this.window + 2 * ROLL_BACK;
    this.kv = Array.from({ length: this.blocks }, () => new Float32Array(this.room * 2 * this.width));
    [this.first, this.count] = [0, 0]; // the earliest row that is kept, and how many are
  }

  answer(codes) {
    const x = this.run(codes, false);
    const p = this.p;
    return affine(gelu(norm(x, p.norm_gain.data, p.norm_bias.data)), p.c.data, p.c.shape[1], p.c_bias.data);
  }

  context(codes) {
    this.run(codes, true);
  }

  trim(length) {
    if (length < (this.first ? this.first + this.window - 1 : 0))
      throw new Error(`the cloud must go back by at most ${ROLL_BACK} tokens for this kind of plugin`);
    this.count = Math.min(this.count, length - this.first);
  }

  makeRoom() {
    if (this.count < this.room) return;
    const kept = this.window + ROLL_BACK;
    const row = 2 * this.width;
    for (const kv of this.kv) kv.copyWithin(0, (this.count - kept) * row, this.count * row);
    [this.first, this.count] = [this.first + this.count - kept, kept];
  }

  run(codes, keysOnly) {
    const { p, width: w } = this;
    this.makeRoom();
    let x = affine(codes, p.in.data, w, p.in_bias.data);
    for (let n = 0; n < this.blocks; n++) {
      const y = norm(x, p.attend_gain.data, p.attend_bias.data, n * w);
      const kv = affine(y, p.kv.data, 2 * w, p.kv_bias.data, n * w * 2 * w, n * 2 * w);
      this.kv[n].set(kv, this.count * 2 * w);
      if (keysOnly && n === this.blocks - 1) break;
      const q = affine(y, p.q.data, w, p.q_bias.data, n * w * w, n * w);
      x = add(x, affine(this.attend(n, q), p.o.data, w, p.o_bias.data, n * w * w, n * w));
      const y2 = norm(x, p.mix_gain.data, p.mix_bias.data, n * w);
      const value = gelu(affine(y2, p.up.data, 2 * w, p.up_bias.data, n * w * 2 * w, n * 2 * w));
      x = add(x, affine(value, p.down.data, w, p.down_bias.data, n * 2 * w * w, n * w));
    }
    this.count++;
    return x;
  }

  /** What the newest row takes from itself and those before it. */
  attend(block, q) {
    const { width, heads, window, count } = this;
    const kv = this.kv[block];
    const near = this.p.near.data;
    const each = width / heads;
    const scale = each ** -0.5;
    const low = Math.max(0, count - window + 1);
    const out = new Float32Array(width);
    const scores = new Float32Array(count + 1 - low);
    for (let head = 0; head < heads; head++) {
      const start = head * each;
      let peak = -Infinity;
      for (let row = low; row <= count; row++) {
        const at = row * 2 * width + start;
        let sum = 0;
        for (let i = 0; i < each; i++) sum += q[start + i] * kv[at + i];
        const score = sum * scale + near[(block * heads + head) * window + count - row];
        scores[row - low] = score;
        if (score > peak) peak = score;
      }
      let total = 0;
      for (let i = 0; i < scores.length; i++) total += scores[i] = Math.exp(scores[i] - peak);
      for (let row = low; row <= count; row++) {
        const weight = scores[row - low] / total;
        const at = row * 2 * width + width + start;
        for (let i = 0; i < each; i++) out[start + i] += weight * kv[at + i];
      }
    }
    return out;
  }
}

export const KINDS = { ladder: Ladder, mlp: Mlp, attention: Attention };
