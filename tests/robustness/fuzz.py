"""Frames fuzzed: what the wire's decoder, and a cloud behind a socket, make of bytes and frames that are wrong.

    python bench/fuzz.py                       a minute of decoding in this process, two of sessions with a cloud
    python bench/fuzz.py --quick               5 seconds, and 20

decode: frames of every kind, mutated: bytes, control maps, tensor lists, sizes in the header, most of them with their
checksum made right again, so that they reach the inner layers; cut off, joined. Only ProtocolError or a Frame may come
of it, and that Frame must be one that can be sent and comes back the same.

live: `sideplug serve` runs a tiny model in a process of its own. Each input is a session: frames that are well-formed
but wrong (each field and tensor of each kind with values at its edges, kinds out of order, several at once in one piece
of the stream), first one by one, then at random. The cloud must say why in an ERROR, and nothing of a session may stay;
after each batch an ordinary session must get its text. "internal" is a bug, and so is silence.

It fails (exit code 1, one sentence) where any of this is not so; the sequences are in the results.
Results: bench/results/fuzz.json (with --quick only where --out says).
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame as Written
from websockets.frames import Opcode
from websockets.sync.client import connect

from sideplug.contract import wire
from sideplug.contract.errors import ProtocolError
from sideplug.contract.gate import Gate
from sideplug.contract.progress import running_hash
from sideplug.contract.tap import Tap
from sideplug.contract.text import Prompt
from sideplug.contract.wire import SCHEMA, Frame, Kind
from sideplug.device.link import WebSocketLink
from sideplug.device.runtime import Session
from sideplug.bench.meters import machine
from tiny import CONTEXT, WIDTH, Cloud, a_cloud, a_plugin, make_model

HERE = Path(__file__).parent
TOGETHER = 6  # sessions at once
BATCH = 48  # inputs between two ordinary sessions
SILENCE_S = 20.0  # for the cloud to say something, or to close
VOCAB = 340
PATIENT = {"turn": 1, "ids": [5, 6, 7, 8], "max_tokens": 6, "sampling": {}}
OPEN = {"base": "", "tap": "l0.1.2-r16-s0-int8", "merge": "add", "gate": {"kind": "open"}, "client": "bench/fuzz"}
INTS = [-(1 << 63), -(1 << 31), -1, 0, 1, 2, 33, 255, CONTEXT + 1, (1 << 31) - 1, 1 << 31, 1 << 32, (1 << 63) - 1]
INTS += [1 << 63, (1 << 64) - 1]
FLOATS = [math.nan, math.inf, -math.inf, -0.0, 1e-300, 1e300, 0.5, -1.0]
TEXTS = ["", "\0", "a", "\u00e9\U0001f40d\u202e", "x" * 70_000, "<|im_end|>" * 50, "{{ 7*7 }}", "\ufffd\n\r", "00" * 8]
SECRET = 424242  # part of the ROWS that asks whether a session goes on
Tensors = dict[str, np.ndarray]
say = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731


def anything(rng: random.Random, depth: int = 3) -> Any:
    """A value that msgpack knows, with the edges of each type often."""
    kind = rng.randrange(9 if depth else 6)
    if kind == 0:
        return rng.choice([None, True, False])
    if kind == 1:
        return rng.choice([*INTS, rng.getrandbits(rng.randint(1, 63))])
    if kind == 2:
        return rng.choice(FLOATS)
    if kind == 3:
        return rng.choice(TEXTS[:4] + TEXTS[6:])
    if kind == 4:
        return rng.randbytes(rng.randint(0, 9))
    if kind == 5:
        return msgpack.ExtType(rng.randrange(128), rng.randbytes(rng.choice([0, 0, 1, 4, 8])))
    if kind == 6:
        return {
            rng.choice(["t", "turn", "kind", "seed", "a", ""]): anything(rng, depth - 1)
            for _ in range(rng.randint(0, 4))
        }
    return [anything(rng, depth - 1) for _ in range(rng.choice([0, 1, 1, 2, 3, 9]))]


# --- decode -----------------------------------------------------------------------------------------------------------


def corpus(rng: np.random.Generator) -> list[tuple[Frame, bytes]]:
    """Valid frames of every kind, with all that is optional and without; and their bytes."""
    values: dict[Any, list[Any]] = {
        str: ["", "l0.1.2-r16-s0-int8", "\u00e9" * 40],
        int: [0, 7, 1 << 40],
        float: [0.5, 30.0],
        bool: [True, False],
        list: [[], [1, 2, 300], [{"role": "user", "content": "hi"}]],
        dict: [{}, {"kind": "linear", "bias": 0.5}, {"temperature": 1.0, "seed": 3}],
    }
    dtypes = ["<i1", "<i4", "<f2", "<f4"]
    found = []
    for kind, row in SCHEMA.items():
        for n in range(12):
            optional = n % 2 == 0
            control = {
                name.rstrip("?"): values[types][int(rng.integers(len(values[types])))]  # type: ignore[index]
                for name, types in row.control.items()
                if optional or not name.endswith("?")
            }
            tensors = {
                name.rstrip("?"): rng.integers(-9, 9, rng.integers(0, 4, rank)).astype(rng.choice(dtypes))
                for name, rank in row.tensors.items()
                if optional or not name.endswith("?")
            }
            frame = Frame(kind, control, tensors)
            found.append((frame, wire.encode(frame, n)))
    return found


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Some bytes of it changed, left out, put in, doubled or cut off."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        at = rng.randrange(len(out) + 1)
        how = rng.randrange(6)
        if how == 0 and at < len(out):
            out[at] = rng.randrange(256)
        elif how == 1 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif how == 2:
            del out[at : at + rng.choice([1, 1, 2, 5])]
        elif how == 3:
            out[at:at] = rng.randbytes(rng.choice([1, 1, 2, 8]))
        elif how == 4:
            piece = out[at : at + rng.randint(1, 20)]
            out[at:at] = piece
        else:
            del out[at:]
    return bytes(out)


def rearranged(rng: random.Random, control: Any) -> Any:
    """A control map with one of its values, at any depth, another."""
    if isinstance(control, dict) and control and rng.random() < 0.85:
        control = dict(control)
        name = rng.choice(list(control))
        how = rng.randrange(5)
        if how == 0:
            del control[name]
        elif how == 1:
            control[rng.choice(["x", "t", "turn", "number", name + "?"])] = anything(rng)
        else:
            control[name] = rearranged(rng, control[name])
        return control
    if isinstance(control, list) and control and rng.random() < 0.85:
        control = list(control)
        at = rng.randrange(len(control))
        control[at : at + 1] = [rearranged(rng, control[at])] * rng.choice([0, 1, 1, 2, 10])
        return control
    return anything(rng)


def huge(rng: random.Random) -> bytes:
    """A control map near its limit, of very many very small things."""
    count = rng.choice([1 << 20, wire.MAX_CONTROL_BYTES - 64])
    head = b"\x81\xa3ids\xdd" + count.to_bytes(4, "big")
    return head + rng.choice([b"\x90", b"\x80", b"\x00", b"\xc0", b"\xa0"]) * count


def mutate(rng: random.Random, frame: Frame, data: bytes, others: list[tuple[Frame, bytes]]) -> tuple[str, bytes]:
    """How, and the bytes of a message that perhaps no longer is one."""
    size = int.from_bytes(data[8:12], "little")
    packed, payload = data[wire.HEADER_BYTES :][:size], data[wire.HEADER_BYTES + size :]
    kind = frame.kind if rng.random() < 0.9 else rng.randrange(256)
    how = rng.choices(
        ["bytes", "control bytes", "payload", "control map", "tensors", "random map", "cut", "joined", "sizes", "huge"],
        [6, 20, 6, 30, 20, 8, 3, 3, 4, 0.005],
    )[0]
    if how == "bytes":
        return how, damaged(rng, data)
    if how == "control bytes":
        return how, wire.join(kind, damaged(rng, packed), payload)
    if how == "payload":
        return how, wire.join(kind, packed, damaged(rng, payload))
    if how in ("control map", "tensors"):
        control = msgpack.unpackb(packed)
        if how == "tensors":
            control["t"] = rearranged(rng, control.get("t", [["delta", "i1", [1, 2]]]))
        else:
            control = rearranged(rng, control)
        return how, wire.join(kind, msgpack.packb(control), payload)
    if how == "random map":
        return how, wire.join(kind, msgpack.packb(anything(rng, 4)), payload)
    if how == "cut":
        return how, data[: rng.randrange(len(data))]
    if how == "joined":
        return how, data + rng.choice(others)[1]
    if how == "huge":
        return how, wire.join(Kind.PROMPT, huge(rng))
    sizes = [rng.choice([0, 1, size, len(payload), 1 << 20, (1 << 32) - 1, rng.getrandbits(32)]) for _ in range(2)]
    header = wire.HEADER.pack(wire.MAGIC, wire.VERSION, kind & 255, 0, *sizes)
    return how, header + wire.CHECKSUM.pack(wire._checksum(header, packed, payload)) + packed + payload


def about(error: Exception) -> str:
    """An error's sentence without what is of this input alone."""
    return re.sub(r"""b?'[^']*'|b?"[^"]*"|-?\d+|: .*""", "…", str(error))[:80]


def fuzz_decode(seconds: float, seed: int) -> tuple[dict[str, Any], list[str]]:
    rng = random.Random(seed)
    known = corpus(np.random.default_rng(seed))
    outcomes: Counter[str] = Counter()
    inputs: Counter[str] = Counter()
    sentences: Counter[str] = Counter()
    bugs: list[str] = []
    slowest, count = (0.0, ""), 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        frame, data = rng.choice(known)
        how, message = mutate(rng, frame, data, known)
        count += 1
        inputs[how] += 1
        started = time.perf_counter()
        try:
            got = wire.decode(message)
            outcomes["Frame"] += 1
        except ProtocolError as error:
            outcomes["ProtocolError"] += 1
            sentences[about(error)] += 1
            got = None
        except Exception as error:
            outcomes[type(error).__name__] += 1
            bugs.append(f"{how}: {error!r} of {message[:200].hex()}")
            got = None
        took = time.perf_counter() - started
        slowest = max(slowest, (took, how))
        if got is not None:
            try:
                again = wire.encode(got)
                if wire.encode(wire.decode(again)) != again or "ExtType" in repr(got.control):
                    raise ValueError("it comes back otherwise, or has what no frame may have")
            except Exception as error:
                outcomes["Frame that can't be sent"] += 1
                bugs.append(f"{how}: {error!r} of {message[:200].hex()}")
        if rng.random() < 0.1:
            decoder, at = wire.Decoder(), 0
            try:
                while at < len(message):
                    step = rng.randint(1, max(1, len(message) // 3))
                    decoder.feed(message[at : at + step])
                    at += step
            except ProtocolError:
                pass
            except Exception as error:
                outcomes[f"{type(error).__name__} in pieces"] += 1
                bugs.append(f"{how}, in pieces: {error!r} of {message[:200].hex()}")
    found = {
        "inputs": count,
        "inputs_s": round(count / seconds),
        "by_kind_of_input": dict(inputs),
        "outcomes": dict(outcomes),
        "sentences": dict(sentences.most_common(40)),
        "slowest_ms": {"ms": round(1000 * slowest[0], 1), "input": slowest[1]},
        "bugs": bugs[:50],
    }
    return found, bugs


# --- live -------------------------------------------------------------------------------------------------------------


class Silence(Exception):
    """The cloud neither answers nor closes."""


def short(control: dict[str, Any], tensors: Tensors) -> str:
    shown = {name: repr(value)[:60] for name, value in control.items()}
    shown |= {name: f"{value.dtype}{list(value.shape)} {value.ravel()[:3]!s}" for name, value in tensors.items()}
    return "{" + ", ".join(f"{name}: {value}" for name, value in shown.items()) + "}"


class Raw:
    """A session's end of the wire that sends whatever it is told to; `sent`: what that was."""

    def __init__(self, cloud: Cloud, stack: ExitStack) -> None:
        endpoint, options = cloud.address().endpoint, {"compression": None, "ping_interval": None, "close_timeout": 2}
        self.connection = stack.enter_context(connect(endpoint, max_size=wire.MAX_FRAME_BYTES, **options))  # type: ignore[arg-type]
        self.sent: list[str] = []
        self.errors: list[str] = []
        self.ask: Frame | None = None
        self.asked = False  # is a reply under way, so far as is known?
        self.number = 0

    def message(self, kind: int, control: dict[str, Any], tensors: Tensors | None = None) -> bytes:
        """A frame with its right number and checksum, whatever it says."""
        tensors = tensors or {}
        names = {np.dtype(dtype): name for name, dtype in wire.DTYPES.items()}
        listing = [[name, names[value.dtype], list(value.shape)] for name, value in tensors.items()]
        packed = msgpack.packb({**control, "t": listing} if listing else control)
        self.sent.append(f"{Kind(kind).name if kind in list(Kind) else kind} {short(control, tensors)}")
        self.number += 1
        payload = b"".join(np.ascontiguousarray(value).tobytes() for value in tensors.values())
        return wire.join(kind, packed, payload, self.number - 1)

    def send(self, kind: int, control: dict[str, Any], tensors: Tensors | None = None) -> None:
        self.connection.send(self.message(kind, control, tensors))

    def burst(self, messages: list[bytes]) -> None:
        """Several messages in one piece of the stream."""
        self.sent.append("(the last ones at once)")
        data = b"".join(Written(Opcode.BINARY, message).serialize(mask=True) for message in messages)
        with suppress(OSError):
            self.connection.socket.sendall(data)

    def receive(self) -> Frame:
        """Raises ConnectionClosed, Silence."""
        try:
            message = self.connection.recv(timeout=SILENCE_S)
        except TimeoutError as error:
            raise Silence from error
        assert isinstance(message, bytes)
        frame = wire.decode(message)
        if frame.kind is Kind.ERROR:
            self.errors.append(frame["code"])
        if frame.kind is Kind.ASK:
            self.ask = frame
        return frame

    def open(self, **changes: Any) -> None:
        """OPEN as it must be, but for these."""
        tensors = {"gate": changes.pop("weights", np.zeros(0, np.float32))}
        self.send(Kind.OPEN, {**OPEN, **changes}, tensors)
        self.until(Kind.OPENED)

    def until(self, *kinds: Kind) -> Frame:
        """The next frame of these kinds, or an ERROR."""
        while (frame := self.receive()).kind not in (*kinds, Kind.ERROR):
            pass
        return frame

    def answer(self) -> tuple[dict[str, Any], Tensors]:
        """A good answer to the last ASK."""
        assert self.ask is not None
        ask = self.ask
        control = {"turn": ask["turn"], "run": ask["run"], "at": ask["at"]}
        draft = np.full((1, 2), 5, np.int32)
        if "z" in ask.tensors:
            return control, {"ids": np.array([9], np.int32), "draft": draft}
        return control, {"delta": np.ones((1, WIDTH), np.int8), "scales": np.ones(1, np.float32), "draft": draft}

    def drive(self) -> None:
        """Behave well until the reply is over, or refused."""
        while (frame := self.receive()).kind not in (Kind.DONE, Kind.ERROR):
            if frame.kind is Kind.ASK:
                self.send(Kind.ANSWER, *self.answer())

    def goes_on(self) -> bool:
        """Is the session still of use? Asks for a row of the head."""
        self.send(Kind.ROWS, {"part": SECRET}, {"ids": np.array([0], np.int32)})
        while True:
            frame = self.receive()
            if frame.kind is Kind.HEAD and frame["part"] == SECRET:
                return True
            if frame.kind is Kind.ASK and self.ask is not None:
                self.send(Kind.ANSWER, *self.answer())


Play = Callable[[Raw, random.Random], None]


@dataclass
class Input:
    """`ends`: it may end without an ERROR (it is the WebSocket's, or the device leaves)."""

    name: str
    play: Play
    ends: bool = False


@dataclass
class Outcome:
    name: str
    sent: list[str]
    errors: list[str]
    end: str  # a close code, "goes on", "silence", …
    bug: str = ""


def numbers_of(types: Any) -> list[Any]:
    """Values at the edges, that the schema's type lets through."""
    lists = [[], [None], [1.5], [-1], [1 << 63], [[1]], [True], ["a"], [{}], [5] * 100_000, [math.nan], [b"x"]]
    dicts = [{}, {"kind": None}, {"kind": []}, {"kind": "\0" * 100_000}, {"a": {"b": {}}}, {"": ""}]
    return {int: INTS, str: TEXTS, list: lists, dict: dicts, bool: [True, False], float: FLOATS}[types]


GATES = [
    *[{"kind": "linear", name: value} for name in ("bias", "threshold", "memory") for value in (*FLOATS, 1, 1 << 63)],
    *[{"kind": kind, "memory": 0.9} for kind in ("open", "shut", "x", 5)],
    {"kind": "linear", "bias": "1"},
    {"kind": "linear", "bias": True},
    {"kind": "linear", "bias": [1]},
]
TAPS = [
    "l0-r1-s0-int8",
    "l0.0-r1-s0-int8",
    "l2.1-r1-s0-int8",
    "l999-r16-s0-int8",
    "l0-r0-s0-int8",
    "l0-r65-s0-int8",
    "l0-r99999-s999999999-fp16",
    f"l0-r{WIDTH}-s0-raw",
    "l0-r1-s0-raw",
    "l" + ".".join(map(str, range(300))) + "-r1-s0-int8",
    "l\u0660-r1-s0-int8",
    "l0-r1-s0-int4",
]
SAMPLINGS = [
    {name: value}
    for name in ("temperature", "top_k", "top_p", "repetition_penalty", "seed")
    for value in (*FLOATS, *INTS, 10, 0.001, None, "1", [1], True)
] + [{"x": 1}, {"": 1}, {b"seed": 1}]
MESSAGES = [
    [{}],
    [{"role": "user"}],
    [{"role": "x", "content": "a"}],
    [{"role": ["user"], "content": "a"}],
    [{"role": "user", "content": 5}],
    [{"role": "user", "content": None}],
    [{"role": "user", "content": "a", "x": {}}],
    [{"role": "user", "content": ""}] * 4096,
    [{"role": "user", "content": ""}] * 4097,
    [{"role": "user", "content": "x" * 200_000}],
    [{"role": "assistant", "content": "<|im_start|>system\n"}],
    [{"role": "system", "content": "a"}] * 3,
    ["user"],
    [[]],
]
WEIGHTS = [
    np.full(WIDTH, value, dtype)
    for dtype in ("<f4", "<f2")
    for value in (np.nan, np.inf, -np.inf, 6e4, 3.4e38 if dtype == "<f4" else 1, 0)
] + [np.zeros(n, np.float32) for n in (1, WIDTH - 1, WIDTH + 1, 1 << 20)]
WEIGHTS += [np.full(WIDTH, 127, np.int8), np.full(WIDTH, 1 << 30, np.int32)]


def openings() -> Iterator[Input]:
    def opened(**changes: Any) -> Play:
        def play(raw: Raw, rng: random.Random) -> None:
            raw.open(**changes)
            raw.send(Kind.PROMPT, PATIENT)
            raw.drive()

        return play

    for name, types in SCHEMA[Kind.OPEN].control.items():
        for value in numbers_of(types):
            yield Input(f"OPEN {name}", opened(**{name: value}))
    yield Input("OPEN merge, whose error repeats it", opened(merge="\0" * 1_200_000))
    for gate in GATES:
        for size in (0, WIDTH):
            yield Input("OPEN gate", opened(gate=gate, weights=np.ones(size, np.float32)))
    for tap in TAPS:
        yield Input("OPEN tap", opened(tap=tap))
    for weights in WEIGHTS:
        for kind in ("linear", "open"):
            yield Input("OPEN weights", opened(gate={"kind": kind, "memory": 0.5}, weights=weights))


def prompted(*prompts: dict[str, Any], **opening: Any) -> Play:
    """These prompts one after another, each answered well to its end."""

    def play(raw: Raw, rng: random.Random) -> None:
        raw.open(**opening)
        for prompt in prompts:
            raw.send(Kind.PROMPT, prompt)
            raw.drive()

    return play


def prompts() -> Iterator[Input]:
    for name, types in SCHEMA[Kind.PROMPT].control.items():
        key = name.rstrip("?")
        for value in numbers_of(types):
            yield Input(f"PROMPT {key}", prompted({**PATIENT, key: value}, PATIENT))
            if key in ("text", "messages"):
                rest = {name: v for name, v in PATIENT.items() if name != "ids"}
                yield Input(f"PROMPT {key}", prompted({**rest, key: value}, PATIENT))
    for sampling in SAMPLINGS:
        yield Input("PROMPT sampling", prompted({**PATIENT, "sampling": sampling}, PATIENT))
    rest = {name: value for name, value in PATIENT.items() if name != "ids"}
    yield Input("PROMPT of nothing", prompted(rest, PATIENT))
    for messages in MESSAGES:
        yield Input("PROMPT messages", prompted({**rest, "messages": messages}, PATIENT))
    for ids in ([VOCAB], [VOCAB - 1], [1], [1] * CONTEXT, [1] * (CONTEXT - 1), [1] * (CONTEXT - 2), [0] * 1_000_000):
        yield Input("PROMPT ids", prompted({**PATIENT, "ids": ids}, PATIENT))
        yield Input("PROMPT ids, long", prompted({**PATIENT, "ids": ids, "max_tokens": 1 << 62}, PATIENT))
    for done in ([5], [1], [1, 1, 1], [5] * 6, [5] * 7, [VOCAB - 1], [VOCAB], [5] * 2000):
        for most in (6, 1 << 40):
            right = running_hash([token % VOCAB for token in done], running_hash(PATIENT["ids"]))
            for seal in (right, right.upper(), "", "\0", right[:-1]):
                yield Input(
                    "PROMPT done", prompted({**PATIENT, "max_tokens": most, "done": done, "hash": seal}, PATIENT)
                )
    for gate in ("open", "shut"):
        for more in ({"head": "device"}, {"top": 20}, {"head": "device", "top": 20, "ahead": 32}, {"deadline_ms": 1}):
            yield Input("PROMPT of all kinds", prompted({**PATIENT, **more}, PATIENT, gate={"kind": gate}))


def wrong_tensors(name: str, good: np.ndarray) -> Iterator[np.ndarray]:
    """The same of other dtypes, shapes and values."""
    for dtype in ("<i1", "<i4", "<f2", "<f4"):
        with np.errstate(all="ignore"):
            yield good.astype(dtype)
        values: tuple[Any, ...] = (-128, 127) if dtype == "<i1" else (-(1 << 31), -1, (1 << 31) - 1)
        values = (np.nan, np.inf, -np.inf, 6e4, 1e-7) if dtype[1] == "f" else values
        yield from (np.full(good.shape, value, dtype) for value in values)
    for shape in ([0], [1], [2], [33], [1 << 16]):
        for axis in range(good.ndim):
            yield np.zeros((*good.shape[:axis], *shape, *good.shape[axis + 1 :]), good.dtype)


def answers() -> Iterator[Input]:
    """One good ASK, one bad ANSWER; then good ones."""

    def answered(change: Callable[[dict[str, Any], Tensors], Any], head: str, codec: str, **more: Any) -> Play:
        def play(raw: Raw, rng: random.Random) -> None:
            raw.open(tap=f"l0.1.2-r16-s0-{codec}")
            raw.send(Kind.PROMPT, {**PATIENT, "head": head, **more})
            if raw.until(Kind.ASK).kind is Kind.ERROR:
                return
            control, tensors = raw.answer()
            change(control, tensors)
            raw.send(Kind.ANSWER, control, tensors)
            raw.drive()

        return play

    for key in ("turn", "run"):
        for value in INTS:
            yield Input(f"ANSWER {key}", answered(lambda c, t, k=key, v=value: c.update({k: v}), "cloud", "int8"))
    places = [*numbers_of(list), [4, 4], [5], [4, 5], [3], [4.0], ["4"], [4] * 40, [(1 << 64) - 1]]
    for at in places:
        for more in ({}, {"ahead": 8}, {"deadline_ms": 1}):
            yield Input("ANSWER at", answered(lambda c, t, v=at: c.update(at=v), "cloud", "int8", **more))
    goods: Tensors = {
        "delta": np.ones((1, WIDTH), np.int8),
        "scales": np.ones(1, np.float32),
        "draft": np.full((1, 2), 5, np.int32),
        "ids": np.array([9], np.int32),
    }
    for name, good in goods.items():
        for wrong in wrong_tensors(name, good):
            for head, codec in (("device", "int8"),) if name == "ids" else (("cloud", "int8"), ("cloud", "fp16")):
                yield Input(f"ANSWER {name}", answered(lambda c, t, n=name, v=wrong: t.update({n: v}), head, codec))
        for head in ("cloud", "device"):
            yield Input(f"ANSWER without {name}", answered(lambda c, t, n=name: t.pop(n, None), head, "int8"))
            yield Input(f"ANSWER with {name}", answered(lambda c, t, n=name, v=good: t.update({n: v}), head, "int8"))
    for size in (1e5, 9.9e5, 1.1e6, 3e38):
        value = np.array([size], np.float32)
        yield Input("ANSWER huge", answered(lambda c, t, v=value: t.update(scales=v), "cloud", "int8", ahead=8))
    for token in (-1, 0, 1, VOCAB - 1, VOCAB, 1 << 30):
        ids = np.array([token], np.int32)
        yield Input("ANSWER token", answered(lambda c, t, v=ids: t.update(ids=v), "device", "int8"))
        draft = np.full((1, 4), token, np.int32)
        yield Input("ANSWER draft", answered(lambda c, t, v=draft: t.update(draft=v), "cloud", "int8", ahead=8))
    for count in (0, 2, 40):
        double = {name: np.repeat(value, count, 0) for name, value in goods.items() if name != "ids"}
        more_at = [4 + n for n in range(count)]
        yield Input(
            "ANSWER to several",
            answered(lambda c, t, v=double, a=more_at: (t.update(v), c.update(at=a)), "cloud", "int8", ahead=4),
        )


def readings() -> Iterator[Input]:
    base = {"number": 1, "text": "Anna", "reply": " wrote to her brother", "score": True}
    scored: Tensors = {"delta": np.ones((1, WIDTH), np.int8), "scales": np.ones(1, np.float32)}

    def read(*controls: dict[str, Any], score: Callable[[Frame], tuple[dict[str, Any], Tensors]] | None = None) -> Play:
        def play(raw: Raw, rng: random.Random) -> None:
            raw.open()
            for control in controls:
                raw.send(Kind.READ, control)
                frame = raw.until(Kind.EXAMPLE)
                if frame.kind is Kind.EXAMPLE and score is not None:
                    for _ in range(2):
                        raw.send(Kind.SCORE, *score(frame))
                        raw.until(Kind.SCORED)

        return play

    for name, types in SCHEMA[Kind.READ].control.items():
        key = name.rstrip("?")
        for value in numbers_of(types):
            yield Input(f"READ {key}", read({**base, key: value}, {**base, "number": 2}))
    silent = {"number": 1, "text": "Anna", "reply": "", "score": False}
    for write in (1, 512, 513, -1, 1 << 40):
        yield Input("READ write", read({**silent, "write": write}))
        yield Input("READ write and score", read({**base, "write": write}))
    rest = {name: value for name, value in base.items() if name != "text"}
    for messages in MESSAGES:
        yield Input("READ messages", read({**rest, "messages": messages}, base))
    yield Input("READ much", read({**base, "reply": "a " * 900}, {**base, "reply": "a " * 9000}))
    yield Input("READ twice", read({**base, "score": True}, base))
    for number in INTS:
        yield Input("SCORE number", read(base, score=lambda f, n=number: ({"number": n}, scored)))
    for name, good in scored.items():
        for wrong in wrong_tensors(name, good):
            yield Input(f"SCORE {name}", read(base, score=lambda f, n=name, w=wrong: ({"number": 1}, _rows(f, n, w))))
    for name in scored:
        for value in (np.nan, np.inf, 3e38):
            dtype = np.float32 if name == "scales" else np.float16
            yield Input(
                f"SCORE {name}",
                read(base, score=lambda f, n=name, v=value, d=dtype: ({"number": 1}, _like(f, n, v, d))),
            )
    ids = np.arange(3, dtype=np.int32)
    for wrong in (*wrong_tensors("ids", ids), np.arange(2049, dtype=np.int32), np.full(2048, 1, np.int32)):

        def rows(raw: Raw, rng: random.Random, wrong: np.ndarray = wrong) -> None:
            raw.open()
            raw.send(Kind.ROWS, {"part": rng.choice(INTS)}, {"ids": wrong})
            raw.until(Kind.HEAD)

        yield Input("ROWS ids", rows)


def _rows(example: Frame, name: str, wrong: np.ndarray) -> Tensors:
    return {**_like(example, "", 0, np.float32), name: wrong}


def _like(example: Frame, name: str, value: float, dtype: Any) -> Tensors:
    count = len(example.tensors["ids"])
    good = {"delta": np.ones((count, WIDTH), np.int8), "scales": np.ones(count, np.float32)}
    with np.errstate(all="ignore"):
        return good | ({name: np.full(good[name].shape, value, dtype)} if name else {})


def orders() -> Iterator[Input]:
    """Kinds where they do not belong, and the WebSocket misused."""
    goods: dict[int, tuple[dict[str, Any], Tensors]] = {
        Kind.OPEN: (OPEN, {"gate": np.zeros(0, np.float32)}),
        Kind.PROMPT: (PATIENT, {}),
        Kind.ANSWER: (
            {"turn": 1, "run": 0, "at": [4]},
            {
                "delta": np.zeros((1, WIDTH), np.int8),
                "scales": np.ones(1, np.float32),
                "draft": np.zeros((1, 0), np.int32),
            },
        ),
        Kind.CANCEL: ({"turn": 1}, {}),
        Kind.READ: ({"number": 1, "text": "", "reply": "Anna wrote to her", "score": True}, {}),
        Kind.SCORE: ({"number": 1}, {"delta": np.zeros((3, WIDTH), np.int8), "scales": np.ones(3, np.float32)}),
        Kind.ROWS: ({"part": 0}, {"ids": np.array([1, 2], np.int32)}),
    }
    bad_prompt, bad_read = {**PATIENT, "max_tokens": 0}, {**goods[Kind.READ][0], "write": 600}

    def sequence(kinds: list[int], at_once: bool) -> Play:
        def play(raw: Raw, rng: random.Random) -> None:
            parts = [goods.get(abs(kind), ({"turn": 1}, {})) for kind in kinds]
            parts = [
                (bad_prompt if -kind == Kind.PROMPT else bad_read if -kind == Kind.READ else part[0], part[1])
                for kind, part in zip(kinds, parts, strict=True)
            ]
            messages = [raw.message(abs(kind), *part) for kind, part in zip(kinds, parts, strict=True)]
            if at_once:
                raw.burst(messages)
            else:
                for message in messages:
                    raw.connection.send(message)

        return play

    device = list(goods)
    for kind in range(0, 20):
        yield Input("first frame", sequence([kind], False))
        yield Input("second frame", sequence([Kind.OPEN, kind], False))
    for first in (*device, -Kind.PROMPT, -Kind.READ):
        for second in (*device, -Kind.PROMPT, -Kind.READ):
            for third in (Kind.PROMPT, Kind.CANCEL):
                yield Input("frames at once", sequence([Kind.OPEN, first, second, third], True))

    def leaving(raw: Raw, rng: random.Random) -> None:
        raw.open()
        raw.burst([raw.message(Kind.PROMPT, {**PATIENT, "max_tokens": 500}), raw.message(Kind.CANCEL, {"turn": 1})])
        raw.connection.socket.close()

    def text(raw: Raw, rng: random.Random) -> None:
        raw.sent.append("text")
        raw.connection.send("SP")

    def empty(raw: Raw, rng: random.Random) -> None:
        raw.sent.append("empty message")
        raw.connection.send(b"")

    def too_much(raw: Raw, rng: random.Random) -> None:
        raw.sent.append("17 MiB")
        raw.connection.send(bytes(17 << 20))

    def numbers(raw: Raw, rng: random.Random) -> None:
        raw.open()
        raw.number = rng.choice([0, 2, 1 << 31, (1 << 32) - 1])
        raw.send(Kind.CANCEL, {"turn": 1})

    def pieces(raw: Raw, rng: random.Random) -> None:
        raw.open()
        message = raw.message(Kind.PROMPT, PATIENT)
        raw.connection.send(message[i : i + 7] for i in range(0, len(message), 7))
        raw.drive()

    def pings(raw: Raw, rng: random.Random) -> None:
        raw.open()
        raw.sent.append("2000 pings")
        raw.connection.socket.sendall(Written(Opcode.PING, bytes(125)).serialize(mask=True) * 2000)

    def no_websocket(raw: Raw, rng: random.Random) -> None:
        raw.open()
        raw.sent.append("bytes that are no WebSocket frame")
        raw.connection.socket.sendall(rng.randbytes(300))

    for play in (leaving, text, empty, too_much, numbers, pieces, pings, no_websocket):
        for _ in range(4):
            yield Input(play.__name__.replace("_", " "), play, play in (leaving, too_much, no_websocket))


def at_random(seed: int) -> Iterator[Input]:
    """Sequences of frames that are mostly right, each a little wrong, or not in their order."""
    values = {int: INTS[2:9], str: TEXTS[:4], bool: [True, False], float: FLOATS}
    number = 0
    while True:
        number += 1

        def play(raw: Raw, rng: random.Random, number: int = number) -> None:
            rng = random.Random(f"{seed}/{number}")
            gate = rng.choice(["open", "open", "linear", "shut"])
            weights = np.asarray([rng.gauss(0, 0.2) for _ in range(WIDTH if gate == "linear" else 0)], np.float32)
            raw.open(
                gate={"kind": gate, "memory": rng.choice([0.0, 0.9])},
                weights=weights,
                tap=rng.choice(["", OPEN["tap"]]),
            )
            waiting: list[bytes] = []
            for _ in range(rng.randint(1, 10)):
                kind = next_kind(raw, rng)
                control, tensors = a_frame(raw, kind, rng)
                if rng.random() < 0.3:
                    name = rng.choice(list(control))
                    control[name] = rng.choice(values.get(type(control[name]), [control[name]]) or [control[name]])
                    if isinstance(control[name], (list, dict)):
                        control[name] = rearranged(rng, control[name])
                if tensors and rng.random() < 0.2:
                    name = rng.choice(list(tensors))
                    tensors[name] = rng.choice(list(wrong_tensors(name, tensors[name])))
                raw.asked = raw.asked or kind is Kind.PROMPT
                waiting.append(raw.message(kind, _packable(control), tensors))
                if rng.random() < 0.7:
                    raw.burst(waiting)
                    waiting = []
                with suppress(TimeoutError):
                    for _ in range(rng.choice([0, 1, 1, 2, 5])):
                        message = raw.connection.recv(timeout=0.05)
                        frame = wire.decode(message)  # type: ignore[arg-type]
                        raw.ask = frame if frame.kind is Kind.ASK else raw.ask
                        raw.asked = frame.kind not in (Kind.DONE, Kind.ERROR) and raw.asked
                        raw.errors += [frame["code"]] if frame.kind is Kind.ERROR else []
            raw.burst(waiting)

        yield Input(f"random {seed}/{number}", play)


def next_kind(raw: Raw, rng: random.Random) -> Kind:
    """Mostly one that may come now."""
    if rng.random() < 0.15:
        return rng.choice(list(Kind))
    if raw.asked:
        return rng.choices([Kind.ANSWER, Kind.CANCEL, Kind.READ, Kind.ROWS], [6 if raw.ask else 0, 1, 1, 1])[0]
    return rng.choices([Kind.PROMPT, Kind.READ, Kind.ROWS, Kind.CANCEL], [6, 1, 1, 1])[0]


def _packable(control: Any) -> Any:
    """Without what `wire` refuses at once: those are for the decoder's fuzzing."""
    if isinstance(control, dict):
        return {str(key): _packable(value) for key, value in control.items()}
    if isinstance(control, list):
        return [_packable(value) for value in control]
    return 0 if isinstance(control, msgpack.ExtType) else control


def a_frame(raw: Raw, kind: Kind, rng: random.Random) -> tuple[dict[str, Any], Tensors]:
    """A good one, so far as that can be known."""
    if kind is Kind.PROMPT:
        more = {"head": rng.choice(["cloud", "device"]), "ahead": rng.choice([0, 4, 32]), "top": rng.choice([0, 5])}
        more |= {"deadline_ms": rng.choice([0, 0, 1, 50])}
        return {**PATIENT, "turn": rng.randint(1, 3), "max_tokens": rng.choice([1, 6, 40]), **more}, {}
    if kind is Kind.ANSWER and raw.ask is not None:
        return raw.answer()
    corrections: Tensors = {"delta": np.ones((1, WIDTH), np.int8), "scales": np.ones(1, np.float32)}
    if kind is Kind.ANSWER:
        return {"turn": 1, "run": 0, "at": [4]}, {**corrections, "draft": np.zeros((1, 0), np.int32)}
    if kind is Kind.READ:
        read = {
            "number": rng.randint(1, 3),
            "text": "",
            "reply": "Anna wrote to her brother",
            "score": rng.random() < 0.5,
        }
        return read, {}
    if kind is Kind.SCORE:
        return {"number": rng.randint(1, 3)}, corrections
    if kind is Kind.ROWS:
        return {"part": 1}, {"ids": np.array([1, 2, 3], np.int32)}
    if kind is Kind.OPEN:
        return dict(OPEN), {"gate": np.zeros(0, np.float32)}
    return {"turn": rng.randint(1, 3)}, {}


def play(cloud: Cloud, case: Input, seed: int) -> Outcome:
    """One session, to its end."""
    with ExitStack() as stack:
        raw = Raw(cloud, stack)
        try:
            case.play(raw, random.Random(f"{seed}/{case.name}"))
            end = "goes on" if raw.goes_on() else ""
        except Silence:
            end = "silence"
        except (ConnectionClosed, OSError) as error:
            closed: Exception = error
            try:
                while True:  # what it said last
                    raw.receive()
            except (ConnectionClosed, Silence, OSError) as last:
                closed = last
            code = closed.rcvd.code if isinstance(closed, ConnectionClosed) and closed.rcvd else None
            end = f"closed {code}" if code else "closed without a word"
        except ProtocolError as error:
            end = f"the cloud sent what it must not: {error}"
    bug = ""
    if "internal" in raw.errors or end == "closed 1011":
        bug = "internal"
    elif end == "silence" or end.startswith("the cloud"):
        bug = end
    elif end.startswith("closed") and not raw.errors and not case.ends:
        bug = f"{end}, and no ERROR said why"
    return Outcome(case.name, raw.sent, raw.errors, end, bug)


@dataclass
class Pulse(threading.Thread):
    """Asks /health again and again: how long others wait while this goes on."""

    cloud: Cloud
    name_of: Callable[[], list[str]]
    slow: list[tuple[float, list[str]]] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    def run(self) -> None:
        while not self.stopped.wait(0.1):
            started = time.monotonic()
            with suppress(OSError):
                self.cloud.metrics()
            self.slow.append((time.monotonic() - started, self.name_of()))
            self.slow = sorted(self.slow, key=lambda one: -one[0])[:5]

    __hash__ = threading.Thread.__hash__


def fuzz_live(seconds: float, seed: int) -> tuple[dict[str, Any], list[str]]:
    systematic = [*openings(), *prompts(), *answers(), *readings(), *orders()]
    random.Random(seed).shuffle(systematic)  # so that a short run has some of all
    say(f"{len(systematic)} sessions one by one, then at random")
    supply = iter([*systematic])
    more = at_random(seed)
    outcomes: Counter[str] = Counter()
    codes: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    bugs: list[dict[str, Any]] = []
    failures: list[str] = []
    running: dict[int, str] = {}
    count = systematic_done = 0
    with (
        tempfile.TemporaryDirectory(prefix="sideplug-fuzz-") as scratch,
        a_cloud(make_model(Path(scratch) / "tiny"), "--kv-memory", "0.01", "--drain-seconds", "5") as cloud,
        ThreadPoolExecutor(TOGETHER) as pool,
    ):
        plugin = a_plugin(cloud.fingerprint, 0, "linear")
        expected = ordinary(cloud, plugin)
        start = {"rss_mb": _rss(cloud), "file_descriptors": cloud.process.num_fds()}

        def one(case: Input) -> Outcome:
            running[threading.get_ident()] = case.name
            return play(cloud, case, seed)

        pulse = Pulse(cloud, lambda: list(running.values()))
        pulse.start()
        stuck = 0
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            batch = [case for case, _ in zip(supply, range(BATCH), strict=False)]
            systematic_done += len(batch)
            batch += [next(more) for _ in range(BATCH - len(batch))]
            found = list(pool.map(one, batch))
            running.clear()
            count += len(found)
            for outcome in found:
                outcomes[f"{outcome.name.split(' ')[0]}: {outcome.errors[-1] if outcome.errors else outcome.end}"] += 1
                codes.update(outcome.errors or ["none"])
                ends[outcome.end] += 1
                if outcome.bug:
                    bugs.append({"bug": outcome.bug, **vars(outcome)})
                    say(f"BUG: {outcome.bug}: {outcome.name}: {outcome.sent}")
            if not cloud.process.is_running() or cloud.process.status() == "zombie":
                failures.append(f"the cloud died: {cloud.complaints[-1:]}")
                break
            try:
                if ordinary(cloud, plugin) != expected:
                    failures.append(f"an ordinary session got another text after {sorted({c.name for c in batch})}")
            except Exception as error:
                failures.append(f"an ordinary session failed ({error}) after {sorted({c.name for c in batch})}")
                break
            names = ["sideplug_sessions", "sideplug_working", "sideplug_waiting"]
            left = cloud.settled(10, *names)
            if (now := int(sum(left[name] for name in names))) > stuck:
                stuck = now
                which = {name: left[name] for name in names}
                bugs.append({"bug": f"something stays: {which}", "batch": [(o.name, o.sent) for o in found]})
                say(f"BUG: something stays: {which}")
        pulse.stopped.set()
        pulse.join()
        complaints = cloud.complaints
        after = {"rss_mb": _rss(cloud), "file_descriptors": cloud.process.num_fds()} if not failures else {}
    if complaints:
        failures.append(f"the cloud's log has faults: {complaints[:3]}")
    found_all = {
        "inputs": count,
        "one_by_one": systematic_done,
        "of": len(systematic),
        "error_codes": dict(codes),
        "ends": dict(ends),
        "outcomes": dict(sorted(outcomes.items())),
        "start": start,
        "end": after,
        "others_waited_s_at_most": [{"s": round(s, 3), "while": names} for s, names in pulse.slow],
        "bugs": bugs[:50],
        "complaints": complaints[:20],
    }
    return found_all, failures + [f"{bug['bug']} ({bug.get('name', 'a batch')})" for bug in bugs]


def _rss(cloud: Cloud) -> float:
    return round(cloud.process.memory_info().rss / 2**20, 1)


def ordinary(cloud: Cloud, plugin: Any) -> str:
    """What a session gets that does nothing wrong, with a plugin and without."""
    texts = []
    for who, gate in ((plugin, None), (None, Gate("shut"))):
        session = Session.open(WebSocketLink.open(cloud.address()), who, Tap.parse(OPEN["tap"]), gate)
        texts.append("".join(piece.text for piece in session.generate(Prompt.user("Is it far?"), 24)))
        session.link.close()
    return "\n".join(texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="of decoding")
    parser.add_argument("--live-seconds", type=float, default=120, help="of sessions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="5 seconds of decoding, 20 of sessions")
    parser.add_argument("--out", type=Path, help="the results' file")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.live_seconds = 5, 20
    out = options.out or (None if options.quick else HERE / "results" / "fuzz.json")
    decoded, bugs = fuzz_decode(options.seconds, options.seed)
    say(f"decode: {decoded['inputs']:,} inputs, {decoded['outcomes']}")
    live, failures = fuzz_live(options.live_seconds, options.seed)
    found = {"machine": machine(), "seed": options.seed, "decode": decoded, "live": live}
    text = json.dumps(found, indent=2, default=str) + "\n"
    if out:
        out.write_text(text)
    else:
        print(text)
    failures = [f"decode: {bug}" for bug in bugs] + failures
    if failures:
        print(f"{len(failures)} faults, the first: {failures[0][:400]}")
        sys.exit(1)
    print(
        f"{decoded['inputs']:,} inputs decoded and {live['inputs']:,} sessions played: none crashed, hung, leaked or "
        f"changed another's text; errors {live['error_codes']}"
    )


if __name__ == "__main__":
    main()
