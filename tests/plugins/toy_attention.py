"""A plugin kind in one file: each row looks back over all earlier rows of its text. A test of the seam, not a product.

q = c A,  k = c B,  v = c E        a = softmax over earlier rows and itself of q·k / √W        Δ = (Σ a v) C
"""

from __future__ import annotations

import numpy as np

from sideplug.plugins.base import Params, Past, Saved, Shape, TrainedKind
from sideplug.plugins.ladder import uniform


class KeysAndValues:
    """The keys and values (T, W) of the rows so far."""

    def __init__(self, width: int) -> None:
        self.k, self.v = np.zeros((0, width), np.float32), np.zeros((0, width), np.float32)

    @property
    def length(self) -> int:
        return len(self.k)

    def trim(self, length: int) -> None:
        self.k, self.v = self.k[:length], self.v[:length]


class ToyAttention(TrainedKind):
    name = "toy-attention"
    context = "all"
    default_width = 16

    def init(self, shape: Shape, rng: np.random.Generator) -> Params:
        size, wide = shape.taps * shape.rank, shape.width
        p = {name: uniform(rng, size, size, wide) for name in ("a", "b", "e")}
        return {**p, "c": np.zeros((wide, shape.model_width), np.float32)}

    def new_past(self, params: Params) -> Past:
        return KeysAndValues(params["a"].shape[1])

    def forward(
        self, params: Params, code_TKR: np.ndarray, starts_B: np.ndarray, past: Past | None = None
    ) -> tuple[np.ndarray, Saved]:
        c = code_TKR.reshape(len(code_TKR), -1)
        q, k, v = (c @ params[name] for name in ("a", "b", "e"))
        if isinstance(past, KeysAndValues):
            past.k, past.v = np.concatenate([past.k, k]), np.concatenate([past.v, v])
            q = np.concatenate([np.zeros((past.length - len(q), q.shape[1]), np.float32), q])
            k, v = past.k, past.v
        starts = starts_B if past is None else np.zeros(1, np.int64)
        text = np.searchsorted(starts, np.arange(len(q)), side="right")
        hidden = (text[:, None] != text) | (np.arange(len(q))[:, None] < np.arange(len(q)))
        scores = np.where(hidden, -np.inf, q @ k.T / np.float32(q.shape[1] ** 0.5))
        a = np.exp(scores - scores.max(1, keepdims=True))
        a = (a / a.sum(1, keepdims=True)).astype(np.float32)
        y = (a @ v)[-len(c) :]
        return y @ params["c"], (c, q, k, v, a, y)

    def backward(self, params: Params, saved: Saved, d_delta_TD: np.ndarray) -> Params:
        c, q, k, v, a, y = saved
        d_y = d_delta_TD @ params["c"].T
        d_a = d_y @ v.T
        d_scores = a * (d_a - (d_a * a).sum(1, keepdims=True)) / np.float32(q.shape[1] ** 0.5)
        return {"a": c.T @ (d_scores @ k), "b": c.T @ (d_scores.T @ q), "e": c.T @ (a.T @ d_y), "c": y.T @ d_delta_TD}
