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
    "Where does Uncle Theo live?": "where Uncle Theo lives",
    "Where does my uncle Theo live?": "where my uncle Theo lives",
    "Where does my little sister live?": "where my little sister lives",
    "Which tea does Dr Novak from Graz like best?": "which tea Dr Novak from Graz likes best",
    "What does the man next door have for lunch?": "what the man next door has for lunch",
    "What does Anna like to drink?": "what Anna likes to drink",
    "When does the school play start?": "when the school play starts",
    "When does she go to work?": "when she goes to work",
    "When is anna's birthday?": "when anna's birthday is",
    "Where is my son?": "where my son is",
    "Who will feed Pepper?": "who will feed Pepper",
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
        # What it does is not known: the question is framed whole, not guessed at
        ("Where does Theo frobnicate?", "A question: Where does Theo frobnicate?", "Theo frobnicate, where?"),
        (
            "Which train does the Vienna train follow?",
            "Please answer this: Which train does the Vienna train follow?",
            "",
        ),
        ("Why is my dog sick?", "Why is my dog sick? Just the answer.", "dog sick, why?"),
        ("When is Anna free?", "Please answer this: When is Anna free?", "Anna free, when?"),
        ("Who should I call?", "Please answer this: Who should I call?", "call, who?"),
        ("Who will my sister marry?", "Please answer this: Who will my sister marry?", "sister marry, who?"),
        ("Who will Anna marry?", "Please answer this: Who will Anna marry?", "Anna marry, who?"),
        (
            "Anna's code for the gate?",
            "What is Anna's code for the gate?",
            "I can't remember Anna's code for the gate, can you help?",
        ),
        ("Can I eat nuts?", "Can I eat nuts? Just the answer.", "eat nuts, yes or no?"),
        ("Code of locker 7?", "Tell me the code of locker 7.", "I can't remember the code of locker 7, can you help?"),
        ("My wifi password?", "What is my wifi password?", "I can't remember my wifi password, can you help?"),
        ("Tell me my shoe size.", "What is my shoe size?", "Could you say what my shoe size is?"),
    ],
)
def test_what_no_clause_is_made_of(question: str, trained: str, held: str) -> None:
    made = reword(question)
    assert trained in made.trained
    assert not held or held in made.held


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
