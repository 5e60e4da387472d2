"""Which engine is taken, what it says of itself, and what is refused before anything is loaded."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from sideplug.cloud import engines
from sideplug.cloud.engines import EngineOptions, open_model
from sideplug.cloud.store import find
from sideplug.contract.errors import InputError, UnknownModel
from tests.conftest import make_folder, twin


def unknown(folder: Path) -> Path:
    """A model that transformers could run and the graph could not."""
    make_folder(folder)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"llama"', '"olmo"').replace("LlamaFor", "OlmoFor"))
    return folder


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        (EngineOptions(threads=3), "8-bit weights (the default), 3 threads (as asked)"),
        (EngineOptions(bits="4", threads=1), "4-bit weights (as asked), 1 thread (as asked)"),
        (EngineOptions(bits="16", threads=2), "unquantised weights (32 bits) (as asked), 2 threads (as asked)"),
    ],
)
def test_a_cpu_takes_onnx_and_says_how(tiny: Path, wanted: EngineOptions, says: str) -> None:
    opened = open_model(find(str(tiny)), wanted)
    assert (opened.engine, opened.description) == ("onnx", says)


@pytest.mark.twin
def test_what_the_graph_does_not_know_goes_to_torch_and_says_why(tiny: Path, tmp_path: Path) -> None:
    twin("torch")
    opened = open_model(find(str(unknown(tmp_path / "m"))), EngineOptions())
    assert opened.engine == "torch"
    assert opened.description.startswith(
        "the onnx engine can't run it: its architecture is olmo; the graph knows llama, mistral"
    )
    opened = open_model(find(str(tiny)), EngineOptions("torch"))
    assert opened.engine == "torch"
    assert opened.description.startswith("as asked; unquantised weights (32 bits)")


def test_without_torch_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = find(str(unknown(tmp_path / "m")))
    found = importlib.util.find_spec

    def without(name: str, *more: Any) -> Any:
        return found(name, *more) if name not in engines.TORCH_PACKAGES else None if name == "torch" else "there"

    monkeypatch.setattr(engines.importlib.util, "find_spec", without)
    with pytest.raises(
        InputError, match=r"its architecture is olmo.*needs torch: pip install 'sideplug\[cloud-torch\]'"
    ):
        open_model(base, EngineOptions())
    with pytest.raises(InputError, match="^the torch engine needs torch: pip install"):
        open_model(base, EngineOptions("torch"))
    with pytest.raises(UnknownModel, match="the onnx engine can't run .*: its architecture is olmo"):
        open_model(base, EngineOptions("onnx"))


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"engine": "x"}, "engine must be one of auto, onnx, torch, got 'x'"),
        ({"bits": "5"}, "bits must be one of auto, 4, 8, 16, got '5'"),
        ({"engine": "onnx", "device": "cuda"}, "the onnx engine runs on a CPU"),
    ],
)
def test_what_is_refused(wanted: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        EngineOptions(**wanted)


def test_torch_does_not_quantise(tiny: Path) -> None:
    with pytest.raises(InputError, match="torch"):
        open_model(find(str(tiny)), EngineOptions("torch", "4"))
