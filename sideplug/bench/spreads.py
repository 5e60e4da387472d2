"""Figures with their spread: several runs' median with the least and most, a mean with its bootstrap interval.

Test: pytest tests/bench/test_measures.py
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np


def spread(values: list[float]) -> dict[str, float]:
    """Return the median, least and most of several runs."""
    return {
        "median": round(statistics.median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
        "runs": len(values),
    }


Pairs = Sequence[Sequence[float]]  # of each example its sum and what it is over: nats and tokens, a score and one


def bootstrap(pairs: Pairs, less: Pairs | None = None, draws: int = 2000, seed: int = 0) -> dict[str, float]:
    """Return the mean Σ sums / Σ counts over examples, and its 95 % interval (percentiles of resampled examples).

    With `less`, of the same examples by another system: the difference of the two means, of the same draws. Most of the
    spread of a loss is that of the texts, which both have read; the difference is without it.
    """
    picks = np.random.default_rng(seed).integers(0, len(pairs), (draws, len(pairs)))

    def means(of: Pairs) -> tuple[float, np.ndarray]:
        sums, counts = np.asarray(of, float).T
        return sums.sum() / counts.sum(), sums[picks].sum(1) / np.maximum(1e-9, counts[picks].sum(1))

    mean, drawn = means(pairs)
    if less is not None:
        other, others = means(less)
        mean, drawn = mean - other, drawn - others
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {
        "mean": round(float(mean), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
        "examples": len(pairs),
    }
