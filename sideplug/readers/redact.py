"""What is not to be learnt nor sent is put out of sight: numbers, addresses, people's names, by pattern.

It finds what looks like them. A name that stands nowhere as a writer's, or a number in words, stays.
Test: pytest tests/readers/test_redact.py
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from sideplug.contract.errors import InputError
from sideplug.contract.text import Prompt
from sideplug.readers.base import Example

NUMBERS, ADDRESSES, NAMES = KINDS = ("numbers", "addresses", "names")
_PATTERNS = {
    # Phones, cards, accounts, dates of birth: five digits or more, which spaces and dashes may part.
    NUMBERS: re.compile(r"(?<![\w.])[A-Z]{0,2}\+?\(?\d(?:[ ./()-]{0,2}\d){4,}(?!\w)"),
    ADDRESSES: re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+|\bhttps?://[^\s<>\"')\]]+|\bwww\.[^\s<>\"')\]]+"),
}
SHOWN = 3  # of each kind


def check_kinds(kinds: Iterable[str]) -> frozenset[str]:
    """These kinds. Raises InputError for an unknown one."""
    wanted = frozenset(kind.strip() for kind in kinds if kind.strip())
    unknown = sorted(wanted - set(KINDS))
    if unknown:
        raise InputError(f"--redact must be some of {', '.join(KINDS)}, got {unknown[0][:40]!r}")
    return wanted


class Redactor:
    """Replaces what it finds by [number], [address] or [name], and keeps count. names: of people, each word of them."""

    def __init__(self, kinds: frozenset[str], names: Iterable[str] = ()) -> None:
        self._patterns = [(kind, _PATTERNS[kind]) for kind in (ADDRESSES, NUMBERS) if kind in kinds]
        words = {word for name in names for word in re.findall(r"[^\W\d_]{2,}", name.partition("<")[0])}
        if NAMES in kinds and words:
            either = "|".join(sorted(map(re.escape, words), key=len, reverse=True))
            self._patterns.append((NAMES, re.compile(rf"(?<!\w)(?:{either})(?:(?='s)|(?!\w))", re.IGNORECASE)))
        self.found: dict[str, Counter[str]] = {kind: Counter() for kind, _ in self._patterns}

    def redact(self, example: Example) -> Example:
        """The example without what was found in its prompt and reply."""
        prompt = example.prompt
        messages = tuple({**each, "content": self._text(each["content"])} for each in prompt.messages or ())
        text = prompt.text if prompt.text is None else self._text(prompt.text)
        changed = Prompt(messages=messages) if messages else Prompt(text=text)
        return replace(example, prompt=changed, reply=self._text(example.reply), told=self._text(example.told))

    def _text(self, text: str) -> str:
        for kind, pattern in self._patterns:
            self.found[kind].update(match[0] for match in pattern.finditer(text))
            text = pattern.sub(f"[{kind.removesuffix('es') if kind == ADDRESSES else kind.removesuffix('s')}]", text)
        return text

    def lines(self) -> list[str]:
        """What was found, a line a kind, with a few of each as this device may show them."""
        said = list[str]()
        for kind, found in self.found.items():
            shown = ", ".join(what if len(what) < 40 else what[:39] + "…" for what, _ in found.most_common(SHOWN))
            said.append(f"redacted {kind}: {found.total()}" + (f", such as {shown}" if found else ""))
        return said


def redacted(
    examples: Sequence[Example], kinds: frozenset[str], names: Iterable[str]
) -> tuple[list[Example], list[str]]:
    """(the examples without what is to be out of sight, what was found as lines)."""
    if not kinds:
        return list(examples), []
    redactor = Redactor(kinds, names)
    return [redactor.redact(example) for example in examples], redactor.lines()
