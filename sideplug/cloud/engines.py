"""Chooses the engine of a model: ONNX Runtime on a CPU if it can run the model, torch for GPUs and everything else.

It says which engine it chose and why, and imports an engine's library only then.
Test: pytest tests/cloud/test_engines.py
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sideplug.cloud.admission import AdmissionLimits
from sideplug.cloud.cores import cores, memory_bytes
from sideplug.cloud.engine import Engine
from sideplug.cloud.model.base import Model
from sideplug.cloud.scheduler import Budget
from sideplug.cloud.store import Base
from sideplug.cloud.tokenizer import Tokenizer
from sideplug.cloud.weights import Unfit
from sideplug.contract.errors import InputError, UnknownModel
from sideplug.paths import cache_dir

ENGINES = ("auto", "onnx", "torch")
BITS = ("auto", "4", "8", "16")
TORCH_PACKAGES = ("torch", "transformers")


@dataclass(frozen=True)
class Wanted:
    """What a user asked for. threads 0: every core that the process may use; kv_bytes 0: half of the free memory.

    Raises InputError for an unknown engine or bits, and for an engine that does not run on the device.
    """

    engine: str = "auto"
    bits: str = "auto"
    device: str = "cpu"
    threads: int = 0
    kv_bytes: int = 0

    def __post_init__(self) -> None:
        for name, value, allowed in (("engine", self.engine, ENGINES), ("bits", self.bits, BITS)):
            if value not in allowed:
                raise InputError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        if self.engine == "onnx" and self.device != "cpu":
            raise InputError(f"the onnx engine runs on a CPU: leave out --device {self.device}, or say --engine torch")


@dataclass(frozen=True)
class Opened:
    """A model that is ready to run; `how` says in one line with what bits and threads, and why."""

    model: Model
    engine: str
    how: str


def open_model(base: Base, wanted: Wanted, say: Callable[[str], None] = lambda line: None) -> Opened:
    """Load a model, in the thread that will run it. Raises UnknownModel, InputError, Stopped."""
    count, source = cores()
    if wanted.threads:
        count, source = wanted.threads, "as asked"
    kv_bytes = wanted.kv_bytes or memory_bytes() // 2
    if wanted.engine == "torch" or (wanted.engine == "auto" and wanted.device != "cpu"):
        why = "as asked" if wanted.engine == "torch" else f"the device is {wanted.device}"
        return _torch(base.folder, wanted, count, source, kv_bytes, why)
    from sideplug.cloud.model.ort import blueprint
    from sideplug.cloud.model.ort.model import load

    try:
        shape = blueprint.read(base.folder)
        bits = {"auto": 0, "4": 4, "8": 8, "16": 16}[wanted.bits]
        model = load(base, shape, bits, count, cache_dir(), kv_bytes, say)
    except Unfit as error:
        if wanted.engine == "onnx":
            raise UnknownModel(f"the onnx engine can't run {base.name}: {error}") from error
        return _torch(base.folder, wanted, count, source, kv_bytes, f"the onnx engine can't run it: {error}")
    why = "as asked" if wanted.bits != "auto" else "the file's own blocks" if model.bits == 4 else "the default"
    return Opened(model, "onnx", f"{_bits(model.bits)} ({why}), {_threads(count)} ({source})")


def read_prefix(path: Path | None) -> str:
    """The system message in a file, which everybody's prompts may share; "" for no file. Raises InputError."""
    try:
        return path.read_text("utf-8").strip() if path else ""
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read: {error}") from error


def open_engine(
    base: Base, wanted: Wanted, step_tokens: int, limits: AdmissionLimits, prefix: str, say: Callable[[str], None]
) -> tuple[Opened, Engine]:
    """The engine of a served model; it has run the shared `prefix`, if that is not "". Raises as `open_model`."""
    opened = open_model(base, wanted, say)
    engine = Engine(opened.model, Tokenizer(base.folder), Budget(step_tokens), limits)
    if prefix:
        engine.declare(engine.tokenizer.shared_prefix(prefix))
    return opened, engine


def _bits(bits: int) -> str:
    return f"{bits}-bit weights" if bits < 16 else f"unquantised weights ({bits} bits)"


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count != 1)}"


def _torch(folder: Path, wanted: Wanted, threads: int, source: str, kv_bytes: int, why: str) -> Opened:
    missing = [name for name in TORCH_PACKAGES if not importlib.util.find_spec(name)]
    if missing:
        needs = f"the torch engine needs {' and '.join(missing)}: pip install 'sideplug[cloud-torch]'"
        raise InputError(needs if why == "as asked" else f"{why}; {needs}")
    if wanted.bits not in ("auto", "16"):
        raise InputError(f"the torch engine runs unquantised weights: leave out --bits {wanted.bits} ({why})")
    from sideplug.cloud.model.torch_model import load

    model = load(folder, wanted.device, threads, kv_bytes)
    return Opened(model, "torch", f"{why}; {_bits(model.bits)}, {_threads(threads)} ({source})")
