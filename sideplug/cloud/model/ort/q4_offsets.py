"""Offsets of 4-bit blocks for nothing: where ONNX Runtime keeps what it multiplies a block's sum of inputs with.

Q4_1's weight is scale · code + minimum, with a minimum of its own for every block, but MatMulNBits takes only whole
zero points. Its kernel for 8-bit inputs, though, adds `sum of a block's inputs · (-scale · zero point)`, and keeps that
product, a float for each block, in the matrix that it has arranged for the CPU. So we let it arrange a matrix whose
products are recognised, note where they went, and write our own floats there. The layout is the library's secret and
may change: it is found anew for every shape and proven with a product that must be exact; where that fails, the graph
adds the offsets itself (`Builder.linear`), which costs three more nodes a matrix.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from sideplug.cloud.model.ort.graph import Builder
from sideplug.cloud.model.ort.prepack import arrange, arranged, open_session
from sideplug.cloud.weights import BLOCK, Blocks

_NAME = "one.codes"


def places(bits: int, rows: int, columns: int) -> np.ndarray | None:
    """Of a matrix (rows, columns): which float32 of its arranged bytes belongs to each block, (rows, columns/32).

    None: not found, refused, or the proof failed.
    """
    parts = columns // BLOCK
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="sideplug-") as scratch:
        folder = Path(scratch)
        # Every code at the zero point, a scale that counts: the products are -zero point times 1, 2, 3, …
        zero = 1 << (bits - 1)
        marks = np.arange(1, rows * parts + 1, dtype=np.float32).reshape(rows, parts)
        marked = Blocks(bits, np.full((rows, parts, 4 * bits), 0x88 if bits == 4 else 0x80, np.uint8), marks)
        (found,) = arranged(arrange(_matmul(marked), folder, "marked"), folder).values()
        number = found / -zero
        with np.errstate(invalid="ignore"):
            at = np.flatnonzero((number >= 1) & (number <= marks.size) & (number == np.rint(number)))
        if len(at) != marks.size or len(np.unique(number[at])) != marks.size:
            return None
        flat = np.empty(marks.size, np.int64)
        flat[number[at].astype(np.int64) - 1] = at
        place = flat.reshape(rows, parts)
        # The proof: inputs that 8 bits hold exactly, so the product is exact too.
        codes = rng.integers(0, 256, marked.codes.shape, dtype=np.uint8)
        scales, offsets = (rng.normal(1, 0.1, (2, rows, parts)) * [[[0.01]], [[0.1]]]).astype(np.float32)
        blocks = Blocks(bits, codes, scales, offsets)
        model = arrange(_matmul(blocks), folder, "proof")
        write_sums(model, folder, {_NAME: (place, offsets - zero * scales)})
        x = rng.integers(-126, 127, (5, columns)).astype(np.float32)
        x[:, ::BLOCK] = 127
        try:
            session = open_session(folder / "proof.onnx")
        except Exception:  # 1.32 packs anew at every start and compares: it takes no floats but its own
            return None
        want = x.astype(np.float64) @ blocks.rows(slice(None)).T.astype(np.float64)
        for some in (slice(0, 1), slice(None)):
            (got,) = session.run(None, {"x": x[some]})
            if not np.abs(got - want[some]).max() <= 1e-5 * np.abs(want).max():
                return None
    return place


def write_sums(model: onnx.ModelProto, folder: Path, sums: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Into matrices, by the name of their codes: places, and what multiplies each block's sum, (rows, columns/32)."""
    have = arranged(model, folder)
    for name, (place, values) in sums.items():
        have[name][place] = values


def _matmul(blocks: Blocks) -> onnx.ModelProto:
    """x (R, K) → y (R, N) through this matrix alone, as the model's own graph has it."""
    rows, columns = blocks.shape
    g = Builder(
        {
            _NAME: numpy_helper.from_array(blocks.codes, _NAME),
            "one.scales": numpy_helper.from_array(blocks.scales, "one.scales"),
        }
    )
    g.output(g.linear(g.input("x", TensorProto.FLOAT, ["R", columns]), "one"), ["R", rows])
    return g.model()
