"""The gate: which tokens the device is asked about. Evaluated in the cloud, on z, where z already is.

    open      ask for every token
    shut      never: the plain base model
    linear    ask where s > threshold, s_t = m · s_{t−1} + (1 − m) · (weight · z_t + bias), s_0 without a memory

σ(s − threshold) is the g of a trained gate. A single token is weak evidence that a text is the person's, so the score
is an exponential moving average with memory m (docs/LOG.md). A linear gate has a dial: the quantiles of its scores on
held-out personal text, so that any rate can be asked for without training anew. Each part of a plugin has a gate.

It does not know plugins or how a gate is trained. Test: pytest tests/contract/test_gate.py
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sideplug.contract.errors import InputError
from sideplug.contract.frames import GateSpec

KINDS = ("open", "shut", "linear")


def _none() -> np.ndarray:
    return np.zeros(0, np.float32)


@dataclass(frozen=True, eq=False)
class Gate:
    """`weight_D` (D,) float32 for a linear gate, else empty; `dial`: score quantiles at even steps, rising."""

    kind: str = "open"
    weight_D: np.ndarray = field(default_factory=_none)
    bias: float = 0.0
    threshold: float = 0.0
    memory: float = 0.0
    dial: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"a gate must be one of {', '.join(KINDS)}, got {self.kind!r}")
        numbers = (self.bias, self.threshold, self.memory, *self.dial, *self.weight_D.tolist())
        if not np.isfinite(np.asarray(numbers, np.float64)).all():
            raise InputError("a gate's numbers must be finite")
        if not 0 <= self.memory < 1:
            raise InputError(f"a gate's memory must be 0 or more and below 1, got {self.memory}")

    def check(self, width: int) -> None:
        """Raises InputError unless it can look at a z of D numbers."""
        if self.weight_D.shape != ((width,) if self.kind == "linear" else (0,)):
            raise InputError(f"a {self.kind} gate has {self.weight_D.size} weights, z has {width} numbers")

    def score(self, z_D: np.ndarray, before: float | None) -> float:
        """The score of a token from its z (D,) and the score of the token before it (None: the reply's first)."""
        if self.kind != "linear":
            return 0.0
        found = float(z_D @ self.weight_D) + self.bias
        return found if before is None else self.memory * before + (1 - self.memory) * found

    def opens(self, score: float | np.ndarray) -> Any:
        """Ask the device about the token of this score (or of each of these)?"""
        return score > self.threshold if self.kind == "linear" else np.full(np.shape(score), self.kind == "open")[()]

    def scores(self, z_TD: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """z (T, D) of whole replies, which begin at the rows `starts` → their tokens' scores (T,)."""
        first = set(starts.tolist())
        found = np.empty(len(z_TD))
        for row, z_D in enumerate(z_TD):
            found[row] = self.score(z_D, None if row in first else float(found[row - 1]))
        return found

    def at_rate(self, rate: float) -> Gate:
        """The gate that opens for this share of personal tokens: 0 is shut, 1 is open. Raises InputError."""
        if not 0 <= rate <= 1:
            raise InputError(f"the gate's rate must be 0 to 1, got {rate}")
        if rate in (0, 1):
            return Gate("open" if rate else "shut")
        if not self.dial:
            raise InputError(f"this plugin's gate is {self.kind}, its rate can be 0 or 1: train it with general text")
        steps = np.linspace(0, 1, len(self.dial))
        return replace(self, threshold=float(np.interp(1 - rate, steps, self.dial)))

    def to_wire(self) -> GateSpec:
        """Without `weight_D`, which travels as a tensor, and the dial, which stays on the device."""
        if self.kind != "linear":
            return GateSpec(self.kind)
        return GateSpec(self.kind, self.bias, self.threshold, self.memory)

    @classmethod
    def from_wire(cls, spec: GateSpec, weight_D: np.ndarray | None = None, dial: tuple[float, ...] = ()) -> Gate:
        """Raises InputError for numbers that are no gate's."""
        weights = _none() if weight_D is None else weight_D.astype(np.float32)
        return cls(spec.kind, weights, spec.bias, spec.threshold, spec.memory, dial)


def pack_gates(gates: Sequence[Gate], width: int) -> tuple[list[GateSpec], np.ndarray]:
    """The gates of a session as OPEN carries them: their specs, and the weights (G, D) of the linear ones."""
    weights = [gate.weight_D for gate in gates if gate.kind == "linear"]
    rows = np.stack(weights).astype(np.float32) if weights else np.zeros((0, width), np.float32)
    return [gate.to_wire() for gate in gates], rows


def unpack_gates(specs: Sequence[GateSpec], weights_GD: np.ndarray, width: int) -> list[Gate]:
    """What `pack_gates` gave. Raises InputError for gates that can't look at a z of D numbers."""
    linear = sum(spec.kind == "linear" for spec in specs)
    if weights_GD.dtype != np.float32 or weights_GD.shape[0] != linear or (linear and weights_GD.shape[1] != width):
        raise InputError(f"{linear} linear gates must have weights of {(linear, width)}, got {weights_GD.shape}")
    rows = iter(weights_GD)
    gates = [Gate.from_wire(spec, next(rows) if spec.kind == "linear" else None) for spec in specs]
    for gate in gates:
        gate.check(width)
    return gates
