"""Prompts and examples come the same out of a device's process as they went in."""

from __future__ import annotations

import json

import pytest

from sideplug.bench.prompts import example_of, example_record, prompt_of
from sideplug.contract.text import Prompt
from sideplug.readers import Example

PROMPTS = [Prompt.user("Is it far?"), Prompt(text=""), Prompt(text="Fellow-citizens,"), Prompt(ids=(5, 6))]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_survives_json(prompt: Prompt) -> None:
    assert prompt_of(json.loads(json.dumps(prompt.to_json()))) == prompt
    example = Example(prompt, " by the mill", "")
    assert example_of(json.loads(json.dumps(example_record(example)))) == example
