"""Forgets told things in what training made of them: the tapes, drafts, earlier versions, and a stopped training.

What a trained part learnt can't be taken out of its numbers: `Left` says what still holds it, and `retrain` trains the
part anew on what is left. A tape is rewritten so that a cut work leaves the old one or the new one, and can be done
again. It does not know the memory. Test: pytest tests/training/test_forgetting.py
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sideplug.contract.errors import PluginError, Stopped
from sideplug.contract.frames import Example as Frame
from sideplug.contract.tap import Tap
from sideplug.contract.wire import decode, encode
from sideplug.device.client import Client
from sideplug.device.responders import Silent
from sideplug.paths import alone, write_aside, writing
from sideplug.plugins import Plugin, TrainedPart
from sideplug.plugins import trunk as trunks
from sideplug.plugins.base import Shape
from sideplug.plugins.bundle import RETAIN
from sideplug.plugins.file import drop_part, is_trained
from sideplug.training import pipeline, threads
from sideplug.training.tape import DROPPED, good_spans, mark, read_identity
from sideplug.training.trainer import CHECKPOINT, Trainer
from sideplug.training.update import VERSIONS, config_of, open_plugin, tapes_learnt

FORGOTTEN = "forgotten"  # in a part's `about`: examples that it learnt from and that are forgotten since
Ids = tuple[int, ...]
CANDIDATES = 4096  # rows of the softmax, at least, of a part that is trained anew


@dataclass(frozen=True)
class Gone:
    """What is to be forgotten. ids: the tokens of its reply; none where they are not known."""

    question: str
    reply: str
    ids: Ids = ()


@dataclass(frozen=True)
class Left:
    """What of a plugin still holds what is forgotten.

    dropped: examples that were taken off its tapes now. learnt: those that its trained part learnt from, of earlier
    forgetting too. versions: earlier versions of that part. unsure: nothing tells whether it was trained on it.
    """

    dropped: int = 0
    learnt: int = 0
    versions: int = 0
    unsure: bool = False

    def line(self, folder: Path) -> str:
        """What still holds it, and how to end that, in a line; "" where nothing does."""
        if self.learnt:
            count = f"{self.learnt} example{'' if self.learnt == 1 else 's'}"
            old = f" (and so do {self.versions} earlier versions of it)" if self.versions else ""
            return (
                f"the trained part of {folder} still knows what it learnt from {count} that you forgot{old}: "
                f"sideplug memory forget --retrain --plugin {folder} trains it anew without"
            )
        if self.unsure:
            return (
                f"nothing tells whether {folder} was trained on it too: if it was, train it anew (train --out --force)"
            )
        return ""


def forget(folder: Path, gone: Sequence[Gone]) -> Left:
    """Take told things off a plugin's tapes and out of its drafts and versions; a checkpoint that met them is deleted.

    The tapes come last, so done again after a cut it finds all that is left to do. Raises Stopped where a training
    writes into the folder, or for the disk.
    """
    tapes = folder / pipeline.TRAINING.parent
    with alone(tapes, shown=folder) if tapes.is_dir() else contextlib.nullcontext(), writing(folder):
        paths = sorted(path for path in tapes.glob("*.tape") if path.name != RETAIN)
        plans = {path.name: _Plan.of(path, gone) for path in paths}
        dropped = sum(len(plan.drop) for plan in plans.values())
        if dropped:
            (folder / CHECKPOINT).unlink(missing_ok=True)
        left = Left(dropped)
        if is_trained(folder):
            unsure = pipeline.TRAINING.name not in plans or any(plan.unsure for plan in plans.values())
            left = _scrub_parts(folder, gone, plans, Left(dropped, unsure=unsure))
        for path in paths:
            plans[path.name].rewrite(path)
        return left


@dataclass(frozen=True)
class _Plan:
    """What is taken off one tape. about: what its .json file says. marks: of its frames; None where it has none.

    size: its examples now. ids: the tokens of the replies that go; kept: of those that stay.
    """

    about: dict[str, Any]
    marks: list[str] | None
    drop: list[int]
    size: int
    ids: frozenset[Ids]
    kept: frozenset[Ids]
    unsure: bool

    @classmethod
    def of(cls, path: Path, gone: Sequence[Gone]) -> _Plan:
        """By the marks beside the tape; by the tokens of the reply where an earlier version made it."""
        about = read_identity(path.with_suffix(".json"))
        if not isinstance(about, dict) or not isinstance(about.get("tap"), str):
            return cls({}, None, [], 0, frozenset(), frozenset(), True)
        found = [_ids(frame) for frame in _frames(path, Tap.parse(about["tap"]))]
        wanted, ids = {mark(each.question, each.reply) for each in gone}, {each.ids for each in gone if each.ids}
        marks, pending = about.get("told"), about.get(DROPPED, [])
        if marks is None:
            drop = [n for n, each in enumerate(found) if each in ids]
        else:
            if pending and len(found) == about["count"]:  # somebody was cut off before that file said so
                marks, pending = [each for n, each in enumerate(marks) if n not in pending], []
            drop = [n for n, each in enumerate(marks[: len(found)]) if each in wanted or n in pending]
        out = frozenset(drop)
        kept = frozenset(each for n, each in enumerate(found) if n not in out)
        return cls(about, marks, drop, len(found), frozenset(found[n] for n in drop), kept, marks is None and not ids)

    def rewrite(self, path: Path) -> None:
        """Write the tape, old or new and never half: the .json file allows for both meanwhile. Raises OSError."""
        if not self.drop and DROPPED not in self.about:
            return
        out, beside = set(self.drop), path.with_suffix(".json")
        # No training goes on from it: its examples are not those that were given any more.
        about = {**self.about, "examples": "", "count": self.size - len(out)}
        about.pop(DROPPED, None)
        if out:
            write_aside(beside, json.dumps({**about, "told": self.marks, DROPPED: self.drop}).encode())
            left = [frame for n, frame in enumerate(_frames(path, Tap.parse(about["tap"]))) if n not in out]
            write_aside(path, b"".join(encode(replace(frame, number=n)) for n, frame in enumerate(left)))
        if self.marks is not None:
            about["told"] = [each for n, each in enumerate(self.marks) if n not in out]
        else:
            about.pop("told", None)
        write_aside(beside, json.dumps(about).encode())


def _ids(frame: Frame) -> Ids:
    return tuple(frame.ids.tolist())


def _frames(path: Path, tap: Tap) -> Iterator[Frame]:
    with path.open("rb") as file:
        for span in good_spans(path, tap)[0]:
            file.seek(span.at)
            frame = decode(file.read(span.size))
            assert isinstance(frame, Frame)
            yield frame


def _scrub_parts(folder: Path, gone: Sequence[Gone], plans: Mapping[str, _Plan], left: Left) -> Left:
    """Take what is gone out of the trained part and its versions, as far as that goes without training."""
    kept = frozenset[Ids]().union(*(plan.kept for plan in plans.values()))
    out = frozenset(each.ids for each in gone).union(*(plan.ids for plan in plans.values())) - kept
    on_tape = None if left.unsure else kept  # then it has no draft that is on no tape
    plugin = Plugin.load(folder)
    if _scrub(plugin.trained, plans, out, on_tape):
        plugin.save_part(plugin.trained, folder)
    versions = sorted((folder / VERSIONS).glob("*.safetensors"))
    for path in versions:
        before = Plugin.from_bytes(path.read_bytes(), str(path))
        if _scrub(before.trained, plans, out, on_tape) or len(before.parts) > 1:
            only = Plugin(before.base, before.base_name, [before.trained])
            write_aside(path, only.to_bytes())
    learnt = int(plugin.about.get(FORGOTTEN, 0))
    return replace(left, learnt=learnt, versions=len(versions) if learnt else 0, unsure=left.unsure and not learnt)


def _scrub(part: TrainedPart, plans: Mapping[str, _Plan], out: frozenset[Ids], on_tape: frozenset[Ids] | None) -> bool:
    """Take drafts out of a part, and count what it learnt from that is gone. Whether something changed."""
    phrases = _without(part.phrases, out, on_tape)
    changed = len(phrases) != len(part.phrases)
    part.phrases = phrases
    about, none = part.about, _Plan({}, None, [], 0, frozenset(), frozenset(), False)
    own, held = plans.get(pipeline.TRAINING.name, none), plans.get(pipeline.HELD.name, none)
    numbers = range(1, int(about.get("additions", 0)) + 1)
    more = [plans.get(f"more-{n}.tape", none) for n in numbers]
    gone = sum(len(plan.drop) for plan in (own, *more))
    counts = {name: int(about.get(name, 0)) for name in ("examples", "made", "held", "told")}
    counted = (counts["examples"] + counts["made"], counts["held"])
    there = (sum(plan.size for plan in (own, *more)) - gone, held.size - len(held.drop))
    if not (gone or held.drop) or counted == there:  # … or it was counted, and then somebody was cut off
        return changed
    made = sum(n >= own.size - counts["made"] for n in own.drop)  # reworded ones stand last
    part.about = {
        **about,
        "examples": counts["examples"] - gone + made,
        "made": counts["made"] - made,
        "held": counts["held"] - len(held.drop),
        "told": counts["told"] - sum(n < counts["told"] for n in held.drop),
        FORGOTTEN: int(about.get(FORGOTTEN, 0)) + gone + len(held.drop),
    }
    return True


def _without(phrases: np.ndarray, out: frozenset[Ids], on_tape: frozenset[Ids] | None) -> np.ndarray:
    """The phrases without what is out, and without all that is not on a tape. The first may be the end of a longer."""
    kept: list[int] = []
    for n, ids in enumerate(_phrases(phrases)):
        size = len(ids)

        def is_in(some: frozenset[Ids], ids: Ids = ids, first: bool = not n, size: int = size) -> bool:
            return ids in some or (first and any(one[-size:] == ids for one in some))

        if not is_in(out) and (on_tape is None or is_in(on_tape)):
            kept += [*([-1] if kept else []), *ids]
    return np.array(kept, np.int32)


def _phrases(phrases: np.ndarray) -> Iterator[Ids]:
    for each in np.split(phrases, np.flatnonzero(phrases < 0)):
        ids = tuple(token for token in each.tolist() if token >= 0)
        if ids:
            yield ids


def retrain(client: Client, folder: Path, show: pipeline.Show, interrupts: pipeline.Interrupts) -> str:
    """Train the trained part of the plugin in `folder` anew, on what is left on its tapes; return a line that says so.

    Its earlier versions are deleted. Where nothing is left on the tapes the part is deleted. Raises PluginError for a
    plugin without a trained part or a tape, WrongBase, CloudError, and Stopped: then the part stays as it was.
    """
    open_plugin(folder)
    with writing(folder), alone(folder / pipeline.TRAINING.parent, shown=folder), threads.measured():
        plugin = open_plugin(folder)
        if not is_trained(folder):
            raise PluginError(f"{folder} has no trained part: nothing of it has to be trained anew")
        old, tapes = plugin.trained, tapes_learnt(folder, plugin)
        if not len(tapes.training):
            drop_part(folder, old.name)
            for name in (pipeline.TRAINING.parent, Path(VERSIONS)):
                shutil.rmtree(folder / name, ignore_errors=True)
            return f"nothing is left that {folder} was trained on: its trained part is deleted"
        if tapes.held is not None and not len(tapes.held):
            tapes.held = None
        part, config = _untrained(old, plugin.base), config_of(plugin)
        with client.connect(responder=Silent(part.tap, part.context)) as session:
            plugin.check_base(session.model.fingerprint, session.model.name)
            rows = tapes.fetch_head(session, CANDIDATES)
        retain = tapes.split_retain(config.seed, hard_negatives=True)
        begun = bool(part.about.get("trunk"))
        tuned = not begun or tapes.training.tokens >= pipeline.TUNED_TOKENS
        trainer = Trainer(part, plugin.base, rows, tapes.training, tapes.held, config, folder, retain, begun)
        try:
            told = int(part.about.get("told", 0))
            biased = len(old.bias) > 0
            result, _, _ = pipeline.learn(trainer, tapes, told, show, interrupts, tuned=tuned, biased=biased)
        except Stopped as stopped:
            again = f"sideplug memory forget --retrain --plugin {folder} begins anew"
            raise Stopped(f"{str(stopped).split(';')[0]}; the trained part stays as it was: {again}") from stopped
        finally:
            trainer.forget_checkpoint()
        plugin.save_part(part, folder)
        shutil.rmtree(folder / VERSIONS, ignore_errors=True)
        examples = f"{len(tapes.training)} examples" if len(tapes.training) > 1 else "1 example"
        worth = f"{result.base_loss:.3f} → {result.best_loss:.3f} nats a token"
        return f"the trained part of {folder} is trained anew on the {examples} that are left: {worth}"


def _untrained(old: TrainedPart, base: str) -> TrainedPart:
    """A new part of the same kind, tap and width: what it began with, where it began with a trunk."""
    sizes = {name: value.shape for name, value in old.params.items()}
    kept = ("examples", "made", "held", "told", "additions", "tape_bytes", "recording_s")
    about: dict[str, Any] = {name: old.about[name] for name in kept if name in old.about}
    if began := old.about.get("trunk"):
        trunk = next((each for each in trunks.installed() if each.sha256 == began["sha256"]), None)
        if trunk is None or trunk.base != base:
            raise PluginError(
                f"the trunk that it began with, {began['title']}, is not installed: sideplug trunk pull it"
            )
        about["trunk"] = began
        return TrainedPart(old.kind, old.tap, trunk.params, trunk.gate, about=about, name=old.name)
    seed = int(old.about.get("settings", {}).get("seed", 0))
    for width in sorted({size for shape in sizes.values() for size in shape}):
        shape = Shape(len(old.tap.layers), old.tap.rank, width, old.model_width)
        with contextlib.suppress(Exception):  # a width that this kind can't have
            params = old.kind.init(shape, np.random.default_rng(seed))
            if {name: value.shape for name, value in params.items()} == sizes:
                return TrainedPart(old.kind, old.tap, params, about=about, name=old.name)
    raise PluginError("the trained part has a form that this version can't begin anew: train it anew (train --out)")
