"""Drafts from the person's phrases: the longest match, while most places agree; lengths follow what comes true."""

import numpy as np
import pytest

from sideplug.device.drafts import BREAK, CREDIT, MAX_AHEAD, MAX_DRAFT, MIN_DRAFT, PromptLookup, Text


def phrases(*several: list[int]) -> np.ndarray:
    joined: list[int] = []
    for phrase in several:
        joined += [*([BREAK] if joined else []), *phrase]
    return np.array(joined, np.int32)


DOG = [10, 11, 12, 13, 14]
CAT = [10, 11, 22, 23, 24, 25]
LINE = list(range(100, 200))


class Reply:
    """A reply whose whole text is settled."""

    def __init__(self, words: np.ndarray, prompt: int = 0) -> None:
        self.text = Text()
        self.text.begin(prompt)
        self.lookup = PromptLookup(words, self.text)

    def drafted(self, ids: list[int]) -> list[int]:
        """The draft behind these settled tokens."""
        self.text.settle(self.text.settled_end, ids)
        return self.lookup.draft(self.text.settled_end)


def test_the_longest_match_decides() -> None:
    reply = Reply(phrases(DOG, CAT), 5)
    assert reply.drafted([]) == [10, 11], "all phrases begin so; then they part"
    assert reply.drafted([10, 11]) == []
    assert reply.drafted([22]) == [23, 24, 25]
    other = Reply(phrases(DOG, CAT), 5)
    assert other.drafted([10, 11, 12]) == [13, 14]


def test_one_token_is_not_enough() -> None:
    assert Reply(phrases(DOG, CAT)).drafted([99, 23]) == []
    assert Reply(phrases(DOG, CAT)).drafted([22, 23]) == [24, 25]


def test_the_reply_itself_is_looked_through() -> None:
    assert Reply(phrases([1])).drafted([50, 51, 52, 53, 60, 50, 51])[:3] == [52, 53, 60]


def test_nothing_to_look_in() -> None:
    assert Reply(np.zeros(0, np.int32)).drafted([]) == []
    assert Reply(np.zeros(0, np.int32)).drafted([1, 2]) == []


def test_the_majority_is_followed_and_a_tie_is_not() -> None:
    three = phrases([1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 9, 9])
    assert Reply(three).drafted([1, 2]) == [3], "two of three go on with 3; then it is one against one"


def test_lengths_follow_what_comes_true() -> None:
    reply = Reply(phrases(LINE))
    draft, lengths = reply.drafted(LINE[:2]), [0]
    while reply.text.settled_end < 60:
        lengths.append(len(draft))
        at = reply.text.settled_end
        reply.lookup.settled(at, LINE[at : at + len(draft)])
        draft = reply.drafted(LINE[at : at + len(draft)])
    assert lengths[-1] > lengths[1] >= MIN_DRAFT
    for n in range(40):  # each time at another place, and wrong each time
        assert len(reply.drafted([7, *LINE[n : n + 2]])) <= MAX_DRAFT
        reply.lookup.settled(reply.text.settled_end, [7])
    reply.lookup.settled(0, [8] * MAX_DRAFT)  # which gives credit again
    assert len(reply.drafted([7, *LINE[50:52]])) == MIN_DRAFT


# ── behind settled text only ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_draft_reaches_behind_the_speculative_text_that_it_agrees_with() -> None:
    reply = Reply(phrases(LINE))
    assert reply.drafted(LINE[:2]) == LINE[2:10]
    for ahead in range(1, MAX_AHEAD + 1):
        reply.text.hear(2, LINE[2 : 2 + ahead])
        draft = reply.lookup.draft(2 + ahead)
        assert draft == LINE[2 + ahead : 10 + ahead][: len(draft)]
        assert draft


@pytest.mark.parametrize(
    "proposed",
    [LINE[40:60], [7, *LINE[40:60]], [LINE[2], 7, LINE[40], LINE[41]], LINE[2:90]],
    ids=["another place", "a jump", "a jump later", "further than is drafted"],
)
def test_a_text_that_the_cloud_only_proposes_is_not_continued(proposed: list[int]) -> None:
    reply = Reply(phrases(LINE))
    reply.drafted(LINE[:2])
    reply.text.hear(2, proposed)
    assert reply.lookup.draft(2 + len(proposed)) == []


def test_a_reply_drafts_no_more_than_its_credit_and_what_it_settles() -> None:
    """A cloud that settles nonsense to have every phrase continued: no faster than it writes."""
    words = np.random.default_rng(0).permutation(5000).astype(np.int32)
    reply, learnt = Reply(words), set[int]()
    for n in range(300):
        learnt.update(reply.drafted(words[12 * n : 12 * n + 2].tolist()))
        reply.lookup.settled(reply.text.settled_end, words[12 * n : 12 * n + 2].tolist())
        assert len(learnt) <= CREDIT + reply.text.settled_end
    assert len(learnt) > CREDIT, "or nothing was drafted"


def test_what_is_settled_can_not_be_told_anew() -> None:
    text = Text()
    text.begin(5)
    text.settle(5, [1, 2])
    text.hear(5, [8, 8, 3])  # a cloud that tells the settled text otherwise is cut off elsewhere (guard)
    assert (text.settled, text.ahead(8)) == ([1, 2], [3])
    text.hear(0, [9, 9, 9, 9, 9, 1, 2, 4])  # with a penalty the first ask brings the prompt too
    assert (text.settled, text.ahead(8)) == ([1, 2], [4])
    text.settle(7, [5])
    assert (text.settled, text.ahead(8)) == ([1, 2, 5], [])
    text.begin(5)  # after a break
    assert (text.settled, text.settled_end) == ([1, 2, 5], 8)
