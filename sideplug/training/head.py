"""The device's piece of the base model's head, and the candidate softmax over it.

    p(y) = exp(l_y) / (Σ_{c in S} exp(l_c) + rest · Σ_n exp(l_n) / Σ_n exp(base l_n))        l = bend(E · z')

S are the candidate tokens whose head rows the device has (every target, and the base's best tokens), a few thousand of
V. `rest` is the base's own mass outside S, known from the tape's log-sum-exp. It moves with the correction as a random
sample of n tokens outside S does: held constant, as one might try first, a plugin learns to lift all of S against it,
and most of what it seems to gain is not there under the whole vocabulary (docs/LOG.md has the figures).
With S the whole vocabulary there is no rest and this is the plain softmax: the naive twin of the tests.

Letters: T tokens, S candidates, n sampled tokens, D width. It does not know plugins or tapes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sideplug.device import head
from sideplug.device.session import Session

SAMPLE = 2048  # tokens that stand for the rest of the vocabulary


@dataclass
class Head:
    """Rows of the head: the S candidates `ids` first, rising, then the sample's; how logits are bent (scale, soft cap).

    rows_CD (S + n, D) and bias_C (S + n,) float32.
    """

    ids: np.ndarray
    rows_CD: np.ndarray
    bias_C: np.ndarray
    scale: float = 1.0
    softcap: float = 0.0

    def column(self, ids: np.ndarray) -> np.ndarray:
        """Where each token id stands among the candidates. Raises ValueError for one that is none of them."""
        columns = np.searchsorted(self.ids, ids)
        if len(ids) and not np.array_equal(self.ids[np.minimum(columns, len(self.ids) - 1)], ids):
            raise ValueError("every target must be a candidate")
        return columns

    def _logits(self, z_TD: np.ndarray) -> np.ndarray:
        """(T, S + n) float32."""
        raw = (z_TD @ self.rows_CD.T + self.bias_C) * np.float32(self.scale)
        logits: np.ndarray = np.tanh(raw / self.softcap) * np.float32(self.softcap) if self.softcap else raw
        return logits

    def log_weight(self, z_TD: np.ndarray, lse: np.ndarray) -> np.ndarray:
        """(T,) log of what each sampled token counts: log rest − log Σ_n exp(base l_n), from the base's z and lse."""
        count = len(self.ids)
        logits = self._logits(z_TD)
        if logits.shape[1] == count:
            return np.zeros(len(z_TD), np.float32)
        inside = _logsumexp(logits[:, :count])
        # Rounding may find all mass inside: then the rest counts as a millionth, never as nothing.
        share = np.clip(-np.expm1(np.minimum(inside - lse, 0.0)), 1e-6, 1.0)
        weight: np.ndarray = (lse + np.log(share) - _logsumexp(logits[:, count:])).astype(np.float32)
        return weight

    def _weighted(self, z_TD: np.ndarray, log_weight: np.ndarray) -> np.ndarray:
        logits = self._logits(z_TD)
        logits[:, len(self.ids) :] += log_weight[:, None]
        return logits

    def loss(self, z_TD: np.ndarray, columns: np.ndarray, log_weight: np.ndarray) -> np.ndarray:
        """(T,) −log p of each target."""
        logits = self._weighted(z_TD, log_weight)
        losses: np.ndarray = _logsumexp(logits) - logits[np.arange(len(columns)), columns]
        return losses

    def loss_and_gradient(
        self, z_TD: np.ndarray, columns: np.ndarray, log_weight: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(T,) losses, and the gradient of their sum at z (T, D)."""
        logits = self._weighted(z_TD, log_weight)
        rows = np.arange(len(columns))
        total = _logsumexp(logits)
        losses = total - logits[rows, columns]
        d_logits = np.exp(logits - total[:, None])
        d_logits[rows, columns] -= 1
        if self.softcap:
            logits[:, len(self.ids) :] -= log_weight[:, None]
            d_logits *= 1 - (logits / np.float32(self.softcap)) ** 2
        return losses, (d_logits @ self.rows_CD) * np.float32(self.scale)

    def divergence_and_gradient(
        self, base_TD: np.ndarray, z_TD: np.ndarray, log_weight: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(T,) KL(base ‖ corrected), and the gradient of their sum at the corrected z (T, D)."""
        base, logits = self._weighted(base_TD, log_weight), self._weighted(z_TD, log_weight)
        base -= _logsumexp(base)[:, None]
        log_q = logits - _logsumexp(logits)[:, None]
        p = np.exp(base)
        d_logits = np.exp(log_q) - p
        if self.softcap:
            logits[:, len(self.ids) :] -= log_weight[:, None]
            d_logits *= 1 - (logits / np.float32(self.softcap)) ** 2
        return (p * (base - log_q)).sum(axis=1), (d_logits @ self.rows_CD) * np.float32(self.scale)


def fetch(session: Session, ids: np.ndarray, sample: int = SAMPLE, seed: int = 0) -> Head:
    """The head's rows of these candidates (rising int32) and of `sample` random tokens beside them, from the cloud."""
    others = np.setdiff1d(np.arange(session.model.vocab, dtype=np.int32), ids)
    drawn = np.random.default_rng(seed).choice(others, min(sample, len(others)), replace=False)
    wanted = np.concatenate([ids, drawn]).astype(np.int32)
    rows, biases, bends = zip(*head.rows(session.link, wanted), strict=True)
    return Head(ids, np.concatenate(rows), np.concatenate(biases), bends[-1].scale, bends[-1].softcap)


def _logsumexp(x: np.ndarray) -> np.ndarray:
    peak: np.ndarray = x.max(axis=-1)
    total: np.ndarray = peak + np.log(np.exp(x - peak[:, None]).sum(axis=-1))
    return total
