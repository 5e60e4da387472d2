"""The kinds of arXiv 2403.07088, for comparison: the released ladder over every raw state, with ReLU.

    paper          its output replaces z
    paper-added    its output is added to z and starts as zero

K = N + 1 raw states, of which h_1 … h_N are read. Letters: T rows, R = D the model's width, W width.
Test: pytest tests/plugins/test_kinds.py
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from sideplug.contract.correction import Merge
from sideplug.contract.errors import PluginError
from sideplug.contract.tap import Tap
from sideplug.plugins.base import Params, Past, Saved, Shape, TrainedKind
from sideplug.plugins.ladder import uniform


class Paper(TrainedKind):
    """The released ladder: h_1 starts it, h_2 … h_N are its rungs; its output replaces z."""

    name = "paper"
    merge: ClassVar[Merge] = "replace"
    default_width = 32

    def tap(self, blocks: int, width: int, layers: int = 9, rank: int = 64) -> Tap:
        """Every state, unprojected: what the paper sends."""
        return Tap.raw(blocks, width)

    def check_tap(self, tap: Tap) -> None:
        """See TrainedKind."""
        if not (tap.codec == "raw" and len(tap.layers) >= 3 and tap.layers[-1] == len(tap.layers) - 1):
            raise PluginError("the paper plugin must have a raw tap of every layer (--tap raw)")

    def init(self, shape: Shape, rng: np.random.Generator) -> Params:
        """See TrainedKind."""
        rank, width, model_width = shape.rank, shape.width, shape.model_width
        steps = shape.taps - 2
        return {
            "in": uniform(rng, rank, rank, width),
            "in_bias": uniform(rng, rank, width),
            "rung": uniform(rng, rank, steps, rank, width),
            "rung_bias": uniform(rng, rank, steps, width),
            "up": uniform(rng, width, steps, width, rank),
            "up_bias": uniform(rng, width, steps, rank),
            "down": uniform(rng, rank, steps, rank, width),
            "down_bias": uniform(rng, rank, steps, width),
            "out": uniform(rng, width, width, model_width),
            "out_bias": uniform(rng, width, model_width),
        }

    def shapes(self, tap: Tap, params: Params) -> dict[str, tuple[int, ...]]:
        """See TrainedKind."""
        rank, steps, (width, model_width) = tap.rank, len(tap.layers) - 2, params["out"].shape
        return {
            "in": (rank, width),
            "in_bias": (width,),
            "rung": (steps, rank, width),
            "rung_bias": (steps, width),
            "up": (steps, width, rank),
            "up_bias": (steps, rank),
            "down": (steps, rank, width),
            "down_bias": (steps, width),
            "out": (width, model_width),
            "out_bias": (model_width,),
        }

    def forward(
        self, params: Params, code_TKR: np.ndarray, starts_B: np.ndarray, past: Past | None = None
    ) -> tuple[np.ndarray, Saved]:
        """See TrainedKind."""
        p = params
        rungs: list[tuple[np.ndarray, np.ndarray]] = []
        h = code_TKR[:, 1] @ p["in"] + p["in_bias"]
        for i in range(p["rung"].shape[0]):
            h = np.maximum(h, 0)
            inner = np.maximum(h @ p["up"][i] + p["up_bias"][i], 0)
            rungs.append((h, inner))
            h = code_TKR[:, i + 2] @ p["rung"][i] + p["rung_bias"][i] + h + inner @ p["down"][i] + p["down_bias"][i]
        h = np.maximum(h, 0)
        return h @ p["out"] + p["out_bias"], (code_TKR, rungs, h)

    def backward(self, params: Params, saved: Saved, d_delta_TD: np.ndarray) -> Params:
        """See TrainedKind."""
        p = params
        code_TKR, rungs, h = saved
        g = {name: np.zeros_like(tensor) for name, tensor in p.items()}
        g["out"] = h.T @ d_delta_TD
        g["out_bias"] = d_delta_TD.sum(0)
        d_h = (d_delta_TD @ p["out"].T) * (h > 0)
        for i in reversed(range(p["rung"].shape[0])):
            h, inner = rungs[i]
            g["rung"][i] = code_TKR[:, i + 2].T @ d_h
            g["rung_bias"][i] = d_h.sum(0)
            g["down"][i] = inner.T @ d_h
            g["down_bias"][i] = d_h.sum(0)
            d_inner = (d_h @ p["down"][i].T) * (inner > 0)
            g["up"][i] = h.T @ d_inner
            g["up_bias"][i] = d_inner.sum(0)
            d_h = (d_h + d_inner @ p["up"][i].T) * (h > 0)
        g["in"] = code_TKR[:, 1].T @ d_h
        g["in_bias"] = d_h.sum(0)
        return g


class PaperAdded(Paper):
    """The same, but its output is added to z and starts as zero: untrained it is the base."""

    name = "paper-added"
    merge: ClassVar[Merge] = "add"

    def init(self, shape: Shape, rng: np.random.Generator) -> Params:
        """See TrainedKind."""
        params = super().init(shape, rng)
        return {**params, "out": np.zeros_like(params["out"]), "out_bias": np.zeros_like(params["out_bias"])}
