"""Our default kind: a ladder of small layers over the codes.

    s = 0;  for k:  s += A_k c_k;  s += mlp_k(s);       Δ = C gelu(s) + b       C zero at the start, so Δ = 0

Letters: T rows, K tapped layers, R code width, W width, D the model's width. Test: pytest tests/plugins/test_kinds.py
"""

from __future__ import annotations

import numpy as np

from sideplug.contract.tap import Tap
from sideplug.plugins.base import Params, Past, Saved, Shape, TrainedKind


def gelu(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """GELU (tanh form, Hendrycks & Gimpel 2016) and its derivative."""
    c = np.float32(np.sqrt(2 / np.pi))
    inner = np.tanh(c * (x + np.float32(0.044715) * x * x * x))
    value = np.float32(0.5) * x * (1 + inner)
    slope = np.float32(0.5) * (1 + inner) + np.float32(0.5) * x * (1 - inner * inner) * c * (
        1 + np.float32(3 * 0.044715) * x * x
    )
    return value, slope


def uniform(rng: np.random.Generator, fan_in: int, *shape: int) -> np.ndarray:
    """PyTorch's Linear: U(−1/√fan_in, 1/√fan_in), float32."""
    bound = fan_in**-0.5
    return rng.uniform(-bound, bound, shape).astype(np.float32)


class Ladder(TrainedKind):
    """Parameters: a_KRW, a_bias_KW, up_KWW, up_bias_KW, down_KWW, down_bias_KW, c_WD, c_bias_D."""

    name = "ladder"

    def init(self, shape: Shape, rng: np.random.Generator) -> Params:
        """See TrainedKind."""
        taps, rank, width, model_width = shape.taps, shape.rank, shape.width, shape.model_width
        return {
            "a": uniform(rng, rank, taps, rank, width),
            "a_bias": np.zeros((taps, width), np.float32),
            "up": uniform(rng, width, taps, width, width),
            "up_bias": np.zeros((taps, width), np.float32),
            "down": uniform(rng, width, taps, width, width),
            "down_bias": np.zeros((taps, width), np.float32),
            "c": np.zeros((width, model_width), np.float32),
            "c_bias": np.zeros(model_width, np.float32),
        }

    def shapes(self, tap: Tap, params: Params) -> dict[str, tuple[int, ...]]:
        """See TrainedKind."""
        taps, rank, (width, model_width) = len(tap.layers), tap.rank, params["c"].shape
        return {
            "a": (taps, rank, width),
            "a_bias": (taps, width),
            "up": (taps, width, width),
            "up_bias": (taps, width),
            "down": (taps, width, width),
            "down_bias": (taps, width),
            "c": (width, model_width),
            "c_bias": (model_width,),
        }

    def forward(
        self, params: Params, code_TKR: np.ndarray, starts_B: np.ndarray, past: Past | None = None
    ) -> tuple[np.ndarray, Saved]:
        """See TrainedKind."""
        p = params
        rungs: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        s = np.zeros((code_TKR.shape[0], p["a"].shape[2]), np.float32)
        for k in range(p["a"].shape[0]):
            s = s + code_TKR[:, k] @ p["a"][k] + p["a_bias"][k]
            value, slope = gelu(s @ p["up"][k] + p["up_bias"][k])
            rungs.append((s, value, slope))
            s = s + value @ p["down"][k] + p["down_bias"][k]
        value, slope = gelu(s)
        return value @ p["c"] + p["c_bias"], (code_TKR, rungs, value, slope)

    def backward(self, params: Params, saved: Saved, d_delta_TD: np.ndarray) -> Params:
        """See TrainedKind."""
        p = params
        code_TKR, rungs, value, slope = saved
        g = {name: np.zeros_like(tensor) for name, tensor in p.items()}
        g["c"] = value.T @ d_delta_TD
        g["c_bias"] = d_delta_TD.sum(0)
        d_s = (d_delta_TD @ p["c"].T) * slope
        for k in reversed(range(p["a"].shape[0])):
            s, value, slope = rungs[k]
            g["down"][k] = value.T @ d_s
            g["down_bias"][k] = d_s.sum(0)
            d_inner = (d_s @ p["down"][k].T) * slope
            g["up"][k] = s.T @ d_inner
            g["up_bias"][k] = d_inner.sum(0)
            d_s = d_s + d_inner @ p["up"][k].T
            g["a"][k] = code_TKR[:, k].T @ d_s
            g["a_bias"][k] = d_s.sum(0)
        return g
