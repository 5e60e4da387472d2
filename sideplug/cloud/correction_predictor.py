"""CorrectionPredictor: what the device will answer, foretold from what it has answered in this session.

    Δ̂(x) = mean Δ + k(x) (X Xᵀ + λ·I)⁻¹ (Δ − mean Δ)        ridge regression in its dual form, k(x) = (x − mean x) · Xᵀ

x is what the device sees, the token's codes (z, where they are very many), X the remembered ones, centred. Only guesses
are made with it, so it changes no text; a better guess is a longer run. It knows nothing that did not come up the wire
in this session, and it goes with the session.
H remembered answers, C numbers of a token's codes, D width. Test: pytest tests/cloud/test_correction_predictor.py
"""

from __future__ import annotations

from collections import deque

import numpy as np

HISTORY = 64  # answers
RIDGE = 0.1  # λ, as a share of the remembered codes' mean square
MAX_CODES = 4096  # codes of a token that are looked at; a raw tap has more
REFIT = 8  # a fit serves until an eighth of what it remembers is new


class CorrectionPredictor:
    def __init__(self) -> None:
        self._past: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=HISTORY)
        self._new = 0
        self._fit: tuple[np.ndarray, ...] | None = None

    def observe(self, codes_C: np.ndarray, delta_D: np.ndarray) -> None:
        self._past.append((codes_C, delta_D))
        self._new += 1

    def predict(self, codes_C: np.ndarray) -> np.ndarray | float:
        """Δ̂ (D,) float32; 0 as long as hardly anything was answered."""
        if len(self._past) > 1 and self._new * REFIT >= len(self._past):
            self._refit()
        if self._fit is None:
            return 0.0
        mean_C, mean_D, codes_HC, weight_HD = self._fit
        return mean_D + (codes_C - mean_C) @ codes_HC.T @ weight_HD

    def _refit(self) -> None:
        codes_HC, delta_HD = (np.stack(column) for column in zip(*self._past, strict=True))
        mean_C, mean_D = codes_HC.mean(0), delta_HD.mean(0)
        codes_HC = codes_HC - mean_C
        gram = codes_HC @ codes_HC.T
        gram[np.diag_indices_from(gram)] += RIDGE * np.trace(gram) / len(gram) + 1e-6
        self._fit = mean_C, mean_D, codes_HC, np.linalg.solve(gram, delta_HD - mean_D)
        self._new = 0
