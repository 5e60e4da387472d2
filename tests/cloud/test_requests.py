"""What a device may ask for, without a socket or an engine: each refused request and its sentence."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sideplug.cloud import requests
from sideplug.cloud.reading import ExampleWork
from sideplug.cloud.reply import Reply, SessionSpec
from sideplug.cloud.requests import Opened
from sideplug.cloud.store import Base
from sideplug.cloud.tokenizer import Tokenizer
from sideplug.contract.errors import InputError, ProtocolError, SideplugError, TooLong, WrongBase
from sideplug.contract.gate import Gate
from sideplug.contract.progress import running_hash
from sideplug.contract.sampling import Sampling
from sideplug.contract.tap import Tap
from sideplug.contract.wire import MAX_PAYLOAD_BYTES, ROWS_PER_FRAME, Frame, Kind


@dataclass(frozen=True)
class Sizes:
    blocks: int = 2
    width: int = 64
    vocab: int = 400
    context: int = 256


SHAPE = Sizes()
BASE = Base("tiny", Path("tiny"), "a" * 64)
OPEN = {"base": "", "tap": "l0.1.2-r16-s0-int8", "merge": "add", "gate": {"kind": "open"}, "client": "test"}
PROMPT = {"turn": 1, "ids": [5, 6, 7], "max_tokens": 4, "sampling": {}}
READ = {"number": 1, "text": "Anna", "reply": " wrote to her brother", "score": False}
Refused = tuple[dict[str, Any], type[SideplugError], str]


def ignore(frame: Frame) -> None:
    """The `send` of works that nobody runs."""


@pytest.fixture(scope="module")
def opened(tiny: Path) -> Opened:
    return Opened(SessionSpec(Tap((0, 1, 2), 16), Gate("open")), SHAPE, Tokenizer(tiny), "ada", "ada's")


def read_open(weights: int = 0, **changed: Any) -> SessionSpec:
    frame = Frame(Kind.OPEN, {**OPEN, **changed}, {"gate": np.zeros(weights, np.float32)})
    return requests.read_open(frame, BASE, SHAPE)


def without(control: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in control.items() if name not in names}


# ── OPEN ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_open() -> None:
    spec = read_open(base=BASE.fingerprint, merge="replace")
    assert (spec.tap, spec.gate.kind, spec.merge) == (Tap((0, 1, 2), 16), "open", "replace")
    assert read_open(tap="").tap == Tap.spread(SHAPE.blocks, SHAPE.width), "whoever has no plugin"


OPENS: dict[str, Refused] = {
    "another base": (
        {"base": "f" * 64},
        WrongBase,
        f"this plugin was made for the base model {'f' * 12}, but the cloud serves {'a' * 12} (tiny): serve that model",
    ),
    "no tap": ({"tap": "x"}, InputError, "tap"),
    "a tap past the model": ({"tap": "l0.9-r16-s0-int8"}, InputError, "layers must be 0 to 2 for this model, got 9"),
    "a gate of no kind": ({"gate": {"kind": "x"}}, InputError, "a gate must be one of open, shut, linear, got 'x'"),
    "a gate of another width": (
        {"gate": {"kind": "linear"}, "weights": 63},
        InputError,
        "a linear gate has 63 weights, z has 64 numbers",
    ),
    "an open gate with weights": ({"weights": 64}, InputError, "a open gate has 64 weights"),
    "a gate that is not finite": (
        {"gate": {"kind": "linear", "bias": float("nan")}, "weights": 64},
        InputError,
        "a gate's numbers must be finite",
    ),
    "no merge": ({"merge": "x"}, InputError, "merge must be add or replace, got 'x'"),
}


@pytest.mark.parametrize("refused", OPENS.values(), ids=OPENS.keys())
def test_an_open_is_refused(refused: Refused) -> None:
    changed, error, sentence = refused
    with pytest.raises(error, match=re.escape(sentence)) as caught:
        read_open(**changed)
    assert type(caught.value) is error


def test_a_session_begins_with_open() -> None:
    with pytest.raises(ProtocolError, match="a session must begin with OPEN, got PROMPT"):
        requests.read_open(Frame(Kind.PROMPT, PROMPT), BASE, SHAPE)


# ── PROMPT ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_prompt(opened: Opened, control: dict[str, Any]) -> Reply:
    return requests.read_prompt(Frame(Kind.PROMPT, control), opened, ignore)


def test_a_prompt(opened: Opened) -> None:
    more = {"ahead": 3, "deadline_ms": 250, "head": "device", "top": 2, "sampling": {"temperature": 0.5, "seed": 9}}
    reply = read_prompt(opened, {**PROMPT, **more})
    assert (reply.ids, reply.prompt_tokens, reply.turn, reply.max_tokens) == ([5, 6, 7], 3, 1, 4)
    assert (reply.window, reply.deadline_s, reply.head, reply.top) == (3, 0.25, "device", 2)
    assert (reply.sampling, reply.context) == (Sampling(0.5, seed=9), 256)
    assert (reply.user, reply.scope, reply.spec, reply.stats) == ("ada", "ada's", opened.spec, opened.stats)
    plain = read_prompt(opened, PROMPT)
    assert (plain.window, plain.deadline_s, plain.head, plain.top, plain.done) == (0, 0.0, "cloud", 0, [])
    words = read_prompt(opened, {**without(PROMPT, "ids"), "text": "Anna wrote"})
    assert words.ids == opened.tokenizer.ids("Anna wrote", special=True)


def test_a_prompt_that_goes_on(opened: Opened) -> None:
    done = [8, 9]
    whole = running_hash(done, running_hash([5, 6, 7]))
    reply = read_prompt(opened, {**PROMPT, "done": done, "hash": whole})
    assert (reply.ids, reply.prompt_tokens, reply.settled, reply.done) == ([5, 6, 7, 8, 9], 3, 5, done)


PROMPTS: dict[str, Refused] = {
    "nothing": ({"ids": []}, InputError, "the prompt is empty: give at least one word"),
    "two prompts": ({"text": "Anna"}, InputError, "a prompt must be one of messages, text or ids, got text and ids"),
    "an id that is none": ({"ids": [5, -1]}, InputError, "a prompt's ids must be whole numbers, 0 or more"),
    "an id past the vocabulary": ({"ids": [5, 400]}, InputError, "a prompt's ids must be below 400, got 400"),
    "too many tokens": (
        {"ids": [5] * 256},
        TooLong,
        "the prompt has 257 tokens with its reply, the base model takes at most 256",
    ),
    "too many letters": (
        {"ids": None, "text": "a" * 25_601},
        TooLong,
        "the text has 25,601 characters, the base model takes at most 256 tokens",
    ),
    "no tokens": ({"max_tokens": 0}, InputError, "max_tokens must be 1 or more, got 0"),
    "too far ahead": ({"ahead": 33}, InputError, "the cloud runs 0 to 32 asks ahead, got 33"),
    "ahead of nothing": ({"ahead": -1}, InputError, "the cloud runs 0 to 32 asks ahead, got -1"),
    "a deadline below none": ({"deadline_ms": -1}, InputError, "an answer's deadline must be 0 (none) or more"),
    "a deadline too far": ({"deadline_ms": (1 << 31) + 1}, InputError, "milliseconds, got 2147483649"),
    "no place for the head": (
        {"head": "x" * 50},
        InputError,
        f"the head must be in the cloud or the device, got '{'x' * 40}'",
    ),
    "too many alternatives": ({"top": 21}, InputError, "0 to 20 alternatives are told of a token, got 21"),
    "no sampling": ({"sampling": {"heat": 1}}, InputError, "sampling must be numbers named temperature, "),
    "too cold": ({"sampling": {"temperature": -1}}, InputError, "temperature must be 0, or 0.001 to 10, got -1"),
    "more done than asked": (
        {"done": [5] * 5},
        InputError,
        "what is done of a reply must be at most max_tokens ids below 400, and fit the context (4)",
    ),
    "more done than fits": ({"done": [5] * 300, "max_tokens": 10**9}, InputError, "and fit the context (253)"),
    "done past the vocabulary": ({"done": [400]}, InputError, "ids below 400"),
    "done that is no number": ({"done": [True]}, InputError, "ids below 400"),
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
def test_a_prompt_is_refused(opened: Opened, refused: Refused) -> None:
    changed, error, sentence = refused
    control = {name: value for name, value in {**PROMPT, **changed}.items() if value is not None}
    with pytest.raises(error, match=re.escape(sentence)) as caught:
        read_prompt(opened, control)
    assert type(caught.value) is error


# ── READ ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_example(opened: Opened, control: dict[str, Any]) -> ExampleWork:
    return requests.read_example(Frame(Kind.READ, control), opened, ignore)


def test_an_example(opened: Opened) -> None:
    example = read_example(opened, {**READ, "score": True})
    start, reply = opened.tokenizer.encode_example(requests.Prompt(text="Anna"), READ["reply"])
    assert (example.ids, example.prompt_tokens, example.targets.tolist()) == (start + reply, len(start), reply)
    assert (example.number, example.score, example.greedy_tokens, example.max_length) == (
        1,
        True,
        0,
        len(start + reply),
    )
    assert (example.user, example.scope, example.spec) == ("ada", "ada's", opened.spec)
    written = read_example(opened, {**READ, "reply": "", "write": 9})
    assert (written.greedy_tokens, written.max_length) == (9, len(written.ids) + 9)


READS: dict[str, Refused] = {
    "written and given": ({"write": 4}, InputError, "the base writes 1 to 512 tokens, and no reply is given then"),
    "written and scored": ({"write": 4, "reply": "", "score": True}, InputError, "the base writes 1 to 512 tokens"),
    "too much written": ({"write": 513, "reply": ""}, InputError, "the base writes 1 to 512 tokens"),
    "less than nothing written": ({"write": -1, "reply": ""}, InputError, "the base writes 1 to 512 tokens"),
    "nothing to learn": (
        {"text": "", "reply": ""},
        InputError,
        "the example has nothing to learn: its reply is empty, or its text one token",
    ),
    "too many tokens": ({"reply": " x" * 400}, TooLong, "tokens with its reply, the base model takes at most 256"),
    "too many written": (
        {"reply": "", "write": 256},
        TooLong,
        "tokens with its reply, the base model takes at most 256",
    ),
    "too many letters": ({"reply": "a" * 25_600}, TooLong, "the text has 25,604 characters"),
}


@pytest.mark.parametrize("refused", READS.values(), ids=READS.keys())
def test_an_example_is_refused(opened: Opened, refused: Refused) -> None:
    changed, error, sentence = refused
    with pytest.raises(error, match=re.escape(sentence)) as caught:
        read_example(opened, {**READ, **changed})
    assert type(caught.value) is error


def test_an_example_that_no_frame_could_hold(opened: Opened) -> None:
    """Of a very wide model: what comes back of each token are 2 bytes for each of its numbers, and some more."""
    wide = Sizes(width=MAX_PAYLOAD_BYTES // 8)
    reply = " wrote to her brother about the mill"
    assert len(opened.tokenizer.ids(reply)) > 3
    with pytest.raises(TooLong, match="with this tap it may have at most 3"):
        read_example(Opened(opened.spec, wide, opened.tokenizer), {**READ, "reply": reply})


# ── ROWS ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_rows() -> None:
    ids = np.array([0, 399, 5], np.int32)
    assert requests.read_rows(Frame(Kind.ROWS, {"part": 0}, {"ids": ids}), SHAPE) is ids


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
        requests.read_rows(Frame(Kind.ROWS, {"part": 0}, {"ids": ids}), SHAPE)
