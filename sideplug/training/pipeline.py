"""From texts to a plugin in a folder: the tape, the training, the gate, in this order. No plugin is made another way.

It knows neither the command line nor the page: how a session is opened, how progress is shown and whether somebody
wants to stop are functions that are passed in. Test: pytest tests/test_cli.py
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sideplug.contract.errors import Stopped
from sideplug.contract.tap import Tap
from sideplug.device.plugin import Plugin, write_aside
from sideplug.device.runtime import Model, Session
from sideplug.paths import cache_dir
from sideplug.training import data, gate, head, tape
from sideplug.training.data import Example
from sideplug.training.tape import Tape
from sideplug.training.trainer import Progress, Result, Settings, Trainer

TRAINING, HELD, NEAR, GENERAL = (
    Path("tape", name) for name in ("train.tape", "held.tape", "near.tape", "general.json")
)
MAX_PHRASES = 1 << 16  # tokens of the person's that a plugin keeps for its drafts

Connect = Callable[[Tap | None], AbstractContextManager[Session]]
Show = Callable[[str, int], AbstractContextManager[Callable[[int, str], None]]]  # (label, total) → show(done, note)
Interrupts = Callable[[], AbstractContextManager[Callable[[], bool]]]  # yields: does somebody want to stop?


@dataclass(frozen=True)
class Recipe:
    """What kind of plugin, on which tap (by name, raw, or so many layers of this rank), and how it is trained.

    width 0: 128 for a ladder, 32 for the paper's two. candidates: rows of the candidate softmax, at least.
    """

    kind: str = "ladder"
    taps: int = 9
    rank: int = 64
    tap: str = ""
    width: int = 0
    candidates: int = 4096
    training: Settings = Settings()

    def choose_tap(self, model: Model) -> Tap:
        """Raises InputError for a name that is none."""
        if self.tap == "raw" or (self.kind != "ladder" and not self.tap):
            return Tap.raw(model.blocks, model.width)
        return Tap.parse(self.tap) if self.tap else Tap.spread(model.blocks, model.width, self.taps, self.rank)

    def new_plugin(self, model: Model) -> Plugin:
        """Untrained."""
        width = self.width or (128 if self.kind == "ladder" else 32)
        tap, seed = self.choose_tap(model), self.training.seed
        return Plugin.new(self.kind, model.fingerprint, model.name, tap, width, model.width, seed)


@dataclass(frozen=True)
class Texts:
    """The person's examples to train on and held out, and prompts that the base answers itself (perhaps none): general
    ones, and near misses of the person's."""

    training: list[Example]
    held: list[Example]
    general: list[Example]
    near: list[Example] = field(default_factory=list)


@dataclass
class Tapes:
    """What the frozen model made of the texts, on disk. `general`: all of it; `near`: its numbers of near misses."""

    training: Tape
    held: Tape
    general: Tape | None
    near: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, training: Tape, held: Tape, general: Tape, like: list[int], near: Tape | None) -> Tapes:
        """`like`: numbers of general examples that are like near misses, which stand on a tape of their own."""
        if near is None:
            return cls(training, held, general, set(like))
        both = general + near
        return cls(training, held, both, {*like, *range(len(general), len(both))})

    @property
    def nbytes(self) -> int:
        return self.training.nbytes + self.held.nbytes

    @property
    def tokens(self) -> int:
        return self.training.tokens + self.held.tokens

    def split_general(self, seed: int, hard_negatives: bool) -> tuple[Tape, Tape] | None:
        """General text to train on and held out, drawn by seed, with or without the near misses."""
        if self.general is None:
            return None
        order = list(range(len(self.general)))
        apart = data.some(order, max(1, len(order) // 5), seed)
        parts = [i for i in order if i not in set(apart)], apart
        kept = [[i for i in part if hard_negatives or i not in self.near] for part in parts]
        return self.general.part(kept[0]), self.general.part(kept[1])

    def fetch_head(self, session: Session, least: int) -> head.Head:
        """The head's rows of all that is a target here, and of the base's best beside them."""
        candidates = self.training.candidates(least)
        for other in (self.held, self.general):
            if other is not None:
                candidates = np.union1d(candidates, other.targets()).astype(np.int32)
        return head.fetch(session, candidates)


@dataclass
class Made:
    """A plugin that was made and saved, and what its making reached; `gated` is empty without general text."""

    plugin: Plugin
    result: Result
    gated: dict[str, dict[str, float]]


def make(
    connect: Connect,
    texts: Texts,
    out: Path,
    recipe: Recipe,
    show: Show,
    interrupts: Interrupts,
    resume: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Made:
    """Record, train, fit the gate, save. Raises Stopped where somebody wanted that: what was done is kept."""
    started = time.perf_counter()
    with connect(None) as asked:
        plugin = recipe.new_plugin(asked.model)
    with connect(plugin.tap) as session:
        tapes = record(session, plugin.tap, texts, out, show)
        rows = tapes.fetch_head(session, recipe.candidates)
    recorded_s = time.perf_counter() - started
    size, tokens = tapes.nbytes, tapes.tokens
    say(f"tape: {tokens:,} tokens, {size / 1e6:.1f} MB ({size / tokens:,.0f} bytes a token), {recorded_s:.0f} s")
    settings = recipe.training
    trainer = Trainer(plugin, rows, tapes.training, tapes.held, settings, out, tapes.split_general(settings.seed, True))
    result = train(trainer, show, interrupts, resume)
    plugin.phrases = tapes.training.texts()[-MAX_PHRASES:]
    gated = fit_gate(trainer, tapes)
    plugin.about = {
        "examples": len(texts.training),
        "tape_bytes": size,
        "recording_s": round(recorded_s, 2),
        **result.to_json(),
        **gated,
        "settings": vars(settings),
    }
    plugin.save(out)
    trainer.forget_checkpoint()
    return Made(plugin, result, gated)


def record_one(session: Session, tap: Tap, label: str, examples: list[Example], path: Path, show: Show) -> Tape:
    with show(f"recording the {label} tape", len(examples)) as told:
        try:
            return tape.record(session, tap, examples, path, lambda done: told(done, ""))
        except KeyboardInterrupt:
            raise Stopped("stopped; what is on the tape is kept, the same command goes on from there") from None


def record(session: Session, tap: Tap, texts: Texts, out: Path, show: Show) -> Tapes:
    """What is not on the tapes yet is read by the cloud, once."""

    def recorded(label: str, examples: list[Example], path: Path) -> Tape:
        return record_one(session, tap, label, examples, path, show)

    training = recorded("train", texts.training, out / TRAINING)
    held = recorded("held", texts.held, out / HELD)
    if not texts.general:
        return Tapes(training, held, None)
    # Of general text there is nothing personal: one tape serves all trainings on this base with this tap.
    mark = f"{tap.name}-{session.model.fingerprint[:16]}-{tape.digest(texts.general)[:16]}"
    name = hashlib.sha256(mark.encode()).hexdigest()[:24]
    like = [i for i, example in enumerate(texts.general) if data.is_hard_negative(example)]
    general = recorded("general", texts.general, general_tape(name))
    _on_disk(out / GENERAL, lambda path: write_aside(path, json.dumps({"tape": name, "near": like}).encode()))
    near = recorded("near-miss", texts.near, out / NEAR) if texts.near else None
    return Tapes.of(training, held, general, like, near)


def general_tape(name: str) -> Path:
    return cache_dir() / "general" / f"{name}.tape"


def _on_disk(path: Path, work: Callable[[Path], Any]) -> None:
    try:
        work(path)
    except OSError as error:
        raise Stopped(f"{path} could not be written: {error.strerror or error}") from error


def train(trainer: Trainer, show: Show, interrupts: Interrupts, resume: bool) -> Result:
    with show("training", trainer.settings.epochs * trainer.batches) as told:

        def step(p: Progress) -> None:
            held_loss = "" if p.held_loss is None else f", held out {p.held_loss:.3f}"
            told((p.epoch - 1) * p.batches + p.batch, f"epoch {p.epoch}: loss {p.loss:.3f}{held_loss}")

        with interrupts() as wants_stop:
            return trainer.run(resume, step, wants_stop)


def fit_gate(trainer: Trainer, tapes: Tapes) -> dict[str, Any]:
    """Give the trained plugin its gate; what it trades on held-out text, personal and general (nothing without any)."""
    plugin, seed = trainer.plugin, trainer.settings.seed
    # The plugin learns to be silent on near misses too; the gate is not asked to tell them apart.
    general = tapes.split_general(seed, hard_negatives=False)
    if general is None:
        return {}
    fitted = gate.fit(trainer.judge(tapes.training, gate.MOST), trainer.judge(general[0], gate.MOST), seed)
    judged = {"personal": trainer.judge(tapes.held), "general": trainer.judge(general[1])}
    plugin.gate = gate.calibrate(fitted, judged["personal"], judged["general"])
    return {name: gate.trade_off(plugin.gate, text) for name, text in judged.items()}
