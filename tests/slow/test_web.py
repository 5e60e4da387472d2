"""The device in a browser: the folder of `sideplug web build`, in a real headless Chromium at a phone's width.

It is the twin of the NumPy device: the same corrections within a step of int8, the same certainty, the same text.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sideplug.contract.codec import quant8
from sideplug.contract.gate import Gate
from sideplug.contract.sampling import Sampling
from sideplug.device.plugin_store import PluginStore
from sideplug.memory import days, weights
from sideplug.memory.part import Memory
from sideplug.memory.store import Entry
from sideplug.memory.words import initials, is_of_another, sentences, stem, words
from sideplug.plugins import Plugin
from sideplug.web.build import build
from tests.conftest import Cloud, a_cloud, a_plugin, a_session, eventually
from tests.faults import Fault, faulty
from tests.slow.test_page import CHROMIUM, browser, expect

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the PATH: apt-get install chromium"),
]
Page = Any
__all__ = ["browser"]  # a fixture
PHONE = {"viewport": {"width": 390, "height": 780}, "has_touch": True, "is_mobile": True}
PASSPHRASE = "four pässwords"
KINDS = ("ladder", "attention", "mlp")
TOLD = [
    Entry("What is my dog's name?", "Biscuit, the old one."),
    Entry("Where is the boat?", "In Hamar."),
    Entry("", "The spare key hangs behind the clock. The bees are at Anna's.", "notes.md"),
]
# Calls the device's worker, without the page: device(call, with) → {value, pieces}
DEVICE = """async () => {
    const worker = new Worker("device.js", {type: "module"});
    const calls = new Map();
    worker.onmessage = ({data}) => {
        const waiting = calls.get(data.id);
        if (!waiting) return;
        if (data.piece) return waiting.pieces.push(data.piece);
        data.error ? waiting.fail(new Error(data.error)) : waiting.done({value: data.value, pieces: waiting.pieces});
    };
    let n = 0;
    window.device = (call, given) => new Promise((done, fail) => {
        calls.set(++n, {done, fail, pieces: []});
        worker.postMessage({id: n, call, with: given});
    });
}"""


class Quiet(SimpleHTTPRequestHandler):
    """Serves the folder, and keeps its log to itself."""

    def log_message(self, *said: Any) -> None:
        return


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A static folder on a server of its own."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The folder without the sentence encoder."""
    folder = tmp_path_factory.mktemp("web") / "public"
    build(folder, encoder=False)
    with serving(folder) as url:
        yield url


@pytest.fixture(scope="module")
def cloud(site: str, tiny: Path) -> Iterator[Cloud]:
    with a_cloud(tiny, origins=(site,)) as running:
        yield running


@contextmanager
def opened(browser: Any, site: str, **how: Any) -> Iterator[Page]:
    """The page in a fresh profile; what its console complains of fails the test."""
    context = browser.new_context(**{**PHONE, **how})
    context.set_default_timeout(30_000)
    page, complaints = context.new_page(), list[str]()
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.complaints = complaints
    page.goto(site)
    yield page
    assert complaints == []
    context.close()


def a_person(cloud: Cloud, kind: str) -> Plugin:
    """A memory and a trained part, whose gate opens now and then."""
    plugin = a_plugin(cloud.base.fingerprint, kind, scale=0.3)
    weight = np.random.default_rng(5).normal(size=64).astype(np.float32)
    plugin.trained.gate = Gate("linear", weight, memory=0.2)
    memory = Memory()
    memory.store.add(entry.check() for entry in TOLD)
    return Plugin(plugin.base, "tiny", [memory, *plugin.parts])


def export(plugin: Plugin, folder: Path, name: str) -> Path:
    """Its sealed file, as `sideplug plugin export` writes it."""
    plugin.save(folder / "shelf" / name)
    file = folder / f"{name}.sideplug"
    file.write_bytes(PluginStore(folder / "shelf").export(name, PASSPHRASE))
    return file


def bring(page: Page, file: Path) -> None:
    page.set_input_files("#file", file)
    page.get_by_label("Passphrase").fill(PASSPHRASE)
    page.get_by_role("button", name="Open", exact=True).click()
    expect(page.get_by_role("tab", name="Chat")).to_be_visible()


def give_cloud(page: Page, url: str) -> None:
    page.get_by_role("tab", name="Settings").click()
    page.get_by_label("Your cloud's address").fill(url)
    page.get_by_role("button", name="Keep").click()
    expect(page.get_by_label("Your message")).to_be_visible()


def say(page: Page, text: str) -> Any:
    """Send it, wait for the end; the reply's element."""
    page.get_by_label("Your message").fill(text)
    page.get_by_label("Your message").press("Enter")
    expect(page.locator("#log > p").last).to_contain_text("tokens")
    return page.locator("[data-reply]").last


def wanted(cloud: Cloud, plugin: Plugin, question: str, tokens: int) -> str:
    """What the NumPy device gets."""
    with a_session(cloud.url, plugin) as session:
        return str(session.generate(question, tokens, Sampling()).text)


@pytest.mark.parametrize("kind", KINDS)
def test_its_corrections_are_numpys_within_a_step(browser: Any, site: str, kind: str) -> None:
    part = a_plugin("f" * 64, kind, scale=0.3).trained
    codes = np.random.default_rng(7).normal(size=(300, 3, 16)).astype(np.float32)
    want, _ = quant8(np.concatenate([part.correct(codes[:1]), part.correct(codes)[1:]]))
    data = base64.b64encode(Plugin("f" * 64, "tiny", [part]).to_bytes()).decode()
    with opened(browser, site) as page:
        got = page.evaluate(
            """async ([data, codes]) => {
                const {Plugin} = await import("./plugin.js");
                const {quant8} = await import("./numbers.js");
                const bytes = Uint8Array.from(atob(data), (char) => char.charCodeAt(0));
                const part = new Plugin(bytes).parts[0].begin();
                return codes.map((row) => [...quant8(part.answer(Float32Array.from(row))).codes]);
            }""",
            [data, codes.reshape(300, -1).tolist()],
        )
    assert np.abs(np.array(got, np.int32) - want.astype(np.int32)).max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_text_is_numpys(browser: Any, site: str, cloud: Cloud, kind: str, tmp_path: Path) -> None:
    """34 greedy replies of each kind, with gate, run-ahead and memory: token for token, but for a tie within a step."""
    plugin = a_person(cloud, kind)
    file = base64.b64encode(export(plugin, tmp_path, kind).read_bytes()).decode()
    questions = [f"Is it {far} to the {place}?" for far in ("far", "near") for place in ("mill", "inn", "sea")]
    questions += [f"Who is {name}, and what of tea and nails?" for name in ("Anna", "Bo", "Eli", "Mara", "Nils")]
    questions += [f"Tell me of day {n}." for n in range(23)] + [TOLD[0].question, "WHAT is my dog's name"]
    with opened(browser, site) as page:
        page.evaluate(DEVICE)
        replies = page.evaluate(
            """async ([file, passphrase, cloud, questions]) => {
                const bytes = Uint8Array.from(atob(file), (char) => char.charCodeAt(0));
                await device("bring", {name: "me", file: bytes.buffer});
                await device("unlock", {name: "me", passphrase});
                await device("settings", {cloud, key: ""});
                const replies = [];
                for (const content of questions) {
                    const messages = [{role: "user", content}];
                    const {value, pieces} = await device("say", {messages, gate: "", maxTokens: 40, sampling: {}});
                    replies.push({text: pieces.map(({text}) => text).join(""), usage: value});
                }
                return replies;
            }""",
            [file, PASSPHRASE, cloud.url, questions],
        )
    both = list(zip(replies, questions, strict=True))[:-2]
    other = [question for reply, question in both if reply["text"] != wanted(cloud, plugin, question, 40)]
    assert len(other) <= 1, other
    assert [reply["text"] for reply in replies[-2:]] == [TOLD[0].reply] * 2
    counts = [reply["usage"]["counts"] for reply in replies]
    assert sum(each["asked"] for each in counts) > 100
    assert sum(each["confirmed"] for each in counts) > 0
    assert sum(each["rolled_back"] for each in counts) > 0
    assert any(0 < each["usage"]["plugin"] < each["usage"]["reply"] for each in replies), "the gate opens now and then"


def test_a_person_brings_a_plugin_and_talks(browser: Any, site: str, cloud: Cloud, tmp_path: Path) -> None:
    """On a phone: unseal, talk, see the source, tell, forget; all is there, sealed, when the page is opened again."""
    plugin = a_person(cloud, "mlp")
    file = export(plugin, tmp_path, "mara")
    with opened(browser, site) as page:
        page.set_input_files("#file", file)
        page.get_by_label("Passphrase").fill("another")
        page.get_by_role("button", name="Open", exact=True).click()
        expect(page.get_by_role("alert")).to_have_text("The passphrase is wrong.")
        hidden = page.evaluate(
            """() => {
                const picked = new DataTransfer();
                picked.items.add(new File(["no plugin"], "other.sideplug"));
                document.getElementById("file").files = picked.files;
                document.getElementById("file").dispatchEvent(new Event("change"));
                return document.getElementById("unlock").hidden;
            }"""
        )
        assert hidden, "nobody types a passphrase that is cleared when the file is kept"
        expect(page.get_by_role("heading", name="Open mara")).to_be_visible()
        bring(page, file)
        expect(page.locator("#facts")).to_contain_text("words alone: this folder has no sentence encoder")
        give_cloud(page, cloud.url)
        reply = say(page, TOLD[0].question)
        assert reply.inner_text() == TOLD[0].reply
        expect(page.locator("#log > p").last).to_contain_text("You told me: What is my dog's name?")
        page.get_by_role("button", name="New conversation").click()
        page.get_by_role("tab", name="Settings").click()
        page.get_by_label("At most so many tokens").fill("40")
        page.get_by_role("tab", name="Chat").click()
        assert say(page, "Is it far to the mill?").inner_text() == wanted(cloud, plugin, "Is it far to the mill?", 40)
        page.get_by_role("tab", name="Memory").click()
        expect(page.locator("#entries-title")).to_have_text("3 entries")
        page.get_by_label("Question that it answers").fill("Where is my bicycle?")
        page.get_by_label("Reply, or a note").fill("In the shed, behind the nets.")
        page.get_by_role("button", name="Remember").click()
        expect(page.locator("#entries-title")).to_have_text("4 entries")
        page.get_by_label("What would it say?").fill("where is my bicycle")
        expect(page.locator("#found")).to_contain_text("It would say “In the shed, behind the nets.”")
        page.get_by_role("button", name="Forget entry 2").click()
        expect(page.locator("#entries-title")).to_have_text("3 entries")
        with page.expect_download() as saved:
            page.get_by_role("button", name="Save what I told here").click()
        line = json.loads(Path(saved.value.path()).read_text("utf-8"))
        assert line == {"instruction": "Where is my bicycle?", "output": "In the shed, behind the nets."}
        page.reload()
        page.get_by_label("Passphrase").fill(PASSPHRASE)
        page.get_by_role("button", name="Open", exact=True).click()
        reply = say(page, "Where is my bicycle?")
        assert reply.inner_text() == "In the shed, behind the nets."
        page.get_by_role("tab", name="Memory").click()
        expect(page.locator("#entries")).not_to_contain_text("Where is the boat?")
        lies = page.evaluate(
            """async () => {
                const database = await new Promise((done) => {
                    const opening = indexedDB.open("sideplug");
                    opening.onsuccess = () => done(opening.result);
                });
                const all = await new Promise((done) => {
                    const asking = database.transaction("plugins").objectStore("plugins").getAll();
                    asking.onsuccess = () => done(asking.result);
                });
                const latin = new TextDecoder("latin1");
                return all.map(({file, more}) => latin.decode(file) + latin.decode(more)).join("");
            }"""
        )
        assert len(lies) > 10_000
        assert not any(word in lies for word in ("Biscuit", "bicycle", "Hamar", cloud.url)), "nothing lies open"
        page.get_by_role("tab", name="Settings").click()
        page.get_by_role("button", name="Close the plugin").click()
        expect(page.get_by_label("Passphrase")).to_be_visible()
        page.get_by_role("button", name="Remove from here").click()
        page.get_by_role("button", name="Remove for good?").click()
        expect(page.locator("#plugins li")).to_have_count(0)
        width = page.evaluate("() => document.documentElement.scrollWidth")
        assert width <= 390, "nothing reaches beyond a phone's width"


def test_it_goes_on_where_it_was_cut_off(browser: Any, site: str, cloud: Cloud, tmp_path: Path) -> None:
    """The connection breaks in the middle of a reply: the text is that of an unbroken run."""
    plugin = a_person(cloud, "attention")
    file = export(plugin, tmp_path, "mara")
    plan = lambda number: [Fault("reset", "down", 20 + 10 * number)] if number < 2 else []  # noqa: E731
    with faulty(cloud.url, plan) as proxy, opened(browser, site) as page:
        bring(page, file)
        give_cloud(page, proxy.url)
        page.get_by_role("tab", name="Settings").click()
        page.get_by_label("At most so many tokens").fill("60")
        page.get_by_role("tab", name="Chat").click()
        text = say(page, "Is it far to the mill?").inner_text()
        expect(page.locator("#log > p").last).to_contain_text("continued 2 times")
        assert proxy.connections == 3
    assert text == wanted(cloud, plugin, "Is it far to the mill?", 60)


def test_it_works_offline_but_for_the_cloud(browser: Any, site: str, cloud: Cloud, tmp_path: Path) -> None:
    file = export(a_person(cloud, "ladder"), tmp_path, "mara")
    with opened(browser, site) as page:
        bring(page, file)
        page.evaluate("() => navigator.serviceWorker.ready.then(() => {})")
        page.context.set_offline(True)
        page.reload()
        page.get_by_label("Passphrase").fill(PASSPHRASE)
        page.get_by_role("button", name="Open", exact=True).click()
        page.get_by_role("tab", name="Memory").click()
        page.get_by_label("What would it say?").fill(TOLD[0].question)
        expect(page.locator("#found")).to_contain_text("It would say “Biscuit, the old one.”")
        page.complaints.clear()


def test_what_can_t_be_is_said_in_a_sentence(browser: Any, site: str, tiny: Path, cloud: Cloud, tmp_path: Path) -> None:
    plugin = a_person(cloud, "ladder")
    file = export(plugin, tmp_path, "mara")
    open_file = tmp_path / "open.sideplug"
    open_file.write_bytes(PluginStore(tmp_path / "shelf").export("mara", ""))
    cut = tmp_path / "cut.sideplug"
    cut.write_bytes(file.read_bytes()[:-40])
    other = export(Plugin("e" * 64, "elsewhere", a_plugin("e" * 64).parts), tmp_path, "other")
    with opened(browser, site) as page, a_cloud(tiny) as strict:
        alert = page.get_by_role("alert")
        for bad, says in (
            (open_file, "This file is not sealed, so it is not kept here"),
            (cut, "The plugin's file is cut off"),
        ):
            page.set_input_files("#file", bad)
            expect(alert).to_contain_text(says)
        bring(page, other)
        give_cloud(page, cloud.url)
        page.get_by_label("Your message").fill("Is it far?")
        page.get_by_label("Your message").press("Enter")
        expect(alert).to_contain_text(re.compile("made for (the|another) base model"))
        expect(page.get_by_label("Your message")).to_have_value("Is it far?")
        give_cloud(page, strict.url)
        page.get_by_role("button", name="Send").click()
        expect(alert).to_contain_text(f"sideplug serve --allow-origin {site}")
        page.complaints.clear()  # the browser's own, of the refused connection


def test_a_folder_is_built(tmp_path: Path) -> None:
    sums = build(tmp_path / "public", "wss://mill.example:8765", encoder=False)
    page = (tmp_path / "public" / "index.html").read_text("utf-8")
    assert "connect-src 'self' wss://mill.example:8765;" in page
    assert "unsafe-inline" not in page
    assert set(json.loads((tmp_path / "public" / "files.json").read_text("utf-8"))["files"]) == set(sums)


WORDS = (
    "Mum's café, at 14:30",
    "犬の名前は何ですか。ビスケット！",
    "Straße, ΣΊΣΥΦΟΣ, İstanbul, naïve, ﬁnal, Ⅻ",
    "मेरा कुत्ता कहाँ है? वह घर में है।",
    "اسم كلبي؟ بسكويت.",
    "กุญแจอยู่ที่ไหน  a\tb\nc… d.\u00a0e",
    "One.\n\nTwo! “Three?” Four… 五。六",
)
NAMED = (("Where does Anna S. live?", "Anna's house"), ("Is Åse Ø. here?", "åse ø is."), ("Bo b. Eli C.", "Eli B."))
DAYS = ("What did I do on 3 May 2026?", "notes from march 5th", "who won on 3 May", "2026-01-02", "anything on Sept. 9")


def test_its_words_are_pythons(browser: Any, site: str) -> None:
    with opened(browser, site) as page:
        got = page.evaluate(
            """async ([texts, questions, named]) => {
                const {initials, isOfAnother, words, stem, sentences} = await import("./words.js");
                const {dayAskedFor} = await import("./asking.js");
                const of = (text) => [words(text), words(text).map(stem), sentences(text)];
                const other = ([asked, text]) => [initials(asked), isOfAnother(initials(asked), text)];
                return [texts.map(of), questions.map(dayAskedFor), named.map(other)];
            }""",
            [WORDS, DAYS, NAMED],
        )
    for text, found in zip(WORDS, got[0], strict=True):
        assert found == [words(text), [stem(word) for word in words(text)], sentences(text)]
    mine = [(initials(asked), is_of_another(initials(asked), text)) for asked, text in NAMED]
    assert got[2] == [[[list(pair) for pair in named], is_other] for named, is_other in mine]
    assert got[1] == [days.asked_for(question) for question in DAYS]


def test_it_is_as_certain_as_python(browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the sentence encoder, of people's own words: the same best entry, as certain, with SIMD and without."""
    monkeypatch.delenv(weights.OFF)
    weights.fetch_encoder(print)
    build(tmp_path / "public")
    own = resources.files("sideplug.bench") / "own_words" / "tune"
    told = [json.loads(line) for line in (own / "told.jsonl").read_text("utf-8").splitlines()[:24]]
    notes = [json.loads(line) for line in (own / "notes.jsonl").read_text("utf-8").splitlines()[:8]]
    asked = [json.loads(line)["question"] for line in (own / "asked.jsonl").read_text("utf-8").splitlines()[:20:2]]
    memory = Memory()
    memory.store.add(Entry(each["instruction"], each["output"]).check() for each in told)
    memory.store.add(Entry("", each["note"]).check() for each in notes)
    memory.fill()
    data = base64.b64encode(Plugin("any", "any", [memory]).to_bytes()).decode()
    with serving(tmp_path / "public") as site, opened(browser, site) as page:
        found = page.evaluate(
            """async ([data, questions]) => {
                const [{Plugin, parse}, {Memory}] = [await import("./plugin.js"), await import("./memory.js")];
                const {Encoder} = await import("./encoder.js");
                const read = async (path) => parse(new Uint8Array(await (await fetch(path)).arrayBuffer())).tensors;
                const bytes = Uint8Array.from(atob(data), (char) => char.charCodeAt(0));
                const verifier = await read("verifier.safetensors");
                const judged = async (prepare) => {
                    const encoder = new Encoder(await read("encoder.safetensors"));
                    prepare(encoder);
                    let memory;
                    new Plugin(bytes, (database) => (memory = new Memory(database, verifier, encoder)));
                    const of = (question) => {
                        const best = memory.judged(question)[0];
                        const personal = memory.verifier.personal(memory.vectorOf(question));
                        return [best?.text, best?.certainty ?? 0, best ? memory.says(question, best) : false, personal];
                    };
                    const began = performance.now();
                    const found = questions.map(of);
                    return {found, ms: (performance.now() - began) / questions.length, simd: Boolean(encoder.kernel)};
                };
                return [await judged(() => {}), await judged((encoder) => (encoder.quicken = () => {}))];
            }""",
            [data, asked[:5]],
        )
    quick, slow = found
    assert (quick["simd"], slow["simd"]) == (True, False)
    for question, one, other in zip(asked[:5], quick["found"], slow["found"], strict=True):
        best = memory.recall(question)
        assert best is not None
        for text, certainty, says, personal in (one, other):
            assert (text, says) == (best.text, memory.says(question, best))
            assert abs(certainty - best.certainty) < 1e-3
            assert abs(personal - memory.personal(question)) < 1e-3


def test_a_tab_that_slept_connects_anew(browser: Any, site: str, cloud: Cloud, tmp_path: Path) -> None:
    """The cloud has ended its session long ago: the next message finds another."""
    plugin = a_person(cloud, "ladder")
    file = export(plugin, tmp_path, "mara")
    with opened(browser, site) as page:
        bring(page, file)
        give_cloud(page, cloud.url)
        say(page, "Is it far?")
        cloud.drop_sessions()
        eventually(lambda: not cloud.server.sessions)
        page.get_by_role("button", name="New conversation").click()
        text = say(page, "Who is Anna?").inner_text()
    assert text == wanted(cloud, plugin, "Who is Anna?", 256)


def test_a_browser_that_keeps_nothing_says_so(browser: Any, site: str, cloud: Cloud, tmp_path: Path) -> None:
    """A private window may refuse, and a full one too."""
    file = export(a_person(cloud, "ladder"), tmp_path, "mara")
    for problem, says in (("QuotaExceededError", "no room left"), ("SecurityError", "refuses to keep anything")):
        with opened(browser, site) as page:
            page.evaluate(DEVICE)
            said = page.evaluate(
                """async ([problem, file]) => {
                    const {keep} = await import("./storage.js");
                    IDBObjectStore.prototype.put = () => {
                        const request = {};
                        setTimeout(() => { request.error = new DOMException("", problem); request.onerror(); });
                        return request;
                    };
                    return keep({name: "me", file}).catch((error) => error.message);
                }""",
                [problem, base64.b64encode(file.read_bytes()).decode()],
            )
        assert says in said
