"""Training a plugin from a tape: AdamW on the candidate softmax, in NumPy, stopped where held-out text says so.

No network and no LLM: what an epoch reads is on disk. An epoch's order comes from (seed, epoch), so a run that was
interrupted and resumed makes the very plugin of an unbroken one. It does not know the wire or the base model.
Test: pytest tests/training/test_trainer.py
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from sideplug.contract.errors import InputError, PluginError, Stopped
from sideplug.device.plugin import KINDS, Params, Plugin, write_aside
from sideplug.training import adamw
from sideplug.training.head import Head
from sideplug.training.tape import Judged, Tape

CHECKPOINT = "checkpoint.safetensors"
TRAIN, HELD, GENERAL, GENERAL_HELD = "train", "held", "general", "general held"  # the tapes


@dataclass(frozen=True)
class Settings:
    """epochs at most; learning rate; tokens a step; weight decay; epochs without a better held-out loss; seed.

    general_weight: of the divergence from the base on general text, beside the loss on the person's.
    """

    epochs: int = 8
    learning_rate: float = 1e-3
    batch_tokens: int = 64
    weight_decay: float = 0.1
    patience: int = 4
    warmup_steps: int = 10
    clip: float = 1.0
    seed: int = 0
    general_weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("epochs", "learning_rate", "batch_tokens", "patience"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be above 0, got {getattr(self, name)}")


@dataclass
class State:
    """Everything that a resumed run needs: where it stands, the parameters now and the best ones, AdamW's moments."""

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
    def new(cls, params: Params) -> State:
        def copied(scale: int) -> Params:
            return {name: value * np.float32(scale) for name, value in params.items()}

        return cls(copied(1), copied(1), copied(0), copied(0))

    _GROUPS = ("params", "best", "mean", "square")

    def save(self, path: Path, identity: dict[str, Any]) -> None:
        tensors = {f"{group}.{name}": value for group in self._GROUPS for name, value in getattr(self, group).items()}
        numbers = {name: value for name, value in vars(self).items() if name not in self._GROUPS}
        header = {"sideplug": json.dumps({"identity": identity, "numbers": numbers})}
        try:
            write_aside(path, safetensors.numpy.save(tensors, header))
        except OSError as error:
            raise Stopped(f"the checkpoint {path} could not be written: {error.strerror or error}") from error

    @classmethod
    def load(cls, path: Path, identity: dict[str, Any]) -> State:
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
class Rows:
    """Tokens of some examples: codes, z, the head's columns of the targets, what the head's sample counts."""

    code_TKR: np.ndarray
    z_TD: np.ndarray
    columns: np.ndarray
    log_weight: np.ndarray


@dataclass
class Result:
    """What training reached, in nats a token on held-out text: loss of the base and of the best plugin on the
    person's, divergence of the best plugin from the base on general text (0 without any)."""

    base_loss: float
    best_loss: float
    general_divergence: float
    epochs: int
    seconds: float
    tokens: int

    def to_json(self) -> dict[str, Any]:
        return {name: round(value, 6) if isinstance(value, float) else value for name, value in asdict(self).items()}


@dataclass
class Progress:
    """Told after every step: which epoch and batch of how many, the running training loss, the last held-out loss."""

    epoch: int
    epochs: int
    batch: int
    batches: int
    loss: float
    held_loss: float | None


class Trainer:
    """`run` trains `plugin` in place and leaves the best parameters in it.

    `general`: tapes of general text, to train on and held out. There the target is the base's own distribution: the
    plugin learns to be silent. `started`: it was trained before, and goes on from there.
    """

    def __init__(
        self,
        plugin: Plugin,
        head: Head,
        train: Tape,
        held: Tape,
        settings: Settings,
        folder: Path,
        general: tuple[Tape, Tape] | None = None,
        started: bool = False,
    ) -> None:
        self.plugin = plugin
        self.started = started
        self.head = head
        self.settings = settings
        self._kind = KINDS[plugin.kind]
        self._tapes = {TRAIN: train, HELD: held}
        if general and settings.general_weight:
            self._tapes |= {GENERAL: general[0], GENERAL_HELD: general[1]}
        self._log_weight: dict[tuple[str, int], np.ndarray] = {}
        self._path = folder / CHECKPOINT
        self._identity: dict[str, Any] = {
            "settings": asdict(settings),
            "plugin": [plugin.kind, plugin.base, plugin.tap.name],
        }
        self._identity["parameters"] = plugin.size
        self._identity["tokens"] = [tape.tokens for tape in self._tapes.values()]
        self._identity["candidates"] = hashlib.sha256(head.ids.tobytes()).hexdigest()

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
        state = State.load(self._path, self._identity) if resume else State.new(self.plugin.params)
        if not resume and (self._kind.merge == "add" or self.started):
            # What training starts from (untrained, that is the base itself) stays, unless training beats it.
            state.best_loss = self._judged(self.plugin.params)
        start = last_save = time.perf_counter()
        total = self.settings.epochs * self.batches
        while state.epoch < self.settings.epochs and state.worse < self.settings.patience:
            batches = self._batches(state.epoch)
            while state.batch < len(batches):
                if wants_stop():
                    state.save(self._path, self._identity)
                    raise Stopped(f"stopped in epoch {state.epoch + 1}; the checkpoint {self._path} is kept")
                self._step(state, batches[state.batch], total)
                held = state.losses[-1]["held"] if state.losses else None
                loss = state.train_sum / state.train_count
                progress(Progress(state.epoch + 1, self.settings.epochs, state.batch, len(batches), loss, held))
                if time.perf_counter() - last_save > checkpoint_s:
                    state.save(self._path, self._identity)
                    last_save = time.perf_counter()
            self._end_epoch(state)
            state.save(self._path, self._identity)
        self.plugin.params = state.best
        seconds = time.perf_counter() - start
        loss, divergence = self._held_loss(state.best), self._divergence(state.best)
        return Result(base_loss, loss, divergence, state.epoch, seconds, self._tapes[TRAIN].tokens)

    def forget_checkpoint(self) -> None:
        """Once the plugin is saved."""
        self._path.unlink(missing_ok=True)

    @property
    def batches(self) -> int:
        """Steps of an epoch."""
        return len(self._batches(0))

    def _batches(self, epoch: int) -> list[list[int]]:
        """Examples of each step: whole ones, shuffled by (seed, epoch), until a step has its tokens."""
        order = np.random.default_rng([self.settings.seed, epoch]).permutation(len(self._tapes[TRAIN]))
        per_example = max(1.0, self._tapes[TRAIN].tokens / len(order))
        count = max(1, round(self.settings.batch_tokens / per_example))
        return [order[i : i + count].tolist() for i in range(0, len(order), count)]

    def _step(self, state: State, examples: list[int], total_steps: int) -> None:
        rows = self._rows(TRAIN, examples)
        delta, saved = self._kind.forward(state.params, rows.code_TKR, train=True)
        losses, d_delta = self.head.loss_and_gradient(self._merged(rows.z_TD, delta), rows.columns, rows.log_weight)
        gradients = self._kind.backward(state.params, rows.code_TKR, saved, d_delta / np.float32(len(losses)))
        for name, gradient in self._kl_to_base(state).items():
            gradients[name] += gradient
        self._adamw(state, gradients, total_steps)
        state.batch += 1
        state.train_sum += float(losses.sum())
        state.train_count += len(losses)

    def _kl_to_base(self, state: State) -> Params:
        """Gradients of the weighted divergence from the base on as much general text as a step has personal."""
        tape = self._tapes.get(GENERAL)
        if tape is None:
            return {}
        count = max(1, round(self.settings.batch_tokens * len(tape) / tape.tokens))
        drawn = np.random.default_rng([self.settings.seed, state.epoch, state.batch, 1]).integers(len(tape), size=count)
        rows = self._rows(GENERAL, sorted(set(drawn.tolist())))
        delta, saved = self._kind.forward(state.params, rows.code_TKR, train=True)
        _, d_delta = self.head.divergence_and_gradient(rows.z_TD, self._merged(rows.z_TD, delta), rows.log_weight)
        share = np.float32(self.settings.general_weight / len(rows.z_TD))
        gradients: Params = self._kind.backward(state.params, rows.code_TKR, saved, d_delta * share)
        return gradients

    def _adamw(self, state: State, gradients: Params, total_steps: int) -> None:
        """AdamW with a clipped norm, a short warm-up and a linear decay."""
        s = self.settings
        norm = float(np.sqrt(sum(float((g * g).sum()) for g in gradients.values())))
        shrink = np.float32(min(1.0, s.clip / (norm + 1e-6)))
        state.step += 1
        rate = s.learning_rate * min(1.0, state.step / s.warmup_steps) * (1 - (state.step - 1) / total_steps)
        for name, gradient in gradients.items():
            moments = state.mean[name], state.square[name]
            adamw.step(state.params[name], gradient * shrink, *moments, state.step, rate, s.weight_decay)

    def _end_epoch(self, state: State) -> None:
        held = self._held_loss(state.params)
        state.losses.append({"train": state.train_sum / max(1, state.train_count), "held": held})
        loss = held + self._weighted_divergence(state.params)
        state.epoch, state.batch, state.train_sum, state.train_count = state.epoch + 1, 0, 0.0, 0
        if loss < state.best_loss:
            state.best_loss, state.worse = loss, 0
            state.best = {name: value.copy() for name, value in state.params.items()}
        else:
            state.worse += 1

    def _judged(self, params: Params) -> float:
        """What is to be small: the loss on the person's held-out text, and the weighted divergence on general text."""
        return self._held_loss(params) + self._weighted_divergence(params)

    def _weighted_divergence(self, params: Params) -> float:
        return self.settings.general_weight * self._divergence(params)

    def _held_loss(self, params: Params | None) -> float:
        def losses(rows: Rows, z_TD: np.ndarray) -> np.ndarray:
            return self.head.loss(z_TD, rows.columns, rows.log_weight)

        return self._mean(HELD, params, losses)

    def _divergence(self, params: Params) -> float:
        """From the base, on held-out general text."""

        def divergences(rows: Rows, z_TD: np.ndarray) -> np.ndarray:
            return self.head.divergence_and_gradient(rows.z_TD, z_TD, rows.log_weight)[0]

        return self._mean(GENERAL_HELD, params, divergences)

    def _mean(self, which: str, params: Params | None, judge: Callable[[Rows, np.ndarray], np.ndarray]) -> float:
        """Over a tape's tokens, with z as these parameters correct it (None: as it is); 0 without such a tape."""
        total, count = 0.0, 0
        for i in range(len(self._tapes.get(which, ()))):
            rows = self._rows(which, [i])
            z = rows.z_TD
            if params is not None:
                z = self._merged(z, self._kind.forward(params, rows.code_TKR)[0])
            found = judge(rows, z)
            total, count = total + float(found.sum()), count + len(found)
        return total / max(1, count)

    def judge(self, tape: Tape, most: int = 0) -> Judged:
        """What the plugin makes of a tape's targets, by the device's piece of the head.

        With `most`, of examples drawn by seed until they have that many tokens: z of all of a long tape is much memory.
        """
        parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for i in np.random.default_rng(self.settings.seed).permutation(len(tape)).tolist():
            if most and sum(len(part[0]) for part in parts) >= most:
                break
            reading = tape[i]
            z, columns = reading.z_TD, self.head.column(reading.ids)
            weight = self.head.log_weight(z, reading.lse)
            corrected = self._merged(z, self.plugin.correct(reading.code_TKR))
            parts.append((-self.head.loss(z, columns, weight), -self.head.loss(corrected, columns, weight), z))
        return Judged.of(parts)

    def _merged(self, z_TD: np.ndarray, delta_TD: np.ndarray) -> np.ndarray:
        merged: np.ndarray = z_TD + delta_TD if self._kind.merge == "add" else delta_TD
        return merged

    def _rows(self, which: str, examples: list[int]) -> Rows:
        """These examples of a tape, one behind the other. What the head's sampled tokens count is computed once."""
        readings = [self._tapes[which][i] for i in examples]
        for i, reading in zip(examples, readings, strict=True):
            if (which, i) not in self._log_weight:
                self._log_weight[which, i] = self.head.log_weight(reading.z_TD, reading.lse)
        return Rows(
            np.concatenate([reading.code_TKR for reading in readings]),
            np.concatenate([reading.z_TD for reading in readings]),
            self.head.column(np.concatenate([reading.ids for reading in readings])),
            np.concatenate([self._log_weight[which, i] for i in examples]),
        )
