"""The rows of one text alone: what is computed, sent once and in order, cached and taken over, against a naive list."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sideplug.cloud.context_rows import BUNDLE, ContextRows
from sideplug.contract.frames import Context
from sideplug.contract.tap import ContextSlice, Tap

WIDTH = 8
TAP = Tap((0, 1, 3), 4)
SLICE = ContextSlice(TAP, (0, 3), 2)


def hidden(count: int, seed: int = 0) -> np.ndarray:
    """Tapped states (C, K, D) of a text."""
    return np.random.default_rng(seed).normal(size=(count, 3, WIDTH)).astype(np.float32)


def naive(states_CKD: np.ndarray, tap: Tap = TAP) -> list[tuple[list[list[int]], list[float]]]:
    """What a row must carry, written out: of layers 0 and 3 the first two numbers of their code, and their scales."""
    rows = []
    for state_KD in states_CKD:
        codes, scales = tap.encode(state_KD[None])
        picked = [codes[0, 0, :2].tolist(), codes[0, 2, :2].tolist()]
        rows.append((picked, [scales[0, 0].item(), scales[0, 2].item()] if scales.size else []))
    return rows


def sent(frames: list[Context]) -> list[tuple[int, list[list[int]], list[float]]]:
    """(position, codes, scales) of each row, in the order in which they were sent."""
    return [
        (frame.first + row, codes.tolist(), scales.tolist())
        for frame in frames
        for row, (codes, scales) in enumerate(zip(frame.codes, frame.scales, strict=True))
    ]


def expected(states_CKD: np.ndarray, first: int, stop: int) -> list[tuple[int, list[list[int]], list[float]]]:
    want = naive(states_CKD)
    return [(position, *want[position]) for position in range(first, stop)]


def with_rows(count: int, start: int = 0, seed: int = 0) -> ContextRows:
    rows = ContextRows(SLICE, start)
    rows.add(0, hidden(count, seed))
    return rows


def test_rows_are_cut_to_the_slice_and_sent_once() -> None:
    states = hidden(7)
    rows = ContextRows(SLICE, 0)
    assert (rows.start, rows.end, rows.sent) == (0, 0, 0)
    assert rows.unsent(1, 0, 100) == []
    rows.add(0, states[:3])
    assert rows.end == 3
    frames = rows.unsent(4, 2, 2)
    assert [(frame.turn, frame.run, frame.first) for frame in frames] == [(4, 2, 0)]
    assert (frames[0].codes.shape, frames[0].codes.dtype, frames[0].scales.dtype) == ((2, 2, 2), np.int8, np.float32)
    assert sent(frames) == expected(states, 0, 2)
    rows.add(3, states[3:])
    assert sent(rows.unsent(4, 2, 100)) == expected(states, 2, 7)
    assert rows.unsent(4, 2, 100) == []


def test_a_tap_without_scales() -> None:
    tap = Tap((0, 1, 3), 4, codec="fp16")
    rows = ContextRows(ContextSlice(tap, (0, 3), 2), 0)
    rows.add(0, hidden(3))
    (frame,) = rows.unsent(1, 0, 3)
    assert (frame.codes.shape, frame.codes.dtype, frame.scales.shape) == ((3, 2, 2), np.float16, (3, 0))
    assert [codes.tolist() for codes in frame.codes] == [codes for codes, _ in naive(hidden(3), tap)]


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    """One by one, in two chunks, or all at once: the bits are the same."""
    states = hidden(40)
    whole = sent(with_rows(40).unsent(1, 0, 40))
    for cuts in (range(1, 40), [17]):
        rows, first = ContextRows(SLICE, 0), 0
        for cut in [*cuts, 40]:
            rows.add(first, states[first:cut])
            first = cut
        assert sent(rows.unsent(1, 0, 40)) == whole


def test_a_row_as_an_ask_carries_it() -> None:
    states = hidden(4)
    rows = with_rows(3)
    rows.put(3, *TAP.encode(states[3:]))
    assert sent(rows.unsent(1, 0, 4))[3:] == expected(states, 3, 4)
    with pytest.raises(AssertionError, match="in their order"):
        rows.put(6, *TAP.encode(states[3:]))
    late = ContextRows(SLICE, 9)
    late.put(8, *TAP.encode(states[3:]))  # the device has it
    assert late.end == 9


@pytest.mark.parametrize("count", [1, BUNDLE - 1, BUNDLE, BUNDLE + 1, 2 * BUNDLE + 5])
def test_many_rows_come_in_bundles(count: int) -> None:
    frames = with_rows(count).unsent(1, 0, count)
    sizes = [len(frame.codes) for frame in frames]
    assert sum(sizes) == count
    assert sizes[:-1] == [BUNDLE] * (len(sizes) - 1)
    assert 0 < sizes[-1] <= BUNDLE
    assert sent(frames) == expected(hidden(count), 0, count)


def test_a_row_that_went_with_an_ask_is_not_sent_again() -> None:
    rows = with_rows(6)
    rows.unsent(1, 0, 2)
    rows.mark_sent(3)  # row 2 stood in an ASK
    assert sent(rows.unsent(1, 0, 6)) == expected(hidden(6), 3, 6)
    rows.mark_sent(1)
    assert rows.sent == 6, "nothing that was sent is forgotten"


def test_after_a_roll_back_the_rows_come_again_from_there_on() -> None:
    first, second = hidden(8), hidden(8, seed=1)
    rows = with_rows(8)
    assert sent(rows.unsent(1, 0, 8)) == expected(first, 0, 8)
    rows.trim(5)
    assert (rows.end, rows.sent) == (5, 5)
    rows.add(5, second[5:])
    assert sent(rows.unsent(1, 1, 8)) == expected(second, 5, 8)
    rows.trim(20)  # past its end: nothing was rolled back
    assert (rows.end, rows.sent) == (8, 8)
    unsent = with_rows(8)
    unsent.unsent(1, 0, 3)
    unsent.trim(5)
    assert sent(unsent.unsent(1, 0, 8)) == expected(first, 3, 5), "what was not sent yet still is"


def test_rows_that_the_device_has_are_left_out() -> None:
    states = hidden(9)
    rows = ContextRows(SLICE, 4)
    rows.add(0, states[:3])
    assert rows.end == 4
    rows.add(3, states[3:6])
    assert (rows.start, rows.end) == (4, 6)
    rows.add(6, states[6:])
    assert sent(rows.unsent(1, 0, 7)) == expected(states, 4, 7)
    rows.trim(6)
    assert (rows.end, rows.sent) == (6, 6)
    rows.trim(2)
    assert (rows.end, rows.sent) == (4, 4)


def test_a_copy_is_the_beginning_and_stays_as_it_is() -> None:
    rows = with_rows(8)
    rows.unsent(1, 0, 8)
    copy = rows.copy(5)
    rows.trim(2)
    rows.add(2, hidden(8, seed=1)[2:])
    assert (copy.start, copy.end, copy.sent) == (0, 5, 0)
    assert sent(copy.unsent(1, 0, 100)) == expected(hidden(8), 0, 5)
    late = with_rows(8, start=3)
    assert (late.copy(6).start, late.copy(6).end) == (3, 6)
    assert (late.copy(2).start, late.copy(2).end) == (3, 3)


USABLE = {
    # name: (the rows' start, those of the cached text, its reusable tokens, how many may be reused)
    "all of it": (0, with_rows(30), 30, 30),
    "more rows than tokens": (0, with_rows(30), 20, 20),
    "fewer rows than tokens": (0, with_rows(12), 20, 12),
    "no rows": (0, None, 20, 0),
    "no rows are needed": (20, None, 20, 20),
    "no rows are needed of so few": (25, None, 20, 20),
    "rows are needed from 8 on, and there are none": (8, None, 20, 8),
    "rows are needed from 8 on, and they are there": (8, with_rows(30), 20, 20),
    "the cached rows begin where they are needed": (8, with_rows(30, start=8), 20, 20),
    "the cached rows begin earlier": (8, with_rows(30, start=5), 20, 20),
    "the cached rows begin too late": (4, with_rows(30, start=8), 20, 4),
    "the cached rows end before they are needed": (15, with_rows(12), 20, 15),
    "the cached rows are of another slice": (0, ContextRows(ContextSlice(TAP, (0,), 2), 0), 20, 0),
}


@pytest.mark.parametrize("case", USABLE.values(), ids=USABLE.keys())
def test_how_much_of_a_cached_text_is_usable(case: tuple[int, ContextRows | None, int, int]) -> None:
    start, cached, length, want = case
    rows = ContextRows(SLICE, start)
    assert rows.usable(cached, length) == want
    rows.take(cached, want)
    assert rows.end == max(start, want), "the next row is the first of what is run"
    rows.add(want, hidden(40)[want:])
    assert sent(rows.unsent(1, 0, 40)) == expected(hidden(40), start, 40)


Step = tuple[str, int]


@given(
    start=st.integers(0, 6),
    steps=st.lists(st.tuples(st.sampled_from(["add", "trim", "send", "ask", "cache"]), st.integers(0, 9)), max_size=40),
)
def test_whatever_happens_the_device_has_each_row_once(start: int, steps: list[Step]) -> None:
    """A text that grows and is rolled back; the device keeps what it was sent last for each position."""
    rows = ContextRows(SLICE, start)
    text: list[np.ndarray] = []  # the states at each position
    device: list[tuple[list[list[int]], list[float]]] = [([], [])] * start  # from `start` on: what it has
    fresh = 0

    def take(frames: list[Context]) -> None:
        for position, codes, scales in sent(frames):
            assert position == len(device), "in order, without a gap, none twice"
            device.append((codes, scales))

    for verb, number in steps:
        if verb == "add" and number:
            fresh += 1
            new = hidden(number, seed=fresh)
            rows.add(len(text), new)
            text += list(new)
        elif verb == "trim":
            length = max(start, len(text) - number)  # the device's rows are of settled tokens
            if length < len(text):
                rows.trim(length)
                del text[length:], device[length:]
        elif verb == "send":
            take(rows.unsent(1, 0, len(text) - number))
        elif verb == "ask" and len(text) > max(start, len(device)):
            take(rows.unsent(1, 0, len(text) - 1))
            device.append(naive(np.stack(text[-1:]))[0])
            rows.mark_sent(len(text))
        elif verb == "cache" and len(text) > start:
            again = ContextRows(SLICE, start)
            again.take(rows.copy(len(text)), len(text))
            again.mark_sent(rows.sent)
            rows = again
    take(rows.unsent(1, 0, len(text)))
    assert device[start:] == (naive(np.stack(text))[start:] if text else [])
