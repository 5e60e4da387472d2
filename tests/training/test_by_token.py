"""A plugin's gains by position and by word: against a plain loop, and on a text whose words it was given a bias for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sideplug.contract.bias import Bias
from sideplug.contract.text import Prompt
from sideplug.device.client import Client
from sideplug.readers import Example
from sideplug.training import by_token, recorder
from sideplug.training.judged import Judged
from tests.conftest import Cloud, a_plugin

TEXTS = [
    "The old mill stands by the river. The mill is old and the river is wide.",
    "By the river we sat, by the mill.",
]


def test_stretches_are_those_of_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    sizes = (95, 7, 41)
    base, plugin = rng.normal(-3, 1, (2, sum(sizes)))
    judged = Judged(base, plugin, np.zeros((sum(sizes), 4)), np.array([0, 95, 102]))
    found = {each.name: each for each in by_token.by_position(judged)}
    at = [place for size in sizes for place in range(size)]
    for name, low, high in (
        ("tokens 0–9", 0, 10),
        ("tokens 10–39", 10, 40),
        ("tokens 40–79", 40, 80),
        ("from 80 on", 80, 999),
    ):
        rows = [row for row, place in enumerate(at) if low <= place < high]
        each = found[name]
        assert (each.tokens, each.base) == (len(rows), pytest.approx(-base[rows].mean()))
        gain = -(plugin[rows] - base[rows]).mean()
        assert each.plugin - each.base == pytest.approx(gain)
        assert each.low - 1e-9 <= gain <= each.high + 1e-9
    short = by_token.by_position(Judged(base[:7], plugin[:7], np.zeros((7, 4)), np.array([0])))
    assert [each.name for each in short] == ["tokens 0–9"]


def test_words_are_laid_along_their_tokens(cloud: Cloud, tmp_path: Path) -> None:
    """A bias that makes one word's tokens likelier is found at that word."""
    plugin = a_plugin(cloud.base.fingerprint, "mlp", 0.0)
    client = Client.at(cloud.url)
    mill = cloud.engine.tokenizer.ids(" mill")
    plugin.trained.own_bias = Bias(np.unique(mill).astype(np.int32), np.full(len(set(mill)), 4, np.float16))
    examples = [Example(Prompt(text=""), text, "") for text in TEXTS]
    with client.connect(plugin) as session:
        judged = recorder.score(session, examples)
    assert len(judged.ids) == len(judged.base)
    words, missed = by_token.by_word(client, examples, judged)
    assert missed == 0
    of = {word.text: word for word in words}
    assert of["mill"].count == 2
    assert of["river"].count == 2
    assert words[0].text == "mill"
    assert of["mill"].plugin > 3 * of["mill"].base
    by_token.draw(words, "words of a text", tmp_path / "words.svg")
    assert "words of a text" in (tmp_path / "words.svg").read_text(encoding="utf-8")


def test_places_need_the_very_tokens() -> None:
    ids = {"The": [5, 6], " mill": [7], " runs.": [8, 9]}
    pieces = ["The", " mill", " runs."]
    assert by_token._places(pieces, ids, [5, 6, 7, 8, 9]) == [("The", 0, 2), (" mill", 2, 3), (" runs.", 3, 5)]
    assert by_token._places(pieces, ids, [6, 7, 8, 9, 0]) == [("The", 0, 1), (" mill", 1, 2), (" runs.", 2, 4)]
    assert by_token._places(pieces, ids, [5, 6, 7, 8, 8]) == []
