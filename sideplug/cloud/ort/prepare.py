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
    ALIGN,
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

FORMAT = 3  # of what is kept: counted up when the graph changes
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
    with Store(aside / f"{BODY}.raw") as store:
        store_weights(b, weights, bits, store)
    _pack(build(b, Variant(1, 1), store.tensors), aside, BODY)
    with Store(aside / f"{HEAD}.raw") as store:
        store_matrix("head", [EMBEDDING if tied else "lm_head.weight"], weights, bits, store)
    _pack(build_head(b, store.tensors), aside, HEAD)
    if not tied:
        with Store(aside / "embedding.bin") as store:
            store_matrix("embedding", [EMBEDDING], weights, bits, store)
        tensors = onnx.GraphProto(initializer=list(store.tensors.values()))
        (aside / "embedding.pb").write_bytes(tensors.SerializeToString())


def _pack(model: ModelProto, folder: Path, name: str) -> None:
    """Let ONNX Runtime write the graph with its blocks arranged for this CPU, and drop the raw ones."""
    raw = folder / f"{name}.raw"
    plain = folder / f"{name}.plain.onnx"
    _write(model, plain)
    options = _options()
    loose = folder / f"{name}.loose.onnx"
    options.optimized_model_filepath = str(loose)
    options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", f"{name}.loose")
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    try:
        first = onnxruntime.InferenceSession(str(plain), options, providers=["CPUExecutionProvider"])
        _write(_aligned(onnx.load(loose, load_external_data=False), folder, name), folder / f"{name}.onnx")
        want, got = (_try(session) for session in (first, _open(folder / f"{name}.onnx")))
    except Exception as error:  # whatever ONNX Runtime finds wrong with the graph
        raise Unfit(f"ONNX Runtime refuses its graph: {str(error).splitlines()[0]}") from error
    if not all(np.array_equal(a, b) and np.isfinite(a).all() for a, b in zip(want, got, strict=True)):
        raise Unfit("its weights, kept as ONNX Runtime arranges them, give other results than its file's")
    for file in (plain, raw, loose, folder / f"{name}.loose"):
        file.unlink()


def _try(session: onnxruntime.InferenceSession) -> list[np.ndarray]:
    """What a graph gives for one decode row and a chunk of three tokens, or, without attention, for any rows."""
    small = {"seen_d": [0], "total_d": [1], "seen_c0": [2], "total_c0": [3], "split": [1, 3]}
    rows, rng = 4, np.random.default_rng(0)
    feed: dict[str, np.ndarray] = {}
    for taken in session.get_inputs():
        kind = np.dtype({"tensor(float)": "f4", "tensor(int32)": "i4", "tensor(int64)": "i8"}[taken.type])
        if taken.name in small:
            feed[taken.name] = np.array(small[taken.name], kind)
        else:
            sizes = {"R": rows, "B": 1, "slot": 8}
            shape = [sizes.get(size, size) for size in taken.shape]
            feed[taken.name] = rng.normal(size=shape).astype(kind)
    names = [given.name for given in session.get_outputs() if not given.name.startswith("new_")]
    return session.run(names, feed)


def _aligned(model: ModelProto, folder: Path, name: str) -> ModelProto:
    """Move what ONNX Runtime wrote into a file where everything is aligned.

    A prepacked matrix has inner parts at aligned addresses. ONNX Runtime writes small ones anywhere in the file; mapped
    from there, their parts would be looked for in the wrong places, and the products come out as nonsense.
    """
    with (folder / f"{name}.loose").open("rb") as source, (folder / f"{name}.bin").open("wb") as out:

        def move(offset: str, length: str) -> int:
            out.write(b"\0" * (-out.tell() % ALIGN))
            start = out.tell()
            source.seek(int(offset))
            out.write(source.read(int(length)))
            return start

        for tensor in model.graph.initializer:
            where = {entry.key: entry for entry in tensor.external_data}
            if where:
                where["offset"].value = str(move(where["offset"].value, where["length"].value))
                where["location"].value = f"{name}.bin"
            for key, entry in where.items():
                if key.startswith("prepacked"):  # kernel+hash|offset;length;checksum|…
                    kernel, *parts = entry.value.split("|")
                    moved = [part.split(";") for part in parts]
                    entry.value = "|".join([kernel, *(f"{move(o, n)};{n};{c}" for o, n, c in moved)])
    return model


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
