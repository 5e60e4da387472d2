"""Questions in other words: they ask for the same, and the held frames are never the trained ones."""

from __future__ import annotations

import pytest

from sideplug.training.facts import near, words_of
from sideplug.training.rewording import HELD, TRAINED, reword

CLAUSES = {
    "What is my dog's name?": "what my dog's name is",
    "What's my shoe size?": "what my shoe size is",
    "Where are my keys?": "where my keys are",
    "Where do I live?": "where I live",
    "How many cats do I have?": "how many cats I have",
    "When is Anna's birthday?": "when Anna's birthday is",
    "How old is my sister?": "how old my sister is",
    "What does Anna drink?": "what Anna drinks",
    "What time does the bus leave?": "what time the bus leaves",
    "Which wine does Anna have on Sundays?": "which wine Anna has on Sundays",
    "Who carries the flag?": "who carries the flag",
    "Who has my saw?": "who has my saw",
    "Tell me my shoe size.": "what my shoe size is",
}


@pytest.mark.parametrize(("question", "clause"), CLAUSES.items())
def test_a_question_becomes_a_clause(question: str, clause: str) -> None:
    made = reword(question)
    assert made.trained[-len(TRAINED) :] == [frame.format(clause) for frame in TRAINED]
    assert made.held == [frame.format(clause) for frame in HELD]


@pytest.mark.parametrize(
    ("question", "trained", "held"),
    [
        ("Which floor is my office on?", "Please answer this: Which floor is my office on?", "floor office, which?"),
        ("When did Anna order the boat?", "when did anna order the boat", "Anna order boat, when?"),
        ("Can I eat nuts?", "Can I eat nuts? Just the answer.", "eat nuts, yes or no?"),
        ("Code of locker 7?", "Tell me the code of locker 7.", "I can't remember the code of locker 7, can you help?"),
        ("My wifi password?", "What is my wifi password?", "I can't remember my wifi password, can you help?"),
        ("Tell me my shoe size.", "What is my shoe size?", "Could you say what my shoe size is?"),
    ],
)
def test_what_no_clause_is_made_of(question: str, trained: str, held: str) -> None:
    made = reword(question)
    assert trained in made.trained
    assert held in made.held


@pytest.mark.parametrize("question", ["Wie heißt mein Hund?", "我的狗叫什么？"])
def test_another_language_keeps_its_words(question: str) -> None:
    assert reword(question).trained == [question[:-1].casefold()]
    assert reword(question).held == []


@pytest.mark.parametrize("text", ["", "  ", "Write to Ingrid.", "Why? And what for?", "What is " + "very " * 30 + "?"])
def test_what_is_no_question_stays_alone(text: str) -> None:
    assert reword(text).trained == reword(text).held == []


@pytest.mark.parametrize("question", CLAUSES)
def test_what_is_held_is_no_near_copy_of_what_is_trained(question: str) -> None:
    made = reword(question)
    for held in made.held:
        assert not any(near(words_of(held), words_of(each)) for each in (question, made.trained[-1], made.trained[-3]))
