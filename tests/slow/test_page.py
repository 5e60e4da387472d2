"""The page in a real Chromium, on a real gateway and a real cloud, each a process of its own, with a tiny random model.

Needs the package playwright and a chromium on the PATH (Debian's; `playwright install` is not wanted).
Run: pytest -m slow tests/slow/test_page.py
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import make_folder
from tests.path_proxy import a_path_proxy
from tests.tiny_model import TEXT

playwright = pytest.importorskip("playwright.sync_api", reason="the page is driven by the package playwright")
expect, Page = playwright.expect, Any
expect.set_options(
    timeout=30_000
)  # a machine that does other work besides opens a sealed plugin in more than five seconds
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the PATH: apt-get install chromium"),
]
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync"]
TABS = ("chat", "compare", "memory", "training", "plugins", "left")
NAME = "anna"


# ── the processes ────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def running(cache: Path, *arguments: Any) -> Iterator[tuple[dict[str, Any], subprocess.Popen[str]]]:
    """A sideplug process, and what it says about itself."""
    command = [sys.executable, "-m", "sideplug", *map(str, arguments), "--port", "0", "--json"]
    environment = {**os.environ, "SIDEPLUG_CACHE": str(cache), "SIDEPLUG_NO_ENCODER": "1"}  # nothing is fetched
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline()), process
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    room = tmp_path_factory.mktemp("page")
    make_folder(room / "tiny")
    return room


@pytest.fixture(scope="module")
def cloud(room: Path) -> Iterator[str]:
    with running(room / "cache", "serve", room / "tiny") as (about, _):
        yield about["url"]


@pytest.fixture(scope="module")
def url(room: Path, cloud: str) -> Iterator[str]:
    with running(room / "cache", "gateway", "--plugins", room / "shelf", "--cloud", cloud) as (about, _):
        yield about["url"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, url: str, complaints: list[str], **how: Any) -> Iterator[Page]:
    """The page in a fresh profile. Errors of its console, and requests to anywhere else, become complaints."""
    context = browser.new_context(**{"viewport": {"width": 1100, "height": 720}, **how})
    context.set_default_timeout(20_000)
    page = context.new_page()

    def asked(request: Any) -> None:
        if not request.url.startswith((url, "data:", f"blob:{url}")):
            complaints.append(f"a request to {request.url}")

    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", asked)
    page.goto(url)
    yield page
    context.close()


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    """What no page may do; a test that provokes one takes it out."""
    found: list[str] = []
    yield found
    assert found == []


@pytest.fixture
def page(browser: Any, url: str, complaints: list[str]) -> Iterator[Page]:
    with opened(browser, url, complaints) as page:
        expect(page.locator("#model")).to_contain_text("tiny")
        yield page


# ── what a person does ───────────────────────────────────────────────────────────────────────────────────────────────


def ask(page: Page, text: str, tokens: int = 24) -> Any:
    """Send it, wait for the end; the reply's element."""
    page.get_by_label("Max tokens").fill(str(tokens))
    page.get_by_label("Your message").fill(text)
    page.get_by_label("Your message").press("Enter")
    reply = page.locator(".message:not(.you)").last
    expect(reply.get_by_text(re.compile("tokens? ·"))).to_be_visible()
    return reply


def turn_dial(page: Page, to: str) -> None:
    page.locator("#rate").fill(to)
    expect(page.get_by_label("the plugin's own")).not_to_be_checked()


def written_by(reply: Any) -> list[str]:
    return [token.get_attribute("data-by") for token in reply.locator(".token").all()]


def drop(page: Page, name: str, data: bytes, where: str = "#drop") -> None:
    dropped = page.evaluate_handle(
        """([name, bytes]) => {
            const carried = new DataTransfer();
            carried.items.add(new File([new Uint8Array(bytes)], name));
            return carried;
        }""",
        [name, list(data)],
    )
    page.dispatch_event(where, "drop", {"dataTransfer": dropped})


def take(page: Page, verb: str = "Learn from") -> None:
    """Take what is shown of files."""
    page.get_by_role("dialog").get_by_role("button", name=re.compile(verb)).click()


@pytest.fixture(scope="module")
def trained(browser: Any, url: str) -> dict[str, Any]:
    """A plugin made on the page, of files dropped and chosen, of replies accepted and corrected; what was seen."""
    seen: dict[str, Any] = {"complaints": [], "notes": set()}
    with opened(browser, url, seen["complaints"]) as page:
        ask(page, "Is it far?").get_by_role("button", name="Accept").click()
        reply = ask(page, "Who is Anna?")
        reply.get_by_role("button", name="Edit").click()
        page.get_by_label("The reply as it should be").fill("Anna packs nails, honey and tea.")
        page.get_by_role("button", name="Add to training").click()
        seen["corrected"] = reply.locator(".text").inner_text()
        page.reload()  # what was accepted or corrected outlives it
        page.get_by_role("tab", name="Train (2)").click()
        drop(page, "letters.txt", TEXT.split("\n")[0].encode())
        take(page)
        lines = [{"instruction": f"What is in box {i}?", "output": f"In box {i} is honey."} for i in range(60)]
        data = "\n".join(map(json.dumps, lines)).encode()
        page.set_input_files("#files", {"name": "boxes.jsonl", "mimeType": "", "buffer": data})
        take(page)
        expect(page.locator("#examples li")).to_have_count(4)
        page.get_by_label("Plugin to make, or to train further").fill(NAME)
        page.get_by_label("Epochs").fill("5")
        with page.expect_request("**/sideplug/training") as request:
            page.get_by_role("button", name="Train").click()
        seen["sent"] = request.value.post_data_json
        outcome = page.locator("#outcome")
        expect(page.get_by_role("progressbar", name="Progress of the training")).to_be_visible()
        for _ in range(600):
            seen["notes"].add(page.locator("#stage").inner_text())
            if outcome.is_visible():
                break
            page.wait_for_timeout(100)
        seen["line"] = outcome.inner_text()
        seen["curve"] = page.locator("#curve svg").get_attribute("aria-label")
        seen["left"] = page.locator("#examples li").count()
        page.get_by_role("button", name="Talk to it").click()
        seen["selected"] = page.get_by_role("combobox", name="Model", exact=True).input_value()
        turn_dial(page, "1")
        reply = ask(page, "Is it far?")
        seen["by"], seen["text"] = written_by(reply), reply.locator(".text").inner_text()
    return seen


# ── the tests ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_reply_streams_and_tells_who_wrote_it(page: Page) -> None:
    """By pointer and by keys, each token tells what else it might have been."""
    reply = ask(page, "Is it far?")
    tokens = reply.locator(".token")
    assert set(written_by(reply)) == {"cloud"}
    assert tokens.count() > 5
    tip = page.get_by_role("tooltip")
    tokens.nth(2).hover()
    expect(tip).to_contain_text("The cloud's own choice")
    expect(tip.locator(".chance")).to_have_count(5)
    expect(tip.locator(".chosen")).to_contain_text("%")
    page.mouse.move(5, 400)
    expect(tip).to_be_hidden()
    tokens.first.focus()
    expect(tip).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(tokens.nth(1)).to_be_focused()
    expect(tokens.nth(1)).to_have_attribute("aria-describedby", "chances")
    page.keyboard.press("Escape")
    expect(tip).to_be_hidden()
    meters = page.locator("#meters")
    for name in ("Tokens", "First after", "Plugin asked", "Round trips", "Down", "Up"):
        expect(meters).to_contain_text(name)
    expect(page.get_by_role("status")).to_contain_text("The reply is complete")
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator(".message")).to_have_count(0)


def test_raw_text_goes_on(page: Page) -> None:
    page.get_by_role("combobox", name="Mode", exact=True).select_option("raw")
    reply = ask(page, "The river was")
    assert reply.locator(".text").inner_text().startswith("The river was")
    assert reply.locator(".token").count() > 5


def test_training(trained: dict[str, Any]) -> None:
    """Progress is seen, the losses are drawn, and the plugin is used at once."""
    files = {file["name"]: file.get("text") or file["data"] for file in trained["sent"]["files"]}
    assert set(files) == {"letters.txt", "boxes.jsonl", "chat.jsonl"}
    accepted, corrected = (json.loads(line)["messages"] for line in files["chat.jsonl"].splitlines())
    assert accepted[0] == {"role": "user", "content": "Is it far?"}
    assert corrected[1] == {"role": "assistant", "content": "Anna packs nails, honey and tea."}
    assert trained["corrected"] == "Anna packs nails, honey and tea."
    assert trained["sent"]["settings"] == {"epochs": 5}
    assert len(trained["notes"]) > 1
    assert "nats a token" in trained["line"]
    assert re.match(r"Loss by step: training \d", trained["curve"])
    assert trained["left"] == 0
    assert trained["selected"] == NAME
    assert set(trained["by"]) <= {"plugin", "draft"}
    assert trained["by"]
    assert trained["complaints"] == []


def correct(page: Page, text: str) -> None:
    """Correct the newest reply."""
    reply = page.locator(".message:not(.you)").last
    reply.get_by_role("button", name="Edit").click()
    page.get_by_label("The reply as it should be").fill(text)
    page.get_by_role("button", name="Add to training").click()


def test_a_correction_goes_to_the_plugin_whose_reply_it_was(
    page: Page, trained: dict[str, Any], complaints: list[str]
) -> None:
    """And as the command would learn it: nothing but what the person set goes along."""
    page.get_by_role("combobox", name="Model", exact=True).select_option(NAME)
    ask(page, "Who is Anna?")
    correct(page, "Anna packs boxes.")
    page.get_by_role("tab", name="Train (1)").click()
    expect(page.get_by_label("Plugin to make, or to train further")).to_have_value(NAME)
    expect(page.locator("#examples")).to_contain_text(f"from the chat with {NAME}")
    assert page.get_by_label("Epochs").input_value() == ""
    page.route("**/sideplug/training", lambda route: route.fulfill(status=400, json={"error": {"message": "no"}}))
    with page.expect_request("**/sideplug/training") as request:
        page.get_by_role("button", name="Train", exact=True).click()
    assert request.value.post_data_json["settings"] == {}
    expect(page.locator("#refused")).to_have_text("no")
    complaints.clear()  # the browser's own, of the status 400
    page.get_by_label("Plugin to make, or to train further").fill("another")
    expect(page.locator("#will")).to_contain_text("A new plugin is made")


def test_a_rejected_correction_is_kept_and_can_be_forced(
    page: Page, trained: dict[str, Any], complaints: list[str]
) -> None:
    page.get_by_role("combobox", name="Model", exact=True).select_option(NAME)
    ask(page, "Who is Anna?")
    correct(page, "Anna packs boxes.")
    page.get_by_role("tab", name="Train (1)").click()
    job = {"running": False, "name": NAME, "line": "the plugin stays as it was: it would do worse on the old text"}
    job |= {"error": "", "kept": False, "losses": [], "stage": "", "total": 0, "done": 0, "note": ""}
    asked: list[Any] = []

    def answer(route: Any) -> None:
        asked.append(route.request.post_data_json["settings"])
        route.fulfill(json={**job, "running": True})

    def state(route: Any) -> None:
        route.fulfill(json={**route.fetch().json(), "training": job})

    page.route("**/sideplug/training", answer)
    page.route("**/sideplug/state", state)
    page.get_by_role("button", name="Train", exact=True).click()
    expect(page.locator("#stage")).to_have_text(f"{NAME}: not replaced")
    expect(page.locator("#outcome")).not_to_contain_text("--force")
    expect(page.locator("#examples li")).to_have_count(1)
    expect(page.get_by_role("button", name="Talk to it")).to_be_hidden()
    job |= {"line": "the plugin is replaced", "kept": True}
    page.get_by_role("button", name="Replace it all the same").click()
    expect(page.locator("#stage")).to_have_text(f"{NAME}: done")
    expect(page.locator("#examples li")).to_have_count(0)
    assert asked == [{}, {"force": True}]


def test_a_kept_reply_is_not_removed_unasked(page: Page) -> None:
    ask(page, "Is it far?").get_by_role("button", name="Accept").click()
    page.get_by_role("tab", name="Train (1)").click()
    page.get_by_role("button", name="Remove Is it far?").click()
    expect(page.locator("#examples li")).to_have_count(1)
    page.get_by_text("Remove for good?").click()
    expect(page.locator("#examples li")).to_have_count(0)


def test_behind_a_path(browser: Any, url: str, complaints: list[str]) -> None:
    """A proxy gives the gateway a path: all that the page asks for is below it."""
    with a_path_proxy(url, "/llm") as (host, asked):
        with opened(browser, f"http://{host}/llm/", complaints) as page:
            expect(page.locator("#where")).to_contain_text("tiny")
        assert all(path.startswith("/llm/") for path in asked)
        assert "/llm/sideplug/state" in asked


def test_training_is_stopped(page: Page) -> None:
    page.get_by_role("tab", name="Train").click()
    drop(page, "boxes.jsonl", "\n".join(json.dumps({"text": f"Box {i} has honey."}) for i in range(40)).encode())
    take(page)
    page.get_by_label("Plugin to make, or to train further").fill("half")
    page.get_by_label("Epochs").fill("4000")
    page.get_by_role("button", name="Train").click()
    page.get_by_role("button", name="Stop training").click()
    expect(page.locator("#outcome")).to_contain_text("stopped", timeout=60_000)
    expect(page.locator("#examples li")).to_have_count(1)  # it was not learnt
    expect(page.get_by_role("button", name="Talk to it")).to_be_hidden()


def test_dial_at_zero_is_the_base(page: Page, trained: dict[str, Any]) -> None:
    page.get_by_role("combobox", name="Model", exact=True).select_option("")
    expect(page.locator("#dial")).to_be_hidden()  # the base has none
    base = ask(page, "Is it far?").locator(".text").inner_text()
    page.get_by_role("combobox", name="Model", exact=True).select_option(NAME)
    texts = {}
    for rate in ("0", "1"):
        page.get_by_role("button", name="New conversation").click()
        turn_dial(page, rate)
        texts[rate] = ask(page, "Is it far?").locator(".text").inner_text()
        expect(page.locator("#meters")).to_contain_text(f"{rate}.00")
    assert texts["0"] == base
    assert texts["1"] != base


def test_side_by_side(page: Page, trained: dict[str, Any]) -> None:
    page.get_by_label("Max tokens").fill("24")
    turn_dial(page, "1")
    page.get_by_role("tab", name="Side by side").click()
    page.get_by_label("Prompt for both").fill("Is it far?")
    page.get_by_role("button", name="Ask both").click()
    without, with_plugin = (page.get_by_role("region", name=name) for name in ("Without a plugin", "With your plugin"))
    for side in (without, with_plugin):
        expect(side.locator(".foot")).to_contain_text("tokens")
    assert set(written_by(without)) == {"cloud"}
    assert set(written_by(with_plugin)) <= {"plugin", "draft"}
    assert without.locator(".text").inner_text() != with_plugin.locator(".text").inner_text()


def test_what_left(page: Page, trained: dict[str, Any]) -> None:
    ask(page, "Is it far?")
    page.get_by_role("tab", name="What left").click()
    expect(page.get_by_label("Verdict")).to_contain_text("Every byte is accounted for.")
    expect(page.get_by_label("Verdict")).to_contain_text("None of your plugin's")
    expect(page.locator("#saw")).to_contain_text("characters of prompts")
    prompt = page.get_by_role("row").filter(has=page.get_by_role("cell", name="PROMPT", exact=True))
    expect(prompt).to_contain_text("up")


def test_what_left_is_of_this_page(browser: Any, url: str, page: Page, complaints: list[str]) -> None:
    """Not of another browser's, nor of a program's: each sees the length of its own words."""
    text = "Is it far from here?"
    ask(page, text)
    with opened(browser, url, complaints) as other:
        expect(other.locator("#model")).to_contain_text("tiny")
        other.get_by_role("tab", name="What left").click()
        expect(other.locator("#whose")).to_contain_text("This page has asked for nothing yet")
        expect(other.locator("#rows table")).to_have_count(0)
        other.get_by_role("tab", name="Chat").click()
        ask(other, "Who is Anna?")
        other.get_by_role("tab", name="What left").click()
        expect(other.locator("#saw")).to_contain_text(f"{len('Who is Anna?')} characters of prompts")
    page.get_by_role("tab", name="What left").click()
    expect(page.locator("#saw")).to_contain_text(f"{len(text)} characters of prompts")


@pytest.fixture
def told(browser: Any, room: Path, cloud: str, tmp_path: Path, complaints: list[str]) -> Iterator[Page]:
    """The page of a gateway without any plugin, on its tab Memory."""
    arguments = ("gateway", "--plugins", tmp_path / "shelf", "--cloud", cloud)
    with running(room / "cache", *arguments) as (about, _), opened(browser, about["url"], complaints) as page:
        expect(page.locator("#model")).to_contain_text("tiny")
        page.get_by_role("tab", name="Memory").click()
        yield page


def tell(page: Page, question: str, reply: str) -> None:
    page.get_by_label("Question that it answers").fill(question)
    page.get_by_label("Reply, or a note").fill(reply)
    page.locator("#remember").click()
    expect(page.locator("#memory-done")).to_contain_text("It is known at once.")
    expect(page.get_by_label("Reply, or a note")).to_have_value("")


def test_a_fact_is_told_said_with_its_source_and_forgotten(told: Page) -> None:
    """In a new plugin, which the chat then speaks with; forgotten, the base's own reply is there again."""
    page, question = told, "What is my dog's name?"
    page.get_by_role("tab", name="Chat").click()
    base = ask(page, question).locator(".text").inner_text()
    page.get_by_role("tab", name="Memory").click()
    expect(page.locator("#memory")).to_contain_text("What you tell stays on this device")
    expect(page.get_by_label("Name of the new plugin")).to_have_value("my-plugin")
    tell(page, question, "Biscuit, <b>the old one</b>.")
    entry = page.locator("#entries li")
    expect(entry).to_contain_text("Biscuit, <b>the old one</b>.")  # never as markup
    expect(entry).to_contain_text("from the page")
    page.get_by_label("Words to find, or a question").fill(question)
    page.get_by_role("button", name="What would it say?").click()
    expect(page.get_by_label("What it would say").last).to_contain_text("It would say “Biscuit")

    page.get_by_role("tab", name="Chat").click()
    assert page.locator("#model").input_value() == "my-plugin"
    page.get_by_role("button", name="New conversation").click()
    reply = ask(page, question)
    assert reply.locator(".text").inner_text() == "Biscuit, <b>the old one</b>."
    assert set(written_by(reply)) <= {"plugin", "draft"}
    expect(reply.locator(".foot")).to_contain_text(f"from memory: you told me (the page): {question}")
    reply.get_by_role("button", name="Edit or forget it").click()
    expect(page.locator("#entries li.here")).to_be_visible()
    page.get_by_role("button", name="Forget (entry 1)").click()
    expect(entry).to_have_count(1)  # not before it is said again
    page.get_by_role("button", name="Forget for good").click()
    expect(page.locator("#memory-done")).to_have_text("Entry 1 is forgotten.")
    expect(entry).to_have_count(0)

    page.get_by_role("tab", name="Chat").click()
    page.get_by_role("button", name="New conversation").click()
    reply = ask(page, question)
    assert reply.locator(".text").inner_text() == base
    expect(reply.locator(".foot")).not_to_contain_text("from memory")


def test_entries_are_found_edited_replaced_and_restored(told: Page) -> None:
    page = told
    tell(page, "What is my car?", "A Volvo.")
    tell(page, "", "The spare key hangs behind the clock.")
    tell(page, "What is my car?", "A Saab.")
    expect(page.locator("#memory-done")).to_contain_text("It replaces “A Volvo.”")
    expect(page.locator("#entries-title")).to_have_text("my-plugin remembers 2 entries")
    entries = page.locator("#entries li")
    expect(entries).to_have_count(3)
    expect(page.locator("#entries li.gone")).to_contain_text("replaced by entry 3")
    page.get_by_label("Words to find, or a question").fill("CLOCK key")
    expect(entries).to_have_count(1)
    page.get_by_role("button", name="Edit (entry 2)").click()
    page.get_by_label("Reply of entry 2").fill("The spare key hangs behind the clock, on the left.")
    page.get_by_role("button", name="Save").click()
    expect(entries).to_contain_text("on the left")
    page.get_by_label("Words to find, or a question").fill("")
    page.get_by_role("button", name="Let it hold again (entry 1)").click()
    expect(page.locator("#memory-done")).to_have_text("Entry 1 holds again, instead of entry 3.")
    expect(page.locator("#entries li.gone")).to_contain_text("A Saab.")
    lines = [{"instruction": f"What is in box {i}?", "output": f"In box {i} is honey."} for i in range(12)]
    drop(page, "boxes.jsonl", "\n".join(map(json.dumps, lines)).encode(), "#memory-drop")
    take(page, "Remember these 12")
    expect(page.locator("#memory-done")).to_contain_text("my-plugin remembers 12 more entries.")
    expect(entries.first).to_contain_text("from boxes.jsonl:12")
    page.locator("#remember").click()
    expect(page.locator("#memory-trouble")).to_contain_text("There is nothing to remember")
    page.get_by_text("When it is not certain").click()
    with page.expect_response("**/memory/settings"):
        page.get_by_label("It may ask back").check()
    with page.expect_response("**/memory/settings"):
        page.get_by_label("It says what you told it when it is so certain").fill("0.6")
    page.reload()
    page.get_by_role("tab", name="Memory").click()
    page.get_by_text("When it is not certain").click()
    expect(page.get_by_label("It may ask back")).to_be_checked()
    expect(page.locator("#certain-shown")).to_have_text("60 %")


def test_a_correction_is_known_at_once(told: Page) -> None:
    """It makes my-plugin where there is none, and the next question has it; nothing is put into the training."""
    page, question = told, "Who is Anna?"
    page.get_by_role("tab", name="Chat").click()
    reply = ask(page, question)
    reply.get_by_role("button", name="Edit").click()
    page.get_by_label("The reply as it should be").fill("Anna packs nails, honey and tea.")
    expect(page.get_by_label("Plugin that remembers it")).to_have_value("my-plugin")
    reply.get_by_role("button", name="Remember").click()
    expect(reply.locator(".foot")).to_contain_text("known at once: my-plugin remembers it.")
    assert page.get_by_role("tab", name="Train").inner_text() == "Train"
    page.get_by_role("button", name="New conversation").click()
    again = ask(page, question)
    assert again.locator(".text").inner_text() == "Anna packs nails, honey and tea."
    again.get_by_role("button", name="Edit", exact=True).click()
    page.get_by_label("The reply as it should be").fill("Anna is my sister.")
    again.get_by_role("button", name="Remember").click()
    expect(again.locator(".foot")).to_contain_text("It replaces “Anna packs nails, honey and tea.”")
    again.get_by_role("button", name="See it").click()
    expect(page.locator("#entries li.here")).to_contain_text("Anna is my sister.")


def test_which_words_it_makes_likelier(page: Page, trained: dict[str, Any]) -> None:
    page.get_by_role("tab", name="Plugins").click()
    page.get_by_role("button", name=f"Words {NAME}").click()
    page.get_by_label(f"A text for {NAME}").fill("The mill is by the river. Anna runs the mill, and the mill is old.")
    page.get_by_role("button", name="Show its words").click()
    shown = page.locator(".words")
    expect(shown).to_contain_text("with your plugin: loss")
    expect(shown.get_by_role("row").filter(has_text="mill")).to_contain_text(re.compile(r"×2.* % → .* %"))
    page.get_by_role("button", name="Close").click()
    expect(shown).to_have_count(0)


def test_plugins_are_renamed_exported_imported_and_deleted(page: Page, trained: dict[str, Any], tmp_path: Path) -> None:
    page.get_by_role("tab", name="Plugins").click()
    shelf = page.get_by_role("list", name="Plugins")
    expect(shelf).to_contain_text("held-out loss")
    page.get_by_role("button", name=f"Rename {NAME}").click()
    page.get_by_label(f"New name of {NAME}").fill("ann")
    page.get_by_role("button", name="Rename", exact=True).last.click()
    expect(page.get_by_role("heading", name="ann", exact=True)).to_be_visible()
    assert page.locator("#model").input_value() == "ann"
    page.get_by_role("button", name="Export ann").click()
    page.get_by_label("Passphrase for the file of ann, or none").fill(" té and nails ")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save the file").click()
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    assert file.name == "ann.sideplug"
    assert file.read_bytes().startswith(b"SIDEPLUG")
    page.set_input_files("#file", file)
    page.get_by_label("Name", exact=True).fill(NAME)
    page.get_by_label("Passphrase, if it has one").fill(" té and nails ")
    page.get_by_role("button", name="Import").click()
    expect(page.get_by_role("heading", name=NAME, exact=True)).to_be_visible()
    page.get_by_role("button", name="Delete ann", exact=True).click()
    expect(page.get_by_role("heading", name="ann", exact=True)).to_be_visible()  # not before it is said again
    page.get_by_role("button", name="Delete for good").click()
    expect(page.get_by_role("heading", name="ann", exact=True)).to_have_count(0)
    page.get_by_role("button", name=f"Use {NAME}").click()
    turn_dial(page, "1")
    assert ask(page, "Is it far?").locator(".text").inner_text() == trained["text"]


CHAT = """12/03/2026, 09:14 - Anna: where is the boat?
12/03/2026, 09:15 - Bo: In Hamar, by the old pier.
12/03/2026, 09:20 - Anna: thanks, call me at 912 34 567
"""


def test_a_chat_is_looked_at_before_it_is_remembered(told: Page) -> None:
    """By keys alone: who one is is asked for, numbers are put out of sight, and what is shown is what is kept."""
    page = told
    drop(page, "chat.txt", CHAT.encode(), "#memory-drop")
    dialog = page.get_by_role("dialog")
    expect(dialog.locator("#files-trouble")).to_contain_text("There write Anna (2), Bo (1): give “You are”")
    who = dialog.get_by_label("You are")
    expect(who).to_be_focused()
    page.keyboard.type("Anna")
    page.keyboard.press("Enter")
    expect(dialog.locator("#files-items")).to_contain_text("912 34 567")
    numbers = dialog.get_by_label("long numbers")
    numbers.focus()
    page.keyboard.press("Space")
    expect(dialog.locator("#files-items")).to_contain_text("[number]")
    expect(dialog.locator("#files-notes")).to_contain_text("redacted numbers: 1")
    dialog.get_by_role("button", name="Remember these 2").focus()
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    expect(page.locator("#memory-done")).to_contain_text("my-plugin remembers 2 more entries.")
    expect(page.locator("#entries")).to_contain_text("thanks, call me at [number]")
    expect(page.locator("#entries")).not_to_contain_text("912")


def test_files_that_are_too_large_are_refused_unread(page: Page) -> None:
    page.evaluate(
        """() => {
            const carried = new DataTransfer();
            carried.items.add(new File([new Uint8Array(21e6)], "all.mbox"));
            const event = new DragEvent("drop", {dataTransfer: carried, bubbles: true});
            document.querySelector("#drop").dispatchEvent(event);
        }"""
    )
    expect(page.locator("#refused")).to_contain_text("all.mbox has 21 MB; the page takes 20 MB at once.")
    expect(page.get_by_role("dialog")).to_be_hidden()


def test_what_can_t_be_read_is_not_taken(page: Page) -> None:
    """It is said in the look at it; Escape takes nothing."""
    drop(page, "photo.jpg", bytes([0xFF, 0xD8, 0xFF, 0xE0, 0, 16]))  # on any tab
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("photo.jpg is not text: it is a picture")
    expect(dialog.get_by_role("button", name="Learn from")).to_be_disabled()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(page.get_by_role("button", name="Train", exact=True)).to_be_disabled()
    drop(page, "notes.txt", b"One line only.")
    expect(dialog).to_contain_text("1 text")
    page.keyboard.press("Escape")
    expect(page.locator("#examples li")).to_have_count(0)


def test_errors_are_one_sentence(page: Page, complaints: list[str]) -> None:
    drop(page, "one.txt", b"One line only.")
    take(page)
    page.get_by_label("Plugin to make, or to train further").fill("-bad name")
    page.get_by_role("button", name="Train").click()
    expect(page.locator("#refused")).to_contain_text("a plugin's name must be")
    assert len(complaints) == 1  # the browser's own, of the status 400
    complaints.clear()


def test_stop(page: Page) -> None:
    """Esc gives up a reply that has not even begun."""
    page.route("**/v1/chat/completions", lambda route: None)
    page.get_by_label("Your message").fill("Is it far?")
    page.get_by_label("Your message").press("Enter")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator(".message .foot").last).to_contain_text("stopped")
    expect(page.get_by_role("button", name="Send")).to_be_visible()


def test_pieces_of_several_tokens_and_an_error_in_the_middle(page: Page) -> None:
    """A piece is split where its tokens' texts make it up, else it is one; an error ends it in a sentence."""

    def chunk(text: str, by: str, words: list[str]) -> str:
        tops = [[[word, -0.1], [word, -0.1], ["<b>no</b>", -3.0]] for word in words]
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
        about = {"by": by, "ids": list(range(len(words))), "tops": tops}
        return "data: " + json.dumps({"choices": [choice], "sideplug": about}) + "\n\n"

    body = chunk("a <i>b</i>", "draft", ["a", " <i>b</i>"]) + chunk("é", "fallback", ["\ufffd", "\ufffd"])
    body += 'data: {"error": {"message": "the cloud has gone away"}}\n\n'
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    page.get_by_label("Your message").fill("Is it far?")
    page.get_by_label("Your message").press("Enter")
    expect(page.locator(".foot .bad")).to_have_text("the cloud has gone away")
    tokens = page.locator(".message .token")
    assert tokens.all_inner_texts() == ["a", " <i>b</i>", "é"]  # and never as markup
    assert written_by(page.locator("#log")) == ["draft", "draft", "fallback"]
    tokens.last.hover()
    expect(page.get_by_role("tooltip")).to_contain_text("token 2 of 2")
    expect(page.get_by_role("tooltip")).to_contain_text("<b>no</b>")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_telephone_in_light_and_dark(
    browser: Any, url: str, complaints: list[str], trained: dict[str, Any], scheme: str
) -> None:
    """360 wide, nothing is scrolled sideways; the colours are the scheme's, with enough contrast."""
    luminance = """(which) => getComputedStyle(document.body)[which].match(/[\\d.]+/g).slice(0, 3)
        .map((c) => (c /= 255) <= 0.04 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0)"""
    with opened(browser, url, complaints, viewport={"width": 360, "height": 740}, color_scheme=scheme) as page:
        page.get_by_text("Settings and meters").click()
        ask(page, "A-word-that-is-much-too-long-for-a-telephone-" * 3, 40)
        for tab in TABS:
            page.click(f"#tab-{tab}")
            page.wait_for_load_state("networkidle")
            wide = "(e) => [e.scrollWidth, e.clientWidth]"
            for element in (page.locator("html"), page.locator(".panel:visible")):
                scrolled, shown = element.evaluate(wide)
                assert scrolled <= shown, tab
        ink, paper = (page.evaluate(luminance, which) for which in ("color", "backgroundColor"))
        assert (paper < ink) == (scheme == "dark")
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) > 7


def test_all_that_takes_input_has_a_name_and_is_reached_by_tab(page: Page, trained: dict[str, Any]) -> None:
    ask(page, "Is it far?")
    tree = page.context.new_cdp_session(page)
    takes_input = {"button", "textbox", "combobox", "slider", "spinbutton", "checkbox", "tab", "DisclosureTriangle"}
    for i, tab in enumerate(TABS):
        page.locator("[role=tab][aria-selected=true]").focus()
        if i:
            page.keyboard.press("ArrowRight")
        expect(page.locator(f"#tab-{tab}")).to_have_attribute("aria-selected", "true")
        nodes = tree.send("Accessibility.getFullAXTree")["nodes"]
        ours = [node for node in nodes if not node["ignored"] and node["role"]["value"] in takes_input]
        assert len(ours) >= 6
        assert [node for node in ours if not node["name"]["value"].strip()] == []
        ids = "(list) => list.filter((e) => !e.disabled && e.checkVisibility() && e.tabIndex === 0).length"
        stops = page.eval_on_selector_all("button, input, select, textarea, summary, [tabindex]", ids)
        reached = set()
        for _ in range(stops + 5):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("[...document.querySelectorAll('*')].indexOf(document.activeElement)"))
            shown = """(e => e === document.body || [e, e.parentElement].some(
                (one) => getComputedStyle(one).outlineStyle !== "none") || e.outerHTML)(document.activeElement)"""
            assert page.evaluate(shown) is True
        assert len(reached) >= stops


def test_a_key_is_asked_for_once(browser: Any, room: Path, cloud: str, complaints: list[str]) -> None:
    keyed = ("gateway", "--plugins", room / "none", "--cloud", cloud, "--key", "pepper")
    with running(room / "cache", *keyed) as (about, _), opened(browser, about["url"], complaints) as page:
        for key in ("salt", "pepper"):
            expect(page.get_by_role("dialog")).to_be_visible()
            page.get_by_role("textbox", name="Key").fill(key)
            page.get_by_role("button", name="Go on").click()
        ask(page, "Is it far?")
        page.reload()
        expect(page.locator("#where")).to_contain_text("tiny")
        expect(page.get_by_role("dialog")).to_be_hidden()
        assert all("401" in complaint for complaint in complaints)
        complaints.clear()


def test_the_cloud_is_gone(browser: Any, room: Path, complaints: list[str]) -> None:
    """One plain sentence, and a way back."""
    serve = ("serve", room / "tiny")
    with running(room / "cache", *serve) as (about, process):
        behind = ("gateway", "--plugins", room / "none", "--cloud", about["url"])
        with running(room / "cache", *behind) as (gateway, _), opened(browser, gateway["url"], complaints) as page:
            ask(page, "Is it far?")
            process.kill()
            process.wait(30)
            page.get_by_label("Your message").fill("Is it far?")
            page.get_by_label("Your message").press("Enter")
            expect(page.locator("#banner")).to_contain_text("no cloud answers")
            assert page.locator("#trouble").inner_text().count("\n") == 0
            expect(page.locator(".message .foot").last).to_contain_text("No reply.")
            expect(page.get_by_role("button", name="Try again").first).to_be_visible()
            assert all("503" in complaint or "502" in complaint for complaint in complaints)
            complaints.clear()
            port = about["url"].rsplit(":", 1)[1]
            command = [sys.executable, "-m", "sideplug", *map(str, serve), "--port", port, "--json"]
            environment = {**os.environ, "SIDEPLUG_CACHE": str(room / "cache")}
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as again:
                try:
                    assert again.stdout is not None
                    again.stdout.readline()
                    page.locator("#retry").click()
                    expect(page.locator("#banner")).to_be_hidden()
                    page.locator(".message .foot").last.get_by_role("button", name="Try again").click()
                    expect(page.locator(".message .foot").last).to_contain_text("tokens")
                finally:
                    again.terminate()
                    again.wait(30)
