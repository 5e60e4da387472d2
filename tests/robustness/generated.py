"""Frames of every kind, generated from their layouts: valid ones, and values that stand at a field's edges.

A new frame, field or tensor is fuzzed without a line here. Test: pytest -m slow tests/robustness
"""

from __future__ import annotations

import random
import re
from typing import Any

import msgspec
import numpy as np
from msgspec import inspect

from sideplug.contract import wire
from sideplug.contract.frames import FRAMES, Kind, layout
from tests.robustness.values import FLOATS, INTS, TEXTS, anything

Tensors = dict[str, np.ndarray]
CAPABILITIES = [
    {},
    {"context": {"settings": {"layers": [0, 2], "rank": 4}, "required": True}},
    {"mixture": {"settings": {"pairs": 4}}},
    {"mixture": {"settings": {}}, "context": {"settings": {"layers": [1], "rank": 16}}, "x": {"settings": None}},
]


def fields_of(kind: Kind) -> dict[str, inspect.Type]:
    """Return the type of each control field of a kind of frame, without the list of its tensors."""
    shape = inspect.type_info(layout(FRAMES[kind]).control)
    assert isinstance(shape, inspect.StructType)
    return {field.name: field.type for field in shape.fields if field.name != "t"}


def required(kind: Kind) -> set[str]:
    """Return the control fields that must not be left out."""
    shape = inspect.type_info(layout(FRAMES[kind]).control)
    assert isinstance(shape, inspect.StructType)
    return {field.name for field in shape.fields if field.required}


def message(kind: int, control: Any, tensors: Tensors, number: int = 0) -> bytes:
    """Return a frame with its right checksum, whatever it says."""
    names = {dtype: name for name, dtype in wire.DTYPES.items()}
    listing = [[name, names[value.dtype], list(value.shape)] for name, value in tensors.items()]
    packed = msgspec.msgpack.encode({**control, "t": listing} if listing else control)
    payload = b"".join(np.ascontiguousarray(value).tobytes() for value in tensors.values())
    return wire.join(kind, packed, payload, number)


def a_control(rng: random.Random, kind: Kind) -> dict[str, Any]:
    """Return a valid control map of a frame of this kind, with some of what may be left out."""
    must, share = required(kind), rng.choice([0.0, 0.5, 1.0])
    control = {
        name: a_value(rng, what) for name, what in fields_of(kind).items() if name in must or rng.random() < share
    }
    if "capabilities" in control and rng.random() < 0.5:
        control["capabilities"] = rng.choice(CAPABILITIES)
    return control


def some_tensors(rng: random.Random, kind: Kind) -> Tensors:
    """Return the tensors of a frame of this kind, of any dtype and shape, with some of what may be left out."""
    shape, share = layout(FRAMES[kind]), rng.choice([0.0, 0.5, 1.0])
    numbers = np.random.default_rng(rng.getrandbits(32))
    return {
        name: numbers.integers(-9, 9, numbers.integers(0, 4, rank)).astype(rng.choice(["<i1", "<i4", "<f2", "<f4"]))
        for name, rank in shape.ranks.items()
        if name not in shape.optional or rng.random() < share
    }


def a_value(rng: random.Random, what: inspect.Type) -> Any:
    """Return a valid value of this type, often at one of its ends."""
    match what:
        case inspect.IntType():
            low = what.ge if what.ge is not None else -(1 << 40)
            high = what.le if what.le is not None else what.lt - 1 if what.lt is not None else 1 << 40
            return rng.choice([low, high, rng.randint(low, high), min(high, max(low, 7)), min(high, max(low, 1))])
        case inspect.FloatType():
            return rng.choice([each for each in (*FLOATS, 30.0, -1.0) if _is_within(each, what)])
        case inspect.BoolType():
            return rng.random() < 0.5
        case inspect.NoneType():
            return None
        case inspect.StrType():
            return _a_text(rng, what)
        case inspect.UnionType():
            return a_value(rng, rng.choice(what.types))
        case inspect.ListType():
            most = what.max_length or 1 << 10
            count = max(what.min_length or 0, min(most, rng.choice([0, 1, 2, 3, 40 if rng.random() < 0.1 else 1])))
            return [a_value(rng, what.item_type) for _ in range(count)]
        case inspect.TupleType():
            return [a_value(rng, item) for item in what.item_types]
        case inspect.DictType():
            return {a_value(rng, what.key_type): a_value(rng, what.value_type) for _ in range(rng.choice([0, 0, 1, 3]))}
        case inspect.StructType():
            return {f.name: a_value(rng, f.type) for f in what.fields if f.required or rng.random() < 0.5}
        case inspect.RawType():
            return anything(rng)
    raise TypeError(f"a field has a type that is not generated: {what}")


def _is_within(value: float, what: inspect.FloatType) -> bool:
    below = (what.ge is None or value >= what.ge) and (what.gt is None or value > what.gt)
    return below and (what.le is None or value <= what.le) and (what.lt is None or value < what.lt)


def _a_text(rng: random.Random, what: inspect.StrType) -> str:
    if what.pattern is not None:
        digits = re.search(r"\{(\d+)\}", what.pattern)
        if digits is not None:
            return f"{rng.getrandbits(256):064x}"[: int(digits[1])]
    text = rng.choice([*TEXTS[:4], *TEXTS[6:], "l0.1.2-r16-s0-int8", "x" * min(what.max_length or 9, 2048)])
    text = text[: what.max_length]
    return text if what.pattern is None or re.search(what.pattern, text) else "x"


def edges(what: inspect.Type) -> list[Any]:
    """Return values at and beyond the edges of this type."""
    lists = [[], [None], [1.5], [-1], [1 << 63], [[1]], [True], ["a"], [{}], [5] * 100_000, [FLOATS[0]], [b"x"]]
    dicts = [{}, {"kind": None}, {"kind": []}, {"kind": "\0" * 100_000}, {"a": {"b": {}}}, {"": ""}, {1: 2}]
    match what:
        case inspect.IntType():
            return [*INTS, 1.0, True, None]
        case inspect.FloatType():
            return [*FLOATS, 1]
        case inspect.BoolType():
            return [True, False, 0, None]
        case inspect.StrType():
            return [*TEXTS, b"a", None]
        case inspect.ListType() | inspect.TupleType():
            return lists
        case inspect.UnionType():
            return [None, *(value for part in what.types for value in edges(part))]
        case inspect.DictType() | inspect.StructType() | inspect.RawType():
            return dicts
    return [None, 0, "", [], {}]
