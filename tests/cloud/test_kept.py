"""What is kept has checksums: cut off, or with a flipped byte, it is made anew."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sideplug.cloud import kept
from sideplug.cloud.engines import EngineOptions, open_model
from sideplug.cloud.model.base import Chunk
from sideplug.cloud.store import find
from tests.conftest import write_gguf


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES: list[Callable[[Path], None]] = [
    flip,
    lambda path: path.write_bytes(path.read_bytes()[:-9]),
    lambda path: path.write_bytes(b""),
    Path.unlink,
]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["a", "b", kept.SUMS])
def test_a_damaged_folder_is_known(tmp_path: Path, damage: Callable[[Path], None], name: str) -> None:
    def fill(aside: Path) -> None:
        (aside / "a").write_bytes(os.urandom(3 << 20))
        (aside / "b").write_bytes(b"0123456789")

    folder = tmp_path / "kept"
    assert not kept.is_whole(folder)
    kept.make(folder, fill)
    assert kept.is_whole(folder)
    damage(folder / name)
    assert not kept.is_whole(folder)
    kept.make(folder, fill)
    assert kept.is_whole(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b", kept.SUMS]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_came_later_is_made_anew(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    made: list[Path] = []

    def fill(aside: Path) -> None:
        aside.write_bytes(b"graph")
        made.append(aside)

    for _ in range(2):
        assert kept.file(tmp_path / "g.onnx", fill).read_bytes() == b"graph"
    assert len(made) == 1
    damage(tmp_path / "g.onnx")
    assert kept.file(tmp_path / "g.onnx", fill).read_bytes() == b"graph"
    assert len(made) == 2


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_serves_what_the_file_says(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None]
) -> None:
    monkeypatch.setenv("SIDEPLUG_CACHE", str(tmp_path / "cache"))
    write_gguf(tmp_path / "m.gguf", tiny, "Q8_0")

    def logits() -> np.ndarray:
        model = open_model(find(str(tmp_path / "m.gguf")), EngineOptions(kv_bytes=1 << 28)).model
        return model.logits(model.forward([Chunk([5, 9, 7], model.new_cache(8))]).z(slice(0, 3)))

    want = logits()
    whole = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name != "model.gguf"]
    assert {path.name for path in whole} >= {"body.bin", "head.bin", "body.onnx", "config.json", "model.gguf.json"}
    for path in whole:
        if path.exists():  # its folder may have been made anew, without it
            damage(path)
    assert np.array_equal(logits(), want)
