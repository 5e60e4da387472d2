"""A new plugin is tried as its user would: asked for told facts in other words, for what nobody told, and to write on.

A loss says little of what a person will read. So two answers are shown, a text plugin's continuation is measured for
repetition, and where a plugin should not be used, that is said. It does not know losses.
Test: pytest tests/training/test_trial.py
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sideplug.contract.errors import SideplugError
from sideplug.contract.text import Prompt
from sideplug.device.client import Client
from sideplug.device.session import Session
from sideplug.plugins import Plugin
from sideplug.readers import Example
from sideplug.training.alike import question_of, words
from sideplug.training.facts import is_question
from sideplug.training.rewording import reword

ASKED, CONTINUED, MOST_UNTOLD = 2, 2, 6
REPLY_TOKENS, TEXT_TOKENS = 48, 64
START_CHARACTERS = 120
START_WORDS = 12
RUN = 3  # words, that occur again
REPEATS, WORSE = 0.4, 0.2  # a text that repeats itself; by how much more than the base's


@dataclass(frozen=True)
class Answer:
    """A question, what was told (perhaps nothing), what the plugin answers, and what the base answers."""

    question: str
    told: str
    reply: str
    base: str


@dataclass(frozen=True)
class Continuation:
    """How the plugin and the base go on from the beginning of a text, and how much of each is repetition (0 to 1)."""

    start: str
    text: str
    repetition: float
    base_repetition: float


@dataclass(frozen=True)
class Trial:
    """What a plugin says. told: of told facts, in other words. untold: of facts held out whole, and of others that
    nobody told."""

    told: list[Answer]
    untold: list[Answer]
    continuations: list[Continuation]

    @property
    def as_the_base(self) -> int:
        """How many untold questions are answered word for word as the base answers them."""
        return sum(answer.reply == answer.base for answer in self.untold)

    @property
    def lines(self) -> list[str]:
        """For a person to read: what was asked and said, then the warnings."""
        lines = [
            f"asked “{answer.question}” it says “{_short(answer.reply)}” (told: “{_short(answer.told)}”)"
            for answer in self.told
        ]
        if self.untold:
            lines.append(
                f"facts held out whole, or never told: {self.as_the_base} of {len(self.untold)} answered as the base "
                "does"
            )
        lines += [f"“{each.start} …” goes on “{_short(each.text, 200)}”" for each in self.continuations[:1]]
        return lines + self.warnings

    @property
    def warnings(self) -> list[str]:
        """When this plugin should not be used."""
        lines = []
        if self.continuations:
            mine = sum(each.repetition for each in self.continuations) / len(self.continuations)
            base = sum(each.base_repetition for each in self.continuations) / len(self.continuations)
            if mine >= REPEATS and (mine >= base + WORSE or mine >= 2 * REPEATS):
                lines.append(
                    f"do not use this plugin to write: {mine:.0%} of its text repeats itself (the base's: {base:.0%}). "
                    "More text helps, or fewer --epochs"
                )
        if len(self.untold) > 1 and self.as_the_base < len(self.untold) / 2:
            lines.append(
                "beware: asked for what you never told, it mostly answers otherwise than the base, with things that "
                "you told or with nothing true"
            )
        return lines

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return {**asdict(self), "as_the_base": self.as_the_base, "warnings": self.warnings}


def tried(
    client: Client,
    plugin: Plugin,
    training: Sequence[Example],
    told: Sequence[Example],
    text: Sequence[Example],
    untold: Sequence[Example],
    say: Callable[[str], None],
) -> Trial | None:
    """What the plugin says, asked at its own gate, greedy. told: of facts in other words; text: held-out text.

    None, and a line to `say`, where the cloud can't be asked any more: the plugin is saved already.
    """
    asked = [(example.prompt, example.reply) for example in told[:ASKED]] or _asked_of(training)
    starts = [_start(each) for each in [*text, *training] if each.prompt.messages is None][:CONTINUED]
    try:
        with client.connect(plugin) as mine, client.connect() as base:
            answers = [_answer(mine, base, prompt, reply) for prompt, reply in asked]
            others = [_answer(mine, base, each.prompt, "") for each in untold[:MOST_UNTOLD]]
            continued = [_continuation(mine, base, start) for start in starts if start]
    except SideplugError as error:
        say(f"the plugin is saved; it could not be tried: {error}")
        return None
    return Trial(answers, others, continued)


def _asked_of(training: Sequence[Example]) -> list[tuple[Prompt, str]]:
    """Told questions, in other words where there are some."""
    found = []
    for example in [each for each in training if is_question(each)][:ASKED]:
        question = next(iter(reword(question_of(example)).held), question_of(example))
        before = (example.prompt.messages or ())[:-1]
        found.append((Prompt(messages=(*before, {"role": "user", "content": question})), example.reply))
    return found


def _start(example: Example) -> str:
    """The first words of a text as they stand, of one without spaces as many characters as such words have."""
    text = ((example.prompt.text or "") + example.reply).strip()
    count = min(START_WORDS, max(1, len(text.split()) // 2))
    words = re.match(rf"(?:\S+\s*){{{count}}}", text)
    return (words.group() if words else text)[:START_CHARACTERS].rstrip()


def _answer(mine: Session, base: Session, prompt: Prompt, told: str) -> Answer:
    reply, plain = (session.generate(prompt, REPLY_TOKENS).text for session in (mine, base))
    return Answer((prompt.messages or ({"content": ""},))[-1]["content"], told, reply, plain)


def _continuation(mine: Session, base: Session, start: str) -> Continuation:
    text, plain = (session.generate(Prompt(text=start), TEXT_TOKENS).text for session in (mine, base))
    return Continuation(start, text, repetition(text), repetition(plain))


def repetition(text: str) -> float:
    """Return the share of a text's runs of three words that occurred before in it. Where words are long, of letters."""
    parts = words(text)
    if len(text) > 12 * max(1, len(parts)):  # written without spaces
        parts = [letter for letter in text if letter.isalnum()]
    runs = [tuple(parts[i : i + RUN]) for i in range(len(parts) - RUN + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def _short(text: str, most: int = 100) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"
