"""Pure training steps: parameters in, parameters out. No disk, no stopping, no plugin.

    fit(kind, head, params, batches, config) → Fitted       n steps, for whoever wants just these (a federated client)
    take_step(kind, head, state, terms, config, total)      one of them, for the trainer

A batch is a list of *terms*, whose gradients are summed: the loss on the person's targets, and the divergence from the
base on the retain set. Another term (FedProx's, say) is another class with `gradient`.

Letters: T rows, K tapped layers, R code width, D the model's width, N asked rows.
Test: pytest tests/training/test_fit.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sideplug.contract.correction import merged
from sideplug.contract.errors import InputError
from sideplug.plugins.base import Params, TrainedKind, TrainedPart
from sideplug.training import adamw
from sideplug.training.head import Head
from sideplug.training.judged import Judged
from sideplug.training.tape import Recorded, Tape


@dataclass(frozen=True)
class TrainConfig:
    """epochs at most; learning rate; tokens a step; weight decay; epochs without a better held-out loss; seed.

    retain_weight: of the divergence from the base on the retain set, beside the loss on the person's text. dropout: the
    share of numbers that a step drops, of a kind that drops any.
    Raises InputError for values out of range.
    """

    epochs: int = 6
    learning_rate: float = 1e-3
    batch_tokens: int = 64
    weight_decay: float = 0.1
    patience: int = 4
    warmup_steps: int = 10
    clip: float = 1.0
    seed: int = 0
    retain_weight: float = 1.0
    dropout: float = 0.5

    def __post_init__(self) -> None:
        for name in ("epochs", "learning_rate", "batch_tokens", "patience"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be above 0, got {getattr(self, name)}")


@dataclass
class Rows:
    """Rows of some texts, one behind the other.

    code_TKR: codes of all rows. starts_B: where each text begins. asked_N: the rows whose correction counts, of which
    z_ND, columns (N,) of the head and log_weight (N,) are.
    """

    code_TKR: np.ndarray
    starts_B: np.ndarray
    asked_N: np.ndarray
    z_ND: np.ndarray
    columns: np.ndarray
    log_weight: np.ndarray

    @classmethod
    def of(cls, recorded: Sequence[Recorded], head: Head, log_weights: Sequence[np.ndarray], context: bool) -> Rows:
        """The rows of these examples; with `context` those of their prompts too."""
        codes, starts, asked = [], [], []
        row = 0
        for example in recorded:
            before = example.context_CKR if context else None
            starts.append(row)
            if before is not None:
                codes.append(before)
                row += len(before)
            codes.append(example.code_TKR)
            asked.append(np.arange(row, row + len(example.ids)))
            row += len(example.ids)
        return cls(
            np.concatenate(codes),
            np.array(starts, np.int64),
            np.concatenate(asked),
            np.concatenate([example.z_TD for example in recorded]),
            head.column(np.concatenate([example.ids for example in recorded])),
            np.concatenate(log_weights),
        )

    def corrected(self, kind: TrainedKind, params: Params) -> np.ndarray:
        """z (N, D) of the asked rows, corrected."""
        delta_TD, _ = kind.forward(params, self.code_TKR, self.starts_B)
        return merged(self.z_ND, delta_TD[self.asked_N], kind.merge)


class Batches:
    """A tape's examples as batches of rows for one kind. The weights of the head's sample are computed once.

    context: whether the kind needs the rows of the prompts.
    """

    def __init__(self, tape: Tape, head: Head, context: bool) -> None:
        self.tape, self.head, self.context = tape, head, context
        self._log_weight: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.tape)

    @staticmethod
    def per_step(tape: Tape, batch_tokens: int) -> int:
        """How many examples have about so many tokens."""
        return max(1, round(batch_tokens / max(1.0, tape.tokens / len(tape))))

    @classmethod
    def count(cls, tape: Tape, batch_tokens: int) -> int:
        """The steps of an epoch over a tape."""
        return -(-len(tape) // cls.per_step(tape, batch_tokens))

    def epoch(self, number: int, batch_tokens: int, seed: int) -> list[list[int]]:
        """The examples of each step of an epoch: whole ones, shuffled by (seed, number), about so many tokens."""
        order = np.random.default_rng([seed, number]).permutation(len(self.tape))
        count = self.per_step(self.tape, batch_tokens)
        return [order[i : i + count].tolist() for i in range(0, len(order), count)]

    def drawn(self, tokens: int, seed: Sequence[int]) -> list[int]:
        """Examples drawn by seed, about so many tokens of them."""
        count = max(1, round(tokens * len(self.tape) / self.tape.tokens))
        return sorted(set(np.random.default_rng(list(seed)).integers(len(self.tape), size=count).tolist()))

    def rows(self, examples: Sequence[int]) -> Rows:
        """The rows of these examples."""
        recorded: list[Recorded] = [self.tape[i] for i in examples]
        for i, example in zip(examples, recorded, strict=True):
            if i not in self._log_weight:
                self._log_weight[i] = self.head.log_weight(example.z_TD, example.lse)
        return Rows.of(recorded, self.head, [self._log_weight[i] for i in examples], self.context)

    def mean(self, kind: TrainedKind, params: Params | None, judge: Callable[[Rows, np.ndarray], np.ndarray]) -> float:
        """The mean of `judge` over all tokens, with z as these parameters correct it (None: as it is)."""
        total, count = 0.0, 0
        for i in range(len(self)):
            rows = self.rows([i])
            values = judge(rows, rows.z_ND if params is None else rows.corrected(kind, params))
            total, count = total + float(values.sum()), count + len(values)
        return total / max(1, count)

    def loss(self, kind: TrainedKind, params: Params | None) -> float:
        """The mean loss of the targets, in nats."""
        head = self.head if params is not None else self.head.base
        return self.mean(kind, params, lambda rows, z_ND: head.loss(z_ND, rows.columns, rows.log_weight))

    def divergence(self, kind: TrainedKind, params: Params | None) -> float:
        """The mean divergence of the corrected base from the base, in nats."""
        head = self.head
        return self.mean(
            kind, params, lambda rows, z_ND: head.divergence_and_gradient(rows.z_ND, z_ND, rows.log_weight)[0]
        )


def judge(part: TrainedPart, head: Head, tape: Tape, seed: int = 0, most: int = 0) -> Judged:
    """What a part makes of a tape's targets, by the device's piece of the head.

    With `most`, of examples drawn by seed until they have that many tokens: z of a long tape takes much memory.
    """
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for i in np.random.default_rng(seed).permutation(len(tape)).tolist():
        if most and sum(len(part[0]) for part in parts) >= most:
            break
        example = tape[i]
        rows = Rows.of([example], head, [head.log_weight(example.z_TD, example.lse)], part.context is not None)
        z_ND = rows.corrected(part.kind, part.params)
        base = -head.base.loss(rows.z_ND, rows.columns, rows.log_weight)
        plugin = -head.loss(z_ND, rows.columns, rows.log_weight)
        parts.append((base, plugin, rows.z_ND))
    return Judged.of(parts)


class Term(Protocol):
    """A part of the objective."""

    def gradient(self, kind: TrainedKind, head: Head, params: Params) -> tuple[float, int, Params]:
        """(sum of the losses to report, how many, the weighted gradient of every parameter)."""
        ...


@dataclass
class TargetLoss:
    """The mean of −log p of the targets."""

    rows: Rows

    def gradient(self, kind: TrainedKind, head: Head, params: Params) -> tuple[float, int, Params]:
        """See Term."""
        rows = self.rows
        delta_TD, saved = kind.forward(params, rows.code_TKR, rows.starts_B)
        z_ND = merged(rows.z_ND, delta_TD[rows.asked_N], kind.merge)
        losses, d_z_ND = head.loss_and_gradient(z_ND, rows.columns, rows.log_weight)
        d_delta_TD = np.zeros_like(delta_TD)
        d_delta_TD[rows.asked_N] = d_z_ND / np.float32(len(losses))
        return float(losses.sum()), len(losses), kind.backward(params, saved, d_delta_TD)


@dataclass
class KLToBase:
    """The mean of KL(base ‖ corrected), times weight: the plugin learns to leave the retain set as it is."""

    rows: Rows
    weight: float

    def gradient(self, kind: TrainedKind, head: Head, params: Params) -> tuple[float, int, Params]:
        """See Term. Its losses are not reported."""
        rows = self.rows
        delta_TD, saved = kind.forward(params, rows.code_TKR, rows.starts_B)
        z_ND = merged(rows.z_ND, delta_TD[rows.asked_N], kind.merge)
        _, d_z_ND = head.divergence_and_gradient(rows.z_ND, z_ND, rows.log_weight)
        d_delta_TD = np.zeros_like(delta_TD)
        d_delta_TD[rows.asked_N] = d_z_ND * np.float32(self.weight / len(rows.z_ND))
        return 0.0, 0, kind.backward(params, saved, d_delta_TD)


@dataclass
class FitState:
    """Parameters, AdamW's moments, and the steps so far. `take_step` changes them in place."""

    params: Params
    mean: Params
    square: Params
    step: int = 0

    @classmethod
    def new(cls, params: Params) -> FitState:
        """A copy of these parameters, with moments of zero."""

        def scaled(by: float) -> Params:
            return {name: value * np.float32(by) for name, value in params.items()}

        return cls(scaled(1), scaled(0), scaled(0))

    def copy(self, params: Params) -> FitState:
        """A copy with these parameters."""

        def copied(group: Params) -> Params:
            return {name: value.copy() for name, value in group.items()}

        return FitState(copied(params), copied(self.mean), copied(self.square), self.step)


@dataclass(frozen=True)
class Fitted:
    """What `fit` reached: its state, the tokens that it saw, and their mean loss in nats."""

    state: FitState
    tokens: int
    loss: float

    @property
    def params(self) -> Params:
        """The parameters."""
        return self.state.params


def take_step(
    kind: TrainedKind, head: Head, state: FitState, terms: Sequence[Term], config: TrainConfig, total_steps: int
) -> tuple[float, int]:
    """One AdamW step on the sum of the terms: norm clipping, a short warm-up, a linear decay over `total_steps`.

    (sum of the losses before the step, how many).
    """
    loss, count = 0.0, 0
    gradients: Params = {}
    stepped = kind.dropped(config.dropout, np.random.default_rng([config.seed, state.step]))
    for term in terms:
        more_loss, more, gradient = term.gradient(stepped, head, state.params)
        loss, count = loss + more_loss, count + more
        if gradients:
            for name, value in gradient.items():
                gradients[name] += value
        else:
            gradients = gradient
    norm = float(np.sqrt(sum(float((g * g).sum()) for g in gradients.values())))
    shrink = np.float32(min(1.0, config.clip / (norm + 1e-6)))
    state.step += 1
    rate = config.learning_rate * min(1.0, state.step / config.warmup_steps) * (1 - (state.step - 1) / total_steps)
    for name, gradient_of in gradients.items():
        moments = state.mean[name], state.square[name]
        adamw.step(state.params[name], gradient_of * shrink, *moments, state.step, rate, config.weight_decay)
    return loss, count


def fit(
    kind: TrainedKind,
    head: Head,
    params: Params,
    batches: Iterable[Sequence[Term]],
    config: TrainConfig,
    state: FitState | None = None,
    total_steps: int = 0,
) -> Fitted:
    """Steps over these batches from these parameters, which stay as they are.

    state: what an earlier `fit` reached, to go on from with its moments and its place in the schedule (then `params`
    replaces its parameters). total_steps: of the schedule; 0: as many as there are batches.
    """
    steps = list(batches)
    mine = FitState.new(params) if state is None else state.copy(params)
    loss, count = 0.0, 0
    for terms in steps:
        more_loss, more = take_step(kind, head, mine, terms, config, total_steps or len(steps))
        loss, count = loss + more_loss, count + more
    return Fitted(mine, count, loss / max(1, count))
