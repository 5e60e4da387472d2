"""The wire, without a socket: frames to bytes and bytes to frames (sans-I/O). docs/WIRE.md is its prose.

Rules that this file keeps:
  1. A frame is a 20-byte header, a control map, a payload. Every size stands in the header, before what it sizes.
  2. The control map is msgpack with string keys. No pickle, no extension types, nothing that can run.
  3. The payload is the tensors that the control map lists under "t", raw little-endian, in that order, without gaps.
  4. Each kind has its class in frames.py. A field or tensor that the class does not have is refused, both ways.
  5. Each side numbers its frames, and each frame has a checksum: loss, duplicates, reordering and corruption are found.
  6. Whatever is wrong with incoming bytes raises ProtocolError and nothing else, before memory is taken for it.

It does not know sockets, sessions, models or what the numbers mean. Test: pytest tests/contract/test_wire.py
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Collection
from typing import Any

import msgspec
import numpy as np

from sideplug.contract.errors import Busy, ProtocolError, TooLong
from sideplug.contract.frames import (
    FRAMES,
    MAX_DIMS,
    MAX_IDS,
    MAX_SENTENCE,
    MAX_TENSORS,
    MAX_WAIT_S,
    WITH_TEXT,
    Error,
    Frame,
    Kind,
    layout,
    tensors_of,
)

PATH = "/v1/session"  # where a cloud's WebSocket is
MODEL_PATH = "/v1/model"  # where it describes its model, as JSON
MAGIC = b"SP"
VERSION = 3
HEADER = struct.Struct("<2sBBIII")  # magic, version, kind, number, control_bytes, payload_bytes
CHECKSUM = struct.Struct("<I")  # CRC-32 of the header so far, and of all that follows
HEADER_BYTES = HEADER.size + CHECKSUM.size
MAX_CONTROL_BYTES = 4 << 20
SHORT_CONTROL_BYTES = 256 << 10  # of a kind that carries no text
MAX_PAYLOAD_BYTES = 64 << 20
MAX_FRAME_BYTES = HEADER_BYTES + MAX_CONTROL_BYTES + MAX_PAYLOAD_BYTES

DTYPES: dict[str, np.dtype[Any]] = {
    "i1": np.dtype("<i1"),
    "i4": np.dtype("<i4"),
    "f2": np.dtype("<f2"),
    "f4": np.dtype("<f4"),
}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_encoder = msgspec.msgpack.Encoder()
Buffer = bytes | memoryview


class _Lists(msgspec.Struct):
    """The lists of ids of a control map, not decoded, to be counted first; its other fields are passed over."""

    ids: msgspec.Raw = msgspec.Raw(b"\xc0")
    done: msgspec.Raw = msgspec.Raw(b"\xc0")


_lists = msgspec.msgpack.Decoder(_Lists)
_decoders = {kind: msgspec.msgpack.Decoder(layout(cls).control) for kind, cls in FRAMES.items()}


def encode(frame: Frame, number: int = 0) -> bytes:
    """The frame's bytes; `number`: of the frames that its side has sent before it on this connection.

    Raises ProtocolError (blame "local") for a frame that its class or the limits don't allow; TooLong for its text.
    """
    shape = layout(type(frame))
    tensors = tensors_of(frame)
    _check_ranks(frame.kind, {name: tensor.ndim for name, tensor in tensors.items()}, "local")
    listing: list[tuple[str, str, list[int]]] = []
    parts = []
    for name, tensor in tensors.items():
        dtype = tensor.dtype.newbyteorder("<")
        if dtype not in _DTYPE_NAMES:
            raise ProtocolError(f"tensor {name!r} must be one of {sorted(DTYPES)}, got {tensor.dtype}", "local")
        listing.append((name, _DTYPE_NAMES[dtype], list(tensor.shape)))
        parts.append(np.ascontiguousarray(tensor, dtype).tobytes())
    try:
        packed = _encoder.encode(shape.control(**{name: getattr(frame, name) for name in shape.names}, t=listing))
        _decoders[frame.kind].decode(packed)  # what the other side would refuse is refused here
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError) as error:
        raise ProtocolError(f"{frame.kind.name} can't be packed: {error}", "local") from error
    payload = b"".join(parts)
    if len(packed) > MAX_CONTROL_BYTES:  # it holds the person's text
        size, most = (f"{count / (1 << 20):.1f}" for count in (len(packed), MAX_CONTROL_BYTES))
        raise TooLong(f"the text must have at most {most} MiB, got {size} MiB: no base model takes so much")
    if len(packed) > _control_limit(frame.kind):
        raise ProtocolError(f"a message without text must have at most {SHORT_CONTROL_BYTES:,} bytes", "local")
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise ProtocolError(f"a message must carry at most {MAX_PAYLOAD_BYTES:,} bytes, got {len(payload):,}", "local")
    return join(frame.kind, packed, payload, number)


def _check_ranks(kind: Kind, ranks: dict[str, int], blame: str) -> None:
    shape = layout(FRAMES[kind])
    for name, rank in ranks.items():
        if shape.ranks.get(name) != rank:
            raise ProtocolError(f"{kind.name} must not carry a tensor {name!r} of {rank} dimensions", blame)
    for name in shape.ranks:
        if name not in ranks and name not in shape.optional:
            raise ProtocolError(f"{kind.name} must carry the tensor {name!r}", blame)


def _control_limit(kind: Kind) -> int:
    return MAX_CONTROL_BYTES if kind in WITH_TEXT else SHORT_CONTROL_BYTES


def join(kind: int, packed: bytes, payload: bytes = b"", number: int = 0) -> bytes:
    """A frame of a packed control map and a payload, whatever they are."""
    header = HEADER.pack(MAGIC, VERSION, kind, number & 0xFFFFFFFF, len(packed), len(payload))
    return header + CHECKSUM.pack(_checksum(header, packed, payload)) + packed + payload


def _checksum(*parts: Buffer) -> int:
    found = 0
    for part in parts:
        found = zlib.crc32(part, found)
    return found


class Decoder:
    """Bytes in, frames out: `feed` may be given any split of the stream. After an error it is not to be used again."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """All frames that are complete now. Raises ProtocolError (blame "remote") for bytes outside the format."""
        self._buffer += data
        frames = []
        while len(self._buffer) >= HEADER_BYTES:
            header = bytes(self._buffer[:HEADER_BYTES])
            kind, control_bytes, payload_bytes = _parse_header(header[: HEADER.size])
            total = HEADER_BYTES + control_bytes + payload_bytes
            if len(self._buffer) < total:
                break
            body = bytes(self._buffer[HEADER_BYTES:total])
            del self._buffer[:total]
            if CHECKSUM.unpack(header[HEADER.size :])[0] != _checksum(header[: HEADER.size], body):
                raise ProtocolError(f"a {kind.name} message arrived changed: its checksum is wrong")
            frames.append(_parse_body(kind, body[:control_bytes], body[control_bytes:]))
        return frames

    @property
    def pending_bytes(self) -> int:
        """Bytes of a frame that has begun and is not complete."""
        return len(self._buffer)


def frame_size(start: bytes) -> int:
    """Bytes of the whole frame that begins so (HEADER_BYTES of it). Raises ProtocolError."""
    _, control_bytes, payload_bytes = _parse_header(start[: HEADER.size])
    return HEADER_BYTES + control_bytes + payload_bytes


def decode(
    message: bytes, number: int | None = None, kinds: Collection[Kind] = frozenset(Kind), most_ids: int = MAX_IDS
) -> Frame:
    """The one frame of a message that must hold exactly one, and have this number if one is given.

    `kinds`: those that may come; `most_ids`: the most token ids in one list. Both are checked before anything is
    decoded, and nothing is copied: the tensors are parts of the message. Raises ProtocolError.
    """
    if len(message) < HEADER_BYTES:
        raise ProtocolError(f"a message must be one and whole, got {len(message)} bytes")
    kind, control_bytes, payload_bytes = _parse_header(message[: HEADER.size])
    if kind not in kinds:
        raise ProtocolError(f"{kind.name} must not come from this side")
    whole = HEADER_BYTES + control_bytes + payload_bytes
    if len(message) != whole:
        raise ProtocolError(f"a message must be one and whole, of {whole} bytes, got {len(message)}")
    body = memoryview(message)[HEADER_BYTES:]
    if CHECKSUM.unpack_from(message, HEADER.size)[0] != _checksum(message[: HEADER.size], body):
        raise ProtocolError(f"a {kind.name} message arrived changed: its checksum is wrong")
    got = HEADER.unpack_from(message)[3]
    if number is not None and got != number & 0xFFFFFFFF:
        raise ProtocolError(f"a message is lost, doubled or out of order: number {number} must come, got {got}")
    return _parse_body(kind, body[:control_bytes], body[control_bytes:], most_ids)


def _parse_header(header: bytes) -> tuple[Kind, int, int]:
    magic, version, kind, _, control_bytes, payload_bytes = HEADER.unpack(header)
    if magic != MAGIC:
        raise ProtocolError(f"a message must begin with {MAGIC!r}, got {magic!r}")
    if version != VERSION:
        raise ProtocolError(
            f"the wire's version must be {VERSION}, got {version}: use one version of sideplug on both sides"
        )
    if kind not in Kind.__members__.values():
        raise ProtocolError(f"the message's kind must be 1 to {max(Kind)}, got {kind}")
    if control_bytes > _control_limit(Kind(kind)):
        raise ProtocolError(
            f"the control map of {Kind(kind).name} must have at most {_control_limit(Kind(kind))} bytes, "
            f"got {control_bytes}"
        )
    if payload_bytes > MAX_PAYLOAD_BYTES:
        raise ProtocolError(f"a payload must have at most {MAX_PAYLOAD_BYTES} bytes, got {payload_bytes}")
    return Kind(kind), control_bytes, payload_bytes


def _parse_body(kind: Kind, packed: Buffer, payload: Buffer, most_ids: int = MAX_IDS) -> Frame:
    try:
        if kind in WITH_TEXT and len(packed) > most_ids:  # an id takes a byte or more, so fewer bytes are fewer ids
            lists = _lists.decode(packed)
            if max(_length(lists.ids), _length(lists.done)) > most_ids:
                raise ProtocolError(f"{kind.name} must have at most {most_ids} token ids")
        control: Any = _decoders[kind].decode(packed)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ProtocolError(f"{kind.name} has a malformed control map: {error}") from error
    tensors = _parse_tensors(kind, control.t, payload)
    _check_ranks(kind, {name: tensor.ndim for name, tensor in tensors.items()}, "remote")
    cls: Any = FRAMES[kind]
    frame: Frame = cls(**{name: getattr(control, name) for name in layout(cls).names}, **tensors)
    return frame


def _length(packed: msgspec.Raw) -> int:
    """How many elements a packed value has if it is a list, by its first bytes; 0 for any other value."""
    start = bytes(memoryview(packed)[:5])
    if start[0] >> 4 == 0x9:
        return start[0] & 0xF
    size = {0xDC: 2, 0xDD: 4}.get(start[0], 0)
    return int.from_bytes(start[1 : 1 + size], "big")


def _parse_tensors(kind: Kind, listing: list[tuple[str, str, list[int]]], payload: Buffer) -> dict[str, np.ndarray]:
    if len(listing) > MAX_TENSORS:
        raise ProtocolError(f"{kind.name} must list at most {MAX_TENSORS} tensors")
    tensors: dict[str, np.ndarray] = {}
    offset = 0
    for name, dtype_name, shape in listing:
        if dtype_name not in DTYPES:
            raise ProtocolError(f"{kind.name} tensor {name!r} must be one of {sorted(DTYPES)}")
        if len(shape) > MAX_DIMS or not all(0 <= n <= MAX_PAYLOAD_BYTES for n in shape):
            raise ProtocolError(f"{kind.name} tensor {name!r} must have a shape of at most {MAX_DIMS} small integers")
        if math.prod(max(1, n) for n in shape) > MAX_PAYLOAD_BYTES:  # a zero must not hide what NumPy would refuse
            raise ProtocolError(f"{kind.name} tensor {name!r} must have at most {MAX_PAYLOAD_BYTES} elements")
        count = math.prod(shape)
        size = count * DTYPES[dtype_name].itemsize
        if name in tensors or offset + size > len(payload):
            raise ProtocolError(f"{kind.name} tensor {name!r} stands twice or reaches past the payload")
        tensors[name] = np.frombuffer(payload, DTYPES[dtype_name], count, offset).reshape(shape)
        offset += size
    if offset != len(payload):
        raise ProtocolError(f"{kind.name} has {len(payload)} payload bytes, its tensors say {offset}")
    return tensors


def error_frame(error: Exception, number: int | None = None) -> Error:
    """The ERROR frame of an exception; only our own errors' sentences travel, others as "internal".

    `number`: of the example whose READ was refused.
    """
    code = getattr(error, "code", "internal")
    message = str(error) if code != "internal" else "the cloud met a fault of its own; its log has the details"
    retry_s = min(float(error.retry_s), MAX_WAIT_S) if isinstance(error, Busy) and error.retry_s is not None else None
    return Error(code, message[:MAX_SENTENCE], number, retry_s)
