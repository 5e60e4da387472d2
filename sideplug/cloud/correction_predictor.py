"""The correction predictor: it predicts a device's next correction from those that it sent in this session.

    Δ̂(x) = mean Δ + k(x) (X Xᵀ + λ·I)⁻¹ (Δ − mean Δ)        ridge regression in its dual form, k(x) = (x − mean x) · Xᵀ

x is what the device sees of a token: its codes, or z where the codes are very many. X holds the remembered x, centred.
A prediction is only used to choose a speculative token, so it never changes a text; a better prediction gives a longer
run without a rollback. It knows the answers of one session only and is dropped with it; what it takes counts against
its user's share.
H remembered answers, C numbers of a token's codes, D width. Test: pytest tests/cloud/test_correction_predictor.py
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

from sideplug.cloud.model.memory import Reservation

HISTORY = 64  # answers that are remembered
RIDGE = 0.1  # λ as a share of the mean square of the remembered codes
MAX_CODES = 4096  # a token with more codes than this (a raw tap) is described by its z instead
REFIT = 8  # a fit is used until one eighth of the remembered answers is newer than it


class CorrectionPredictor:
    """Learns from each answer, with `observe`, and predicts the next one, with `predict`."""

    def __init__(self, claim: Callable[[int], Reservation | None] | None = None) -> None:
        """`claim(bytes)` reserves the memory that it will take. It returns None for no room: then nothing is predicted.

        Without a `claim` its memory is not counted.
        """
        self._claim = claim
        self._memory: Reservation | None = None
        self._past: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=HISTORY)
        self._new = 0
        self._fit: tuple[np.ndarray, ...] | None = None

    def observe(self, codes_C: np.ndarray, delta_D: np.ndarray) -> None:
        """Remember that the device corrected z by `delta_D` (D,) for the codes `codes_C` (C,)."""
        if self._claim is not None and self._memory is None:
            self._memory = self._claim(2 * HISTORY * (codes_C.nbytes + delta_D.nbytes))
            if self._memory is None:
                return
        self._past.append((codes_C, delta_D))
        self._new += 1

    def predict(self, codes_C: np.ndarray) -> np.ndarray | float:
        """Return the predicted correction Δ̂ (D,) float32, or 0.0 before two answers were observed."""
        if len(self._past) > 1 and self._new * REFIT >= len(self._past):
            self._refit()
        if self._fit is None:
            return 0.0
        mean_C, mean_D, codes_HC, weight_HD = self._fit
        predicted: np.ndarray = mean_D + (codes_C - mean_C) @ codes_HC.T @ weight_HD
        return predicted

    def _refit(self) -> None:
        codes_HC, delta_HD = (np.stack(column) for column in zip(*self._past, strict=True))
        mean_C, mean_D = codes_HC.mean(0), delta_HD.mean(0)
        codes_HC = codes_HC - mean_C
        gram = codes_HC @ codes_HC.T
        gram[np.diag_indices_from(gram)] += RIDGE * np.trace(gram) / len(gram) + 1e-6
        self._fit = mean_C, mean_D, codes_HC, np.linalg.solve(gram, delta_HD - mean_D)
        self._new = 0
