"""Prompts and examples as plain JSON: what a device's process is given, a line at a time.

It does not know the wire, nor who is compared. Test: pytest tests/bench/test_prompts.py
"""

from __future__ import annotations

from typing import Any

from sideplug.contract.text import Prompt
from sideplug.readers import Example

Record = dict[str, Any]


def prompt_of(record: Record) -> Prompt:
    """Return the prompt that `Prompt.to_json` wrote. Raises KeyError for a record that is no prompt."""
    if "messages" in record:
        return Prompt(messages=tuple(record["messages"]))
    return Prompt(text=record["text"]) if "text" in record else Prompt(ids=tuple(record["ids"]))


def example_record(example: Example) -> Record:
    """Return an example as a device is given it."""
    return {"prompt": example.prompt.to_json(), "reply": example.reply}


def example_of(record: Record) -> Example:
    """Return the example that `example_record` wrote."""
    return Example(prompt_of(record["prompt"]), record["reply"], "")
