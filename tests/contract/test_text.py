"""Prompts."""

import pytest

from sideplug.contract.errors import InputError
from sideplug.contract.text import Prompt

GOOD = [Prompt.user("hi"), Prompt(text=""), Prompt(text="Dear"), Prompt(ids=(1, 2))]


@pytest.mark.parametrize("prompt", GOOD)
def test_over_the_wire(prompt: Prompt) -> None:
    assert Prompt.from_wire(prompt.to_wire()) == prompt


@pytest.mark.parametrize(
    "control",
    [
        {},
        {"text": "a", "ids": [1]},
        {"ids": [1, -1]},
        {"ids": [True]},
        {"ids": ["1"]},
        {"messages": []},
        {"messages": ["hi"]},
        {"messages": [{"role": "robot", "content": "hi"}]},
        {"messages": [{"role": "user", "content": 5}]},
        {"messages": [{"role": "user"}]},
    ],
)
def test_refused(control: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Prompt.from_wire(control)
