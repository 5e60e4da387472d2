"""Sessions one by one, each with a single field or tensor at its edge: OPEN, PROMPT, ANSWER, READ, SCORE and ROWS.

Test: pytest -m slow tests/robustness
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from sideplug.contract.progress import running_hash
from sideplug.contract.wire import SCHEMA, Frame, Kind
from tests.robustness.raw_session import PATIENT, Input, Play, Raw, Tensors
from tests.robustness.tiny_cloud import CONTEXT, WIDTH
from tests.robustness.values import FLOATS, INTS, TEXTS, VOCAB


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
    """OPEN, with each of its fields, the gate, the tap and the weights at their edges."""

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
    """PROMPT, with each of its fields, samplings, messages, ids and tokens that are done already."""
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
    """READ, SCORE and ROWS, with each of their fields and tensors at their edges."""
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
