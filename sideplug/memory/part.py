"""A memory as a part of a plugin: where it knows the answer to a prompt, it says what it was told, word for word.

It is asked before a reply begins, by the words of the prompt alone: what it finds decides the gate of this reply, so a
prompt that it has nothing for costs no byte. Its answers are mixtures with λ = 1 (see contract.correction), so the text
is exactly what was told; a cloud that takes quotes is told all of it with the prompt, and has nothing to run. Test:
pytest tests/memory/test_part.py
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from sideplug.contract.correction import Correction, Mixture
from sideplug.contract.errors import PluginError
from sideplug.contract.frames import MAX_DRAFT, MAX_FIRST_DRAFT
from sideplug.contract.gate import Gate
from sideplug.contract.tap import Tap
from sideplug.contract.text import Prompt
from sideplug.memory import days, settings, weights
from sideplug.memory.index import Candidate, Index
from sideplug.memory.settings import Settings
from sideplug.memory.store import Entry, Passage, Store
from sideplug.memory.verifier import Verifier
from sideplug.memory.words import initials, is_of_another, words
from sideplug.plugins import Kind, Part, PartReply
from sideplug.plugins.base import Params

MEMORY = "memory"  # the name of the kind, and of its part
BEHIND = 0.3  # a candidate whose score is so far behind the best is not read: of 240 right ones 3 were (tune)
ANOTHER = -20.0  # the score of what is told of somebody of the same name with another initial
SAME_WORDS = 20.0  # the score of a question that is asked in the words in which it was told
# P above which it speaks, with the sentence encoder and by words alone; chosen on verifier/own_words/tune
CERTAIN, CERTAIN_BY_WORDS = 0.85, 0.8
DOUBT_OF_NOTES = 0.4  # of the doubt that a pair may leave: a note is said from 0.94 on where a pair is from 0.85 on
MOSTLY = 0.8  # of a note's certainty that one of its sentences has: then that one is said, else its whole passage
# The logits above which a question about the person silences trained parts, and is said not to have been told: of
# untold questions 87 and 67 % are, of general prompts 4 % each (tune)
PERSONAL, SURELY_PERSONAL = 1.0, 2.0
DOUBTFUL = 0.5  # P above which it may ask whether something is meant
MOST_CHARACTERS = 600  # of a prompt that may be a question to it


@dataclass(frozen=True)
class Recall:
    """What a memory found for a question, and how certain it is that this answers it.

    said: which of the passage's texts it would say: the part that answers, or, where it is less certain which, all.
    """

    passage: Passage
    said: int
    certainty: float
    entry: Entry

    @property
    def text(self) -> str:
        """Return what it would say."""
        return self.passage.texts[self.said]

    @property
    def source(self) -> str:
        """Return where it has it from, for the person."""
        where = f" ({self.entry.source})" if self.entry.source else ""
        if self.entry.is_note:
            return f"you noted{where}: {shortened(self.text)}"
        return f"you told me{where}: {shortened(self.entry.question)}"


def shortened(text: str, most: int = 100) -> str:
    """Return a text in one line of at most so many characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"


class Quoting(PartReply):
    """Says what is stored, token by token, as long as the text is what it said."""

    def __init__(self, ids: list[int], source: str, entry: int) -> None:
        super().__init__(gate="open", draft=ids[:MAX_FIRST_DRAFT], quote=ids, source=source, entry=entry)
        self._ids, self._start, self._text = ids, -1, list[int]()

    def hear(self, start: int, ids: list[int]) -> None:
        """See PartReply."""
        if self._start < 0:
            self._start = start
        self._text[start - self._start :] = ids

    def answer(self, at: int, code_KR: np.ndarray) -> Correction | None:
        """See PartReply."""
        n = at - self._start
        if not 0 <= n < len(self._ids) or self._text[:n] != self._ids[:n]:
            return None
        return Correction(mixture=Mixture(1.0, np.array(self._ids[n : n + 1], np.int32), np.ones(1, np.float32)))

    def expected(self, at: int) -> list[int]:
        """See PartReply."""
        return self._ids[max(0, at - self._start) :][:MAX_DRAFT]


class Memory(Part):
    """A memory. Its replies may begin in several threads at once."""

    role: ClassVar[Literal["memory", "manner"]] = "memory"
    fits_any_base = True
    kind_name, name = MEMORY, MEMORY
    tap: Tap | None = None

    def __init__(self, store: Store | None = None) -> None:
        self.store = Store() if store is None else store
        self.gate, self.about = Gate("shut"), {}
        self.has_read = False  # tokens that its file does not hold yet
        encoder = weights.encoder()
        self._index = Index(self.store, weights.NAME if encoder else "", self._vectors if encoder else None)
        self._encoder = encoder
        self._verifier, self._by_words = Verifier(encoder), Verifier(None)
        self._settings = Settings.of(self.store)
        self._last: tuple[str, np.ndarray] | None = None  # a text, and its vector
        self._base = ""
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """See Part: entries."""
        return len(self.store)

    def tensors(self) -> dict[str, np.ndarray]:
        """See Part."""
        with self._lock:
            self._index.refresh()
            return {"store": np.frombuffer(self.store.to_bytes(), np.uint8)}

    def config(self) -> dict[str, Any]:
        """See Part."""
        return {"entries": self.size}

    def fill(self, progress: Callable[[int, int], None] = lambda done, count: None) -> None:
        """Make the vectors of new entries. `progress` receives how many of how many are made."""
        with self._lock:
            self._index.fill(progress)

    def merged_with(self, stored: Part) -> Part:
        """See Part: the stored entries, with the tokens that were read here."""
        assert isinstance(stored, Memory)
        with self._lock:
            ids = self.store.ids_by_passage(self._base)
            own = {text: self.store.own_ids(self._base, text) for text in self.settings.own}
        there = set(stored.store.ids().tolist())
        if stored.settings.doubt == self.settings.doubt:  # else the base reads other texts
            stored.store.set_ids(self._base, {n: each for n, each in ids.items() if n in there})
        for text, tokens in own.items():
            stored.store.set_own_ids(self._base, text, tokens)
        return stored

    # Answers

    def begin(self, prompt: Prompt) -> PartReply:
        """See Part."""
        question, (before, last) = question_of(prompt), exchange_of(prompt)
        if settings.declined(before, last) and (ids := self._own_ids(settings.DECLINED)):
            return Quoting(ids, "you said no", 0)
        recall = self._noted(settings.noted(before, last)) or self.recall(question)
        if recall is not None and self.says(question, recall):
            ids, source, entry = recall.passage.ids_of(recall.said), recall.source, recall.entry.number
        elif recall is not None and self.settings.doubt == settings.ASK and recall.certainty > DOUBTFUL:
            ids = recall.passage.ids_of(len(recall.passage.texts) + recall.said)
            source, entry = f"it is not sure: {recall.source}", recall.entry.number
        elif (personal := self.personal(question)) > PERSONAL:
            if self.settings.unknown != settings.SAY or personal < SURELY_PERSONAL:
                return PartReply(gate="shut", hushes=True)
            ids, source, entry = self._own_ids(settings.UNTOLD), "nothing that you told me", 0
        else:
            ids, source, entry = [], "", 0
        return Quoting(ids, source, entry) if ids else PartReply(gate="shut")

    def _own_ids(self, text: str) -> list[int]:
        with self._lock:
            return self.store.own_ids(self._base, text)

    def _noted(self, text: str) -> Recall | None:
        """The part of a note that says this text, which a person said yes to; None where it was forgotten since."""
        with self._lock:
            for each in self._index.candidates(text, self._base) if text else ():
                if not each.passage.asked and text in each.passage.texts:
                    entry = self.store.entry(each.passage.number)
                    return Recall(each.passage, each.passage.texts.index(text), 1.0, entry)
        return None

    def recall(self, question: str) -> Recall | None:
        """Return the best that it has for a question, however uncertain; None for nothing."""
        return next(iter(self.judged(question)), None)

    def says(self, question: str, recall: Recall) -> bool:
        """Return whether it is certain enough to say what it found; the encoder must be more certain of a note."""
        share = DOUBT_OF_NOTES if recall.entry.is_note and self._reads(question) else 1.0
        return recall.certainty > 1 - (1 - self.certain(question)) * share

    def certain(self, question: str) -> float:
        """Return the certainty above which it answers this question with a pair's reply."""
        if self.settings.certain is not None:
            return self.settings.certain
        return CERTAIN if self._reads(question) else CERTAIN_BY_WORDS

    def personal(self, question: str) -> float:
        """Return the logit that a question is about the person, so that only they can have told the answer.

        Only the sentence encoder can tell: −∞ without it, and in a language that it does not read.
        """
        if self._encoder is None or not question.strip() or not self._reads(question):
            return -math.inf
        return self._verifier.personal(self._vectors([question])[0])

    def nearness(self, one: str, other: str) -> float:
        """Return the cosine of two texts; 1 where there is no encoder that could tell."""
        if self._encoder is None:
            return 1.0
        a_E, b_E = self._encoder.vectors([one, other])
        return float(a_E @ b_E)

    def _vectors(self, texts: Sequence[str]) -> np.ndarray:
        """The encoder's vectors (B, E). That of the last single text is kept: a question's is needed twice."""
        assert self._encoder is not None
        last = self._last
        if last is not None and list(texts) == [last[0]]:
            return last[1]
        vectors_BE = self._encoder.vectors(texts)
        if len(texts) == 1:
            self._last = texts[0], vectors_BE
        return vectors_BE

    @property
    def settings(self) -> Settings:
        """How it behaves where it is not certain."""
        return self._settings

    def behave(self, new: Settings) -> None:
        """Behave so from now on, and keep that."""
        with self._lock, self.store.change():
            if new.doubt != self._settings.doubt:
                self.store.forget_ids()  # the base reads what asks back too, or need not any more
            new.keep(self.store)
            self._settings = new

    def _reads(self, question: str) -> bool:
        return self._encoder is not None and self._encoder.reads(question)

    def judged(self, question: str) -> list[Recall]:
        """Return what could be said to a question, each with its certainty, the most certain first.

        Entries with one reply stand for one, and so do the sentences of one passage.
        """
        if not question.strip():
            return []
        with self._lock:
            found = self._index.candidates(question, self._base)
        candidates = [each for each in found if each.score >= found[0].score - BEHIND]
        asked, verifier = words(question), self._verifier if self._reads(question) else self._by_words
        day, named = days.asked_for(question), initials(question)
        scored = list[tuple[Candidate, int, float]]()
        for candidate, scores in zip(candidates, verifier.scores(question, candidates), strict=True):
            is_asked_so = bool(asked) and asked == words(candidate.passage.asked)
            is_asked_so = is_asked_so or (bool(day) and candidate.passage.day.endswith(day))
            of_part = [
                ANOTHER if is_of_another(named, f"{candidate.passage.asked} {part}") else score
                for part, score in zip(candidate.passage.parts, scores, strict=True)
            ]
            of_part = [SAME_WORDS] * len(of_part) if is_asked_so else of_part
            scored += [(candidate, number, score) for number, score in enumerate(of_part)]
        exponents = np.exp([score for _, _, score in scored])
        certainties = exponents / (1 + exponents.sum())
        alike: dict[object, list[tuple[float, Passage, int]]] = {}
        for (candidate, part, _), p in zip(scored, certainties, strict=True):
            passage = candidate.passage
            key = tuple(words(passage.said)) or passage.said if passage.asked else passage.id
            alike.setdefault(key, []).append((float(p), passage, part))
        recalls = [self._recall(some) for some in alike.values()]
        return sorted(recalls, key=lambda each: -each.certainty)

    def _recall(self, some: list[tuple[float, Passage, int]]) -> Recall:
        """What would be said of parts that are one: (certainty, passage, part) each."""
        certainty = sum(p for p, _, _ in some)
        p, passage, part = max(some, key=lambda each: each[0])
        is_whole = not passage.asked and p < MOSTLY * certainty
        with self._lock:
            entry = self.store.entry(passage.number)
        return Recall(passage, len(passage.parts) if is_whole else part, certainty, entry)

    # The base's tokens of what it may say

    def meet(self, base: str) -> None:
        """See Part: it answers by this base's tokens."""
        self._base = base

    def unread(self, base: str) -> list[tuple[Prompt, str]]:
        """See Part."""
        with self._lock:
            texts = [
                (Prompt.user(passage.asked or "?"), text)
                for passage in self.store.unrecorded(base)
                for text in self._texts(passage)
            ]
            own = [text for text in self.settings.own if not self.store.own_ids(base, text)]
            return texts + [(Prompt.user("?"), text) for text in own]

    def _texts(self, passage: Passage) -> list[str]:
        """What it may say of a passage, and what asks whether each of that is meant."""
        asks = settings.doubts(passage.asked, passage.texts) if self.settings.doubt == settings.ASK else []
        return passage.texts + asks

    def take_read(self, base: str, ids: Mapping[str, list[int]]) -> None:
        """See Part."""
        with self._lock:
            read = {
                passage.id: np.array([each for text in self._texts(passage) for each in (*ids[text], -1)], np.int32)
                for passage in self.store.unrecorded(base)
                if all(text in ids for text in self._texts(passage))
            }
            self.store.set_ids(base, read)
            own = [text for text in settings.OWN if text in ids]
            for text in own:
                self.store.set_own_ids(base, text, ids[text])
            self.has_read = self.has_read or bool(read or own)


def question_of(prompt: Prompt) -> str:
    """Return what a prompt may ask a memory: its last message, if a person wrote it and it is short; else "".

    A yes to a question whether something was meant stands for that.
    """
    last = (prompt.messages or ({"role": "", "content": ""},))[-1]
    content = last["content"] if last["role"] == "user" else ""
    content = settings.agreed(*exchange_of(prompt)) or content
    return content if len(content) <= MOST_CHARACTERS else ""


def exchange_of(prompt: Prompt) -> tuple[str, str]:
    """Return (what the assistant said last, what the person answers); ("", "") where the person does not answer."""
    both = (prompt.messages or ())[-2:]
    if [each["role"] for each in both] != ["assistant", "user"]:
        return "", ""
    return both[0]["content"], both[1]["content"]


class MemoryKind(Kind):
    """Memories in plugins' files."""

    name = MEMORY

    def load(
        self, config: Mapping[str, Any], tensors: Params, tap: Tap | None, gate: Gate, about: dict[str, Any]
    ) -> Part:
        """See Kind."""
        data = tensors.get("store")
        if data is None or data.dtype != np.uint8 or data.ndim != 1:
            raise PluginError("a memory must have its entries")
        return Memory(Store(data.tobytes()))
