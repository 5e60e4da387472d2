"""What a device may ask for, without a socket or an engine: each refused request and its sentence."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sideplug.cloud import requests
from sideplug.cloud.reading import ExampleWork
from sideplug.cloud.reply import Reply, SessionSpec
from sideplug.cloud.requests import Terms
from sideplug.cloud.store import Base
from sideplug.cloud.tokenizer import Tokenizer
from sideplug.contract.capabilities import (
    CONTEXT,
    MIXTURE,
    TOKENS,
    ContextSettings,
    MixtureSettings,
    TokensSettings,
    want,
)
from sideplug.contract.errors import InputError, ProtocolError, SideplugError, TooLong, WrongBase
from sideplug.contract.frames import (
    ROWS_PER_FRAME,
    Frame,
    GateSpec,
    Open,
    PromptFrame,
    Read,
    Rows,
    SamplingSpec,
    Wanted,
)
from sideplug.contract.gate import Gate
from sideplug.contract.progress import running_hash
from sideplug.contract.sampling import Sampling
from sideplug.contract.tap import ContextSlice, Tap
from sideplug.contract.wire import MAX_PAYLOAD_BYTES
from sideplug.device.reply import quoted


@dataclass(frozen=True)
class Sizes:
    blocks: int = 2
    width: int = 64
    vocab: int = 400
    context: int = 256


SHAPE = Sizes()
LINEAR = Gate("linear", np.ones(64, np.float32))
BASE = Base("tiny", Path("tiny"), "a" * 64)
OPEN = Open("", "l0.1.2-r16-s0-int8", "add", [GateSpec("open")], "test", np.zeros((0, 0), np.float32))
PROMPT = PromptFrame(1, 4, SamplingSpec(), ids=[5, 6, 7])
READ = Read(1, " wrote to her brother", False, text="Anna")
Refused = tuple[dict[str, Any], type[SideplugError], str]


def ignore(frame: Frame) -> None:
    """The `send` of works that nobody runs."""


@pytest.fixture(scope="module")
def opened(tiny: Path) -> Terms:
    return Terms(SessionSpec(Tap((0, 1, 2), 16), (Gate("open"),)), SHAPE, Tokenizer(tiny), "ada", "ada's")


@pytest.fixture(scope="module")
def two_parts(opened: Terms) -> Terms:
    """A session of a plugin with two parts that needs the context."""
    tap = opened.spec.tap
    return replace(opened, spec=SessionSpec(tap, (LINEAR, Gate("shut")), context=ContextSlice(tap, (1,), 8)))


def read_open(**changed: Any) -> SessionSpec:
    return requests.read_open(replace(OPEN, **changed), BASE, SHAPE)


# ── OPEN ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_open() -> None:
    spec = read_open(base=BASE.fingerprint, merge="replace")
    assert (spec.tap, spec.merge) == (Tap((0, 1, 2), 16), "replace")
    assert [gate.kind for gate in spec.gates] == ["open"]
    assert (spec.context, spec.granted, spec.max_pairs) == (None, {}, 0)
    assert read_open(tap="").tap == Tap.spread(SHAPE.blocks, SHAPE.width), "whoever has no plugin"


OPENS: dict[str, Refused] = {
    "another base": (
        {"base": "f" * 64},
        WrongBase,
        f"this plugin was made for the base model {'f' * 12}, but the cloud serves {'a' * 12} (tiny): serve that model",
    ),
    "no tap": ({"tap": "x"}, InputError, "tap"),
    "a tap past the model": ({"tap": "l0.9-r16-s0-int8"}, InputError, "layers must be 0 to 2 for this model, got 9"),
    "no gate": ({"gates": []}, InputError, "a session must have at least one gate"),
    "a gate of no kind": ({"gates": [GateSpec("x")]}, InputError, "a gate must be one of open, shut, linear, got 'x'"),
    "a gate of another width": (
        {"gates": [GateSpec("linear")], "gate": np.zeros((1, 63), np.float32)},
        InputError,
        "1 linear gates must have weights of (1, 64), got (1, 63)",
    ),
    "an open gate with weights": (
        {"gate": np.zeros((1, 64), np.float32)},
        InputError,
        "0 linear gates must have weights of (0, 64), got (1, 64)",
    ),
    "weights of another type": (
        {"gates": [GateSpec("linear")], "gate": np.zeros((1, 64), np.float16)},
        InputError,
        "1 linear gates must have weights of (1, 64)",
    ),
    "a gate that is not finite": (
        {"gates": [GateSpec("linear", bias=float("nan"))], "gate": np.zeros((1, 64), np.float32)},
        InputError,
        "a gate's numbers must be finite",
    ),
    "no merge": ({"merge": "x"}, InputError, "merge must be add or replace, got 'x'"),
    "a capability that is needed and not here": (
        {"capabilities": {"flight": Wanted(want(MixtureSettings()).settings, required=True)}},
        InputError,
        "this cloud does not have 'flight', which the session needs: use a newer cloud",
    ),
    "malformed settings": (
        {"capabilities": {"context": want(MixtureSettings(3))}},
        ProtocolError,
        "context is malformed",
    ),
    "a context of a layer that is not tapped": (
        {"tap": "l0.2-r16-s0-int8", "capabilities": {"context": want(ContextSettings([1], 8))}},
        InputError,
        "a context's layers must be among the tap's [0, 2]",
    ),
    "a context wider than its tap": (
        {"capabilities": {"context": want(ContextSettings([1], 17))}},
        InputError,
        "a context's rank must be 1 to 16, got 17",
    ),
}


@pytest.mark.parametrize("refused", OPENS.values(), ids=OPENS.keys())
def test_an_open_is_refused(refused: Refused) -> None:
    changed, error, sentence = refused
    with pytest.raises(error, match=re.escape(sentence)) as caught:
        read_open(**changed)
    assert type(caught.value) is error


def test_an_open_with_capabilities_and_a_gate_for_each_part() -> None:
    wanted = {
        "context": want(ContextSettings([0, 2], 8)),
        "mixture": want(MixtureSettings(4)),
        "flight": Wanted(want(MixtureSettings()).settings, required=False),  # left out: nobody offers it
    }
    gates = [GateSpec("shut"), GateSpec("linear", 0.5, 0.25, 0.75), GateSpec("linear")]
    weights = np.arange(128, dtype=np.float32).reshape(2, 64)
    spec = read_open(capabilities=wanted, gates=gates, gate=weights)
    assert spec.context == ContextSlice(spec.tap, (0, 2), 8)
    assert set(spec.granted) == {CONTEXT.name, MIXTURE.name}
    assert spec.max_pairs == 4
    assert [gate.kind for gate in spec.gates] == ["shut", "linear", "linear"]
    assert (spec.gates[1].bias, spec.gates[1].threshold, spec.gates[1].memory) == (0.5, 0.25, 0.75)
    np.testing.assert_array_equal([gate.weight_D for gate in spec.gates[1:]], weights)


# ── PROMPT ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_prompt(opened: Terms, **changed: Any) -> Reply:
    return requests.read_prompt(replace(PROMPT, **changed), opened, ignore)


def test_a_prompt(opened: Terms) -> None:
    sampling = SamplingSpec(temperature=0.5, seed=9)
    reply = read_prompt(opened, window=3, deadline_ms=250, head="device", top=2, sampling=sampling, draft=[8, 9])
    assert (reply.ids, reply.prompt_tokens, reply.turn, reply.max_tokens) == ([5, 6, 7], 3, 1, 4)
    assert (reply.window, reply.deadline_s, reply.head, reply.top) == (3, 0.25, "device", 2)
    assert (reply.sampling, reply.context) == (Sampling(0.5, seed=9), 256)
    assert (reply.user, reply.scope, reply.spec, reply.stats) == ("ada", "ada's", opened.spec, opened.stats)
    assert reply.draft == {3: 8, 4: 9}
    plain = read_prompt(opened)
    assert (plain.window, plain.deadline_s, plain.head, plain.top, plain.done) == (0, 0.0, "cloud", 0, [])
    assert (plain.draft, plain.gates, plain.rows) == ({}, opened.spec.gates, None)
    words = read_prompt(opened, ids=None, text="Anna wrote")
    assert words.ids == opened.tokenizer.ids("Anna wrote", special=True)


def test_a_prompt_that_goes_on(opened: Terms) -> None:
    done = [8, 9]
    whole = running_hash(done, running_hash([5, 6, 7]))
    reply = read_prompt(opened, done=done, hash=whole)
    assert (reply.ids, reply.prompt_tokens, reply.settled, reply.done) == ([5, 6, 7, 8, 9], 3, 5, done)


STOP = -1  # in these quotes: the token that ends a turn


@pytest.mark.parametrize(
    ("quote", "max_tokens", "done", "ids", "end"),
    [
        ([8, 9, STOP, 10], 4, [], [5, 6, 7, 8, 9], "stop"),
        ([8, 9, 10], 4, [], [5, 6, 7, 8, 9, 10], ""),
        ([8, 9, 10, 11], 2, [], [5, 6, 7, 8, 9], "length"),
        ([8, 9, STOP], 4, [8], [5, 6, 7, 8, 9], "stop"),
        ([8], 4, [8, 9], [5, 6, 7, 8, 9], ""),
    ],
)
def test_a_prompt_with_a_quote(
    opened: Terms, quote: list[int], max_tokens: int, done: list[int], ids: list[int], end: str
) -> None:
    """The reply begins with it, as far as it may go; what was done of it before a break is not said twice."""
    stop = min(opened.tokenizer.stop_ids)
    quote = [stop if token == STOP else token for token in quote]
    more = {"done": done, "hash": running_hash(done, running_hash([5, 6, 7]))} if done else {}
    reply = read_prompt(opened, extensions=quoted(quote), max_tokens=max_tokens, **more)
    assert (reply.ids, reply.end, reply.settled) == (ids, end, 3 + len(done))
    assert {part.by for part in reply.settle()} <= {"plugin"}


def test_a_prompt_opens_and_shuts_the_gates_of_parts(two_parts: Terms) -> None:
    spec = two_parts.spec
    assert read_prompt(two_parts).gates == spec.gates
    reply = read_prompt(two_parts, gates=["", "open"])
    assert (reply.gates[0], reply.gates[1].kind) == (spec.gates[0], "open")
    assert [gate.kind for gate in read_prompt(two_parts, gates=["shut", ""]).gates] == ["shut", "shut"]


def test_a_prompt_that_asks_for_the_context(two_parts: Terms) -> None:
    assert read_prompt(two_parts).rows is None, "its parts do not need it for this reply"
    for have in (0, 3):
        rows = read_prompt(two_parts, context=have).rows
        assert rows is not None
        assert (rows.start, rows.context) == (have, two_parts.spec.context)
    done = {"done": [8], "hash": running_hash([8], running_hash([5, 6, 7]))}
    rows = read_prompt(two_parts, context=4, **done).rows
    assert rows is not None
    assert rows.start == 4
    with pytest.raises(InputError, match="a device can have at most 4 rows of this text, got 5"):
        read_prompt(two_parts, context=5, **done)
    for gates in (["open"], ["open", "linear"], ["", "", ""]):
        with pytest.raises(InputError, match='gates must be "open", "shut" or "" for each of 2 parts'):
            read_prompt(two_parts, gates=gates)


PROMPTS: dict[str, Refused] = {
    "nothing": ({"ids": []}, InputError, "the prompt is empty: give at least one word"),
    "two prompts": ({"text": "Anna"}, InputError, "a prompt must be one of messages, text or ids, got text and ids"),
    "an id past the vocabulary": ({"ids": [5, 400]}, InputError, "a prompt's ids must be below 400, got 400"),
    "too many tokens": (
        {"ids": [5] * 256},
        TooLong,
        "the prompt is too long: 257 tokens > 256 maximum with its reply; the base model's maximum context length",
    ),
    "too many letters": (
        {"ids": None, "text": "a" * 25_601},
        TooLong,
        "the text is too long: 25,601 characters, and the base model's maximum context length is 256 tokens",
    ),
    "no tokens": ({"max_tokens": 0}, InputError, "max_tokens must be 1 or more, got 0"),
    "a window too wide": ({"window": 33}, InputError, "the speculation window must be 0 to 32 asks, got 33"),
    "a window below none": ({"window": -1}, InputError, "the speculation window must be 0 to 32 asks, got -1"),
    "a draft past the vocabulary": ({"draft": [5, 400]}, InputError, "a draft's ids must be below 400, got 400"),
    "a quote past the vocabulary": ({"extensions": quoted([5, 400])}, InputError, "a quote's ids must be below 400"),
    "a context that was not granted": (
        {"context": 0},
        InputError,
        "a prompt must not ask for context rows: the session did not ask for that capability",
    ),
    "a deadline below none": ({"deadline_ms": -1}, InputError, "an answer's deadline must be 0 (none) or more"),
    "a deadline too far": ({"deadline_ms": (1 << 31) + 1}, InputError, "milliseconds, got 2147483649"),
    "no place for the head": (
        {"head": "x" * 50},
        InputError,
        f"the head must be in the cloud or the device, got '{'x' * 50}'",
    ),
    "too many alternatives": ({"top": 21}, InputError, "0 to 20 alternatives are told of a token, got 21"),
    "too cold": (
        {"sampling": SamplingSpec(temperature=-1)},
        InputError,
        "temperature must be 0, or 0.001 to 10, got -1",
    ),
    "more done than asked": (
        {"done": [5] * 5},
        InputError,
        "what is done of a reply must be at most max_tokens ids below 400, and fit the context (4)",
    ),
    "more done than fits": ({"done": [5] * 300, "max_tokens": 10**9}, InputError, "and fit the context (253)"),
    "done past the vocabulary": ({"done": [400]}, InputError, "ids below 400"),
    "done without its hash": (
        {"done": [5]},
        InputError,
        "reads the prompt otherwise than the one that began the reply",
    ),
    "done with another hash": (
        {"done": [5], "hash": "0" * 16},
        InputError,
        "otherwise than the one that began the reply",
    ),
}


@pytest.mark.parametrize("refused", PROMPTS.values(), ids=PROMPTS.keys())
def test_a_prompt_is_refused(opened: Terms, refused: Refused) -> None:
    changed, error, sentence = refused
    with pytest.raises(error, match=re.escape(sentence)) as caught:
        read_prompt(opened, **changed)
    assert type(caught.value) is error


# ── READ ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_example(opened: Terms, **changed: Any) -> ExampleWork:
    return requests.read_example(replace(READ, **changed), opened, ignore)


def test_an_example(opened: Terms) -> None:
    example = read_example(opened, score=True)
    start, reply = opened.tokenizer.encode_example(requests.Prompt(text="Anna"), READ.reply)
    assert (example.ids, example.prompt_tokens, example.targets.tolist()) == (start + reply, len(start), reply)
    assert (example.number, example.score, example.greedy_tokens, example.max_length) == (
        1,
        True,
        0,
        len(start + reply),
    )
    assert (example.user, example.scope, example.spec) == ("ada", "ada's", opened.spec)
    written = read_example(opened, reply="", greedy_tokens=9)
    assert (written.greedy_tokens, written.max_length) == (9, len(written.ids) + 9)


READS: dict[str, Refused] = {
    "written and given": (
        {"greedy_tokens": 4},
        InputError,
        "the base writes 1 to 512 tokens, and no reply is given then",
    ),
    "written and scored": (
        {"greedy_tokens": 4, "reply": "", "score": True},
        InputError,
        "the base writes 1 to 512 tokens",
    ),
    "too much written": ({"greedy_tokens": 513, "reply": ""}, InputError, "the base writes 1 to 512 tokens"),
    "less than nothing written": ({"greedy_tokens": -1, "reply": ""}, InputError, "the base writes 1 to 512 tokens"),
    "nothing to learn": (
        {"text": "", "reply": ""},
        InputError,
        "the example has nothing to learn: its reply is empty, or its text one token",
    ),
    "too many tokens": (
        {"reply": " x" * 400},
        TooLong,
        "tokens > 256 maximum with its reply; the base model's",
    ),
    "too many written": (
        {"reply": "", "greedy_tokens": 256},
        TooLong,
        "tokens > 256 maximum with its reply; the base model's",
    ),
    "a context that was not granted": (
        {"context": True},
        InputError,
        "an example must not ask for context rows: the session did not ask for that capability",
    ),
    "too many letters": ({"reply": "a" * 25_600}, TooLong, "the text is too long: 25,604 characters"),
}


@pytest.mark.parametrize("refused", READS.values(), ids=READS.keys())
def test_an_example_is_refused(opened: Terms, refused: Refused) -> None:
    changed, error, sentence = refused
    with pytest.raises(error, match=re.escape(sentence)) as caught:
        read_example(opened, **changed)
    assert type(caught.value) is error


def test_tokens_alone(opened: Terms) -> None:
    """The ids of the example, and arrays without rows in the tap's types."""
    asked = replace(READ, tokens=True)
    with pytest.raises(InputError, match="the session did not ask for that capability"):
        requests.read_tokens(asked, opened)
    granted = replace(opened, spec=replace(opened.spec, granted={TOKENS.name: TokensSettings()}))
    frame = requests.read_tokens(asked, granted)
    tap = opened.spec.tap
    assert (frame.number, frame.ids.tolist()) == (READ.number, read_example(opened).targets.tolist())
    assert (frame.codes.shape, frame.scales.shape) == ((0, len(tap.layers), tap.rank), (0, len(tap.layers)))
    assert (frame.z.shape, frame.top.shape, len(frame.lse)) == ((0, opened.shape.width), (0, 16), 0)
    for more in ({"score": True}, {"context": True}, {"greedy_tokens": 3, "reply": ""}):
        with pytest.raises(InputError, match="tokens alone come without"):
            requests.read_tokens(replace(asked, **more), granted)  # type: ignore[arg-type]
    with pytest.raises(TooLong):
        requests.read_tokens(replace(asked, reply="word " * 999), granted)


def test_an_example_that_no_frame_could_hold(opened: Terms) -> None:
    """Of a very wide model: what comes back of each token are 2 bytes for each of its numbers, and some more."""
    wide = Sizes(width=MAX_PAYLOAD_BYTES // 8)
    reply = " wrote to her brother about the mill"
    assert len(opened.tokenizer.ids(reply)) > 3
    with pytest.raises(TooLong, match="with this tap it may have at most 3"):
        read_example(Terms(opened.spec, wide, opened.tokenizer), reply=reply)


# ── ROWS ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_rows() -> None:
    ids = np.array([0, 399, 5], np.int32)
    assert requests.read_rows(Rows(0, ids), SHAPE) is ids


@pytest.mark.parametrize(
    "ids",
    [
        np.zeros(0, np.int32),
        np.zeros(ROWS_PER_FRAME + 1, np.int32),
        np.array([400], np.int32),
        np.array([-1], np.int32),
        np.zeros(1, np.float32),
    ],
    ids=["none", "too many", "past the vocabulary", "below it", "no whole numbers"],
)
def test_rows_are_refused(ids: np.ndarray) -> None:
    with pytest.raises(ProtocolError, match=f"ROWS must ask for 1 to {ROWS_PER_FRAME} ids below 400"):
        requests.read_rows(Rows(0, ids), SHAPE)
