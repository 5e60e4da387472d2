"""Pure training steps: parameters in, parameters out. No disk, no stopping, no plugin.

    fit(kind, head, params, batches, config) → Fitted       n steps, for whoever wants just these (a federated client)
    take_step(kind, head, state, terms, config, total)      one of them, for the trainer

A batch is a list of *terms*, whose gradients are summed: the loss on the person's targets, and the divergence from the
base on the retain set. Another term (FedProx's, say) is another class with `gradient`.

Letters: T rows, K tapped layers, R code width, D the model's width, N asked rows.
Test: pytest tests/training/test_fit.py
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sideplug.contract.correction import merged
from sideplug.contract.errors import InputError
from sideplug.plugins.base import Params, TrainedKind
from sideplug.training import adamw
from sideplug.training.head import Head
from sideplug.training.tape import Recorded


@dataclass(frozen=True)
class TrainConfig:
    """epochs at most; learning rate; tokens a step; weight decay; epochs without a better held-out loss; seed.

    retain_weight: of the divergence from the base on the retain set, beside the loss on the person's text.
    Raises InputError for values out of range.
    """

    epochs: int = 8
    learning_rate: float = 1e-3
    batch_tokens: int = 64
    weight_decay: float = 0.1
    patience: int = 4
    warmup_steps: int = 10
    clip: float = 1.0
    seed: int = 0
    retain_weight: float = 1.0

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


@dataclass(frozen=True)
class Fitted:
    """What `fit` reached: the parameters, the tokens that it saw, and their mean loss in nats."""

    params: Params
    tokens: int
    loss: float


def take_step(
    kind: TrainedKind, head: Head, state: FitState, terms: Sequence[Term], config: TrainConfig, total_steps: int
) -> tuple[float, int]:
    """One AdamW step on the sum of the terms: norm clipping, a short warm-up, a linear decay over `total_steps`.

    (sum of the losses before the step, how many).
    """
    loss, count = 0.0, 0
    gradients: Params = {}
    for term in terms:
        more_loss, more, gradient = term.gradient(kind, head, state.params)
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
    kind: TrainedKind, head: Head, params: Params, batches: Iterable[Sequence[Term]], config: TrainConfig
) -> Fitted:
    """Steps over these batches from these parameters, which stay as they are."""
    steps = list(batches)
    state = FitState.new(params)
    loss, count = 0.0, 0
    for terms in steps:
        more_loss, more = take_step(kind, head, state, terms, config, len(steps))
        loss, count = loss + more_loss, count + more
    return Fitted(state.params, count, loss / max(1, count))
