"""The framing: one table of exact bytes tests both directions; every way to be malformed gives ProtocolError only."""

import struct
import zlib

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sideplug.contract import wire
from sideplug.contract.errors import ProtocolError, TooLong, from_wire
from sideplug.contract.wire import SCHEMA, Decoder, Frame, Kind, decode, encode

CODES = np.array([[[1, -2], [3, -128]]], np.int8)
SCALES = np.array([[0.5, 2.0]], np.float32)

NUMBER, NUMBERED = 258, b"\x02\x01\x00\x00"
# (frame, its exact bytes): tested in both directions
GOLDEN = [
    (
        Frame(Kind.CANCEL, {"turn": 7}),
        b"SP\x02\x08"
        + NUMBERED
        + b"\x07\x00\x00\x00"
        + b"\x00\x00\x00\x00"
        + b"\xed\x48\x8c\xd4"
        + b"\x81\xa4turn\x07",
    ),
    (
        Frame(Kind.ERROR, {"code": "busy", "message": "later"}),
        b"SP\x02\x0f"
        + NUMBERED
        + b"\x19\x00\x00\x00"
        + b"\x00\x00\x00\x00"
        + b"\xc8\xb8\x8f\x59"
        + b"\x82\xa4code\xa4busy\xa7message\xa5later",
    ),
    (
        Frame(Kind.DONE, {"turn": 1, "why": "stop", "prompt": 300, "reply": 2, "counts": {"asked": 1}}),
        b"SP\x02\x07" + NUMBERED + b"\x30\x00\x00\x00" + b"\x00\x00\x00\x00" + b"\x43\x32\x66\xc7"
        b"\x85\xa4turn\x01\xa3why\xa4stop\xa6prompt\xcd\x01\x2c\xa5reply\x02\xa6counts\x81\xa5asked\x01",
    ),
    (
        Frame(Kind.ASK, {"turn": 1, "run": 0, "at": [9], "from": 8, "ids": [5]}, {"codes": CODES, "scales": SCALES}),
        b"SP\x02\x05" + NUMBERED + b"\x3c\x00\x00\x00" + b"\x0c\x00\x00\x00" + b"\x0d\x84\x0d\x8c"
        b"\x86\xa4turn\x01\xa3run\x00\xa2at\x91\x09\xa4from\x08\xa3ids\x91\x05\xa1t\x92"
        b"\x93\xa5codes\xa2i1\x93\x01\x02\x02\x93\xa6scales\xa2f4\x92\x01\x02"
        b"\x01\xfe\x03\x80" + b"\x00\x00\x00\x3f\x00\x00\x00\x40",
    ),
    (
        Frame(Kind.ROWS, {"part": 0}, {"ids": np.array([1, 258], np.int32)}),
        b"SP\x02\x0d" + NUMBERED + b"\x14\x00\x00\x00" + b"\x08\x00\x00\x00" + b"\xb1\xfe\x6f\x0a"
        b"\x82\xa4part\x00\xa1t\x91\x93\xa3ids\xa2i4\x91\x02" + b"\x01\x00\x00\x00\x02\x01\x00\x00",
    ),
]


@pytest.mark.parametrize(("frame", "data"), GOLDEN, ids=lambda x: x.kind.name if isinstance(x, Frame) else "")
def test_exact_bytes_both_ways(frame: Frame, data: bytes) -> None:
    assert encode(frame, NUMBER) == data
    back = decode(data, NUMBER)
    assert (back.kind, back.control) == (frame.kind, frame.control)
    assert list(back.tensors) == list(frame.tensors)
    for name, tensor in frame.tensors.items():
        assert back.tensors[name].dtype == tensor.dtype
        np.testing.assert_array_equal(back.tensors[name], tensor)


def test_any_split_of_the_stream_gives_the_same_frames() -> None:
    stream = b"".join(data for _, data in GOLDEN)
    for size in (1, 2, 3, 7, 19, 20, 21, len(stream)):
        decoder = Decoder()
        frames = [f for i in range(0, len(stream), size) for f in decoder.feed(stream[i : i + size])]
        assert [f.kind for f in frames] == [f.kind for f, _ in GOLDEN]
        assert decoder.pending_bytes == 0


def raw(kind: int, control_map: object, body: bytes = b"", **header: int) -> bytes:
    packed = control_map if isinstance(control_map, bytes) else msgpack.packb(control_map)
    sizes = {"control": len(packed), "payload": len(body)} | header
    head = struct.pack("<2sBBIII", b"SP", header.get("version", 2), kind, 0, sizes["control"], sizes["payload"])
    return head + struct.pack("<I", zlib.crc32(head + packed + body)) + packed + body


def tensors(*listing: object, payload: bytes = b"") -> bytes:
    return raw(Kind.ASK, {"turn": 1, "run": 0, "at": [1], "from": 1, "ids": [], "t": list(listing)}, payload)


MALFORMED = {
    "magic": b"XX" + GOLDEN[0][1][2:],
    "version": raw(Kind.CANCEL, {"turn": 1}, version=1),
    "kind 0": raw(0, {}),
    "kind 200": raw(200, {}),
    "control too large": raw(Kind.CANCEL, {"turn": 1}, control=wire.MAX_CONTROL_BYTES + 1),
    "payload too large": raw(Kind.CANCEL, {"turn": 1}, payload=wire.MAX_PAYLOAD_BYTES + 1),
    "truncated": GOLDEN[3][1][:-1],
    "two frames in a message": GOLDEN[0][1] * 2,
    "not msgpack": raw(Kind.CANCEL, b"\xc1\xc1"),
    "bytes after the map": raw(Kind.CANCEL, msgpack.packb({"turn": 1}) + b"\x00"),
    "not a map": raw(Kind.CANCEL, [1]),
    "number as key": raw(Kind.CANCEL, {1: 1}),
    "bytes as key": raw(Kind.CANCEL, b"\x81\xc4\x01t\x01"),
    "extension type": raw(Kind.CANCEL, {"turn": msgpack.ExtType(5, b"x")}),
    "extension type of no bytes": raw(
        Kind.PROMPT, {"turn": 1, "ids": [msgpack.ExtType(5, b"")], "max_tokens": 1, "sampling": {}}
    ),
    "timestamp": raw(Kind.CANCEL, {"turn": msgpack.Timestamp(1, 2)}),
    "deep nesting": raw(Kind.PROMPT, b"\x91" * 100_000),
    "huge array announced": raw(Kind.CANCEL, b"\xdd\xff\xff\xff\xff"),
    "bad utf-8": raw(Kind.ERROR, b"\x82\xa4code\xa1\xff\xa7message\xa0"),
    "field missing": raw(Kind.CANCEL, {}),
    "field unknown": raw(Kind.CANCEL, {"turn": 1, "x": 1}),
    "field of another type": raw(Kind.CANCEL, {"turn": "1"}),
    "bool for a number": raw(Kind.CANCEL, {"turn": True}),
    "tensor missing": tensors(),
    "listing no list": raw(Kind.ASK, {"turn": 1, "run": 0, "at": [1], "from": 1, "ids": [], "t": 5}),
    "too many tensors": tensors(*[["codes", "i1", [0]]] * 9),
    "tensor entry short": tensors(["codes", "i1"]),
    "dtype unknown": tensors(["codes", "O", [1]], payload=b"x"),
    "dtype no string": tensors(["codes", 7, [1]], payload=b"x"),
    "negative dimension": tensors(["codes", "i1", [-1, -1, 1]], payload=b"x"),
    "bool dimension": tensors(["codes", "i1", [True, 1, 1]], payload=b"x"),
    "too many dimensions": tensors(["codes", "i1", [1] * 5], payload=b"x"),
    "product overflows": tensors(["codes", "i1", [1 << 26, 1 << 26, 1 << 26]], payload=b"x"),
    "a zero that hides a huge shape": tensors(
        ["codes", "i1", [0, 1 << 26, 1 << 26]], ["scales", "f4", [1, 0]], payload=b""
    ),
    "past the payload": tensors(["codes", "i1", [1, 1, 2]], payload=b"x"),
    "payload left over": tensors(["codes", "i1", [1, 1, 1]], ["scales", "f4", [1, 0]], payload=b"xy"),
    "tensor twice": tensors(["codes", "i1", [1, 1, 1]], ["codes", "i1", [1, 1, 1]], payload=b"xy"),
    "tensor of another rank": tensors(["codes", "i1", [1]], ["scales", "f4", [1, 0]], payload=b"x"),
    "tensor not of this kind": raw(Kind.CANCEL, {"turn": 1, "t": [["codes", "i1", [1]]]}, b"x"),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed(data: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode(data)
    assert caught.value.blame == "remote"
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=300))
def test_garbage_gives_one_error_type(data: bytes) -> None:
    try:
        Decoder().feed(data)
    except ProtocolError:
        pass


@given(st.sampled_from(GOLDEN), st.data())
def test_a_flipped_byte_never_passes(case: tuple[Frame, bytes], data: st.DataObject) -> None:
    mutated = bytearray(case[1])
    mutated[data.draw(st.integers(0, len(mutated) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ProtocolError):
        decode(bytes(mutated))


def test_frames_come_in_their_order() -> None:
    """Lost, doubled or swapped ones are told apart from what must come; the number wraps at 32 bits."""
    data = encode(Frame(Kind.CANCEL, {"turn": 7}), 5)
    assert decode(data)["turn"] == decode(data, 5)["turn"] == decode(data, 5 + 2**32)["turn"] == 7
    for expected in (4, 6):
        with pytest.raises(ProtocolError, match=f"number {expected} must come, got 5"):
            decode(data, expected)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**31), 2**31) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.sampled_from(list(Kind)), st.dictionaries(st.sampled_from(["turn", "at", "ids", "t", "base", "number"]), values)
)
def test_any_control_map_gives_a_frame_or_one_error_type(kind: Kind, control: dict[str, object]) -> None:
    try:
        decode(raw(kind, control))
    except ProtocolError:
        pass


def test_what_we_send_is_checked_too() -> None:
    bad = [
        Frame(Kind.CANCEL, {}),
        Frame(Kind.CANCEL, {"turn": 1, "x": 2}),
        Frame(Kind.CANCEL, {"turn": 1}, {"codes": CODES}),
        Frame(
            Kind.ASK,
            {"turn": 1, "run": 0, "at": [1], "from": 1, "ids": []},
            {"codes": CODES.astype(np.float64), "scales": SCALES},
        ),
        Frame(Kind.ERROR, {"code": "x", "message": "m" * (wire.MAX_CONTROL_BYTES + 1)}),
    ]
    for frame in bad:
        with pytest.raises(ProtocolError) as caught:
            encode(frame)
        assert caught.value.blame == "local"


def test_every_kind_has_its_row() -> None:
    assert set(SCHEMA) == set(Kind)


def test_errors_keep_their_class_over_the_wire() -> None:
    frame = decode(encode(wire.error_frame(TooLong("the prompt has 9 tokens"))))
    assert type(from_wire(frame["code"], frame["message"])) is TooLong
    assert len(decode(encode(wire.error_frame(TooLong("\0" * wire.MAX_CONTROL_BYTES))))["message"]) <= 1000
    inner = decode(encode(wire.error_frame(KeyError("/some/path"))))
    assert inner["code"] == "internal"
    assert "path" not in inner["message"]
