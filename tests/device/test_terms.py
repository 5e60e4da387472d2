"""What a cloud sends is held against what the session agreed on: every array, every id, before it is used."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from sideplug.contract.capabilities import CONTEXT, ContextSettings, want
from sideplug.contract.errors import InputError, ProtocolError, Untrusted
from sideplug.contract.frames import (
    Ask,
    Begun,
    Context,
    Done,
    Example,
    Frame,
    Head,
    ModelInfo,
    Opened,
    Scored,
    SessionLimits,
    Tokens,
)
from sideplug.contract.tap import Tap
from sideplug.device.responders import Opening
from sideplug.device.terms import Terms

MODEL = ModelInfo("tiny", "f" * 64, blocks=2, width=64, vocab=300, context=128, chat=True)
TAP = Tap((0, 1, 2), 16)
WANTED = {CONTEXT.name: want(ContextSettings([0, 2], 4))}
OPENED = Opened("s", MODEL, SessionLimits(4, 1 << 20), ["context"], ["context"])
TERMS = Terms.of(OPENED, Opening(tap=TAP, capabilities=WANTED))
RAW = Terms.of(replace(OPENED, granted=[]), Opening(tap=Tap.raw(2, 64)))


def i1(*shape: int) -> np.ndarray:
    return np.ones(shape, np.int8)


def i4(*shape: int) -> np.ndarray:
    return np.ones(shape, np.int32)


def f2(*shape: int, of: float = 1.0) -> np.ndarray:
    return np.full(shape, of, np.float16)


def f4(*shape: int, of: float = 1.0) -> np.ndarray:
    return np.full(shape, of, np.float32)


ASK = Ask(1, 0, [5], 5, [], i1(1, 3, 16), f4(1, 3), z=f2(1, 64))
CONTEXT_ROWS = Context(1, 0, 0, i1(3, 2, 4), f4(3, 2))
EXAMPLE = Example(
    0, i4(2), i1(2, 3, 16), f4(2, 3), f2(2, 64), f4(0), i4(2, 16), f4(2), context=i1(3, 2, 4), context_scales=f4(3, 2)
)
HEAD = Head(0, 1.0, 0.0, f2(5, 64), f4(5))
SCORED = Scored(0, f4(3, of=-1), f4(3, of=-2))
BEGUN = Begun(1, 5, 2, "0" * 16)
TOKENS = Tokens(1, 5, [7, 8], "ab", "cloud")
DONE = Done(1, "stop", 5, 2, {})
GOOD = [ASK, CONTEXT_ROWS, EXAMPLE, HEAD, SCORED, BEGUN, TOKENS, DONE]

WRONG: dict[str, Frame] = {
    "ask: a token beyond the vocabulary": replace(ASK, ids=[300]),
    "ask: about nothing": replace(ASK, at=[]),
    "ask: other codes than positions": replace(ASK, at=[5, 6]),
    "ask: a layer too many": replace(ASK, codes=i1(1, 4, 16), scales=f4(1, 4)),
    "ask: another rank": replace(ASK, codes=i1(1, 3, 8)),
    "ask: another codec": replace(ASK, codes=f2(1, 3, 16), scales=f4(1, 0)),
    "ask: floats as codes": replace(ASK, codes=f4(1, 3, 16)),
    "ask: a scale that is none": replace(ASK, scales=f4(1, 3, of=np.nan)),
    "ask: an infinite scale": replace(ASK, scales=f4(1, 3, of=np.inf)),
    "ask: a negative scale": replace(ASK, scales=f4(1, 3, of=-1)),
    "ask: z of another width": replace(ASK, z=f2(1, 63)),
    "ask: z that is none": replace(ASK, z=f2(1, 64, of=np.nan)),
    "ask: z in float32": replace(ASK, z=f4(1, 64)),
    "ask: gates for others": replace(ASK, gates=[1, 1]),
    "context: no rows": replace(CONTEXT_ROWS, codes=i1(0, 2, 4), scales=f4(0, 2)),
    "context: a bundle too large": replace(CONTEXT_ROWS, codes=i1(257, 2, 4), scales=f4(257, 2)),
    "context: another slice": replace(CONTEXT_ROWS, codes=i1(3, 1, 1), scales=f4(3, 1)),
    "example: no tokens": replace(EXAMPLE, ids=i4(0)),
    "example: ids of another type": replace(EXAMPLE, ids=i1(2)),
    "example: a negative id": replace(EXAMPLE, ids=-i4(2)),
    "example: an id beyond the vocabulary": replace(EXAMPLE, ids=i4(2) * 300),
    "example: more tokens than the context": replace(
        EXAMPLE, ids=i4(129), codes=i1(129, 3, 16), scales=f4(129, 3), z=f2(129, 64), top=i4(129, 16), lse=f4(129)
    ),
    "example: fewer codes than tokens": replace(EXAMPLE, codes=i1(1, 3, 16), scales=f4(1, 3)),
    "example: another width": replace(EXAMPLE, z=f2(2, 32)),
    "example: z in int8": replace(EXAMPLE, z=i1(2, 64), z_scales=f4(2)),
    "example: z that is infinite": replace(EXAMPLE, z=f2(2, 64, of=np.inf)),
    "example: fewer best tokens": replace(EXAMPLE, top=i4(2, 15)),
    "example: a best token that is none": replace(EXAMPLE, top=i4(2, 16) * 9999),
    "example: no log-sum-exp": replace(EXAMPLE, lse=f4(1)),
    "example: a log-sum-exp that is none": replace(EXAMPLE, lse=f4(2, of=np.nan)),
    "example: rows without scales": replace(EXAMPLE, context_scales=None),
    "example: more rows than the context": replace(EXAMPLE, context=i1(128, 2, 4), context_scales=f4(128, 2)),
    "head: another width": replace(HEAD, rows=f2(5, 65)),
    "head: float32": replace(HEAD, rows=f4(5, 64)),
    "head: more biases": replace(HEAD, bias=f4(6)),
    "head: numbers that are none": replace(HEAD, rows=f2(5, 64, of=np.nan)),
    "head: an infinite bias": replace(HEAD, bias=f4(5, of=np.inf)),
    "scored: not as many": replace(SCORED, plugin=f4(2, of=-1)),
    "scored: another type": replace(SCORED, base=np.full(3, -1.0, np.float64)),
    "scored: more than certain": replace(SCORED, plugin=f4(3, of=0.5)),
    "scored: no numbers": replace(SCORED, base=f4(3, of=np.nan)),
    "begun: longer than the context": replace(BEGUN, prompt=129),
    "begun: no prompt": replace(BEGUN, prompt=0, cached=0),
    "begun: more cached than can be": replace(BEGUN, cached=129),
    "begun: no hash": replace(BEGUN, hash=""),
    "tokens: beyond the vocabulary": replace(TOKENS, ids=[300, 1]),
    "tokens: alternatives of some": replace(TOKENS, top=[[("a", -0.5)]]),
    "done: longer than the context": replace(DONE, reply=129),
}


@pytest.mark.parametrize("frame", GOOD, ids=lambda frame: frame.kind.name)
def test_what_was_agreed_on_passes(frame: Frame) -> None:
    TERMS.check(frame)


@pytest.mark.parametrize("name", WRONG)
def test_anything_else_is_refused(name: str) -> None:
    with pytest.raises(Untrusted, match="does not keep to what this session agreed on: it sent something else for"):
        TERMS.check(WRONG[name])


def test_other_codecs_and_no_context() -> None:
    raw = replace(ASK, codes=f2(1, 3, 64), scales=f4(1, 0))
    RAW.check(raw)
    for bad in (replace(raw, codes=f2(1, 3, 64, of=np.nan)), ASK):
        with pytest.raises(Untrusted):
            RAW.check(bad)
    with pytest.raises(Untrusted, match="rows of the text that this session did not ask for"):
        RAW.check(CONTEXT_ROWS)


def test_what_is_granted_and_extended() -> None:
    with pytest.raises(Untrusted, match="grants what this session did not ask for"):
        Terms.of(replace(OPENED, granted=["context", "mixture"]), Opening(tap=TAP, capabilities=WANTED))
    with pytest.raises(InputError, match="layers must be 0 to 1"):
        Terms.of(replace(OPENED, model=msgspec.structs.replace(MODEL, blocks=1)), Opening(tap=TAP, capabilities=WANTED))
    extended: Any = replace(BEGUN, extensions={"context": msgspec.Raw(b"\x80")})
    with pytest.raises(ProtocolError, match="must not carry the extension"):
        TERMS.check(extended)
