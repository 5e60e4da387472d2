"""A model's weights as the graph wants them: vectors in float32, matrices in blocks of 32 with a scale a block.

Two sources under one signature: a folder of safetensors, and a GGUF file whose Q4_0, Q4_1 and Q8_0 blocks are taken
bit for bit. Names are Hugging Face's. It does not know the graph.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from sideplug.cloud.ort.blueprint import Unfit

BLOCK = 32


@dataclass(frozen=True)
class Blocks:
    """A matrix (N, K): weight = scale · (code - 2^(bits-1)) + offset, a scale and an offset for 32 neighbours of a row.

    codes: (N, K/32, 4·bits) uint8, the lower half of a byte first; scales: (N, K/32) float32; offsets: the same, or None.
    """

    bits: int
    codes: np.ndarray
    scales: np.ndarray
    offsets: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1] * BLOCK

    def rows(self, index: np.ndarray | slice) -> np.ndarray:
        """These rows (n, K) in float32."""
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
    """Round (N, K) float32 to blocks: 8 bits symmetric, 4 bits between each block's least and largest weight."""
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
    """Several matrices over the same input as one, N after N."""
    offsets = None
    if any(part.offsets is not None for part in parts):
        offsets = np.concatenate([np.zeros_like(p.scales) if p.offsets is None else p.offsets for p in parts])
    codes, scales = (np.concatenate(column) for column in zip(*((p.codes, p.scales) for p in parts), strict=True))
    return Blocks(parts[0].bits, codes, scales, offsets)


class Weights(Protocol):
    """Where a model's tensors come from."""

    def has(self, name: str) -> bool: ...

    def array(self, name: str) -> np.ndarray:
        """The tensor in float32. Raises Unfit when it is not there."""
        ...

    def blocks(self, name: str) -> Blocks | None:
        """The matrix as the file has it in blocks of 32, or None: it has to be quantised."""
        ...


class Safetensors:
    """Every .safetensors of a folder, mapped. NumPy has no bfloat16, so the files are read by their header."""

    _TYPES = {"F32": np.float32, "F16": np.float16, "F64": np.float64, "BF16": np.uint16}

    def __init__(self, folder: Path) -> None:
        self._found: dict[str, tuple[Path, int, dict]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with path.open("rb") as file:
                (size,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(size))
            header.pop("__metadata__", None)
            self._found |= {name: (path, 8 + size, about) for name, about in header.items()}

    def has(self, name: str) -> bool:
        return name in self._found

    def array(self, name: str) -> np.ndarray:
        if name not in self._found:
            raise Unfit(f"its weights lack {name}")
        path, start, about = self._found[name]
        kind = self._TYPES.get(about["dtype"])
        if kind is None:
            raise Unfit(f"its weight {name} is {about['dtype']}")
        raw = np.memmap(path, kind, "r", start + about["data_offsets"][0], tuple(about["shape"]))
        if about["dtype"] == "BF16":
            return (raw.astype(np.uint32) << 16).view(np.float32)
        return np.asarray(raw, np.float32)

    def blocks(self, name: str) -> Blocks | None:
        return None


class Gguf:
    """One GGUF file, mapped. `rotated` families have the rows of q and k in llama.cpp's rotary order."""

    _NAMES = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    _PARTS = {
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

    def __init__(self, path: Path, heads: int, kv_heads: int, rotated: bool) -> None:
        from gguf import GGUFReader

        self._tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
        self._heads = {"attn_q": heads, "attn_k": kv_heads} if rotated else {}

    @classmethod
    def name(cls, name: str) -> str:
        """llama.cpp's name of a tensor."""
        if name in cls._NAMES:
            return cls._NAMES[name]
        _, _, block, rest = name.split(".", 3)
        part, _, kind = rest.rpartition(".")
        return f"blk.{block}.{cls._PARTS[part]}.{kind}"

    def has(self, name: str) -> bool:
        return self.name(name) in self._tensors

    def _order(self, name: str, rows: int) -> np.ndarray | slice:
        """Where Hugging Face's rows are in the file: its rotary halves are llama.cpp's neighbours."""
        heads = self._heads.get(name.split(".")[-2])
        if heads is None:
            return slice(None)
        return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)

    def _tensor(self, name: str):  # type: ignore[no-untyped-def]  # gguf has no types
        found = self._tensors.get(self.name(name))
        if found is None:
            raise Unfit(f"its weights lack {name}")
        return found

    def array(self, name: str) -> np.ndarray:
        from gguf.quants import dequantize

        tensor = self._tensor(name)
        out = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        return out[self._order(tensor.name, len(out))]

    def blocks(self, name: str) -> Blocks | None:
        tensor = self._tensor(name)
        kind, size = tensor.tensor_type.name, {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}.get(tensor.tensor_type.name)
        if size is None:
            return None
        raw = tensor.data.view(np.uint8)
        raw = raw.reshape(raw.shape[0], -1, size)[self._order(tensor.name, raw.shape[0])]

        def half(at: int) -> np.ndarray:
            return raw[..., at : at + 2].copy().view(np.float16)[..., 0].astype(np.float32)

        scales = half(0)
        if kind == "Q8_0":
            return Blocks(8, raw[..., 2:] ^ 0x80, scales)
        offsets = half(2) + 8 * scales if kind == "Q4_1" else None
        packed = raw[..., size - 16 :]  # byte i: element i below, element i + 16 above
        codes = np.concatenate([packed & 15, packed >> 4], -1)
        return Blocks(4, codes[..., 0::2] | codes[..., 1::2] << 4, scales, offsets)


def matrix(weights: Weights, names: list[str], bits: int) -> Blocks:
    """These matrices, stacked, at `bits`, or as the file has them when bits is 0 (8 where it has no blocks)."""
    found = [weights.blocks(name) for name in names]
    if any(part is None for part in found) or len({part.bits for part in found if part}) > 1:
        return stack([quantise(weights.array(name), bits or 8) for name in names])
    have = [part for part in found if part]
    if bits and bits != have[0].bits:
        return stack([quantise(weights.array(name), bits) for name in names])
    return stack(have)


def without_offsets(blocks: Blocks) -> Blocks:
    """The same matrix in 8 bits whose codes alone say it, to within a 500th of a block's range."""
    return blocks if blocks.offsets is None else replace(quantise(blocks.rows(slice(None)), 8))
