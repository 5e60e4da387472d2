"""A model folder → graphs that are ready to run: made once, kept in our cache, mapped from then on."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, TensorProto

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
from sideplug.cloud.model.ort.prepack import arrange, open_session, write
from sideplug.cloud.model.ort.q4_offsets import places, write_sums
from sideplug.cloud.store import make_once
from sideplug.cloud.weights import BLOCK, Blocks, weights_of

FORMAT = 6  # of what is kept: counted up when the graph changes
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
        return self._further(variant.name, lambda: build(self.blueprint, variant, self.tensors))

    def reader(self) -> onnxruntime.InferenceSession:
        return self._further("read", lambda: build_head(self.blueprint, self.tensors, reads=True))

    def _further(self, name: str, make: Callable[[], ModelProto]) -> onnxruntime.InferenceSession:
        """A graph over the same weights, written when it is first wanted."""
        path = self.folder / f"{name}.onnx"
        if not path.exists():
            aside = path.with_name(f".{name}.{os.getpid()}")
            write(make(), aside)
            aside.replace(path)
        return open_session(path)

    def head(self) -> onnxruntime.InferenceSession:
        return open_session(self.folder / f"{HEAD}.onnx")

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
        make_once(target, lambda aside: _make(folder, b, bits, aside))
    return Prepared(target, b)


def _make(folder: Path, b: Blueprint, bits: int, aside: Path) -> None:
    weights = weights_of(folder)
    tied = b.tied or not weights.has("lm_head.weight")
    raw = aside / "raw"
    with Store(raw) as store:
        store_weights(b, weights, bits, store)
    sums = _offsets_as_sums(store.tensors, aside)
    write_sums(arrange(build(b, Variant(1, 1), store.tensors), aside, BODY), aside, sums)
    whole = 16 if bits == 16 else 0  # the head and the embedding are never rounded to 4 bits
    with Store(raw) as store:
        store_matrix("head", [EMBEDDING if tied else "lm_head.weight"], weights, whole, store)
    arrange(build_head(b, store.tensors), aside, HEAD)
    raw.unlink()
    if not tied:
        with Store(aside / "embedding.bin") as store:
            store_matrix("embedding", [EMBEDDING], weights, whole, store)
        tensors = onnx.GraphProto(initializer=list(store.tensors.values()))
        (aside / "embedding.pb").write_bytes(tensors.SerializeToString())


def _offsets_as_sums(tensors: dict[str, TensorProto], folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Take the offsets that the kernel can add by itself out of `tensors`: for `block_sums.write_sums`."""
    found: dict[tuple[int, ...], np.ndarray | None] = {}
    sums = {}
    for name in [name for name in tensors if name.endswith(".offsets")]:
        codes, scales = name.replace(".offsets", ".codes"), name.replace(".offsets", ".scales")
        rows, parts, size = tensors[codes].dims
        bits = size * 8 // BLOCK
        shape = (bits, rows, parts * BLOCK)
        if shape not in found:
            found[shape] = places(*shape)
        place = found[shape]
        if place is not None:
            offsets = mapped(tensors.pop(name), folder).T
            sums[codes] = (place, offsets - np.float32(1 << (bits - 1)) * mapped(tensors[scales], folder))
    return sums


def _machine() -> str:
    """What the arrangement of the blocks depends on: the version of ONNX Runtime and the CPU's instructions."""
    flags = platform.processor() + platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            flags += next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        pass
    return hashlib.sha256(f"{onnxruntime.__version__} {flags}".encode()).hexdigest()[:12]
