"""Masks: packed and unpacked, and applied to logits."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from sideplug.contract.capabilities import MAX_GRAMMAR, Grammar
from sideplug.contract.errors import InputError, ProtocolError
from sideplug.contract.grammar import checked, constrain, json_grammar, pack_mask, unpack_mask


@pytest.mark.parametrize("vocab", [1, 7, 8, 9, 300, 49152])
def test_a_mask_comes_back(vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    for share in (0.001, 0.5, 1.0):
        allowed = rng.random(vocab) < share
        allowed[rng.integers(vocab)] = True
        assert np.array_equal(unpack_mask(pack_mask(allowed), vocab), allowed)


@pytest.mark.parametrize(
    ("packed", "says"),
    [
        (b"", "must have 16 bits"),
        (b"no zlib", "is damaged"),
        (zlib.compress(b"\x01"), "must have 16 bits"),
        (zlib.compress(bytes(2)), "must allow a token"),
        (zlib.compress(b"\x01" * 2)[:-6], "must have 16 bits"),
    ],
)
def test_a_mask_that_is_none(packed: bytes, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        unpack_mask(packed, 16)


def test_a_bomb_takes_no_more_than_a_mask() -> None:
    assert unpack_mask(zlib.compress(b"\x01" * 100_000_000), 16).tolist() == [True, *[False] * 7] * 2


def test_what_is_not_allowed_is_never_chosen() -> None:
    logits, allowed = np.array([1, 2, 3, 4], np.float32), np.array([True, True, False, False])
    assert constrain(logits, logits, None) is logits
    assert constrain(logits, logits, allowed).tolist() == [1, 2, -np.inf, -np.inf]
    said = np.array([-np.inf, -np.inf, 5, -np.inf], np.float32)  # a memory that says a token which is not allowed
    assert constrain(said, logits, allowed).tolist() == [1, 2, -np.inf, -np.inf]


def test_what_is_no_grammar() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    for schema in ([1], "x", None, 3):
        with pytest.raises(InputError, match="must be an object, true or false"):
            json_grammar(schema)
    with pytest.raises(InputError, match="not nested without an end"):
        json_grammar({"enum": deep})
    for text in ("", "a" * (MAX_GRAMMAR + 1), "é" * (MAX_GRAMMAR // 2 + 1)):
        with pytest.raises(InputError, match="a grammar must have 1 to"):
            checked(Grammar("regex", text))
