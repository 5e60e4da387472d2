"""Candidates for a question: the passages of a store that share its rare words, or whose vectors are near.

Vectors are compared by their signs first (one bit a number, Hamming distance), then by the numbers themselves: 100,000
passages take 6 MB and a few milliseconds. Test: pytest tests/memory/test_index.py
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from sideplug.contract.errors import PluginError
from sideplug.memory.store import Passage, Store
from sideplug.memory.words import initials, is_of_another, stem, words

CANDIDATES = 8  # that are given to the verifier
_BY_WORDS, _BY_VECTOR = 16, 16
_QUERY_STEMS = 8  # the rarest ones of a question are looked for
_COMMON = 4_000  # a stem in more passages than this is no help, and slow
_SCALE = 127.0
WORDS_WEIGHT = 0.5  # of the share of a question's rare words, beside the cosine

Embed = Callable[[Sequence[str]], np.ndarray]


@dataclass(frozen=True)
class Candidate:
    """A passage that may answer a question.

    near: cosine of question and passage; 0 without an encoder. found: the share of the question's words, by their
    rarity, that the passage has. covered: the share of what is asked, or of a note's words, that the question has.
    """

    passage: Passage
    near: float
    found: float
    covered: float

    @property
    def score(self) -> float:
        """Return what candidates are ranked by."""
        return self.near + WORDS_WEIGHT * self.found


@dataclass
class Index:
    """The index of a store. embed: texts → unit vectors (B, E), "" for `encoder` and None where there is no encoder."""

    store: Store
    encoder: str = ""
    embed: Embed | None = None
    _version: tuple[int, int] = (-1, -1)
    _ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    _signs: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.uint64))
    _vectors: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int8))
    _total: int = 0

    def fill(self, progress: Callable[[int, int], None] = lambda done, count: None) -> None:
        """Compute the vectors that are missing. `progress` receives how many of how many were. Raises Stopped."""
        if self.embed is None:
            return
        if self.store.setting("encoder") != self.encoder:
            self.store.drop_vectors()
            self.store.set_setting("encoder", self.encoder)
        done, last, count = 0, 0, self.store.missing_vectors()
        while passages := self.store.without_vector(last, 64):
            if passages[-1].id <= last:
                raise PluginError("the memory is damaged: its passages have no order")
            last = passages[-1].id
            texts = [f"{passage.about} {passage.said}".strip() for passage in passages]
            vectors = np.rint(self.embed(texts) * _SCALE).astype(np.int8)
            self.store.set_vectors({each.id: vector for each, vector in zip(passages, vectors, strict=True)})
            done += len(passages)
            progress(done, count)

    def refresh(self) -> None:
        """Follow the store, where it changed."""
        version = self.store.version
        if version == self._version:
            return
        self.fill()
        self._ids, self._vectors = self.store.vectors()
        self._signs = signs(self._vectors) if len(self._ids) else np.zeros((0, 0), np.uint64)
        self._total = self.store.passage_count()
        self._version = self.store.version

    def candidates(self, question: str, base: str = "", count: int = CANDIDATES) -> list[Candidate]:
        """Return up to `count` passages that may answer the question, best first. Raises Stopped, PluginError."""
        self.refresh()
        asked = {stem(word) for word in words(question)}
        vector_E = self.embed([question])[0] if self.embed and len(self._ids) else None
        named = initials(question)
        ids = list(dict.fromkeys([*self._by_words(asked, named), *self._nearest(vector_E)]))
        passages = self.store.passages(ids, base)
        stems = [{stem(word) for word in words(f"{each.asked} {each.said} {each.day}")} for each in passages]
        rarity = self._rarity(asked.union(*stems))
        nearness = self._nearness(vector_E, ids)
        found = []
        for passage, has in zip(passages, stems, strict=True):
            shared = sum(rarity[each] for each in asked & has)
            in_question = sum(rarity[each] for each in asked) or 1.0
            about = {stem(word) for word in words(passage.asked)} or has
            covered = sum(rarity[each] for each in asked & about) / (sum(rarity[each] for each in about) or 1.0)
            found.append(Candidate(passage, nearness[passage.id], shared / in_question, covered))
        about_others = {each.id for each in passages if is_of_another(named, f"{each.asked} {each.said}")}
        return sorted(found, key=lambda each: (each.passage.id in about_others, -each.score))[:count]

    def _rarity(self, stems: set[str]) -> dict[str, float]:
        """Return the inverse document frequency of each stem, log(1 + N / n)."""
        known = self.store.frequency(stems)
        return {each: math.log(1 + self._total / known.get(each, 1)) for each in stems}

    def _by_words(self, stems: set[str], named: Sequence[tuple[str, str]]) -> list[int]:
        """Return passages that share rare stems; a name with its initial is looked for as one."""
        known = self.store.frequency(stems)
        rare = sorted((number, each) for each, number in known.items() if number <= max(_COMMON, 1))
        whole = [f"{stem(name)} {letter}" for name, letter in named[:_QUERY_STEMS]]
        return self.store.by_words([*whole, *(each for _, each in rare[:_QUERY_STEMS])], _BY_WORDS)

    def _nearest(self, vector_E: np.ndarray | None) -> list[int]:
        if vector_E is None:
            return []
        own = signs(np.rint(vector_E * _SCALE).astype(np.int8)[None])[0]
        distance = np.bitwise_count(self._signs ^ own).sum(1, dtype=np.int32)
        some = min(4 * _BY_VECTOR, len(distance))
        rows = np.argpartition(distance, some - 1)[:some]
        exact = self._vectors[rows].astype(np.float32) @ vector_E
        return [int(each) for each in self._ids[rows[np.argsort(-exact)[:_BY_VECTOR]]]]

    def _nearness(self, vector_E: np.ndarray | None, ids: Sequence[int]) -> dict[int, float]:
        if vector_E is None:
            return dict.fromkeys(ids, 0.0)
        rows = np.searchsorted(self._ids, ids)
        near = {}
        for each, row in zip(ids, rows, strict=True):
            known = row < len(self._ids) and self._ids[row] == each
            near[each] = float(self._vectors[row].astype(np.float32) @ vector_E) / _SCALE if known else 0.0
        return near


def signs(vectors_NE: np.ndarray) -> np.ndarray:
    """Return the signs of vectors (N, E), 64 to a number: (N, E / 64) uint64. E must be a multiple of 64."""
    return np.ascontiguousarray(np.packbits(vectors_NE > 0, axis=1)).view(np.uint64)
