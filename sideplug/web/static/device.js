/* The device: a worker that holds the open plugin, speaks with the cloud, and answers where it asks. The page sends
   {id, call, with}; it gets {id, value} or {id, error}, and while a reply comes {id, piece}. */

import { Encoder } from "./encoder.js";
import { Memory } from "./memory.js";
import { Plugin, parse } from "./plugin.js";
import { WrongPassphrase, isSealed, unseal } from "./sealed.js";
import { Session } from "./session.js";
import { Sealer, drop, keep, kept, names } from "./storage.js";

const LARGEST = 512 << 20; // of a plugin's file

let open = null; // {name, plugin, sealer, more: {cloud, key, told, forgotten}}
let session = null;
let sessionOf = "";
let stopping = null;
let parts = null; // the verifier and the encoder, once they were fetched

async function bytesOf(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${path} is not here (${response.status})`);
  return new Uint8Array(await response.arrayBuffer());
}

/** The verifier that ships, and the encoder where the folder has it. */
async function reading() {
  if (parts) return parts;
  const verifier = parse(await bytesOf("verifier.safetensors")).tensors;
  let encoder = null;
  try {
    encoder = new Encoder(parse(await bytesOf("encoder.safetensors")).tensors);
  } catch {
    encoder = null; // words alone, as the page says
  }
  return (parts = { verifier, encoder });
}

const memoryOf = (plugin) => plugin.parts.find((part) => part.memory)?.memory;

const CALLS = {
  names,

  /** Bring a plugin's file: it is kept as it is. */
  async bring({ name, file }) {
    if (file.byteLength > LARGEST) throw new Error("a plugin's file has at most 512 MB");
    const bytes = new Uint8Array(file);
    if (!(await isSealed(bytes))) throw new Error("this file is not sealed, so it is not kept here: export it with --seal");
    const before = await kept(name);
    await keep({ name, file: bytes, more: before?.more ?? null });
    return name;
  },

  async drop({ name }) {
    if (open?.name === name) close();
    await drop(name);
  },

  /** Open a plugin with its passphrase. Returns what the page shows of it. */
  async unlock({ name, passphrase }) {
    close();
    const found = await kept(name);
    if (!found) throw new Error(`there is no plugin ${name} here any more`);
    const bytes = await unseal(found.file, passphrase);
    const { verifier, encoder } = await reading();
    const plugin = new Plugin(bytes, (database) => new Memory(database, verifier, encoder));
    const sealer = await Sealer.of(passphrase, found.more);
    const more = found.more ? await sealer.unseal(found.more) : {};
    open = { name, plugin, sealer, more: { cloud: "", key: "", told: [], forgotten: [], ...more } };
    const memory = memoryOf(plugin);
    if (memory) for (const each of open.more.forgotten) memory.forget(each);
    if (memory) for (const each of open.more.told) memory.tell(each);
    return shown();
  },

  async lock() {
    close();
  },

  async settings({ cloud, key }) {
    Object.assign(open.more, { cloud: checkedCloud(cloud), key: key.trim() });
    await save();
    session?.close();
    session = null;
  },

  entries: async () => memoryOf(open.plugin)?.listed() ?? [],

  /** What would be said to a question, and how certainly; no cloud is asked. */
  async search({ question }) {
    const memory = memoryOf(open.plugin);
    return (memory?.judged(question) ?? []).slice(0, 8).map((each) => ({ text: each.text, number: each.entry.number, certainty: each.certainty, said: memory.says(question, each) }));
  },

  async tell({ question, reply }) {
    const memory = memoryOf(open.plugin);
    if (!memory) throw new Error("this plugin has no memory: tell it something on the laptop first (sideplug remember)");
    const entry = { question: question.trim(), reply: reply.trim(), told: new Date().toISOString() };
    if (!entry.reply) throw new Error("there is nothing to remember: write a reply, or a note");
    memory.tell(entry);
    open.more.told.push(entry);
    await save();
    return memory.listed();
  },

  async forget({ number }) {
    const memory = memoryOf(open.plugin);
    const entry = memory.forget({ number });
    if (entry.isOwn) open.more.told = open.more.told.filter(({ told, reply }) => told !== entry.told || reply !== entry.reply);
    else open.more.forgotten.push({ number });
    await save();
    return memory.listed();
  },

  /** Talk: pieces come as they are made. Returns what the reply took. */
  async say({ messages, gate, maxTokens, sampling }, piece) {
    const usage = {};
    const began = performance.now();
    stopping = new AbortController();
    const now = await connected();
    let first = 0;
    for await (const { text, by } of now.generate(messages, { maxTokens, sampling, gate, signal: stopping.signal, usage })) {
      first ||= performance.now() - began;
      piece({ text, by });
    }
    return { ...usage, first, total: performance.now() - began };
  },

  async stop() {
    stopping?.abort();
  },
};

/** A session with the cloud, open for the plugin as it is; what the base has not read yet of its memory is read. */
async function connected() {
  const { plugin, more } = open;
  if (!more.cloud) throw new Error("give your cloud's address first (Settings)");
  if (!session || session.link.ended || sessionOf !== open.name) {
    session = null; // until another one is open
    const next = new Session(more.cloud, more.key, plugin, (notice) => postMessage({ notice }));
    await next.open();
    [session, sessionOf] = [next, open.name];
  }
  await readMemory(session, plugin);
  return session;
}

async function readMemory(now, plugin) {
  const memory = memoryOf(plugin);
  if (!memory || !now.granted.includes("tokens")) return;
  const base = now.model.fingerprint;
  const unread = memory.unread(base);
  for (const passage of unread) {
    const messages = [{ role: "user", content: passage.asked || "?" }];
    const texts = memory.textsOf(passage).map((reply) => ({ messages, reply }));
    memory.take(passage, base, await now.tokens(texts));
  }
}

function checkedCloud(address) {
  const plain = address.trim();
  if (!/^wss?:\/\/[^\s/]+/i.test(plain)) throw new Error("a cloud's address begins with wss:// (or ws:// on this machine)");
  return plain;
}

async function save() {
  const found = await kept(open.name);
  await keep({ ...found, more: await open.sealer.seal(open.more) });
}

function close() {
  session?.close();
  [session, open] = [null, null];
}

/** What the page shows of the open plugin. */
function shown() {
  const { name, plugin, more } = open;
  const memory = memoryOf(plugin);
  return {
    name,
    cloud: more.cloud,
    key: more.key,
    base: plugin.baseName || "any base",
    kinds: plugin.parts.map(({ kind }) => kind),
    entries: memory ? memory.listed().length : null,
    reads: Boolean(parts.encoder),
  };
}

onmessage = async ({ data: { id, call, with: given } }) => {
  try {
    const value = await CALLS[call](given ?? {}, (piece) => postMessage({ id, piece }));
    postMessage({ id, value });
  } catch (problem) {
    postMessage({ id, error: problem.message, wrongPassphrase: problem instanceof WrongPassphrase });
  }
};
