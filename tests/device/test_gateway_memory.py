"""The memory on a gateway: told, found, said with its source, changed and forgotten, by plain requests."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from sideplug.cli.memory import entries_of_files, preview_files
from sideplug.device.plugin_store import PluginStore
from sideplug.memory import book
from sideplug.memory.desk import Desk
from sideplug.memory.store import Entry
from sideplug.plugins import Plugin
from sideplug.plugins.file import PART
from sideplug.plugins.sealed_file import seal
from tests.conftest import Cloud
from tests.gateway import ASK, Stage, a_stage, refused, root, wanted

__all__ = ["root"]  # a fixture

DOG = {"question": "What is my dog's name?", "reply": "Biscuit, the old one."}
MEMORY = "/sideplug/plugins/anna/memory"


@pytest.fixture
def stage(cloud: Cloud, root: Path) -> Iterator[Stage]:
    with a_stage(cloud.url, root, memory=Desk(entries_of_files), preview=preview_files) as running:
        yield running


def tell(http: httpx.Client, *entries: dict[str, str], path: str = MEMORY) -> Any:
    answer = http.post(path, json={"entries": entries})
    assert answer.status_code == 200, answer.text
    return answer.json()


def asked(stage: Stage, question: str, model: str) -> tuple[str, Any]:
    """What is replied, and what the usage says of it."""
    body = {**ASK, "model": model, "messages": [{"role": "user", "content": question}]}
    answer = stage.post(**body)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"], answer.json()["usage"]["sideplug"]


def test_what_is_told_is_said_until_it_is_forgotten(cloud: Cloud, stage: Stage) -> None:
    """At once, without a restart; with where it is from; and then the plugin is what it was."""
    want = wanted(cloud, "anna")
    before, usage = asked(stage, DOG["question"], "anna")
    assert (usage["source"], usage["entry"]) == ("", 0)
    with stage.http() as http:
        assert tell(http, DOG)["numbers"] == [1]
        text, usage = asked(stage, DOG["question"], "anna")
        assert text == DOG["reply"]
        assert usage["entry"] == 1
        assert usage["source"] == "you told me (the page): What is my dog's name?"
        assert stage.text(model="anna") == want, "what it does not know it leaves as it was"
        assert http.patch(f"{MEMORY}/1", json={"reply": "Rex."}).json()["question"] == DOG["question"]
        assert asked(stage, DOG["question"], "anna")[0] == "Rex."
        gone = http.delete(f"{MEMORY}/1").json()
        assert (gone["forgotten"]["reply"], gone["trained"]) == ("Rex.", True)
        assert http.get(MEMORY).json() == {"entries": []}
    text, usage = asked(stage, DOG["question"], "anna")
    assert (text, usage["source"], usage["entry"]) == (before, "", 0)


def test_what_the_gateway_reads_and_keeps_itself_does_not_load_the_plugin_anew(cloud: Cloud, stage: Stage) -> None:
    """One session says what was told, before and after its tokens are written; what another process tells is seen."""
    with stage.http() as http:
        tell(http, DOG)
    plugins = stage.gateway.plugins
    before = plugins.load("anna")
    folder = plugins.find("anna").folder
    written = (folder / "memory" / PART).stat().st_mtime_ns
    assert asked(stage, DOG["question"], "anna")[0] == DOG["reply"]
    assert (folder / "memory" / PART).stat().st_mtime_ns > written
    sessions = cloud.server.counters.frames["up", "open"]
    assert asked(stage, DOG["question"], "anna")[0] == DOG["reply"]
    assert plugins.load("anna") is before
    assert cloud.server.counters.frames["up", "open"] == sessions
    assert Plugin.load(folder).parts[0].unread(cloud.base.fingerprint) == []
    book.change(folder, lambda memory: book.tell(memory, [Entry("Who sings?", "Anna does.")]))
    assert asked(stage, "Who sings?", "anna")[0] == "Anna does."
    assert plugins.load("anna") is not before


def test_it_is_said_why_a_reply_waits(cloud: Cloud, stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    with stage.http() as http:
        tell(http, *({"question": f"Where is thing {n}?", "reply": f"In box {n}."} for n in range(60)))
    assert asked(stage, "Where is thing 7?", "anna")[0] == "In box 7."
    (line,) = [each for each in caplog.messages if "the base reads" in each]
    assert line == "the base reads 60 texts of anna, once; the reply waits for it"


def test_a_new_plugin_is_made_and_fits_any_model(cloud: Cloud, stage: Stage) -> None:
    with stage.http() as http:
        path = "/sideplug/plugins/my-plugin/memory"
        refused(http.get(path), 404, "model_not_found")
        assert tell(http, DOG, path=path)["numbers"] == [1]
        shown = {each["name"]: each for each in http.get("/sideplug/state").json()["plugins"]}
        mine = shown["my-plugin"]
        assert (mine["fits"], mine["entries"], mine["parameters"], mine["dial"]) == (True, 1, 0, False)
        assert shown["anna"]["entries"] is None
        assert shown["anna"]["parameters"] > 0
    assert asked(stage, DOG["question"], "my-plugin")[0] == DOG["reply"]
    assert stage.text(model="my-plugin") == wanted(cloud), "else the base speaks"


def test_the_list_the_search_and_what_was_replaced(stage: Stage) -> None:
    with stage.http() as http:
        assert http.get(MEMORY).json() == {"entries": []}
        assert http.get(f"{MEMORY}/search", params={"question": "Is it far?"}).json() == {"parts": []}
        tell(http, DOG, {"question": "", "reply": "The spare key hangs behind the clock."})
        assert tell(http, DOG)["known"] == 1
        told = tell(http, {**DOG, "reply": "Rex."})
        assert [(both["old"]["number"], both["new"]["number"]) for both in told["replaced"]] == [(1, 3)]
        assert [each["replaced_by"] for each in http.get(MEMORY).json()["entries"]] == [3, None, None]
        (part, *_) = http.get(f"{MEMORY}/search", params={"question": DOG["question"]}).json()["parts"]
        assert (part["number"], part["text"], part["said"]) == (3, "Rex.", True)
        assert 0.8 < part["certainty"] <= 1
        assert http.post(f"{MEMORY}/1/restore").json() == {"number": 1, "instead_of": 3}
        assert asked(stage, DOG["question"], "anna")[0] == DOG["reply"]


def test_files_are_remembered(stage: Stage) -> None:
    facts = '{"instruction": "What is my car?", "output": "A Volvo."}\n{"instruction": "And?", "output": ""}\n'
    files = [{"name": "facts.jsonl", "text": facts.splitlines()[0]}, {"name": "key.txt", "text": "The key is there."}]
    with stage.http() as http:
        assert http.post(MEMORY, json={"files": files}).json()["numbers"] == [1, 2]
        car, key = http.get(MEMORY).json()["entries"]
        assert (car["question"], car["reply"], car["source"]) == ("What is my car?", "A Volvo.", "facts.jsonl:1")
        assert (key["question"], key["reply"]) == ("", "The key is there.")
        refused(http.post(MEMORY, json={"files": [{"name": "f.jsonl", "text": facts}]}), 400, "bad-data", "f.jsonl:2")
        assert len(http.get(MEMORY).json()["entries"]) == 2, "all of it or nothing"


CHAT = b"""12/03/2026, 09:14 - Anna: where is the boat?
12/03/2026, 09:15 - Bo: In Hamar, by the old pier.
12/03/2026, 09:20 - Anna: thanks, call me at 912 34 567
"""


def test_files_are_looked_into_before_they_are_told(stage: Stage) -> None:
    """Whose words they are is asked for; what is put out of sight is what is told then; a look keeps nothing."""
    files = [{"name": "chat.txt", "data": base64.b64encode(CHAT).decode()}]
    with stage.http() as http:

        def look(**reading: Any) -> Any:
            answer = http.post("/sideplug/preview", json={"files": files, "reading": reading})
            assert answer.status_code == 200, answer.text
            return answer.json()

        asks = look()
        assert (asks["people"], asks["error"].count("give “You are”")) == (["Anna", "Bo"], 1)
        found = look(me="Bo")
        assert found["items"] == [{"question": "where is the boat?", "reply": "In Hamar, by the old pier."}]
        assert (found["questions"], found["texts"]) == (1, 0)
        assert "“You are” changes that" in found["notes"][0]
        hidden = look(me="Anna", redact=["numbers"])
        assert hidden["items"][-1]["reply"] == "thanks, call me at [number]"
        assert http.get(MEMORY).json()["entries"] == []
        told = {"files": files, "reading": {"me": "Anna", "redact": ["numbers"]}}
        assert len(http.post(MEMORY, json=told).json()["numbers"]) == hidden["texts"]
        assert "912" not in http.get(MEMORY).text
        for bad, says in (
            ({"files": [{"name": "a.txt", "data": "***"}]}, "must be base64"),
            ({"files": [{"name": "a.txt", "data": "", "text": ""}]}, "files must be a list of"),
            ({"files": files, "reading": {"who": "Bo"}}, "files are read by me, skip_bad and redact, got 'who'"),
            ({"files": files, "reading": {"redact": ["tea"]}}, "--redact must be some of"),
            ({"files": []}, "give at least one file"),
        ):
            refused(http.post("/sideplug/preview", json=bad), 400, "bad-input", says)


def test_many_tell_at_once(cloud: Cloud, stage: Stage, root: Path) -> None:
    """A plugin that is not there yet, while it is asked too: nothing is lost."""
    path = "/sideplug/plugins/new/memory"
    facts = {
        "Where is the boat?": "In Hamar.",
        "Who mends our roof?": "Anna does.",
        "What does Katrin play?": "The violin.",
        "When do bees sleep?": "In winter.",
        "How old was grandmother?": "Ninety.",
        "Which tea do I drink?": "Lapsang.",
    }

    def work(question: str) -> Any:
        with stage.http() as http:
            told = tell(http, {"question": question, "reply": facts[question]}, path=path)
        asked(stage, question, "new")
        return told["numbers"]

    with ThreadPoolExecutor(6) as pool:
        numbers = sorted(number for one in pool.map(work, facts) for number in one)
    assert numbers == list(range(1, len(facts) + 1))
    with stage.http() as http:
        told = {entry["question"]: entry["reply"] for entry in http.get(path).json()["entries"]}
    assert told == facts
    assert {question: asked(stage, question, "new")[0] for question in facts} == facts


@pytest.mark.parametrize(
    ("method", "path", "body", "says"),
    [
        ("POST", "", {}, "nothing to remember"),
        ("POST", "", {"entries": []}, "nothing to remember"),
        ("POST", "", {"entries": "facts"}, "entries must be a list"),
        ("POST", "", {"entries": ["a"]}, "entries must be a list"),
        ("POST", "", {"entries": [{"question": "Who?", "answer": "I."}]}, "entries must be a list"),
        ("POST", "", {"entries": [{"question": "Who?"}]}, "must have a reply"),
        ("POST", "", {"entries": [{"question": 1, "reply": "x"}]}, "question must be text"),
        ("POST", "", {"files": [{"name": "x"}]}, "files must be a list"),
        ("POST", "", [1], "the body must be a JSON object"),
        ("PATCH", "/1", {}, "nothing is to be changed"),
        ("PATCH", "/1", {"reply": 3}, "reply must be text"),
        ("PATCH", "/1", {"reply": " "}, "must have a reply"),
        ("PATCH", "/7", {"reply": "x"}, "has no entry 7"),
        ("DELETE", "/7", None, "has no entry 7"),
        ("DELETE", "/0", None, "an entry's number must be"),
        ("DELETE", f"/{10**30}", None, "an entry's number must be"),
        ("DELETE", "/one", None, "an entry's number must be"),
        ("POST", "/1/restore", None, "entry 1 holds already"),
        ("GET", "/search", None, "question must be given"),
    ],
)
def test_refusals_are_one_sentence(stage: Stage, method: str, path: str, body: Any, says: str) -> None:
    with stage.http() as http:
        tell(http, DOG)
        refused(http.request(method, MEMORY + path, json=body), 400, "bad-input", says)
        assert [each["reply"] for each in http.get(MEMORY).json()["entries"]] == [DOG["reply"]]


def test_names_and_where_there_is_nothing(stage: Stage) -> None:
    entry = {"entries": [DOG]}
    with stage.http() as http:
        refused(http.post("/sideplug/plugins/-bad/memory", json=entry), 400, "bad-input", "a plugin's name must be")
        refused(http.post("/sideplug/plugins/..%2F..%2Fx/memory", json=entry), 404, "not_found", "is not here")
        refused(http.delete("/sideplug/plugins/nobody/memory/1"), 404, "model_not_found")
        refused(http.patch(f"{MEMORY}/1", json={"reply": "x"}), 400, "bad-plugin", "has no memory yet")
        refused(http.put(MEMORY, json=entry), 405, "not_found")


def test_a_sealed_plugin_is_seen_and_not_changed(cloud: Cloud, root: Path, stage: Stage) -> None:
    pytest.importorskip("cryptography")
    with stage.http() as http:
        tell(http, DOG)
        (file,) = root.glob("anna/memory/*.safetensors")
        file.with_name(file.name + ".sealed").write_bytes(seal(file.read_bytes(), "tea"))
        file.unlink()
        for answer in (
            http.post(MEMORY, json={"entries": [DOG]}),
            http.patch(f"{MEMORY}/1", json={"reply": "x"}),
            http.delete(f"{MEMORY}/1"),
            http.post(f"{MEMORY}/1/restore"),
        ):
            refused(answer, 400, "bad-plugin", "holds a sealed plugin: unlock it first")
        refused(http.get(MEMORY), 400, "wrong-passphrase")
    stage.gateway.plugins._passphrase = lambda name: "tea"
    with stage.http() as http:
        assert [each["reply"] for each in http.get(MEMORY).json()["entries"]] == [DOG["reply"]]


def test_the_key_guards_it_and_a_gateway_may_have_none(cloud: Cloud, root: Path) -> None:
    with a_stage(cloud.url, root, key="pepper", memory=Desk()) as keyed, keyed.http() as http:
        for answer in (http.get(MEMORY), http.post(MEMORY, json={"entries": [DOG]}), http.delete(f"{MEMORY}/1")):
            refused(answer, 401, "invalid_api_key")
        assert http.get(MEMORY, headers={"Authorization": "Bearer pepper"}).status_code == 200
    with a_stage(cloud.url, root) as bare, bare.http() as http:
        refused(http.get(MEMORY), 400, "bad-input", "this gateway has no memory")


def test_a_plugin_is_loaded_anew_when_it_is_told(root: Path) -> None:
    store = PluginStore(root)
    plugin = store.load("anna")
    assert store.load("anna") is plugin
    store.reload()
    assert store.load("anna") is not plugin
    assert store.folder("anna") == root / "anna"
    assert store.folder("new") == root / "new"


def test_settings_are_shown_and_changed(stage: Stage) -> None:
    with stage.http() as http:
        tell(http, DOG)
        shipped = {"certain": None, "doubt": "base", "unknown": "base", "shipped": 0.85}
        assert http.get(f"{MEMORY}/settings").json() == shipped
        changed = shipped | {"certain": 0.6, "unknown": "say"}
        assert http.patch(f"{MEMORY}/settings", json={"certain": 0.6, "unknown": "say"}).json() == changed
        assert http.get(f"{MEMORY}/settings").json() == changed
        assert http.patch(f"{MEMORY}/settings", json={"certain": None}).json()["certain"] is None


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "settings must be some of certain, doubt and unknown"),
        ({"sure": 1}, "settings must be some of certain, doubt and unknown"),
        ({"certain": 2}, "a memory's certainty must be from 0.3 to 0.99, got 2"),
        ({"certain": "0.5"}, "certain must be a number"),
        ({"doubt": "say"}, "doubt must be base or ask, got 'say'"),
        ({"unknown": 1}, "unknown must be text"),
    ],
)
def test_settings_that_can_t_be(stage: Stage, settings: dict[str, Any], says: str) -> None:
    with stage.http() as http:
        tell(http, DOG)
        refused(http.patch(f"{MEMORY}/settings", json=settings), 400, "bad-input", says)
