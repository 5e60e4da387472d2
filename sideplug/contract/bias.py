"""A bias: what a part adds to the logits of some tokens, the same at each position for which its gate is open.

    l'_v = l_v + u_v            for the tokens v that the bias names; the others stay as they are

It is added to the logits of the corrected z, before a mixture, the repetition penalty and the temperature. A session
brings it once, in OPEN, as the capability `bias`; with the head on the device it stays there.

Letters: V vocabulary, M tokens. It does not know plugins or sessions. Test: pytest tests/contract/test_bias.py
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sideplug.contract.capabilities import BIAS, MAX_BIASED, BiasOf, BiasSettings, settings_of
from sideplug.contract.errors import InputError
from sideplug.contract.frames import MAX_VOCAB, Map

MOST = 30.0  # of a value, either way


def _no_ids() -> np.ndarray:
    return np.zeros(0, np.int32)


def _no_values() -> np.ndarray:
    return np.zeros(0, np.float16)


@dataclass(frozen=True, eq=False)
class Bias:
    """Token ids (M,) int32, ascending, each once, and what is added to their logits (M,) float16."""

    ids: np.ndarray = field(default_factory=_no_ids)
    values: np.ndarray = field(default_factory=_no_values)

    def __post_init__(self) -> None:
        if self.ids.dtype != np.int32 or self.values.dtype != np.float16 or self.ids.ndim != 1:
            raise InputError("a bias must have int32 token ids and float16 values")
        if self.values.shape != self.ids.shape or len(self.ids) > MAX_BIASED:
            raise InputError(f"a bias must have a value for each of at most {MAX_BIASED:,} tokens")
        if len(self.ids) and not (self.ids[0] >= 0 and self.ids[-1] < MAX_VOCAB and (np.diff(self.ids) > 0).all()):
            raise InputError("a bias's token ids must ascend")
        if not (np.abs(self.values) <= MOST).all():  # also false for what is not a number
            raise InputError(f"a bias's values must be at most {MOST:.0f}, either way")

    def __len__(self) -> int:
        return len(self.ids)

    def add_to(self, logits_V: np.ndarray) -> np.ndarray:
        """The logits (V,) with the bias added; the very array where there is none."""
        if not len(self.ids):
            return logits_V
        biased = logits_V.copy()
        biased[self.ids] += self.values.astype(biased.dtype)
        return biased


NONE = Bias()


def add(biases: Sequence[Bias], gates: int, logits_V: np.ndarray) -> np.ndarray:
    """Logits (V,) with the biases of the parts whose gates are open: bit p of `gates` is part p's."""
    for part, bias in enumerate(biases):
        if gates >> part & 1:
            logits_V = bias.add_to(logits_V)
    return logits_V


def to_wire(biases: Sequence[Bias]) -> BiasSettings | None:
    """What OPEN says of the biases of a plugin's parts, in their order; None where no part has one."""
    of = [
        BiasOf(part, each.ids.astype("<i4").tobytes(), each.values.astype("<f2").tobytes())
        for part, each in enumerate(biases)
        if len(each)
    ]
    return BiasSettings(of) if of else None


def of_session(granted: dict[str, Map], parts: int, vocab: int) -> tuple[Bias, ...]:
    """The biases of a session's parts, as `to_wire` packed them. Raises InputError for what can't be added."""
    biases = [NONE] * parts
    settings = settings_of(granted, BIAS, BiasSettings)
    for each in settings.of if settings else ():
        if each.part >= parts or len(biases[each.part]) or len(each.ids) != 2 * len(each.values):
            raise InputError(f"a bias must be of one of the {parts} parts, once, with a value for each token")
        bias = Bias(
            np.frombuffer(each.ids, "<i4").astype(np.int32), np.frombuffer(each.values, "<f2").astype(np.float16)
        )
        if len(bias) and bias.ids[-1] >= vocab:
            raise InputError(f"a bias's token ids must be below {vocab}, got {bias.ids[-1]}")
        biases[each.part] = bias
    if sum(map(len, biases)) > MAX_BIASED:
        raise InputError(f"the biases of a session must have at most {MAX_BIASED:,} tokens")
    return tuple(biases)
