/* The rows of an SQLite database's tables, read off its bytes (sqlite.org/fileformat2.html). It only reads: a memory's
   entries, passages and settings. */

import { text as decoded } from "./bytes.js";

/** The rows of a table, each {rowid, …columns by name}. Throws a sentence for what is damaged. */
export function rows(database, table) {
  const file = new Database(database);
  const found = file.table(1).find(([, row]) => row[0] === "table" && row[1] === table);
  if (!found) throw new Error(`the memory is damaged: it has no ${table}`);
  const [, , , root, sql] = found[1];
  const names = columns(sql);
  return file.table(root).map(([rowid, row]) => {
    const named = {};
    names.forEach(({ name, isKey }, n) => (named[name] = isKey && rowid !== null ? rowid : (row[n] ?? null)));
    return named;
  });
}

/** The columns of a table, of the statement that made it, in their order. */
function columns(sql) {
  const inside = sql.slice(sql.indexOf("(") + 1, sql.lastIndexOf(")"));
  const isKey = (column) => /INTEGER PRIMARY KEY/.test(column); // its value is the row's number
  return inside.split(",").map((column) => ({ name: column.trim().split(/\s+/)[0], isKey: isKey(column) }));
}

const DEEPEST = 32; // of a tree
// Kinds of pages: of tables with a row's number, and of those without
const [INNER, LEAF, INNER_WITHOUT, LEAF_WITHOUT] = [5, 13, 2, 10];

class Database {
  constructor(bytes) {
    this.bytes = bytes;
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    if (bytes.length < 512 || decoded(bytes.subarray(0, 15)) !== "SQLite format 3") throw new Error("the memory is damaged: it is no database");
    const size = this.view.getUint16(16);
    this.size = size === 1 ? 65536 : size;
    this.usable = this.size - bytes[20];
  }

  /** [rowid, values] of all rows of the tree with this root page. */
  table(root) {
    const found = [];
    this.walk(root, found, 0);
    return found;
  }

  walk(page, found, depth) {
    const start = (page - 1) * this.size;
    if (depth > DEEPEST || page < 1 || start + this.size > this.bytes.length) throw new Error("the memory is damaged: its pages do not fit");
    const head = start + (page === 1 ? 100 : 0);
    const kind = this.bytes[head];
    const count = this.view.getUint16(head + 3);
    const isInner = kind === INNER || kind === INNER_WITHOUT;
    const isWithout = kind === LEAF_WITHOUT || kind === INNER_WITHOUT;
    if (!isInner && kind !== LEAF && kind !== LEAF_WITHOUT) throw new Error("the memory is damaged: a page is of no known kind");
    const pointers = head + (isInner ? 12 : 8);
    for (let n = 0; n < count; n++) {
      const at = start + this.view.getUint16(pointers + 2 * n);
      if (isInner) this.walk(this.view.getUint32(at), found, depth + 1);
      if (kind !== INNER) found.push(this.row(at + (isInner ? 4 : 0), isWithout));
    }
    if (isInner) this.walk(this.view.getUint32(head + 8), found, depth + 1);
  }

  row(start, isWithout) {
    const [size, behindSize] = this.varint(start);
    const [rowid, at] = isWithout ? [null, behindSize] : this.varint(behindSize);
    const most = isWithout ? Math.floor(((this.usable - 12) * 64) / 255) - 23 : this.usable - 35;
    return [rowid, values(this.payload(at, size, most))];
  }

  /** A row's bytes: what of them lies in its page, at most so many, then those of the pages that follow. */
  payload(at, size, most) {
    if (size > this.bytes.length) throw new Error("the memory is damaged: a row is longer than it");
    if (size <= most) return this.bytes.subarray(at, at + size);
    const least = Math.floor(((this.usable - 12) * 32) / 255) - 23;
    const here = least + ((size - least) % (this.usable - 4));
    const local = here <= most ? here : least;
    const whole = new Uint8Array(size);
    whole.set(this.bytes.subarray(at, at + local));
    let page = this.view.getUint32(at + local);
    for (let done = local; done < size; ) {
      const start = (page - 1) * this.size;
      if (page < 1 || start + this.size > this.bytes.length) throw new Error("the memory is damaged: a row is cut off");
      const some = Math.min(size - done, this.usable - 4);
      whole.set(this.bytes.subarray(start + 4, start + 4 + some), done);
      done += some;
      page = this.view.getUint32(start);
    }
    return whole;
  }

  varint(at) {
    return varint(this.bytes, at);
  }
}

/** A number of one to nine bytes, and where what follows begins. */
function varint(bytes, at) {
  let value = 0;
  for (let n = 0; n < 8; n++) {
    const byte = bytes[at + n];
    value = value * 128 + (byte & 127);
    if (byte < 128) return [value, at + n + 1];
  }
  return [value * 256 + bytes[at + 8], at + 9];
}

/** The values of a row: null, numbers, text, bytes. */
function values(row) {
  const [size, start] = varint(row, 0);
  const types = [];
  for (let at = start; at < size; ) {
    const [type, next] = varint(row, at);
    types.push(type);
    at = next;
  }
  let at = size;
  return types.map((type) => {
    const [value, length] = valueAt(row, at, type);
    at += length;
    if (at > row.length) throw new Error("the memory is damaged: a row is cut off");
    return value;
  });
}

const WHOLE = [0, 1, 2, 3, 4, 6, 8];

function valueAt(row, at, type) {
  if (type === 0) return [null, 0];
  if (type === 8 || type === 9) return [type - 8, 0];
  if (type >= 12) {
    const length = (type - 12) >> 1;
    const bytes = row.subarray(at, at + length);
    return [type % 2 ? decoded(bytes) : bytes.slice(), length];
  }
  if (type === 7) return [new DataView(row.buffer, row.byteOffset + at).getFloat64(0), 8];
  const length = WHOLE[type];
  let value = row[at] < 128 ? 0 : -1;
  for (let n = 0; n < length; n++) value = value * 256 + row[at + n];
  return [value, length];
}
