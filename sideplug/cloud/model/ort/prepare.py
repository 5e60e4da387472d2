"""A model folder → graphs that are ready to run: made once, kept in our cache, mapped from then on.

What is kept is a body (some neighbouring blocks: what a stage runs) and the two ends (embedding and head). A model in
one stage keeps all of it in one folder, `<key>`; a model in several stages keeps a folder for each body,
`<key>-blocks-<first>-<last>`, and one for the ends, `<key>-ends`, so that a stage alone makes only its own weights.
It does not run a model. Test: pytest tests/cloud/test_ort_model.py tests/cloud/test_stages.py
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnx
import onnxruntime
from onnx import ModelProto, TensorProto

from sideplug.cloud import kept
from sideplug.cloud.model.base import Floats
from sideplug.cloud.model.ort import q4_offsets
from sideplug.cloud.model.ort.blueprint import Blueprint
from sideplug.cloud.model.ort.graph import (
    Store,
    Variant,
    build,
    build_head,
    mapped,
    mapped_matrix,
    store_matrix,
    store_weights,
)
from sideplug.cloud.model.ort.prepack import open_session, prepack, write
from sideplug.cloud.weights import BLOCK, Blocks, Weights, weights_of

FORMAT = 6  # of what is kept: counted up when the graph changes
BODY, HEAD = "body", "head"
EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True)
class PreparedBody:
    """The kept blocks `first` … `last` - 1: body.onnx, body.bin, and further variants of the graph."""

    folder: Path
    blueprint: Blueprint
    first: int
    last: int

    @cached_property
    def tensors(self) -> dict[str, TensorProto]:
        """The stored tensors by their names, without their values."""
        return _tensors(self.folder / f"{BODY}.onnx")

    @property
    def bits(self) -> int:
        """The bits of a weight; 32 where the matrices are not in blocks."""
        codes = self.tensors.get(f"{self.first}.qkv.codes")
        return int(codes.dims[2]) * 8 // BLOCK if codes else 32

    def session(self, variant: Variant) -> onnxruntime.InferenceSession:
        """Open the graph of a variant."""

        def make() -> ModelProto:
            return build(self.blueprint, variant, self.tensors, self.first, self.last)

        return _open(self.folder, variant.name, make)


@dataclass(frozen=True)
class PreparedEnds:
    """The kept head and embedding: head.onnx, head.bin, and embedding.bin where it is not the head's matrix."""

    folder: Path
    blueprint: Blueprint

    @cached_property
    def tensors(self) -> dict[str, TensorProto]:
        """The head's stored tensors by their names, without their values."""
        return _tensors(self.folder / f"{HEAD}.onnx")

    def head(self) -> onnxruntime.InferenceSession:
        """Open the graph z → logits."""
        return open_session(self.folder / f"{HEAD}.onnx")

    def reader(self) -> onnxruntime.InferenceSession:
        """Open the graph of `model.Model.read`."""
        return _open(self.folder, "read", lambda: build_head(self.blueprint, self.tensors, reads=True))

    def head_matrix(self) -> tuple[Blocks | Floats, Floats | None]:
        """Return the head's weights (V, D) and, where it has them, its biases (V,); mapped."""
        bias = mapped(self.tensors["head.bias"], self.folder) if "head.bias" in self.tensors else None
        return mapped_matrix(self.tensors, HEAD, self.folder), bias

    def embedding(self) -> Blocks | Floats:
        """Return the embedding (V, D), mapped; it is the head's matrix where the two are tied."""
        own = self.folder / "embedding.pb"
        if not own.exists():
            return mapped_matrix(self.tensors, HEAD, self.folder)
        tensors = onnx.GraphProto.FromString(own.read_bytes()).initializer
        return mapped_matrix({tensor.name: tensor for tensor in tensors}, "embedding", self.folder)


def _tensors(path: Path) -> dict[str, TensorProto]:
    model = onnx.load(path, load_external_data=False)
    return {tensor.name: tensor for tensor in model.graph.initializer}


def _open(folder: Path, name: str, make: Callable[[], ModelProto]) -> onnxruntime.InferenceSession:
    """Open a further graph over the same weights; it is written when it is first wanted."""
    return open_session(kept.file(folder / f"{name}.onnx", lambda aside: write(make(), aside)))


def prepare(
    folder: Path,
    b: Blueprint,
    fingerprint: str,
    bits: int,
    root: Path,
    say: Callable[[str], None],
    parts: Sequence[tuple[int, int]] = (),
) -> tuple[list[PreparedBody], PreparedEnds]:
    """Return what runs this model, made below `root` when it is not there yet.

    bits: 4, 8, 16 (not quantised), or 0 for what suits the file. parts: the blocks (first, last + 1) of each stage;
    none: one stage of all blocks. Raises Unfit, UnknownModel, Stopped.
    """
    key = _key(fingerprint, bits)
    if len(parts) > 1:
        bodies = [prepare_body(folder, b, fingerprint, bits, root, say, part) for part in parts]
        ends = _make_once(root, f"{key}-ends", say, lambda aside: _make_ends(weights_of(folder), b, bits, aside))
        return bodies, PreparedEnds(ends, b)

    def make(aside: Path) -> None:
        weights = weights_of(folder)
        _make_body(weights, b, bits, aside, 0, b.blocks)
        _make_ends(weights, b, bits, aside)

    target = _make_once(root, key, say, make)
    return [PreparedBody(target, b, 0, b.blocks)], PreparedEnds(target, b)


def prepare_body(
    folder: Path,
    b: Blueprint,
    fingerprint: str,
    bits: int,
    root: Path,
    say: Callable[[str], None],
    blocks: tuple[int, int],
) -> PreparedBody:
    """Return what runs the blocks `blocks[0]` … `blocks[1]` - 1, made of their weights alone: as `prepare`."""
    first, last = blocks
    name = f"{_key(fingerprint, bits)}-blocks-{first}-{last}"
    target = _make_once(root, name, say, lambda aside: _make_body(weights_of(folder), b, bits, aside, first, last))
    return PreparedBody(target, b, first, last)


def _key(fingerprint: str, bits: int) -> str:
    return f"{fingerprint[:16]}-{bits or 'auto'}-{FORMAT}-{_machine()}"


def _make_once(root: Path, name: str, say: Callable[[str], None], make: Callable[[Path], None]) -> Path:
    target = root / "graphs" / name
    if not kept.is_whole(target):
        say("arranging the weights for this CPU, once (some seconds)")
        kept.make(target, make)
    return target


def _make_body(weights: Weights, b: Blueprint, bits: int, aside: Path, first: int, last: int) -> None:
    raw = aside / "raw"
    with Store(raw) as store:
        store_weights(b, weights, bits, store, first, last)
    sums = q4_offsets.take_offsets(store.tensors, aside)
    model = prepack(build(b, Variant(1, 1), store.tensors, first, last), aside, BODY)
    q4_offsets.write_sums(model, aside, sums)
    raw.unlink()


def _make_ends(weights: Weights, b: Blueprint, bits: int, aside: Path) -> None:
    tied = b.tied or not weights.has("lm_head.weight")
    raw = aside / "raw"
    whole = 16 if bits == 16 else 0  # the head and the embedding are never rounded to 4 bits
    with Store(raw) as store:
        store_matrix("head", [EMBEDDING if tied else "lm_head.weight"], weights, whole, store)
    prepack(build_head(b, store.tensors), aside, HEAD)
    raw.unlink()
    if not tied:
        with Store(aside / "embedding.bin") as store:
            store_matrix("embedding", [EMBEDDING], weights, whole, store)
        tensors = onnx.GraphProto(initializer=list(store.tensors.values()))
        (aside / "embedding.pb").write_bytes(tensors.SerializeToString())


def _machine() -> str:
    """What the prepacked bytes depend on: the version of ONNX Runtime and the CPU's instructions."""
    flags = platform.processor() + platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            flags += next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        pass
    return hashlib.sha256(f"{onnxruntime.__version__} {flags}".encode()).hexdigest()[:12]
