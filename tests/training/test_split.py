"""The split: phrasings are held out, not facts; copies stand on one side; what is lost is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sideplug.contract.errors import DataError
from sideplug.contract.text import Prompt
from sideplug.readers import Example, read
from sideplug.training.alike import question_of
from sideplug.training.facts import Facts, near, words_of
from sideplug.training.split import LEAST_HELD, MOST_MADE, Split, split

PERSON = Path(__file__).parents[2] / "examples/person/train.jsonl"
THINGS = [
    f"{colour} {thing}" for thing in ("mug", "boat", "chair", "lamp", "drum") for colour in ("red", "blue", "odd")
]


def asked(question: str, reply: str) -> Example:
    return Example(Prompt.user(question), reply, "")


ONCE = [asked(f"Where is my {thing}?", f"It is in room {number * 37}.") for number, thing in enumerate(THINGS)]
FRAMES = ("Where is my {}?", "Tell me where I put my {}.", "My {} again, please: in which room?", "I miss the {}.")
SEVERAL = [
    asked(frame.format(thing), f"It is in room {number * 37}.")
    for number, thing in enumerate(THINGS)
    for frame in FRAMES
]
TEXTS = [Example(Prompt(text=""), f"Passage {i}: " + f"thing{i} river{i} mill{i} " * 20, "") for i in range(20)]


def check_honest(examples: list[Example], parts: Split) -> None:
    """No held-out question shares a frame with a trained one, or is a near copy of one of its own fact."""
    together = [*parts.training, *parts.told]
    facts = Facts.among(together)
    trained = range(len(parts.training))
    frames = {facts.frame(facts.of[i], question_of(together[i])) for i in trained}
    for number in range(len(parts.training), len(together)):
        question, fact = question_of(together[number]), facts.of[number]
        assert facts.frame(fact, question) not in frames, question
        own = [question_of(together[i]) for i in trained if facts.of[i] == fact]
        assert own, "it is told"
        assert not any(near(words_of(question), words_of(each)) for each in own), question


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "examples", [ONCE, SEVERAL, read(PERSON), [*ONCE, *TEXTS]], ids=["once", "several", "person", "and text"]
)
def test_told_facts_are_held_out_in_other_words(examples: list[Example], seed: int) -> None:
    parts = split(examples, 0.1, seed)
    assert parts.told
    check_honest(examples, parts)
    replies = {example.reply for example in examples} - {example.reply for example in [*parts.text, *parts.whole]}
    assert {example.reply for example in parts.training} >= replies, "no told fact is lost"
    assert split(examples, 0.1, seed) == parts, "the seed draws it"


def test_each_once() -> None:
    parts = split(ONCE, 0.1, 0)
    assert [example for example in parts.training if example in ONCE] == ONCE
    assert parts.made == len(parts.training) - len(ONCE) == 3 * len(ONCE)
    assert len(parts.told) == LEAST_HELD
    assert "45 questions are made of yours in other words, to train on (--no-reword)" in parts.lines
    plain = split(ONCE, 0.1, 0, rewording=False)
    assert (plain.training, plain.told, plain.made) == (ONCE, [], 0)
    assert "nothing is held out" in plain.lines[-1]


def test_nothing_held_out() -> None:
    for examples in (ONCE, SEVERAL, TEXTS, ONCE[:1], TEXTS[:1]):
        parts = split(examples, 0, 0)
        assert (parts.told, parts.text, parts.whole) == ([], [], [])
        assert parts.training[: len(examples)] == examples
        assert "nothing is held out" in parts.lines[-1]


@pytest.mark.parametrize("copies", [2, 8])
def test_copies_stand_on_one_side_and_are_told(copies: int) -> None:
    for distinct in (ONCE[:6], SEVERAL, TEXTS[:6], read(PERSON)):
        variants = [
            Example(
                Prompt.user(question_of(e).replace("'", "")) if e.prompt.messages else e.prompt,
                e.reply.rstrip(".") + " ." * (i % 2),
                "",
            )
            for e in distinct
            for i in range(copies - 1)
        ]  # fmt: skip
        parts = split([*distinct, *variants], 0.2, 1)
        trained = {(words_of(question_of(e)), words_of(e.reply)) for e in parts.training}
        held = [(words_of(question_of(e)), words_of(e.reply)) for e in [*parts.told, *parts.text, *parts.whole]]
        assert held
        assert not trained & set(held)
        assert len(held) == len(set(held)), "of copies one is enough to judge by"
        assert parts.copies == len(variants) + split(distinct, 0, 0).copies
        assert f"{parts.copies:,} examples are nearly the same as another" in parts.lines[0]


def test_text_is_held_out_by_share() -> None:
    parts = split(TEXTS, 0.2, 3)
    assert (len(parts.training), len(parts.text)) == (16, 4)
    assert sorted([*parts.training, *parts.text], key=TEXTS.index) == TEXTS
    assert split(TEXTS, 0.2, 4).text != parts.text
    assert [len(split(TEXTS[:2], 0.9, 0).training), len(split(TEXTS[:2], 0.01, 0).text)] == [1, 1]


def test_instructions_are_text() -> None:
    """They have no fact that a reworded one would ask for: how they are answered is the person's style."""
    told = [asked(f"Write to {name} that I come.", f"{name}, I come.") for name in ("Anna", "Bert", "Carl", "Dora")]
    parts = split(told, 0.25, 0)
    assert (len(parts.training), parts.told, len(parts.text), parts.made) == (3, [], 1, 0)


def test_of_many_facts_a_few_are_held_out_whole_and_named() -> None:
    many = [
        asked(f"What is the code of the {thing} {i}?", f"{i}-{thing[:3]}-{j}")
        for i in range(4)
        for j, thing in enumerate(THINGS)
    ]
    parts = split(many, 0.1, 0)
    assert len(parts.whole) == 2
    assert not {e.reply for e in parts.whole} & {e.reply for e in [*parts.training, *parts.told]}
    (line,) = [line for line in parts.lines if line.startswith("held out whole, so not learnt: ")]
    assert all(f"“{question_of(example)}”" in line for example in parts.whole)
    assert "--held-out 0" in line


def test_what_is_made_has_a_bound() -> None:
    many = [asked(f"Where is my {word}?", f"In {word}s") for word in (f"thing{i:04}" for i in range(500))]
    assert split(many, 0.1, 0).made <= MOST_MADE


@pytest.mark.parametrize("share", [-0.1, 1, 1.5])
def test_a_share_that_is_none(share: float) -> None:
    with pytest.raises(DataError, match="must be 0 .nothing. or more and below 1, got"):
        split(ONCE, share, 0)
    with pytest.raises(DataError, match="at least 1 example"):
        split([], 0.1, 0)


def test_a_system_message_stays_with_a_reworded_question() -> None:
    system = {"role": "system", "content": "Be brief."}
    told = Example(Prompt(messages=(system, {"role": "user", "content": "Where is my mug?"})), "In the sink.", "x:1")
    parts = split([told], 0.1, 0)
    assert {json.dumps(e.prompt.messages[0]) for e in [*parts.training, *parts.told] if e.prompt.messages} == {
        json.dumps(system)
    }
    assert {e.where for e in parts.training} == {"x:1"}
