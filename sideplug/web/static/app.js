/* The page: it shows what the device (device.js, a worker) does, and makes elements, never markup, of what others wrote. */

const $ = (id) => document.getElementById(id);
const on = (id, kind, work) => $(id).addEventListener(kind, work);

/** An element with attributes and children; text never becomes markup. */
function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties))
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) node.setAttribute(name, value === true ? "" : value);
  node.append(...children);
  return node;
}

const number = (n) => Number(n).toLocaleString("en");
const count = (n, one, many) => `${number(n)} ${n === 1 ? one : many}`;

/** Show a sentence that says what is wrong; "" hides it. */
function trouble(sentence) {
  $("trouble").textContent = sentence;
  $("trouble").hidden = !sentence;
}

// ── the device ───────────────────────────────────────────────────────────────────────────────────────────────────

const device = new Worker("device.js", { type: "module" });
const calls = new Map();
let numbered = 0;

/** Ask the device. `piece` hears what comes before the answer. */
function ask(call, given = {}, piece = () => {}) {
  return new Promise((resolve, reject) => {
    calls.set(++numbered, { resolve, reject, piece });
    device.postMessage({ id: numbered, call, with: given });
  });
}

device.onmessage = ({ data }) => {
  if (data.notice !== undefined) return ($("notice").textContent = data.notice);
  const waiting = calls.get(data.id);
  if (data.piece) return waiting.piece(data.piece);
  calls.delete(data.id);
  if (data.error === undefined) waiting.resolve(data.value);
  else waiting.reject(Object.assign(new Error(data.error), { wrongPassphrase: data.wrongPassphrase }));
};
device.onerror = () => trouble("This browser can't run the device: it must know modules in workers.");

/** Do some work; what stands in its way is said. Returns whether it was done. */
async function attempt(work) {
  trouble("");
  try {
    await work();
    return true;
  } catch (problem) {
    trouble(`${problem.message[0].toUpperCase()}${problem.message.slice(1)}.`.replace(/\.\.$/, "."));
    return false;
  }
}

// ── the shelf ────────────────────────────────────────────────────────────────────────────────────────────────────

let chosen = "";
let plugin = null;

/** The plugins that are kept, the wanted one chosen: that, or the only one. */
async function showShelf(wanted = "") {
  const names = await ask("names");
  $("plugins").replaceChildren(
    ...names.map((name) => make("li", {}, make("button", { onclick: () => choose(name) }, name))),
  );
  choose(names.includes(wanted) ? wanted : names.length === 1 ? names[0] : "");
}

function choose(name) {
  chosen = name;
  for (const button of $("plugins").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button.textContent === name));
  }
  $("unlock").hidden = !name;
  $("unlock-title").textContent = `Open ${name}`;
  $("passphrase").value = "";
  if (name) $("passphrase").focus();
}

async function bring() {
  const [file] = $("file").files;
  if (!file) return;
  const name = file.name.replace(/\.sideplug$/, "") || "plugin";
  const before = chosen;
  choose(""); // until it is kept: what is typed meanwhile would be cleared
  const isKept = await attempt(async () => {
    await ask("bring", { name, file: await file.arrayBuffer() });
    await navigator.storage?.persist?.(); // so that the browser does not throw it away for room
  });
  $("file").value = "";
  await showShelf(isKept ? name : before);
}

async function unlock(event) {
  event.preventDefault();
  $("notice").textContent = "Opening …";
  const isOpen = await attempt(async () => {
    plugin = await ask("unlock", { name: chosen, passphrase: $("passphrase").value });
  });
  $("passphrase").value = "";
  $("notice").textContent = "";
  if (!isOpen) return $("passphrase").focus();
  showPlugin();
}

function showPlugin() {
  $("tabs").hidden = false;
  $("cloud").value = plugin.cloud;
  $("key").value = plugin.key;
  $("allow").textContent = `sideplug serve --allow-origin ${location.origin}`;
  const facts = {
    Plugin: plugin.name,
    "Made for": plugin.base,
    Parts: plugin.kinds.join(", "),
    "Finds by": plugin.reads ? "words and the sentence encoder" : "words alone: this folder has no sentence encoder",
  };
  $("facts").replaceChildren(...Object.entries(facts).flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
  openTab(plugin.cloud ? "chat" : "settings");
}

async function lock() {
  await ask("lock");
  plugin = null;
  startAfresh();
  $("tabs").hidden = true;
  for (const id of ["chat", "memory", "settings"]) $(id).hidden = true;
  $("shelf").hidden = false;
  choose(chosen);
}

async function drop() {
  const button = $("drop");
  if (button.textContent !== "Remove for good?") return (button.textContent = "Remove for good?");
  button.textContent = "Remove from here";
  await attempt(() => ask("drop", { name: chosen }));
  choose("");
  showShelf();
}

// ── chat ─────────────────────────────────────────────────────────────────────────────────────────────────────────

let messages = [];
let busy = false;

function setBusy(now) {
  busy = now;
  $("stop").hidden = !now;
  $("send").disabled = now;
}

async function send(event) {
  event?.preventDefault();
  const content = $("say").value.trim();
  if (!content || busy) return;
  $("say").value = "";
  const mine = make("div", { class: "message you" }, content);
  const reply = make("div", { class: "message", "data-reply": true });
  const foot = make("p", { class: "soft" });
  $("log").append(mine, reply, foot);
  setBusy(true);
  const settings = { gate: $("gate").value, maxTokens: Number($("most").value), sampling: { temperature: Number($("temperature").value) } };
  const asked = [...messages, { role: "user", content }];
  let text = "";
  const piece = ({ text: more, by }) => {
    text += more;
    reply.append(make("span", { class: ["plugin", "draft", "trunk"].includes(by) ? "mine" : "", "data-by": by }, more));
    $("log").scrollTop = $("log").scrollHeight;
  };
  const isDone = await attempt(async () => {
    const usage = await ask("say", { messages: asked, ...settings }, piece);
    foot.textContent = summary(usage);
  });
  setBusy(false);
  if (isDone || text) messages = [...asked, { role: "assistant", content: text }];
  else {
    for (const node of [mine, reply, foot]) node.remove();
    $("say").value = content;
  }
  $("say").focus();
}

/** What a reply took, in a line. */
function summary({ source, plugin: own, reply, down, up, resumed, seconds = 0 }) {
  const each = own && seconds ? ` · ${((1000 * seconds) / own).toFixed(1)} ms each here` : "";
  const again = resumed ? ` · continued ${count(resumed, "time", "times")}` : "";
  const from = source ? `${source[0].toUpperCase()}${source.slice(1)} · ` : "";
  return `${from}${count(reply, "token", "tokens")}, ${number(own)} by your plugin${each} · ${number(down)} bytes down, ${number(up)} up${again}`;
}

function startAfresh() {
  messages = [];
  $("log").replaceChildren();
}

// ── memory ───────────────────────────────────────────────────────────────────────────────────────────────────────

async function showEntries(entries = null) {
  const all = entries ?? (await ask("entries"));
  $("entries-title").textContent = count(all.length, "entry", "entries");
  $("save").hidden = !all.some(({ isOwn }) => isOwn);
  const item = ({ number: n, question, reply, source }) =>
    make(
      "li",
      { class: "card", "data-entry": n },
      question && make("strong", {}, question),
      make("span", {}, reply),
      make("div", { class: "row" }, make("span", { class: "soft" }, source), make("button", { class: "quiet end", "aria-label": `Forget entry ${n}`, onclick: () => forget(n) }, "Forget")),
    );
  $("entries").replaceChildren(...[...all].reverse().map(item));
}

async function tell(event) {
  event.preventDefault();
  const given = { question: $("question").value, reply: $("reply").value };
  const isDone = await attempt(async () => showEntries(await ask("tell", given)));
  if (isDone) $("question").value = $("reply").value = "";
}

const forget = (n) => attempt(async () => showEntries(await ask("forget", { number: n })));

let searching = 0;

async function find() {
  const question = $("find").value.trim();
  const turn = ++searching;
  const found = question ? await ask("search", { question }) : [];
  if (turn !== searching) return;
  const line = ({ text, certainty, said, number: n }) => `${said ? "It would say" : "Not certain enough:"} “${text}” (entry ${n}, ${Math.round(100 * certainty)} %)`;
  const lines = question && !found.length ? ["Nothing that it remembers is near that."] : found.map(line);
  $("found").replaceChildren(...lines.map((one) => make("li", { class: "soft" }, one)));
}

/** What was told here, as a file that `sideplug remember` takes. */
async function saveTold() {
  const own = (await ask("entries")).filter(({ isOwn }) => isOwn);
  const lines = own.map(({ question, reply }) => JSON.stringify(question ? { instruction: question, output: reply } : { text: reply }));
  const link = make("a", { href: URL.createObjectURL(new Blob([`${lines.join("\n")}\n`])), download: `${plugin.name}-told.jsonl` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// ── the page ─────────────────────────────────────────────────────────────────────────────────────────────────────

const tabs = [...document.querySelectorAll("[role=tab]")];

function openTab(name) {
  $("shelf").hidden = true;
  for (const tab of tabs) {
    const panel = tab.getAttribute("aria-controls");
    tab.setAttribute("aria-selected", String(panel === name));
    tab.tabIndex = panel === name ? 0 : -1;
    $(panel).hidden = panel !== name;
  }
  if (name === "memory") showEntries();
}

tabs.forEach((tab, n) => {
  tab.addEventListener("click", () => openTab(tab.getAttribute("aria-controls")));
  tab.addEventListener("keydown", ({ key }) => {
    const to = { ArrowRight: n + 1, ArrowLeft: n - 1 }[key];
    const next = to === undefined ? null : tabs[(to + tabs.length) % tabs.length];
    next?.focus();
    next?.click();
  });
});

on("file", "change", bring);
on("unlock", "submit", unlock);
on("drop", "click", drop);
on("drop", "blur", () => ($("drop").textContent = "Remove from here"));
on("composer", "submit", send);
on("say", "keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event);
});
on("stop", "click", () => ask("stop"));
on("fresh", "click", startAfresh);
on("telling", "submit", tell);
on("find", "input", find);
on("save", "click", saveTold);
on("lock", "click", lock);
on("cloud-form", "submit", async (event) => {
  event.preventDefault();
  if (await attempt(() => ask("settings", { cloud: $("cloud").value, key: $("key").value }))) openTab("chat");
});
document.addEventListener("keydown", ({ key }) => key === "Escape" && busy && ask("stop"));

attempt(() => showShelf());
navigator.serviceWorker?.register("sw.js").catch(() => {}); // without it the page works, but not offline
