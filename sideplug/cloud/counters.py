"""What a cloud counts of itself: plain numbers, that cost nothing to keep and say nothing of anybody's text.

The engine's thread and the event loop each add to their own; `metrics` shows them.
Test: pytest tests/cloud/test_metrics.py
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Histogram:
    """Counts of values up to each bound, and above; and their sum."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def cumulative(self) -> list[tuple[str, int]]:
        """(upper bound, values up to it), as Prometheus wants them."""
        total, found = 0, []
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            total += count
            found.append(("+Inf" if bound == float("inf") else str(bound), total))
        return found


@dataclass
class Counters:
    """tokens: prompt (run), kept (taken over), reply. replies: by how they ended. gate: what DONE counts."""

    steps: int = 0
    tokens: Counter[str] = field(default_factory=Counter)
    replies: Counter[str] = field(default_factory=Counter)
    readings: int = 0
    gate: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    resumed: int = 0
    bytes: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # direction, kind, codec
    frames: Counter[tuple[str, str]] = field(default_factory=Counter)  # direction, kind
    batch: Histogram = field(default_factory=lambda: Histogram(ROWS))  # sequences of a step
    step_s: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    answer_s: Histogram = field(default_factory=lambda: Histogram(SECONDS))  # from an ask to its answer
    first_s: Histogram = field(default_factory=lambda: Histogram(SECONDS))  # from a prompt to its first token
    queue_s: Histogram = field(default_factory=lambda: Histogram(SECONDS))  # from a prompt to its first step
