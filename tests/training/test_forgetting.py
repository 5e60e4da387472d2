"""Forgetting in what training made: tapes, drafts, versions, a checkpoint; and the part trained anew without it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sideplug.contract.errors import InputError, PluginError, Stopped
from sideplug.contract.text import Prompt
from sideplug.device.client import Client
from sideplug.paths import alone
from sideplug.plugins import Plugin
from sideplug.readers import Example
from sideplug.training import forgetting, pipeline, tape, update
from sideplug.training.forgetting import Gone, Left, forget, retrain
from sideplug.training.tape import Tape
from sideplug.training.trainer import CHECKPOINT
from tests.conftest import Cloud
from tests.training.test_update import NEW, OLD, RECIPE, RETAIN, facts, learn, loss, quiet, uninterrupted

TEA = Gone("What is my tea?", "Your tea is lapsang.")
CAT = Gone("What is my cat?", "Your cat is Salt.")
REWORDED = [
    Example(Prompt.user(f"Remind me what my {k} is."), f"Your {k} is {v}.", "", told=f"What is my {k}?")
    for k, v in OLD.items()
]


@pytest.fixture(scope="module")
def taught(cloud: Cloud, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on facts and rewordings of them, some held out; and updated once."""
    folder = tmp_path_factory.mktemp("taught") / "p"
    texts = pipeline.Texts(facts(OLD) + REWORDED, facts(OLD), RETAIN, told=len(OLD), made=len(REWORDED))
    pipeline.make(Client.at(cloud.url), texts, folder, RECIPE, quiet, uninterrupted)
    learn(cloud, folder, NEW, force=True)
    return folder


@pytest.fixture
def folder(taught: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(taught, tmp_path / "p"))


def again(cloud: Cloud, folder: Path) -> str:
    return retrain(Client.at(cloud.url), folder, quiet, uninterrupted)


def ids_of(cloud: Cloud, gone: Gone) -> list[int]:
    ids: list[int] = cloud.engine.tokenizer.encode_example(Prompt.user(gone.question), gone.reply)[1]
    return ids


def holds(folder: Path, ids: list[int]) -> list[str]:
    """Which files of a plugin have a run of these tokens: tapes, and parts with drafts."""
    mark = np.array(ids, np.int32).tobytes()
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and mark in p.read_bytes())


def lengths(folder: Path) -> dict[str, int]:
    part = Plugin.load(folder).trained
    paths = (folder / "tape").glob("*.tape")
    return {path.stem: len(Tape.whole(path, part.tap)) for path in paths if path.stem != "hard_negatives"}


def test_it_is_nowhere_but_in_the_numbers(cloud: Cloud, folder: Path) -> None:
    """The tapes, drafts and versions lose its words in every phrasing, and the rest stays as it was."""
    (folder / CHECKPOINT).touch()
    before, was = lengths(folder), Plugin.load(folder)
    where = ["manner/adapter_model.safetensors", "tape/held.tape", "tape/train.tape", "versions/000001.safetensors"]
    assert holds(folder, ids_of(cloud, TEA)) == where
    left = forget(folder, [TEA])
    assert left == Left(dropped=3, learnt=3, versions=1)
    assert holds(folder, ids_of(cloud, TEA)) == []
    assert holds(folder, ids_of(cloud, Gone("What is my town?", "Your town is Hamar."))) == where
    assert lengths(folder) == {**before, "train": before["train"] - 2, "held": before["held"] - 1}
    assert not (folder / CHECKPOINT).exists()
    about = Plugin.load(folder).about
    counts = ("examples", "made", "held", "told", "additions")
    assert [about[name] for name in counts] == [len(OLD) - 1 + len(NEW), len(OLD) - 1, len(OLD) - 1, len(OLD) - 1, 1]
    for name, value in was.trained.params.items():
        np.testing.assert_array_equal(Plugin.load(folder).trained.params[name], value)
    assert "still knows what it learnt from 3 examples that you forgot (and so do 1" in left.line(folder)
    assert f"sideplug memory forget --retrain --plugin {folder}" in left.line(folder)
    assert forget(folder, [TEA]) == Left(dropped=0, learnt=3, versions=1), "done again it does no more"
    kept = update.rollback(folder)
    assert (kept.about.get("additions", 0), kept.about["forgotten"]) == (0, 3)


def test_the_part_that_is_trained_anew_does_not_prefer_it(cloud: Cloud, folder: Path) -> None:
    """The forgotten reply is as unlikely as to the base, or nearly; what is left is known as before."""
    told = facts({"tea": OLD["tea"]})
    rest = facts({key: value for key, value in OLD.items() if key != "tea"})
    plain = Plugin.load(folder)
    plain.trained.params = {name: value * 0 for name, value in plain.trained.params.items()}
    plain.save(folder.parent / "plain")
    base = loss(cloud, folder.parent / "plain", told)
    before = loss(cloud, folder, told)
    forget(folder, [TEA])
    line = again(cloud, folder)
    assert line.startswith(f"the trained part of {folder} is trained anew on the 12 examples that are left: ")
    after = loss(cloud, folder, told)
    assert before < 0.5 * base, "it knew it"
    assert after > before + 0.25 * (base - before), "it does not any more"
    assert loss(cloud, folder, rest) < 0.5 * base, "but that"
    assert not (folder / "versions").exists()
    assert forget(folder, [TEA]) == Left(), "nothing of it holds it"
    assert learn(cloud, folder, {"hen": "Inga"}, 1, force=True).kept, "and it can learn on"


@pytest.mark.parametrize("gone", [Gone("What is  my tea?\n", " Your tea is lapsang. "), CAT], ids=["spaces", "added"])
def test_what_is_the_same(folder: Path, gone: Gone) -> None:
    assert forget(folder, [gone]).dropped == (3 if gone != CAT else 1)


@pytest.mark.parametrize("gone", [Gone("What is my coffee?", TEA.reply), Gone(TEA.question, "Oolong."), Gone("", "x")])
def test_what_it_was_not_trained_on_changes_nothing(folder: Path, gone: Gone) -> None:
    before = update_contents(folder)
    assert forget(folder, [gone]) == Left()
    assert update_contents(folder) == before


def update_contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_nothing_is_left(cloud: Cloud, folder: Path) -> None:
    """A plugin that was trained on nothing else has no trained part any more; without another part it can't be so."""
    gone = [Gone(f"What is my {k}?", f"Your {k} is {v}.") for k, v in {**OLD, **NEW}.items()]
    forget(folder, gone)
    assert set(lengths(folder).values()) == {0}
    with pytest.raises(PluginError, match="nothing is left on the tape"):
        learn(cloud, folder, {"hen": "Inga"}, 1)
    with pytest.raises(PluginError, match="has no part but manner: delete the plugin instead"):
        again(cloud, folder)
    from tests.memory.test_part import NOTE, only

    memory = only(NOTE).parts[0]
    Plugin.load(folder).save_part(memory, folder)
    assert again(cloud, folder) == f"nothing is left that {folder} was trained on: its trained part is deleted"
    assert ([part.name for part in Plugin.load(folder).parts], Plugin.load(folder).base) == (["memory"], "any")
    assert not [name for name in ("tape", "versions", "manner") if (folder / name).exists()]
    with pytest.raises(PluginError, match="has no trained part"):
        again(cloud, folder)


def test_a_tape_of_an_earlier_version_is_told_by_the_reply(cloud: Cloud, folder: Path) -> None:
    for path in (folder / "tape").glob("*.json"):
        about = json.loads(path.read_text())
        about.pop("told", None)
        path.write_text(json.dumps(about))
    assert forget(folder, [TEA]) == Left(unsure=True)
    assert "if it was, train it anew" in Left(unsure=True).line(folder)
    assert forget(folder, [Gone(TEA.question, TEA.reply, tuple(ids_of(cloud, TEA)))]).dropped == 3
    assert holds(folder, ids_of(cloud, TEA)) == []


def test_a_plugin_without_its_tape(folder: Path) -> None:
    shutil.rmtree(folder / "tape")
    assert forget(folder, [TEA]) == Left(unsure=True)


@pytest.mark.parametrize("writes", range(1, 8))
def test_a_cut_forgetting_leaves_whole_tapes_and_is_done_again(
    folder: Path, cloud: Cloud, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """Cut behind each of its writes: a version, then two tapes with the files beside them."""
    write, count = forgetting.write_aside, 0

    def cut(path: Path, data: bytes) -> None:
        nonlocal count
        count += 1
        if count == writes:
            raise OSError(28, "No space left on device")
        write(path, data)

    monkeypatch.setattr(forgetting, "write_aside", cut)
    with pytest.raises(Stopped, match="No space left on device"):
        forget(folder, [TEA])
    monkeypatch.undo()
    lengths(folder)
    assert forget(folder, [TEA]).learnt == 3
    assert holds(folder, ids_of(cloud, TEA)) == []
    assert lengths(folder) == {"train": 10, "held": 5, "more-1": 2}
    for path in (folder / "tape").glob("*.json"):
        about = json.loads(path.read_text())
        assert path.name == "retain.json" or len(about["told"]) == about["count"]


def test_beside_a_training(folder: Path) -> None:
    with alone(folder / "tape"), pytest.raises(Stopped, match="another training writes into"):
        forget(folder, [TEA])


def test_an_interrupted_training_leaves_the_part_and_says_how_to_go_on(
    cloud: Cloud, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: Any, **kwargs: Any) -> None:
        raise Stopped("stopped after epoch 1; a checkpoint is kept")

    forget(folder, [TEA])
    before = Plugin.load(folder).to_bytes()
    monkeypatch.setattr(pipeline, "train", stop)
    with pytest.raises(Stopped, match="epoch 1; the trained part stays as it was: sideplug memory forget"):
        again(cloud, folder)
    assert (Plugin.load(folder).to_bytes(), (folder / CHECKPOINT).exists()) == (before, False)


@pytest.mark.parametrize("kind", ["ladder", "paper", "paper-added"])
def test_every_kind_begins_anew_in_its_form(kind: str) -> None:
    from tests.conftest import a_plugin

    old = a_plugin("f" * 64, kind).trained
    new = forgetting._untrained(old, "f" * 64)
    assert {n: v.shape for n, v in new.params.items()} == {n: v.shape for n, v in old.params.items()}
    assert any((new.params[name] != value).any() for name, value in old.params.items())


def test_marks() -> None:
    assert tape.mark("a", "b") != tape.mark("", "ab")
    assert tape.marks_of([*facts({"tea": "x"}), *RETAIN[:1]]) == [tape.mark("What is my tea?", "Your tea is x."), ""]
    with pytest.raises(InputError, match="no entry is named"):
        from sideplug.memory import book
        from tests.memory.test_part import only

        book.forget(only().parts[0], [])
