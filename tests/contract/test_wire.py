"""The framing: one table of exact bytes tests both directions; every way to be malformed gives ProtocolError only."""

import struct
import zlib
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sideplug.contract import wire
from sideplug.contract.errors import ProtocolError, TooLong, from_wire
from sideplug.contract.frames import (
    FRAMES,
    Answer,
    Ask,
    Cancel,
    Context,
    Done,
    Error,
    Frame,
    Kind,
    PromptFrame,
    Rows,
    SamplingSpec,
    control_of,
    tensors_of,
)
from sideplug.contract.wire import Decoder, decode, encode

CODES = np.array([[[1, -2], [3, -128]]], np.int8)
SCALES = np.array([[0.5, 2.0]], np.float32)

NUMBER, NUMBERED = 258, b"\x02\x01\x00\x00"
# (frame, its exact bytes): tested in both directions
GOLDEN: list[tuple[Frame, bytes]] = [
    (Cancel(7), b"SP\x03\x08" + NUMBERED + b"\x07\x00\x00\x00\x00\x00\x00\x00s\xcbVK\x81\xa4turn\x07"),
    (
        Error("busy", "later"),
        b"SP\x03\x0f"
        + NUMBERED
        + b"\x19\x00\x00\x00\x00\x00\x00\x00a\xb3\x06\x17\x82\xa4code\xa4busy\xa7message\xa5later",
    ),
    (
        Done(1, "stop", 300, 2, {"asked": 1}),
        b"SP\x03\x07"
        + NUMBERED
        + b"0\x00\x00\x00\x00\x00\x00\x003\xd2}q\x85\xa4turn\x01\xa3"
        + b"why\xa4stop\xa6prompt\xcd\x01,\xa5r"
        + b"eply\x02\xa6counts\x81\xa5asked\x01",
    ),
    (
        Ask(1, 0, [9], 8, [5], CODES, SCALES),
        b"SP\x03\x05"
        + NUMBERED
        + b"=\x00\x00\x00\x0c\x00\x00\x00x\x12*z\x86\xa4turn\x01\xa3"
        + b"run\x00\xa2at\x91\t\xa5start\x08\xa3ids"
        + b"\x91\x05\xa1t\x92\x93\xa5codes\xa2i1\x93\x01\x02\x02\x93"
        + b"\xa6scales\xa2f4\x92\x01\x02\x01\xfe\x03\x80\x00\x00\x00"
        + b"?\x00\x00\x00@",
    ),
    (
        Context(1, 2, 30, CODES, SCALES),
        b"SP\x03\x11"
        + NUMBERED
        + b"2\x00\x00\x00\x0c\x00\x00\x00\xc0xd\x1e\x84\xa4turn\x01\xa3"
        + b"run\x02\xa5first\x1e\xa1t\x92\x93\xa5code"
        + b"s\xa2i1\x93\x01\x02\x02\x93\xa6scales\xa2f4\x92"
        + b"\x01\x02\x01\xfe\x03\x80\x00\x00\x00?\x00\x00\x00@",
    ),
    (
        Answer(
            1,
            0,
            [9],
            np.array([[5, -1]], np.int32),
            mix=np.array([0.5], np.float32),
            mix_ids=np.array([[3]], np.int32),
            mix_weights=np.array([[1]], np.float32),
        ),
        b"SP\x03\x06"
        + NUMBERED
        + b"M\x00\x00\x00\x14\x00\x00\x00\xf9\x08*\xc6\x84\xa4turn\x01\xa3"
        + b"run\x00\xa2at\x91\t\xa1t\x94\x93\xa5draft\xa2"
        + b"i4\x92\x01\x02\x93\xa3mix\xa2f4\x91\x01\x93\xa7mix"
        + b"_ids\xa2i4\x92\x01\x01\x93\xabmix_weig"
        + b"hts\xa2f4\x92\x01\x01\x05\x00\x00\x00\xff\xff\xff\xff\x00\x00\x00"
        + b"?\x03\x00\x00\x00\x00\x00\x80?",
    ),
    (
        Rows(0, np.array([1, 258], np.int32)),
        b"SP\x03\x0d"
        + NUMBERED
        + b"\x14\x00\x00\x00\x08\x00\x00\x00_zV\xab\x82\xa4part\x00\xa1"
        + b"t\x91\x93\xa3ids\xa2i4\x91\x02\x01\x00\x00\x00\x02\x01\x00\x00",
    ),
]


@pytest.mark.parametrize(("frame", "data"), GOLDEN, ids=lambda x: x.kind.name if isinstance(x, Frame) else "")
def test_exact_bytes_both_ways(frame: Frame, data: bytes) -> None:
    assert encode(frame, NUMBER) == data
    back = decode(data, NUMBER)
    assert type(back) is type(frame)
    assert control_of(back) == control_of(frame)
    assert list(tensors_of(back)) == list(tensors_of(frame))
    for name, tensor in tensors_of(frame).items():
        assert tensors_of(back)[name].dtype == tensor.dtype
        np.testing.assert_array_equal(tensors_of(back)[name], tensor)


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
    head = struct.pack("<2sBBIII", b"SP", header.get("version", 3), kind, 0, sizes["control"], sizes["payload"])
    return head + struct.pack("<I", zlib.crc32(head + packed + body)) + packed + body


def tensors(*listing: object, payload: bytes = b"") -> bytes:
    return raw(Kind.ASK, {"turn": 1, "run": 0, "at": [1], "start": 1, "ids": [], "t": list(listing)}, payload)


MALFORMED = {
    "magic": b"XX" + GOLDEN[0][1][2:],
    "version": raw(Kind.CANCEL, {"turn": 1}, version=2),
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
    "listing no list": raw(Kind.ASK, {"turn": 1, "run": 0, "at": [1], "start": 1, "ids": [], "t": 5}),
    "too many tensors": tensors(*[["codes", "i1", [0]]] * 13),
    "too long a list": raw(Kind.ASK, {"turn": 1, "run": 0, "at": [1] * 3000, "start": 1, "ids": []}),
    "a number out of range": raw(Kind.CANCEL, {"turn": 1 << 31}),
    **{
        f"sampling {bad}": raw(Kind.PROMPT, {"turn": 1, "max_tokens": 1, "text": "", "sampling": bad})
        for bad in ({"x": 1}, {"seed": "1"}, {"seed": -1}, {"top_k": True}, {"top_k": 1.5})
    },
    "a message that is none": raw(
        Kind.PROMPT, {"turn": 1, "max_tokens": 1, "sampling": {}, "messages": [{"role": "user", "content": 5}]}
    ),
    "a message with more in it": raw(
        Kind.PROMPT, {"turn": 1, "max_tokens": 1, "sampling": {}, "messages": [{"role": "u", "content": "", "x": 1}]}
    ),
    "ids that are none": raw(Kind.PROMPT, {"turn": 1, "max_tokens": 1, "sampling": {}, "ids": [1, -1]}),
    "a negative number": raw(Kind.CANCEL, {"turn": -1}),
    "a fingerprint that is none": raw(
        Kind.OPEN,
        {"base": "../../etc", "tap": "", "merge": "add", "gates": [], "client": "x", "t": [["gate", "f4", [0, 0]]]},
    ),
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
    data = encode(Cancel(7), 5)
    for number in (None, 5, 5 + 2**32):
        frame = decode(data, number)
        assert isinstance(frame, Cancel)
        assert frame.turn == 7
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
    wrong: Any = "7"
    bad: list[Frame] = [
        Cancel(-1),
        Cancel(wrong),
        Ask(1, 0, [1], 1, [], CODES.astype(np.float64), SCALES),
        Ask(1, 0, [1], 1, [], CODES[0], SCALES),
        Error("x", "m" * 2000),
    ]
    for frame in bad:
        with pytest.raises(ProtocolError) as caught:
            encode(frame)
        assert caught.value.blame == "local"
    with pytest.raises(TooLong, match="the text must have at most 4.0 MiB, got 5.0 MiB"):  # it is the person's
        encode(PromptFrame(1, 1, SamplingSpec(), text="m" * (5 << 20)))


def test_every_kind_has_its_class() -> None:
    assert set(FRAMES) == set(Kind)
    assert all(cls.__doc__ and ("→" in cls.__doc__) for cls in FRAMES.values())


def test_errors_keep_their_class_over_the_wire() -> None:
    def over(error: Exception) -> Error:
        frame = decode(encode(wire.error_frame(error)))
        assert isinstance(frame, Error)
        return frame

    frame = over(TooLong("the prompt has 9 tokens"))
    assert type(from_wire(frame.code, frame.message)) is TooLong
    assert len(over(TooLong("\0" * wire.MAX_CONTROL_BYTES)).message) <= 1000
    inner = over(KeyError("/some/path"))
    assert inner.code == "internal"
    assert "path" not in inner.message
