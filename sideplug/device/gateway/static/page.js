"use strict";
const $ = (id) => document.getElementById(id);
const WRITERS = {
  cloud: "the cloud",
  plugin: "your plugin",
  draft: "draft, accepted",
  fallback: "the base, device late",
};
const WHY = {
  cloud: "The cloud's own choice; your plugin was not asked.",
  plugin: "Your plugin was asked, and this came of it.",
  draft: "Your plugin's choice, and just what your device had drafted.",
  fallback: "The base's choice: your device's answer came too late.",
};
const number = (n) => Number(n).toLocaleString("en");
const percent = (share) =>
  share >= 0.0995
    ? `${Math.round(100 * share)} %`
    : share >= 0.0005
      ? `${(100 * share).toFixed(1)} %`
      : share > 0
        ? "<0.1 %"
        : "0 %";
const few = (n, one, many) => `${number(n)} ${n === 1 ? one : many}`;

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
const say = (sentence) => {
  $("live").textContent = sentence;
};
/** Show a sentence in a place that is else hidden; "" hides it. */
function tell(id, sentence) {
  $(id).textContent = sentence;
  $(id).hidden = !sentence;
  if (sentence) say(sentence);
}

// ── the gateway ──────────────────────────────────────────────────────────────────────────────────────────────────
let state = { model: null, error: null, plugins: [], teacher: null };
let shown = ""; // of the state, as JSON
let asking = null; // the one question for the key

/** The key, asked for once; "" where none was given. `used`: the one that was refused. */
function askKey(used) {
  if (sessionStorage.getItem("key") !== used) return Promise.resolve(sessionStorage.getItem("key"));
  asking ??= new Promise((resolve) => {
    const dialog = $("key-dialog");
    dialog.returnValue = "";
    dialog.addEventListener(
      "close",
      () => {
        asking = null;
        const key = dialog.returnValue === "ok" ? $("key").value.trim() : "";
        if (key) sessionStorage.setItem("key", key);
        resolve(key);
      },
      { once: true },
    );
    dialog.showModal();
  });
  return asking;
}

/** A response that is well; else an Error whose message is one sentence. */
async function api(path, { method = "GET", json, body, headers = {}, signal } = {}) {
  const key = sessionStorage.getItem("key");
  const sent = {
    ...headers,
    ...(json && { "Content-Type": "application/json" }),
    ...(key && { Authorization: `Bearer ${key}` }),
  };
  let response;
  try {
    response = await fetch(path, { method, headers: sent, body: json ? JSON.stringify(json) : body, signal });
  } catch (problem) {
    if (problem.name === "AbortError") throw problem;
    throw new Error("The gateway does not answer: is “sideplug gateway” still running?");
  }
  if (response.status === 401 && (await askKey(key))) return api(path, { method, json, body, headers, signal });
  if (response.ok) return response;
  const told = await response.json().catch(() => null);
  throw new Error(told?.error?.message ?? `The gateway answered ${response.status}.`);
}

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
    const response = await api(chat ? "/v1/chat/completions" : "/v1/completions", { method: "POST", json, signal });
    for await (const chunk of events(response)) {
      if (chunk.error) throw new Error(chunk.error.message);
      got.usage = chunk.usage ?? got.usage;
      const choice = chunk.choices[0];
      if (!choice) continue;
      const text = (chat ? choice.delta.content : choice.text) ?? "";
      got.text += text;
      got.why = choice.finish_reason ?? got.why;
      if (chunk.sideplug) got.by[chunk.sideplug.by] = (got.by[chunk.sideplug.by] ?? 0) + chunk.sideplug.ids.length;
      if (text) keepingUp(() => addPiece(box, text, chunk.sideplug));
    }
    if (!got.usage) throw new Error("The reply broke off.");
  } catch (problem) {
    got.stopped = signal.aborted;
    if (!got.stopped)
      got.problem = problem instanceof TypeError ? "The connection to the gateway broke off." : problem.message;
  }
  return got;
}

/** A base that is a folder goes by the folder's name. */
const short = (name) => name.split("/").pop();
const modelName = (plugin) => [state.model?.name, plugin].filter(Boolean).join("+");
const found = (name) => state.plugins.find((plugin) => plugin.name === name);
const usable = (plugin) => !plugin.error && plugin.fits !== false;
const gateRate = (plugin) =>
  found(plugin)?.dial && !$("own-gate").checked ? { gate_rate: Number($("rate").value) } : {};

async function refresh() {
  try {
    state = await (await api("/sideplug/state")).json();
  } catch (problem) {
    state = { ...state, error: problem.message };
  }
  const trouble = state.error ?? "";
  if ($("trouble").textContent !== trouble) tell("trouble", trouble);
  $("banner").hidden = !trouble;
  $("where").replaceChildren(short(state.model?.name ?? ""), make("span", {}, state.model ? ` at ${state.cloud}` : ""));
  const now = JSON.stringify([state.model, state.plugins]);
  if (now !== shown) {
    // else what is open or being filled in stays, while a training is followed
    shown = now;
    showModels();
    showShelf();
  }
  showTeacher();
}

// ── words, and who wrote them ────────────────────────────────────────────────────────────────────────────────────
const chances = new WeakMap(); // a token's element → of each of its tokens: what was chosen, then the best

/** Append a piece of a reply: an element for each token where that can be told. One of them is a tab stop. */
function addPiece(box, text, detail) {
  const tops = detail?.tops ?? [];
  const words = tops.map((top) => top[0]?.[0] ?? "");
  const parts = words.length > 1 && words.join("") === text ? tops.map((top, i) => [words[i], [top]]) : [[text, tops]];
  for (const [word, best] of parts) {
    if (!word) continue;
    const token = make(
      "span",
      { class: "token", "data-by": detail?.by ?? "cloud", tabindex: box.querySelector(".token") ? -1 : 0 },
      word,
    );
    chances.set(token, best);
    box.append(token);
  }
}

const visible = (text) => (text === "" ? "(end)" : text.replace(/^ /, "·").replace(/\n/g, "↵"));

function showChances(token) {
  const lists = (chances.get(token) ?? []).filter((top) => top.length);
  const rows = lists.flatMap(([own, ...best], i) => {
    const is = ([text, logp]) => text === own[0] && logp === own[1];
    const all = best.some(is) ? best : [...best, own];
    return [
      ...(lists.length > 1 ? [make("p", {}, `token ${i + 1} of ${lists.length}`)] : []),
      ...all.map((one) =>
        make(
          "div",
          { class: is(one) ? "chance chosen" : "chance", style: `--share:${(100 * Math.exp(one[1])).toFixed(1)}%` },
          make("span", {}, visible(one[0])),
          percent(Math.exp(one[1])),
        ),
      ),
    ];
  });
  const box = $("chances");
  box.replaceChildren(
    make("p", { class: "soft" }, WHY[token.dataset.by]),
    ...(rows.length ? rows : [make("p", {}, "Its alternatives were not told.")]),
  );
  box.hidden = false;
  token.setAttribute("aria-describedby", "chances");
  const at = token.getClientRects()[0] ?? token.getBoundingClientRect();
  box.style.left = `${Math.max(8, Math.min(at.left, innerWidth - box.offsetWidth - 8))}px`;
  box.style.top = `${at.top - box.offsetHeight - 8 > 8 ? at.top - box.offsetHeight - 8 : Math.min(at.bottom + 8, innerHeight - box.offsetHeight - 8)}px`;
}
const hideChances = () => {
  $("chances").hidden = true;
};
for (const kind of ["pointerover", "focusin", "click"])
  document.addEventListener(kind, (event) =>
    event.target.matches?.(".token") ? showChances(event.target) : hideChances(),
  );
document.addEventListener("scroll", hideChances, true);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    hideChances();
    busy?.abort();
  }
  const step = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" }[event.key];
  const next = step && event.target.matches(".token") && event.target[step];
  if (!next) return;
  event.preventDefault();
  event.target.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
});

/** Do something that makes the conversation longer; stay at its end if that is where the reader was. */
function keepingUp(work) {
  const log = $("log");
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
  work();
  if (atEnd) log.scrollTop = log.scrollHeight;
}

const speed = (usage) => (usage.sideplug.total_s ? usage.completion_tokens / usage.sideplug.total_s : 0);
const askedShare = (usage) =>
  (usage.sideplug.plugin_tokens + usage.sideplug.fallback) / Math.max(1, usage.completion_tokens);

function summary(got, plugin) {
  if (!got.usage) return got.stopped ? "stopped" : "";
  const cut = got.why === "length" ? "reached max tokens · " : "";
  return `${cut}${few(got.usage.completion_tokens, "token", "tokens")} · ${speed(got.usage).toFixed(0)} a second${plugin ? ` · ${percent(askedShare(got.usage))} by your plugin` : ""}`;
}

/** The legend's shares and the meters, of the reply that ended last. */
function showMeters(got) {
  const total = Object.values(got?.by ?? {}).reduce((a, b) => a + b, 0);
  $("legend")
    .querySelector("ul")
    .replaceChildren(
      ...Object.entries(WRITERS).map(([by, name]) =>
        make(
          "li",
          {},
          make("span", { "data-by": by }, name),
          make("span", {}, total ? percent((got.by[by] ?? 0) / total) : ""),
        ),
      ),
    );
  const usage = got?.usage,
    own = usage?.sideplug;
  const trips = own?.round_trips
    ? `${number(own.round_trips)} (${(usage.completion_tokens / own.round_trips).toFixed(1)} tokens each)`
    : "0";
  const rows = !own
    ? [["", "nothing yet"]]
    : [
        ["Tokens", `${number(usage.completion_tokens)}, at ${speed(usage).toFixed(1)} a second`],
        ["First after", `${(1000 * own.first_token_s).toFixed(0)} ms`],
        ["Plugin asked", got.gate === "" ? "no plugin" : `${percent(askedShare(usage))} (gate: ${got.gate})`],
        ["Round trips", trips],
        ["Down", `${number(own.bytes_down)} bytes`],
        ["Up", `${number(own.bytes_up)} bytes`],
      ];
  $("meters").replaceChildren(...rows.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
}
const gateNow = (plugin) => (!plugin ? "" : (gateRate(plugin).gate_rate?.toFixed(2) ?? "own"));

// ── chat ─────────────────────────────────────────────────────────────────────────────────────────────────────────
let busy = null; // AbortController of what is streaming
let turns = []; // {user, reply} of this conversation
let chosen = null; // the plugin's name, "" for the base, null before anybody knows

function showModels() {
  const base = short(state.model?.name ?? "the base");
  if (chosen === null && (state.model || state.plugins.length)) chosen = state.plugins.find(usable)?.name ?? "";
  if (chosen && !(found(chosen) && usable(found(chosen)))) chosen = "";
  $("model").replaceChildren(
    make("option", { value: "" }, `${base}, no plugin`),
    ...state.plugins.map((plugin) =>
      make(
        "option",
        { value: plugin.name, disabled: !usable(plugin) },
        `${base} + ${plugin.name}${usable(plugin) ? "" : " (can't be used)"}`,
      ),
    ),
  );
  $("model").value = chosen ?? "";
  $("mode").options[0].disabled = state.model?.chat === false;
  if (state.model?.chat === false) $("mode").value = "raw";
  showDial();
  showMode();
  if (!busy) showSides();
}

function showDial() {
  $("dial").hidden = !found(chosen)?.dial;
  $("rate").style.opacity = $("own-gate").checked ? 0.45 : 1;
  $("rate-now").textContent = $("own-gate").checked ? "" : Number($("rate").value).toFixed(2);
}

function showMode() {
  const raw = $("mode").value === "raw";
  $("say").placeholder = raw ? "Text to go on from" : "Ask something";
  $("send").textContent = raw ? "Go on" : "Send";
  if (!$("log").querySelector(".message")) {
    const title = raw ? "Write a beginning" : "Ask something";
    const hint = raw ? "It is continued as it stands, without a chat around it. " : "";
    const marks = chosen
      ? `What ${chosen} writes is marked; the rest is the cloud's. Point at a word, or go to it with Tab and the arrow keys, to see what else it might have been.`
      : "Teach a plugin, and what it writes will be marked here.";
    $("log").replaceChildren(make("div", { class: "empty" }, make("h2", {}, title), make("p", {}, hint + marks)));
  }
}

function setBusy(controller) {
  busy = controller;
  for (const [id, hidden] of [
    ["send", busy],
    ["run-both", busy],
    ["stop", !busy],
    ["stop-both", !busy],
  ])
    $(id).hidden = Boolean(hidden);
}

async function send(text) {
  if (!text.trim() || busy) return;
  const raw = $("mode").value === "raw";
  const plugin = chosen,
    who = short(modelName(plugin)) || "reply",
    gate = gateNow(plugin);
  const box = make("div", { class: "text" }),
    foot = make("div", { class: "foot" });
  const asked = raw
    ? ""
    : make("article", { class: "message you" }, make("h3", {}, "You"), make("div", { class: "text" }, text));
  const answer = make(
    "article",
    { class: "message" },
    make("h3", {}, raw ? `${who}, going on from your text` : who),
    box,
    foot,
  );
  if (raw) box.append(make("span", { class: "soft" }, text));
  $("log").querySelector(".empty")?.remove();
  $("log").append(asked, answer);
  $("log").scrollTop = $("log").scrollHeight;
  const history = turns.flatMap((turn) => [
    { role: "user", content: turn.user },
    { role: "assistant", content: turn.reply },
  ]);
  setBusy(new AbortController());
  const got = await reply(plugin, raw ? text : [...history, { role: "user", content: text }], box, busy.signal);
  setBusy(null);
  got.gate = gate;
  const turn = { user: text, reply: got.text, raw };
  if (got.text && !raw) turns.push(turn);
  if (got.problem) await refresh();
  keepingUp(() => {
    foot.append(make("span", {}, summary(got, plugin)));
    if (got.text) {
      foot.append(
        make(
          "button",
          {
            class: "quiet",
            onclick: (event) => {
              addLesson(turn, turn.reply);
              event.target.replaceWith(make("span", {}, "accepted: see Teach"));
            },
          },
          "Accept",
        ),
      );
      foot.append(make("button", { class: "quiet", onclick: () => correct(turn, box, foot) }, "Edit"));
    }
    if (got.problem) {
      foot.append(make("span", { class: "bad" }, state.error ? "No reply." : got.problem));
      foot.append(
        make(
          "button",
          {
            class: "quiet",
            onclick: () => {
              turns = turns.filter((one) => one !== turn);
              if (raw) answer.remove();
              else {
                asked.remove();
                answer.remove();
              }
              send(text);
            },
          },
          "Try again",
        ),
      );
    }
  });
  if (got.usage) showMeters(got);
  say(got.problem || (got.stopped ? "Stopped." : `The reply is complete: ${summary(got, plugin)}.`));
}

/** Open a reply for correction; what is kept is the conversation's from then on, and something to learn. */
function correct(turn, box, foot) {
  const area = make("textarea", {
    rows: Math.min(14, 2 + Math.ceil(turn.reply.length / 70)),
    "aria-label": "The reply as it should be",
  });
  area.value = turn.reply;
  const close = () => {
    edit.remove();
    box.hidden = foot.hidden = false;
  };
  const keep = () => {
    turn.reply = area.value;
    addLesson(turn, turn.reply);
    box.replaceChildren(...(turn.raw ? [make("span", { class: "soft" }, turn.user)] : []), turn.reply);
    foot.replaceChildren(
      make("span", {}, "corrected by you: see Teach"),
      make("button", { class: "quiet", onclick: () => correct(turn, box, foot) }, "Edit"),
    );
    close();
  };
  const edit = make(
    "div",
    {},
    area,
    make(
      "div",
      { class: "row", style: "margin-top:.4rem" },
      make("button", { class: "primary", onclick: keep }, "Keep the correction"),
      make("button", { class: "quiet", onclick: close }, "Cancel"),
    ),
  );
  box.hidden = foot.hidden = true;
  foot.after(edit);
  area.focus();
}

// ── side by side ─────────────────────────────────────────────────────────────────────────────────────────────────
const otherPlugin = () => chosen || state.plugins.find(usable)?.name || "";

function showSides() {
  if ($("sides").querySelector(".token")) return;
  $("sides").replaceChildren(
    ...["", otherPlugin()].map((plugin, i) =>
      make(
        "section",
        { "aria-label": i ? "With your plugin" : "Without a plugin" },
        make("h3", {}, i && !plugin ? "There is no plugin yet: teach one" : short(modelName(plugin))),
        make("div", { class: "text" }),
        make("div", { class: "foot" }),
      ),
    ),
  );
}

async function runBoth() {
  const text = $("both").value;
  if (!text.trim() || busy) return;
  $("sides").replaceChildren();
  showSides();
  const plugin = otherPlugin(),
    seed = Math.floor(Math.random() * 2 ** 31),
    gate = gateNow(plugin);
  const prompt = $("mode").value === "raw" ? text : [{ role: "user", content: text }];
  setBusy(new AbortController());
  const { signal } = busy;
  const all = await Promise.all(
    ["", ...(plugin ? [plugin] : [])].map(async (name, i) => {
      const [, box, foot] = $("sides").children[i].children;
      const got = await reply(name, prompt, box, signal, seed);
      foot.append(make("span", { class: got.problem ? "bad" : "" }, got.problem || summary(got, name)));
      return got;
    }),
  );
  setBusy(null);
  const last = all.at(-1),
    problem = all.find((got) => got.problem)?.problem;
  if (last.usage) showMeters({ ...last, gate });
  if (problem) await refresh();
  say(problem ?? "Both replies are complete.");
}

// ── teach ────────────────────────────────────────────────────────────────────────────────────────────────────────
let lessons = JSON.parse(sessionStorage.getItem("lessons") ?? "[]"); // {title, line}: a reply, as a line of JSON lines
let texts = []; // {name, text}: files
let sent = []; // of both, what the running training was given
let points = []; // [step, training loss, held-out loss] of it
let taught = ""; // its plugin, while this page follows it

function addLesson(turn, text) {
  const example = turn.raw
    ? { text: turn.user + text }
    : {
        messages: [
          { role: "user", content: turn.user },
          { role: "assistant", content: text },
        ],
      };
  lessons.push({ title: `${turn.user} → ${text}`, line: JSON.stringify(example) });
  showLessons();
  say("Kept to be learnt: see Teach.");
}

function showLessons() {
  sessionStorage.setItem("lessons", JSON.stringify(lessons));
  const item = (title, size, drop) =>
    make(
      "li",
      {},
      make("span", {}, title),
      make("span", { class: "hint" }, size),
      make(
        "button",
        {
          class: "quiet",
          "aria-label": `Remove ${title.slice(0, 60)}`,
          onclick: () => {
            drop();
            showLessons();
          },
        },
        "Remove",
      ),
    );
  $("lessons").replaceChildren(
    ...texts.map((file) =>
      item(file.name, few(file.text.length, "character", "characters"), () => {
        texts = texts.filter((one) => one !== file);
      }),
    ),
    ...lessons.map((lesson) =>
      item(lesson.title, "from the chat", () => {
        lessons = lessons.filter((one) => one !== lesson);
      }),
    ),
  );
  const count = texts.length + lessons.length;
  $("lessons-title").textContent = count ? "To learn from" : "Nothing to learn from yet";
  $("tab-teach").textContent = count ? `Teach (${count})` : "Teach";
  showWill();
}

function showWill() {
  const name = $("name").value.trim(),
    running = Boolean(state.teacher?.running);
  $("train").disabled = running || !state.teacher || !name || !(texts.length + lessons.length);
  $("will").textContent = !state.teacher
    ? "This gateway does not train."
    : found(name)
      ? `${name} is there: it learns this too, and is replaced only if it does no worse on what it knew.`
      : "A new plugin is made; one example in ten is held out to judge it by. More epochs learn facts better, and take longer.";
}

/** Take files as text; one that is none is refused in a sentence, and goes nowhere. */
async function takeFiles(files) {
  const refused = [];
  for (const file of files) {
    try {
      const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
      if (text.includes("\0")) throw new Error();
      texts = [...texts.filter((one) => one.name !== file.name), { name: file.name, text }];
    } catch {
      refused.push(file.name);
    }
  }
  tell(
    "refused",
    refused.length
      ? `${refused.join(", ")} ${refused.length > 1 ? "are" : "is"} not text (UTF-8), so nothing of it was taken.`
      : "",
  );
  showLessons();
}

async function train() {
  const name = $("name").value.trim();
  const files = texts.map(({ name, text }) => ({ name, text }));
  if (lessons.length) files.push({ name: "chat.jsonl", text: lessons.map((lesson) => lesson.line + "\n").join("") });
  const epochs = Math.round(Number($("epochs").value));
  try {
    const answer = await api("/sideplug/teach", {
      method: "POST",
      json: { name, files, settings: epochs ? { epochs } : {} },
    });
    [sent, taught, points] = [[...texts, ...lessons], name, []];
    tell("refused", "");
    state.teacher = await answer.json();
    showTeacher();
    $("lesson").scrollIntoView({ block: "nearest" });
  } catch (problem) {
    tell("refused", problem.message);
  }
}

let polling = 0;
function showTeacher() {
  const t = state.teacher;
  showWill();
  $("lesson").hidden = !t || !(t.running || t.line || t.error);
  if ($("lesson").hidden) return;
  $("stage").textContent = `${t.name}: ${t.running ? t.stage : t.error ? "not trained" : "done"}`;
  $("count").textContent = t.running && t.total ? `${number(t.done)} of ${number(t.total)}` : "";
  $("bar").hidden = $("halt").hidden = !t.running;
  if (!t.running) [$("halt").disabled, $("halt").textContent] = [false, "Stop training"];
  if (t.total) $("bar").value = t.done / t.total;
  else $("bar").removeAttribute("value");
  $("note").textContent = t.running ? t.note : "";
  notePoint(t);
  drawCurve();
  if (t.running) {
    taught = t.name;
    clearTimeout(polling);
    polling = setTimeout(refresh, state.error ? 2000 : 500);
    for (const id of ["outcome", "use"]) $(id).hidden = true;
  } else {
    $("outcome").textContent = t.error || t.line;
    $("outcome").className = t.error ? "bad" : "";
    $("outcome").hidden = false;
    if (taught === t.name) finished(t);
  }
}

/** A training that this page followed has ended: its plugin is taken at once. */
function finished(t) {
  taught = "";
  say(t.error || `${t.name} has learnt: ${t.line}`);
  if (t.error) return;
  if (!t.line.includes("stays as it was")) {
    [texts, lessons] = [texts, lessons].map((list) => list.filter((one) => !sent.includes(one)));
    showLessons();
  }
  if (!found(t.name) || !usable(found(t.name))) return;
  chosen = t.name;
  $("use").hidden = false;
  $("use").scrollIntoView({ block: "nearest" });
  showModels();
}

function notePoint(t) {
  const note = /loss ([\d.]+)(?:, held out ([\d.]+))?/.exec(t.note ?? "");
  if (t.losses?.length) points = t.losses;
  else if (note && (!points.length || t.done > points.at(-1)[0]))
    points.push([t.done, Number(note[1]), note[2] ? Number(note[2]) : null]);
}

function drawCurve() {
  if (points.length < 2) return $("curve").replaceChildren();
  const svg = (tag, attributes, ...children) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };
  const [width, height, left, right, foot] = [$("curve").clientWidth || 600, 150, 34, 96, 20];
  const judged = points.filter(
    ([, , held], i) => held != null && (held !== points[i - 1]?.[2] || i === points.length - 1),
  ); // once an epoch
  const lines = [points, judged].map((line, i) => line.map((point) => [point[0], point[1 + i]]));
  const values = lines.flat().map(([, loss]) => loss);
  const low = Math.min(...values),
    high = Math.max(...values, low + 0.01),
    last = Math.max(points.at(-1)[0], 1),
    first = points[0][0];
  const x = (step) => left + ((width - left - right) * (step - first)) / Math.max(1, last - first);
  const y = (loss) => 8 + ((height - foot - 8) * (high - loss)) / (high - low);
  const grid = [high, (high + low) / 2, low].flatMap((loss) => [
    svg("line", { x1: left, x2: width - right, y1: y(loss), y2: y(loss), stroke: "var(--line)" }),
    svg("text", { x: 0, y: y(loss) + 4 }, loss.toFixed(2)),
  ]);
  const drawn = [
    ["training", "var(--plugin)", ""],
    ["held out", "var(--draft)", "5 3"],
  ].flatMap(([name, colour, dash], i) =>
    !lines[i].length
      ? []
      : [
          svg("path", {
            d: "M" + lines[i].map(([step, loss]) => `${x(step).toFixed(1)} ${y(loss).toFixed(1)}`).join("L"),
            stroke: colour,
            "stroke-dasharray": dash,
          }),
        ],
  );
  const ends = lines.map((line) => line.at(-1)?.[1]);
  const apart = ends[1] != null && Math.abs(y(ends[0]) - y(ends[1])) < 14 ? (ends[0] > ends[1] ? -7 : 7) : 0; // so that the labels don't lie on each other
  const labels = ["training", "held out"].flatMap((name, i) =>
    ends[i] == null
      ? []
      : [
          svg(
            "text",
            {
              x: width - right + 6,
              y: y(ends[i]) + 4 + (i ? -apart : apart),
              fill: i ? "var(--draft)" : "var(--plugin)",
            },
            `${name} ${ends[i].toFixed(2)}`,
          ),
        ],
  );
  const title = `Loss by step: ${["training", "held out"]
    .map((name, i) => (ends[i] == null ? "" : `${name} ${ends[i].toFixed(2)}`))
    .filter(Boolean)
    .join(", ")}`;
  $("curve").replaceChildren(
    svg(
      "svg",
      { class: "curve", width, height, role: "img", "aria-label": title },
      ...grid,
      ...drawn,
      ...labels,
      svg("text", { x: left, y: height - 2 }, "nats a token, by step"),
    ),
  );
}

// ── plugins ──────────────────────────────────────────────────────────────────────────────────────────────────────
const where = (name) => `/sideplug/plugins/${encodeURIComponent(name)}`;
const phraseHeader = (phrase) => (phrase ? { "X-Passphrase": encodeURIComponent(phrase) } : {});

/** Change the shelf, then show it; what goes wrong is told above it. */
async function change(work, done) {
  try {
    await work();
    tell("plugin-trouble", "");
    await refresh();
    say(done);
    return true;
  } catch (problem) {
    tell("plugin-trouble", problem.message);
    return false;
  }
}

function showShelf() {
  $("none").hidden = state.plugins.length > 0;
  $("shelf").replaceChildren(...state.plugins.map(card));
  $("names").replaceChildren(
    ...state.plugins.filter((plugin) => plugin.own !== false).map((plugin) => make("option", { value: plugin.name })),
  );
}

function card(plugin) {
  const { name, about = {} } = plugin,
    own = plugin.own !== false;
  const facts = [
    plugin.parameters && few(plugin.parameters, "parameter", "parameters"),
    plugin.base && `for ${short(plugin.base)}`,
    about.examples && few(about.examples, "example", "examples"),
    about.base_loss != null &&
      about.best_loss != null &&
      `held-out loss ${about.base_loss.toFixed(3)} → ${about.best_loss.toFixed(3)}`,
    plugin.sealed && "sealed",
  ];
  const notes = [
    plugin.error,
    plugin.fits === false && "It was made for another base, so it can't be used with this one.",
    !own && "It lies elsewhere, so it is not renamed or deleted from here.",
  ];
  const question = make("div", { class: "row" });
  const close = () => question.replaceChildren();
  /** A question below the plugin: a field or a sentence, a button that does it, one that does not. */
  const ask = (what, verb, work, kind = "primary") => {
    question.replaceChildren(
      what,
      make("button", { class: kind, onclick: work }, verb),
      make("button", { class: "quiet", onclick: close }, "Cancel"),
    );
    question.querySelector("input, button").focus();
  };
  const rename = () => {
    const input = make("input", {
      "aria-label": `New name of ${name}`,
      value: name,
      maxlength: 64,
      spellcheck: "false",
    });
    ask(input, "Rename", () =>
      change(async () => {
        await api(where(name), { method: "PATCH", json: { name: input.value.trim() } });
        if (chosen === name) chosen = input.value.trim();
        if (state.plugins.every((one) => one.name !== chosen)) state.plugins.push({ ...plugin, name: chosen });
      }, `${name} is ${input.value.trim()} now.`),
    );
  };
  const save = () => {
    const input = make("input", {
      type: "password",
      "aria-label": `Passphrase for the file of ${name}, or none`,
      placeholder: "passphrase, or none",
      autocomplete: "new-password",
    });
    ask(input, "Save the file", async () => {
      const saved = await change(async () => {
        const file = await (await api(where(name), { headers: phraseHeader(input.value) })).blob();
        const link = make("a", { href: URL.createObjectURL(file), download: `${name}.sideplug` });
        link.click();
        setTimeout(() => URL.revokeObjectURL(link.href), 10000);
      }, `${name}.sideplug is saved.`);
      if (saved) close();
    });
  };
  const remove = () =>
    ask(
      `Delete ${name}, with all that it was made from?`,
      "Delete for good",
      () => change(() => api(where(name), { method: "DELETE" }), `${name} is deleted.`),
      "danger",
    );
  const act = (verb, work, can = true) =>
    make("button", { class: "quiet", "aria-label": `${verb} ${name}`, disabled: !can, onclick: work }, verb);
  return make(
    "li",
    { class: "card", "data-plugin": name },
    make(
      "div",
      { class: "row" },
      make("h3", {}, name),
      make(
        "span",
        { class: "end row" },
        act(
          "Use",
          () => {
            chosen = name;
            showModels();
            openTab("chat");
            $("say").focus();
          },
          usable(plugin),
        ),
        act("Rename", rename, own),
        act("Export", save, !plugin.error),
        act("Delete", remove, own),
      ),
    ),
    make("p", { class: "soft" }, facts.filter(Boolean).join(" · ")),
    ...notes.filter(Boolean).map((note) => make("p", { class: "hint bad" }, note)),
    question,
  );
}

async function bringIn() {
  const [file] = $("file").files,
    name = $("file-name").value.trim();
  const done = await change(async () => {
    if (!name) throw new Error("Give the plugin a name.");
    await api(where(name), { method: "PUT", headers: phraseHeader($("file-phrase").value), body: file });
  }, `${name} is here.`);
  if (!done) return;
  for (const id of ["file", "file-name", "file-phrase"]) $(id).value = "";
  $("file-chosen").textContent = "";
  $("import").disabled = true;
}

// ── what left ────────────────────────────────────────────────────────────────────────────────────────────────────
async function look() {
  let found;
  $("whose").textContent = "Reading the messages …";
  try {
    found = await (await api("/sideplug/audit")).json();
  } catch (problem) {
    $("whose").textContent = problem.message;
    return say(problem.message);
  }
  const session = found.plugin ? `the session with ${found.plugin}` : "the session without a plugin";
  $("whose").textContent =
    `All messages between this device and the cloud in ${session} that replied last, byte for byte.` +
    (found.dropped
      ? ` ${few(found.dropped, "older message is", "older messages are")} no longer in memory, and not counted.`
      : "");
  // The report's own sentences; its tables (indented, or under a heading) stand below as tables.
  const verdict = found.lines.filter((line) => /^\S.*\.$/.test(line) && !(line.startsWith("Whether") && !found.plugin));
  $("verdict").replaceChildren(
    ...verdict.map((line) => make("li", { class: /^(NOT|PARAM)/.test(line) ? "bad" : "" }, line)),
  );
  const saw = Object.entries(found.text).map(([what, size]) => make("li", {}, `${number(size)} ${what}`));
  $("saw").replaceChildren(...(saw.length ? saw : [make("li", {}, "nothing")]));
  const cells = (row) => [
    row.direction,
    row.kind,
    number(row.frames),
    number(row.bytes),
    Object.entries(row.parts)
      .filter(([, size]) => size)
      .sort((a, b) => b[1] - a[1])
      .map(([part, size]) => `${part} ${number(size)}`)
      .join(", "),
  ];
  const line = (tag, values) =>
    make("tr", {}, ...values.map((value, i) => make(tag, { class: i === 2 || i === 3 ? "number" : "" }, value)));
  $("rows").replaceChildren(
    make(
      "table",
      {},
      make("thead", {}, line("th", ["Way", "Kind", "Messages", "Bytes", "Of which"])),
      make("tbody", {}, ...found.rows.map((row) => line("td", cells(row)))),
    ),
  );
  $("report").textContent = found.lines.join("\n");
}

// ── the page ─────────────────────────────────────────────────────────────────────────────────────────────────────
const tabs = [...document.querySelectorAll("[role=tab]")];

function openTab(name) {
  hideChances();
  for (const tab of tabs) {
    const open = tab.getAttribute("aria-controls") === name;
    tab.setAttribute("aria-selected", open);
    tab.tabIndex = open ? 0 : -1;
    $(tab.getAttribute("aria-controls")).hidden = !open;
  }
  document.querySelector("aside").hidden = !["chat", "compare"].includes(name);
  if (name === "left") look();
  if (name === "teach") drawCurve(); // as wide as it is now
}

for (const [i, tab] of tabs.entries()) {
  tab.addEventListener("click", () => openTab(tab.getAttribute("aria-controls")));
  tab.addEventListener("keydown", (event) => {
    const to = { ArrowRight: i + 1, ArrowLeft: i - 1 + tabs.length, Home: 0, End: tabs.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    tabs[to % tabs.length].focus();
    tabs[to % tabs.length].click();
  });
}

const on = (id, kind, work) => $(id).addEventListener(kind, work);
const sendSaid = () => {
  if (busy || !$("say").value.trim()) return;
  const text = $("say").value;
  $("say").value = "";
  send(text);
};
for (const [id, work] of [
  ["say", sendSaid],
  ["both", runBoth],
])
  on(id, "keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    work();
  });
on("send", "click", sendSaid);
on("run-both", "click", runBoth);
for (const id of ["stop", "stop-both"]) on(id, "click", () => busy?.abort());
on("fresh", "click", () => {
  busy?.abort();
  turns = [];
  $("log").replaceChildren();
  showMode();
  $("say").focus();
});
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
on("name", "input", showWill);
on("files", "change", async () => {
  await takeFiles($("files").files);
  $("files").value = "";
});
for (const kind of ["dragover", "dragleave", "drop"])
  document.addEventListener(kind, (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return; // words that are dragged into a field
    event.preventDefault(); // else the browser would leave this page for the file
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind !== "drop") return;
    openTab("teach");
    takeFiles(event.dataTransfer.files);
  });
on("train", "click", train);
on("halt", "click", () => {
  [$("halt").disabled, $("halt").textContent] = [true, "Stopping …"];
  api("/sideplug/teach", { method: "DELETE" }).catch((problem) => tell("refused", problem.message));
});
on("use", "click", () => {
  openTab("chat");
  $("say").focus();
});
on("file", "change", () => {
  const [file] = $("file").files;
  $("import").disabled = !file;
  $("file-chosen").textContent = file ? `${file.name}, ${number(file.size)} bytes` : "";
  if (file && !$("file-name").value) $("file-name").value = file.name.replace(/\.sideplug$/, "");
});
on("bring", "submit", (event) => {
  event.preventDefault();
  bringIn();
});
on("look", "click", look);

const narrow = matchMedia("(max-width: 760px)");
const fold = () => {
  $("controls").open = !narrow.matches;
};
narrow.addEventListener("change", fold);
fold();
showMeters(null);
showLessons();
showMode();
refresh().then(() => {
  if (!narrow.matches && document.activeElement === document.body) $("say").focus();
});
