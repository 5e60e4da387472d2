"""ONNX Runtime's sessions: one pool of threads for all of them, and weights that are kept as it prepacks them.

ONNX Runtime rearranges ("prepacks") a matrix for the CPU's own instructions whenever it loads one. Kept in a file, the
prepacked bytes are mapped: a start takes a fraction of a second, and all graphs of all processes share the pages. It
does not know models. Test: pytest tests/cloud/test_ort_model.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto

from sideplug.cloud.model.ort.graph import ALIGN
from sideplug.cloud.weights import Unfit

PREPACKED = "prepacked"  # begins a key of an initializer's external data: kernel+hash|offset;length;checksum|…
_pool: list[int] = []  # threads of ONNX Runtime's pool, once it is there


def start_pool(threads: int) -> int:
    """Make one pool of `threads` threads for all graphs of this process (two would fight for the cores).

    Returns how many threads it has: ONNX Runtime makes the pool once, so the first call decides. The pool spins for a
    moment between runs and sleeps when idle.
    """
    if not _pool:
        onnxruntime.set_global_thread_pool_sizes(threads, 1)
        _pool.append(threads)
    return _pool[0]


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """Open a graph for the CPU, on the pool of `start_pool`. Raises ONNX Runtime's own errors."""
    return onnxruntime.InferenceSession(str(path), _options(), providers=["CPUExecutionProvider"])


def prepack(model: ModelProto, folder: Path, name: str) -> ModelProto:
    """Write `name`.onnx and `name`.bin, with the matrices as this CPU wants them; return the graph that was written.

    Raises Unfit when ONNX Runtime refuses the graph, or the kept weights give other results than the graph's own.
    """
    plain, loose = folder / f"{name}.plain.onnx", folder / f"{name}.loose.onnx"
    write(model, plain)
    options = _options()
    options.optimized_model_filepath = str(loose)
    options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", f"{name}.loose")
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    try:
        first = onnxruntime.InferenceSession(str(plain), options, providers=["CPUExecutionProvider"])
        model = _align(onnx.load(loose, load_external_data=False), folder, name)
        write(model, folder / f"{name}.onnx")
        want, got = (_try(session) for session in (first, open_session(folder / f"{name}.onnx")))
    except Exception as error:  # whatever ONNX Runtime finds wrong with the graph
        raise Unfit(f"ONNX Runtime refuses its graph: {str(error).splitlines()[0]}") from error
    if not all(np.array_equal(a, b) and np.isfinite(a).all() for a, b in zip(want, got, strict=True)):
        raise Unfit("its weights, kept as ONNX Runtime arranges them, give other results than its file's")
    for file in (plain, loose, folder / f"{name}.loose"):
        file.unlink()
    return model


def write(model: ModelProto, path: Path) -> None:
    """Write a graph to a file; its stored tensors stay where they are."""
    path.write_bytes(model.SerializeToString())


def _try(session: onnxruntime.InferenceSession) -> list[NDArray[Any]]:
    """Return what a graph gives for one decode row and a chunk of three tokens, or, without attention, for any rows."""
    small = {"seen_d": [0], "total_d": [1], "seen_c0": [2], "total_c0": [3], "split": [1, 3]}
    rows, rng = 4, np.random.default_rng(0)
    feed: dict[str, NDArray[Any]] = {}
    for entry in session.get_inputs():
        kind = np.dtype({"tensor(float)": "f4", "tensor(int32)": "i4", "tensor(int64)": "i8"}[entry.type])
        if entry.name in small:
            feed[entry.name] = np.array(small[entry.name], kind)
        else:
            sizes = {"R": rows, "B": 1, "slot": 8}
            shape = [sizes.get(size, size) for size in entry.shape]
            feed[entry.name] = rng.normal(size=shape).astype(kind)
    names = [entry.name for entry in session.get_outputs() if not entry.name.startswith("new_")]
    return list(session.run(names, feed))


def _align(model: ModelProto, folder: Path, name: str) -> ModelProto:
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
                if key.startswith(PREPACKED):
                    kernel, *parts = entry.value.split("|")
                    moved = [part.split(";") for part in parts]
                    entry.value = "|".join([kernel, *(f"{move(o, n)};{n};{c}" for o, n, c in moved)])
    return model


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.use_per_session_threads = False  # those of `start_pool`
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # it is written as it runs
    options.enable_cpu_mem_arena = False  # it keeps the most that any step ever took, and is no faster here
    options.log_severity_level = 3
    return options
