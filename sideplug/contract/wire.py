"""The wire, without a socket: frames to bytes and bytes to frames (sans-I/O). docs/WIRE.md is its prose.

Rules that this file keeps:
  1. A frame is a 20-byte header, a control map, a payload. Every size stands in the header, before what it sizes.
  2. The control map is msgpack with string keys. No pickle, no extension types, nothing that can run.
  3. The payload is the tensors that the control map lists under "t", raw little-endian, in that order, without gaps.
  4. Each kind has its row in SCHEMA. A field or tensor that the row does not name is refused, both ways.
  5. Each side numbers its frames, and each frame has a checksum: none is lost, doubled, swapped or bent unseen.
  6. Whatever is wrong with incoming bytes raises ProtocolError and nothing else, before memory is taken for it.

It does not know sockets, sessions, models or what the numbers mean. Test: pytest tests/contract/test_wire.py
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import msgpack
import numpy as np

from sideplug.contract.errors import Busy, ProtocolError

PATH = "/v1/session"  # where a cloud's WebSocket is
MAGIC = b"SP"
VERSION = 2
HEADER = struct.Struct("<2sBBIII")  # magic, version, kind, number, control_bytes, payload_bytes
CHECKSUM = struct.Struct("<I")  # CRC-32 of the header so far, and of all that follows
HEADER_BYTES = HEADER.size + CHECKSUM.size
MAX_CONTROL_BYTES = 4 << 20
MAX_PAYLOAD_BYTES = 64 << 20
MAX_FRAME_BYTES = HEADER_BYTES + MAX_CONTROL_BYTES + MAX_PAYLOAD_BYTES
ROWS_PER_FRAME = 2048  # head rows in one HEAD frame
MAX_AHEAD = 32  # asks that may be open while the cloud goes on
MAX_DRAFT = 32  # token ids that an answer may expect behind its position
HEADS = ("cloud", "device")  # where a token that the device was asked about is picked
MAX_TOP = 20  # alternatives that may be told of each token
MAX_WRITTEN = 512  # tokens of a reply that the base writes for the tape
MAX_SENTENCE = 1000  # characters of an ERROR's message: it may repeat what it complains of
MAX_TENSORS = 8
MAX_DIMS = 4

DTYPES: dict[str, np.dtype[Any]] = {
    "i1": np.dtype("<i1"),
    "i4": np.dtype("<i4"),
    "f2": np.dtype("<f2"),
    "f4": np.dtype("<f4"),
}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Kind(IntEnum):
    OPEN = 1  # device → cloud: which base, tap, gate (its weights; none for one that is open or shut)
    OPENED = 2  # cloud → device: session id, the model's shape, limits
    PROMPT = 3  # device → cloud: generate
    TOKENS = 4  # cloud → device: accepted tokens and their text
    ASK = 5  # cloud → device: codes of positions whose gate is open
    ANSWER = 6  # device → cloud: corrections for those positions (or its choices), and what it expects to follow
    DONE = 7  # cloud → device: the reply is complete
    CANCEL = 8  # device → cloud: stop the reply
    READ = 9  # device → cloud: one example, to be read for the tape (or to be scored)
    EXAMPLE = 10  # cloud → device: what the tape keeps of it
    SCORE = 11  # device → cloud: corrections for every position of an example read with score=True
    SCORED = 12  # cloud → device: exact log-probabilities of its target tokens, base and corrected
    ROWS = 13  # device → cloud: rows of the head, by token id
    HEAD = 14  # cloud → device: those rows
    ERROR = 15  # cloud → device: code and one sentence; of a READ, its number
    BEGUN = 16  # cloud → device: the prompt is taken: its tokens, what of them is in memory, the running hash


@dataclass(frozen=True)
class Row:
    """What one kind may carry: control fields and tensors with their rank (`?` after a name: optional)."""

    control: dict[str, type | tuple[type, ...]]
    tensors: dict[str, int] = field(default_factory=dict)


SCHEMA: dict[Kind, Row] = {
    Kind.OPEN: Row({"base": str, "tap": str, "merge": str, "gate": dict, "client": str}, {"gate": 1}),
    Kind.OPENED: Row({"session": str, "model": dict, "limits": dict}),
    Kind.PROMPT: Row(
        {
            "turn": int,
            "messages?": list,
            "text?": str,
            "ids?": list,
            "max_tokens": int,
            "sampling": dict,
            "ahead?": int,
            "deadline_ms?": int,
            "head?": str,
            "top?": int,
            "done?": list,
            "hash?": str,
        }
    ),
    Kind.TOKENS: Row({"turn": int, "at": int, "ids": list, "text": str, "by": str, "top?": list}),
    Kind.ASK: Row({"turn": int, "run": int, "at": list, "from": int, "ids": list}, {"codes": 3, "scales": 2, "z?": 2}),
    Kind.ANSWER: Row({"turn": int, "run": int, "at": list}, {"delta?": 2, "scales?": 1, "ids?": 1, "draft": 2}),
    Kind.DONE: Row({"turn": int, "why": str, "prompt": int, "reply": int, "counts": dict}),
    Kind.CANCEL: Row({"turn": int}),
    Kind.READ: Row({"number": int, "messages?": list, "text?": str, "reply": str, "score": bool, "write?": int}),
    Kind.EXAMPLE: Row(
        {"number": int},
        {"ids": 1, "codes": 3, "scales": 2, "z": 2, "z_scales": 1, "top": 2, "lse": 1},
    ),
    Kind.SCORE: Row({"number": int}, {"delta": 2, "scales": 1}),
    Kind.SCORED: Row({"number": int}, {"base": 1, "plugin": 1}),
    Kind.ROWS: Row({"part": int}, {"ids": 1}),
    Kind.HEAD: Row({"part": int, "scale": float, "softcap": float}, {"rows": 2, "bias": 1}),
    Kind.ERROR: Row({"code": str, "message": str, "number?": int, "retry_s?": float}),
    Kind.BEGUN: Row({"turn": int, "prompt": int, "kept": int, "hash": str}),
}


@dataclass
class Frame:
    """One message: its kind, the control map without "t", the tensors by name."""

    kind: Kind
    control: dict[str, Any]
    tensors: dict[str, np.ndarray] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Any:
        return self.control[key]


def _fits(value: Any, types: type | tuple[type, ...]) -> bool:
    if isinstance(value, bool):
        return types is bool
    return isinstance(value, types)


def _check_against_schema(kind: Kind, control: dict[str, Any], ranks: dict[str, int], blame: str) -> None:
    row = SCHEMA[kind]
    allowed = {name.rstrip("?"): types for name, types in row.control.items()}
    for name in control:
        if name not in allowed:
            raise ProtocolError(f"{kind.name} must not carry the field {name!r}", blame)
    for name, types in row.control.items():
        key = name.rstrip("?")
        if key not in control:
            if name.endswith("?"):
                continue
            raise ProtocolError(f"{kind.name} must carry the field {key!r}", blame)
        if not _fits(control[key], types):
            got = type(control[key]).__name__
            raise ProtocolError(f"{kind.name} field {key!r} must be {_names(types)}, got {got}", blame)
    tensors = {name.rstrip("?"): rank for name, rank in row.tensors.items()}
    for name, rank in ranks.items():
        if tensors.get(name) != rank:
            raise ProtocolError(f"{kind.name} must not carry a tensor {name!r} of {rank} dimensions", blame)
    for name in row.tensors:
        if not name.endswith("?") and name not in ranks:
            raise ProtocolError(f"{kind.name} must carry the tensor {name!r}", blame)


def _names(types: type | tuple[type, ...]) -> str:
    return " or ".join(t.__name__ for t in (types if isinstance(types, tuple) else (types,)))


def encode(frame: Frame, number: int = 0) -> bytes:
    """The frame's bytes; `number`: of the frames that its side has sent before it on this connection.

    Raises ProtocolError (blame "local") for a frame that SCHEMA or the limits don't allow.
    """
    ranks = {name: tensor.ndim for name, tensor in frame.tensors.items()}
    _check_against_schema(frame.kind, frame.control, ranks, "local")
    listing = []
    parts = []
    for name, tensor in frame.tensors.items():
        dtype = tensor.dtype.newbyteorder("<")
        if dtype not in _DTYPE_NAMES:
            raise ProtocolError(f"tensor {name!r} must be one of {sorted(DTYPES)}, got {tensor.dtype}", "local")
        listing.append([name, _DTYPE_NAMES[dtype], list(tensor.shape)])
        parts.append(np.ascontiguousarray(tensor, dtype).tobytes())
    control = dict(frame.control, t=listing) if listing else frame.control
    try:
        packed: bytes = msgpack.packb(control, use_bin_type=True)
    except (TypeError, ValueError, OverflowError) as error:
        raise ProtocolError(f"{frame.kind.name} has a control map that can't be packed: {error}", "local") from error
    payload = b"".join(parts)
    if len(packed) > MAX_CONTROL_BYTES or len(payload) > MAX_PAYLOAD_BYTES:
        raise ProtocolError(
            f"a {frame.kind.name} frame must have at most {MAX_CONTROL_BYTES} control bytes and "
            f"{MAX_PAYLOAD_BYTES} payload bytes, got {len(packed)} and {len(payload)}",
            "local",
        )
    return join(frame.kind, packed, payload, number)


def join(kind: int, packed: bytes, payload: bytes = b"", number: int = 0) -> bytes:
    """A frame of a packed control map and a payload, whatever they are."""
    header = HEADER.pack(MAGIC, VERSION, kind, number & 0xFFFFFFFF, len(packed), len(payload))
    return header + CHECKSUM.pack(_checksum(header, packed, payload)) + packed + payload


def _checksum(*parts: bytes) -> int:
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
                raise ProtocolError(f"a {kind.name} frame arrived changed: its checksum is wrong")
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


def decode(message: bytes, number: int | None = None) -> Frame:
    """The one frame of a message that must hold exactly one, and have this number if one is given.

    Raises ProtocolError.
    """
    decoder = Decoder()
    frames = decoder.feed(message)
    if len(frames) != 1 or decoder.pending_bytes:
        raise ProtocolError(f"a message must hold one whole frame, got {len(frames)} and {decoder.pending_bytes} bytes")
    if number is not None and HEADER.unpack_from(message)[3] != number & 0xFFFFFFFF:
        raise ProtocolError(
            f"a frame is lost, doubled or out of order: number {number} must come, got {HEADER.unpack_from(message)[3]}"
        )
    return frames[0]


def _parse_header(header: bytes) -> tuple[Kind, int, int]:
    magic, version, kind, _, control_bytes, payload_bytes = HEADER.unpack(header)
    if magic != MAGIC:
        raise ProtocolError(f"a frame must begin with {MAGIC!r}, got {magic!r}")
    if version != VERSION:
        raise ProtocolError(f"the wire's version must be {VERSION}, got {version}")
    if kind not in Kind.__members__.values():
        raise ProtocolError(f"the frame's kind must be 1 to {max(Kind)}, got {kind}")
    if control_bytes > MAX_CONTROL_BYTES:
        raise ProtocolError(f"a control map must have at most {MAX_CONTROL_BYTES} bytes, got {control_bytes}")
    if payload_bytes > MAX_PAYLOAD_BYTES:
        raise ProtocolError(f"a payload must have at most {MAX_PAYLOAD_BYTES} bytes, got {payload_bytes}")
    return Kind(kind), control_bytes, payload_bytes


def _parse_body(kind: Kind, packed: bytes, payload: bytes) -> Frame:
    try:
        control = msgpack.unpackb(packed, raw=False, strict_map_key=True, max_ext_len=0, ext_hook=_no_extension)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise ProtocolError(f"{kind.name} has a control map that is not msgpack: {error or type(error)}") from error
    if not isinstance(control, dict) or not all(isinstance(key, str) for key in control):
        raise ProtocolError(f"{kind.name} must have a control map with string keys")
    tensors = _parse_tensors(kind, control.pop("t", []), payload)
    _check_against_schema(kind, control, {name: tensor.ndim for name, tensor in tensors.items()}, "remote")
    return Frame(kind, control, tensors)


def _no_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"extension type {code}")  # max_ext_len lets one of no bytes pass


def _parse_tensors(kind: Kind, listing: Any, payload: bytes) -> dict[str, np.ndarray]:
    if not isinstance(listing, list) or len(listing) > MAX_TENSORS:
        raise ProtocolError(f"{kind.name} must list at most {MAX_TENSORS} tensors")
    tensors: dict[str, np.ndarray] = {}
    offset = 0
    for entry in listing:
        if not isinstance(entry, list) or len(entry) != 3 or not isinstance(entry[0], str):
            raise ProtocolError(f"{kind.name} must list each tensor as [name, dtype, shape]")
        name, dtype_name, shape = entry
        if not isinstance(dtype_name, str) or dtype_name not in DTYPES:
            raise ProtocolError(f"{kind.name} tensor {name!r} must be one of {sorted(DTYPES)}")
        if (
            not isinstance(shape, list)
            or len(shape) > MAX_DIMS
            or not all(type(n) is int and 0 <= n <= MAX_PAYLOAD_BYTES for n in shape)
        ):
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


def error_frame(error: Exception, number: int | None = None) -> Frame:
    """The ERROR frame of an exception; only our own errors' sentences travel, others as "internal".

    `number` is the example's whose READ was refused.
    """
    code = getattr(error, "code", "internal")
    message = str(error) if code != "internal" else "the cloud met a fault of its own; its log has the details"
    control: dict[str, Any] = {"code": code, "message": message[:MAX_SENTENCE]}
    if isinstance(error, Busy) and error.retry_s is not None:
        control["retry_s"] = float(error.retry_s)
    return Frame(Kind.ERROR, control if number is None else {**control, "number": number})
