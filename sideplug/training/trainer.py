"""Training a part from tapes: early stopping by held-out text, checkpoints, and going on from one. Steps are in fit.py.

No network and no LLM: what an epoch reads is on disk. An epoch's order comes from (seed, epoch), so a run that was
interrupted and resumed makes the very part of an unbroken one. It does not know the wire or the base model.
Test: pytest tests/training/test_trainer.py
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from sideplug.contract.errors import PluginError, Stopped
from sideplug.paths import write_aside, writing
from sideplug.plugins.base import Params, TrainedPart
from sideplug.training import fit_bias
from sideplug.training.fit import Batches, FitState, KLToBase, TargetLoss, Term, TrainConfig, judge, take_step
from sideplug.training.head import Head
from sideplug.training.judged import Judged
from sideplug.training.tape import Tape

CHECKPOINT = "checkpoint.safetensors"
LAST_EPOCHS, LAST_RATE = 3, 0.3  # of learn_held: passes, and the learning rate relative to training's
TRAIN, HELD, RETAIN, RETAIN_HELD = "train", "held", "retain", "retain held"  # the tapes


@dataclass
class Checkpoint:
    """Everything that a resumed run needs: the parameters now and the best ones, AdamW's moments, where it is."""

    params: Params
    best: Params
    mean: Params
    square: Params
    step: int = 0
    epoch: int = 0  # the running one
    batch: int = 0  # batches done of it
    best_loss: float = float("inf")
    worse: int = 0  # epochs since the best
    losses: list[dict[str, float | None]] = field(default_factory=list)  # one a finished epoch
    train_sum: float = 0.0  # of the running epoch
    train_count: int = 0

    @classmethod
    def new(cls, params: Params) -> Checkpoint:
        """Before the first step."""

        def copied(scale: int) -> Params:
            return {name: value * np.float32(scale) for name, value in params.items()}

        return cls(copied(1), copied(1), copied(0), copied(0))

    _GROUPS = ("params", "best", "mean", "square")

    def save(self, path: Path, identity: dict[str, Any]) -> None:
        """Write it aside and rename it. Raises Stopped."""
        tensors = {f"{group}.{name}": value for group in self._GROUPS for name, value in getattr(self, group).items()}
        numbers = {name: value for name, value in vars(self).items() if name not in self._GROUPS}
        header = {"sideplug": json.dumps({"identity": identity, "numbers": numbers})}
        with writing(path, "the checkpoint"):
            write_aside(path, safetensors.numpy.save(tensors, header))

    @classmethod
    def load(cls, path: Path, identity: dict[str, Any]) -> Checkpoint:
        """Raises PluginError when there is no checkpoint, a damaged one, or one of another training."""
        check_same(path, identity_of_checkpoint(path.parent), identity)
        try:
            with safetensors.safe_open(path, "numpy") as file:
                header = json.loads((file.metadata() or {})["sideplug"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (safetensors.SafetensorError, ValueError, KeyError, OSError) as error:
            raise PluginError(f"the checkpoint {path} is damaged: {error}; train without --resume") from error
        groups: dict[str, Params] = {group: {} for group in cls._GROUPS}
        for name, value in tensors.items():
            group, _, rest = name.partition(".")
            groups[group][rest] = value.copy()
        params, best, mean, square = (groups[group] for group in cls._GROUPS)
        return cls(params, best, mean, square, **header["numbers"])


def check_same(path: Path, was: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises PluginError unless a checkpoint's identity is this training's; it says what differs."""

    def flat(values: dict[str, Any]) -> dict[str, Any]:
        inner = [value for value in values.values() if isinstance(value, dict)]
        return {name: value for each in (values, *inner) for name, value in each.items() if not isinstance(value, dict)}

    before = flat(was)
    differ = [(name, value) for name, value in flat(now).items() if before.get(name) != value]
    if differ:
        short = [isinstance(value, str | float | int) and len(str(value)) <= 20 for _, value in differ]
        told = [
            f"{name} was {before.get(name)!s:.20}, is {value}" if is_short else name
            for (name, value), is_short in zip(differ, short, strict=True)
        ]
        remedy = "give that as it was, or begin anew with --force"
        raise PluginError(f"the checkpoint {path} is of another training ({'; '.join(told)}): {remedy}")


def identity_of_checkpoint(folder: Path) -> dict[str, Any]:
    """What the checkpoint in a folder was made with. Raises PluginError where there is none that can be read."""
    path = folder / CHECKPOINT
    if not path.is_file():
        raise PluginError(f"there is no checkpoint to resume from in {folder}: train without --resume")
    try:
        with safetensors.safe_open(path, "numpy") as file:
            return dict(json.loads((file.metadata() or {})["sideplug"])["identity"])
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, OSError) as error:
        raise PluginError(f"the checkpoint {path} is damaged: {error}; train without --resume") from error


@dataclass
class Result:
    """What training reached, in nats a token on held-out text (on what it learnt, where nothing is held out): loss of
    the base and of the best part, divergence of the best part from the base on the retain set (0 without one)."""

    base_loss: float
    best_loss: float
    retain_divergence: float
    epochs: int
    seconds: float
    tokens: int

    def to_json(self) -> dict[str, Any]:
        """The fields by name, to six places."""
        return {name: round(value, 6) if isinstance(value, float) else value for name, value in asdict(self).items()}


@dataclass
class Progress:
    """Where training is after a step: epoch, batch of how many, running training loss, last held-out loss."""

    epoch: int
    epochs: int
    batch: int
    batches: int
    loss: float
    held_loss: float | None

    @property
    def line(self) -> str:
        """For a person to read."""
        held = "" if self.held_loss is None else f", held out {self.held_loss:.3f}"
        return f"epoch {self.epoch}: loss {self.loss:.3f}{held}"


class Trainer:
    """`run` trains a part in place and leaves the best parameters in it.

    held: what it stops by; None trains to the end. retain: tapes of the retain set, to train on and held out. There the
    target is the base's own distribution. trained: the part was trained before, and goes on from there. base: the base
    model's fingerprint. extra: further terms of every step. about: what else a checkpoint must have been made with.
    """

    def __init__(
        self,
        part: TrainedPart,
        base: str,
        head: Head,
        train: Tape,
        held: Tape | None,
        config: TrainConfig,
        folder: Path,
        retain: tuple[Tape, Tape] | None = None,
        trained: bool = False,
        extra: Sequence[Term] = (),
        about: dict[str, Any] | None = None,
    ) -> None:
        self.part = part
        self.head = head
        self.config = config
        self._trained = trained
        self._extra = extra
        tapes = {TRAIN: train} | ({HELD: held} if held is not None else {})
        if retain and config.retain_weight:
            tapes |= {RETAIN: retain[0], RETAIN_HELD: retain[1]}
        self._of = {name: Batches(tape, head, part.context is not None) for name, tape in tapes.items()}
        self._path = folder / CHECKPOINT
        self._identity: dict[str, Any] = {
            **(about or {}),
            "settings": asdict(config),
            "plugin": [part.kind_name, base, part.tap.name],
            "parameters": part.size,
            "tokens": [batches.tape.tokens for batches in self._of.values()],
            "candidates": hashlib.sha256(head.ids.tobytes()).hexdigest(),
        }

    def run(
        self,
        resume: bool = False,
        progress: Callable[[Progress], None] = lambda p: None,
        wants_stop: Callable[[], bool] = lambda: False,
        checkpoint_s: float = 30.0,
    ) -> Result:
        """Train to the end, or until `wants_stop` between two steps: then a checkpoint is kept and Stopped raised.

        `resume` starts from the checkpoint. One is also written every `checkpoint_s` seconds and after each epoch.
        """
        base_loss = self._held_loss(None)
        state = Checkpoint.load(self._path, self._identity) if resume else Checkpoint.new(self.part.params)
        if not resume and HELD in self._of and (self.part.merge == "add" or self._trained):
            # What training starts from (untrained, that is the base itself) stays, unless training beats it.
            state.best_loss = self._held_loss(self.part.params) + self._weighted_divergence(self.part.params)
        start = last_save = time.perf_counter()
        total = self.config.epochs * self.batches
        fit = FitState(state.params, state.mean, state.square, state.step)  # the same arrays
        while state.epoch < self.config.epochs and state.worse < self.config.patience:
            batches = self._batches(state.epoch)
            while state.batch < len(batches):
                if wants_stop():
                    state.save(self._path, self._identity)
                    raise Stopped(f"stopped in epoch {state.epoch + 1}; the checkpoint {self._path} is kept")
                terms = self._terms(state.epoch, state.batch, batches[state.batch])
                loss, count = take_step(self.part.kind, self.head, fit, terms, self.config, total)
                state.step, state.batch = fit.step, state.batch + 1
                state.train_sum, state.train_count = state.train_sum + loss, state.train_count + count
                held = state.losses[-1]["held"] if state.losses else None
                mean = state.train_sum / state.train_count
                progress(Progress(state.epoch + 1, self.config.epochs, state.batch, len(batches), mean, held))
                if time.perf_counter() - last_save > checkpoint_s:
                    state.save(self._path, self._identity)
                    last_save = time.perf_counter()
            self._end_epoch(state)
            state.save(self._path, self._identity)
        self.part.params = state.best
        seconds = time.perf_counter() - start
        best_loss, divergence = self._held_loss(state.best), self._divergence(state.best)
        return Result(base_loss, best_loss, divergence, state.epoch, seconds, self._of[TRAIN].tape.tokens)

    def left_as_it_is(self) -> Result:
        """What the part reaches without training."""
        params = self.part.params
        base_loss, loss, divergence = self._held_loss(None), self._held_loss(params), self._divergence(params)
        return Result(base_loss, loss, divergence, 0, 0.0, self._of[TRAIN].tape.tokens)

    def fit_bias(self, *names: str) -> fit_bias.Fitted:
        """Fit the part's bias to these tapes, and judge with it from now on."""
        tapes = [self._of[name].tape for name in names if name in self._of]
        fitted = fit_bias.fit(
            self.part, self.head, tapes[0] if len(tapes) == 1 else tapes[0] + tapes[1], self.config.seed
        )
        self.part.own_bias = fitted.bias
        self.head = self.head.tilted(fitted.bias)
        for batches in self._of.values():
            batches.head = self.head
        return fitted

    def learn_held(self) -> None:
        """Learn what was held out too, from the best parameters on: a few passes over all of it, at falling steps.

        What was held out has told when to stop, and its figures are taken before this: a person wants all that they
        gave to be learnt. Without held-out text it does nothing.
        """
        if HELD not in self._of:
            return
        fit = FitState.new(self.part.params)
        steps: list[tuple[str, int, int, list[int]]] = []
        for lap in range(LAST_EPOCHS):
            order = [
                (name, lap, number, examples)
                for name in (TRAIN, HELD)
                for number, examples in enumerate(self._of[name].epoch(lap, self.config.batch_tokens, self.config.seed))
            ]
            np.random.default_rng([self.config.seed, lap, 2]).shuffle(order)
            steps += order
        config = replace(self.config, learning_rate=self.config.learning_rate * LAST_RATE)
        for name, lap, number, examples in steps:
            terms = self._terms(self.config.epochs + lap, number, examples, name)
            take_step(self.part.kind, self.head, fit, terms, config, len(steps))
        self.part.params = fit.params

    def forget_checkpoint(self) -> None:
        """Delete it, once the plugin is saved."""
        self._path.unlink(missing_ok=True)

    @property
    def batches(self) -> int:
        """Steps of an epoch."""
        return len(self._batches(0))

    @property
    def learnt(self) -> Tape:
        """What it trains on."""
        return self._of[TRAIN].tape

    def _batches(self, epoch: int) -> list[list[int]]:
        return self._of[TRAIN].epoch(epoch, self.config.batch_tokens, self.config.seed)

    def _terms(self, epoch: int, batch: int, examples: list[int], of: str = TRAIN) -> Sequence[Term]:
        """The objective of a step; of the retain set as many tokens as a step has personal ones."""
        terms: list[Term] = [TargetLoss(self._of[of].rows(examples))]
        retain = self._of.get(RETAIN)
        if retain is not None:
            drawn = retain.drawn(self.config.batch_tokens, [self.config.seed, epoch, batch, 1])
            terms.append(KLToBase(retain.rows(drawn), self.config.retain_weight))
        return [*terms, *self._extra]

    def _end_epoch(self, state: Checkpoint) -> None:
        held = self._held_loss(state.params) if HELD in self._of else None
        state.losses.append({"train": state.train_sum / max(1, state.train_count), "held": held})
        loss = 0.0 if held is None else held + self._weighted_divergence(state.params)
        state.epoch, state.batch, state.train_sum, state.train_count = state.epoch + 1, 0, 0.0, 0
        if held is None or loss < state.best_loss:  # without held-out text the last epoch is the best
            state.best_loss, state.worse = loss, 0
            state.best = {name: value.copy() for name, value in state.params.items()}
        else:
            state.worse += 1

    def _weighted_divergence(self, params: Params) -> float:
        return self.config.retain_weight * self._divergence(params)

    def _held_loss(self, params: Params | None) -> float:
        return self._of.get(HELD, self._of[TRAIN]).loss(self.part.kind, params)

    def _divergence(self, params: Params) -> float:
        """From the base, on the part of the retain set that is held out; 0 without one."""
        held = self._of.get(RETAIN_HELD)
        return held.divergence(self.part.kind, params) if held is not None else 0.0

    def judge(self, tape: Tape, most: int = 0) -> Judged:
        """See fit.judge."""
        return judge(self.part, self.head, tape, self.config.seed, most)
