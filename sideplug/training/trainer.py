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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from sideplug.contract.errors import PluginError, Stopped
from sideplug.paths import write_aside
from sideplug.plugins.base import Params, TrainedPart
from sideplug.training.fit import FitState, KLToBase, Rows, TargetLoss, Term, TrainConfig, take_step
from sideplug.training.head import Head
from sideplug.training.judged import Judged
from sideplug.training.tape import Recorded, Tape

CHECKPOINT = "checkpoint.safetensors"
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
    losses: list[dict[str, float]] = field(default_factory=list)  # one a finished epoch
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
        try:
            write_aside(path, safetensors.numpy.save(tensors, header))
        except OSError as error:
            raise Stopped(f"the checkpoint {path} could not be written: {error.strerror or error}") from error

    @classmethod
    def load(cls, path: Path, identity: dict[str, Any]) -> Checkpoint:
        """Raises PluginError when there is no checkpoint, a damaged one, or one of another training."""
        if not path.is_file():
            raise PluginError(f"there is no checkpoint to resume from in {path.parent}: train without --resume")
        try:
            with safetensors.safe_open(path, "numpy") as file:
                header = json.loads((file.metadata() or {})["sideplug"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (safetensors.SafetensorError, ValueError, KeyError, OSError) as error:
            raise PluginError(f"the checkpoint {path} is damaged: {error}; train without --resume") from error
        if header["identity"] != identity:
            names = [name for name, value in identity.items() if header["identity"].get(name) != value]
            raise PluginError(f"the checkpoint {path} is of another training: {', '.join(names)} changed since")
        groups: dict[str, Params] = {group: {} for group in cls._GROUPS}
        for name, value in tensors.items():
            group, _, rest = name.partition(".")
            groups[group][rest] = value.copy()
        params, best, mean, square = (groups[group] for group in cls._GROUPS)
        return cls(params, best, mean, square, **header["numbers"])


@dataclass
class Result:
    """What training reached, in nats a token on held-out text: loss of the base and of the best part on the person's,
    divergence of the best part from the base on the retain set (0 without one)."""

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

    retain: tapes of the retain set, to train on and held out. There the target is the base's own distribution. trained:
    the part was trained before, and goes on from there. base: the base model's fingerprint.
    """

    def __init__(
        self,
        part: TrainedPart,
        base: str,
        head: Head,
        train: Tape,
        held: Tape,
        config: TrainConfig,
        folder: Path,
        retain: tuple[Tape, Tape] | None = None,
        trained: bool = False,
    ) -> None:
        self.part = part
        self.head = head
        self.config = config
        self._trained = trained
        self._tapes = {TRAIN: train, HELD: held}
        if retain and config.retain_weight:
            self._tapes |= {RETAIN: retain[0], RETAIN_HELD: retain[1]}
        self._log_weight: dict[tuple[str, int], np.ndarray] = {}
        self._path = folder / CHECKPOINT
        self._identity: dict[str, Any] = {
            "settings": asdict(config),
            "plugin": [part.kind_name, base, part.tap.name],
            "parameters": part.size,
            "tokens": [tape.tokens for tape in self._tapes.values()],
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
        if not resume and (self.part.merge == "add" or self._trained):
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
        return Result(base_loss, best_loss, divergence, state.epoch, seconds, self._tapes[TRAIN].tokens)

    def forget_checkpoint(self) -> None:
        """Delete it, once the plugin is saved."""
        self._path.unlink(missing_ok=True)

    @property
    def batches(self) -> int:
        """Steps of an epoch."""
        return len(self._batches(0))

    def _batches(self, epoch: int) -> list[list[int]]:
        """Examples of each step: whole ones, shuffled by (seed, epoch), until a step has its tokens."""
        order = np.random.default_rng([self.config.seed, epoch]).permutation(len(self._tapes[TRAIN]))
        per_example = max(1.0, self._tapes[TRAIN].tokens / len(order))
        count = max(1, round(self.config.batch_tokens / per_example))
        return [order[i : i + count].tolist() for i in range(0, len(order), count)]

    def _terms(self, epoch: int, batch: int, examples: list[int]) -> Sequence[Term]:
        """The objective of a step; of the retain set as many tokens as a step has personal ones."""
        terms: list[Term] = [TargetLoss(self._rows(TRAIN, examples))]
        tape = self._tapes.get(RETAIN)
        if tape is not None:
            count = max(1, round(self.config.batch_tokens * len(tape) / tape.tokens))
            drawn = np.random.default_rng([self.config.seed, epoch, batch, 1]).integers(len(tape), size=count)
            rows = self._rows(RETAIN, sorted(set(drawn.tolist())))
            terms.append(KLToBase(rows, self.config.retain_weight))
        return terms

    def _end_epoch(self, state: Checkpoint) -> None:
        held = self._held_loss(state.params)
        state.losses.append({"train": state.train_sum / max(1, state.train_count), "held": held})
        loss = held + self._weighted_divergence(state.params)
        state.epoch, state.batch, state.train_sum, state.train_count = state.epoch + 1, 0, 0.0, 0
        if loss < state.best_loss:
            state.best_loss, state.worse = loss, 0
            state.best = {name: value.copy() for name, value in state.params.items()}
        else:
            state.worse += 1

    def _weighted_divergence(self, params: Params) -> float:
        return self.config.retain_weight * self._divergence(params)

    def _held_loss(self, params: Params | None) -> float:
        def losses(rows: Rows, z_ND: np.ndarray) -> np.ndarray:
            return self.head.loss(z_ND, rows.columns, rows.log_weight)

        return self._mean(HELD, params, losses)

    def _divergence(self, params: Params) -> float:
        """From the base, on the retain set that is held out."""

        def divergences(rows: Rows, z_ND: np.ndarray) -> np.ndarray:
            return self.head.divergence_and_gradient(rows.z_ND, z_ND, rows.log_weight)[0]

        return self._mean(RETAIN_HELD, params, divergences)

    def _mean(self, which: str, params: Params | None, judge: Callable[[Rows, np.ndarray], np.ndarray]) -> float:
        """Over a tape's tokens, with z as these parameters correct it (None: as it is); 0 without such a tape."""
        total, count = 0.0, 0
        for i in range(len(self._tapes.get(which, ()))):
            rows = self._rows(which, [i])
            z_ND = rows.z_ND if params is None else rows.corrected(self.part.kind, params)
            values = judge(rows, z_ND)
            total, count = total + float(values.sum()), count + len(values)
        return total / max(1, count)

    def judge(self, tape: Tape, most: int = 0) -> Judged:
        """What the part makes of a tape's targets, by the device's piece of the head.

        With `most`, of examples drawn by seed until they have that many tokens: z of a long tape takes much memory.
        """
        parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for i in np.random.default_rng(self.config.seed).permutation(len(tape)).tolist():
            if most and sum(len(part[0]) for part in parts) >= most:
                break
            example = tape[i]
            rows = Rows.of([example], self.head, [self.head.log_weight(example.z_TD, example.lse)], self._context)
            z_ND = rows.corrected(self.part.kind, self.part.params)
            base, plugin = (-self.head.loss(z, rows.columns, rows.log_weight) for z in (rows.z_ND, z_ND))
            parts.append((base, plugin, rows.z_ND))
        return Judged.of(parts)

    @property
    def _context(self) -> bool:
        return self.part.context is not None

    def _rows(self, which: str, examples: list[int]) -> Rows:
        """The rows of these examples of a tape. The weights of the head's sample are computed once."""
        recorded: list[Recorded] = [self._tapes[which][i] for i in examples]
        for i, example in zip(examples, recorded, strict=True):
            if (which, i) not in self._log_weight:
                self._log_weight[which, i] = self.head.log_weight(example.z_TD, example.lse)
        return Rows.of(recorded, self.head, [self._log_weight[which, i] for i in examples], self._context)
