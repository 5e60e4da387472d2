"""It chooses the engine of a model: ONNX Runtime on a CPU if it supports the model, torch for GPUs and all others.

It says which engine it chose and why, and imports only that engine's library. It does not know sessions or sockets.
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
from sideplug.cloud.model_files import Unfit, reading
from sideplug.cloud.scheduler import Budget
from sideplug.cloud.store import Base
from sideplug.cloud.tokenizer import Tokenizer
from sideplug.contract.errors import InputError, UnknownModel
from sideplug.paths import cache_dir

ENGINES = ("auto", "onnx", "torch")
BITS = ("auto", "4", "8", "16")
TORCH_PACKAGES = ("torch", "transformers")
AS_ASKED = "as asked"  # the reason for what an option says


@dataclass(frozen=True)
class EngineOptions:
    """The engine options of a user. threads 0: all cores that the process may use. kv_bytes 0: half the free memory.

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
            raise InputError(f"the onnx engine runs on a CPU: leave out --device {self.device}, or give --engine torch")


@dataclass(frozen=True)
class Opened:
    """A model that is ready to run. description: bits and threads in one line, and the reasons for them."""

    model: Model
    engine: str
    description: str


def open_model(base: Base, options: EngineOptions, say: Callable[[str], None] = lambda line: None) -> Opened:
    """Load and return a model, in the thread that will run it. Raises UnknownModel, InputError, Stopped."""
    with reading(f"the model {base.name}"):
        return _open_model(base, options, say)


def _open_model(base: Base, options: EngineOptions, say: Callable[[str], None]) -> Opened:
    count, source = cores()
    if options.threads:
        count, source = options.threads, AS_ASKED
    kv_bytes = options.kv_bytes or memory_bytes() // 2
    if options.engine == "torch" or (options.engine == "auto" and options.device != "cpu"):
        reason = AS_ASKED if options.engine == "torch" else f"the device is {options.device}"
        return _torch(base.folder, options, count, source, kv_bytes, reason)
    from sideplug.cloud.model.ort import blueprint
    from sideplug.cloud.model.ort.model import load

    try:
        shape = blueprint.read(base.folder)
        bits = {"auto": 0, "4": 4, "8": 8, "16": 16}[options.bits]
        model = load(base, shape, bits, count, cache_dir(), kv_bytes, say)
    except Unfit as error:
        if options.engine == "onnx":
            raise UnknownModel(f"the onnx engine can't run {base.name}: {error}") from error
        return _torch(base.folder, options, count, source, kv_bytes, f"the onnx engine can't run it: {error}")
    reason = AS_ASKED if options.bits != "auto" else "the file's own blocks" if model.bits == 4 else "the default"
    return Opened(model, "onnx", f"{_bits(model.bits)} ({reason}), {_threads(count)} ({source})")


def read_prefix(path: Path | None) -> str:
    """Return the system message in a file, which many prompts share; "" for no file. Raises InputError."""
    try:
        return path.read_text("utf-8").strip() if path else ""
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read: {error}") from error


def open_engine(
    base: Base,
    options: EngineOptions,
    step_tokens: int,
    limits: AdmissionLimits,
    prefix: str,
    say: Callable[[str], None],
) -> tuple[Opened, Engine]:
    """Return a served model and its engine, which has run the shared `prefix` ("": none). Raises as `open_model`."""
    opened = open_model(base, options, say)
    engine = Engine(opened.model, Tokenizer(base.folder), Budget(step_tokens), limits)
    if prefix:
        engine.declare(engine.tokenizer.shared_prefix(prefix))
    return opened, engine


def _bits(bits: int) -> str:
    return f"{bits}-bit weights" if bits < 16 else f"unquantised weights ({bits} bits)"


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count != 1)}"


def _torch(folder: Path, options: EngineOptions, threads: int, source: str, kv_bytes: int, reason: str) -> Opened:
    missing = [name for name in TORCH_PACKAGES if not importlib.util.find_spec(name)]
    if missing:
        needs = f"the torch engine needs {' and '.join(missing)}: pip install 'sideplug[cloud-torch]'"
        raise InputError(needs if reason == AS_ASKED else f"{reason}; {needs}")
    if options.bits not in ("auto", "16"):
        raise InputError(f"the torch engine runs unquantised weights: leave out --bits {options.bits} ({reason})")
    from sideplug.cloud.model.torch_model import load

    model = load(folder, options.device, threads, kv_bytes)
    return Opened(model, "torch", f"{reason}; {_bits(model.bits)}, {_threads(threads)} ({source})")
