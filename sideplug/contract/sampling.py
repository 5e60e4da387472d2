"""Sampling chooses a token from logits. Every path (streamed, resumed, cloud or device head) chooses the same token.

    token = argmax(logits / temperature + gumbel(seed, position))   among the tokens that top-k, top-p and min-p keep

The noise is counter-based: it comes from Philox with the seed as key and the token's position as counter, so it depends
on nothing else. Temperature 0 is greedy. It does not know models or batches: it works on one position at a time.
Test: pytest tests/contract/test_sampling.py
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sideplug.contract.errors import InputError
from sideplug.contract.frames import SamplingSpec


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen. temperature 0 (greedy) or 0.001 to 10; top_k (0: off); top_p in (0, 1]; min_p in [0, 1]:
    tokens less probable than this share of the best one's probability are left out (0: off);
    repetition_penalty 0.1 to 10 (1: off); seed: the same one gives the same text. Raises InputError.

    >>> sideplug.Sampling(temperature=0.8, top_p=0.9, seed=1).top_k
    0
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        greedy = self.temperature == 0
        _must("temperature", self.temperature, greedy or 1e-3 <= self.temperature <= 10, "0, or 0.001 to 10")
        _must("top_k", self.top_k, isinstance(self.top_k, int) and 0 <= self.top_k <= 1 << 24, "0 or more")
        _must("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1")
        _must("repetition_penalty", self.repetition_penalty, 0.1 <= self.repetition_penalty <= 10, "0.1 to 10")
        _must("min_p", self.min_p, 0 <= self.min_p <= 1, "0 to 1")
        _must("seed", self.seed, isinstance(self.seed, int) and 0 <= self.seed < 1 << 63, "0 to 2^63 - 1")

    def to_wire(self) -> SamplingSpec:
        """Return the settings as a PROMPT frame carries them: those that are not the default's."""
        plain = asdict(Sampling())
        return SamplingSpec(**{name: value for name, value in asdict(self).items() if value != plain[name]})

    @classmethod
    def from_wire(cls, spec: SamplingSpec) -> Sampling:
        """Return the settings of a PROMPT frame. Raises InputError for values out of range."""
        return cls(spec.temperature, spec.top_k, spec.top_p, spec.repetition_penalty, spec.seed, spec.min_p)


def _must(name: str, value: Any, ok: bool, allowed: str) -> None:
    if not ok:
        raise InputError(f"{name} must be {allowed}, got {value}")


def uniform(seed: int, position: int, size: int) -> np.ndarray:
    """Return random numbers in [0, 1), (size,) float64, for one position; a larger `size` only appends numbers."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, position])).random(size)


def gumbel(uniform: np.ndarray) -> np.ndarray:
    """Return standard Gumbel noise from uniform numbers; the function is increasing."""
    return -np.log(-np.log(uniform + 1e-300) + 1e-300)


def choose(logits_V: np.ndarray, sampling: Sampling, position: int, context: Sequence[int] = ()) -> int:
    """Return the token id for `position`, its index in the whole text, from logits (V,).

    `context`: the ids so far, for the repetition penalty. By the Gumbel-max trick, the token with the largest sum of
    score and noise is a sample of the softmax. The noise is computed only for tokens that can win.
    """
    if sampling.repetition_penalty != 1.0 and len(context):
        logits_V = logits_V.copy()
        seen = np.unique(np.asarray(context))
        scores = logits_V[seen]
        penalty = sampling.repetition_penalty
        logits_V[seen] = np.where(scores > 0, scores / penalty, scores * penalty)
    if sampling.temperature == 0:
        return int(np.argmax(logits_V))
    scores, kept = logits_V.astype(np.float64) / sampling.temperature, None
    if 0 < sampling.top_k < logits_V.size:
        kept = np.sort(np.argpartition(logits_V, -sampling.top_k)[-sampling.top_k :])
        scores = scores[kept]
    if sampling.top_p < 1:
        inside = _nucleus(scores, sampling.top_p)
        kept, scores = (inside if kept is None else kept[inside]), scores[inside]
    if sampling.min_p > 0:
        inside = np.flatnonzero(scores >= scores.max() + np.log(sampling.min_p))
        kept, scores = (inside if kept is None else kept[inside]), scores[inside]
    numbers = uniform(sampling.seed, position, logits_V.size if kept is None else int(kept[-1]) + 1)
    numbers = numbers if kept is None else numbers[kept]
    # No token's noise exceeds that of the largest number: a token that would not win even with it can't win.
    best = int(np.argmax(scores))
    lead = gumbel(numbers.max()) - gumbel(numbers[best])
    may_win = np.flatnonzero(scores >= scores[best] - lead - 1e-9)
    winner = may_win[np.argmax(scores[may_win] + gumbel(numbers[may_win]))]
    return int(winner if kept is None else kept[winner])


def _nucleus(scores: np.ndarray, top_p: float) -> np.ndarray:
    """Return the ascending indices of the best scores, as many as top_p needs; equal scores keep their order."""
    p = np.exp(scores - scores.max())
    enough = top_p * p.sum()
    count = 256
    while True:
        count = min(count, scores.size)
        lowest = np.partition(scores, -count)[-count]
        candidates = np.flatnonzero(scores >= lowest)
        order = candidates[np.argsort(-scores[candidates], kind="stable")]
        before = np.cumsum(p[order]) - p[order]
        if count == scores.size or before[-1] + p[order[-1]] >= enough:
            return np.sort(order[before < enough])
        count *= 8
