/* A session with a cloud over a WebSocket: OPEN, replies piece by piece, how they go on after a break (docs/WIRE.md). */

import { Answering } from "./answering.js";
import { runningHash } from "./hash.js";
import { ProtocolError, decode, encode } from "./wire.js";

const WINDOW = 24; // asks that may be unanswered while the cloud decodes speculatively
const RETRY_S = 60;
const PROTOCOL = "sideplug";
const CLIENT = "sideplug-web/0.2";

/** What a cloud refuses, in its words. */
class CloudError extends Error {
  constructor(message, code = "cloud") {
    super(message);
    this.code = code;
  }
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** One connection: frames go out with their number, and come in order. */
class Link {
  /** A connection to a cloud. key: goes as a sub-protocol, since a browser sets no header. */
  static async to(url, key) {
    const link = new Link();
    const protocols = key ? [PROTOCOL, `key.${key}`] : [PROTOCOL];
    const socket = new WebSocket(url.replace(/\/*$/, "/v1/session"), protocols);
    socket.binaryType = "arraybuffer";
    Object.assign(link, { socket, sent: 0, got: 0, waiting: [], wake: null, ended: null, down: 0, up: 0 });
    socket.onmessage = ({ data }) => link.take(() => decode(new Uint8Array(data), link.got++), data.byteLength);
    socket.onclose = () => link.end(new CloudError("the connection to the cloud was lost"));
    await new Promise((resolve, reject) => {
      socket.onopen = resolve;
      const sentence = `no cloud answers at ${url}, or it refuses this page or its key: its operator allows pages by “sideplug serve --allow-origin ${globalThis.location?.origin ?? "ORIGIN"}”`;
      socket.onerror = () => reject(new CloudError(sentence, "unreachable"));
    });
    return link;
  }

  take(read, bytes) {
    this.down += bytes;
    try {
      this.waiting.push(read());
    } catch (problem) {
      this.end(problem);
      this.socket.close(1002);
    }
    this.wake?.();
  }

  end(problem) {
    this.ended ??= problem;
    this.wake?.();
  }

  send(frame) {
    if (this.ended) throw this.ended;
    const bytes = encode(frame, this.sent++);
    this.up += bytes.length;
    this.socket.send(bytes);
  }

  /** The next frame; all that came with it stands in `waiting`. Throws what an ERROR says, or that the link is lost. */
  async receive() {
    while (!this.waiting.length) {
      if (this.ended) throw this.ended;
      await new Promise((resolve) => (this.wake = resolve));
      this.wake = null;
    }
    const frame = this.waiting.shift();
    if (frame.kind === "ERROR") throw new CloudError(String(frame.message), frame.code);
    return frame;
  }

  close() {
    this.socket.onclose = null;
    this.end(new CloudError("the session is closed", "closed"));
    this.socket.close();
  }
}

export class Session {
  /** plugin: null for the base alone. tell: hears, in a sentence, that it connects again. */
  constructor(url, key, plugin, tell = () => {}) {
    Object.assign(this, { url, key, plugin, tell, turn: 0, link: null, model: null, granted: [], read: 0 });
  }

  async open() {
    this.link = await Link.to(this.url, this.key);
    this.link.send(await this.opening());
    const opened = await this.link.receive();
    if (opened.kind !== "OPENED") throw new ProtocolError(`the cloud must answer OPENED, got ${opened.kind}`);
    if (this.model && opened.model.fingerprint !== this.model.fingerprint)
      throw new CloudError(`the cloud serves another base model now (${opened.model.name})`, "wrong-base");
    [this.model, this.granted] = [opened.model, opened.granted ?? []];
    const { plugin } = this;
    if (plugin?.base && plugin.base !== this.model.fingerprint)
      throw new CloudError(`this plugin was made for the base model ${plugin.baseName}, but the cloud serves ${this.model.name}`, "wrong-base");
  }

  async opening() {
    const { plugin } = this;
    const shut = [{ kind: "shut", bias: 0, threshold: 0, memory: 0 }];
    const parts = plugin?.parts ?? [];
    const gates = parts.length ? parts.map(({ gate: { kind, bias, threshold, memory } }) => ({ kind, bias, threshold, memory })) : shut;
    const weights = parts.filter(({ gate }) => gate.kind === "linear").map(({ gate }) => gate.weight);
    const width = Math.max(0, ...parts.map(({ gate }) => gate.weight.length));
    const gate = new Float32Array(weights.length * width);
    weights.forEach((weight, row) => gate.set(weight, row * width));
    const base = plugin?.base ?? "";
    const rest = { gate: { data: gate, shape: [weights.length, width] }, capabilities: await capabilities(plugin) };
    return { kind: "OPEN", base, tap: plugin?.tap.name ?? "", merge: "add", gates, client: CLIENT, ...rest };
  }

  close() {
    this.link?.close();
  }

  /** Connect again, for a minute at most. Throws what stands in the way. */
  async reconnect(lost) {
    if (lost instanceof CloudError && !["cloud", "unreachable", "busy"].includes(lost.code)) throw lost;
    if (lost instanceof ProtocolError) throw lost;
    this.link.close();
    this.tell("The connection was lost; connecting again …");
    const until = performance.now() + 1000 * RETRY_S;
    for (let wait = 250; ; wait = Math.min(2 * wait, 4000)) {
      await pause(wait);
      try {
        await this.open();
        return this.tell("");
      } catch (problem) {
        if (performance.now() > until || problem instanceof ProtocolError || problem.code === "wrong-base") throw problem;
      }
    }
  }

  /** The tokens of texts that follow messages, by the base: [[ids] …]. */
  async tokens(texts) {
    const found = [];
    for (const { messages, reply } of texts) {
      this.link.send({ kind: "READ", number: ++this.read, messages, reply, score: false, tokens: true });
      const frame = await this.link.receive();
      if (frame.kind !== "EXAMPLE" || frame.number !== this.read) throw new ProtocolError("the cloud must answer a READ by its EXAMPLE");
      found.push([...frame.ids.data]);
    }
    return found;
  }

  /** The pieces {ids, text, by} of a reply, as they come, to be taken to the end. usage: what it took is written into it. */
  async *generate(messages, { maxTokens = 256, sampling = {}, gate = "", signal, usage = {} } = {}) {
    const reply = new Reply(this, messages, { maxTokens, sampling, gate }, usage);
    const cancel = () => reply.cancel();
    signal?.addEventListener("abort", cancel, { once: true });
    try {
      yield* reply.pieces();
    } finally {
      signal?.removeEventListener("abort", cancel);
    }
  }
}

/** What OPEN asks for of a plugin. */
async function capabilities(plugin) {
  const wanted = {};
  if (!plugin) return wanted;
  const { layers, rank } = plugin.tap;
  if (plugin.parts.some(({ kind }) => kind === "attention")) wanted.context = { settings: { layers, rank }, required: true };
  if (plugin.parts.some(({ memory }) => memory)) {
    wanted.mixture = { settings: { pairs: 64 }, required: true };
    wanted.quote = { settings: {}, required: false };
    wanted.tokens = { settings: {}, required: false };
  }
  const bytes = (array) => new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  const biased = plugin.parts.flatMap(({ bias }, part) => (bias ? [{ part, ids: bytes(bias.ids), values: bytes(bias.values) }] : []));
  if (biased.length) wanted.bias = { settings: { of: biased }, required: true };
  const trunks = [];
  for (const [part, each] of plugin.parts.entries()) {
    const params = each.about.trunk?.digest && (await each.digest());
    if (params && params.hex === each.about.trunk.digest) trunks.push({ part, params: params.bytes });
  }
  if (trunks.length) wanted.trunk = { settings: { of: trunks }, required: false };
  return wanted;
}

class Reply {
  constructor(session, messages, { maxTokens, sampling, gate }, usage) {
    Object.assign(this, { session, messages, maxTokens, sampling, usage, running: false, gone: false });
    this.turn = ++session.turn;
    const { plugin, model } = session;
    this.answering = plugin ? new Answering(plugin, messages, model.fingerprint, model.width) : null;
    if (gate && this.answering) {
      this.answering.gates = plugin.parts.map(() => gate);
      [this.answering.quote, this.answering.draft] = [[], []];
    }
    Object.assign(usage, { source: this.answering?.source ?? "", entry: this.answering?.entry ?? 0, resumed: 0, down: 0, up: 0, plugin: 0, reply: 0 });
    Object.assign(this, { next: null, prompt: 0, hash: "", ids: [], complete: false, run: 0, open: new Set() });
  }

  prompted() {
    const { answering, ids } = this;
    const isQuoted = answering?.quote.length && this.session.granted.includes("quote");
    return {
      kind: "PROMPT",
      turn: this.turn,
      max_tokens: this.maxTokens,
      sampling: { temperature: 0, seed: 0, ...this.sampling },
      messages: this.messages,
      window: WINDOW,
      gates: answering?.gates ?? [],
      context: answering?.rows,
      ...(isQuoted && { extensions: { quote: { ids: answering.quote } } }),
      ...(ids.length && { done: ids, hash: runningHash(ids, this.hash) }),
      ...(!ids.length && !isQuoted && { draft: answering?.draft ?? [] }),
    };
  }

  async *pieces() {
    this.running = true;
    const { session, usage } = this;
    while (this.running) {
      const { link } = session;
      const [down, up] = [link.down, link.up];
      try {
        [this.run, this.open] = [0, new Set()];
        link.send(this.prompted());
        yield* this.received(link);
      } catch (problem) {
        if (this.gone) return;
        await session.reconnect(problem).catch((final) => {
          this.running = false;
          throw final;
        });
        usage.resumed++;
        this.answering?.resume(this.next ?? 0, this.prompt);
      } finally {
        usage.down += link.down - down;
        usage.up += link.up - up;
      }
    }
  }

  /** What the cloud says of this turn, answered where it asks, to its DONE. Asks that came together are answered so. */
  async *received(link) {
    let asks = [];
    while (this.running) {
      const frame = await link.receive();
      if (frame.turn !== this.turn) throw new ProtocolError(`the cloud must speak of turn ${this.turn}, got ${frame.kind} of another`);
      if (frame.kind === "ASK") asks.push(this.checked(frame));
      else if (frame.kind === "CONTEXT") {
        asks = this.answer(link, asks); // rows come in their order
        if (!this.answering) throw new ProtocolError("the cloud must not send context rows that nobody asked for");
        this.answering.context(frame);
      } else if (frame.kind === "TOKENS") {
        asks = this.answer(link, asks);
        if (this.take(frame)) yield { ids: frame.ids, text: frame.text, by: frame.by };
      } else if (frame.kind === "BEGUN") this.begin(frame);
      else if (frame.kind === "DONE") this.finish(frame);
      else throw new ProtocolError(`the cloud must answer DONE, got ${frame.kind}`);
      if (!link.waiting.length) asks = this.answer(link, asks);
    }
  }

  begin({ prompt, hash }) {
    if (this.next === null) [this.next, this.prompt, this.hash] = [prompt, prompt, hash];
  }

  /** An ask, held against the reply: only what was asked for is answered. */
  checked(ask) {
    if (!this.answering || this.next === null) throw new ProtocolError("the cloud asked, but this reply has no plugin");
    if (ask.run > this.run) [this.run, this.open] = [ask.run, new Set()];
    const last = this.prompt + this.maxTokens;
    const isRight = ask.at.length && ask.at.every((at) => at >= this.next && at < last && !this.open.has(at));
    if (ask.run === this.run && !isRight) throw new ProtocolError("the cloud must ask once about each position of this reply");
    if (ask.run === this.run) for (const at of ask.at) this.open.add(at);
    if (this.open.size > 2 * (WINDOW + 1)) throw new ProtocolError("the cloud must wait for answers before it asks on");
    ask.gates ??= [];
    return ask;
  }

  answer(link, asks) {
    if (!asks.length || !this.running) return [];
    const { run } = asks.at(-1);
    for (const ask of asks) if (ask.run !== run) this.answering.skip(ask);
    const now = asks.filter((ask) => ask.run === run);
    link.send({ kind: "ANSWER", turn: this.turn, run, at: now.flatMap(({ at }) => at), ...this.answering.answer(now) });
    return [];
  }

  /** Keep account of TOKENS; whether they are new. */
  take({ at, ids, by, text }) {
    if (this.next === null || at !== this.next) throw new ProtocolError(`the cloud must go on with the ids from position ${this.next}, got ${at}`);
    if (this.complete) return false; // the last text came, but the DONE behind it was lost: it comes twice
    this.complete = !ids.length;
    this.next += ids.length;
    this.ids.push(...ids);
    for (const position of this.open) if (position < this.next) this.open.delete(position);
    this.answering?.settled(at, ids);
    if (["plugin", "draft", "trunk"].includes(by)) this.usage.plugin += ids.length;
    return ids.length > 0 || text !== "";
  }

  finish({ why, reply, counts }) {
    this.running = false;
    Object.assign(this.usage, { why, reply, counts });
    if (this.answering) this.usage.seconds = this.answering.seconds;
  }

  /** Stop; the cloud's DONE is waited for, so that the session can go on. */
  cancel() {
    if (!this.running || this.gone) return;
    this.gone = true;
    try {
      this.session.link.send({ kind: "CANCEL", turn: this.turn });
    } catch {
      this.running = false; // there is nobody to tell
    }
  }
}

