"""A person's bias in closed form: which words they use more, and which less, than the base expects of them.

    u_v = log((n_v + k) / (m_v + k))        for the tokens v of the person's text

n_v: how often v stands in the text. m_v: how often it was to be expected, the sum over all positions of p(v) by the
base with the part's correction. k is the one of SHRINK with the lowest loss where each tenth of the text is judged by
the bias of the rest; where none lowers it, there is no bias. Nothing is trained.

Letters: T tokens, S candidates. It does not know files or the cloud. Test: pytest tests/training/test_fit_bias.py
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sideplug.contract.bias import MOST, NONE, Bias
from sideplug.contract.capabilities import MAX_BIASED
from sideplug.plugins.base import TrainedPart
from sideplug.training.fit import Rows
from sideplug.training.head import Head
from sideplug.training.tape import Tape

SHRINK = (1.0, 3.0, 10.0, 30.0)
FOLDS = 10
JUDGED = 10_000  # tokens that the choice of k is judged on, at most


@dataclass(frozen=True)
class Fitted:
    """A bias, and the loss in nats a token of the text's tenths without it and with that of the rest."""

    bias: Bias
    before: float
    after: float

    @property
    def line(self) -> str:
        """For a person to read."""
        if not len(self.bias):
            return "your words: they lower no loss beyond what the rest does, so no bias is kept"
        return (
            f"your words: {len(self.bias):,} tokens are made likelier or rarer ({self.after - self.before:+.3f} nats)"
        )


def fit(part: TrainedPart, head: Head, tape: Tape, seed: int = 0) -> Fitted:
    """The bias of a tape's targets beside a part, whose own bias does not count."""
    head = head.base
    fold_of = np.random.default_rng([seed, 5]).permutation(len(tape)) % min(FOLDS, len(tape))
    folds = int(fold_of.max()) + 1
    counts, expected = np.zeros((2, folds, len(head.ids)))
    for i, fold in enumerate(fold_of):
        p_TS, columns = _probabilities(part, head, tape, i)
        counts[fold] += np.bincount(columns, minlength=len(head.ids))
        expected[fold] += p_TS.sum(0)
    shrink, before, after = _chosen(part, head, tape, fold_of, counts, expected) if folds > 1 else (0.0, 0.0, 0.0)
    if not shrink:
        return Fitted(NONE, before, after)
    u_S = _bias(counts.sum(0), expected.sum(0), shrink)
    seen = np.flatnonzero(counts.sum(0))
    if len(seen) > MAX_BIASED:  # those that change most
        moved = np.abs(u_S[seen]) * (counts.sum(0)[seen] + expected.sum(0)[seen])
        seen = np.sort(seen[np.argsort(-moved)[:MAX_BIASED]])
    return Fitted(Bias(head.ids[seen].astype(np.int32), u_S[seen].astype(np.float16)), before, after)


def _bias(counts_S: np.ndarray, expected_S: np.ndarray, shrink: float) -> np.ndarray:
    u_S = np.where(counts_S > 0, np.log((counts_S + shrink) / (expected_S + shrink)), 0.0)
    return np.clip(u_S, -MOST, MOST)


def _chosen(
    part: TrainedPart, head: Head, tape: Tape, fold_of: np.ndarray, counts: np.ndarray, expected: np.ndarray
) -> tuple[float, float, float]:
    """(k, the loss without a bias, with it); k = 0 where none lowers the loss."""
    losses, before, tokens = np.zeros(len(SHRINK)), 0.0, 0
    for i, fold in enumerate(fold_of):
        if tokens >= JUDGED:
            break
        p_TS, columns = _probabilities(part, head, tape, i)
        rows = np.arange(len(columns))
        log_p = np.log(np.maximum(p_TS[rows, columns], 1e-30))
        before, tokens = before - float(log_p.sum()), tokens + len(columns)
        others = counts.sum(0) - counts[fold], expected.sum(0) - expected[fold]
        for number, shrink in enumerate(SHRINK):
            u_S = _bias(*others, shrink)
            total_T = 1 + p_TS @ np.expm1(u_S).astype(np.float32)
            losses[number] -= float((log_p + u_S[columns] - np.log(total_T)).sum())
    best = int(np.argmin(losses))
    if not losses[best] < before:
        return 0.0, before / max(1, tokens), before / max(1, tokens)
    return SHRINK[best], before / tokens, float(losses[best]) / tokens


def _probabilities(part: TrainedPart, head: Head, tape: Tape, i: int) -> tuple[np.ndarray, np.ndarray]:
    """(p (T, S) of an example's positions by the corrected base, its targets' columns (T,))."""
    example = tape[i]
    rows = Rows.of([example], head, [head.log_weight(example.z_TD, example.lse)], part.context is not None)
    return head.probabilities(rows.corrected(part.kind, part.params), rows.log_weight), rows.columns
