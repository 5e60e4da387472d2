"""Training from the page: one plugin at a time, progress as plain numbers, nothing spoilt by what goes wrong."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sideplug.cli.memory import forgotten
from sideplug.contract.errors import DataError, InputError, SideplugError, UnknownModel
from sideplug.device.client import Client
from sideplug.device.plugin_store import PluginStore
from sideplug.memory.desk import Desk
from sideplug.plugins.file import WEIGHTS
from sideplug.training import pipeline, update
from sideplug.training.job import TrainingJob
from sideplug.training.trainer import CHECKPOINT, Progress
from tests.conftest import Cloud, a_plugin, free_port

FACTS = {"dog": "Pepper", "tea": "lapsang", "town": "Hamar", "sister": "Katrin", "day": "Thursday", "bank": "Midt"}


def a_file(told: dict[str, str], name: str = "facts.jsonl") -> tuple[str, bytes]:
    lines = [json.dumps({"instruction": f"What is my {k}?", "output": f"Your {k} is {v}."}) for k, v in told.items()]
    return name, "\n".join(lines).encode()


@pytest.fixture
def retain(tmp_path: Path) -> Path:
    path = tmp_path / "retain.txt"
    path.write_text("".join(f"Tell me about {thing}.\n" for thing in ("rain", "tea", "bees", "nails", "roofs")))
    return path


@pytest.fixture
def job(cloud: Cloud, tmp_path: Path, retain: Path) -> Iterator[TrainingJob]:
    made = TrainingJob(PluginStore(tmp_path / "shelf"), Client.at(cloud.url), retain)
    yield made
    made.stop()
    made.wait(60)


class Pause:
    """Stops a training before its first step until `go_on`; so a test can look at it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()
        train = pipeline.train

        def waiting(*args: Any, **named: Any) -> Any:
            self.reached.set()
            assert self.go_on.wait(60)
            return train(*args, **named)

        monkeypatch.setattr(pipeline, "train", waiting)


def taught(job: TrainingJob, *files: tuple[str, bytes], name: str = "anna", **settings: Any) -> dict[str, Any]:
    """Its state at the end."""
    job.start(name, list(files), settings)
    job.wait(120)
    assert not job.state["running"]
    return job.state


def test_a_new_one_is_made_and_learns_on(cloud: Cloud, job: TrainingJob, tmp_path: Path) -> None:
    assert job.state == {"running": False, "line": "", "error": "", "kept": False}
    shelf = PluginStore(tmp_path / "shelf")
    state = taught(job, a_file(FACTS), epochs=3, width=24)
    assert (state["error"], state["name"], state["examples"], state["kept"]) == ("", "anna", 6, True)
    assert state["line"].startswith("told facts in other words: ")
    assert state["line"].endswith(")")
    assert any(note.startswith("asked “") for note in state["notes"]), "what it says is shown"
    first = shelf.load("anna")
    assert first.trained.params["a"].shape[2] == 24
    assert first.about["examples"] == 6, "no told fact is lost to holding out"
    state = taught(job, a_file({"cat": "Salt", "boat": "Vinga"}), epochs=2, force=True)
    assert state["error"] == ""
    assert state["line"].startswith("learnt 2 more in ")
    assert shelf.load("anna").about["examples"] == 8
    assert update.rollback(tmp_path / "shelf" / "anna").to_bytes() == first.to_bytes()


def test_a_plugin_that_only_remembers_is_given_a_trained_part(job: TrainingJob, tmp_path: Path) -> None:
    """And still remembers."""
    Desk().tell(tmp_path / "shelf" / "anna", [("What is my car?", "A Volvo.")])
    state = taught(job, a_file(FACTS), epochs=1, width=24)
    assert (state["error"], state["kept"]) == ("", True)
    plugin = PluginStore(tmp_path / "shelf").load("anna")
    assert [part.role for part in plugin.parts] == ["memory", "manner"]
    assert [entry["reply"] for entry in Desk().entries(plugin)] == ["A Volvo."]


def test_what_is_rejected_is_said_to_be_and_can_be_forced(
    job: TrainingJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A correction that makes the plugin worse: not "done", no option of the command in it; again with force."""
    taught(job, a_file(FACTS), epochs=1, width=8)
    plugin = tmp_path / "shelf" / "anna" / WEIGHTS
    before = plugin.read_bytes()
    monkeypatch.setattr(update, "WORSE", -100.0)
    correction = a_file({"cat": "Salt"})
    state = taught(job, correction, epochs=1)
    assert (state["kept"], state["error"]) == (False, "")
    assert state["line"].endswith("the plugin stays as it was: it would do worse on the old text")
    assert plugin.read_bytes() == before
    state = taught(job, correction, epochs=1, force=True)
    assert (state["kept"], state["error"]) == (True, "")
    assert state["line"].endswith("the plugin is replaced")
    assert plugin.read_bytes() != before


def test_progress_is_numbers(job: TrainingJob) -> None:
    """What is told while it runs: the steps rise, and each has its loss; held-out text from the second epoch on."""
    seen: list[dict[str, Any]] = []
    show = job._show

    @contextmanager
    def watched(label: str, total: int) -> Iterator[Callable[..., None]]:
        with show(label, total) as tell:

            def both(done: int, progress: Progress | None = None) -> None:
                tell(done, progress)
                seen.append(job.state)

            yield both

    job._show = watched  # type: ignore[method-assign]
    state = taught(job, a_file(FACTS), epochs=3, width=8)
    stages = list(dict.fromkeys(one["stage"] for one in seen))
    recording = [f"recording the {kind} tape" for kind in ("train", "held", "retain")]
    assert stages[-1] == "training"
    assert stages[:-1] in (recording, recording[:2])  # another test's retain tape serves as well
    assert all(0 < one["done"] <= one["total"] for one in seen)
    assert all(one["running"] for one in seen)
    steps = [one for one in seen if one["stage"] == "training"]
    losses = state["losses"]
    assert [step for step, _, _ in losses] == [one["done"] for one in steps] == list(range(1, len(steps) + 1))
    assert all(loss > 0 for _, loss, _ in losses)
    assert losses[0][2] is None
    assert losses[-1][2] > 0
    json.dumps(state)


@pytest.mark.parametrize(
    "settings",
    [{"epochs": 0}, {"epochs": 4097}, {"epochs": 1.5}, {"epochs": True}, {"width": "x"}, {"force": 1}, {"rank": 4}],
    ids=str,
)
def test_settings_that_can_not_be(job: TrainingJob, settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="settings must be epochs and width"):
        job.start("anna", [a_file(FACTS)], settings)
    assert job.state == {"running": False, "line": "", "error": "", "kept": False}


def test_what_is_wrong_is_said_before_it_begins(job: TrainingJob, tmp_path: Path) -> None:
    for name, files, says in (
        ("../x", [a_file(FACTS)], "a plugin's name must be"),
        ("a/b", [a_file(FACTS)], "a plugin's name must be"),
        ("anna", [], "give at least one file"),
        ("anna", [("notes.md", b"")], "^notes.md is empty$"),
        (
            "anna",
            [a_file(FACTS), ("bad.jsonl", b"{}\n{")],
            "^2 of 8 rows can't be learnt: bad.jsonl:1: an example must have.*; bad.jsonl:2: ",
        ),
    ):
        with pytest.raises(InputError, match=says):
            job.start(name, files, {})
    assert not job.state["running"]
    assert not (tmp_path / "shelf").exists()


def test_one_at_a_time(job: TrainingJob, monkeypatch: pytest.MonkeyPatch) -> None:
    pause = Pause(monkeypatch)
    job.start("anna", [a_file(FACTS)], {"epochs": 1, "width": 8})
    assert pause.reached.wait(60)
    with pytest.raises(InputError, match="anna is being trained: wait for it, or stop it"):
        job.start("mill", [a_file(FACTS)], {})
    assert job.state["name"] == "anna"
    pause.go_on.set()
    job.wait(60)
    assert taught(job, a_file(FACTS), name="mill", epochs=1, width=8)["error"] == ""


def test_stopped(job: TrainingJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new one is not there then, an old one is as it was; and the next training is not stopped too."""
    pause = Pause(monkeypatch)
    shelf = PluginStore(tmp_path / "shelf")

    def stopped(files: tuple[str, str]) -> dict[str, Any]:
        pause.reached.clear()
        pause.go_on.clear()
        job.start("anna", [files], {"epochs": 3, "width": 8})
        assert pause.reached.wait(60)
        job.stop()
        pause.go_on.set()
        job.wait(60)
        return job.state

    state = stopped(a_file(FACTS))
    assert (state["running"], state["line"], state["stage"]) == (False, "", "")
    assert "stopped in epoch 1" in state["error"]
    assert shelf.entries() == []
    assert "--epochs was 3, is 1" in taught(job, a_file(FACTS), epochs=1, width=8)["error"], "the checkpoint is kept"
    assert taught(job, a_file(FACTS), epochs=3, width=8)["error"] == "", "it goes on"
    before = shelf.load("anna").to_bytes()
    assert stopped(a_file({"cat": "Salt"}))["error"] == "stopped in epoch 1; the plugin stays as it was"
    assert shelf.load("anna").to_bytes() == before
    assert not (tmp_path / "shelf" / "anna" / CHECKPOINT).exists()


def test_an_example_that_the_cloud_refuses_is_named_by_its_file(job: TrainingJob) -> None:
    """By the name that it had on the page, not by where it lay here."""
    state = taught(job, a_file(FACTS), a_file({"long": "nails " * 300}, "far/more.jsonl"))
    assert state["error"].startswith("more.jsonl:1: the example is too long: ")
    assert "/tmp" not in state["error"]


def test_a_plugin_without_a_tape(cloud: Cloud, job: TrainingJob, tmp_path: Path) -> None:
    a_plugin(cloud.base.fingerprint).save(tmp_path / "shelf" / "guest")
    state = taught(job, a_file(FACTS), name="guest")
    assert "guest has no tape to learn on from" in state["error"]


def test_no_cloud(tmp_path: Path, retain: Path) -> None:
    nowhere = Client.at(f"ws://127.0.0.1:{free_port()}")
    state = taught(TrainingJob(PluginStore(tmp_path / "shelf"), nowhere, retain), a_file(FACTS))
    assert state["error"].startswith(f"no cloud answers at {nowhere.address.url} (")
    assert not state["running"]


def test_a_fault_of_its_own(
    job: TrainingJob, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its details are for the log, not for the page."""

    def broken(*arguments: Any, **named: Any) -> Any:
        raise KeyError("the person's words")

    monkeypatch.setattr(pipeline, "record", broken)
    state = taught(job, a_file(FACTS))
    assert state["error"] == "training met a fault of its own; the gateway's log has the details"
    assert [record.message for record in caplog.records] == ["training failed"]


def test_a_part_is_trained_anew_without_what_is_forgotten(cloud: Cloud, job: TrainingJob, tmp_path: Path) -> None:
    assert taught(job, a_file(FACTS), epochs=1)["kept"]
    folder = tmp_path / "shelf" / "anna"
    desk = Desk(forget=forgotten)
    desk.tell(folder, [("What is my tea?", "Your tea is lapsang.")])
    left = desk.forget(folder, 1)
    assert (left["trained"], "sideplug memory forget --retrain" in left["left"]) == (True, True)
    state = taught(job, retrain=True)
    assert (state["kept"], state["line"].startswith(f"the trained part of {folder} is trained anew on")) == (True, True)
    desk.tell(folder, [("What is my tea?", "Your tea is lapsang.")])
    assert desk.forget(folder, 1 + 1)["left"] == ""


def test_what_can_not_be_trained_anew(job: TrainingJob) -> None:
    with pytest.raises(InputError, match="retrain takes no files"):
        job.start("anna", [a_file(FACTS)], {"retrain": True})
    with pytest.raises(UnknownModel, match="there is no plugin 'anna'"):
        job.start("anna", [], {"retrain": True})


def test_which_words_it_makes_likelier(job: TrainingJob, cloud: Cloud) -> None:
    job.start("mine", [a_file(FACTS)], {"epochs": 2})
    job.wait(120)
    assert not job.state["error"]
    seen = job.words("mine", "the mill by the river and the mill on the hill\n" * 3)
    words = {word: (times, before, after) for word, times, before, after in seen["words"]}
    assert words["mill"][0] == 6
    assert all(0 < before <= 1 and 0 < after <= 1 for _, before, after in words.values())
    gains = [times * (math.log(after) - math.log(before)) for times, before, after in words.values()]
    assert gains == sorted(gains, reverse=True)
    for text, says in (("x " * 20_000, "at most"), ("", "empty|nothing|no ")):
        with pytest.raises((DataError, InputError), match=says):
            job.words("mine", text)
    with pytest.raises(SideplugError):
        job.words("nobody", "the mill")
