"""How much a run measures: a full one, or a quick one that has little of everything.

Test: pytest -m slow tests/slow/test_bench.py
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TypeAlias

Rtt: TypeAlias = float  # milliseconds
Mbit: TypeAlias = float  # a second


@dataclass(frozen=True)
class Scale:
    """How much is measured. seconds: of a reply that speed is measured on, about; rounds: of such replies."""

    name: str
    authors: int
    passages: int
    tested: int
    facts: int
    questions: int
    general: int
    networks: tuple[tuple[Rtt, Mbit], ...]
    rounds: int
    seconds: float
    users: tuple[int, ...]
    bits: tuple[str, ...] = ("16", "8", "4")
    epochs: int = 0  # at most, of every training; 0: the task's
    examples: int = 0  # of the facts' to learn from; 0: all
    writers: int = 12  # of mails
    mails: int = 0  # passages of each to learn from; 0: all
    mails_tested: int = 12
    curve: tuple[int, ...] = (10, 40, 108, 0)  # passages to learn from; 0: all
    curve_presidents: int = 4
    curve_passages: int = 0  # at most; 0: any
    curve_tested: int = 20
    sampled: int = 50  # replies of each system, over all users, at least; 0: none
    others: int = 0  # other people's passages that are learnt from; 0: all


RTTS, MBITS = (0, 20, 50, 100), (1, 10, 100)
SCALES = {
    "full": Scale("full", 10, 40, 8, 20, 40, 50, tuple(itertools.product(RTTS, MBITS)), 3, 3, (1, 2, 4, 8, 16)),
    "quick": Scale(
        *("quick", 2, 8, 3, 20, 6, 4, ((0, 10), (50, 10)), 2, 1.5, (1, 4), ("8", "4"), 2, 40),
        *(2, 8, 3, (4, 8), 1, 8, 3, 0, 16),
    ),
}
