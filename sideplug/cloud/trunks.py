"""The trunks that a cloud has for its base: public parts that it may run itself, so that nobody has to be asked.

A person's part that was not tuned is a trunk with a bias of the person's own. Where only such parts have their gates
open, the correction is what the device would have answered, to the bit: the same codes, rounded for the wire, go
through the same parameters, and Δ is rounded as an answer's. So the text does not depend on who has the trunk.

The one module of the cloud that knows parts. K tapped layers, R code width, D width.
Test: pytest tests/cloud/test_trunks.py
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from sideplug.cloud.reply import Correct
from sideplug.contract.capabilities import TRUNK, TrunkSettings, settings_of
from sideplug.contract.errors import InputError
from sideplug.contract.frames import Map
from sideplug.contract.tap import Tap
from sideplug.plugins.base import ONE_TEXT, trained_kind
from sideplug.plugins.trunk import Trunk, installed


@dataclass(frozen=True)
class Trunks:
    """Trunks by the digests of their parameters."""

    by_digest: Mapping[bytes, Trunk] = field(default_factory=dict)

    @classmethod
    def of(cls, trunks: Iterable[Trunk], width: int) -> Trunks:
        """Those of these that correct a model of this width, without a look back in the text, and replace nothing."""
        by_digest = dict[bytes, Trunk]()
        for trunk in trunks:
            kind, none = trained_kind(trunk.kind), np.zeros((1, len(trunk.tap.layers), trunk.tap.rank), np.float32)
            if kind.context != "none" or kind.merge != "add":
                continue
            if kind.forward(trunk.params, none, ONE_TEXT)[0].shape[1] == width:
                by_digest[trunk.digest] = trunk
        return cls(by_digest)

    @classmethod
    def for_base(cls, fingerprint: str, width: int) -> Trunks:
        """Those that are installed on this machine for a base of this width."""
        return cls.of((trunk for trunk in installed() if trunk.base == fingerprint), width)

    def of_session(self, granted: Mapping[str, Map], tap: Tap, parts: int) -> dict[int, Correct]:
        """By part, what corrects a row of the session's codes (K, R). Raises InputError for a part that is not there.

        A part whose trunk is not here, or whose layers the session does not tap, is left to its device.
        """
        settings = settings_of(granted, TRUNK, TrunkSettings)
        corrects = dict[int, Correct]()
        for each in settings.of if settings else ():
            if each.part >= parts or each.part in corrects:
                raise InputError(f"a trunk must be of one of the {parts} parts, once")
            trunk = self.by_digest.get(each.params)
            form = (tap.rank, tap.seed, tap.codec)
            if trunk is None or (trunk.tap.rank, trunk.tap.seed, trunk.tap.codec) != form:
                continue
            if set(trunk.tap.layers) <= set(tap.layers):
                corrects[each.part] = _correct(trunk, tap.rows_of(trunk.tap))
        return corrects


def _correct(trunk: Trunk, layers: list[int]) -> Correct:
    kind = trained_kind(trunk.kind)

    def correct(code_KR: np.ndarray) -> np.ndarray:
        delta_D: np.ndarray = kind.forward(trunk.params, code_KR[None, layers], ONE_TEXT)[0][0]
        return delta_D

    return correct
