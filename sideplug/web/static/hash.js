/* The running hash of a text's token ids, by which a cloud knows where a reply stands (contract/progress.py):
   h ← BLAKE2b-64(h, id as 4 little-endian bytes). RFC 7693, with numbers of 64 bits as BigInt: it is used after breaks only. */

import { hex } from "./bytes.js";

const MASK = (1n << 64n) - 1n;
const START = [
  0x6a09e667f3bcc908n,
  0xbb67ae8584caa73bn,
  0x3c6ef372fe94f82bn,
  0xa54ff53a5f1d36f1n,
  0x510e527fade682d1n,
  0x9b05688c2b3e6c1fn,
  0x1f83d9abfb41bd6bn,
  0x5be0cd19137e2179n,
];
const ORDER = [
  [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
  [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
  [11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4],
  [7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8],
  [9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13],
  [2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9],
  [12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11],
  [13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10],
  [6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5],
  [10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0],
];
const QUARTERS = [
  [0, 4, 8, 12],
  [1, 5, 9, 13],
  [2, 6, 10, 14],
  [3, 7, 11, 15],
  [0, 5, 10, 15],
  [1, 6, 11, 12],
  [2, 7, 8, 13],
  [3, 4, 9, 14],
];

/** BLAKE2b of at most 128 bytes, 8 bytes long. */
function blake2b64(bytes) {
  const block = new DataView(new ArrayBuffer(128));
  bytes.forEach((byte, at) => block.setUint8(at, byte));
  const m = Array.from({ length: 16 }, (_, n) => block.getBigUint64(8 * n, true));
  const h = [...START];
  h[0] ^= 0x01010008n;
  const v = [...h, ...START];
  v[12] ^= BigInt(bytes.length);
  v[14] ^= MASK;
  const turned = (x, by) => ((x >> by) | (x << (64n - by))) & MASK;
  for (let round = 0; round < 12; round++) {
    const order = ORDER[round % 10];
    QUARTERS.forEach(([a, b, c, d], n) => {
      v[a] = (v[a] + v[b] + m[order[2 * n]]) & MASK;
      v[d] = turned(v[d] ^ v[a], 32n);
      v[c] = (v[c] + v[d]) & MASK;
      v[b] = turned(v[b] ^ v[c], 24n);
      v[a] = (v[a] + v[b] + m[order[2 * n + 1]]) & MASK;
      v[d] = turned(v[d] ^ v[a], 16n);
      v[c] = (v[c] + v[d]) & MASK;
      v[b] = turned(v[b] ^ v[c], 63n);
    });
  }
  const out = new DataView(new ArrayBuffer(8));
  out.setBigUint64(0, h[0] ^ v[0] ^ v[8], true);
  return new Uint8Array(out.buffer);
}

/** The hash `before` (16 hexadecimal digits, or ""), extended by ids. */
export function runningHash(ids, before) {
  let digest = new Uint8Array((before.match(/../g) ?? []).map((pair) => parseInt(pair, 16)));
  for (const id of ids) {
    const bytes = new Uint8Array(digest.length + 4);
    bytes.set(digest);
    new DataView(bytes.buffer).setInt32(digest.length, id, true);
    digest = blake2b64(bytes);
  }
  return hex(digest);
}
