"""A model's weights on disk: any tensor in float32, and matrices in blocks of 32 weights with a scale for each block.

There are two sources with the same methods: a folder of safetensors, and a GGUF file, whose Q4_0, Q4_1 and Q8_0 blocks
are used bit for bit. Names are Hugging Face's. It does not know any engine. Test: pytest tests/cloud/test_gguf_file.py
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from safetensors import safe_open

from sideplug.cloud.model_files import Unfit as Unfit
from sideplug.cloud.model_files import read_json, reading, tensor_entries, weight_files
from sideplug.contract.errors import UnknownModel

BLOCK = 32
GGUF_WEIGHTS = "model.gguf"  # in a model folder, instead of safetensors
GGUF_INDEX = "model.gguf.json"  # the place of each tensor in it, because reading the file's own header takes seconds


@dataclass(frozen=True)
class Blocks:
    """A quantised matrix (N, K): weight = scale · (code - 2^(bits-1)) + offset, for each block of 32 weights in a row.

    codes: (N, K/32, 4·bits) uint8, the lower half of a byte first. scales, offsets: (N, K/32) float32.
    """

    bits: int
    codes: np.ndarray
    scales: np.ndarray
    offsets: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Return the shape (N, K) of the matrix."""
        return self.codes.shape[0], self.codes.shape[1] * BLOCK

    def rows(self, index: np.ndarray | slice) -> np.ndarray:
        """Return the rows (n, K) at `index` in float32."""
        codes = self.codes[index]
        if self.bits == 4:
            codes = np.stack([codes & 15, codes >> 4], -1).reshape(*codes.shape[:2], BLOCK)
        out = codes.astype(np.float32)
        out -= 1 << (self.bits - 1)
        out *= self.scales[index][..., None]
        if self.offsets is not None:
            out += self.offsets[index][..., None]
        return out.reshape(len(out), -1)


def quantise(matrix: np.ndarray, bits: int) -> Blocks:
    """Round (N, K) float32 to blocks: symmetrically with 8 bits, from each block's minimum to maximum with 4."""
    rows, columns = matrix.shape
    parts = matrix.reshape(rows, columns // BLOCK, BLOCK).astype(np.float32, copy=False)
    if bits == 8:
        scales = np.abs(parts).max(-1) / 127
        codes = np.rint(parts / np.where(scales, scales, 1)[..., None]) + 128
        return Blocks(8, codes.astype(np.uint8), scales)
    low = parts.min(-1)
    scales = (parts.max(-1) - low) / 15
    codes = np.rint((parts - low[..., None]) / np.where(scales, scales, 1)[..., None]).clip(0, 15).astype(np.uint8)
    return Blocks(4, codes[..., 0::2] | codes[..., 1::2] << 4, scales, low + 8 * scales)


def stack(parts: list[Blocks]) -> Blocks:
    """Return matrices of the same K as one matrix, concatenated along N."""
    offsets = None
    if any(part.offsets is not None for part in parts):
        offsets = np.concatenate([np.zeros_like(p.scales) if p.offsets is None else p.offsets for p in parts])
    codes, scales = (np.concatenate(column) for column in zip(*((p.codes, p.scales) for p in parts), strict=True))
    return Blocks(parts[0].bits, codes, scales, offsets)


class Weights(Protocol):
    """A source of a model's tensors."""

    def has(self, name: str) -> bool:
        """Return whether there is a tensor of this name."""
        ...

    def array(self, name: str) -> np.ndarray:
        """Return the tensor in float32. Raises UnknownModel if it is missing, Unfit for an unsupported type."""
        ...

    def blocks(self, name: str) -> Blocks | None:
        """Return the matrix in the file's blocks of 32, or None if the file does not have it in such blocks."""
        ...


class Safetensors:
    """The safetensors files of a folder, memory-mapped. The library only checks them: NumPy has no bfloat16."""

    _TYPES: ClassVar = {"F32": np.float32, "F16": np.float16, "F64": np.float64, "BF16": np.uint16}

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tensors: dict[str, tuple[Path, int, dict[str, Any]]] = {}
        for path, names in weight_files(folder).items():
            start, entries = tensor_entries(path)
            with reading(path):
                safe_open(path, "np")
            if names is not None and names - set(entries):
                raise UnknownModel(f"{path} lacks the weight {min(names - set(entries))}, which its index puts there")
            chosen = entries if names is None else {name: entries[name] for name in names}
            self._tensors |= {name: (path, start, entry) for name, entry in chosen.items()}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor."""
        return {name: tuple(entry["shape"]) for name, (_, _, entry) in self._tensors.items()}

    def has(self, name: str) -> bool:
        """See Weights."""
        return name in self._tensors

    def array(self, name: str) -> np.ndarray:
        """See Weights."""
        if name not in self._tensors:
            raise UnknownModel(f"the model in {self._folder} lacks its weight {name}")
        path, start, entry = self._tensors[name]
        kind = self._TYPES.get(entry["dtype"])
        if kind is None:
            raise Unfit(f"its weight {name} is {entry['dtype']}")
        raw = np.memmap(path, kind, "r", start + entry["data_offsets"][0], tuple(entry["shape"]))
        if entry["dtype"] == "BF16":
            return (raw.astype(np.uint32) << 16).view(np.float32)
        return np.asarray(raw, np.float32)

    def blocks(self, name: str) -> Blocks | None:
        """See Weights."""
        return None


class Gguf:
    """An unpacked GGUF file, memory-mapped. `_order` undoes llama.cpp's permutation of the rows of q and k."""

    _NAMES: ClassVar = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    _PARTS: ClassVar = {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }

    _ROTATED = ("llama", "mistral", "smollm3")

    def __init__(self, folder: Path, family: str, heads: int, kv_heads: int) -> None:
        self._path = folder / GGUF_WEIGHTS
        self._index = read_json(folder / GGUF_INDEX)
        self._heads = {"attn_q": heads, "attn_k": kv_heads} if family in self._ROTATED else {}

    @classmethod
    def name(cls, name: str) -> str:
        """Return llama.cpp's name of a tensor."""
        stem, _, kind = name.rpartition(".")
        if stem in cls._NAMES:
            return f"{cls._NAMES[stem]}.{kind}"
        _, _, block, part = stem.split(".", 3)
        return f"blk.{block}.{cls._PARTS[part]}.{kind}"

    @classmethod
    def all_names(cls, blocks: int) -> list[str]:
        """Return Hugging Face's names of all weights and biases that a model with this many blocks may have."""
        parts = [*cls._NAMES, *(f"model.layers.{i}.{part}" for i in range(blocks) for part in cls._PARTS)]
        return [f"{part}.{kind}" for part in parts for kind in ("weight", "bias")]

    def has(self, name: str) -> bool:
        """See Weights."""
        return self.name(name) in self._index

    def _order(self, name: str, rows: int) -> np.ndarray | slice:
        """Return the file's row of each Hugging Face row: a rotary pair, half a head apart there, is adjacent here."""
        heads = self._heads.get(name.split(".")[-2])
        if heads is None:
            return slice(None)
        return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)

    def _tensor(self, name: str) -> tuple[str, str, np.ndarray]:
        """Return llama.cpp's name, the type, and the data as the file has them."""
        gguf_name = self.name(name)
        if gguf_name not in self._index:
            raise UnknownModel(f"{self._path} lacks its weight {name}")
        entry = self._index[gguf_name]
        data = np.memmap(self._path, entry["dtype"], "r", entry["offset"], tuple(entry["shape"]))
        return gguf_name, entry["type"], np.asarray(data)

    def array(self, name: str) -> np.ndarray:
        """See Weights."""
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        gguf_name, kind, data = self._tensor(name)
        out = dequantize(data, GGMLQuantizationType[kind]).astype(np.float32, copy=False)
        return out[self._order(gguf_name, len(out))]

    def blocks(self, name: str) -> Blocks | None:
        """See Weights."""
        gguf_name, kind, data = self._tensor(name)
        size = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}.get(kind)
        if size is None:
            return None
        raw = data.view(np.uint8)
        raw = raw.reshape(raw.shape[0], -1, size)[self._order(gguf_name, raw.shape[0])]

        def half(at: int) -> np.ndarray:
            return raw[..., at : at + 2].copy().view(np.float16)[..., 0].astype(np.float32)

        scales = half(0)
        if kind == "Q8_0":
            return Blocks(8, raw[..., 2:] ^ 0x80, scales)
        offsets = half(2) + 8 * scales if kind == "Q4_1" else None
        packed = raw[..., size - 16 :]  # byte i: element i in the lower half, element i + 16 in the upper half
        codes = np.concatenate([packed & 15, packed >> 4], -1)
        return Blocks(4, codes[..., 0::2] | codes[..., 1::2] << 4, scales, offsets)


def matrix(weights: Weights, names: list[str], bits: int) -> Blocks:
    """Return these matrices, stacked, in blocks of 4 or 8 bits: the file's own blocks if all have these bits.

    bits 0: the file's own blocks, or 8 bits if it has none.
    """
    blocks = [part for part in map(weights.blocks, names) if part]
    widths = {part.bits for part in blocks}
    if len(blocks) == len(names) and len(widths) == 1 and (not bits or bits in widths):
        return stack(blocks)
    return stack([quantise(weights.array(name), bits or 8) for name in names])


def weights_of(folder: Path) -> Weights:
    """Return the source of a model folder's tensors."""
    if not (folder / GGUF_WEIGHTS).is_file():
        return Safetensors(folder)
    config = read_json(folder / "config.json")
    return Gguf(folder, config["model_type"], config["num_attention_heads"], config["num_key_value_heads"])
