"""Tokens a minute: what a bucket gives in an hour is what was agreed, and nobody's memory grows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sideplug.cloud import token_bucket
from sideplug.cloud.token_bucket import TokenBuckets


def test_a_minute() -> None:
    buckets = TokenBuckets()
    assert buckets.take("ada", 60, 60, 0.0) == 0
    assert buckets.take("ada", 10, 60, 0.0) == pytest.approx(10)
    assert buckets.take("bert", 10, 60, 0.0) == 0
    assert buckets.take("ada", 10, 60, 9.0) == pytest.approx(1)
    assert buckets.take("ada", 10, 60, 10.0) == 0
    assert buckets.take("ada", 1, 60, 10.0) == pytest.approx(1)
    assert buckets.take("ada", 60, 60, 1000.0) == 0


def test_no_limit_keeps_nothing() -> None:
    buckets = TokenBuckets()
    assert buckets.take("ada", 10**9, 0, 0.0) == 0
    assert not buckets._buckets


def test_more_than_a_minutes_worth_is_paid_back() -> None:
    buckets = TokenBuckets()
    assert buckets.take("ada", 180, 60, 0.0) == 0
    assert buckets.take("ada", 1, 60, 0.0) == pytest.approx(121)
    assert buckets.take("ada", 180, 60, 100.0) == pytest.approx(80)
    assert buckets.take("ada", 180, 60, 180.0) == 0


def test_a_limit_that_was_lowered_and_a_clock_that_jumps_back() -> None:
    buckets = TokenBuckets()
    assert buckets.take("ada", 1, 6000, 50.0) == 0
    assert buckets.take("ada", 60, 60, 40.0) == 0
    assert buckets.take("ada", 1, 60, 40.0) == pytest.approx(1)


@given(st.lists(st.tuples(st.integers(0, 200), st.floats(0, 30)), min_size=1, max_size=60), st.integers(1, 300))
def test_never_more_than_agreed(asked: list[tuple[int, float]], limit: int) -> None:
    """In any span: a full bucket, what it gained, and one last debt; and who waits as told is served."""
    buckets, now, taken, largest = TokenBuckets(), 0.0, 0, 0
    for tokens, pause in asked:
        now += pause
        wait = buckets.take("ada", tokens, limit, now)
        assert 0 <= wait <= 60 * (1 + largest / limit) + 1e-3
        if wait:
            now += wait
            assert buckets.take("ada", tokens, limit, now) == 0
        taken, largest = taken + tokens, max(largest, tokens)
        assert taken <= limit + now * limit / 60 + largest + 1e-3


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_bucket, "MAX_BUCKETS", 100)
    buckets = TokenBuckets()
    for n in range(100):
        assert buckets.take(f"key-{n}", 30 + n % 2 * 30, 60, 0.0) == 0
    assert buckets.take("one more", 60, 60, 0.0) == 0
    assert len(buckets._buckets) == 100
    assert sum(bucket.level == 0 for bucket in buckets._buckets.values()) == 51  # a full one was forgotten
    assert buckets.take("another", 1, 60, 45.0) == 0
    assert len(buckets._buckets) == 52
