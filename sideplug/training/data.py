"""What a plugin learns to leave as it is: the retain set and the hard negatives. And a sample of any examples.

It does not know the split (split.py) nor file formats (sideplug.readers). Test: pytest tests/training/test_data.py
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TypeVar

from sideplug.contract.errors import DataError
from sideplug.contract.text import Prompt
from sideplug.readers import Example, read
from sideplug.readers.decoding import decode

T = TypeVar("T")
RETAIN_TOKENS = 32  # of a reply of the retain set, because a plugin would change its beginning first


def sample(examples: list[T], limit: int, seed: int = 0) -> list[T]:
    """Return at most `limit` examples (0: all), drawn by seed, in their order."""
    if not 0 < limit < len(examples):
        return examples
    return [examples[i] for i in sorted(random.Random(seed).sample(range(len(examples)), limit))]


def retain_set(path: Path | None = None) -> list[Example]:
    """Return the retain set: prompts on which a plugin learns to leave the base's replies as they are.

    path: a text file with a prompt on each line, or a file of examples, whose prompts are used; None: our own list.
    Raises DataError.
    """
    if path is None:
        return [Example(Prompt.user(line), "", "", RETAIN_TOKENS) for line in _lines("retain.txt")]
    if path.suffix.lower() in (".txt", ".md"):
        try:
            lines = [line.strip() for line in decode(path.read_bytes(), str(path)).splitlines()]
        except OSError as error:
            raise DataError(f"{path} can't be read: {error.strerror or error}") from error
        return [Example(Prompt.user(line), "", str(path), RETAIN_TOKENS) for line in lines if line]
    return [Example(e.prompt, "", e.where, RETAIN_TOKENS) for e in read(path)]


def hard_negatives(personal: Sequence[Example]) -> list[Example]:
    """Return hard negatives: questions about things that the person's examples do not contain. The base answers them.

    Without them, a plugin learns to invent answers. They are the person's own questions of the form "… my …" with other
    things in them; from other phrasings the plugin would learn to be silent on these phrasings only.
    """
    questions = [parts for parts in map(_question_parts, personal) if parts]
    counts = Counter(before + "{}" + after for before, _, after in questions)
    phrasings = [phrasing for phrasing, count in counts.most_common(8) if count > 1] or ["What is my {}?"]
    known = [set(re.findall(r"\w+", thing.lower())) for _, thing, _ in questions]
    things = [thing for thing in _lines("hard_negatives.txt") if set(re.findall(r"\w+", thing.lower())) not in known]
    lines = [phrasings[i % len(phrasings)].replace("{}", thing) for i, thing in enumerate(things)]
    return [Example(Prompt.user(line), "", "", RETAIN_TOKENS) for line in lines]


def _question_parts(example: Example) -> tuple[str, str, str] | None:
    """Return the parts of a prompt like "What is my dog's name?": ("What is my ", "dog's name", "?"), or None."""
    if not example.prompt.messages:
        return None
    text = example.prompt.messages[-1]["content"].strip()
    match = re.fullmatch(r"(.{0,40}\bmy )([\w' -]{1,40}?)((?: is)?(?:,[\w' ]{1,20})?[?.!]?)", text, re.IGNORECASE)
    return match.groups() if match else None  # type: ignore[return-value]


def _lines(name: str) -> list[str]:
    return (resources.files("sideplug.training") / name).read_text("utf-8").splitlines()


def is_hard_negative(example: Example) -> bool:
    """Return whether a prompt has the word "my": a gate can't tell it from the person's own questions."""
    text = example.prompt.messages[-1]["content"] if example.prompt.messages else example.prompt.text or ""
    return re.search(r"\bmy\b", text.lower()) is not None
