"""Which questions ask for one fact, in which frame, and which are nearly the same."""

from __future__ import annotations

import pytest

from sideplug.contract.text import Prompt
from sideplug.readers import Example
from sideplug.training.facts import Facts, is_question, near, words_of


def asked(question: str, reply: str, *before: dict[str, str]) -> Example:
    return Example(Prompt(messages=(*before, {"role": "user", "content": question})), reply, "")


THINGS = {"home town": "Hamar", "dog's name": "Pepper", "shoe size": "38", "favourite tea": "lapsang"}
FRAMES = ("What is my {}?", "Tell me my {}.", "Remind me: what's my {}?")
TOLD = [asked(frame.format(thing), f"{value}.") for thing, value in THINGS.items() for frame in FRAMES]


def test_phrasings_of_one_fact_belong_together_and_share_frames_with_others() -> None:
    facts = Facts.among(TOLD)
    assert facts.of == [0] * 3 + [3] * 3 + [6] * 3 + [9] * 3
    frames = [
        [facts.frame(fact, frame.format(thing)) for frame in FRAMES]
        for fact, thing in zip((0, 3, 6, 9), THINGS, strict=True)
    ]
    assert frames == [
        [("what", "is", "my", "_"), ("tell", "me", "my", "_"), ("remind", "me", "what", "is", "my", "_")]
    ] * 4  # fmt: skip


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (("What is my dog's name?", "Pepper."), ("How is my dog called?", "Pepper."), True),
        (("What is my dog's name?", "Pepper."), ("What is my dog's name?", "It is Pepper, as ever."), True),
        (("Is Anna a vet?", "Yes."), ("Do I have a boat?", "Yes."), False),
        (("Who runs the mill?", "Anna."), ("Who is my sister?", "Anna."), False),
        (("Wo wohne ich?", "In Hamar."), ("In welcher Stadt wohne ich?", "In Hamar."), True),
    ],
)
def test_one_fact_or_two(one: tuple[str, str], other: tuple[str, str], same: bool) -> None:
    first, second = Facts.among([asked(*one), asked(*other)]).of
    assert (first == second) is same


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("What is my home town?", "What's my home town", True),
        ("What is my home town?", "Remind me: what is my home town?", True),
        ("What is my home town?", "Tell me my home town.", False),
        ("What is my home town?", "I forgot my home town, what is it?", False),
        ("Code of locker 0?", "I can't remember the code of locker 0, can you help?", False),
    ],
)
def test_near_copies_of_questions(one: str, other: str, alike: bool) -> None:
    assert near(words_of(one), words_of(other)) is alike


def test_a_label_makes_no_fact() -> None:
    """Many questions of one form with few replies: a word that all of them have joins nothing."""
    told = [asked(f"Which kind is film {word}?", "drama" if n % 2 else "farce") for n, word in enumerate("abcdefgh")]
    assert len(set(Facts.among(told).of)) == 8


def test_what_is_a_question() -> None:
    system = {"role": "system", "content": "Be brief."}
    assert is_question(asked("Who?", "Me."))
    assert is_question(asked("Who?", "Me.", system))
    assert not is_question(asked("And then?", "Home.", {"role": "user", "content": "Hi"}))
    assert not is_question(asked("x" * 300, "Me."))
    assert not is_question(asked("Who?", "Me. " * 200))
    assert not is_question(Example(Prompt(text=""), "A passage.", ""))
