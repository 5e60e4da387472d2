/* A plugin's file, as `sideplug plugin export` writes it, opened with its passphrase; and what is kept, sealed the same
   way (sideplug/plugins/sealed_file.py has the layout). scrypt is computed here, all else by WebCrypto. */

import { joined, utf8 } from "./bytes.js";

const START = 78;
const DIGEST = 32;
const [COST, BLOCK, PARALLEL] = [1 << 15, 8, 3];

/** The passphrase does not open the file. */
export class WrongPassphrase extends Error {}

const subtle = () => {
  if (!globalThis.crypto?.subtle) throw new Error("this page must be served by https, or from this machine: else a browser has no ciphers");
  return globalThis.crypto.subtle;
};

/** Whether a file is sealed. Throws a sentence for another kind of file, or a damaged one. */
export async function isSealed(file) {
  return (await parse(file)).sealed;
}

/** The data of a file. Throws a sentence: it is no plugin's file, cut off, damaged, or the passphrase is wrong. */
export async function unseal(file, passphrase) {
  const { sealed, head, salt, nonce, check, body } = await parse(file);
  if (!sealed) return body;
  if (!passphrase) throw new WrongPassphrase("this plugin is sealed: give its passphrase");
  const keys = await scrypt(utf8(passphrase), salt);
  const hmac = await subtle().importKey("raw", keys.subarray(32), { name: "HMAC", hash: "SHA-256" }, false, ["verify"]);
  if (!(await subtle().verify("HMAC", hmac, check, head))) throw new WrongPassphrase("the passphrase is wrong");
  const key = await subtle().importKey("raw", keys.subarray(0, 32), "AES-GCM", false, ["decrypt"]);
  try {
    const how = { name: "AES-GCM", iv: nonce, additionalData: joined([head, check]) };
    return new Uint8Array(await subtle().decrypt(how, key, body));
  } catch {
    throw new Error("the sealed plugin was altered by somebody: it is not what was sealed");
  }
}

async function parse(file) {
  const magic = [...utf8("SIDEPLUG")];
  if (!file.length || magic.some((byte, at) => at < file.length && file[at] !== byte))
    throw new Error("this is no plugin's file: it must be one that “sideplug plugin export” wrote");
  if (file.length < START + DIGEST) throw new Error(`the plugin's file is cut off: it has ${file.length} bytes`);
  const view = new DataView(file.buffer, file.byteOffset);
  const [version, kind, size] = [file[8], file[9], Number(view.getBigUint64(10, true))];
  if (version !== 1 || kind > 1) throw new Error(`the plugin's file has version ${version}, this page reads 1`);
  const end = START + size;
  if (file.length < end + DIGEST) throw new Error(`the plugin's file is cut off: it has ${file.length} of ${end + DIGEST} bytes`);
  const digest = new Uint8Array(await subtle().digest("SHA-256", file.subarray(0, end)));
  if (digest.some((byte, at) => byte !== file[end + at])) throw new Error("the plugin's file is damaged: its checksum does not fit");
  return {
    sealed: kind === 1,
    head: file.subarray(0, 46),
    salt: file.subarray(18, 34),
    nonce: file.subarray(34, 46),
    check: file.subarray(46, START),
    body: file.subarray(START, end),
  };
}

// ── scrypt (RFC 7914) ────────────────────────────────────────────────────────────────────────────────────────────

/** 64 bytes of a passphrase and a salt. It takes about a second and 32 MB, on purpose. */
export async function scrypt(passphrase, salt, n = COST, r = BLOCK, p = PARALLEL) {
  const bytes = await pbkdf2(passphrase, salt, p * 128 * r);
  const words = new Uint32Array(bytes.buffer); // little-endian, as all browsers' machines are
  const memory = new Uint32Array(n * 32 * r);
  for (let i = 0; i < p; i++) mixRoom(words.subarray(i * 32 * r, (i + 1) * 32 * r), memory, n, r);
  return pbkdf2(passphrase, bytes, 64);
}

async function pbkdf2(passphrase, salt, size) {
  const key = await subtle().importKey("raw", passphrase, "PBKDF2", false, ["deriveBits"]);
  const how = { name: "PBKDF2", hash: "SHA-256", salt, iterations: 1 };
  return new Uint8Array(await subtle().deriveBits(how, key, 8 * size));
}

function mixRoom(x, memory, n, r) {
  const size = 32 * r;
  const next = new Uint32Array(size);
  for (let i = 0; i < n; i++) {
    memory.set(x, i * size);
    mixBlock(x, next, r);
  }
  for (let i = 0; i < n; i++) {
    const at = (x[size - 16] & (n - 1)) * size;
    for (let k = 0; k < size; k++) x[k] ^= memory[at + k];
    mixBlock(x, next, r);
  }
}

function mixBlock(x, next, r) {
  const last = x.slice((2 * r - 1) * 16, 2 * r * 16);
  for (let i = 0; i < 2 * r; i++) {
    for (let k = 0; k < 16; k++) last[k] ^= x[i * 16 + k];
    salsa8(last);
    next.set(last, ((i >> 1) + (i & 1 ? r : 0)) * 16);
  }
  x.set(next);
}

function salsa8(block) {
  let [a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15] = block;
  const turn = (x, by) => (x << by) | (x >>> (32 - by));
  for (let round = 0; round < 4; round++) {
    a4 ^= turn((a0 + a12) | 0, 7);
    a8 ^= turn((a4 + a0) | 0, 9);
    a12 ^= turn((a8 + a4) | 0, 13);
    a0 ^= turn((a12 + a8) | 0, 18);
    a9 ^= turn((a5 + a1) | 0, 7);
    a13 ^= turn((a9 + a5) | 0, 9);
    a1 ^= turn((a13 + a9) | 0, 13);
    a5 ^= turn((a1 + a13) | 0, 18);
    a14 ^= turn((a10 + a6) | 0, 7);
    a2 ^= turn((a14 + a10) | 0, 9);
    a6 ^= turn((a2 + a14) | 0, 13);
    a10 ^= turn((a6 + a2) | 0, 18);
    a3 ^= turn((a15 + a11) | 0, 7);
    a7 ^= turn((a3 + a15) | 0, 9);
    a11 ^= turn((a7 + a3) | 0, 13);
    a15 ^= turn((a11 + a7) | 0, 18);
    a1 ^= turn((a0 + a3) | 0, 7);
    a2 ^= turn((a1 + a0) | 0, 9);
    a3 ^= turn((a2 + a1) | 0, 13);
    a0 ^= turn((a3 + a2) | 0, 18);
    a6 ^= turn((a5 + a4) | 0, 7);
    a7 ^= turn((a6 + a5) | 0, 9);
    a4 ^= turn((a7 + a6) | 0, 13);
    a5 ^= turn((a4 + a7) | 0, 18);
    a11 ^= turn((a10 + a9) | 0, 7);
    a8 ^= turn((a11 + a10) | 0, 9);
    a9 ^= turn((a8 + a11) | 0, 13);
    a10 ^= turn((a9 + a8) | 0, 18);
    a12 ^= turn((a15 + a14) | 0, 7);
    a13 ^= turn((a12 + a15) | 0, 9);
    a14 ^= turn((a13 + a12) | 0, 13);
    a15 ^= turn((a14 + a13) | 0, 18);
  }
  const mixed = [a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15];
  for (let i = 0; i < 16; i++) block[i] += mixed[i];
}
