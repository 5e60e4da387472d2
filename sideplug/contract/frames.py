"""The frames: one frozen dataclass for each kind of message. docs/WIRE.md describes them in prose.

A field is either a *control* value (checked by msgspec against its type and bounds) or a *tensor* (a NumPy array whose
rank stands in its type). A field with a default may be left out. Positions count tokens from the prompt's first, 0;
the *row* of a position holds the hidden states behind its token, so row p predicts the token at position p + 1.

It does not know bytes (see wire) nor sessions. Test: pytest tests/contract/test_wire.py
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Annotated, Any, ClassVar

import msgspec
import numpy as np
from msgspec import Meta

from sideplug.contract.printable import STEERING

MAX_POSITIONS = 1 << 22  # of a text: far past every model's context
MAX_IDS = 1 << 20  # token ids in one field
MAX_ASKED = 2048  # positions in one ASK or ANSWER
MAX_MESSAGES = 4096
MAX_PARTS = 8  # parts of one plugin: each has a gate of its own
MAX_CAPABILITIES = 16  # asked for, or offered, in one session
MAX_WINDOW = 32  # asks that may be open while the cloud decodes speculatively
MAX_DRAFT = 32  # token ids that an answer may expect behind its position
MAX_FIRST_DRAFT = 512  # token ids that a prompt may expect its reply to begin with
MAX_MIXED = 64  # (token id, weight) pairs of one mixture
MAX_TOP = 20  # alternatives of each token
MAX_GREEDY_TOKENS = 512  # tokens of a reply that the base writes for the tape
ROWS_PER_FRAME = 2048  # head rows in one HEAD frame
BEST_IDS = 16  # of the base, at each token of an EXAMPLE
MAX_BUNDLE = 256  # rows of one CONTEXT
MAX_TENSORS = 12  # in one frame
MAX_VOCAB = 1 << 21  # tokens of a model: eight times what the largest vocabularies have
MAX_TOKEN_TEXT = 1024  # characters of one token
MAX_WAIT_S = 86400.0  # that an ERROR may ask a device to wait
MAX_LOGIT_SCALE = 1e6  # of what a head multiplies its logits by, and of its soft cap
MAX_DIMS = 4  # of a tensor
MAX_SENTENCE = 1000  # characters of an ERROR's message
HEADS = ("cloud", "device")  # where a token that the device was asked about is picked


class Kind(IntEnum):
    """The kinds of frames. The number is the byte on the wire."""

    OPEN = 1
    OPENED = 2
    PROMPT = 3
    TOKENS = 4
    ASK = 5
    ANSWER = 6
    DONE = 7
    CANCEL = 8
    READ = 9
    EXAMPLE = 10
    SCORE = 11
    SCORED = 12
    ROWS = 13
    HEAD = 14
    ERROR = 15
    BEGUN = 16
    CONTEXT = 17


@dataclass(frozen=True)
class Rank:
    """How many dimensions a tensor field has."""

    dims: int


Tensor1 = Annotated[np.ndarray, Rank(1)]
Tensor2 = Annotated[np.ndarray, Rank(2)]
Tensor3 = Annotated[np.ndarray, Rank(3)]

WORD = r"\A[ -~]*\Z"
Word = Annotated[str, Meta(max_length=64, pattern=WORD)]
Name = Annotated[str, Meta(max_length=256, pattern=rf"\A[^{STEERING}]*\Z")]  # printable
TapName = Annotated[str, Meta(max_length=2048)]  # 256 layers of three digits fit
Whole = Annotated[int, Meta(ge=0, lt=1 << 31)]
Position = Annotated[int, Meta(ge=0, le=MAX_POSITIONS)]
TokenId = Annotated[int, Meta(ge=0, lt=1 << 31)]
Ids = Annotated[list[TokenId], Meta(max_length=MAX_IDS)]
Positions = Annotated[list[Position], Meta(max_length=MAX_ASKED)]
Fingerprint = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
WantedBase = Annotated[str, Meta(pattern=r"\A(?:[0-9a-f]{64})?\Z")]  # "": any
Hash = Annotated[str, Meta(pattern=r"\A(?:[0-9a-f]{16})?\Z")]
Logp = Annotated[float, Meta(ge=-1e5, le=1e-3)]
Top = tuple[Annotated[str, Meta(max_length=MAX_TOKEN_TEXT)], Logp]  # a token's text and its log-probability
Tops = Annotated[list[Annotated[list[Top], Meta(max_length=MAX_TOP + 1)]], Meta(max_length=MAX_IDS)]
Extensions = Annotated[dict[Word, msgspec.Raw], Meta(max_length=MAX_CAPABILITIES)]


class Map(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A map inside a control map. Unknown keys are refused."""


class Message(Map, frozen=True):
    """One message of a chat."""

    role: Annotated[str, Meta(max_length=64)]
    content: str


class GateSpec(Map, frozen=True, omit_defaults=True):
    """A gate without its weights, which travel as a tensor."""

    kind: Word
    bias: float = 0.0
    threshold: float = 0.0
    memory: float = 0.0


class SamplingSpec(Map, frozen=True, omit_defaults=True):
    """See sampling.Sampling, which checks the ranges."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] = 0
    min_p: float = 0.0


class ModelInfo(Map, frozen=True):
    """The base model. `chat`: it has a chat template."""

    name: Name
    fingerprint: Fingerprint
    blocks: Annotated[int, Meta(ge=1, le=1 << 12)]
    width: Annotated[int, Meta(ge=1, le=1 << 16)]
    vocab: Annotated[int, Meta(ge=1, le=MAX_VOCAB)]
    context: Annotated[int, Meta(ge=1, le=MAX_POSITIONS)]
    chat: bool


class SessionLimits(Map, frozen=True):
    """readings: examples that may be in reading at once. message_bytes: the longest message that the cloud takes."""

    readings: Annotated[int, Meta(ge=1, le=1 << 12)]
    message_bytes: Annotated[int, Meta(ge=1 << 10, le=1 << 31)]


class Wanted(Map, frozen=True, omit_defaults=True):
    """A capability that a session asks for. `required`: without it the session makes no sense."""

    settings: msgspec.Raw
    required: bool = False


Capabilities = Annotated[dict[Word, Wanted], Meta(max_length=MAX_CAPABILITIES)]


@dataclass(frozen=True, eq=False)
class Frame:
    """Base of all frames. extensions: values of granted capabilities, by name (see capabilities)."""

    kind: ClassVar[Kind]
    extensions: Extensions = field(default_factory=dict, kw_only=True)


@dataclass(frozen=True, eq=False)
class Open(Frame):
    """Device → cloud, the first frame: which base, tap, merge and gates; the capabilities that it asks for.

    gate: (G, D) float32, one row for each *linear* gate, in the order of `gates`.
    """

    kind: ClassVar[Kind] = Kind.OPEN
    base: WantedBase
    tap: TapName
    merge: Word
    gates: Annotated[list[GateSpec], Meta(max_length=MAX_PARTS)]
    client: Name
    gate: Tensor2
    capabilities: Capabilities = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Opened(Frame):
    """Cloud → device: the session's id, the model, limits; the capabilities that are offered, and those granted."""

    kind: ClassVar[Kind] = Kind.OPENED
    session: Word
    model: ModelInfo
    limits: SessionLimits
    offers: Annotated[list[Word], Meta(max_length=64)] = field(default_factory=list)
    granted: Annotated[list[Word], Meta(max_length=MAX_CAPABILITIES)] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class PromptFrame(Frame):
    """Device → cloud: generate a reply to exactly one of messages, text or ids.

    window: asks that may be open while the cloud decodes speculatively. deadline_ms: after it the base's token is used;
    0: never. head: where asked tokens are picked. top: alternatives to tell of each token. done, hash: ids of the reply
    that the device has from before a break, and the running hash behind them. draft: ids that it expects the reply to
    begin with. gates: for this reply, "open", "shut" or "" (as OPEN says) for each part; [] as OPEN says.
    context: rows of this text that the device has; None: it wants none (capability "context").
    """

    kind: ClassVar[Kind] = Kind.PROMPT
    turn: Whole
    max_tokens: int
    sampling: SamplingSpec
    messages: Annotated[list[Message], Meta(max_length=MAX_MESSAGES)] | None = None
    text: str | None = None
    ids: Ids | None = None
    window: int = 0
    deadline_ms: int = 0
    head: Word = "cloud"
    top: int = 0
    done: Ids = field(default_factory=list)
    hash: Hash = ""
    draft: Annotated[list[TokenId], Meta(max_length=MAX_FIRST_DRAFT)] = field(default_factory=list)
    gates: Annotated[list[Word], Meta(max_length=MAX_PARTS)] = field(default_factory=list)
    context: Position | None = None


@dataclass(frozen=True, eq=False)
class Begun(Frame):
    """Cloud → device: the prompt was accepted: its tokens, how many of them were cached, the running hash behind it."""

    kind: ClassVar[Kind] = Kind.BEGUN
    turn: Whole
    prompt: Position
    cached: Position
    hash: Hash


@dataclass(frozen=True, eq=False)
class Tokens(Frame):
    """Cloud → device: settled tokens from position `at` on, their text, and who chose them."""

    kind: ClassVar[Kind] = Kind.TOKENS
    turn: Whole
    at: Position
    ids: Ids
    text: str
    by: Word
    top: Tops = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Context(Frame):
    """Cloud → device: rows from position `first` on, for which no answer is asked (capability "context").

    codes (C, K, R), scales (C, K): see tap.ContextSlice. A row that was sent before is replaced.
    """

    kind: ClassVar[Kind] = Kind.CONTEXT
    turn: Whole
    run: Whole
    first: Position
    codes: Tensor3
    scales: Tensor2


@dataclass(frozen=True, eq=False)
class Ask(Frame):
    """Cloud → device: correct the tokens at these positions. Row at − 1 of each is in codes (T, K, R), scales (T, K).

    start, ids: the text from position `start` on, as far as it was not sent before in this run. gates: for each
    position a number whose bit p says that the gate of part p is open; [] where there is one part. z (T, D) float16,
    where the device has the head.
    """

    kind: ClassVar[Kind] = Kind.ASK
    turn: Whole
    run: Whole
    at: Positions
    start: Position
    ids: Ids
    codes: Tensor3
    scales: Tensor2
    gates: Annotated[list[Whole], Meta(max_length=MAX_ASKED)] = field(default_factory=list)
    z: Tensor2 | None = None


@dataclass(frozen=True, eq=False)
class Answer(Frame):
    """Device → cloud: for each position a correction of z, a mixture, both or neither; or the token that it picked.

    delta (T, D), scales (T,): see correction. mix (T,) float32 the mixtures' weights λ; mix_ids, mix_weights (T, M).
    ids (T,) int32: the picks of a device that has the head. draft (T, n) int32: what it expects from there on, −1
    behind its end.
    """

    kind: ClassVar[Kind] = Kind.ANSWER
    turn: Whole
    run: Whole
    at: Positions
    draft: Tensor2
    delta: Tensor2 | None = None
    scales: Tensor1 | None = None
    mix: Tensor1 | None = None
    mix_ids: Tensor2 | None = None
    mix_weights: Tensor2 | None = None
    ids: Tensor1 | None = None


@dataclass(frozen=True, eq=False)
class Done(Frame):
    """Cloud → device: the reply is complete. why: stop, length or cancelled; counts: see reply.Counts."""

    kind: ClassVar[Kind] = Kind.DONE
    turn: Whole
    why: Word
    prompt: Position
    reply: Position
    counts: Annotated[dict[Word, Whole], Meta(max_length=32)]


@dataclass(frozen=True, eq=False)
class Cancel(Frame):
    """Device → cloud: stop the reply. DONE follows."""

    kind: ClassVar[Kind] = Kind.CANCEL
    turn: Whole


@dataclass(frozen=True, eq=False)
class Read(Frame):
    """Device → cloud: read one example for the tape. EXAMPLE follows, or an ERROR with its number.

    score: SCORE will follow. greedy_tokens: the base writes the reply itself, so many tokens at most. context: send
    the rows of the prompt too (capability "context"). tokens: send the reply's ids alone (capability "tokens").
    """

    kind: ClassVar[Kind] = Kind.READ
    number: Whole
    reply: str
    score: bool
    messages: Annotated[list[Message], Meta(max_length=MAX_MESSAGES)] | None = None
    text: str | None = None
    greedy_tokens: int = 0
    context: bool = False
    tokens: bool = False


@dataclass(frozen=True, eq=False)
class Example(Frame):
    """Cloud → device: what the frozen model made of an example with T reply tokens.

    ids (T,) int32; codes (T, K, R), scales (T, K) of the rows before them; z (T, D) and z_scales; top (T, 16) int32,
    the base's best ids; lse (T,) float32, the log-sum-exp of its logits. context (C, K', R'), context_scales: rows
    0 … C − 1, all before the first of codes. Where READ wanted tokens alone, all but ids have no rows.
    """

    kind: ClassVar[Kind] = Kind.EXAMPLE
    number: Whole
    ids: Tensor1
    codes: Tensor3
    scales: Tensor2
    z: Tensor2
    z_scales: Tensor1
    top: Tensor2
    lse: Tensor1
    context: Tensor3 | None = None
    context_scales: Tensor2 | None = None


@dataclass(frozen=True, eq=False)
class Score(Frame):
    """Device → cloud: its corrections of every position of an example that was read with score. SCORED follows."""

    kind: ClassVar[Kind] = Kind.SCORE
    number: Whole
    delta: Tensor2 | None = None
    scales: Tensor1 | None = None
    mix: Tensor1 | None = None
    mix_ids: Tensor2 | None = None
    mix_weights: Tensor2 | None = None


@dataclass(frozen=True, eq=False)
class Scored(Frame):
    """Cloud → device: log-probabilities (T,) float32 of the example's targets, by the base and corrected."""

    kind: ClassVar[Kind] = Kind.SCORED
    number: Whole
    base: Tensor1
    plugin: Tensor1


@dataclass(frozen=True, eq=False)
class Rows(Frame):
    """Device → cloud: send the head's rows of these token ids (n,) int32. HEAD follows."""

    kind: ClassVar[Kind] = Kind.ROWS
    part: Whole
    ids: Tensor1


@dataclass(frozen=True, eq=False)
class Head(Frame):
    """Cloud → device: rows (n, D) float16 and biases (n,) float32 of the head; its logits · scale, then a soft cap."""

    kind: ClassVar[Kind] = Kind.HEAD
    part: Whole
    scale: Annotated[float, Meta(gt=0, le=MAX_LOGIT_SCALE)]
    softcap: Annotated[float, Meta(ge=0, le=MAX_LOGIT_SCALE)]
    rows: Tensor2
    bias: Tensor1


@dataclass(frozen=True, eq=False)
class Error(Frame):
    """Cloud → device: what went wrong, as a code and one sentence. number: the example's whose READ was refused."""

    kind: ClassVar[Kind] = Kind.ERROR
    code: Word
    message: Annotated[str, Meta(max_length=MAX_SENTENCE)]
    number: Whole | None = None
    retry_s: Annotated[float, Meta(ge=0, le=MAX_WAIT_S)] | None = None


FRAMES: dict[Kind, type[Frame]] = {
    cls.kind: cls
    for cls in (
        Open,
        Opened,
        PromptFrame,
        Tokens,
        Ask,
        Answer,
        Done,
        Cancel,
        Read,
        Example,
        Score,
        Scored,
        Rows,
        Head,
        Error,
        Begun,
        Context,
    )
}


# The frames that a device sends; the cloud sends the others. What comes from the wrong side is not decoded.
FROM_DEVICE = frozenset({Kind.OPEN, Kind.PROMPT, Kind.ANSWER, Kind.CANCEL, Kind.READ, Kind.SCORE, Kind.ROWS})
FROM_CLOUD = frozenset(Kind) - FROM_DEVICE
WITH_TEXT = frozenset({Kind.PROMPT, Kind.READ, Kind.TOKENS, Kind.ASK})  # whose control map holds a text or its ids


@dataclass(frozen=True)
class Layout:
    """How a frame class stands on the wire. optional: the tensors that may be left out."""

    control: type[msgspec.Struct]
    names: tuple[str, ...]  # of the control fields
    ranks: dict[str, int]
    optional: frozenset[str]  # tensors


def layout(cls: type[Frame]) -> Layout:
    """The layout of a frame class."""
    return _LAYOUTS[cls.kind]


def _make_layout(cls: type[Frame]) -> Layout:
    hints = typing.get_type_hints(cls, include_extras=True)
    control: list[tuple[str, Any, Any]] = []
    ranks: dict[str, int] = {}
    optional = set()
    for each in dataclasses.fields(cls):
        hint = hints[each.name]
        rank = _rank(hint)
        if rank is not None:
            ranks[each.name] = rank
            if each.default is None:
                optional.add(each.name)
        elif each.default_factory is not dataclasses.MISSING:
            control.append((each.name, hint, msgspec.field(default_factory=each.default_factory)))
        elif each.default is not dataclasses.MISSING:
            control.append((each.name, hint, each.default))
        else:
            control.append((each.name, hint, msgspec.NODEFAULT))
    names = tuple(name for name, _, _ in control)
    shape = Annotated[list[int], Meta(max_length=MAX_DIMS)]
    listing: Any = Annotated[list[tuple[Word, Word, shape]], Meta(max_length=MAX_TENSORS)]
    control.append(("t", listing, msgspec.field(default_factory=list)))
    struct = msgspec.defstruct(
        cls.__name__,
        [(name, hint) if value is msgspec.NODEFAULT else (name, hint, value) for name, hint, value in control],
        kw_only=True,
        forbid_unknown_fields=True,
        omit_defaults=True,
    )
    return Layout(struct, names, ranks, frozenset(optional))


def _rank(hint: Any) -> int | None:
    """The rank of a tensor's type; None for a control field's."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next((rank for rank in map(_rank, typing.get_args(hint)) if rank is not None), None)
    return next((note.dims for note in getattr(hint, "__metadata__", ()) if isinstance(note, Rank)), None)


_LAYOUTS = {kind: _make_layout(cls) for kind, cls in FRAMES.items()}


def control_of(frame: Frame) -> dict[str, Any]:
    """The frame's control fields by name, without those that have their default."""
    shape = layout(type(frame))
    defaults = {each.name: _default(each) for each in dataclasses.fields(frame)}
    values = {name: getattr(frame, name) for name in shape.names}
    return {name: value for name, value in values.items() if name not in defaults or value != defaults[name]}


def _default(each: dataclasses.Field[Any]) -> Any:
    if each.default_factory is not dataclasses.MISSING:
        return each.default_factory()
    return each.default


def tensors_of(frame: Frame) -> dict[str, np.ndarray]:
    """The frame's tensors by name, without those that are left out."""
    values = {name: getattr(frame, name) for name in layout(type(frame)).ranks}
    return {name: value for name, value in values.items() if value is not None}
