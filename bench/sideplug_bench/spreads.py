"""Figures with their spread: several runs' median with the least and most, a mean with its bootstrap interval."""

from __future__ import annotations

import statistics

import numpy as np


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and most of several runs."""
    return {
        "median": round(statistics.median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
        "runs": len(values),
    }


def bootstrap(sums: list[float], counts: list[float], draws: int = 2000, seed: int = 0) -> dict[str, float]:
    """Mean of Σ sums / Σ counts over examples, and its 95 % interval (percentiles of resampled examples)."""
    a, b = np.asarray(sums, float), np.asarray(counts, float)
    picks = np.random.default_rng(seed).integers(0, len(a), (draws, len(a)))
    means = a[picks].sum(1) / np.maximum(1e-9, b[picks].sum(1))
    low, high = np.percentile(means, [2.5, 97.5])
    return {
        "mean": round(float(a.sum() / b.sum()), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
        "examples": len(a),
    }
