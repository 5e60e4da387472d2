"""Training without a chat template: a prompt and its reply as one text, and general text to be continued.

A base model without a template is trained so, and every base with `train --raw`. It does not know tokens.
Test: pytest tests/training/test_raw.py
"""

from __future__ import annotations

import dataclasses
from importlib import resources
from typing import TypeVar

from sideplug.contract.text import Prompt
from sideplug.readers import Example

GENERAL_TOKENS = 32  # of a general text that the base continues
_T = TypeVar("_T")


def as_text(example: Example) -> Example:
    """Return an example as a text to be continued: what was said, each message a paragraph, before the reply."""
    if example.prompt.messages is None:
        return example
    said = "".join(message["content"].strip() + "\n\n" for message in example.prompt.messages)
    return dataclasses.replace(example, prompt=Prompt(text=said), told=example.question)


def openings() -> list[Example]:
    """Return beginnings of general texts, which the base continues itself: the retain set in the form of text."""
    lines = (resources.files("sideplug.training") / "openings.txt").read_text("utf-8").splitlines()
    return [Example(Prompt(text=line), "", f"openings.txt:{n}", GENERAL_TOKENS) for n, line in enumerate(lines, 1)]


def without_chat(texts: _T) -> _T:
    """Return a training's texts (a pipeline.Texts) without a chat in them; general text in both forms, if there is any.

    The person's questions stay questions, so the hard negatives do too; where all is plain text, there are none.
    """
    changed: dict[str, list[Example]] = {}
    for field in dataclasses.fields(texts):  # type: ignore[arg-type]
        value = getattr(texts, field.name)
        if isinstance(value, list) and all(isinstance(each, Example) for each in value):
            changed[field.name] = [as_text(each) for each in value]
    asks = any(each.prompt.messages for each in texts.training)  # type: ignore[attr-defined]
    if not asks:
        changed["hard_negatives"] = []
    if changed["retain"]:
        changed["retain"] += openings()
    return dataclasses.replace(texts, **changed)  # type: ignore[type-var]
