"""One step of AdamW (Loshchilov & Hutter 2019), in place: β1 = 0.9, β2 = 0.999, ε = 1e-8, decoupled weight decay.

It does not know what it optimises. Test: pytest tests/training/test_trainer.py
"""

from __future__ import annotations

import numpy as np

B1, B2, EPSILON = np.float32(0.9), np.float32(0.999), np.float32(1e-8)


def step(
    value: np.ndarray,
    gradient: np.ndarray,
    mean: np.ndarray,
    square: np.ndarray,
    number: int,
    rate: float,
    decay: float,
) -> None:
    """Update `value` and its moments `mean` and `square` (zeros at first) in place. number: the step, from 1 on."""
    mean += (1 - B1) * (gradient - mean)
    square += (1 - B2) * (gradient * gradient - square)
    adapted = (mean / (1 - B1**number)) / (np.sqrt(square / (1 - B2**number)) + EPSILON)
    value -= np.float32(rate) * (adapted + np.float32(decay) * value)
