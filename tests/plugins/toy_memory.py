"""A memory in one file: it knows the reply to one prompt, and says it by mixtures. A test of the seam, no product."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sideplug.contract.correction import Correction, Mixture
from sideplug.contract.gate import Gate
from sideplug.contract.tap import Tap
from sideplug.contract.text import Prompt
from sideplug.plugins import Kind, Part, PartReply
from sideplug.plugins.base import Params


class Quoting(PartReply):
    """Says the stored ids one after the other, as long as the text is what it said."""

    def __init__(self, ids: list[int]) -> None:
        super().__init__(gate="open" if ids else "shut", draft=ids)
        self._ids, self._start, self._text = ids, -1, list[int]()

    def hear(self, start: int, ids: list[int]) -> None:
        if self._start < 0:
            self._start = start
        self._text[start - self._start :] = ids

    def answer(self, at: int, code_KR: np.ndarray) -> Correction | None:
        n = at - self._start
        if not 0 <= n < len(self._ids) or self._text[:n] != self._ids[:n]:
            return None
        return Correction(mixture=Mixture(1.0, np.array(self._ids[n : n + 1], np.int32), np.ones(1, np.float32)))

    def expected(self, at: int) -> list[int]:
        return self._ids[at - self._start :][:32]


class ToyMemory(Part):
    role = "memory"
    kind_name, name = "toy-memory", "memory"

    def __init__(self, question: str, ids: np.ndarray, tap: Tap) -> None:
        self.question, self.ids, self.tap = question, ids, tap
        self.gate, self.about = Gate("shut"), {}

    @property
    def size(self) -> int:
        return len(self.ids)

    def begin(self, prompt: Prompt) -> PartReply:
        said = (prompt.messages or ({"content": ""},))[-1]["content"]
        return Quoting(self.ids.tolist() if said == self.question else [])

    def tensors(self) -> dict[str, np.ndarray]:
        return {"ids": self.ids}

    def config(self) -> dict[str, Any]:
        return {"question": self.question}


class ToyMemoryKind(Kind):
    name = "toy-memory"

    def load(self, config: Mapping[str, Any], tensors: Params, tap: Tap, gate: Gate, about: dict[str, Any]) -> Part:
        return ToyMemory(config["question"], tensors["ids"], tap)
