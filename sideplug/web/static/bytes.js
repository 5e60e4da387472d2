/* Bytes as the wire and plugins' files have them: msgpack, CRC-32, float16. All numbers are little-endian. */

const TEXT = new TextEncoder();
const READ = new TextDecoder("utf-8", { fatal: true });

/** Several byte arrays as one. */
export function joined(parts) {
  const whole = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

export const utf8 = (text) => TEXT.encode(text);
export const text = (bytes) => READ.decode(bytes);
export const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");

const CRC = new Uint32Array(256).map((_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

/** zlib's CRC-32 of several byte arrays, one behind the other. */
export function crc32(...parts) {
  let crc = 0xffffffff;
  for (const part of parts) for (const byte of part) crc = CRC[(crc ^ byte) & 255] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

/** Half-precision numbers as float32. */
export function fromHalf(halves) {
  const out = new Float32Array(halves.length);
  for (let i = 0; i < halves.length; i++) {
    const half = halves[i];
    const exponent = (half >> 10) & 31;
    const fraction = half & 1023;
    const size =
      exponent === 31
        ? fraction
          ? NaN
          : Infinity
        : exponent
          ? 2 ** (exponent - 15) * (1 + fraction / 1024)
          : 2 ** -14 * (fraction / 1024);
    out[i] = half & 0x8000 ? -size : size;
  }
  return out;
}

// ── msgpack ──────────────────────────────────────────────────────────────────────────────────────────────────────

/** A value as msgpack: null, booleans, numbers (whole ones as integers), text, bytes, lists, objects. */
export function pack(value) {
  const parts = [];
  put(value, parts);
  return joined(parts);
}

function put(value, parts) {
  if (value === null || value === undefined) parts.push([0xc0]);
  else if (typeof value === "boolean") parts.push([value ? 0xc3 : 0xc2]);
  else if (typeof value === "number") parts.push(Number.isSafeInteger(value) ? whole(value) : float(value));
  else if (typeof value === "string") {
    const bytes = TEXT.encode(value);
    parts.push(head(bytes.length, [0xa0, 32], [0xd9, 0xda, 0xdb]), bytes);
  } else if (value instanceof Uint8Array) parts.push(head(value.length, null, [0xc4, 0xc5, 0xc6]), value);
  else if (Array.isArray(value)) {
    parts.push(head(value.length, [0x90, 16], [null, 0xdc, 0xdd]));
    for (const each of value) put(each, parts);
  } else {
    const entries = Object.entries(value).filter(([, each]) => each !== undefined);
    parts.push(head(entries.length, [0x80, 16], [null, 0xde, 0xdf]));
    for (const [name, each] of entries) {
      put(name, parts);
      put(each, parts);
    }
  }
}

/** The bytes that say how long something is: [base, limit] for a short one, else codes for 8, 16 and 32 bits. */
function head(size, short, [code8, code16, code32]) {
  if (short && size < short[1]) return [short[0] | size];
  if (code8 !== null && size < 256) return [code8, size];
  if (size < 65536) return [code16, size >> 8, size & 255];
  return [code32, size >>> 24, (size >> 16) & 255, (size >> 8) & 255, size & 255];
}

function whole(n) {
  if (n >= 0 && n < 128) return [n];
  if (n < 0 && n >= -32) return [256 + n];
  const view = new DataView(new ArrayBuffer(9));
  if (n >= 0 && n <= 0xffffffff) return head(n, null, [0xcc, 0xcd, 0xce]);
  view.setUint8(0, n < 0 ? 0xd3 : 0xcf);
  if (n < 0) view.setBigInt64(1, BigInt(n));
  else view.setBigUint64(1, BigInt(n));
  return new Uint8Array(view.buffer);
}

function float(n) {
  const view = new DataView(new ArrayBuffer(9));
  view.setUint8(0, 0xcb);
  view.setFloat64(1, n);
  return new Uint8Array(view.buffer);
}

/** The value of msgpack bytes. Throws an Error for what is cut off, goes on, or is an extension. */
export function unpack(bytes) {
  const reader = new Reader(bytes);
  const value = reader.value(0);
  if (reader.at !== bytes.length) throw new Error("bytes stand behind the value");
  return value;
}

const DEEPEST = 64;

class Reader {
  constructor(bytes) {
    this.bytes = bytes;
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.at = 0;
  }

  take(size) {
    if (this.at + size > this.bytes.length) throw new Error("the value is cut off");
    this.at += size;
    return this.at - size;
  }

  number(size) {
    const at = this.take(size);
    return size === 1 ? this.bytes[at] : size === 2 ? this.view.getUint16(at) : this.view.getUint32(at);
  }

  string(size) {
    const at = this.take(size);
    return READ.decode(this.bytes.subarray(at, at + size));
  }

  list(size, depth) {
    if (size > this.bytes.length - this.at) throw new Error("the list is cut off");
    return Array.from({ length: size }, () => this.value(depth + 1));
  }

  map(size, depth) {
    if (size > this.bytes.length - this.at) throw new Error("the map is cut off");
    const found = Object.create(null);
    for (let i = 0; i < size; i++) {
      const name = this.value(depth + 1);
      if (typeof name !== "string") throw new Error("a map's keys must be text");
      found[name] = this.value(depth + 1);
    }
    return found;
  }

  value(depth) {
    if (depth > DEEPEST) throw new Error("the value is nested too deep");
    const code = this.number(1);
    if (code < 0x80) return code;
    if (code < 0x90) return this.map(code & 15, depth);
    if (code < 0xa0) return this.list(code & 15, depth);
    if (code < 0xc0) return this.string(code & 31);
    if (code >= 0xe0) return code - 256;
    switch (code) {
      case 0xc0:
        return null;
      case 0xc2:
        return false;
      case 0xc3:
        return true;
      case 0xc4:
      case 0xc5:
      case 0xc6: {
        const size = this.number(1 << (code - 0xc4));
        const at = this.take(size);
        return this.bytes.slice(at, at + size);
      }
      case 0xca:
        return this.view.getFloat32(this.take(4));
      case 0xcb:
        return this.view.getFloat64(this.take(8));
      case 0xcc:
      case 0xcd:
      case 0xce:
        return this.number(1 << (code - 0xcc));
      case 0xcf:
        return Number(this.view.getBigUint64(this.take(8)));
      case 0xd0:
        return this.view.getInt8(this.take(1));
      case 0xd1:
        return this.view.getInt16(this.take(2));
      case 0xd2:
        return this.view.getInt32(this.take(4));
      case 0xd3:
        return Number(this.view.getBigInt64(this.take(8)));
      case 0xd9:
      case 0xda:
      case 0xdb:
        return this.string(this.number(1 << (code - 0xd9)));
      case 0xdc:
      case 0xdd:
        return this.list(this.number(2 << (code - 0xdc)), depth);
      case 0xde:
      case 0xdf:
        return this.map(this.number(2 << (code - 0xde)), depth);
      default:
        throw new Error(`msgpack's type ${code} is not used here`);
    }
  }
}
