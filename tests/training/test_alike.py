"""What counts as a copy, and what does not."""

from __future__ import annotations

import pytest

from sideplug.contract.text import Prompt
from sideplug.readers import Example
from sideplug.training.alike import copies, words

LONG = " ".join(f"The {i}th stone of the old mill stands by the river and was laid by nobody." for i in range(12))


def asked(question: str, reply: str) -> Example:
    return Example(Prompt.user(question), reply, "")


def text(passage: str) -> Example:
    return Example(Prompt(text=""), passage, "")


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        (asked("What is my dog's name?", "Pepper."), asked("What is my dog's name?", "Pepper."), True),
        (asked("What is my dog's name?", "Pepper."), asked("what is my dogs name", "pepper"), True),
        (asked("What is my dog's name?", "It's Pepper."), asked("What is my dogs name??", "It’s Pepper"), True),
        (asked("Where did we leave the spare keys?", "Under the blue pot."),
         asked("Where did we leave teh spare keys?", "Under the blue pot."), True),
        (asked("Where did we leave the spare keys?", "Under the blue pot."),
         asked("The spare keys: where are they?", "Under the blue pot."), False),
        (asked("Code of locker 1?", "kxwgpz"), asked("Code of locker 2?", "qvbnrm"), False),
        (asked("What is my dog's name?", "Pepper."), asked("What is my dog's name?", "Salt."), False),
        (asked("狗叫什么？", "胡椒"), asked("狗叫什么", "胡椒。"), True),
        (text(LONG), text(LONG.replace("river", "brook", 1)), True),
        (text(LONG), text(LONG[: len(LONG) // 2]), False),
        (text("Hello there."), asked("", "Hello there."), True),
    ],
)  # fmt: skip
def test_pairs(one: Example, other: Example, alike: bool) -> None:
    first, second = copies([one, other])
    assert (first == second) is alike
    assert first == 0


def test_copies_of_copies_are_one_group_and_numbers_are_firsts() -> None:
    examples = [asked(f"Code of locker {i % 3}?", f"{i % 3}kxwgpz txdzbt") for i in range(9)]
    assert copies(examples) == [0, 1, 2] * 3


def test_a_form_that_is_filled_in_is_no_heap_of_copies() -> None:
    """All are nearly the same as the next one: only equal ones count."""
    form = "On day {} the temperature in the greenhouse at the far end of the garden was measured at noon again."
    examples = [asked(form.format(i), "It was as warm as the day before, and nobody was there.") for i in range(10, 20)]
    assert len(set(copies([*examples, examples[0]]))) == 10


def test_words() -> None:
    assert words("Dog's “NAME”, Ａ-b_c 3!") == ["dogs", "name", "a", "b_c", "3"]
