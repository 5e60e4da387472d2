"""The encoding of vectors on the wire: int8 with one scale for each vector by default, fp16 where a tap says so.

A scale belongs to one vector, never to a whole tensor, because the first token's activations are thousands of times
larger than those of the others. It does not know what a vector means. Test: pytest tests/contract/test_codec_and_tap.py
"""

from __future__ import annotations

import numpy as np

FP16_MAX = 65504.0


def quant8(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantise (..., n) float to codes (..., n) int8 and scales (...) float32, so that x ≈ codes · scale.

    A vector of zeros has scale 0. A vector with a number that is not finite becomes zeros.
    """
    x = np.asarray(x, np.float32)
    peak = np.abs(x).max(axis=-1)
    usable = np.isfinite(peak) & (peak > 0)
    scale = np.where(usable, peak / 127.0, 0.0).astype(np.float32)
    inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)
    with np.errstate(invalid="ignore"):
        codes = np.rint(np.where(usable[..., None], x, 0.0) * inverse[..., None])
    return np.clip(codes, -127, 127).astype(np.int8), scale


def dequant8(codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return (..., n) float32 from codes (..., n) int8 and scales (...)."""
    return codes.astype(np.float32) * scale[..., None].astype(np.float32)


def pack(x: np.ndarray, int8: bool) -> tuple[np.ndarray, np.ndarray]:
    """Encode (..., n) float as (codes, scales): int8 codes with scales (...), or fp16 codes with an empty array."""
    if int8:
        return quant8(x)
    return np.clip(x, -FP16_MAX, FP16_MAX).astype(np.float16), np.zeros((*x.shape[:-1][:-1], 0), np.float32)


def unpack(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Decode the codes and scales of `pack` to (..., n) float32; the dtype of the codes tells the codec."""
    return dequant8(codes, scales) if codes.dtype == np.int8 else codes.astype(np.float32)
