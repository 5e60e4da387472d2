"""How vectors cross the wire: int8 with one scale a vector by default, fp16 where a tap says so.

One scale a vector and never one a tensor: the first token's activations are thousands of times the others'.
"""

from __future__ import annotations

import numpy as np

FP16_MAX = 65504.0


def quant8(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(..., n) float → codes (..., n) int8 and scales (...) float32, so that x ≈ codes · scale.

    A vector of zeros (or one that is not finite, which becomes zeros) has scale 0.
    """
    x = np.asarray(x, np.float32)
    peak = np.abs(x).max(axis=-1)
    ok = np.isfinite(peak) & (peak > 0)
    scale = np.where(ok, peak / 127.0, 0.0).astype(np.float32)
    inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)
    with np.errstate(invalid="ignore"):
        codes = np.rint(np.where(ok[..., None], x, 0.0) * inverse[..., None])
    return np.clip(codes, -127, 127).astype(np.int8), scale


def dequant8(codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Codes (..., n) int8 and scales (...) → (..., n) float32."""
    return codes.astype(np.float32) * scale[..., None].astype(np.float32)


def pack(x: np.ndarray, int8: bool) -> tuple[np.ndarray, np.ndarray]:
    """(..., n) float → (codes, scales): int8 with scales (...), or fp16 with scales of no elements."""
    if int8:
        return quant8(x)
    return np.clip(x, -FP16_MAX, FP16_MAX).astype(np.float16), np.zeros((*x.shape[:-1][:-1], 0), np.float32)


def unpack(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """What `pack` gave → (..., n) float32; the codes' dtype says which codec it was."""
    return dequant8(codes, scales) if codes.dtype == np.int8 else codes.astype(np.float32)
