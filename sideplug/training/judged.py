"""What a plugin makes of a text's target tokens: log-probabilities with and without it.

It does not know how they were found. Test: pytest tests/training/test_fit_gate.py
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Judged:
    """Of T target tokens: log-probabilities (T,) by the base and by the corrected base, and z (T, D).

    starts: the rows where a reply begins. ids: the target tokens (T,) int32, where somebody noted them, else empty.
    """

    base: np.ndarray
    plugin: np.ndarray
    z_TD: np.ndarray
    starts: np.ndarray
    ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))

    @classmethod
    def of(cls, replies: list[tuple[np.ndarray, np.ndarray, np.ndarray]], ids: Sequence[np.ndarray] = ()) -> Judged:
        """From (base, plugin, z) of each reply; ids: the target tokens of each."""
        base, plugin, z_TD = (np.concatenate(column) for column in zip(*replies, strict=True))
        told = np.concatenate(ids) if ids else np.zeros(0, np.int32)
        return cls(base, plugin, z_TD, np.cumsum([0] + [len(reply[0]) for reply in replies[:-1]]), told)

    @property
    def gain(self) -> np.ndarray:
        """(T,) nats by which the plugin makes each token likelier."""
        gain: np.ndarray = self.plugin - self.base
        return gain
