"""The gate: which tokens the device is asked about. Evaluated in the cloud, on z, where z already is.

Kinds so far: `open` (ask for every token) and `shut` (never: the plain base model). A trained gate, σ(u·z + b), will be
a third kind here, with u and b travelling in OPEN. It does not know plugins or how a gate is trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sideplug.contract.errors import InputError

KINDS = ("open", "shut")


@dataclass(frozen=True)
class Gate:
    kind: str = "open"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"a gate must be one of {', '.join(KINDS)}, got {self.kind!r}")

    def opens(self, z_TD: np.ndarray) -> np.ndarray:
        """z (T, D) → (T,) bool: ask the device?"""
        return np.full(z_TD.shape[0], self.kind == "open")

    def to_wire(self) -> dict[str, Any]:
        return {"kind": self.kind}

    @classmethod
    def from_wire(cls, control: dict[str, Any]) -> Gate:
        """Raises InputError for a map that is not a gate."""
        return cls(str(control.get("kind")))
