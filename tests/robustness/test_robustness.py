"""A seeded sample of the fuzzer and the load test: some of every kind of input, half a minute of load."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("psutil", reason="pip install 'sideplug[bench]'")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

from sideplug.contract.frames import Kind  # noqa: E402
from tests.robustness import hostile, load  # noqa: E402
from tests.robustness.fuzz_frames import fuzz_frames  # noqa: E402
from tests.robustness.fuzz_sessions import fuzz_sessions  # noqa: E402


def test_the_decoder_takes_any_bytes() -> None:
    figures, bugs = fuzz_frames(100_000, seed=0)
    assert not bugs
    assert set(figures["outcomes"]) == {"Frame", "ProtocolError"}  # some of both, and nothing else
    assert set(figures["frames"]) == {kind.name for kind in Kind}  # each kind also came through


def test_the_cloud_takes_any_frames() -> None:
    figures, faults = fuzz_sessions(600, seed=0)
    assert not faults
    assert figures["inputs"] == 600
    assert "goes on" in figures["ends"]  # some inputs are right


def test_many_devices_that_misbehave(tmp_path: Path) -> None:
    figures, failures = load.run(load.Settings(minutes=0.5, sessions=12, conversations=1), tmp_path)
    assert not failures
    assert figures["replies"] > 0
    assert figures["context_rows"] > 0  # some kinds look back over the text
    assert figures["cuts"] > 0


def test_hostile_sessions_beside_a_person(tmp_path: Path) -> None:
    """No bound is asserted here, on a shared machine: the person is let in, and gets text, beside each company."""
    figures, _ = hostile.run(hostile.Settings(seconds=2.0, rounds=1), tmp_path)
    assert all(rate > 0 for rates in figures["tokens_s"].values() for rate in rates)
    assert set(figures["figures"]) == set(hostile.BOUNDS)
    assert hostile.HOLDERS // 2 <= figures["memory"]["sessions"] <= hostile.HOLDERS
