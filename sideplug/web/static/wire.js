/* The wire, version 3: frames as bytes (docs/WIRE.md). A frame is {kind, …fields}; a tensor in it is {data, shape},
   data an Int8Array, Int32Array or Float32Array (half precision is read into float32, and never written here). */

import { crc32, fromHalf, joined, pack, unpack } from "./bytes.js";

export const KINDS = [
  "",
  "OPEN",
  "OPENED",
  "PROMPT",
  "TOKENS",
  "ASK",
  "ANSWER",
  "DONE",
  "CANCEL",
  "READ",
  "EXAMPLE",
  "SCORE",
  "SCORED",
  "ROWS",
  "HEAD",
  "ERROR",
  "BEGUN",
  "CONTEXT",
];
const FROM_CLOUD = new Set(["OPENED", "TOKENS", "ASK", "DONE", "EXAMPLE", "ERROR", "BEGUN", "CONTEXT"]);
const VERSION = 3;
const HEADER = 20;
const MAX_CONTROL = 4 << 20;
const MAX_PAYLOAD = 64 << 20;
const MAX_TENSORS = 12;
const MAX_DIMS = 4;
const TYPES = { i1: Int8Array, i4: Int32Array, f2: Uint16Array, f4: Float32Array };
const NAMES = new Map([
  [Int8Array, "i1"],
  [Int32Array, "i4"],
  [Float32Array, "f4"],
]);

/** What breaks the rules of the wire. */
export class ProtocolError extends Error {}

const isTensor = (value) => value && ArrayBuffer.isView(value.data) && Array.isArray(value.shape);

/** A frame's bytes; `number`: of the frames that were sent before it on this connection. */
export function encode({ kind, ...fields }, number) {
  const control = {};
  const listing = [];
  const payload = [];
  for (const [name, value] of Object.entries(fields)) {
    if (!isTensor(value)) control[name] = value;
    else {
      listing.push([name, NAMES.get(value.data.constructor), value.shape]);
      payload.push(new Uint8Array(value.data.buffer, value.data.byteOffset, value.data.byteLength));
    }
  }
  const packed = pack({ ...control, t: listing });
  const body = joined(payload);
  const head = new DataView(new ArrayBuffer(HEADER));
  [0x53, 0x50, VERSION, KINDS.indexOf(kind)].forEach((byte, at) => head.setUint8(at, byte));
  head.setUint32(4, number >>> 0, true);
  head.setUint32(8, packed.length, true);
  head.setUint32(12, body.length, true);
  const bytes = new Uint8Array(head.buffer);
  head.setUint32(16, crc32(bytes.subarray(0, 16), packed, body), true);
  return joined([bytes, packed, body]);
}

/** The frame of a message that must have this number. Throws ProtocolError for anything that the page does not allow. */
export function decode(message, number) {
  const view = new DataView(message.buffer, message.byteOffset, message.byteLength);
  if (message.length < HEADER || view.getUint8(0) !== 0x53 || view.getUint8(1) !== 0x50)
    throw new ProtocolError("the cloud sent what is no message of this wire");
  if (view.getUint8(2) !== VERSION)
    throw new ProtocolError(`the wire's version must be ${VERSION}, got ${view.getUint8(2)}: use one version on both sides`);
  const kind = KINDS[view.getUint8(3)];
  if (!FROM_CLOUD.has(kind)) throw new ProtocolError(`${kind || "an unknown kind"} must not come from a cloud`);
  const [control, payload] = [view.getUint32(8, true), view.getUint32(12, true)];
  if (control > MAX_CONTROL || payload > MAX_PAYLOAD || message.length !== HEADER + control + payload)
    throw new ProtocolError(`a message must be one and whole, got ${message.length} bytes`);
  if (view.getUint32(16, true) !== crc32(message.subarray(0, 16), message.subarray(HEADER)))
    throw new ProtocolError(`a ${kind} message arrived changed: its checksum is wrong`);
  if (view.getUint32(4, true) !== number >>> 0)
    throw new ProtocolError("a message is lost, doubled or out of order");
  let fields;
  try {
    fields = unpack(message.subarray(HEADER, HEADER + control));
  } catch (problem) {
    throw new ProtocolError(`${kind} has a malformed control map: ${problem.message}`);
  }
  const { t: listing = [], ...rest } = fields ?? {};
  if (typeof fields !== "object" || !Array.isArray(listing)) throw new ProtocolError(`${kind} has a malformed control map`);
  return { kind, ...rest, ...tensors(kind, listing, message.subarray(HEADER + control)) };
}

function tensors(kind, listing, payload) {
  if (listing.length > MAX_TENSORS) throw new ProtocolError(`${kind} must list at most ${MAX_TENSORS} tensors`);
  const found = {};
  let at = 0;
  for (const entry of listing) {
    const [name, type, shape] = Array.isArray(entry) ? entry : [];
    const isRight = typeof name === "string" && Object.hasOwn(TYPES, type) && Array.isArray(shape) && shape.length <= MAX_DIMS;
    if (!isRight || !shape.every((n) => Number.isInteger(n) && n >= 0 && n <= MAX_PAYLOAD) || Object.hasOwn(found, name))
      throw new ProtocolError(`${kind} has a malformed tensor`);
    const count = shape.reduce((product, n) => product * n, 1);
    const size = count * TYPES[type].BYTES_PER_ELEMENT;
    if (at + size > payload.length) throw new ProtocolError(`${kind} tensor ${name} reaches past the payload`);
    const bytes = payload.slice(at, at + size); // aligned, and not the whole message's
    const data = new TYPES[type](bytes.buffer, 0, count);
    found[name] = { data: type === "f2" ? fromHalf(data) : data, shape };
    at += size;
  }
  if (at !== payload.length) throw new ProtocolError(`${kind} has bytes behind its tensors`);
  return found;
}
