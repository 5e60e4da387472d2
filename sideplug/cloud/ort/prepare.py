"""A model folder → graphs that are ready to run, once: kept in our cache, beside the blocks as the CPU wants them.

ONNX Runtime rearranges the blocks for the CPU's own instructions when it loads them. Saved once, they are mapped from
then on: a start takes a fraction of a second, and every variant of the graph, and every process, shares the pages.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, TensorProto

from sideplug.cloud.ort.blueprint import Blueprint
from sideplug.cloud.ort.graph import (
    Store,
    Variant,
    build,
    build_head,
    mapped,
    mapped_matrix,
    store_matrix,
    store_weights,
)
from sideplug.cloud.weights import BLOCK, Blocks, Unfit, weights_of
from sideplug.contract.errors import Stopped

FORMAT = 2  # of what is kept: counted up when the graph changes
BODY, HEAD = "body", "head"
EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True)
class Prepared:
    """A folder of the cache: body.onnx and head.onnx with their .bin files, and further variants of the body."""

    folder: Path
    blueprint: Blueprint

    @cached_property
    def tensors(self) -> dict[str, TensorProto]:
        """The stored tensors of body and head, without their values."""
        models = [onnx.load(self.folder / f"{part}.onnx", load_external_data=False) for part in (BODY, HEAD)]
        return {tensor.name: tensor for model in models for tensor in model.graph.initializer}

    def session(self, variant: Variant) -> onnxruntime.InferenceSession:
        path = self.folder / f"{variant.name}.onnx"
        if not path.exists():
            aside = path.with_name(f".{path.name}.{id(self)}")
            _write(build(self.blueprint, variant, self.tensors), aside)
            aside.replace(path)
        return _open(path)

    def head(self) -> onnxruntime.InferenceSession:
        return _open(self.folder / f"{HEAD}.onnx")

    @property
    def bits(self) -> int:
        """Of the body's matrices; 32 where they are not in blocks."""
        codes = self.tensors.get("0.qkv.codes")
        return codes.dims[2] * 8 // BLOCK if codes else 32

    def head_matrix(self) -> tuple[Blocks | np.ndarray, np.ndarray | None]:
        """The head's weights and, where it has them, its biases; mapped."""
        bias = mapped(self.tensors["head.bias"], self.folder) if "head.bias" in self.tensors else None
        return mapped_matrix(self.tensors, HEAD, self.folder), bias

    def embedding(self) -> Blocks | np.ndarray:
        """Kept once when the head is tied to it."""
        own = self.folder / "embedding.pb"
        if not own.exists():
            return mapped_matrix(self.tensors, HEAD, self.folder)
        tensors = onnx.GraphProto.FromString(own.read_bytes()).initializer
        return mapped_matrix({tensor.name: tensor for tensor in tensors}, "embedding", self.folder)


def prepare(
    folder: Path, b: Blueprint, fingerprint: str, bits: int, root: Path, say: Callable[[str], None]
) -> Prepared:
    """What runs this model, made below `root` when it is not there yet. Raises Unfit, UnknownModel, Stopped.

    `bits`: 4, 8, 16 (not quantised), or 0: what suits the file.
    """
    key = f"{fingerprint[:16]}-{bits or 'auto'}-{FORMAT}-{_machine()}"
    target = root / "graphs" / key
    if not target.is_dir():
        say("arranging the weights for this CPU, once (some seconds)")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            aside = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=target.parent))
            try:
                _make(folder, b, bits, aside)
                aside.chmod(0o755)
                aside.replace(target)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
        except OSError as error:
            if not target.is_dir():  # else: another process was faster
                raise Stopped(f"{target} could not be written: {error.strerror or error}") from error
    return Prepared(target, b)


_pool: list[int] = []  # threads of ONNX Runtime's pool, once it is there


def start_pool(threads: int) -> int:
    """One pool of threads for all graphs of this process (two would fight for the cores); how many threads it has.

    The first call decides: ONNX Runtime makes it once. It spins for a moment between runs and sleeps when idle.
    """
    if not _pool:
        onnxruntime.set_global_thread_pool_sizes(threads, 1)
        _pool.append(threads)
    return _pool[0]


def _make(folder: Path, b: Blueprint, bits: int, aside: Path) -> None:
    weights = weights_of(folder)
    tied = b.tied or not weights.has("lm_head.weight")
    store = Store(aside / "body.raw")
    store_weights(b, weights, bits, store)
    store.close()
    _pack(build(b, Variant(1, 1), store.tensors), aside, BODY)
    store = Store(aside / "head.raw")
    store_matrix("head", [EMBEDDING if tied else "lm_head.weight"], weights, bits, store)
    store.close()
    _pack(build_head(b, store.tensors), aside, HEAD)
    if not tied:
        store = Store(aside / "embedding.bin")
        store_matrix("embedding", [EMBEDDING], weights, bits, store)
        store.close()
        tensors = onnx.GraphProto(initializer=list(store.tensors.values()))
        (aside / "embedding.pb").write_bytes(tensors.SerializeToString())


def _pack(model: ModelProto, folder: Path, name: str) -> None:
    """Let ONNX Runtime write the graph with its blocks arranged for this CPU, and drop the raw ones."""
    raw = folder / f"{name}.raw"
    plain = folder / f"{name}.plain.onnx"
    _write(model, plain)
    options = _options()
    options.optimized_model_filepath = str(folder / f"{name}.onnx")
    options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", f"{name}.bin")
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    try:
        onnxruntime.InferenceSession(str(plain), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # whatever ONNX Runtime finds wrong with the graph
        raise Unfit(f"ONNX Runtime refuses its graph: {str(error).splitlines()[0]}") from error
    plain.unlink()
    raw.unlink()


def _open(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), _options(), providers=["CPUExecutionProvider"])


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.use_per_session_threads = False  # those of `start_pool`
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # it is written as it runs
    options.log_severity_level = 3
    return options


def _write(model: ModelProto, path: Path) -> None:
    path.write_bytes(model.SerializeToString())


def _machine() -> str:
    """What the arrangement of the blocks depends on: the version of ONNX Runtime and the CPU's instructions."""
    flags = platform.processor() + platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            flags += next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        pass
    return hashlib.sha256(f"{onnxruntime.__version__} {flags}".encode()).hexdigest()[:12]
