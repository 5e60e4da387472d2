"""The counters of a cloud's work: plain numbers that hold no text of a user.

The engine's thread and the event loop each add to counters of their own. It does not know how `metrics` shows them.
Test: pytest tests/cloud/test_metrics.py
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SEQUENCES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Histogram:
    """How many values fell below each bound and above the last one, and the sum of all values."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def cumulative(self) -> list[tuple[str, int]]:
        """(upper bound, number of values up to it) for each bound and "+Inf", the form that Prometheus reads."""
        total, pairs = 0, []
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            total += count
            pairs.append(("+Inf" if bound == float("inf") else str(bound), total))
        return pairs


@dataclass
class Counters:
    """Everything that is counted, from the start of the process on."""

    steps: int = 0  # packed forwards
    tokens: Counter[str] = field(default_factory=Counter)  # prompt (run), kept (copied from the prefix cache), reply
    replies: Counter[str] = field(default_factory=Counter)  # by the reason for their end
    examples: int = 0  # examples read for tapes and scores
    gate: Counter[str] = field(default_factory=Counter)  # the sums of the counts that DONE carries (reply.Counts)
    refused: Counter[str] = field(default_factory=Counter)  # by error code
    resumed: int = 0  # replies that went on after a broken connection
    bytes: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # by direction, kind of frame, codec
    frames: Counter[tuple[str, str]] = field(default_factory=Counter)  # by direction, kind of frame
    batch: Histogram = field(default_factory=lambda: Histogram(SEQUENCES))  # sequences in a step
    step_s: Histogram = field(default_factory=lambda: Histogram(SECONDS))  # duration of a step
    answer_s: Histogram = field(default_factory=lambda: Histogram(SECONDS))  # from an ASK to its answer
    first_s: Histogram = field(default_factory=lambda: Histogram(SECONDS))  # from a prompt to its first token
    queue_s: Histogram = field(default_factory=lambda: Histogram(SECONDS))  # from a prompt to its first step
