"""Sessions one by one, each with a single field or tensor at its edge: OPEN, PROMPT, ANSWER, READ, SCORE and ROWS.

The fields are those of the frames' layouts; capabilities, gates of several parts, mixtures, first drafts and context
rows have lists of their own.

Test: pytest -m slow tests/robustness
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from sideplug.contract.frames import Ask, Example, Kind
from sideplug.contract.progress import running_hash
from tests.robustness.generated import Tensors, edges, fields_of
from tests.robustness.raw_session import PATIENT, Input, Play, Raw
from tests.robustness.tiny_cloud import CONTEXT, VOCAB, WIDTH
from tests.robustness.values import FLOATS, INTS

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
    for name in ("temperature", "top_k", "top_p", "repetition_penalty", "seed", "min_p")
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
SEVERAL = [  # the gates of several parts, and how many rows of weights come with them
    ([], 0),
    ([{"kind": "open"}] * 8, 0),
    ([{"kind": "open"}] * 9, 0),
    ([{"kind": "linear"}, {"kind": "open"}, {"kind": "linear", "memory": 0.5}], 2),
    ([{"kind": "linear"}, {"kind": "open"}], 2),
    ([{"kind": "linear"}, {"kind": "linear"}], 1),
    ([{"kind": "open"}, {"kind": "shut"}], 1),
    ([{"kind": "shut"}] * 3, 0),
]
ROWS: dict[str, Any] = {"context": {"settings": {"layers": [0, 2], "rank": 4}, "required": True}}
SAMPLED = {"temperature": 1.0, "repetition_penalty": 1.2}
PROMPTED: list[dict[str, Any]] = [{}, {"window": 8}, {"top": 5}, {"sampling": SAMPLED}]
MIXING: dict[str, Any] = {"mixture": {"settings": {}, "required": True}}
SETTINGS = [  # of the capability "context"
    *[
        {"layers": layers, "rank": 4}
        for layers in ([], [0], [2, 0], [0, 0], [3], [-1], [999], [0] * 257, "0", [1 << 40])
    ],
    *[{"layers": [0], "rank": rank} for rank in (0, 1, 16, 17, 1 << 14, -1, 1.5, None)],
    {},
    {"layers": [0]},
    {"layers": [0], "rank": 4, "x": 1},
    None,
    "a",
    [0],
    "x" * 5000,
]
WANTED = [  # whole maps of capabilities
    {"x": {"settings": None, "required": True}},
    {"x": {"settings": {"a": [1] * 3000}, "required": False}},
    {"\0" * 64: {"settings": {}}},
    {"x" * 65: {"settings": {}}},
    {str(n): {"settings": {}} for n in range(16)},
    {str(n): {"settings": {}} for n in range(17)},
    {"context": {}},
    {"context": {"settings": {"layers": [0], "rank": 4}, "required": 1}},
    {"context": None},
    *[{"mixture": {"settings": {"pairs": pairs}}} for pairs in (0, 1, 64, 65, -1, "1", None, 1 << 62)],
    {**ROWS, **MIXING},
    [],
    None,
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

    for name, what in fields_of(Kind.OPEN).items():
        for value in edges(what):
            yield Input(f"OPEN {name}", opened(**{name: value}))
    yield Input("OPEN merge, whose error repeats it", opened(merge="\0" * 1_200_000))
    for gate in GATES:
        for rows in (0, 1):
            yield Input("OPEN gate", opened(gates=[gate], weights=np.ones((rows, WIDTH), np.float32)))
    for gates, rows in SEVERAL:
        for width in (WIDTH, WIDTH - 1, 0):
            yield Input("OPEN gates", opened(gates=gates, weights=np.ones((rows, width), np.float32)))
    for settings in SETTINGS:
        for must in (True, False):
            wanted = {"context": {"settings": settings, "required": must}}
            yield Input("OPEN capability context", opened(capabilities=wanted))
    for wanted in WANTED:
        yield Input("OPEN capabilities", opened(capabilities=wanted))
    for tap in TAPS:
        yield Input("OPEN tap", opened(tap=tap))
    for weights in WEIGHTS:
        for kind in ("linear", "open"):
            for shaped in (weights, weights[None], weights[None, None], weights[:, None]):
                yield Input("OPEN weights", opened(gates=[{"kind": kind, "memory": 0.5}], weights=shaped))


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
    for key, what in fields_of(Kind.PROMPT).items():
        for value in edges(what):
            yield Input(f"PROMPT {key}", prompted({**PATIENT, key: value}, PATIENT))
            if key in ("text", "messages"):
                rest = {name: other for name, other in PATIENT.items() if name != "ids"}
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
        for more in ({"head": "device"}, {"top": 20}, {"head": "device", "top": 20, "window": 32}, {"deadline_ms": 1}):
            yield Input("PROMPT of all kinds", prompted({**PATIENT, **more}, PATIENT, gates=[{"kind": gate}]))
    for window in (0, 8, 32):
        for draft in ([5], [9] * 512, [9] * 513, [VOCAB], [VOCAB - 1, 0], [1]):
            yield Input("PROMPT draft", prompted({**PATIENT, "draft": draft, "window": window}, PATIENT))
    for gates in ([], [""], ["open"], ["shut"], ["linear"], ["", ""], ["open", "shut"], ["shut", "open"], ["open"] * 9):
        for count in (1, 2):
            opening = {"gates": [{"kind": "open"}] * count}
            yield Input("PROMPT gates", prompted({**PATIENT, "gates": gates}, PATIENT, **opening))
    for rows in (0, 1, 4, 5, 9, -1, 1 << 22, (1 << 22) + 1, None):
        for wanted in ({}, ROWS, {**ROWS, **MIXING}):
            for more in ({}, {"window": 8}, {"head": "device"}, {"done": [9, 9], "hash": "0" * 16}):
                prompt = {**PATIENT, "context": rows, **more}
                yield Input("PROMPT context", prompted(prompt, prompt, PATIENT, capabilities=wanted))


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


Change = Callable[[dict[str, Any], Tensors], Any]  # of a good ANSWER


def answered(change: Change, head: str, codec: str, opening: dict[str, Any] | None = None, **more: Any) -> Play:
    """One ASK, its ANSWER changed; then good ones."""

    def play(raw: Raw, rng: random.Random) -> None:
        raw.open(tap=f"l0.1.2-r16-s0-{codec}", **(opening or {}))
        raw.send(Kind.PROMPT, {**PATIENT, "head": head, **more})
        if not isinstance(raw.until(Kind.ASK), Ask):
            return
        control, tensors = raw.answer()
        change(control, tensors)
        raw.send(Kind.ANSWER, control, tensors)
        raw.drive()

    return play


def answers() -> Iterator[Input]:
    """One good ASK, one bad ANSWER; then good ones."""

    for key in ("turn", "run"):
        for value in INTS:
            yield Input(f"ANSWER {key}", answered(lambda c, t, k=key, v=value: c.update({k: v}), "cloud", "int8"))
    places = [*edges(fields_of(Kind.ANSWER)["at"]), [4, 4], [5], [4, 5], [3], [4.0], ["4"], [4] * 40, [(1 << 64) - 1]]
    for at in places:
        for more in ({}, {"window": 8}, {"deadline_ms": 1}):
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
        yield Input("ANSWER huge", answered(lambda c, t, v=value: t.update(scales=v), "cloud", "int8", window=8))
    for token in (-1, 0, 1, VOCAB - 1, VOCAB, 1 << 30):
        ids = np.array([token], np.int32)
        yield Input("ANSWER token", answered(lambda c, t, v=ids: t.update(ids=v), "device", "int8"))
        draft = np.full((1, 4), token, np.int32)
        yield Input("ANSWER draft", answered(lambda c, t, v=draft: t.update(draft=v), "cloud", "int8", window=8))
    for count in (0, 2, 40):
        double = {name: np.repeat(value, count, 0) for name, value in goods.items() if name != "ids"}
        more_at = [4 + n for n in range(count)]
        yield Input(
            "ANSWER to several",
            answered(lambda c, t, v=double, a=more_at: (t.update(v), c.update(at=a)), "cloud", "int8", window=4),
        )


def mixtures() -> Iterator[Input]:
    """ANSWER with a mixture: weights, ids and shapes at their edges, in sessions with that capability or without."""
    good: Tensors = {
        "mix": np.array([0.5], np.float32),
        "mix_ids": np.array([[9, 11]], np.int32),
        "mix_weights": np.array([[0.25, 0.75]], np.float32),
    }
    allowed = {"capabilities": MIXING}

    def changed(new: Tensors, without: str = "") -> Change:
        def change(control: dict[str, Any], tensors: Tensors) -> None:
            tensors |= new
            tensors.pop(without, None)
            tensors.pop("scales" if without == "delta" else without, None)

        return change

    for opening in (allowed, {}, {**allowed, "merge": "replace"}, {"capabilities": {**ROWS, **MIXING}}):
        for head in ("cloud", "device"):
            for without in ("", "delta", "mix", "mix_ids", "mix_weights"):
                for more in PROMPTED:
                    change = changed(good, without)
                    yield Input(f"ANSWER mixture without {without}", answered(change, head, "int8", opening, **more))
    for name, tensor in good.items():
        for wrong in wrong_tensors(name, tensor):
            yield Input(f"ANSWER {name}", answered(changed({**good, name: wrong}), "cloud", "int8", allowed))
    for weight in (0.0, 1.0, 1.0001, -0.1, 1e-30, 1 - 1e-7):
        value = {"mix": np.array([weight], np.float32)}
        yield Input("ANSWER mixture's weight", answered(changed({**good, **value}), "cloud", "int8", allowed, top=5))
        for delta in ("delta", ""):
            yield Input(
                "ANSWER mixture's weight", answered(changed({**good, **value}, delta), "cloud", "fp16", allowed)
            )
    for ids in ([9, 9], [9, -1], [-1, 9], [-1, -1], [VOCAB, 9], [VOCAB - 1, 0], [-2, 9]):
        for weights in ([0.5, 0.5], [1.0, 0.0], [0.0, 1.0], [0.5, 0.4], [2.0, -1.0]):
            pairs = {"mix_ids": np.array([ids], np.int32), "mix_weights": np.array([weights], np.float32)}
            yield Input("ANSWER mixture's pairs", answered(changed({**good, **pairs}), "cloud", "int8", allowed))
    for count in (0, 1, 64, 65):
        pairs = {
            "mix_ids": np.arange(count, dtype=np.int32)[None],
            "mix_weights": np.full((1, count), 1 / max(1, count), np.float32),
        }
        yield Input("ANSWER mixture of many", answered(changed({**good, **pairs}), "cloud", "int8", allowed))


def readings() -> Iterator[Input]:
    """READ, SCORE and ROWS, with each of their fields and tensors at their edges."""
    base = {"number": 1, "text": "Anna", "reply": " wrote to her brother", "score": True}
    scored: Tensors = {"delta": np.ones((1, WIDTH), np.int8), "scales": np.ones(1, np.float32)}

    def read(
        *controls: dict[str, Any],
        score: Callable[[Example], tuple[dict[str, Any], Tensors]] | None = None,
        wanted: dict[str, Any] | None = None,
    ) -> Play:
        def play(raw: Raw, rng: random.Random) -> None:
            raw.open(capabilities=wanted or {})
            for control in controls:
                raw.send(Kind.READ, control)
                frame = raw.until(Kind.EXAMPLE)
                if isinstance(frame, Example) and score is not None:
                    for _ in range(2):
                        raw.send(Kind.SCORE, *score(frame))
                        raw.until(Kind.SCORED)

        return play

    for key, what in fields_of(Kind.READ).items():
        for value in edges(what):
            for wanted in ({}, ROWS) if key == "context" else ({},):
                yield Input(f"READ {key}", read({**base, key: value}, {**base, "number": 2}, wanted=wanted))
    silent = {"number": 1, "text": "Anna", "reply": "", "score": False}
    for tokens in (1, 512, 513, -1, 1 << 40):
        for rows in (False, True):
            written = {**silent, "greedy_tokens": tokens, "context": rows}
            yield Input("READ greedy_tokens", read(written, wanted=ROWS))
        yield Input("READ greedy_tokens and score", read({**base, "greedy_tokens": tokens}))
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
    mixed: Tensors = {"mix": np.array([0.5], np.float32), "mix_ids": np.array([[9]], np.int32)}
    mixed["mix_weights"] = np.ones((1, 1), np.float32)
    for wanted in ({}, MIXING, {**MIXING, **ROWS}):
        for name in ("", *mixed):

            def mixture(example: Example, name: str = name) -> tuple[dict[str, Any], Tensors]:
                rows = {key: np.repeat(value, len(example.ids), 0) for key, value in mixed.items() if key != name}
                return {"number": 1}, rows

            yield Input(f"SCORE mixture without {name}", read(base, score=mixture, wanted=wanted))
        yield Input("SCORE nothing", read(base, score=lambda f: ({"number": 1}, {}), wanted=wanted))
    ids = np.arange(3, dtype=np.int32)
    for wrong in (*wrong_tensors("ids", ids), np.arange(2049, dtype=np.int32), np.full(2048, 1, np.int32)):

        def asking(raw: Raw, rng: random.Random, wrong: np.ndarray = wrong) -> None:
            raw.open()
            raw.send(Kind.ROWS, {"part": rng.choice(INTS)}, {"ids": wrong})
            raw.until(Kind.HEAD)

        yield Input("ROWS ids", asking)


def _rows(example: Example, name: str, wrong: np.ndarray) -> Tensors:
    return {**_like(example, "", 0, np.float32), name: wrong}


def _like(example: Example, name: str, value: float, dtype: Any) -> Tensors:
    count = len(example.ids)
    good = {"delta": np.ones((count, WIDTH), np.int8), "scales": np.ones(count, np.float32)}
    with np.errstate(all="ignore"):
        return good | ({name: np.full(good[name].shape, value, dtype)} if name else {})
