"""The part of the base model's head that the device trains with, and the candidate softmax over it.

    p(y) = exp(l_y) / (Σ_{c in S} exp(l_c) + rest · Σ_n exp(l_n) / Σ_n exp(base l_n))        l = transform(E · z')

S is the set of candidate tokens whose head rows the device has (all targets and the base's best tokens), some thousands
of V. `rest` is the base's probability mass outside S, known from the tape's log-sum-exp. A correction scales it as it
scales the mass of n random tokens outside S. With a constant rest, a plugin would learn to raise all of S against it,
and most of the gain would not exist under the whole vocabulary (docs/LOG.md has the figures). If S is the whole
vocabulary, there is no rest, and this is the plain softmax: the naive twin of the tests.

Letters: T tokens, S candidates, n sampled tokens, D width. It does not know plugins or tapes.
Test: pytest tests/training/test_head.py
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sideplug.contract.bias import Bias
from sideplug.device import head
from sideplug.device.head import LogitTransform
from sideplug.device.session import Session

SAMPLE = 2048  # tokens that represent the rest of the vocabulary


@dataclass
class Head:
    """Rows of the head: first those of the S candidates `ids`, which ascend, then those of the n sampled tokens.

    rows_CD (S + n, D) and bias_C (S + n,) float32. scale, softcap: see LogitTransform. tilt_S: what a part's bias adds
    to the candidates' logits (S,); None: nothing. `base` is the head without it.
    """

    ids: np.ndarray
    rows_CD: np.ndarray
    bias_C: np.ndarray
    scale: float = 1.0
    softcap: float = 0.0
    tilt_S: np.ndarray | None = None

    @property
    def base(self) -> Head:
        """The head as the base has it."""
        return replace(self, tilt_S=None)

    def tilted(self, bias: Bias) -> Head:
        """The head with a part's bias; its tokens that are no candidates are passed over."""
        if not len(bias):
            return self.base
        at = np.minimum(np.searchsorted(self.ids, bias.ids), len(self.ids) - 1)
        known = self.ids[at] == bias.ids
        tilt_S = np.zeros(len(self.ids), np.float32)
        tilt_S[at[known]] = bias.values[known]
        return replace(self, tilt_S=tilt_S)

    def piece(self, columns: np.ndarray, sample: int, rng: np.random.Generator) -> Head:
        """The head with these candidates alone; of all others `sample` are drawn, to stand for the rest."""
        others = np.setdiff1d(np.arange(len(self.rows_CD)), columns)
        drawn = rng.choice(others, min(sample, len(others)), replace=False)
        kept = np.concatenate([columns, drawn])
        tilt_S = self.tilt_S[columns] if self.tilt_S is not None else None
        return Head(self.ids[columns], self.rows_CD[kept], self.bias_C[kept], self.scale, self.softcap, tilt_S)

    def column(self, ids: np.ndarray) -> np.ndarray:
        """Return the index of each token id among the candidates. Raises ValueError for an id that is no candidate."""
        columns = np.searchsorted(self.ids, ids)
        if len(ids) and not np.array_equal(self.ids[np.minimum(columns, len(self.ids) - 1)], ids):
            raise ValueError("every target must be a candidate")
        return columns

    def _logits(self, z_TD: np.ndarray) -> np.ndarray:
        """Return the base's logits (T, S + n) float32."""
        return LogitTransform(self.scale, self.softcap)(z_TD @ self.rows_CD.T + self.bias_C)

    def log_weight(self, z_TD: np.ndarray, lse: np.ndarray) -> np.ndarray:
        """Return a sampled token's log weight (T,), log rest − log Σ_n exp(base l_n), from the base's z and lse."""
        count = len(self.ids)
        logits = self._logits(z_TD)
        if logits.shape[1] == count:
            return np.zeros(len(z_TD), np.float32)
        inside = _logsumexp(logits[:, :count])
        # By rounding, all mass may be inside S: then the rest is taken as a millionth, never as zero.
        share = np.clip(-np.expm1(np.minimum(inside - lse, 0.0)), 1e-6, 1.0)
        weight: np.ndarray = (lse + np.log(share) - _logsumexp(logits[:, count:])).astype(np.float32)
        return weight

    def _weighted(self, z_TD: np.ndarray, log_weight: np.ndarray) -> np.ndarray:
        logits = self._logits(z_TD)
        logits[:, len(self.ids) :] += log_weight[:, None]
        if self.tilt_S is not None:
            logits[:, : len(self.ids)] += self.tilt_S
        return logits

    def probabilities(self, z_TD: np.ndarray, log_weight: np.ndarray) -> np.ndarray:
        """Return the probabilities (T, S) of the candidates."""
        logits = self._weighted(z_TD, log_weight)
        logits -= _logsumexp(logits)[:, None]
        p: np.ndarray = np.exp(logits[:, : len(self.ids)])
        return p

    def _through_softcap(self, d_logits: np.ndarray, logits: np.ndarray, log_weight: np.ndarray) -> np.ndarray:
        """Return the gradient before the cap, from the one at what `_weighted` gave, which is spent."""
        if self.softcap:
            logits[:, len(self.ids) :] -= log_weight[:, None]
            if self.tilt_S is not None:
                logits[:, : len(self.ids)] -= self.tilt_S
            d_logits *= 1 - (logits / np.float32(self.softcap)) ** 2
        return d_logits

    def loss(self, z_TD: np.ndarray, columns: np.ndarray, log_weight: np.ndarray) -> np.ndarray:
        """Return −log p (T,) of each target; columns (T,): their indices among the candidates."""
        logits = self._weighted(z_TD, log_weight)
        losses: np.ndarray = _logsumexp(logits) - logits[np.arange(len(columns)), columns]
        return losses

    def loss_and_gradient(
        self, z_TD: np.ndarray, columns: np.ndarray, log_weight: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the losses (T,), and the gradient of their sum at z (T, D)."""
        logits = self._weighted(z_TD, log_weight)
        rows = np.arange(len(columns))
        total = _logsumexp(logits)
        losses = total - logits[rows, columns]
        d_logits = np.exp(logits - total[:, None])
        d_logits[rows, columns] -= 1
        d_logits = self._through_softcap(d_logits, logits, log_weight)
        return losses, (d_logits @ self.rows_CD) * np.float32(self.scale)

    def divergence_and_gradient(
        self, base_TD: np.ndarray, z_TD: np.ndarray, log_weight: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return KL(base ‖ corrected) (T,), and the gradient of their sum at the corrected z (T, D)."""
        base, logits = self.base._weighted(base_TD, log_weight), self._weighted(z_TD, log_weight)
        base -= _logsumexp(base)[:, None]
        log_q = logits - _logsumexp(logits)[:, None]
        p = np.exp(base)
        d_logits = self._through_softcap(np.exp(log_q) - p, logits, log_weight)
        return (p * (base - log_q)).sum(axis=1), (d_logits @ self.rows_CD) * np.float32(self.scale)


def fetch(session: Session, ids: np.ndarray, sample: int = SAMPLE, seed: int = 0) -> Head:
    """Fetch from the cloud the head's rows of these candidates (ascending int32) and of `sample` other tokens."""
    others = np.setdiff1d(np.arange(session.model.vocab, dtype=np.int32), ids)
    drawn = np.random.default_rng(seed).choice(others, min(sample, len(others)), replace=False)
    all_ids = np.concatenate([ids, drawn]).astype(np.int32)
    rows, biases, transforms = zip(*head.rows(session.link, all_ids), strict=True)
    return Head(ids, np.concatenate(rows), np.concatenate(biases), transforms[-1].scale, transforms[-1].softcap)


def _logsumexp(x: np.ndarray) -> np.ndarray:
    peak: np.ndarray = x.max(axis=-1)
    total: np.ndarray = peak + np.log(np.exp(x - peak[:, None]).sum(axis=-1))
    return total
