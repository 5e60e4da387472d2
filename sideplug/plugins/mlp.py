"""The kind of manner: one hidden layer over all codes of a row. A trunk is one; a person's part begins as its trunk.

    h = gelu(c A + a)        Δ = h B + b        B and b zero at the start, so Δ = 0

In a step of training a share of the codes and of h is dropped: else it learns a person's few thousand tokens by heart
(docs/LOG.md). c: the row's codes (K·R). Letters: T rows, K tapped layers, R code width, W width, D
the model's width. Test: pytest tests/plugins/test_kinds.py
"""

from __future__ import annotations

import numpy as np

from sideplug.contract.tap import Tap
from sideplug.plugins.base import Params, Past, Saved, Shape, TrainedKind
from sideplug.plugins.ladder import gelu, uniform


class Mlp(TrainedKind):
    """Parameters: a (K·R, W), a_bias (W,), b (W, D), b_bias (D,). share, rng: a step's dropout; None: without."""

    name = "mlp"
    default_width = 256
    biased = True

    def __init__(self, share: float = 0.0, rng: np.random.Generator | None = None) -> None:
        self._share, self._rng = np.float32(share), rng

    def dropped(self, share: float, rng: np.random.Generator) -> Mlp:
        """See TrainedKind."""
        return Mlp(share, rng)

    def init(self, shape: Shape, rng: np.random.Generator) -> Params:
        """See TrainedKind."""
        inputs = shape.taps * shape.rank
        return {
            "a": uniform(rng, inputs, inputs, shape.width),
            "a_bias": np.zeros(shape.width, np.float32),
            "b": np.zeros((shape.width, shape.model_width), np.float32),
            "b_bias": np.zeros(shape.model_width, np.float32),
        }

    def shapes(self, tap: Tap, params: Params) -> dict[str, tuple[int, ...]]:
        """See TrainedKind."""
        width, model_width = params["b"].shape
        inputs = len(tap.layers) * tap.rank
        return {"a": (inputs, width), "a_bias": (width,), "b": (width, model_width), "b_bias": (model_width,)}

    def forward(
        self, params: Params, code_TKR: np.ndarray, starts_B: np.ndarray, past: Past | None = None
    ) -> tuple[np.ndarray, Saved]:
        """See TrainedKind."""
        p = params
        c, _ = self._dropped(code_TKR.reshape(len(code_TKR), -1))
        value, slope = gelu(c @ p["a"] + p["a_bias"])
        h, h_kept = self._dropped(value)
        return h @ p["b"] + p["b_bias"], (c, h, slope * h_kept)

    def backward(self, params: Params, saved: Saved, d_delta_TD: np.ndarray) -> Params:
        """See TrainedKind."""
        c, h, slope = saved
        d_inner = (d_delta_TD @ params["b"].T) * slope
        return {
            "a": c.T @ d_inner,
            "a_bias": d_inner.sum(0),
            "b": h.T @ d_delta_TD,
            "b_bias": d_delta_TD.sum(0),
        }

    def _dropped(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """x with some numbers zero and the others larger, and by what each was multiplied."""
        if self._rng is None:
            return x, np.ones((), np.float32)
        kept = (self._rng.random(x.shape, np.float32) >= self._share).astype(np.float32) / (1 - self._share)
        return x * kept, kept
