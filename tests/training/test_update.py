"""Updates: the new is learnt, the old is kept, and there is a way back."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sideplug.contract.errors import DataError, InputError, PluginError, Stopped, WrongBase
from sideplug.contract.frames import Read
from sideplug.contract.text import Prompt
from sideplug.contract.wire import decode
from sideplug.device.address import Address
from sideplug.device.audit import Recorder
from sideplug.device.client import Client
from sideplug.device.lock import lock
from sideplug.device.plugin_store import PluginStore, import_to
from sideplug.plugins import Plugin, bundle
from sideplug.plugins.file import CONFIG, MANNER, PART, PLUGIN, SUFFIX, WEIGHTS
from sideplug.readers import Example
from sideplug.training import pipeline, update
from sideplug.training.fit import TrainConfig
from sideplug.training.recipe import FACTS, Recipe
from sideplug.training.recorder import score
from sideplug.training.trainer import CHECKPOINT, Result
from sideplug.training.update import tapes_to_export
from tests.conftest import Cloud, a_cloud, a_session

OLD = {"dog": "Pepper", "tea": "lapsang", "town": "Hamar", "sister": "Katrin", "day": "Thursday", "bank": "Midt"}
NEW = {"cat": "Salt", "boat": "Vinga"}
NEWER = {"horse": "Brun"}
RETAIN = [Example(Prompt.user(f"Tell me about {thing}."), "", "g:1", 8) for thing in ("rain", "bees", "nails", "tea")]
TRAINING = TrainConfig(12, 1e-2, weight_decay=0.01, patience=12)
RECIPE = Recipe(FACTS, width=24, rank=16, training=TRAINING, candidates=400, least_steps=0)


def facts(told: dict[str, str], asks: str = "What is my {}?") -> list[Example]:
    return [Example(Prompt.user(asks.format(k)), f"Your {k} is {v}.", f"facts:{k}") for k, v in told.items()]


@contextlib.contextmanager
def quiet(label: str, total: int) -> Iterator[pipeline.Tell]:
    yield lambda done, progress=None: None


@contextlib.contextmanager
def uninterrupted() -> Iterator[Callable[[], bool]]:
    yield lambda: False


def a_taught(cloud: Cloud, out: Path) -> Path:
    """A plugin that was really made, with its tapes and its gate."""
    texts = pipeline.Texts(facts(OLD) * 2, facts(OLD, "Say what my {} is."), RETAIN)
    pipeline.make(Client.at(cloud.url), texts, out, RECIPE, quiet, uninterrupted)
    return out


@pytest.fixture(scope="module")
def taught(cloud: Cloud, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_taught(cloud, tmp_path_factory.mktemp("taught") / "p")


@pytest.fixture
def folder(taught: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(taught, tmp_path / "p"))


def learn(cloud: Cloud, folder: Path, told: dict[str, str], epochs: int = 8, **how: Any) -> update.Update:
    return update.update(Client.at(cloud.url), folder, facts(told), quiet, uninterrupted, epochs, **how)


def loss(cloud: Cloud, folder: Path, examples: list[Example]) -> float:
    """Exact, over the whole vocabulary, by the cloud's own head."""
    with a_session(cloud.url, Plugin.load(folder)) as session:
        return float(-score(session, examples).plugin.mean())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_it_learns_and_does_not_forget(cloud: Cloud, folder: Path) -> None:
    """What it says of itself is what the cloud's own judgement says."""
    old, new = facts(OLD, "Say what my {} is."), facts(NEW)
    before = loss(cloud, folder, old), loss(cloud, folder, new)
    learnt = learn(cloud, folder, NEW)
    after = loss(cloud, folder, old), loss(cloud, folder, new)
    assert learnt.kept
    assert learnt.why == ""
    assert learnt.examples == len(NEW)
    assert 1 <= learnt.epochs <= 8
    assert after[1] < before[1] * 0.8, "learnt"
    assert after[0] <= before[0] + update.WORSE, "not forgotten"
    told = (learnt.old_before, learnt.new_before, learnt.old_after, learnt.new_after)
    assert told == pytest.approx((*before, *after), rel=0.05)
    about = Plugin.load(folder).about
    assert about["examples"] == len(OLD) * 2 + len(NEW)
    assert about["additions"] == 1
    assert not (folder / CHECKPOINT).exists()
    assert "the plugin is replaced" in learnt.line
    assert f"learnt {len(NEW)} more in {learnt.epochs} epochs" in learnt.line
    assert learnt.to_json()["new_after"] == round(learnt.new_after, 5)


def test_the_phrases_are_the_new_ones_too(cloud: Cloud, folder: Path) -> None:
    """What the device drafts from."""
    before = Plugin.load(folder).phrases
    learn(cloud, folder, NEW, 1, force=True)
    after = Plugin.load(folder).phrases
    np.testing.assert_array_equal(after[: len(before)], before)
    ids = cloud.engine.tokenizer.encode_example(*[(e.prompt, e.reply) for e in facts(NEW)][-1])[1]
    assert after[-len(ids) :].tolist() == ids


def test_only_what_is_new_is_read_by_the_cloud(cloud: Cloud, folder: Path) -> None:
    heard: list[tuple[str, bytes]] = []
    client = Client(Address(cloud.url), lambda direction, message: heard.append((direction, message)))
    update.update(client, folder, facts(NEW), quiet, uninterrupted, 1, force=True)
    frames = [decode(message) for direction, message in heard if direction == ">"]
    read = [frame.number for frame in frames if isinstance(frame, Read)]
    assert read == [0, 1]


def test_a_second_addition_builds_on_the_first(cloud: Cloud, folder: Path) -> None:
    learn(cloud, folder, NEW, force=True)
    between = loss(cloud, folder, facts(NEW))
    second = learn(cloud, folder, NEWER, force=True)
    about = Plugin.load(folder).about
    assert about["examples"] == len(OLD) * 2 + len(NEW) + len(NEWER)
    assert about["additions"] == 2
    assert loss(cloud, folder, facts(NEW)) < between + 0.5, "the first is trained on again"
    assert second.new_after < second.new_before
    assert sorted(path.name for path in (folder / "tape").glob("more-*.tape")) == ["more-1.tape", "more-2.tape"]
    (folder / "tape" / "more-1.tape").unlink()
    with pytest.raises(PluginError, match="has no tape to learn on from"):
        learn(cloud, folder, {"x": "y"})


def test_a_worse_one_does_not_replace_a_better(cloud: Cloud, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update, "WORSE", -100.0)
    before = contents(folder)
    learnt = learn(cloud, folder, NEW, 1)
    assert not learnt.kept
    assert learnt.why.startswith("it would do worse on the old text")
    assert "the plugin stays as it was: it would do worse" in learnt.line
    after = contents(folder)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"tape/more-1.tape", "tape/more-1.json"}
    forced = learn(cloud, folder, NEW, 1, force=True)
    assert forced.kept
    assert contents(folder)[WEIGHTS] != before[WEIGHTS]
    assert len(list((folder / "versions").iterdir())) == 1


def test_what_taught_nothing_is_said(cloud: Cloud, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "train", lambda *args, **more: Result(0, 0, 0, 0, 0, 0))  # no epoch
    before = (folder / WEIGHTS).read_bytes()
    learnt = learn(cloud, folder, NEW)
    assert (learnt.kept, learnt.why) == (False, "it learnt nothing")
    assert (folder / WEIGHTS).read_bytes() == before


def test_rollback(cloud: Cloud, folder: Path) -> None:
    """Version by version, each the very plugin that it was; then there is none before."""
    was = [Plugin.load(folder)]
    for told in (NEW, NEWER):
        learn(cloud, folder, told, 1, force=True)
        was.append(Plugin.load(folder))
    for want in (was[1], was[0]):
        got = update.rollback(folder)
        for plugin in (got, Plugin.load(folder)):
            assert plugin.to_bytes() == want.to_bytes()
        assert json.loads((folder / MANNER / CONFIG).read_text()) == want.config()["parts"][0]
    with pytest.raises(PluginError, match="has no version before this one"):
        update.rollback(folder)
    assert Plugin.load(folder).to_bytes() == was[0].to_bytes()
    again = learn(cloud, folder, NEWER, 1, force=True)  # in the place of what was gone back from
    assert again.kept
    assert Plugin.load(folder).about["additions"] == 1


def test_versions_are_bounded(folder: Path) -> None:
    """The newest MAX_VERSIONS of them, whatever their number was before."""
    for number in range(1, update.MAX_VERSIONS + 4):
        update._keep(folder, b"version %d" % number)
        kept = [path.read_bytes() for path in sorted((folder / update.VERSIONS).iterdir())]
        assert kept == [b"version %d" % n for n in range(max(1, number - update.MAX_VERSIONS + 1), number + 1)]


def test_an_imported_plugin_has_no_tape(cloud: Cloud, folder: Path, tmp_path: Path) -> None:
    other = PluginStore(tmp_path / "other")
    other.import_("guest", PluginStore(tmp_path).export("p"))
    before = contents(other.root)
    with pytest.raises(
        PluginError, match=r"guest has no tape to learn on from: export it with its tape .* or train it anew$"
    ):
        learn(cloud, other.root / "guest", NEW)
    assert contents(other.root) == before
    with pytest.raises(PluginError, match="there is no plugin in"):
        learn(cloud, tmp_path / "nothing", NEW)
    (folder / pipeline.HELD).unlink()
    with pytest.raises(PluginError, match="has no tape to learn on from"):
        learn(cloud, folder, NEW)


def test_a_sealed_one_must_be_unlocked(cloud: Cloud, folder: Path) -> None:
    """Its passphrase would not help: the tape is sealed too."""
    lock(folder, "bees and tea")
    before = contents(folder)
    for work in (lambda: learn(cloud, folder, NEW), lambda: update.rollback(folder)):
        with pytest.raises(PluginError, match="is sealed, its tape too: unlock it first"):
            work()
    assert contents(folder) == before


def test_a_retain_tape_that_is_gone(cloud: Cloud, folder: Path) -> None:
    about = json.loads((folder / pipeline.RETAIN).read_text())
    (folder / pipeline.RETAIN).write_text(json.dumps({**about, "tape": "0" * 24}))
    before = (folder / WEIGHTS).read_bytes()
    with pytest.raises(InputError, match="the retain set's tape is not in the cache any more"):
        learn(cloud, folder, NEW)
    assert (folder / WEIGHTS).read_bytes() == before


@pytest.mark.parametrize("steps", [0, 2])
def test_stopped_it_stays_as_it_was(cloud: Cloud, folder: Path, steps: int) -> None:
    before, asked = contents(folder), [0]

    @contextlib.contextmanager
    def impatient() -> Iterator[Callable[[], bool]]:
        def wants_stop() -> bool:
            asked[0] += 1
            return asked[0] > steps

        yield wants_stop

    with pytest.raises(Stopped, match="^stopped in epoch 1; the plugin stays as it was$"):
        update.update(Client.at(cloud.url), folder, facts(NEW), quiet, impatient, 8)
    assert asked[0] == steps + 1
    after = contents(folder)
    assert {name: after[name] for name in before} == before
    assert not (folder / CHECKPOINT).exists(), "nothing would go on from it"
    assert learn(cloud, folder, NEW, 1, force=True).kept


def test_an_example_that_does_not_fit(cloud: Cloud, folder: Path) -> None:
    before = (folder / WEIGHTS).read_bytes()
    with pytest.raises(InputError, match=r"facts:long: the example is too long: \d+ tokens"):
        learn(cloud, folder, {"long": "nails " * 300})
    assert (folder / WEIGHTS).read_bytes() == before


def test_another_base(folder: Path, other: Path) -> None:
    with a_cloud(other) as another, pytest.raises(WrongBase, match="this plugin was made for the base model"):
        learn(another, folder, NEW)


def test_a_tape_that_is_none(cloud: Cloud, folder: Path) -> None:
    (folder / pipeline.TRAINING).write_bytes(b"something else entirely")
    with pytest.raises(DataError, match="is not a tape"):
        learn(cloud, folder, NEW)


def test_all_that_is_written_is_for_its_owner_only(cloud: Cloud, folder: Path) -> None:
    """Plugin, tapes, versions, sealed ones and the transcript, also with an umask that lets everybody read."""
    before = os.umask(0o022)
    try:
        a_taught(cloud, folder.parent / "made")
        learn(cloud, folder.parent / "made", NEWER, 1, force=True)
        record = Recorder(folder.parent / "made" / "transcript.sp")
        record(">", b"words")
        record.close()
        lock(shutil.copytree(folder.parent / "made", folder.parent / "sealed"), "bees and tea")
        update.rollback(folder.parent / "made")
    finally:
        os.umask(before)
    files = [path for name in ("made", "sealed") for path in (folder.parent / name).rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert names >= {
        PART,
        PART + SUFFIX,
        CONFIG,
        PLUGIN,
        "train.tape",
        "more-1.tape",
        "000001.safetensors.sealed",
        "transcript.sp",
    }
    assert {str(path): oct(path.stat().st_mode & 0o777) for path in files if path.stat().st_mode & 0o077} == {}


def test_an_imported_plugin_with_its_tapes_learns_on(
    cloud: Cloud, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device whose cache has no retain set's tape."""
    data = bundle.to_bytes(Plugin.load(folder), tapes_to_export(folder))
    monkeypatch.setenv("SIDEPLUG_CACHE", str(tmp_path / "another"))
    import_to(tmp_path / "guest", data, "x")
    assert learn(cloud, tmp_path / "guest", NEW).kept
    assert (tmp_path / "guest" / "tape" / "more-1.tape").is_file()
