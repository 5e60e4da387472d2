"""Optional: offsets of 4-bit blocks at no cost, through a private detail of ONNX Runtime 1.31.

Q4_1's weight is scale · code + minimum, with a minimum of its own for every block, but MatMulNBits takes only whole
zero points. Its kernel for 8-bit inputs, though, adds `sum of a block's inputs · (-scale · zero point)`, and keeps that
product, a float for each block, in the matrix that it has prepacked. So we let it prepack a matrix whose products can
be recognised, note where they went, and write our own floats there. That layout is private and may change: it is found
anew for every shape, and proven with a product that must be exact.

Without this module everything works: where `available` or the proof says no, the graph adds the offsets itself
(`Builder.linear`), which costs three more nodes a matrix.

When to delete this module, with its two calls in `prepare`: as soon as pyproject.toml allows an ONNX Runtime above
`ONLY` (1.32 packs anew at every start and compares, so the proof fails), or MatMulNBits takes a float zero point a
block at accuracy level 4. To be looked at again with every release of ONNX Runtime, by June 2027 at the latest.
Test: pytest tests/cloud/test_ort_model.py -k offsets
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from sideplug.cloud.model.base import Floats
from sideplug.cloud.model.ort.graph import Builder, mapped
from sideplug.cloud.model.ort.prepack import PREPACKED, open_session, prepack
from sideplug.cloud.weights import BLOCK, Blocks

ONLY = "1.31."  # the versions of ONNX Runtime whose layout this knows
_NAME = "one.codes"

Places = NDArray[np.int64]


def available() -> bool:
    """Return whether this ONNX Runtime is one whose private layout is known here."""
    return str(onnxruntime.__version__).startswith(ONLY)


def take_offsets(tensors: dict[str, TensorProto], folder: Path) -> dict[str, tuple[Places, Floats]]:
    """Take the offsets that the kernel can add by itself out of the stored `tensors` of `folder`.

    Returns what `write_sums` takes, once the graph of the other tensors is prepacked: by the name of a matrix's codes,
    the places and what multiplies each block's sum of inputs, both (rows, columns/32). Empty where not `available`.
    """
    place_of: dict[tuple[int, int, int], Places | None] = {}
    sums: dict[str, tuple[Places, Floats]] = {}
    for name in [name for name in tensors if name.endswith(".offsets") and available()]:
        codes, scales = name.replace(".offsets", ".codes"), name.replace(".offsets", ".scales")
        rows, parts, size = tensors[codes].dims
        bits = size * 8 // BLOCK
        shape = (bits, rows, parts * BLOCK)
        if shape not in place_of:
            place_of[shape] = places(*shape)
        place = place_of[shape]
        if place is not None:
            offsets = mapped(tensors.pop(name), folder).T
            sums[codes] = (place, offsets - np.float32(1 << (bits - 1)) * mapped(tensors[scales], folder))
    return sums


def places(bits: int, rows: int, columns: int) -> Places | None:
    """Find which float32 of the prepacked bytes of a matrix (rows, columns) belongs to each block: (rows, columns/32).

    Returns None when they are not found, when ONNX Runtime refuses, or when the proof fails.
    """
    parts = columns // BLOCK
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="sideplug-") as scratch:
        folder = Path(scratch)
        # Every code at the zero point, a scale that counts: the products are -zero point times 1, 2, 3, …
        zero = 1 << (bits - 1)
        marks = np.arange(1, rows * parts + 1, dtype=np.float32).reshape(rows, parts)
        marked = Blocks(bits, np.full((rows, parts, 4 * bits), 0x88 if bits == 4 else 0x80, np.uint8), marks)
        (floats,) = _prepacked(prepack(_matmul(marked), folder, "marked"), folder).values()
        number = floats / -zero
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
        model = prepack(_matmul(blocks), folder, "proof")
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


def write_sums(model: onnx.ModelProto, folder: Path, sums: dict[str, tuple[Places, Floats]]) -> None:
    """Write into the prepacked matrices of a graph in `folder` what multiplies each block's sum: see `take_offsets`."""
    floats = _prepacked(model, folder)
    for name, (place, values) in sums.items():
        floats[name][place] = values


def _prepacked(model: onnx.ModelProto, folder: Path) -> dict[str, Floats]:
    """Return the prepacked bytes of each matrix of a graph as float32 (n,), mapped from `folder` to be written."""
    floats: dict[str, Floats] = {}
    for tensor in model.graph.initializer:
        where = {entry.key: entry.value for entry in tensor.external_data}
        for key, value in where.items():
            if key.startswith(PREPACKED):
                offset, length, _ = value.split("|")[1].split(";")
                file = folder / where["location"]
                floats[tensor.name] = np.memmap(file, np.float32, "r+", int(offset), (int(length) // 4,))
    return floats


def _matmul(blocks: Blocks) -> onnx.ModelProto:
    """Return the graph x (R, K) → y (R, N) through this matrix alone, as the model's own graph has it."""
    rows, columns = blocks.shape
    g = Builder(
        {
            _NAME: numpy_helper.from_array(blocks.codes, _NAME),
            "one.scales": numpy_helper.from_array(blocks.scales, "one.scales"),
        }
    )
    g.output(g.linear(g.input("x", TensorProto.FLOAT, ["R", columns]), "one"), ["R", rows])
    return g.model()
