"""A gate decides for which tokens the cloud asks the device. The cloud evaluates it, on z, the final hidden state.

    open      ask for every token
    shut      never ask: the plain base model
    linear    ask where s > threshold; s_t = m · s_{t−1} + (1 − m) · (weight · z_t + bias), s_0 = weight · z_0 + bias

σ(s − threshold) is the g of a trained gate. A single token is weak evidence that a text is the person's, so the score
is an exponential moving average with memory m (docs/LOG.md). A linear gate has a dial: the quantiles of its scores on
held-out personal text. With it a user can choose any rate without training again. That score tells whose text it is,
not which tokens need the plugin; so for low rates the dial turns another linear gate, `by_gain`, which tells that. Each
part of a plugin has a gate.

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
    """A gate. weight_D: (D,) float32 of a linear gate, else empty. dial: score quantiles at even steps, ascending.

    by_gain: the gate that the dial turns for rates up to `by_gain_rate`.
    """

    kind: str = "open"
    weight_D: np.ndarray = field(default_factory=_none)
    bias: float = 0.0
    threshold: float = 0.0
    memory: float = 0.0
    dial: tuple[float, ...] = ()
    by_gain: Gate | None = None
    by_gain_rate: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"a gate must be one of {', '.join(KINDS)}, got {self.kind!r}")
        numbers = (self.bias, self.threshold, self.memory, *self.dial, *self.weight_D.tolist())
        if not np.isfinite(np.asarray(numbers, np.float64)).all():
            raise InputError("a gate's numbers must be finite")
        if not 0 <= self.memory < 1:
            raise InputError(f"a gate's memory must be 0 or more and below 1, got {self.memory}")

    def check(self, width: int) -> None:
        """Raises InputError unless the gate fits a z of `width` numbers."""
        if self.weight_D.shape != ((width,) if self.kind == "linear" else (0,)):
            raise InputError(f"a {self.kind} gate has {self.weight_D.size} weights, z has {width} numbers")

    def score(self, z_D: np.ndarray, before: float | None) -> float:
        """Return a token's score from its z (D,) and the score before it (None for a reply's first token)."""
        if self.kind != "linear":
            return 0.0
        evidence = float(z_D @ self.weight_D) + self.bias
        return evidence if before is None else self.memory * before + (1 - self.memory) * evidence

    def opens(self, score: float | np.ndarray) -> Any:
        """Return whether to ask the device about the token with this score: a bool, or an array of them."""
        return score > self.threshold if self.kind == "linear" else np.full(np.shape(score), self.kind == "open")[()]

    def scores(self, z_TD: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Return the tokens' scores (T,) from the z (T, D) of whole replies; `starts`: the rows where they begin."""
        first = set(starts.tolist())
        scores = np.empty(len(z_TD))
        for row, z_D in enumerate(z_TD):
            scores[row] = self.score(z_D, None if row in first else float(scores[row - 1]))
        return scores

    def at_rate(self, rate: float) -> Gate:
        """Return the gate that asks for this share of personal tokens; 0 is shut, 1 is open. Raises InputError."""
        if not 0 <= rate <= 1:
            raise InputError(f"the gate's rate must be 0 to 1, got {rate}")
        if rate in (0, 1):
            return Gate("open" if rate else "shut")
        if not self.dial:
            raise InputError(f"this plugin's gate is {self.kind}, its rate can be 0 or 1: train it with a retain set")
        if self.by_gain is not None and rate <= self.by_gain_rate:
            return self.by_gain.at_rate(rate)
        steps = np.linspace(0, 1, len(self.dial))
        return replace(self, threshold=float(np.interp(1 - rate, steps, self.dial)))

    def to_wire(self) -> GateSpec:
        """Return the spec for the wire: without `weight_D`, which is sent as a tensor, and the dial, which is not."""
        if self.kind != "linear":
            return GateSpec(self.kind)
        return GateSpec(self.kind, self.bias, self.threshold, self.memory)

    @classmethod
    def from_wire(cls, spec: GateSpec, weight_D: np.ndarray | None = None, dial: tuple[float, ...] = ()) -> Gate:
        """Return the gate of a spec. Raises InputError for an unknown kind or impossible numbers."""
        weights = _none() if weight_D is None else weight_D.astype(np.float32)
        return cls(spec.kind, weights, spec.bias, spec.threshold, spec.memory, dial)


def pack_gates(gates: Sequence[Gate], width: int) -> tuple[list[GateSpec], np.ndarray]:
    """Return a session's gates as OPEN carries them: the specs, and the weights (G, D) float32 of the linear gates."""
    weights = [gate.weight_D for gate in gates if gate.kind == "linear"]
    rows = np.stack(weights).astype(np.float32) if weights else np.zeros((0, width), np.float32)
    return [gate.to_wire() for gate in gates], rows


def unpack_gates(specs: Sequence[GateSpec], weights_GD: np.ndarray, width: int) -> list[Gate]:
    """Return the gates that `pack_gates` packed. Raises InputError for gates that do not fit a z of `width` numbers."""
    linear = sum(spec.kind == "linear" for spec in specs)
    if weights_GD.dtype != np.float32 or weights_GD.shape[0] != linear or (linear and weights_GD.shape[1] != width):
        raise InputError(f"{linear} linear gates must have weights of {(linear, width)}, got {weights_GD.shape}")
    rows = iter(weights_GD)
    gates = [Gate.from_wire(spec, next(rows) if spec.kind == "linear" else None) for spec in specs]
    for gate in gates:
        gate.check(width)
    return gates
