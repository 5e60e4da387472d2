"""Whose projections are held, for how long, and how many."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sideplug.cloud.tap_store import TapStore
from sideplug.contract.errors import Busy
from sideplug.contract.tap import Tap

SHAPE: Any = SimpleNamespace(blocks=2, width=64)
BYTES = 64 * 16 * 4 * 2  # of a tap of two layers and rank 16


def tap(seed: int, codec: str = "int8") -> Tap:
    return Tap((0, 2), 16, seed, codec)


def test_a_projection_lives_as_long_as_a_session_holds_it() -> None:
    store = TapStore(SHAPE)
    first, second = store.take("ada", tap(1)), store.take("ada", tap(1))
    assert first.encoder is second.encoder
    assert store.shares.held("ada") == BYTES, "once for all sessions of a user"
    other = store.take("bo", tap(1))
    assert other.encoder is first.encoder
    assert store.shares.total == 2 * BYTES
    del first, second
    gc.collect()
    assert (store.shares.held("ada"), store.shares.held("bo")) == (0, BYTES)
    assert len(store._encoders) == 1
    del other
    gc.collect()
    assert (store.shares.total, len(store._encoders)) == (0, 0)


def test_it_encodes_as_the_tap_does() -> None:
    hidden = np.random.default_rng(0).normal(size=(3, 2, 64)).astype(np.float32)
    for each in (tap(3), tap(3, "fp16"), Tap((0, 2), 64, 0, "raw")):
        for got, want in zip(
            TapStore(SHAPE).take("ada", each).encoder.encode(hidden), each.encode(hidden), strict=True
        ):
            np.testing.assert_array_equal(got, want)


def test_a_user_has_a_share_and_others_are_let_in() -> None:
    store = TapStore(SHAPE, limit=10 * BYTES)
    held = [store.take("ada", tap(seed), "ada") for seed in range(1, 6)]
    with pytest.raises(Busy, match="no room for another tap"):
        store.take("ada", tap(9), "ada")
    held.append(store.take("bo", tap(20), "bo"))
    held.append(store.take("ada", Tap.spread(2, 64)))
    assert store.shares.total == 6 * BYTES, "the default tap costs nobody anything"


def test_new_projections_a_minute_are_bounded_too() -> None:
    store = TapStore(SHAPE, limit=10 * BYTES)
    for seed in range(1, 11):
        store.take("ada", tap(seed), "ada")  # and let go at once
    with pytest.raises(Busy, match="has had many taps made: try again"):
        store.take("ada", tap(11), "ada")
    store.take("bo", tap(11), "bo")


def test_what_is_made_already_or_small_is_at_hand() -> None:
    shape: Any = SimpleNamespace(blocks=2, width=512)
    taps = TapStore(shape)
    default, strange, tiny = Tap.spread(2, 512), Tap((0, 1), 64, 5), Tap((0,), 1)
    assert [taps.is_at_hand(tap) for tap in (default, strange, tiny)] == [False, False, True]
    held = [taps.take("ada", tap) for tap in (default, strange)]
    assert all(taps.is_at_hand(tap) for tap in (default, strange))
    del held[1]
    gc.collect()
    assert [taps.is_at_hand(tap) for tap in (default, strange)] == [True, False]
