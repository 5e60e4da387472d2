/* A plugin, of the bytes of its export (safetensors): its parts, the union of their taps, its gates and biases. */

import { fromHalf, hex, joined, text as decoded, utf8 } from "./bytes.js";
import { KINDS } from "./kinds.js";

const FORMAT = 3;
const MAX_HEADER = 16 << 20;
const MAX_PARTS = 8;
const ANY_BASE = "any";
const TYPES = { F32: Float32Array, F16: Uint16Array, I32: Int32Array, I64: BigInt64Array, I8: Int8Array, U8: Uint8Array };

/** What a file's bytes say: {about, tensors: name → {data, shape}}. Throws a sentence for what is damaged. */
export function parse(bytes) {
  const wrong = () => new Error("the plugin's file is damaged: what it holds does not fit what it says of itself");
  if (bytes.length < 8) throw wrong();
  const size = Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true));
  if (size > Math.min(MAX_HEADER, bytes.length - 8)) throw wrong();
  let header;
  let about;
  try {
    header = JSON.parse(decoded(bytes.subarray(8, 8 + size)));
    about = JSON.parse(header.__metadata__?.sideplug ?? "{}");
  } catch {
    throw wrong();
  }
  const tensors = {};
  for (const [name, entry] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    const [from, to] = entry.data_offsets ?? [];
    const type = TYPES[entry.dtype];
    const count = entry.shape?.reduce((product, n) => product * n, 1);
    const length = count * type?.BYTES_PER_ELEMENT;
    if (!type || !(from >= 0) || to - from !== length || 8 + size + to > bytes.length) throw wrong();
    const data = new type(bytes.slice(8 + size + from, 8 + size + to).buffer);
    tensors[name] = { data: entry.dtype === "F16" ? fromHalf(data) : data, raw: data, shape: entry.shape };
  }
  return { about, tensors };
}

/** The layers, rank and codec of a tap's name. */
function parseTap(name) {
  const match = /^l(\d{1,3}(?:\.\d{1,3})*)-r(\d{1,5})-s(\d{1,9})-(int8|fp16|raw)$/.exec(name);
  if (!match) throw new Error(`a tap's name must look like l0.4.8-r64-s0-int8, got ${name.slice(0, 80)}`);
  return { layers: match[1].split(".").map(Number), rank: Number(match[2]), seed: Number(match[3]), codec: match[4] };
}

const nameOf = ({ layers, rank, seed, codec }) => `l${layers.join(".")}-r${rank}-s${seed}-${codec}`;

/** A plugin's parts. `memory`: makes a part of the kind memory of its database. */
export class Plugin {
  constructor(bytes, memory) {
    const { about, tensors } = parse(bytes);
    const configs = about.parts;
    if (about.format !== FORMAT || !Array.isArray(configs) || !configs.length || configs.length > MAX_PARTS)
      throw new Error("this page reads plugins of format 3: export it anew with this version of sideplug");
    this.parts = configs.map((config) => partOf(config, tensors, memory));
    const bound = configs.find((config) => config.base_fingerprint !== ANY_BASE);
    this.base = bound?.base_fingerprint ?? "";
    this.baseName = bound?.base_model_name_or_path ?? "";
    this.tap = this.union();
    for (const part of this.parts) part.rows = part.tap ? part.tap.layers.map((layer) => this.tap.layers.indexOf(layer)) : [];
    if (this.parts.some((part) => part.merge === "replace")) throw new Error("a plugin of the kind paper can't run in a browser");
  }

  union() {
    const taps = this.parts.map((part) => part.tap).filter(Boolean);
    if (!taps.length) return { layers: [0], rank: 1, seed: 0, codec: "int8", name: "" };
    const layers = [...new Set(taps.flatMap((tap) => tap.layers))].sort((a, b) => a - b);
    const whole = { ...taps[0], layers };
    return { ...whole, name: nameOf(whole) };
  }
}

function partOf(config, tensors, memory) {
  const start = `${config.name}.`;
  const own = (name) => tensors[start + name];
  const gate = { ...config.gate, weight: own("gate")?.data ?? new Float32Array(0) };
  const part = { name: config.name, kind: config.kind, gate, merge: config.merge ?? "add", about: config.about ?? {} };
  if (config.kind === "memory") return { ...part, role: "memory", tap: null, bias: null, digest: async () => null, memory: memory(own("store").data) };
  const Kind = KINDS[config.kind];
  if (!Kind) throw new Error(`a plugin of the kind ${String(config.kind).slice(0, 40)} can't run in a browser`);
  const params = {};
  for (const [name, tensor] of Object.entries(tensors)) {
    if (!name.startsWith(`${start}params.`)) continue;
    if (!(tensor.data instanceof Float32Array)) throw new Error("the plugin's file is damaged: a parameter must be float32");
    params[name.slice(start.length + 7)] = tensor;
  }
  const bias = own("bias.ids") && { ids: own("bias.ids").data, values: own("bias.values").raw };
  return { ...part, role: "manner", tap: parseTap(config.tap), bias, begin: () => new Kind(params), digest: () => digestOf(config, params), phrases: own("phrases")?.data ?? new Int32Array(0) };
}

/** The SHA-256 of a part's parameters, with its kind and tap: two parts with one digest correct alike. */
async function digestOf({ kind, tap }, params) {
  const pieces = [utf8(`${kind} ${tap}`)];
  for (const name of Object.keys(params).sort()) {
    const { data, shape } = params[name];
    const listed = shape.length === 1 ? `(${shape[0]},)` : `(${shape.join(", ")})`;
    pieces.push(utf8(` ${name} ${listed} `), new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  }
  const bytes = new Uint8Array(await crypto.subtle.digest("SHA-256", joined(pieces)));
  return { bytes, hex: hex(bytes) };
}
