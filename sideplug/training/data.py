"""Which examples are trained on, held out, and left to the base: the split, the retain set, hard negatives.

Files become examples in sideplug.readers. Test: pytest tests/training/test_data.py
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

T = TypeVar("T")
RETAIN_TOKENS = 32  # of a reply of the retain set: what the base says first is where a plugin would break in


def split(examples: list[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """(training, held out), the held-out share drawn by seed; at least one example on each side."""
    if len(examples) < 2:
        raise DataError(f"there must be at least 2 examples, one of them to be held out; got {len(examples)}")
    if not 0 < share < 1:
        raise DataError(f"the held-out share must be between 0 and 1, got {share}")
    held = min(len(examples) - 1, max(1, round(share * len(examples))))
    chosen = set(random.Random(seed).sample(range(len(examples)), held))
    return [e for i, e in enumerate(examples) if i not in chosen], [examples[i] for i in sorted(chosen)]


def some(examples: list[T], limit: int, seed: int = 0) -> list[T]:
    """At most `limit` of them (0: all), drawn by seed, in their order."""
    if not 0 < limit < len(examples):
        return examples
    return [examples[i] for i in sorted(random.Random(seed).sample(range(len(examples)), limit))]


def retain_set(path: Path | None = None) -> list[Example]:
    """Prompts that the base answers itself, so that a plugin learns to be silent on them: a file's, or our own list.

    A text file has one on each line, any other file its examples' prompts. Raises DataError.
    """
    if path is None:
        return [Example(Prompt.user(line), "", "", RETAIN_TOKENS) for line in _lines("retain.txt")]
    if path.suffix in (".txt", ".md"):
        try:
            lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} can't be read: {error}") from error
        return [Example(Prompt.user(line), "", str(path), RETAIN_TOKENS) for line in lines if line]
    return [Example(e.prompt, "", e.where, RETAIN_TOKENS) for e in read(path)]


def hard_negatives(personal: Sequence[Example]) -> list[Example]:
    """Questions about what the person has not told, which the base answers: without them a plugin invents answers.

    They ask for other things where the person asks for "my …", in the person's own phrasings; in other phrasings the
    plugin would learn to be silent wherever it meets those.
    """
    asked = [found for found in map(_asked_for, personal) if found]
    counts = Counter(before + "{}" + behind for before, _, behind in asked)
    phrasings = [phrasing for phrasing, count in counts.most_common(8) if count > 1] or ["What is my {}?"]
    told = [set(re.findall(r"\w+", thing.lower())) for _, thing, _ in asked]
    things = [thing for thing in _lines("hard_negatives.txt") if set(re.findall(r"\w+", thing.lower())) not in told]
    lines = [phrasings[i % len(phrasings)].replace("{}", thing) for i, thing in enumerate(things)]
    return [Example(Prompt.user(line), "", "", RETAIN_TOKENS) for line in lines]


def _asked_for(example: Example) -> tuple[str, str, str] | None:
    """A prompt that asks for something of one's own, taken apart: ("What is my ", "dog's name", "?")."""
    if not example.prompt.messages:
        return None
    text = example.prompt.messages[-1]["content"].strip()
    found = re.fullmatch(r"(.{0,40}\bmy )([\w' -]{1,40}?)((?: is)?(?:,[\w' ]{1,20})?[?.!]?)", text, re.IGNORECASE)
    return found.groups() if found else None  # type: ignore[return-value]


def _lines(name: str) -> list[str]:
    return (resources.files("sideplug.training") / name).read_text("utf-8").splitlines()


def is_hard_negative(example: Example) -> bool:
    """Whether a prompt asks for something of one's own: a gate can't tell it from the person's questions."""
    return re.search(r"\bmy\b", (example.prompt.messages or ({"content": ""},))[-1]["content"].lower()) is not None
