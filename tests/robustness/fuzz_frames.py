"""The wire's decoder, fuzzed: frames of every kind, mutated, in this process.

Bytes, control maps, tensor lists and the sizes in the header are changed, most of them with their checksum made right
again, so that they reach the inner layers; frames are cut off, and joined. Only ProtocolError or a Frame may come of
it, and that Frame must be one that can be sent and comes back the same. Test: pytest -m slow tests/robustness
"""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from contextlib import suppress
from typing import Any

import msgpack
import numpy as np

from sideplug.contract import wire
from sideplug.contract.errors import ProtocolError
from sideplug.contract.wire import SCHEMA, Frame, Kind
from tests.robustness.values import anything, rearranged


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
    frames = []
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
            frames.append((frame, wire.encode(frame, n)))
    return frames


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Some bytes of it changed, left out, put in, doubled or cut off."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        at = rng.randrange(len(out) + 1)
        mutation = rng.randrange(6)
        if mutation == 0 and at < len(out):
            out[at] = rng.randrange(256)
        elif mutation == 1 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif mutation == 2:
            del out[at : at + rng.choice([1, 1, 2, 5])]
        elif mutation == 3:
            out[at:at] = rng.randbytes(rng.choice([1, 1, 2, 8]))
        elif mutation == 4:
            piece = out[at : at + rng.randint(1, 20)]
            out[at:at] = piece
        else:
            del out[at:]
    return bytes(out)


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
    mutation = rng.choices(
        ["bytes", "control bytes", "payload", "control map", "tensors", "random map", "cut", "joined", "sizes", "huge"],
        [6, 20, 6, 30, 20, 8, 3, 3, 4, 0.005],
    )[0]
    if mutation == "bytes":
        return mutation, damaged(rng, data)
    if mutation == "control bytes":
        return mutation, wire.join(kind, damaged(rng, packed), payload)
    if mutation == "payload":
        return mutation, wire.join(kind, packed, damaged(rng, payload))
    if mutation in ("control map", "tensors"):
        control = msgpack.unpackb(packed)
        if mutation == "tensors":
            control["t"] = rearranged(rng, control.get("t", [["delta", "i1", [1, 2]]]))
        else:
            control = rearranged(rng, control)
        return mutation, wire.join(kind, msgpack.packb(control), payload)
    if mutation == "random map":
        return mutation, wire.join(kind, msgpack.packb(anything(rng, 4)), payload)
    if mutation == "cut":
        return mutation, data[: rng.randrange(len(data))]
    if mutation == "joined":
        return mutation, data + rng.choice(others)[1]
    if mutation == "huge":
        return mutation, wire.join(Kind.PROMPT, huge(rng))
    sizes = [rng.choice([0, 1, size, len(payload), 1 << 20, (1 << 32) - 1, rng.getrandbits(32)]) for _ in range(2)]
    header = wire.HEADER.pack(wire.MAGIC, wire.VERSION, kind & 255, 0, *sizes)
    return mutation, header + wire.CHECKSUM.pack(wire._checksum(header, packed, payload)) + packed + payload


def sentence(error: Exception) -> str:
    """Return an error's sentence without what is of this input alone."""
    return re.sub(r"""b?'[^']*'|b?"[^"]*"|-?\d+|: .*""", "…", str(error))[:80]


def check(message: bytes) -> Frame | ProtocolError:
    """Return what a message decodes to. Raises what no message may cause.

    A frame must be one that can be sent, and comes back the same.
    """
    try:
        frame = wire.decode(message)
    except ProtocolError as error:
        return error
    again = wire.encode(frame)
    if wire.encode(wire.decode(again)) != again or "ExtType" in repr(frame.control):
        raise ValueError("the frame comes back otherwise, or has what no frame may have")
    return frame


def check_in_pieces(rng: random.Random, message: bytes) -> None:
    """Give a message to the stream's decoder in pieces. Raises what no message may cause."""
    decoder, at = wire.Decoder(), 0
    with suppress(ProtocolError):
        while at < len(message):
            step = rng.randint(1, max(1, len(message) // 3))
            decoder.feed(message[at : at + step])
            at += step


def fuzz_frames(count: int, seed: int) -> tuple[dict[str, Any], list[str]]:
    """Decode so many messages: (figures, bugs)."""
    rng = random.Random(seed)
    known = corpus(np.random.default_rng(seed))
    outcomes: Counter[str] = Counter()
    inputs: Counter[str] = Counter()
    sentences: Counter[str] = Counter()
    bugs: list[str] = []
    slowest = (0.0, "")
    start = time.monotonic()
    for _ in range(count):
        frame, data = rng.choice(known)
        mutation, message = mutate(rng, frame, data, known)
        inputs[mutation] += 1
        began = time.perf_counter()
        try:
            result = check(message)
            outcomes[type(result).__name__] += 1
            if isinstance(result, ProtocolError):
                sentences[sentence(result)] += 1
            slowest = max(slowest, (time.perf_counter() - began, mutation))
            if rng.random() < 0.1:
                check_in_pieces(rng, message)
        except Exception as error:
            outcomes[type(error).__name__] += 1
            bugs.append(f"{mutation}: {error!r} of {message[:200].hex()}")
    figures = {
        "inputs": count,
        "inputs_s": round(count / (time.monotonic() - start)),
        "by_kind_of_input": dict(inputs),
        "outcomes": dict(outcomes),
        "sentences": dict(sentences.most_common(40)),
        "slowest_ms": {"ms": round(1000 * slowest[0], 1), "input": slowest[1]},
        "bugs": bugs[:50],
    }
    return figures, bugs
