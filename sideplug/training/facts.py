"""Told facts: which examples ask for the same one, and in which frame each of them asks.

A question is one short message with a short reply. Questions with one reply and a rare word in common ask for one fact.
Its *frame* is what a question keeps when the words of its fact are taken out: "What is my dog's name?" and "What is my
home town?" have the frame "what is my _". A held-out question is in other words only if no trained one has its frame,
and none of the same fact is nearly the same. It does not know how a question is reworded.
Test: pytest tests/training/test_facts.py
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from sideplug.readers import Example
from sideplug.training.alike import Union, question_of, words

LONGEST_QUESTION, LONGEST_REPLY = 200, 400  # characters
NEAR = 0.75  # of two questions' words, that are in both
AROUND = 0.6  # of a question's words, that are another whole question
_FUNCTION_WORDS = (
    "a an the of to in on at for from with by and or is are was were be been am do does did has have had will would "
    "can could should shall may might must i me my mine we us our you your he him his she her it its they them their "
    "this that these those what which who whom whose where when why how not no any some there here as if so than then "
    "please tell know say give"
)
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())  # English; of another language every word counts as one of the fact
_OWN = re.compile(r"(?<=\w)['’]s\b")
_IS = re.compile(r"\b(what|who|where|when|how|that|it|there)['’]s\b", re.IGNORECASE)


def is_question(example: Example) -> bool:
    """Return whether an example is one short question (perhaps behind a system message) with a short reply."""
    asked = [message for message in example.prompt.messages or () if message["role"] != "system"]
    return len(asked) == 1 and len(question_of(example)) <= LONGEST_QUESTION and len(example.reply) <= LONGEST_REPLY


def words_of(question: str) -> tuple[str, ...]:
    """Return a question's words; "what's" is "what is", "dog's" is "dog"."""
    return tuple(words(_OWN.sub("", _IS.sub(r"\1 is", question))))


@dataclass(frozen=True)
class Facts:
    """Questions by the fact that they ask for. of: the fact of each question; keys: the words of each fact."""

    of: list[int]
    keys: dict[int, set[str]]

    @classmethod
    def among(cls, questions: Sequence[Example]) -> Facts:
        """The facts of these questions."""
        asked = [words_of(question_of(each)) for each in questions]
        union = Union(len(questions))
        counts = Counter(word for phrase in set(asked) for word in set(phrase) - FUNCTION_WORDS)
        common = {word for word, count in counts.items() if count > max(3, len(set(asked)) // 2)}
        first: dict[object, int] = {}
        for number, each in enumerate(questions):
            reply = tuple(words(each.reply)) or each.reply
            keys = sorted(set(asked[number]) - FUNCTION_WORDS - common)
            for mark in (asked[number], *((reply, key) for key in keys)):
                union.join(number, first.setdefault(mark, number))
        of = [union.of(number) for number in range(len(questions))]
        return cls(of, _keys(asked, of))

    def frame(self, fact: int, question: str) -> tuple[str, ...]:
        """Return a question's words, each run of words of its fact as "_"."""
        found: list[str] = []
        for word in words_of(question):
            if word not in self.keys[fact]:
                found.append(word)
            elif found[-1:] != ["_"]:
                found.append("_")
        return tuple(found)


def _keys(asked: list[tuple[str, ...]], of: list[int]) -> dict[int, set[str]]:
    """The words of each fact: in half of its phrasings at least, and in the questions of less than half of all."""
    phrasings: dict[int, set[tuple[str, ...]]] = defaultdict(set)
    for phrase, fact in zip(asked, of, strict=True):
        phrasings[fact].add(phrase)
    counts = {fact: Counter(word for phrase in phrases for word in set(phrase)) for fact, phrases in phrasings.items()}
    everywhere = Counter(word for count in counts.values() for word in count)
    many = len(phrasings) / 2 if len(phrasings) >= 4 else len(phrasings) + 1
    return {
        fact: {
            word
            for word, count in counts[fact].items()
            if word not in FUNCTION_WORDS and count >= len(phrases) / 2 and everywhere[word] < many
        }
        for fact, phrases in phrasings.items()
    }


def near(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Return whether two questions' words are nearly the same, or one is the other with a few words around it."""
    common = len(set(one) & set(other))
    if common >= NEAR * len(set(one) | set(other)):
        return True
    short, long = sorted((one, other), key=len)
    runs = (long[i : i + len(short)] for i in range(len(long) - len(short) + 1))
    return len(short) >= AROUND * len(long) and short in runs
