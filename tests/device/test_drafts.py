"""Drafts from the person's phrases: the longest match, while most places agree; lengths follow what comes true."""

import numpy as np

from sideplug.device.drafts import BREAK, MAX_DRAFT, MIN_DRAFT, PromptLookup


def phrases(*several: list[int]) -> np.ndarray:
    joined: list[int] = []
    for phrase in several:
        joined += [*([BREAK] if joined else []), *phrase]
    return np.array(joined, np.int32)


DOG = [10, 11, 12, 13, 14]
CAT = [10, 11, 22, 23, 24, 25]


def drafted(lookup: PromptLookup, at: int, ids: list[int]) -> list[int]:
    lookup.hear(at, ids)
    return lookup.draft(at + len(ids))


def test_the_longest_match_decides() -> None:
    lookup = PromptLookup(phrases(DOG, CAT))
    assert drafted(lookup, 5, []) == [10, 11], "all phrases begin so; then they part"
    assert drafted(lookup, 5, [10, 11]) == []
    assert drafted(lookup, 7, [22]) == [23, 24, 25]
    assert drafted(lookup, 7, [12]) == [13, 14], "the text was taken back to position 7"


def test_one_token_is_not_enough() -> None:
    assert drafted(PromptLookup(phrases(DOG, CAT)), 0, [99, 23]) == []
    assert drafted(PromptLookup(phrases(DOG, CAT)), 0, [22, 23]) == [24, 25]


def test_the_reply_itself_is_looked_through() -> None:
    assert drafted(PromptLookup(phrases([1])), 0, [50, 51, 52, 53, 60, 50, 51])[:3] == [52, 53, 60]


def test_nothing_to_look_in() -> None:
    assert drafted(PromptLookup(np.zeros(0, np.int32)), 0, []) == []
    assert drafted(PromptLookup(np.zeros(0, np.int32)), 0, [1, 2]) == []


def test_the_majority_is_followed_and_a_tie_is_not() -> None:
    three = PromptLookup(phrases([1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 9, 9]))
    assert drafted(three, 0, [1, 2]) == [3], "two of three go on with 3; then it is one against one"


def test_lengths_follow_what_comes_true() -> None:
    line = list(range(100, 200))
    lookup = PromptLookup(phrases(line))
    at, lengths = 0, []
    while at < 60:
        draft = drafted(lookup, 0, line[:at]) if at > 1 else []
        lengths.append(len(draft))
        lookup.settled(at, line[at : at + max(1, len(draft))])
        at += max(1, len(draft))
    assert lengths[-1] > lengths[2] >= MIN_DRAFT
    for _ in range(50):
        draft = drafted(lookup, 0, line[:50])
        assert len(draft) <= MAX_DRAFT
        lookup.settled(50, [7])
    assert len(drafted(lookup, 0, line[:50])) == MIN_DRAFT
