"""The verifier: does a passage that was found answer the question, or was this never told?

    read([CLS] question [SEP] passage [SEP])     the sentence encoder, each weight W changed to W + B A
    s(part)  = MLP([h_CLS; mean of the part's rows]) + u · (nearness, shared words)
    P(part)  = exp s(part) / (1 + Σ exp s)       over all parts of all passages found; the 1 stands for "not told"

A part is a pair's reply or a note's sentence. It is a cross-encoder (Nogueira and Cho, 2019) with a low-rank change (Hu
et al., 2021), fitted with the null answer on made-up people's texts (verifier/fit.py); it belongs to nobody, and ships.
Without the encoder a logistic over the words alone takes its place. Test: pytest tests/memory/test_verifier.py
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import numpy as np
import safetensors.numpy

from sideplug.memory.encoder import FIRST, LAST, LINEAR, Encoder, gelu
from sideplug.memory.index import Candidate
from sideplug.memory.words import stem, words

WEIGHTS = "verifier.safetensors"
PART_WORD = 2.0  # what a shared word more says of a part, without the encoder
QUESTION_TOKENS, ASKED_TOKENS, PART_TOKENS, PAIR_TOKENS = 48, 48, 64, 128
SIGNS = " \t\n?.!…。？"  # at a question's end they mean nothing, but a verifier that sees them thinks so
ASKED, SAID = 1, 2  # what a token is of; 0: of the question


@dataclass(frozen=True)
class Pairs:
    """Questions beside passages, as the encoder reads them.

    ids_BT, mask_BT, of_BT: what each token is of. spans: for each part its row and its first and last token (+ 1).
    """

    ids_BT: np.ndarray
    mask_BT: np.ndarray
    of_BT: np.ndarray
    spans: list[tuple[int, int, int]]


def pairs(encoder: Encoder, rows: Sequence[tuple[str, str, Sequence[str]]]) -> Pairs:
    """(question, what is asked, parts) of each row, side by side."""
    built: list[tuple[list[int], list[int]]] = []
    spans = []
    for question, asked, parts in rows:
        ids = [FIRST, *encoder.tokens(question.rstrip(SIGNS))[:QUESTION_TOKENS], LAST]
        of = [0] * len(ids)
        about = encoder.tokens(asked.rstrip(SIGNS))[:ASKED_TOKENS]
        ids, of = ids + about, of + [ASKED] * len(about)
        for part in parts:
            said = encoder.tokens(part)[:PART_TOKENS]
            start = min(len(ids), PAIR_TOKENS - 2)
            ids, of = ids + said, of + [SAID] * len(said)
            spans.append((len(built), start, max(min(len(ids), PAIR_TOKENS - 1), start + 1)))
        ids = [*ids[: PAIR_TOKENS - 1], LAST]
        built.append((ids, (of + [SAID])[: len(ids)]))
    length = max(len(ids) for ids, _ in built)
    ids_BT, of_BT = np.zeros((len(built), length), np.int64), np.zeros((len(built), length), np.int64)
    mask_BT = np.zeros((len(built), length), np.float32)
    for row, (ids, of) in enumerate(built):
        ids_BT[row, : len(ids)], of_BT[row, : len(of)], mask_BT[row, : len(ids)] = ids, of, 1
    return Pairs(ids_BT, mask_BT, of_BT, spans)


def features(candidate: Candidate) -> list[float]:
    """What the verifier is told beside the texts."""
    return [candidate.near, candidate.found, candidate.covered]


class Verifier:
    """Scores passages. encoder: None: by their words alone."""

    def __init__(self, encoder: Encoder | None, weights: dict[str, np.ndarray] | None = None) -> None:
        self._encoder = encoder
        self._w = weights if weights is not None else shipped()
        self._change = {
            name: (self._w[name + ".a"].astype(np.float32), self._w[name + ".b"].astype(np.float32))
            for name in LINEAR
            if name + ".a" in self._w
        }

    def scores(self, question: str, candidates: Sequence[Candidate]) -> list[list[float]]:
        """For each candidate the score of each of its parts; above 0 it is more likely than "not told" alone."""
        if not candidates:
            return []
        said = np.array([features(candidate) for candidate in candidates], np.float32)
        parts = [candidate.passage.parts for candidate in candidates]
        if self._encoder is None:
            by_words = zip(self._by_words(said), parts, strict=True)
            return [[score - lacking for lacking in _lacking(question, each)] for score, each in by_words]
        w = self._w
        read = pairs(
            self._encoder, [(question, c.passage.about, each) for c, each in zip(candidates, parts, strict=True)]
        )
        hidden_BTE = self._encoder.run(read.ids_BT, read.mask_BT, self._change, w["of"].astype(np.float32)[read.of_BT])
        rows = np.stack(
            [np.concatenate([hidden_BTE[row, 0], hidden_BTE[row, a:b].mean(0)]) for row, a, b in read.spans]
        )
        inner = gelu(rows @ w["inner.weight"].astype(np.float32).T + w["inner.bias"].astype(np.float32))
        flat = (inner @ w["outer.weight"].astype(np.float32).T + w["outer.bias"].astype(np.float32))[:, 0]
        from_features = said @ w["features.weight"].astype(np.float32)[0]
        scores: list[list[float]] = [[] for _ in candidates]
        for (row, _, _), score in zip(read.spans, flat, strict=True):
            scores[row].append(float(score + from_features[row]))
        return scores

    def personal(self, vector_E: np.ndarray) -> float:
        """Return the logit that a question with this vector is about the person, not one that anybody could answer."""
        weight_E, bias = self._w["personal"][:-1].astype(np.float32), float(self._w["personal"][-1])
        return float(weight_E @ vector_E) + bias

    def _by_words(self, said: np.ndarray) -> list[float]:
        weight = self._w["words"].astype(np.float32)  # found, covered, their product, bias
        found, covered = said[:, 1], said[:, 2]
        scores = weight[0] * found + weight[1] * covered + weight[2] * found * covered + weight[3]
        return [float(score) for score in scores]


def _lacking(question: str, parts: Sequence[str]) -> list[float]:
    """By words alone, how much less likely each part is than the one that shares most words with the question."""
    asked = {stem(word) for word in words(question)}
    shared = [len(asked & {stem(word) for word in words(part)}) for part in parts]
    return [PART_WORD * (max(shared) - each) for each in shared]


@lru_cache(1)
def shipped() -> dict[str, np.ndarray]:
    """The weights that ship with sideplug."""
    data = resources.files("sideplug.memory").joinpath(WEIGHTS).read_bytes()
    return dict(safetensors.numpy.load(data))
