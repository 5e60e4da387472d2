"""The wire's decoder, fuzzed: frames of every kind, mutated, in this process.

Bytes, control maps, tensor lists and the sizes in the header are changed, most of them with their checksum made right
again, so that they reach the inner layers; frames are cut off, and joined. Only ProtocolError or a Frame may come of
it, and that Frame must be one that can be sent and comes back the same; its capabilities and extensions are then read
too. Test: pytest -m slow tests/robustness
"""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from contextlib import suppress
from typing import Any

import msgspec

from sideplug.contract import capabilities, wire
from sideplug.contract.capabilities import Capability, ContextSettings, MixtureSettings
from sideplug.contract.errors import InputError, ProtocolError
from sideplug.contract.frames import Frame, Kind, Open, control_of
from tests.robustness.generated import a_control, message, some_tensors
from tests.robustness.values import anything, rearranged

EACH = 40  # valid frames of each kind
TOY = Capability("toy", MixtureSettings, 64, dict.fromkeys(Kind, ContextSettings))  # one that frames may carry
KNOWN = {**capabilities.CAPABILITIES, TOY.name: TOY}
EXTENSIONS = [
    {"toy": {"layers": [1], "rank": 2}},
    {"toy": {"layers": [1, 2], "rank": 0}},
    {"context": {}},
    {"": None},
    {"toy": "x" * 100},
]
Known = list[tuple[Kind, bytes]]


def corpus(rng: random.Random) -> Known:
    """Return valid frames of every kind, with what may be left out and without. Raises ProtocolError if one is not."""
    frames = []
    for kind in Kind:
        for n in range(EACH):
            control = a_control(rng, kind)
            if n % 4 == 0:
                control["extensions"] = rng.choice(EXTENSIONS)
            data = message(kind, control, some_tensors(rng, kind), n)
            wire.decode(data, n)
            frames.append((kind, data))
    return frames


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Return the data with some bytes changed, left out, put in, doubled or cut off."""
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
    """Return a control map near its limit: very many very small things, beside each other or within each other."""
    count = rng.choice([1 << 20, wire.MAX_CONTROL_BYTES - 64])
    name = rng.choice([b"ids", b"done", b"messages", b"t", b"extensions", b"sampling"])
    head = b"\x81" + bytes([0xA0 + len(name)]) + name
    if rng.random() < 0.3:
        return head + rng.choice([b"\x91", b"\x81\xa0", b"\x81\xa1a"]) * (count // 3) + b"\xc0"
    return head + b"\xdd" + count.to_bytes(4, "big") + rng.choice([b"\x90", b"\x80", b"\x00", b"\xc0", b"\xa0"]) * count


def mutate(rng: random.Random, kind: Kind, data: bytes, others: Known) -> tuple[str, bytes]:
    """Return how, and the bytes of a message that perhaps no longer is one."""
    size = int.from_bytes(data[8:12], "little")
    packed, payload = data[wire.HEADER_BYTES :][:size], data[wire.HEADER_BYTES + size :]
    number = kind if rng.random() < 0.9 else rng.randrange(256)
    mutation = rng.choices(
        ["bytes", "control bytes", "payload", "control map", "tensors", "random map", "cut", "joined", "sizes", "huge"],
        [6, 20, 6, 30, 20, 8, 3, 3, 4, 0.005],
    )[0]
    if mutation == "bytes":
        return mutation, damaged(rng, data)
    if mutation == "control bytes":
        return mutation, wire.join(number, damaged(rng, packed), payload)
    if mutation == "payload":
        return mutation, wire.join(number, packed, damaged(rng, payload))
    if mutation in ("control map", "tensors"):
        control = msgspec.msgpack.decode(packed)
        if mutation == "tensors":
            control["t"] = rearranged(rng, control.get("t", [["delta", "i1", [1, 2]]]))
        else:
            control = rearranged(rng, control)
        return mutation, wire.join(number, msgspec.msgpack.encode(control), payload)
    if mutation == "random map":
        return mutation, wire.join(number, msgspec.msgpack.encode(anything(rng, 4)), payload)
    if mutation == "cut":
        return mutation, data[: rng.randrange(len(data))]
    if mutation == "joined":
        return mutation, data + rng.choice(others)[1]
    if mutation == "huge":
        return mutation, wire.join(rng.choice(list(Kind)), huge(rng))
    sizes = [rng.choice([0, 1, size, len(payload), 1 << 20, (1 << 32) - 1, rng.getrandbits(32)]) for _ in range(2)]
    header = wire.HEADER.pack(wire.MAGIC, wire.VERSION, number & 255, 0, *sizes)
    return mutation, header + wire.CHECKSUM.pack(wire._checksum(header, packed, payload)) + packed + payload


def sentence(error: Exception) -> str:
    """Return an error's sentence without what is of this input alone."""
    return re.sub(r"""b?'[^']*'|b?"[^"]*"|-?\d+|: .*""", "…", str(error))[:80]


def check(data: bytes) -> Frame | ProtocolError:
    """Return what a message decodes to. Raises what no message may cause.

    A frame must be one that can be sent, and comes back the same.
    """
    try:
        frame = wire.decode(data)
    except ProtocolError as error:
        return error
    again = wire.encode(frame)
    if wire.encode(wire.decode(again)) != again or "Ext(code" in repr(control_of(frame)):
        raise ValueError("the frame comes back otherwise, or has what no frame may have")
    with suppress(ProtocolError):
        capabilities.check_extensions(frame, set(KNOWN), KNOWN)
    if isinstance(frame, Open):
        with suppress(ProtocolError, InputError):
            capabilities.grant(frame.capabilities)
    return frame


def check_in_pieces(rng: random.Random, data: bytes) -> None:
    """Give a message to the stream's decoder in pieces. Raises what no message may cause."""
    decoder, at = wire.Decoder(), 0
    with suppress(ProtocolError):
        while at < len(data):
            step = rng.randint(1, max(1, len(data) // 3))
            decoder.feed(data[at : at + step])
            at += step


def fuzz_frames(count: int, seed: int) -> tuple[dict[str, Any], list[str]]:
    """Decode so many messages: (figures, bugs)."""
    rng = random.Random(seed)
    known = corpus(rng)
    outcomes: Counter[str] = Counter()
    inputs: Counter[str] = Counter()
    sentences: Counter[str] = Counter()
    frames: Counter[str] = Counter()
    bugs: list[str] = []
    slowest = (0.0, "")
    start = time.monotonic()
    for _ in range(count):
        kind, data = rng.choice(known)
        mutation, mutated = mutate(rng, kind, data, known)
        inputs[mutation] += 1
        began = time.perf_counter()
        try:
            result = check(mutated)
            if isinstance(result, ProtocolError):
                outcomes["ProtocolError"] += 1
                sentences[sentence(result)] += 1
            else:
                outcomes["Frame"] += 1
                frames[result.kind.name] += 1
            slowest = max(slowest, (time.perf_counter() - began, mutation))
            if rng.random() < 0.1:
                check_in_pieces(rng, mutated)
        except Exception as error:
            outcomes[type(error).__name__] += 1
            bugs.append(f"{mutation}: {error!r} of {mutated[:200].hex()}")
    figures = {
        "inputs": count,
        "inputs_s": round(count / (time.monotonic() - start)),
        "by_kind_of_input": dict(inputs),
        "outcomes": dict(outcomes),
        "frames": dict(frames),
        "sentences": dict(sentences.most_common(40)),
        "slowest_ms": {"ms": round(1000 * slowest[0], 1), "input": slowest[1]},
        "bugs": bugs[:50],
    }
    return figures, bugs
