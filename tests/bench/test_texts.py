"""How a text reads, counted by hand."""

from __future__ import annotations

import pytest

from sideplug.bench.texts import by_position, copied, distinct, grams, known_grams, repeated, totals


def test_a_gram_is_of_words_and_marks() -> None:
    assert grams("It's far, Bo.", 2) == [("it's", "far"), ("far", ","), (",", "bo"), ("bo", ".")]
    assert grams("one two", 3) == []


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("a b c d e f", [0, 4]),
        ("It was a dam. It was a dam.", [3, 8]),  # it was a, was a dam, a dam .
        ("no no no no no", [2, 3]),
        ("short", [0, 0]),
    ],
)
def test_what_a_text_repeats_of_itself(text: str, count: list[float]) -> None:
    assert repeated(text) == count


def test_what_a_text_copies_of_what_was_learnt() -> None:
    known = known_grams(["The bees are well, the roof is not.", "Bring nails."])
    assert copied("She said: the bees are well, the roof is new.", known) == [3, 8]
    assert copied("Bring nails.", known) == [0, 0]  # too short to have copied anything


def test_how_varied_texts_are_together() -> None:
    assert distinct(["a b c d", "a b c e"]) == [3, 4]
    assert distinct([]) == [0, 0]


def test_losses_by_position() -> None:
    long, short = [1.0] * 10 + [2.0] * 30 + [3.0] * 40 + [4.0] * 5, [0.5] * 12
    assert totals([long, short]) == [[210, 85], [6, 12]]
    first, second, third, rest = by_position([long, short])
    assert (first, second) == ([[10, 10], [5, 10]], [[60, 30], [1, 2]])
    assert (third, rest) == ([[120, 40], [0, 0]], [[20, 5], [0, 0]])
