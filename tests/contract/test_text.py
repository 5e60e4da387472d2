"""Prompts."""

import pytest

from sideplug.contract.errors import InputError
from sideplug.contract.frames import Message, PromptFrame, Read, SamplingSpec
from sideplug.contract.text import Prompt

GOOD = [Prompt.user("hi"), Prompt(text=""), Prompt(text="Dear"), Prompt(ids=(1, 2))]


@pytest.mark.parametrize("prompt", GOOD)
def test_over_the_wire(prompt: Prompt) -> None:
    assert Prompt.from_wire(PromptFrame(1, 1, SamplingSpec(), **prompt.to_wire())) == prompt


def test_an_examples_prompt_is_words() -> None:
    assert Prompt.from_wire(Read(0, "x", False, **Prompt.user("hi").to_read())) == Prompt.user("hi")
    with pytest.raises(InputError, match="must be messages or text"):
        Prompt(ids=(1,)).to_read()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"text": "a", "ids": [1]},
        {"messages": []},
        {"messages": [Message("robot", "hi")]},
        {"messages": [Message("user", "hi")], "text": ""},
    ],
)
def test_refused(fields: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Prompt.from_wire(PromptFrame(1, 1, SamplingSpec(), **fields))  # type: ignore[arg-type]
