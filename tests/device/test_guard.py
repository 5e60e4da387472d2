"""A cloud may ask and tell only what a reply can have. Each line of the table is a cloud that questions the plugin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from sideplug.contract.errors import ProtocolError, Untrusted
from sideplug.contract.frames import Ask, Begun, Context, Done, Frame, Tokens
from sideplug.contract.sampling import Sampling
from sideplug.device.guard import Asked, Guard
from tests.device.test_terms import CONTEXT_ROWS, TERMS, f2, f4, i1

PROMPT = 10
BEGUN = Begun(1, PROMPT, 0, "0" * 16)
WINDOW = 3


def ask(at: int, start: int = -1, ids: list[int] | None = None, run: int = 0, gates: int = 0) -> Ask:
    """An ask about `at`, behind a text of sevens that nothing told before."""
    ids = [7] * (at - PROMPT if start < 0 else at - start) if ids is None else ids
    start = at - len(ids) if start < 0 else start
    return Ask(1, run, [at], start, ids, i1(1, 3, 16), f4(1, 3), gates=[gates] if gates else [])


def tokens(at: int, *ids: int, by: str = "cloud", text: str = "x") -> Tokens:
    return Tokens(1, at, list(ids), text, by)


def rows(first: int, count: int = 3, run: int = 0) -> Context:
    return Context(1, run, first, i1(count, 2, 4), f4(count, 2))


def guard(max_tokens: int = 8, window: int = WINDOW, prompted: bool = True, **asked: object) -> Guard:
    made = Guard(TERMS, Asked(max_tokens, window, **asked))  # type: ignore[arg-type]
    if prompted:
        made.prompted(TERMS)
    return made


def hear(guard: Guard, *frames: Frame) -> Guard:
    for frame in frames:
        by_kind: dict[type[Frame], Callable[..., None]] = {
            Begun: guard.begun,
            Ask: guard.ask,
            Tokens: guard.tokens,
            Context: guard.context,
            Done: guard.done,
        }
        by_kind[type(frame)](frame)
    return guard


HONEST: dict[str, tuple[Guard, list[Frame]]] = {
    "token by token": (
        guard(window=0),
        [BEGUN, ask(10), tokens(10, 7, by="plugin"), ask(11), tokens(11, 7, by="plugin"), Done(1, "length", 10, 2, {})],
    ),
    "ahead of the text": (guard(), [BEGUN, *(ask(10 + n, max(10, 9 + n)) for n in range(WINDOW + 1))]),
    "a rollback": (
        guard(),
        [
            *(BEGUN, ask(10), ask(11, 10), ask(12, 11), tokens(10, 9, by="plugin")),
            *(ask(11, 10, [9], run=1), ask(12, 11, [7], run=1), tokens(11, 7, by="draft")),
        ],
    ),
    "a gate that opens rarely": (guard(), [BEGUN, tokens(10, 1, 2, 3), ask(15, 10, [1, 2, 3, 4, 4]), tokens(13, 4)]),
    "a break": (
        guard(),
        [BEGUN, ask(10), tokens(10, 7, by="plugin")],
    ),
    "one token": (guard(max_tokens=1), [BEGUN, ask(10), tokens(10, 7, by="plugin"), Done(1, "length", 10, 1, {})]),
    "rows": (
        guard(rows=True),
        [BEGUN, rows(0), rows(3, 6), ask(10), tokens(10, 7, 7), rows(10, 2), ask(13, 10, [7, 7, 7]), rows(13, 1)],
    ),
    "rows again after a rollback": (
        guard(rows=True),
        [BEGUN, rows(0, 9), ask(10), rows(10, 1), ask(12, 10, [7, 7]), tokens(10, 9, by="plugin"), rows(10, 2, run=1)],
    ),
    "parts of which one is shut": (guard(shut=(True, False)), [BEGUN, ask(10, gates=2)]),
    "the device has the head, and a penalty": (
        guard(head=True, sampling=Sampling(repetition_penalty=1.2)),
        [BEGUN, replace(ask(10, 0, [7] * 10), z=f2(1, 64)), replace(ask(11, 10), z=f2(1, 64))],
    ),
    "a quote": (guard(quote=[7, 8]), [BEGUN, tokens(10, 7, 8, by="plugin"), Done(1, "stop", 10, 2, {})]),
    "a quote that a break cut": (guard(quote=[7, 8]), [BEGUN, tokens(10, 7, by="plugin"), tokens(11, 8, by="plugin")]),
    "a quote, then an ask": (guard(quote=[7]), [BEGUN, tokens(10, 7, by="plugin"), ask(11)]),
    "the text at last": (guard(), [BEGUN, tokens(10, 7), tokens(11, text="é")]),
}


@pytest.mark.parametrize("name", HONEST)
def test_a_cloud_that_keeps_to_the_rules(name: str) -> None:
    hear(HONEST[name][0], *HONEST[name][1])


DISHONEST: dict[str, tuple[Guard, list[Frame], str]] = {
    "a position behind the reply": (guard(max_tokens=1), [BEGUN, ask(11)], "position 11, which this reply does not"),
    "a position of the prompt": (guard(), [BEGUN, ask(9, 9, [])], "position 9, which"),
    "a settled position": (guard(), [BEGUN, ask(10), tokens(10, 7, 7), ask(11)], "position 11, which"),
    "the same one again": (guard(), [BEGUN, ask(10), ask(10, 10)], "position 10 twice"),
    "the same one in another run": (guard(), [BEGUN, ask(10), ask(10, run=1)], "position 10, which"),
    "one of a later run too early": (guard(), [BEGUN, ask(12), ask(12, run=3)], "position 12, which"),
    "a run behind the end": (guard(max_tokens=1), [BEGUN, ask(10), ask(10, run=5)], "a text that it gave up"),
    "a run that was given up": (guard(), [BEGUN, ask(10), ask(11, run=1), ask(12, 11)], "a text that it gave up"),
    "backwards": (guard(), [BEGUN, ask(12), ask(11, 10)], "out of order"),
    "more ahead than the window": (
        guard(),
        [BEGUN, *(ask(10 + n, max(10, 9 + n)) for n in range(WINDOW + 2))],
        "ahead of its text more than the 3 times",
    ),
    "ahead without a window": (guard(window=0), [BEGUN, ask(10), ask(11, 10)], "more than the 0 times"),
    "behind the context": (guard(max_tokens=1000), [BEGUN, ask(128, 10)], "position 128, which"),
    "another text than was told": (guard(), [BEGUN, tokens(10, 1, 2), ask(12, 10, [1, 3])], "another text than the"),
    "the settled text anew, in the same run": (
        guard(),
        [BEGUN, ask(11), tokens(10, 9), ask(12, 11, [7])],
        "another text than the",
    ),
    "a text with a gap": (guard(), [BEGUN, ask(12, 11, [7])], "has a gap"),
    "a text before the prompt's end": (guard(), [BEGUN, ask(11, 9, [7, 7])], "has a gap"),
    "a text that ends elsewhere": (guard(), [BEGUN, ask(12, 10, [7])], "has a gap"),
    "a plugin that is not to be asked": (guard(shut=(True,)), [BEGUN, ask(10)], "not to be asked in this reply"),
    "a part that is shut": (guard(shut=(True, False)), [BEGUN, ask(10, gates=3)], "a part of your plugin"),
    "a part that there is not": (guard(shut=(False, False)), [BEGUN, ask(10, gates=4)], "a part of your plugin"),
    "no part": (guard(shut=(False, False)), [BEGUN, ask(10)], "a part of your plugin"),
    "z where nobody wants it": (guard(), [BEGUN, replace(ask(10), z=f2(1, 64))], "otherwise than the device wants"),
    "no z where it is needed": (guard(head=True), [BEGUN, ask(10)], "otherwise than the device wants"),
    "a reply begun twice": (guard(), [BEGUN, ask(10), BEGUN], "begins a reply that was not asked for"),
    "a reply that nobody wants": (guard(prompted=False), [BEGUN], "begins a reply that was not asked for"),
    "more cached than there is": (guard(), [replace(BEGUN, cached=11)], "more of the text than there is"),
    "more tokens than the reply": (guard(max_tokens=2), [BEGUN, tokens(10, 1, 2, 3)], "more tokens than the 2"),
    "the plugin's, without an ask": (guard(), [BEGUN, tokens(10, 1, by="plugin")], "was not asked about"),
    "a draft's, without an ask": (guard(), [BEGUN, ask(10), tokens(10, 1, 2, by="draft")], "was not asked about"),
    "another quote": (guard(quote=[7, 8]), [BEGUN, tokens(10, 7, 9, by="plugin")], "otherwise than with the quote"),
    "the base's words for a quote": (guard(quote=[7]), [BEGUN, tokens(10, 6)], "otherwise than with the quote"),
    "the plugin's behind its quote": (guard(quote=[7]), [BEGUN, tokens(10, 7, 8, by="plugin")], "was not asked about"),
    "late, without a deadline": (guard(), [BEGUN, ask(10), tokens(10, 1, by="fallback")], "who can't have"),
    "somebody else's": (guard(), [BEGUN, tokens(10, 1, by="me")], "who can't have"),
    "more text than tokens": (guard(), [BEGUN, tokens(10, 1, text="x" * 4000)], "more text than its tokens"),
    "text behind the end": (guard(), [BEGUN, tokens(10), tokens(10)], "behind the end of the reply"),
    "alternatives": (guard(), [BEGUN, replace(tokens(10, 1), top=[[("a", -1.0)] * 2])], "more alternatives"),
    "rows that nobody wants": (guard(), [BEGUN, CONTEXT_ROWS], "rows of the text that this reply did not ask for"),
    "rows again": (guard(rows=True), [BEGUN, rows(0), rows(0)], "must send the rows from 3 on, got row 0"),
    "rows behind the reply": (guard(rows=True), [BEGUN, rows(16, 3)], "more rows than this reply has"),
    "rows of a run that can't be": (guard(rows=True), [BEGUN, rows(0, run=8)], "a text that it gave up"),
    "an account of more": (guard(), [BEGUN, Done(1, "stop", 10, 3, {})], "account of the reply"),
    "an end for no reason": (guard(), [BEGUN, Done(1, "because", 10, 0, {})], "account of the reply"),
    "counts of its own": (guard(), [BEGUN, Done(1, "stop", 10, 0, {"bytes_up": 1})], "counts what a reply does not"),
}


@pytest.mark.parametrize("name", DISHONEST)
def test_a_cloud_that_questions_the_plugin(name: str) -> None:
    made, frames, sentence = DISHONEST[name]
    hear(made, *frames[:-1])
    with pytest.raises(Untrusted, match=sentence):
        hear(made, frames[-1])


def test_a_break_begins_a_run_of_its_own() -> None:
    made = hear(guard(), BEGUN, ask(10), tokens(10, 9, by="plugin"), ask(11, 10, [9], run=1))
    with pytest.raises(Untrusted):
        hear(made, BEGUN)
    made.prompted(TERMS)
    with pytest.raises(ProtocolError, match="must say that the reply has begun"):
        hear(made, ask(12, 11, run=1))
    hear(made, BEGUN, ask(11, 10, [9]), tokens(11, 5, by="plugin"))
    made.prompted(TERMS)
    with pytest.raises(Untrusted, match="reads the prompt otherwise"):
        hear(made, replace(BEGUN, prompt=11))


@pytest.mark.parametrize(("max_tokens", "window", "most"), [(1, 24, 1), (4, 0, 4), (8, 3, 26)])
def test_how_often_a_reply_can_be_asked_at_most(max_tokens: int, window: int, most: int) -> None:
    """By a cloud that asks whenever it may: each answer changes a token, and all asks ahead were for nothing."""
    made, asked = hear(guard(max_tokens, window), BEGUN), 0
    text: list[int] = []
    for run in range(max_tokens):
        first = PROMPT + run
        for at in range(first, min(PROMPT + max_tokens, first + window + 1)):
            start = first if at == first else at - 1
            told = [7] if at > first else []
            if run and at == first:
                start, told = first - 1, text[-1:]
            hear(made, ask(at, start, told, run=run))
            asked += 1
        text.append(run)
        hear(made, tokens(first, run, by="plugin"))
    assert asked == most == sum(min(window + 1, max_tokens - run) for run in range(max_tokens))
