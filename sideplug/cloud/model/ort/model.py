"""A model on a CPU, through ONNX Runtime: its embedding, its head, and `load`, which makes the pipeline.

It needs no torch. It does not know sessions, plugins or the wire. Test: pytest tests/cloud/test_ort_model.py
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sideplug.cloud.model.base import Floats, Ints, Pipeline, ranges
from sideplug.cloud.model.memory import divide
from sideplug.cloud.model.ort.blueprint import Blueprint
from sideplug.cloud.model.ort.prepack import start_pool
from sideplug.cloud.model.ort.prepare import PreparedBody, PreparedEnds, prepare, prepare_body
from sideplug.cloud.model.ort.stage import OrtStage
from sideplug.cloud.store import Base
from sideplug.cloud.weights import Blocks


class OrtEmbedding:
    """Token ids → x, from a matrix that is mapped from its file: see `model.Embedding`."""

    def __init__(self, prepared: PreparedEnds) -> None:
        self.width = prepared.blueprint.width
        self._scale = np.float32(prepared.blueprint.embedding_scale)
        self._matrix = prepared.embedding()

    def embed(self, ids: Sequence[int]) -> Floats:
        """Return x (T, D) float32, what the first block gets, of T token ids."""
        return np.ascontiguousarray(_rows(self._matrix, np.asarray(ids, np.int64)) * self._scale)


class OrtHead:
    """z → logits, and what training reads of them: see `model.Head`."""

    logit_scale = 1.0

    def __init__(self, prepared: PreparedEnds) -> None:
        self.vocab = prepared.blueprint.vocab
        self.softcap = prepared.blueprint.softcap
        self._head, self._reader = prepared.head(), prepared.reader()
        self._matrix, self._bias = prepared.head_matrix()
        self.logits(np.zeros((2, prepared.blueprint.width), np.float32))  # nobody's first token waits for the first run

    def gather(self, states: Sequence[Floats], rows: Any) -> Floats:
        """Return copies of these rows of K states (T, D): (rows, K, D)."""
        if len(states) == 1:
            one: Floats = states[0][rows]
            return one[:, None]
        return np.stack([state[rows] for state in states], axis=1)

    def logits(self, z_TD: Floats) -> Floats:
        """Return the logits (T, V) float32 of z (T, D)."""
        (logits,) = self._head.run(None, {"z": np.ascontiguousarray(z_TD, np.float32)})
        return np.asarray(logits, np.float32)

    def read(self, z_TD: Floats, targets: Ints, top: int) -> tuple[Floats, Ints, Floats]:
        """As `model.Model.read`."""
        feed = {"z": np.ascontiguousarray(z_TD, np.float32), "targets": targets.astype(np.int64)[:, None]}
        feed["top"] = np.array([min(top, self.vocab)], np.int64)
        logp, best, lse = self._reader.run(["logp", "best", "lse"], feed)
        return logp[:, 0], best.astype(np.int32), lse[:, 0]

    def head_rows(self, ids: Ints) -> tuple[Floats, Floats]:
        """Return the head's weight rows (n, D) and biases (n,) float32 of these token ids."""
        index = ids.astype(np.int64)
        bias = self._bias
        return _rows(self._matrix, index), np.zeros(len(ids), np.float32) if bias is None else np.asarray(bias[index])


def _rows(matrix: Blocks | Floats, index: NDArray[np.int64]) -> Floats:
    """Return these rows of a mapped matrix, in float32."""
    return matrix.rows(index) if isinstance(matrix, Blocks) else np.asarray(matrix[index], np.float32)


def load(
    base: Base,
    blueprint: Blueprint,
    bits: int,
    threads: int,
    root: Path,
    kv_limit_bytes: int,
    say: Callable[[str], None],
    cuts: Sequence[int] = (),
) -> Pipeline[Floats]:
    """Load the model of a folder, prepared below `root`: as one stage, or cut into several before the blocks `cuts`.

    bits: see `prepare`. threads: of the pool that all graphs share. `say` gets a line when the preparation takes time.
    Raises InputError, Unfit, UnknownModel, Stopped.
    """
    start_pool(threads)
    parts = ranges(blueprint.blocks, cuts)
    bodies, ends = prepare(base.folder, blueprint, base.fingerprint, bits, root, say, parts)
    return pipeline(bodies, ends, kv_limit_bytes)


def load_stage(
    base: Base,
    blueprint: Blueprint,
    blocks: tuple[int, int],
    bits: int,
    threads: int,
    root: Path,
    kv_limit_bytes: int,
    say: Callable[[str], None],
) -> OrtStage:
    """Load one stage alone, the blocks `blocks[0]` … `blocks[1]` - 1: it prepares and maps only their weights.

    kv_limit_bytes: for its own keys and values. The others as in `load`.
    """
    start_pool(threads)
    return OrtStage(prepare_body(base.folder, blueprint, base.fingerprint, bits, root, say, blocks), kv_limit_bytes)


def pipeline(bodies: Sequence[PreparedBody], ends: PreparedEnds, kv_limit_bytes: int) -> Pipeline[Floats]:
    """Make the model of its prepared parts, whose stages share `kv_limit_bytes`. Raises InputError, Stopped."""
    sizes = [ends.blueprint.kv_bytes_per_token(body.last - body.first) for body in bodies]
    limits = divide(kv_limit_bytes, sizes)
    stages = [OrtStage(body, limit) for body, limit in zip(bodies, limits, strict=True)]
    return Pipeline(OrtEmbedding(ends), stages, OrtHead(ends))
