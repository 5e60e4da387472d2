"""What a plugin does to a text, seen closer: by position in a passage, and word by word.

A device has no tokenizer. The tokens of each distinct word are asked of the cloud, as those of what a memory may say
are, and laid along an example's tokens. Test: pytest tests/training/test_by_token.py
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from sideplug.contract.capabilities import TOKENS, TokensSettings, want
from sideplug.contract.text import Prompt
from sideplug.device.client import Client
from sideplug.device.reading import read
from sideplug.device.responders import Silent
from sideplug.picture import drawn
from sideplug.readers import Example
from sideplug.training.judged import Judged

STARTS = (0, 10, 40, 80)  # positions at which another stretch of a passage begins
SAMPLES = 2000  # of the bootstrap
LEAST = 2  # times that a word stands in the text, to be shown
_PIECES = re.compile(r"\s*\S+")


@dataclass(frozen=True)
class Stretch:
    """Tokens of all passages from one position to another: how many, their loss without and with the plugin in nats a
    token, and the 95 % interval of the difference (bootstrap over passages)."""

    name: str
    tokens: int
    base: float
    plugin: float
    low: float
    high: float


@dataclass(frozen=True)
class Word:
    """A word of the text: how often it stands there, and its probability without and with the plugin (the geometric
    mean over its places, of all its tokens together)."""

    text: str
    count: int
    base: float
    plugin: float

    @property
    def gain(self) -> float:
        """Nats by which all its places together are likelier."""
        return self.count * float(np.log(self.plugin / self.base))


def by_position(judged: Judged, seed: int = 0) -> list[Stretch]:
    """The stretches that have tokens."""
    ends = [*judged.starts[1:].tolist(), len(judged.base)]
    rng = np.random.default_rng(seed)
    found = []
    for low, high in pairwise((*STARTS, None)):
        rows = [np.arange(start, end)[low:high] for start, end in zip(judged.starts.tolist(), ends, strict=True)]
        rows = [each for each in rows if len(each)]
        if not rows:
            continue
        every = np.concatenate(rows)
        gains, sizes = np.array([-judged.gain[each].sum() for each in rows]), np.array([len(each) for each in rows])
        drawn_ = rng.integers(len(rows), size=(SAMPLES, len(rows)))
        means = gains[drawn_].sum(1) / sizes[drawn_].sum(1)
        least, most = np.quantile(means, (0.025, 0.975))
        name = f"tokens {low}–{high - 1}" if high else f"from {low} on"
        base, plugin = -float(judged.base[every].mean()), -float(judged.plugin[every].mean())
        found.append(Stretch(name, len(every), base, plugin, float(least), float(most)))
    return found


def by_word(
    client: Client,
    examples: Sequence[Example],
    judged: Judged,
    progress: Callable[[int, int], None] = lambda done, count: None,
) -> tuple[list[Word], int]:
    """(the words of these examples by what the plugin gains on them, the best first; examples that could not be laid
    along their words). Raises CloudError and its kin."""
    pieces = [_PIECES.findall(example.reply) for example in examples]
    distinct = sorted({piece for each in pieces for piece in each})
    ids = _tokens(client, distinct, progress)
    ends = [*judged.starts[1:].tolist(), len(judged.base)]
    logs: dict[str, list[tuple[float, float]]] = defaultdict(list)
    missed = 0
    for each, start, end in zip(pieces, judged.starts.tolist(), ends, strict=True):
        places = _places(each, ids, judged.ids[start:end].tolist())
        missed += not places
        for piece, first, stop in places:
            rows = slice(start + first, start + stop)
            logs[piece.strip()].append((float(judged.base[rows].sum()), float(judged.plugin[rows].sum())))
    words = [
        Word(text, len(some), *(float(np.exp(np.mean(column))) for column in zip(*some, strict=True)))
        for text, some in logs.items()
        if len(some) >= LEAST
    ]
    return sorted(words, key=lambda word: -word.gain), missed


def _tokens(client: Client, words: list[str], progress: Callable[[int, int], None]) -> dict[str, list[int]]:
    """The token ids of each word, behind another one."""
    responder = Silent()
    responder.opening.capabilities[TOKENS.name] = want(TokensSettings())
    before = Prompt(text="a")
    asked = [" a", " the", *words]
    with client.connect(responder=responder) as session:
        ids: list[list[int]] = []
        read(session, [(before, word) for word in asked], ids, progress)
    ended = len(ids[0]) > 1 and ids[0][-1] == ids[1][-1]  # the base's end, which a text without a space at its end has
    return {word: each[:-1] if ended else each for word, each in zip(asked, ids, strict=True)}


def _places(pieces: list[str], ids: dict[str, list[int]], text: list[int]) -> list[tuple[str, int, int]]:
    """(piece, its first row, the row behind it) of each piece; [] where they are not the text's tokens.

    The first piece may have lost its first tokens to the prompt.
    """
    row, places = 0, []
    for number, piece in enumerate(pieces):
        own = ids[piece]
        if number == 0:
            own = next((own[cut:] for cut in range(len(own) + 1) if text[: len(own) - cut] == own[cut:]), own)
        if text[row : row + len(own)] != own:
            return []
        if own:
            places.append((piece, row, row + len(own)))
        row += len(own)
    return places


def draw(words: Sequence[Word], title: str, path: Path, most: int = 16) -> None:
    """Draw the words that gain most and those that lose most to a file. Raises Stopped."""
    half = most // 2
    shown = [*words[:half], *words[max(half, len(words) - half) :]]
    with drawn(path, title, "how likely the base finds the word → with your plugin, %", "") as axes:
        for place, word in enumerate(reversed(shown)):
            better = word.plugin >= word.base
            colour = "#1a6faf" if better else "#c8421b"
            axes.plot([100 * word.base, 100 * word.plugin], [place, place], "-", color=colour, lw=2)
            label = "likelier" if better else "rarer"
            axes.plot(100 * word.plugin, place, "o", color=colour, label=label if _first(axes, label) else None)
            axes.plot(100 * word.base, place, "|", color="0.5", markersize=9)
        axes.set_yticks(range(len(shown)), [f"{word.text} ×{word.count}" for word in reversed(shown)])
        axes.set_xscale("log")


def _first(axes: Any, label: str) -> bool:
    """Whether no line has this label yet."""
    return label not in [line.get_label() for line in axes.get_lines()]
