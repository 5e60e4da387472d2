/* The gateway's page: a chat whose words say who wrote them, two replies side by side, what a plugin remembers,
   training, plugins, and what left this device. It calls its own gateway only, and makes elements, never markup, of what
   others wrote. */
"use strict";

// ── small things ─────────────────────────────────────────────────────────────────────────────────────────────────

const WRITERS = {
  cloud: "the cloud",
  plugin: "your plugin",
  draft: "draft, accepted",
  trunk: "your plugin, in the cloud",
  fallback: "the base, device late",
};
const WORDS_SHOWN = 12; // words that gain, and half as many that lose
const WHY = {
  cloud: "The cloud's own choice; your plugin was not asked.",
  plugin: "Your plugin was asked, and this came of it.",
  draft: "Your plugin's choice, and just what your device had drafted.",
  trunk: "Your plugin's choice; the cloud has this part of it too, so your device was not asked.",
  fallback: "The base's choice: your device's answer came too late.",
};

/** The element of this id. */
const $ = (id) => document.getElementById(id);

/** A number with its thousands apart. */
const number = (n) => Number(n).toLocaleString("en");

/** A share as a percentage, with one digit more where it is small. */
function percent(share) {
  if (share >= 0.0995) return `${Math.round(100 * share)} %`;
  if (share >= 0.0005) return `${(100 * share).toFixed(1)} %`;
  return share > 0 ? "<0.1 %" : "0 %";
}

/** "1 token", "2 tokens". */
const count = (n, one, many) => `${number(n)} ${n === 1 ? one : many}`;

/** An element; "on…" are listeners, other properties attributes, children text or nodes. Text never becomes markup. */
function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

/** An element of SVG. */
function makeSvg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** A button. `kind` is its class. */
const button = (label, kind, onclick) => make("button", { class: kind, onclick }, label);

/** Tell a sentence to who hears the page read out. */
function announce(sentence) {
  $("live").textContent = sentence;
}

/** Show a sentence in a place that is hidden otherwise; "" hides it. */
function showSentence(id, sentence) {
  $(id).textContent = sentence;
  $(id).hidden = !sentence;
  if (sentence) announce(sentence);
}

// ── the gateway ──────────────────────────────────────────────────────────────────────────────────────────────────

let state = { model: null, error: null, plugins: [], training: null };
let shownState = ""; // what of it the selections and the plugins show, as JSON
let keyQuestion = null; // the promise of a key, while it is asked for

/** This tab's id: by it the gateway tells apart what this page sent. Another origin, or another tab, has another. */
function pageId() {
  let id = sessionStorage.getItem("page");
  if (!id) {
    const bytes = crypto.getRandomValues(new Uint8Array(16));
    id = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
    sessionStorage.setItem("page", id);
  }
  return id;
}

/** The key, asked for once; "" where none was given. `refused`: the one that was refused. */
function askKey(refused) {
  const stored = sessionStorage.getItem("key");
  if (stored !== refused) return Promise.resolve(stored);
  keyQuestion ??= new Promise((resolve) => {
    const dialog = $("key-dialog");
    const closed = () => {
      keyQuestion = null;
      const key = dialog.returnValue === "ok" ? $("key").value.trim() : "";
      if (key) sessionStorage.setItem("key", key);
      resolve(key);
    };
    dialog.returnValue = "";
    dialog.addEventListener("close", closed, { once: true });
    dialog.showModal();
  });
  return keyQuestion;
}

/** A successful response; else an Error whose message is one sentence. */
async function api(path, options = {}) {
  const { method = "GET", json, body, headers = {}, signal } = options;
  const key = sessionStorage.getItem("key");
  const request = {
    method,
    headers: {
      ...headers,
      "X-Sideplug-Page": pageId(),
      ...(json && { "Content-Type": "application/json" }),
      ...(key && { Authorization: `Bearer ${key}` }),
    },
    body: json ? JSON.stringify(json) : body,
    signal,
  };
  let response;
  try {
    response = await fetch(path, request);
  } catch (problem) {
    if (problem.name === "AbortError") throw problem;
    throw new Error("The gateway does not answer: is “sideplug gateway” still running?");
  }
  if (response.status === 401 && (await askKey(key))) return api(path, options);
  if (response.ok) return response;
  const answer = await response.json().catch(() => null);
  throw new Error(answer?.error?.message ?? `The gateway answered ${response.status}.`);
}

/** The objects of a stream of server-sent events. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (held + value).split("\n\n");
    held = parts.pop();
    for (const part of parts) if (part.startsWith("data: {")) yield JSON.parse(part.slice(6));
  }
}

/** Stream a reply into `box`. Returns {text, by, usage, why, problem, stopped}; what went wrong is a sentence in it. */
async function reply(plugin, prompt, box, signal, seed) {
  const chat = Array.isArray(prompt);
  const temperature = Number($("temperature").value);
  const json = {
    model: modelName(plugin),
    ...(chat ? { messages: prompt } : { prompt }),
    stream: true,
    temperature,
    max_tokens: Number($("max").value),
    ...(temperature && seed !== undefined && { seed }),
    sideplug: { detail: true, ...gateRate(plugin) },
  };
  const got = { text: "", by: {}, usage: null, why: "", problem: "", stopped: false };
  try {
    const response = await api(chat ? "v1/chat/completions" : "v1/completions", { method: "POST", json, signal });
    for await (const chunk of events(response)) addChunk(got, chunk, box);
    if (!got.usage) throw new Error("The reply broke off.");
  } catch (problem) {
    const broken = problem instanceof TypeError;
    got.stopped = signal.aborted;
    if (!got.stopped) got.problem = broken ? "The connection to the gateway broke off." : problem.message;
  }
  return got;
}

/** Add one chunk of a stream to what a reply has got so far, and to its box. Throws what an event of an error says. */
function addChunk(got, chunk, box) {
  if (chunk.error) throw new Error(chunk.error.message);
  got.usage = chunk.usage ?? got.usage;
  const choice = chunk.choices[0];
  if (!choice) return;
  const text = choice.delta?.content ?? choice.text ?? "";
  const detail = chunk.sideplug;
  got.text += text;
  got.why = choice.finish_reason ?? got.why;
  if (detail) got.by[detail.by] = (got.by[detail.by] ?? 0) + detail.ids.length;
  if (text) stayAtEnd(() => addPiece(box, text, detail));
}

/** A model's name for a person: a base that is a folder goes by the folder's name. */
const shortName = (name) => name.split("/").pop();

/** The name of the base with a plugin, as the API wants it; "" is the base alone. */
const modelName = (plugin) => [state.model?.name, plugin].filter(Boolean).join("+");

/** The plugin of this name, if it is there. */
const pluginNamed = (name) => state.plugins.find((plugin) => plugin.name === name);

/** Whether a plugin can be used with the cloud's model. */
const isUsable = (plugin) => Boolean(plugin) && !plugin.error && plugin.fits !== false;

/** The gate's rate for a request, where the dial was turned. */
function gateRate(plugin) {
  const isTurned = pluginNamed(plugin)?.dial && !$("own-gate").checked;
  return isTurned ? { gate_rate: Number($("rate").value) } : {};
}

/** Ask the gateway how things stand, and show it. */
async function refresh() {
  try {
    state = await (await api("sideplug/state")).json();
  } catch (problem) {
    state = { ...state, error: problem.message };
  }
  const trouble = state.error ?? "";
  if ($("trouble").textContent !== trouble) showSentence("trouble", trouble);
  $("banner").hidden = !trouble;
  const address = make("span", {}, state.model ? ` at ${state.cloud}` : "");
  $("where").replaceChildren(shortName(state.model?.name ?? ""), address);
  const now = JSON.stringify([state.model, state.plugins]);
  if (now !== shownState) {
    // Otherwise what is open or being filled in stays, while a training is followed.
    shownState = now;
    showModels();
    showMemoryPlugins();
    showShelf();
  }
  showTraining();
}

// ── words, and who wrote them ────────────────────────────────────────────────────────────────────────────────────

const chances = new WeakMap(); // a token's element → of each of its tokens: what was chosen, then the best

/** Append a piece of a reply: an element for each token where that can be told. One of them is a tab stop. */
function addPiece(box, text, detail) {
  const tops = detail?.tops ?? [];
  const words = tops.map((top) => top[0]?.[0] ?? "");
  const isSplit = words.length > 1 && words.join("") === text;
  const parts = isSplit ? tops.map((top, i) => [words[i], [top]]) : [[text, tops]];
  for (const [word, best] of parts) {
    if (!word) continue;
    const tabindex = box.querySelector(".token") ? -1 : 0;
    const token = make("span", { class: "token", "data-by": detail?.by ?? "cloud", tabindex }, word);
    chances.set(token, best);
    box.append(token);
  }
}

/** A token's text with what would not be seen made visible. */
const visible = (text) => (text === "" ? "(end)" : text.replace(/^ /, "·").replace(/\n/g, "↵"));

/** One alternative of a token: its text, and a bar as long as its probability. */
function chanceRow([text, logprob], isChosen) {
  const share = Math.exp(logprob);
  const row = make(
    "div",
    { class: isChosen ? "chance chosen" : "chance" },
    make("span", {}, visible(text)),
    percent(share),
  );
  row.style.setProperty("--share", `${(100 * share).toFixed(1)}%`);
  return row;
}

/** The rows of all alternatives of one token: the best, and what was chosen. */
function chanceRows([chosen, ...best], title) {
  const isChosen = ([text, logprob]) => text === chosen[0] && logprob === chosen[1];
  const all = best.some(isChosen) ? best : [...best, chosen];
  return [...(title ? [make("p", {}, title)] : []), ...all.map((one) => chanceRow(one, isChosen(one)))];
}

/** Show beside a token who wrote it and what else it might have been. */
function showChances(token) {
  const lists = (chances.get(token) ?? []).filter((top) => top.length);
  const rows = lists.flatMap((list, i) => chanceRows(list, lists.length > 1 && `token ${i + 1} of ${lists.length}`));
  const box = $("chances");
  box.replaceChildren(
    make("p", { class: "soft" }, WHY[token.dataset.by]),
    ...(rows.length ? rows : [make("p", {}, "Its alternatives were not told.")]),
  );
  box.hidden = false;
  token.setAttribute("aria-describedby", "chances");
  const at = token.getClientRects()[0] ?? token.getBoundingClientRect();
  const above = at.top - box.offsetHeight - 8;
  const below = Math.min(at.bottom + 8, innerHeight - box.offsetHeight - 8);
  box.style.left = `${Math.max(8, Math.min(at.left, innerWidth - box.offsetWidth - 8))}px`;
  box.style.top = `${above > 8 ? above : below}px`;
}

/** Hide what showChances showed. */
function hideChances() {
  $("chances").hidden = true;
}

/** Go from one token to the next with the arrow keys. */
function stepThroughTokens(event) {
  const step = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" }[event.key];
  const next = step && event.target.matches(".token") && event.target[step];
  if (!next) return;
  event.preventDefault();
  event.target.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

/** Do something that makes the conversation longer; stay at its end if that is where the reader was. */
function stayAtEnd(work) {
  const log = $("log");
  const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
  work();
  if (isAtEnd) log.scrollTop = log.scrollHeight;
}

// ── meters ───────────────────────────────────────────────────────────────────────────────────────────────────────

/** Tokens a second. */
const speed = (usage) => (usage.sideplug.total_s ? usage.completion_tokens / usage.sideplug.total_s : 0);

/** The share of tokens that the plugin was asked about. */
function pluginShare(usage) {
  return (usage.sideplug.plugin_tokens + usage.sideplug.fallback) / Math.max(1, usage.completion_tokens);
}

/** What a reply took, in one line. */
function summary(got, plugin) {
  if (!got.usage) return got.stopped ? "stopped" : "";
  const parts = [
    got.why === "length" && "reached max tokens",
    count(got.usage.completion_tokens, "token", "tokens"),
    `${speed(got.usage).toFixed(0)} a second`,
    plugin && `${percent(pluginShare(got.usage))} by your plugin`,
  ];
  return parts.filter(Boolean).join(" · ");
}

/** The legend's shares and the meters, of the reply that ended last. */
function showMeters(got) {
  const total = Object.values(got?.by ?? {}).reduce((a, b) => a + b, 0);
  const shares = Object.entries(WRITERS).map(([by, name]) => {
    const share = total ? percent((got.by[by] ?? 0) / total) : "";
    return make("li", {}, make("span", { "data-by": by }, name), make("span", {}, share));
  });
  $("legend")
    .querySelector("ul")
    .replaceChildren(...shares);
  const rows = got?.usage ? meterRows(got.usage, got.gate) : [["", "nothing yet"]];
  $("meters").replaceChildren(...rows.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
}

/** [name, value] of each meter. `gate`: as gateNow() said when the reply began. */
function meterRows(usage, gate) {
  const ours = usage.sideplug;
  const trips = ours.round_trips;
  return [
    ["Tokens", `${number(usage.completion_tokens)}, at ${speed(usage).toFixed(1)} a second`],
    ["First after", `${(1000 * ours.first_token_s).toFixed(0)} ms`],
    ["Plugin asked", gate === "" ? "no plugin" : `${percent(pluginShare(usage))} (gate: ${gate})`],
    ["Round trips", trips ? `${number(trips)} (${(usage.completion_tokens / trips).toFixed(1)} tokens each)` : "0"],
    ["Down", `${number(ours.bytes_down)} bytes`],
    ["Up", `${number(ours.bytes_up)} bytes`],
  ];
}

/** How the gate stands for a plugin, in a word; "" without a plugin. */
const gateNow = (plugin) => (plugin ? (gateRate(plugin).gate_rate?.toFixed(2) ?? "own") : "");

// ── chat ─────────────────────────────────────────────────────────────────────────────────────────────────────────

let busy = null; // AbortController of what is streaming
let turns = []; // {user, reply} of this conversation
let chosen = null; // the plugin's name, "" for the base, null before anybody knows

/** Fill the selection of models; what can't be used any more is not chosen any more. */
function showModels() {
  const base = shortName(state.model?.name ?? "the base");
  if (chosen === null && (state.model || state.plugins.length)) chosen = state.plugins.find(isUsable)?.name ?? "";
  if (chosen && !isUsable(pluginNamed(chosen))) chosen = "";
  const options = state.plugins.map((plugin) => {
    const label = `${base} + ${plugin.name}${isUsable(plugin) ? "" : " (can't be used)"}`;
    return make("option", { value: plugin.name, disabled: !isUsable(plugin) }, label);
  });
  $("model").replaceChildren(make("option", { value: "" }, `${base}, no plugin`), ...options);
  $("model").value = chosen ?? "";
  $("mode").options[0].disabled = state.model?.chat === false;
  if (state.model?.chat === false) $("mode").value = "raw";
  showDial();
  showMode();
  if (!busy) showSides();
}

/** Show the gate's dial where the chosen plugin has one. */
function showDial() {
  const isOwn = $("own-gate").checked;
  $("dial").hidden = !pluginNamed(chosen)?.dial;
  $("rate").classList.toggle("idle", isOwn);
  $("rate-now").textContent = isOwn ? "" : Number($("rate").value).toFixed(2);
}

/** Show what the chat will do with what is typed. */
function showMode() {
  const raw = $("mode").value === "raw";
  $("say").placeholder = raw ? "Text to go on from" : "Ask something";
  $("send").textContent = raw ? "Go on" : "Send";
  if ($("log").querySelector(".message")) return;
  const title = raw ? "Write a beginning" : "Ask something";
  const hint = raw ? "It is continued as it stands, without a chat around it. " : "";
  const marks = chosen
    ? `What ${chosen} writes is marked; the rest is the cloud's. Point at a word, or go to it with Tab and the arrow ` +
      "keys, to see what else it might have been."
    : "Tell a plugin something (Memory), or train one, and what it writes will be marked here.";
  $("log").replaceChildren(make("div", { class: "empty" }, make("h2", {}, title), make("p", {}, hint + marks)));
}

/** Show that something streams (its AbortController), or that nothing does (null). */
function setBusy(controller) {
  busy = controller;
  for (const id of ["send", "run-both"]) $(id).hidden = Boolean(busy);
  for (const id of ["stop", "stop-both"]) $(id).hidden = !busy;
}

/** The conversation so far, as the API's messages. */
function history() {
  return turns.flatMap((turn) => [
    { role: "user", content: turn.user },
    { role: "assistant", content: turn.reply },
  ]);
}

/** An article of the conversation. */
function message(title, kind, ...children) {
  return make("article", { class: kind }, make("h3", {}, title), ...children);
}

/** Send a text, stream the reply below it, and say under it what it took and what can be done with it. */
async function send(text) {
  if (!text.trim() || busy) return;
  const raw = $("mode").value === "raw";
  const [plugin, gate] = [chosen, gateNow(chosen)];
  const name = shortName(modelName(plugin)) || "reply";
  const box = make("div", { class: "text" });
  const foot = make("div", { class: "foot" });
  const articles = [message(raw ? `${name}, going on from your text` : name, "message", box, foot)];
  if (raw) box.append(make("span", { class: "soft" }, text));
  else articles.unshift(message("You", "message you", make("div", { class: "text" }, text)));
  $("log").querySelector(".empty")?.remove();
  $("log").append(...articles);
  $("log").scrollTop = $("log").scrollHeight;

  setBusy(new AbortController());
  const prompt = raw ? text : [...history(), { role: "user", content: text }];
  const got = await reply(plugin, prompt, box, busy.signal);
  setBusy(null);
  got.gate = gate;
  const turn = { user: text, reply: got.text, raw, plugin };
  if (got.text && !raw) turns.push(turn);
  if (got.problem) await refresh();
  const again = () => {
    turns = turns.filter((one) => one !== turn);
    for (const article of articles) article.remove();
    send(text);
  };
  stayAtEnd(() => foot.append(...footOf(got, plugin, turn, box, foot, again)));
  if (got.usage) showMeters(got);
  announce(got.problem || (got.stopped ? "Stopped." : `The reply is complete: ${summary(got, plugin)}.`));
}

/** What stands under a reply: what it took, and buttons to accept it, to correct it, to try again. */
function footOf(got, plugin, turn, box, foot, again) {
  const accept = (event) => {
    addExample(turn, turn.reply);
    event.target.replaceWith(make("span", {}, "accepted: see Train"));
  };
  const parts = [make("span", {}, summary(got, plugin)), ...sourceOf(got, plugin)];
  if (got.text) {
    parts.push(button("Accept", "quiet", accept));
    parts.push(button("Edit", "quiet", () => correct(turn, box, foot)));
  }
  if (got.problem) {
    parts.push(make("span", { class: "bad" }, state.error ? "No reply." : got.problem));
    parts.push(button("Try again", "quiet", again));
  }
  return parts;
}

/** Where a reply that came from memory is from, and the way to what was told; nothing for another reply. */
function sourceOf(got, plugin) {
  const { source, entry } = got.usage?.sideplug ?? {};
  if (!source) return [];
  return [
    make("span", {}, `from memory: ${source}`),
    button("Edit or forget it", "quiet", () => openEntry(plugin, entry)),
  ];
}

/** A selection of the plugins that can be told something; `first` is offered, if it is one of them. */
function tellable(first) {
  const names = state.plugins.filter((plugin) => isUsable(plugin) && !plugin.sealed).map(({ name }) => name);
  const preferred = [first, chosen].find((name) => names.includes(name)) ?? NEW_PLUGIN;
  if (!names.includes(NEW_PLUGIN)) names.push(NEW_PLUGIN);
  const select = make("select", { "aria-label": "Plugin that remembers it" });
  select.append(...names.map((name) => make("option", { value: name, selected: name === preferred }, name)));
  return select;
}

/** Open a reply for correction; what is kept is the conversation's from then on, and is remembered, or to be learnt. */
function correct(turn, box, foot) {
  const rows = Math.min(14, 2 + Math.ceil(turn.reply.length / 70));
  const area = make("textarea", { rows, "aria-label": "The reply as it should be" });
  area.value = turn.reply;
  const close = () => {
    edit.remove();
    box.hidden = foot.hidden = false;
  };
  const keep = (...said) => {
    turn.reply = area.value;
    box.replaceChildren(...(turn.raw ? [make("span", { class: "soft" }, turn.user)] : []), turn.reply);
    foot.replaceChildren(...said, button("Edit", "quiet", () => correct(turn, box, foot)));
    close();
  };
  const learn = () => {
    addExample(turn, area.value);
    keep(make("span", {}, "corrected by you: see Train"));
  };
  const into = tellable(turn.plugin);
  const trouble = make("p", { class: "bad" });
  const remember = async ({ target }) => {
    target.disabled = true;
    try {
      const name = into.value;
      const answer = await tell(name, { entries: [{ question: turn.user, reply: area.value }] });
      const number = answer.numbers[0];
      const see = number ? [button("See it", "quiet", () => openEntry(name, number))] : [];
      keep(make("span", {}, `known at once: ${toldSentence(name, answer)}`), ...see);
      announce(toldSentence(name, answer));
    } catch (problem) {
      trouble.textContent = problem.message;
      announce(problem.message);
    }
    target.disabled = false;
  };
  const asMemory = [button("Remember", "primary", remember), make("span", { class: "hint" }, "in"), into];
  const others = [button("Add to training", "", learn), button("Cancel", "quiet", close)];
  const row = make("div", { class: "row" }, ...(turn.raw ? [] : asMemory), ...others); // a raw text asks nothing
  const edit = make("div", { class: "edit" }, area, row, trouble);
  box.hidden = foot.hidden = true;
  foot.after(edit);
  area.focus();
}

/** Begin a new conversation. */
function startAfresh() {
  busy?.abort();
  turns = [];
  $("log").replaceChildren();
  showMode();
  $("say").focus();
}

/** Send what is typed. */
function sendTyped() {
  const text = $("say").value;
  if (busy || !text.trim()) return;
  $("say").value = "";
  send(text);
}

// ── side by side ─────────────────────────────────────────────────────────────────────────────────────────────────

/** The plugin that is held against the base. */
const comparedPlugin = () => chosen || state.plugins.find(isUsable)?.name || "";

/** Two empty columns, unless replies stand in them. */
function showSides() {
  if ($("sides").querySelector(".token")) return;
  const plugin = comparedPlugin();
  const column = (label, title) => {
    const parts = [make("h3", {}, title), make("div", { class: "text" }), make("div", { class: "foot" })];
    return make("section", { "aria-label": label }, ...parts);
  };
  $("sides").replaceChildren(
    column("Without a plugin", shortName(modelName(""))),
    column("With your plugin", plugin ? shortName(modelName(plugin)) : "There is no plugin yet: train one"),
  );
}

/** Stream the replies to one prompt, of the base and of a plugin, at once. */
async function runBoth() {
  const text = $("both").value;
  if (!text.trim() || busy) return;
  $("sides").replaceChildren();
  showSides();
  const plugin = comparedPlugin();
  const gate = gateNow(plugin);
  const seed = Math.floor(Math.random() * 2 ** 31);
  const prompt = $("mode").value === "raw" ? text : [{ role: "user", content: text }];
  setBusy(new AbortController());
  const { signal } = busy;
  const ask = async (name, i) => {
    const [, box, foot] = $("sides").children[i].children;
    const got = await reply(name, prompt, box, signal, seed);
    foot.append(make("span", { class: got.problem ? "bad" : "" }, got.problem || summary(got, name)));
    foot.append(...sourceOf(got, name));
    return got;
  };
  const both = await Promise.all((plugin ? ["", plugin] : [""]).map(ask));
  setBusy(null);
  const last = both.at(-1);
  const problem = both.find((got) => got.problem)?.problem;
  if (last.usage) showMeters({ ...last, gate });
  if (problem) await refresh();
  announce(problem ?? "Both replies are complete.");
}

// ── memory ───────────────────────────────────────────────────────────────────────────────────────────────────────

const NEW_PLUGIN = "my-plugin"; // the name of a plugin that is made by telling it something
const SHOWN_ENTRIES = 200;
const MANY = 50; // new entries whose reading takes a moment
const SHOWN_CHARACTERS = 600;

let memoryOf = null; // the plugin whose memory is shown, "" for a new one, null before anybody knows
let remembered = []; // its entries, as the gateway tells them
let memoryShown = Promise.resolve(); // when they are all there

/** Where a plugin's memory is, for the gateway. */
const memoryPath = (name, rest = "") => `${pluginPath(name)}/memory${rest}`;

/** A text between quotation marks, cut to a line's length. */
const quoted = (text) => `“${text.length > 80 ? `${text.slice(0, 79)}…` : text}”`;

/** Tell a plugin something: {entries} or {files}. Returns what became of it; throws a sentence. */
async function tell(name, json) {
  const answer = await (await api(memoryPath(name), { method: "POST", json })).json();
  await refresh();
  if (!chosen && isUsable(pluginNamed(name))) {
    chosen = name; // so that it is asked from now on
    showModels();
  }
  return answer;
}

/** What became of what was told, in sentences. */
function toldSentence(name, { numbers, known, replaced, doubtful, notes }) {
  const title = ({ question, reply }) => quoted(question || reply);
  return [
    numbers.length === 1 && `${name} remembers it.`,
    numbers.length !== 1 && `${name} remembers ${count(numbers.length, "more entry", "more entries")}.`,
    known && `${count(known, "was", "were")} known already.`,
    ...replaced.map(({ old }) => `It replaces ${quoted(old.reply)}`),
    ...doubtful.map(({ old }) => `It may contradict ${title(old)} (${quoted(old.reply)}), and both hold.`),
    ...notes.map((note) => `${note}.`),
  ]
    .filter(Boolean)
    .join(" ");
}

/** Fill the selection of plugins that remember. */
function showMemoryPlugins() {
  const can = state.plugins.filter((plugin) => !plugin.error);
  if (memoryOf === null && (state.model || state.plugins.length)) memoryOf = chosen || can[0]?.name || "";
  if (memoryOf && !pluginNamed(memoryOf)) memoryOf = "";
  $("memory-plugin").replaceChildren(
    ...can.map(({ name }) => make("option", { value: name }, name)),
    make("option", { value: "" }, "a new one"),
  );
  $("memory-plugin").value = memoryOf ?? "";
  $("memory-new").hidden = Boolean(memoryOf);
}

/** Read what the chosen plugin remembers, and list it; entry `first` stands first, whatever its number. */
async function showMemory(first = 0) {
  showMemoryPlugins();
  const name = memoryOf;
  let [entries, trouble] = [[], ""];
  try {
    if (name) ({ entries } = await (await api(memoryPath(name))).json());
  } catch (problem) {
    trouble = problem.message;
  }
  if (name !== memoryOf) return; // another one was chosen meanwhile
  remembered = entries;
  $("memory-settings").hidden = !entries.length;
  if (entries.length) await showSettings(name);
  showSentence("memory-trouble", trouble);
  $("memory-found").replaceChildren();
  showEntries(first);
}

/** Show what the memory does where it is not certain. */
async function showSettings(name) {
  try {
    fillSettings(await (await api(memoryPath(name, "/settings"))).json());
  } catch (problem) {
    showSentence("memory-trouble", problem.message);
  }
}

function fillSettings({ certain, doubt, unknown, shipped }) {
  $("asks-back").checked = doubt === "ask";
  $("says-untold").checked = unknown === "say";
  $("certain").value = certain ?? shipped;
  showCertain();
}

function showCertain() {
  $("certain-shown").textContent = `${Math.round(100 * $("certain").value)} %`;
}

/** Change a setting of the memory that is shown. */
async function changeSetting(json) {
  try {
    fillSettings(await (await api(memoryPath(memoryOf, "/settings"), { method: "PATCH", json })).json());
    showSentence("memory-trouble", "");
  } catch (problem) {
    showSentence("memory-trouble", problem.message);
  }
}

/** List the entries that have the typed words, the newest first. */
function showEntries(first = 0) {
  const words = $("memory-find").value.toLowerCase().split(/\s+/).filter(Boolean);
  const has = ({ question, reply, source }) => {
    const text = `${question} ${reply} ${source}`.toLowerCase();
    return words.every((word) => text.includes(word));
  };
  const found = remembered.filter((entry) => entry.number === first || has(entry));
  found.sort((a, b) => (b.number === first) - (a.number === first) || b.number - a.number);
  $("entries").replaceChildren(...found.slice(0, SHOWN_ENTRIES).map(entryItem));
  const more = found.length - SHOWN_ENTRIES;
  const none = remembered.length && !found.length ? "No entry has all these words." : "";
  $("entries-more").textContent = more > 0 ? `${number(more)} more: type words of those that you look for.` : none;
  const total = remembered.filter((entry) => !entry.replaced_by).length;
  $("entries-title").textContent = remembered.length
    ? `${memoryOf} remembers ${count(total, "entry", "entries")}`
    : "Nothing remembered yet";
  $("memory-search").hidden = !remembered.length;
}

/** Where an entry is from, and when it was told. */
function entryFacts({ number: n, told, source, date, replaced_by: by }) {
  const when = new Date(told).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
  const facts = [`entry ${n}`, source && `from ${source}`, `told ${when}`, date && `about ${date}`];
  return [...facts, by && `replaced by entry ${by}`].filter(Boolean).join(" · ");
}

/** An entry with its buttons, and a place for the question that one of them asks. */
function entryItem(entry) {
  const { number: n, question: asked, reply: said, replaced_by: by } = entry;
  const question = make("div", { class: "row" });
  const act = (verb, onclick) => {
    return make("button", { class: "quiet", "aria-label": `${verb} (entry ${n})`, onclick }, verb);
  };
  const buttons = [
    by ? act("Let it hold again", () => restoreEntry(entry)) : act("Edit", () => askEdit(entry, question)),
    act("Forget", () => askForget(entry, question)),
  ];
  const text = said.length > SHOWN_CHARACTERS ? `${said.slice(0, SHOWN_CHARACTERS)}…` : said;
  const words = make("span", { class: "said" }, ...(asked ? [make("strong", {}, asked), "\n"] : []), text);
  return make(
    "li",
    { class: by ? "gone" : "", "data-entry": n },
    make("div", { class: "row" }, words, make("span", { class: "row" }, ...buttons)),
    make("p", { class: "hint" }, entryFacts(entry)),
    question,
  );
}

/** Change the memory, then list it; what goes wrong is told above the list. `done` says what was done. */
async function changeMemory(work, done) {
  showSentence("memory-done", "");
  try {
    const answer = await work();
    await refresh();
    await showMemory();
    showSentence("memory-done", done(answer));
  } catch (problem) {
    showSentence("memory-trouble", problem.message);
  }
}

/** Ask for an entry's new words. */
function askEdit(entry, question) {
  const { number: n } = entry;
  const asked = make("input", { "aria-label": `Question of entry ${n}`, placeholder: "no question: it is a note" });
  const said = make("textarea", { "aria-label": `Reply of entry ${n}`, rows: 3 });
  [asked.value, said.value] = [entry.question, entry.reply];
  const work = () => {
    const json = { question: asked.value, reply: said.value };
    return api(memoryPath(memoryOf, `/${n}`), { method: "PATCH", json });
  };
  const fields = make("div", { class: "fields grow" }, asked, said);
  ask(question, fields, "Save", () => changeMemory(work, () => `Entry ${n} is changed, and known at once.`));
}

/** Ask whether an entry is to be forgotten. */
function askForget(entry, question) {
  const [n, name] = [entry.number, memoryOf];
  const work = async () => (await api(memoryPath(name, `/${n}`), { method: "DELETE" })).json();
  const done = ({ left }) => `Entry ${n} is forgotten.` + (left ? ` But ${left}` : "");
  const forget = () => changeMemory(work, done);
  ask(question, `Forget ${quoted(entry.question || entry.reply)}?`, "Forget for good", forget, "danger");
}

/** Let an entry hold again that a newer one replaced. */
function restoreEntry({ number: n }) {
  const work = async () => (await api(memoryPath(memoryOf, `/${n}/restore`), { method: "POST" })).json();
  changeMemory(work, ({ instead_of: other }) => `Entry ${n} holds again, instead of entry ${other}.`);
}

/** Have the chosen plugin remember {entries} or {files}; `taken` is called when it does. */
async function remember(json, taken) {
  const name = memoryOf || $("memory-name").value.trim();
  if (!name) return showSentence("memory-trouble", "Give the new plugin a name.");
  $("remember").disabled = true;
  const work = async () => {
    const answer = await tell(name, json);
    memoryOf = name;
    taken();
    return answer;
  };
  const when = ({ numbers }) =>
    numbers.length > MANY ? "The next question waits until the base has read them." : "It is known at once.";
  await changeMemory(work, (answer) => `${toldSentence(name, answer)} ${when(answer)}`);
  $("remember").disabled = false;
}

/** Remember what is typed. */
function rememberTyped() {
  const [question, reply] = [$("told-question").value.trim(), $("told-reply").value.trim()];
  if (!reply) return showSentence("memory-trouble", "There is nothing to remember: write a reply, or a note.");
  remember({ entries: [{ question, reply }] }, () => {
    $("told-question").value = $("told-reply").value = "";
  });
}

/** Have a look at files, and remember them where that is wanted. */
async function rememberFiles(files) {
  const given = await readFiles(files, "memory-trouble");
  const reading = given && (await lookInto(given, "memory"));
  if (reading) await remember({ files: sendable(given), reading }, () => {});
}

/** Show what would be said to a question, and how certain that is; no cloud is asked. */
async function showFound() {
  const question = $("memory-find").value.trim();
  if (!question || !memoryOf) return;
  try {
    const path = memoryPath(memoryOf, `/search?question=${encodeURIComponent(question)}`);
    const { parts } = await (await api(path)).json();
    const line = ({ number: n, text, certainty, said }) =>
      `${said ? "It would say" : "Not certain enough:"} ${quoted(text)} (entry ${n}, ${percent(certainty)})`;
    const lines = parts.length ? parts.map(line) : ["Nothing that it remembers is near that."];
    $("memory-found").replaceChildren(...lines.map((one) => make("li", { class: "soft" }, one)));
    announce(lines[0]);
    showSentence("memory-trouble", "");
  } catch (problem) {
    showSentence("memory-trouble", problem.message);
  }
}

/** Go to an entry of a plugin. */
async function openEntry(plugin, n) {
  memoryOf = plugin;
  $("memory-find").value = "";
  showSentence("memory-done", "");
  openTab("memory", n);
  await memoryShown;
  const item = $("entries").querySelector(`[data-entry="${n}"]`);
  if (!item) return showSentence("memory-trouble", `${plugin} has no entry ${n} any more.`);
  item.classList.add("here");
  item.scrollIntoView({ block: "nearest" });
  item.querySelector("button").focus();
}

// ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────

const MOST_BYTES = 20e6; // of all files at once: the gateway takes 32 MiB, and base64 makes more of them

/** Read files: [{name, size, data: base64}]; null where that can't be, which is said in a place of the page. */
async function readFiles(files, trouble) {
  const size = [...files].reduce((sum, file) => sum + file.size, 0);
  if (size > MOST_BYTES) {
    const given = `${files.length > 1 ? "These files have" : `${files[0].name} has`} ${Math.round(size / 1e6)} MB`;
    const wayOut = "“sideplug remember” and “sideplug train” take larger ones.";
    showSentence(trouble, `${given}; the page takes ${MOST_BYTES / 1e6} MB at once. ${wayOut}`);
    return null;
  }
  const read = (file) =>
    new Promise((resolve, reject) => {
      const reader = new FileReader();
      reader.onload = () => resolve({ name: file.name, size: file.size, data: reader.result.split(",")[1] ?? "" });
      reader.onerror = () => reject(new Error(`${file.name} can't be read.`));
      reader.readAsDataURL(file);
    });
  try {
    const given = await Promise.all([...files].map(read));
    showSentence(trouble, "");
    return given.length ? given : null;
  } catch (problem) {
    showSentence(trouble, problem.message);
    return null;
  }
}

/** What of a file the gateway takes. */
const sendable = (files) => files.map(({ name, data }) => ({ name, data }));

/** How the files are read that the dialog shows, as its fields have it. */
function chosenReading() {
  const redact = [...document.querySelectorAll("[name=redact]:checked")].map(({ value }) => value);
  const me = $("who-field").hidden ? "" : $("who").value.trim();
  const leave = !$("bad-field").hidden && $("leave-bad").checked;
  return { ...(me && { me }), ...(redact.length && { redact }), ...(leave && { skip_bad: true }) };
}

/** Show what would be read of files. Returns how they are to be read, or null where they are not wanted. */
async function lookInto(files, use, before = {}) {
  const dialog = $("files-dialog");
  const verb = use === "memory" ? "Remember" : "Learn from";
  $("files-named").textContent = files.map(({ name }) => name).join(", ");
  $("who-field").hidden = !before.me;
  $("who").value = before.me ?? "";
  $("who-names").replaceChildren();
  for (const box of document.querySelectorAll("[name=redact]")) box.checked = before.redact?.includes(box.value) ?? false;
  $("leave-bad").checked = Boolean(before.skip_bad);
  $("bad-field").hidden = !before.skip_bad;
  let asked = 0;
  const look = async () => {
    const turn = ++asked;
    $("files-take").disabled = true;
    try {
      const json = { files: sendable(files), reading: chosenReading(), use };
      const found = await (await api("sideplug/preview", { method: "POST", json })).json();
      if (turn === asked) showLook(found, verb);
    } catch (problem) {
      if (turn === asked) showLook({ error: problem.message }, verb);
    }
  };
  dialog.onchange = look;
  dialog.returnValue = "";
  dialog.showModal();
  look();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  asked = -1; // what comes late is not shown
  return dialog.returnValue === "ok" ? chosenReading() : null;
}

/** Show in the dialog what would be read of its files, or why nothing. */
function showLook({ error = "", people, questions = 0, texts: notes = 0, characters, items = [], notes: lines = [] }, verb) {
  showSentence("files-trouble", error);
  if (people?.length) {
    $("who-names").replaceChildren(...people.map((name) => make("option", { value: name })));
    $("who-field").hidden = false;
    $("who").focus();
  }
  const named = [error, ...lines].join(); // it names the fields that would change it
  if (named.includes("“You are”")) $("who-field").hidden = false;
  if (named.includes("“Leave out rows")) $("bad-field").hidden = false;
  const total = questions + notes;
  const parts = [
    questions && `${count(questions, "reply", "replies")} to something`,
    notes && count(notes, "text", "texts"),
    total && count(characters, "character", "characters"),
  ];
  $("files-counts").textContent = parts.filter(Boolean).join(", ");
  $("files-notes").replaceChildren(...lines.map((line) => make("li", {}, line)));
  const item = ({ question, reply }) => make("li", {}, make("span", {}, question ? `${question} → ${reply}` : reply));
  const more = total > items.length ? [make("li", { class: "hint" }, `… and ${number(total - items.length)} more`)] : [];
  $("files-items").replaceChildren(...items.map(item), ...more);
  $("files-take").textContent = total ? `${verb} ${total === 1 ? "it" : `these ${number(total)}`}` : verb;
  $("files-take").disabled = !total;
}

// ── training ─────────────────────────────────────────────────────────────────────────────────────────────────────

let replies = JSON.parse(sessionStorage.getItem("replies") ?? "[]"); // {title, line: of JSON lines, plugin: whose reply}
let texts = []; // {name, size, data}: files
let reading = {}; // how they are read
let sent = []; // of both, what the running training was given
let losses = []; // [step, training loss, held-out loss] of it
let followed = ""; // its plugin, while this page follows it
let polling = 0; // the timer that asks for its progress

/** Keep a reply, as it should be, to be learnt. */
function addExample(turn, text) {
  const messages = [
    { role: "user", content: turn.user },
    { role: "assistant", content: text },
  ];
  const example = turn.raw ? { text: turn.user + text } : { messages };
  replies.push({ title: `${turn.user} → ${text}`, line: JSON.stringify(example), plugin: turn.plugin });
  if (pluginNamed(turn.plugin)) $("name").value = turn.plugin; // what was corrected is what learns it
  showExamples();
  announce("Kept to be learnt: see Train.");
}

/** An item of the list of what is to be learnt. `isOnlyHere`: removing it loses it, so that is asked first. */
function exampleItem(title, size, isOnlyHere, drop) {
  const remove = ({ target }) => {
    if (isOnlyHere && target.textContent === "Remove") {
      target.textContent = "Remove for good?";
      target.classList.add("danger");
      target.addEventListener("blur", showExamples, { once: true });
      return;
    }
    drop();
    showExamples();
  };
  const attributes = { class: "quiet", "aria-label": `Remove ${title.slice(0, 60)}`, onclick: remove };
  const parts = [make("span", {}, title), make("span", { class: "hint" }, size), make("button", attributes, "Remove")];
  return make("li", {}, ...parts);
}

/** Whose reply it was that is to be learnt. */
const fromWhom = ({ plugin }) => (plugin ? `from the chat with ${plugin}` : "from the chat");

/** List what is to be learnt: files, and replies of the chat. */
function showExamples() {
  sessionStorage.setItem("replies", JSON.stringify(replies));
  const size = (file) => count(file.size, "byte", "bytes");
  const dropText = (file) => () => (texts = texts.filter((one) => one !== file));
  const dropReply = (reply) => () => (replies = replies.filter((one) => one !== reply));
  $("examples").replaceChildren(
    ...texts.map((file) => exampleItem(file.name, size(file), false, dropText(file))),
    ...replies.map((reply) => exampleItem(reply.title, fromWhom(reply), true, dropReply(reply))),
  );
  const total = texts.length + replies.length;
  $("examples-title").textContent = total ? "To learn from" : "Nothing to learn from yet";
  $("tab-training").textContent = total ? `Train (${total})` : "Train";
  $("look-again").hidden = !texts.length;
  showWill();
}

/** Say what the button Train would do. */
function showWill() {
  const name = $("name").value.trim();
  const canTrain = state.training && !state.training.running;
  $("train").disabled = !canTrain || !name || !(texts.length + replies.length);
  if (!state.training) $("will").textContent = "This gateway does not train.";
  else if (pluginNamed(name))
    $("will").textContent =
      `${name} is there: it learns this too, and is replaced only if it does no worse on what it knew.` +
      (replies.some(({ plugin }) => plugin && plugin !== name) ? " Some of the replies are another plugin's." : "");
  else
    $("will").textContent =
      "A new plugin is made; one example in ten is held out to judge it by. More epochs learn facts better, and take " +
      "longer.";
}

/** Have a look at files, with those that are listed, and list them where that is wanted. */
async function takeFiles(files) {
  const given = await readFiles(files, "refused");
  if (!given) return;
  const names = new Set(given.map(({ name }) => name));
  await listFiles([...texts.filter(({ name }) => !names.has(name)), ...given]);
}

/** Show what is read of files, and list them to be learnt where that is wanted. */
async function listFiles(files) {
  const chosen = await lookInto(files, "training", reading);
  if (!chosen) return;
  [texts, reading] = [files, chosen];
  showSentence("refused", "");
  showExamples();
}

/** Start a training of all that is listed. `force`: replace the plugin whatever comes of it. */
async function train(force) {
  const name = $("name").value.trim();
  const files = sendable(texts);
  if (replies.length) files.push({ name: "chat.jsonl", text: replies.map((reply) => reply.line + "\n").join("") });
  const epochs = Math.round(Number($("epochs").value));
  const settings = { ...(texts.length && reading), ...(epochs && { epochs }), ...(force && { force }) }; // the rest is as the command has it
  const json = { name, files, settings };
  try {
    const answer = await api("sideplug/training", { method: "POST", json });
    [sent, followed, losses] = [[...texts, ...replies], name, []];
    showSentence("refused", "");
    state.training = await answer.json();
    showTraining();
    $("progress").scrollIntoView({ block: "nearest" });
  } catch (problem) {
    showSentence("refused", problem.message);
  }
}

/** Stop the running training. */
function stopTraining() {
  [$("halt").disabled, $("halt").textContent] = [true, "Stopping …"];
  api("sideplug/training", { method: "DELETE" }).catch((problem) => showSentence("refused", problem.message));
}

/** Show how far the training is, or what came of it. */
function showTraining() {
  const job = state.training;
  showWill();
  $("progress").hidden = !job || !(job.running || job.line || job.error);
  if ($("progress").hidden) return;
  const end = job.error ? "not trained" : job.kept === false ? "not replaced" : "done";
  $("stage").textContent = `${job.name}: ${job.running ? job.stage : end}`;
  $("count").textContent = job.running && job.total ? `${number(job.done)} of ${number(job.total)}` : "";
  $("bar").hidden = $("halt").hidden = !job.running;
  if (job.total) $("bar").value = job.done / job.total;
  else $("bar").removeAttribute("value");
  $("note").textContent = job.running ? job.note : "";
  if (job.losses?.length) losses = job.losses;
  drawCurve();
  if (job.running) {
    followed = job.name;
    clearTimeout(polling);
    polling = setTimeout(refresh, state.error ? 2000 : 500);
    for (const id of ["outcome", "use", "rejected"]) $(id).hidden = true;
    return;
  }
  [$("halt").disabled, $("halt").textContent] = [false, "Stop training"];
  $("outcome").textContent = [job.error || job.line, ...(job.notes ?? [])].join("; ");
  $("outcome").className = job.error || job.kept === false ? "bad" : "";
  $("rejected").hidden = job.kept !== false || !(texts.length + replies.length);
  $("outcome").hidden = false;
  if (followed === job.name) finishTraining(job);
}

/** A training that this page followed has ended: its plugin is taken at once. */
function finishTraining(job) {
  followed = "";
  announce(job.error || (job.kept ? `${job.name} has learnt: ${job.line}` : job.line));
  if (job.error || !job.kept) return; // what was not learnt stays listed
  [texts, replies] = [texts, replies].map((list) => list.filter((one) => !sent.includes(one)));
  showExamples();
  if (!isUsable(pluginNamed(job.name))) return;
  chosen = job.name;
  $("use").hidden = false;
  $("use").scrollIntoView({ block: "nearest" });
  showModels();
}

/** Draw the training's losses by step: of training, and of what is held out, once an epoch. */
function drawCurve() {
  if (losses.length < 2) return $("curve").replaceChildren();
  const lastIndex = losses.length - 1;
  const isJudged = ([, , held], i) => held != null && (held !== losses[i - 1]?.[2] || i === lastIndex);
  const lines = [
    { name: "training", colour: "var(--plugin)", dash: "", points: losses.map(([step, loss]) => [step, loss]) },
    {
      name: "held out",
      colour: "var(--draft)",
      dash: "5 3",
      points: losses.filter(isJudged).map(([step, , loss]) => [step, loss]),
    },
  ].filter((line) => line.points.length);

  const [width, height, left, right, foot] = [$("curve").clientWidth || 600, 150, 34, 96, 20];
  const values = lines.flatMap((line) => line.points.map(([, loss]) => loss));
  const low = Math.min(...values);
  const high = Math.max(...values, low + 0.01);
  const first = losses[0][0];
  const steps = Math.max(1, losses[lastIndex][0] - first);
  const x = (step) => left + ((width - left - right) * (step - first)) / steps;
  const y = (loss) => 8 + ((height - foot - 8) * (high - loss)) / (high - low);

  const grid = [high, (high + low) / 2, low].flatMap((loss) => [
    makeSvg("line", { x1: left, x2: width - right, y1: y(loss), y2: y(loss), stroke: "var(--line)" }),
    makeSvg("text", { x: 0, y: y(loss) + 4 }, loss.toFixed(2)),
  ]);
  const paths = lines.map(({ points, colour, dash }) => {
    const d = "M" + points.map(([step, loss]) => `${x(step).toFixed(1)} ${y(loss).toFixed(1)}`).join("L");
    return makeSvg("path", { d, stroke: colour, "stroke-dasharray": dash });
  });
  const ends = lines.map((line) => line.points.at(-1)[1]);
  const isClose = ends.length > 1 && Math.abs(y(ends[0]) - y(ends[1])) < 14;
  const lower = ends[0] < ends[1] ? 0 : 1; // its label stands below, where both would lie on each other
  const labels = lines.map(({ name, colour }, i) => {
    const shift = isClose ? (i === lower ? 7 : -7) : 0;
    return makeSvg("text", { x: width - right + 6, y: y(ends[i]) + 4 + shift, fill: colour }, endOf(name, ends[i]));
  });
  const axis = makeSvg("text", { x: left, y: height - 2 }, "nats a token, by step");
  const title = `Loss by step: ${lines.map(({ name }, i) => endOf(name, ends[i])).join(", ")}`;
  const attributes = { class: "curve", width, height, role: "img", "aria-label": title };
  $("curve").replaceChildren(makeSvg("svg", attributes, ...grid, ...paths, ...labels, axis));
}

/** A curve's name, and where it ends. */
const endOf = (name, loss) => `${name} ${loss.toFixed(2)}`;

// ── plugins ──────────────────────────────────────────────────────────────────────────────────────────────────────

/** Where a plugin is, for the gateway. */
const pluginPath = (name) => `sideplug/plugins/${encodeURIComponent(name)}`;

/** The header of a passphrase, where there is one. */
const passphraseHeader = (phrase) => (phrase ? { "X-Passphrase": encodeURIComponent(phrase) } : {});

/** Change the shelf, then show it; what goes wrong is told above it. Returns whether it went well. */
async function changeShelf(work, done) {
  try {
    await work();
    showSentence("plugin-trouble", "");
    await refresh();
    announce(done);
    return true;
  } catch (problem) {
    showSentence("plugin-trouble", problem.message);
    return false;
  }
}

/** List the plugins; those that can be trained further stand in the training's field too. */
function showShelf() {
  const trainable = state.plugins.filter((plugin) => !plugin.error);
  $("none").hidden = state.plugins.length > 0;
  $("shelf").replaceChildren(...state.plugins.map(pluginCard));
  $("names").replaceChildren(...trainable.map((plugin) => make("option", { value: plugin.name })));
}

/** What is known of a plugin, in one line. */
function pluginFacts({ parameters, entries, base, sealed, about = {} }) {
  const { examples, base_loss: before, best_loss: after } = about;
  const facts = [
    entries != null && count(entries, "entry remembered", "entries remembered"),
    parameters && count(parameters, "parameter", "parameters"),
    base && `for ${parameters ? shortName(base) : "any base"}`,
    examples && count(examples, "example", "examples"),
    before != null && after != null && `held-out loss ${before.toFixed(3)} → ${after.toFixed(3)}`,
    sealed && "sealed",
  ];
  return facts.filter(Boolean).join(" · ");
}

/** A plugin with its facts, its buttons, and a place for the question that one of them asks. */
function pluginCard(plugin) {
  const { name } = plugin;
  const isOwn = plugin.own !== false;
  const notes = [
    plugin.error,
    plugin.fits === false && "It was made for another base, so it can't be used with this one.",
    !isOwn && "It lies elsewhere, so it is not renamed or deleted from here.",
  ];
  const question = make("div", { class: "row" });
  const act = (verb, onclick, can) =>
    make("button", { class: "quiet", "aria-label": `${verb} ${name}`, disabled: !can, onclick }, verb);
  const buttons = [
    act("Use", () => usePlugin(name), isUsable(plugin)),
    act("Words", () => askWords(name, question), isUsable(plugin) && plugin.parameters > 0),
    act("Rename", () => askRename(plugin, question), isOwn),
    act("Export", () => askExport(name, question), !plugin.error),
    act("Delete", () => askDelete(name, question), isOwn),
  ];
  return make(
    "li",
    { class: "card", "data-plugin": name },
    make("div", { class: "row" }, make("h3", {}, name), make("span", { class: "end row" }, ...buttons)),
    make("p", { class: "soft" }, pluginFacts(plugin)),
    ...notes.filter(Boolean).map((note) => make("p", { class: "hint bad" }, note)),
    question,
  );
}

/** A question below a plugin: a field or a sentence, a button that does it, one that does not. */
function ask(question, what, verb, work, kind = "primary") {
  const cancel = () => question.replaceChildren();
  question.replaceChildren(what, button(verb, kind, work), button("Cancel", "quiet", cancel));
  question.querySelector("input, button").focus();
}

/** Choose a plugin, and go to the chat. */
function usePlugin(name) {
  chosen = name;
  showModels();
  openTab("chat");
  $("say").focus();
}

/** Ask for a text, and show which of its words the plugin makes likelier. */
function askWords(name, question) {
  const hint = "Something that you wrote and it has not learnt. Your device and the cloud read it once.";
  const text = make("textarea", { rows: 4, class: "grow", "aria-label": `A text for ${name}`, placeholder: hint });
  const shown = make("div", { class: "words" });
  const look = async () => {
    shown.replaceChildren(make("p", { class: "soft" }, "Reading …"));
    try {
      const body = JSON.stringify({ name, text: text.value });
      showWords(shown, await (await api("sideplug/words", { method: "POST", body })).json());
    } catch (problem) {
      shown.replaceChildren(make("p", { class: "bad" }, problem.message));
    }
  };
  const close = button("Close", "quiet", () => question.replaceChildren());
  question.replaceChildren(text, button("Show its words", "primary", look), close, shown);
  text.focus();
}

/** Draw, for the words that gain most and those that lose most, how likely each is without and with the plugin. */
function showWords(place, { base, plugin, words }) {
  const likelier = words.filter(([, , before, after]) => after > before).slice(0, WORDS_SHOWN);
  const rarer = words.filter(([, , before, after]) => after < before).slice(-WORDS_SHOWN / 2);
  const better = plugin < base ? "likelier" : "no likelier";
  const sentence = `On the whole this text is ${better} with your plugin: loss ${base.toFixed(3)} → ${plugin.toFixed(3)}.`;
  const row = ([word, times, before, after]) => {
    const [low, high] = [Math.min(before, after), Math.max(before, after)].map(onScale);
    const kept = make("span", { class: "kept" });
    const moved = make("span", { class: after > before ? "gained" : "lost" });
    [kept.style.width, moved.style.width] = [`${low}%`, `${high - low}%`];
    const told = `${small(before)} → ${small(after)}`;
    const cells = [word, `×${times}`].map((cell) => make("td", {}, cell));
    return make("tr", {}, ...cells, make("td", { class: "chance" }, kept, moved), make("td", {}, told));
  };
  const table = (title, some) =>
    some.length > 0 && make("table", {}, make("caption", {}, title), make("tbody", {}, ...some.map(row)));
  const none = !words.length && make("p", { class: "soft" }, "No word stands in it twice, so there is none to show.");
  const tables = [table("Likelier with your plugin", likelier), table("Less likely", rarer.reverse()), none];
  place.replaceChildren(make("p", {}, sentence), ...tables.filter(Boolean));
}

/** Where a probability stands on a scale of powers of ten, from 0.01 % at 0 to certain at 100. */
function onScale(p) {
  return 100 * Math.max(0, 1 + Math.log10(Math.max(p, 1e-9)) / 4);
}

/** A probability as a percentage that is not 0 where it is small. */
function small(p) {
  const value = 100 * p;
  return `${value < 0.1 ? value.toPrecision(1) : value.toFixed(value < 10 ? 1 : 0)} %`;
}

/** Ask for a plugin's new name. */
function askRename(plugin, question) {
  const { name } = plugin;
  const attributes = { "aria-label": `New name of ${name}`, value: name, maxlength: 64, spellcheck: "false" };
  const input = make("input", attributes);
  const rename = () => {
    const newName = input.value.trim();
    const work = async () => {
      await api(pluginPath(name), { method: "PATCH", json: { name: newName } });
      if (chosen === name) chosen = newName;
      if (!pluginNamed(chosen)) state.plugins.push({ ...plugin, name: chosen });
    };
    return changeShelf(work, `${name} is ${newName} now.`);
  };
  ask(question, input, "Rename", rename);
}

/** Ask for the passphrase of a plugin's file, then save the file. */
function askExport(name, question) {
  const input = make("input", {
    type: "password",
    "aria-label": `Passphrase for the file of ${name}, or none`,
    placeholder: "passphrase, or none",
    autocomplete: "new-password",
  });
  const download = async () => {
    const file = await (await api(pluginPath(name), { headers: passphraseHeader(input.value) })).blob();
    const link = make("a", { href: URL.createObjectURL(file), download: `${name}.sideplug` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };
  const save = async () => {
    if (await changeShelf(download, `${name}.sideplug is saved.`)) question.replaceChildren();
  };
  ask(question, input, "Save the file", save);
}

/** Ask whether a plugin is to be deleted. */
function askDelete(name, question) {
  const remove = () => changeShelf(() => api(pluginPath(name), { method: "DELETE" }), `${name} is deleted.`);
  ask(question, `Delete ${name}, with all that it was made from?`, "Delete for good", remove, "danger");
}

/** Show which file is to be imported, and name the plugin after it. */
function showFile() {
  const [file] = $("file").files;
  $("import").disabled = !file;
  $("file-chosen").textContent = file ? `${file.name}, ${number(file.size)} bytes` : "";
  if (file && !$("file-name").value) $("file-name").value = file.name.replace(/\.sideplug$/, "");
}

/** Import a plugin's file. */
async function importFile() {
  const [file] = $("file").files;
  const name = $("file-name").value.trim();
  const work = async () => {
    if (!name) throw new Error("Give the plugin a name.");
    await api(pluginPath(name), { method: "PUT", headers: passphraseHeader($("file-phrase").value), body: file });
  };
  if (!(await changeShelf(work, `${name} is here.`))) return;
  for (const id of ["file", "file-name", "file-phrase"]) $(id).value = "";
  showFile();
}

// ── what left ────────────────────────────────────────────────────────────────────────────────────────────────────

/** Read what this page's requests sent and got, and show it. */
async function look() {
  $("whose").textContent = "Reading the messages …";
  try {
    showReport(await (await api("sideplug/audit")).json());
  } catch (problem) {
    $("whose").textContent = problem.message;
    announce(problem.message);
  }
}

/** Which messages a report is about. */
function reportSubject({ plugin, rows, dropped }) {
  if (!rows.length) return "This page has asked for nothing yet, so nothing of it has left.";
  const session = plugin ? `its session with ${plugin}` : "its session without a plugin";
  const lost = count(dropped, "older message is", "older messages are");
  return (
    `All messages between this device and the cloud for this page, in ${session} that replied last, byte for byte. ` +
    "Other pages, programs and trainings are not in it." +
    (dropped ? ` ${lost} no longer in memory, and not counted.` : "")
  );
}

/** Show a report: its sentences, what of the person's words the cloud saw, its tables, and all of it as text. */
function showReport(report) {
  $("whose").textContent = reportSubject(report);
  // The report's own sentences; its tables (indented, or under a heading) stand below as tables.
  const isSentence = (line) => /^\S.*\.$/.test(line) && !(line.startsWith("Whether") && !report.plugin);
  const sentences = report.rows.length ? report.lines.filter(isSentence) : [];
  const verdicts = sentences.map((line) => make("li", { class: /^(NOT|PARAM)/.test(line) ? "bad" : "" }, line));
  $("verdict").replaceChildren(...verdicts);
  const saw = Object.entries(report.text).map(([what, size]) => `${number(size)} ${what}`);
  $("saw").replaceChildren(...(saw.length ? saw : ["nothing"]).map((line) => make("li", {}, line)));
  $("rows").replaceChildren(report.rows.length ? reportTable(report.rows) : "");
  $("report").textContent = report.lines.join("\n");
}

/** A report's rows as a table. */
function reportTable(rows) {
  const line = (tag, values) => {
    const cells = values.map((value, i) => make(tag, { class: i === 2 || i === 3 ? "number" : "" }, value));
    return make("tr", {}, ...cells);
  };
  const parts = (row) => {
    const sizes = Object.entries(row.parts).filter(([, size]) => size);
    sizes.sort((a, b) => b[1] - a[1]);
    return sizes.map(([part, size]) => `${part} ${number(size)}`).join(", ");
  };
  const body = rows.map((row) =>
    line("td", [row.direction, row.kind, number(row.frames), number(row.bytes), parts(row)]),
  );
  const head = line("th", ["Way", "Kind", "Messages", "Bytes", "Of which"]);
  return make("table", {}, make("thead", {}, head), make("tbody", {}, ...body));
}

// ── the page ─────────────────────────────────────────────────────────────────────────────────────────────────────

const tabs = [...document.querySelectorAll("[role=tab]")];

/** Show one of the page's parts; of the memory, entry `first` stands first. */
function openTab(name, first = 0) {
  hideChances();
  for (const tab of tabs) {
    const panel = tab.getAttribute("aria-controls");
    tab.setAttribute("aria-selected", panel === name);
    tab.tabIndex = panel === name ? 0 : -1;
    $(panel).hidden = panel !== name;
  }
  document.querySelector("aside").hidden = !["chat", "compare"].includes(name);
  if (name === "left") look();
  if (name === "memory") memoryShown = showMemory(first);
  if (name === "training") drawCurve(); // as wide as it is now
}

/** Go from tab to tab with the keys. */
function stepThroughTabs(event, i) {
  const to = { ArrowRight: i + 1, ArrowLeft: i - 1 + tabs.length, Home: 0, End: tabs.length - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  tabs[to % tabs.length].focus();
  tabs[to % tabs.length].click();
}

/** Take files that are dropped anywhere on the page: on the memory to be remembered, elsewhere to be learnt. */
function dragged(event) {
  if (!event.dataTransfer?.types.includes("Files")) return; // words that are dragged into a field
  event.preventDefault(); // otherwise the browser would leave this page for the file
  const isMemory = !$("memory").hidden;
  $(isMemory ? "memory-drop" : "drop").classList.toggle("over", event.type === "dragover");
  if (event.type !== "drop") return;
  if (isMemory) return rememberFiles(event.dataTransfer.files);
  openTab("training");
  takeFiles(event.dataTransfer.files);
}

/** Enter does the work of a field; with Shift it begins a new line. */
function onEnter(id, work) {
  on(id, "keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    work();
  });
}

/** Do some work at an event of an element. */
const on = (id, kind, work) => $(id).addEventListener(kind, work);

for (const [i, tab] of tabs.entries()) {
  tab.addEventListener("click", () => openTab(tab.getAttribute("aria-controls")));
  tab.addEventListener("keydown", (event) => stepThroughTabs(event, i));
}
for (const kind of ["dragover", "dragleave", "drop"]) document.addEventListener(kind, dragged);
for (const kind of ["pointerover", "focusin", "click"])
  document.addEventListener(kind, (event) => {
    if (event.target.matches?.(".token")) showChances(event.target);
    else hideChances();
  });
document.addEventListener("scroll", hideChances, true);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    hideChances();
    busy?.abort();
  }
  stepThroughTokens(event);
});

onEnter("say", sendTyped);
onEnter("both", runBoth);
on("send", "click", sendTyped);
on("run-both", "click", runBoth);
for (const id of ["stop", "stop-both"]) on(id, "click", () => busy?.abort());
on("fresh", "click", startAfresh);
on("retry", "click", refresh);
on("model", "change", () => {
  chosen = $("model").value;
  if (!busy) $("sides").replaceChildren();
  showModels();
});
on("mode", "change", showMode);
on("own-gate", "change", showDial);
on("rate", "input", () => {
  $("own-gate").checked = false;
  showDial();
});

on("memory-plugin", "change", () => {
  memoryOf = $("memory-plugin").value;
  showSentence("memory-done", "");
  memoryShown = showMemory();
});
on("remember", "click", rememberTyped);
onEnter("told-question", () => $("told-reply").focus());
on("memory-files", "change", async () => {
  await rememberFiles($("memory-files").files);
  $("memory-files").value = "";
});
on("asks-back", "change", () => changeSetting({ doubt: $("asks-back").checked ? "ask" : "base" }));
on("says-untold", "change", () => changeSetting({ unknown: $("says-untold").checked ? "say" : "base" }));
on("certain", "input", showCertain);
on("certain", "change", () => changeSetting({ certain: Number($("certain").value) }));
on("memory-find", "input", () => showEntries());
onEnter("memory-find", showFound);
on("memory-ask", "click", showFound);

on("name", "input", showWill);
on("files", "change", async () => {
  await takeFiles($("files").files);
  $("files").value = "";
});
onEnter("who", () => $("who").blur()); // else it would take the dialog's first button
on("look-again", "click", () => listFiles(texts));
on("train", "click", () => train(false));
on("force", "click", () => train(true));
on("halt", "click", stopTraining);
on("use", "click", () => {
  openTab("chat");
  $("say").focus();
});

on("file", "change", showFile);
on("bring", "submit", (event) => {
  event.preventDefault();
  importFile();
});
on("look", "click", look);

const narrow = matchMedia("(max-width: 760px)");

/** Settings and meters are folded where there is little room. */
function foldSettings() {
  $("controls").open = !narrow.matches;
}
narrow.addEventListener("change", foldSettings);
foldSettings();
showMeters(null);
showExamples();
showMode();
refresh().then(() => {
  if (!narrow.matches && document.activeElement === document.body) $("say").focus();
});
