"""Optional capabilities of a session: the one rule by which the wire grows without a new version.

OPEN asks for capabilities by name, each with settings of a schema and of bounded size; OPENED says which ones the cloud
offers and which it granted. One that is required and not offered ends the session with a sentence; one that is not
required is left out. Once granted, the frames that a capability names may carry a value of its schema under
`extensions`. Nothing else may.

A new capability is one entry in CAPABILITIES and the code that uses it.
Test: pytest tests/contract/test_capabilities.py
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from sideplug.contract.errors import InputError, ProtocolError
from sideplug.contract.frames import MAX_MESSAGES, MAX_MIXED, MAX_VOCAB, Frame, Kind, Map, Wanted

M = TypeVar("M", bound=Map)
MAX_QUOTE = 8192  # token ids
MAX_BIASED = 16384  # tokens of a session's biases
MAX_GRAMMAR = 256 << 10  # bytes of a grammar's text
MAX_TOOLS = 512 << 10  # characters of a prompt's tools
MAX_MASKS = 256  # that a session remembers


class ContextSettings(Map, frozen=True):
    """Rows that no answer is asked for come down too, as a slice of the tap's codes: see tap.ContextSlice."""

    layers: Annotated[list[Annotated[int, Meta(ge=0, lt=1000)]], Meta(min_length=1, max_length=256)]
    rank: Annotated[int, Meta(ge=1, le=1 << 14)]


class MixtureSettings(Map, frozen=True):
    """Answers may bring mixtures of at most `pairs` (token id, weight) pairs for each position."""

    pairs: Annotated[int, Meta(ge=1, le=MAX_MIXED)] = MAX_MIXED


class QuoteSettings(Map, frozen=True):
    """A PROMPT may bring a quote."""


class Quote(Map, frozen=True):
    """What a reply begins with, whatever the base would say: mixtures with λ = 1 that are known before it is asked."""

    ids: Annotated[list[Annotated[int, Meta(ge=0, lt=MAX_VOCAB)]], Meta(min_length=1, max_length=MAX_QUOTE)]


class TokensSettings(Map, frozen=True):
    """A READ may want the tokens of its reply alone, for which the model need not run."""


class BiasOf(Map, frozen=True):
    """Of the plugin's part number `part`: token ids, little-endian int32, and what is added to them, float16."""

    part: Annotated[int, Meta(ge=0, lt=8)]
    ids: Annotated[bytes, Meta(min_length=4, max_length=4 * MAX_BIASED)]
    values: Annotated[bytes, Meta(min_length=2, max_length=2 * MAX_BIASED)]


class BiasSettings(Map, frozen=True):
    """What is added to the logits of some tokens wherever a part's gate is open: see bias.Bias."""

    of: Annotated[list[BiasOf], Meta(min_length=1, max_length=8)]


class TrunkOf(Map, frozen=True):
    """The plugin's part number `part` is the public trunk with these parameters: see plugins.base.digest."""

    part: Annotated[int, Meta(ge=0, lt=8)]
    params: Annotated[bytes, Meta(min_length=32, max_length=32)]


class TrunkSettings(Map, frozen=True):
    """The cloud may correct by itself where no other part than these has its gate open."""

    of: Annotated[list[TrunkOf], Meta(min_length=1, max_length=8)]


class GrammarSettings(Map, frozen=True):
    """A PROMPT may bring a grammar."""


class Grammar(Map, frozen=True):
    """What a reply must be: JSON that a schema allows ("json"; text: the schema), what a regular expression matches
    ("regex"), or what a grammar in Lark's notation derives ("lark"). At most 256 KiB.

    >>> sideplug.Grammar("regex", "yes|no").kind
    'regex'
    """

    kind: Literal["json", "regex", "lark"]
    text: Annotated[str, Meta(min_length=1, max_length=MAX_GRAMMAR)]


class Masks(Map, frozen=True):
    """Where the device picks the tokens: which of them the grammar allows at an ASK's positions.

    of: for each position the number of a mask. new: masks that the device does not have yet, or that replace one: see
    grammar.pack_mask.
    """

    of: Annotated[list[Annotated[int, Meta(ge=0, lt=MAX_MASKS)]], Meta(min_length=1, max_length=64)]
    new: Annotated[dict[Annotated[int, Meta(ge=0, lt=MAX_MASKS)], bytes], Meta(max_length=64)] = msgspec.field(
        default_factory=dict
    )


class ToolsSettings(Map, frozen=True):
    """A PROMPT may bring tools."""


class ToolUse(Map, frozen=True):
    """What a chat template is given beside roles and contents. JSON throughout, as OpenAI's chat completions write it.

    tools: a list of functions. choice: "auto", "required" (the reply is calls) or the name of the function that is to
    be called. turns: of some messages, by their index, the fields that they have beside role and content, or in their
    place (tool_calls, tool_call_id, role "tool").
    """

    tools: Annotated[str, Meta(min_length=2, max_length=MAX_TOOLS)]
    choice: Annotated[str, Meta(min_length=1, max_length=256)] = "auto"
    turns: Annotated[dict[Annotated[int, Meta(ge=0, lt=MAX_MESSAGES)], str], Meta(max_length=MAX_MESSAGES)] = (
        msgspec.field(default_factory=dict)
    )


class CallForm(Map, frozen=True):
    """How this base writes a call: `begin`, a JSON object with the function under `name` and its arguments under
    `arguments`, `end`. begin, end: without control tokens, which are no text; several: in a list."""

    begin: Annotated[str, Meta(max_length=256)]
    end: Annotated[str, Meta(max_length=256)]
    name: Annotated[str, Meta(min_length=1, max_length=64)]
    arguments: Annotated[str, Meta(min_length=1, max_length=64)]
    is_list: bool = False


@dataclass(frozen=True)
class Capability:
    """settings: the schema of what OPEN says. max_bytes: of the packed settings, and of each extension.

    extensions: for each kind of frame that may carry a value of this capability, that value's schema.
    """

    name: str
    settings: type[Map]
    max_bytes: int = 4096
    extensions: Mapping[Kind, type[Map]] = field(default_factory=dict)


CONTEXT = Capability("context", ContextSettings)
MIXTURE = Capability("mixture", MixtureSettings)
QUOTE = Capability("quote", QuoteSettings, 6 * MAX_QUOTE, {Kind.PROMPT: Quote})
TOKENS = Capability("tokens", TokensSettings)
BIAS = Capability("bias", BiasSettings, 6 * MAX_BIASED + 1024)
TRUNK = Capability("trunk", TrunkSettings)
GRAMMAR = Capability("grammar", GrammarSettings, MAX_GRAMMAR + 1024, {Kind.PROMPT: Grammar, Kind.ASK: Masks})
TOOLS = Capability("tools", ToolsSettings, 8 << 20, {Kind.PROMPT: ToolUse, Kind.BEGUN: CallForm})
CAPABILITIES: dict[str, Capability] = {
    each.name: each for each in (CONTEXT, MIXTURE, QUOTE, TOKENS, BIAS, TRUNK, GRAMMAR, TOOLS)
}


def want(settings: Map, required: bool = True) -> Wanted:
    """What OPEN says of a capability."""
    return Wanted(msgspec.Raw(msgspec.msgpack.encode(settings)), required)


def grant(wanted: Mapping[str, Wanted], offered: Iterable[Capability] = CAPABILITIES.values()) -> dict[str, Map]:
    """The settings of each capability that is wanted and offered. Raises InputError, ProtocolError (malformed ones)."""
    known = {each.name: each for each in offered}
    granted: dict[str, Map] = {}
    for name, want in wanted.items():
        if name in known:
            granted[name] = _parse(known[name], known[name].settings, want.settings)
        elif want.required:
            raise InputError(f"this cloud does not have {name[:64]!r}, which the session needs: use a newer cloud")
    return granted


def settings_of(granted: Mapping[str, Map], capability: Capability, schema: type[M]) -> M | None:
    """The granted settings of a capability; None where it was not granted."""
    settings = granted.get(capability.name)
    return settings if isinstance(settings, schema) else None


def extensions(values: Mapping[str, Map | None]) -> dict[str, msgspec.Raw]:
    """A frame's extensions, by the names of their capabilities; what is None is left out."""
    return {name: msgspec.Raw(msgspec.msgpack.encode(each)) for name, each in values.items() if each is not None}


def extension_of(frame: Frame, capability: Capability, schema: type[M]) -> M | None:
    """The value that a frame carries of a granted capability; None where it carries none. Raises ProtocolError."""
    value = frame.extensions.get(capability.name)
    if value is None:
        return None
    parsed = _parse(capability, schema, value)
    assert isinstance(parsed, schema)
    return parsed


def check_extensions(frame: Frame, granted: Collection[str], known: Mapping[str, Capability] = CAPABILITIES) -> None:
    """Raises ProtocolError for an extension that was not granted, may not stand in this frame, or is malformed."""
    for name, value in frame.extensions.items():
        capability = known.get(name)
        schema = capability.extensions.get(frame.kind) if capability else None
        if capability is None or schema is None or name not in granted:
            raise ProtocolError(f"{frame.kind.name} must not carry the extension {name[:64]!r}: it was not granted")
        _parse(capability, schema, value)


def _parse(capability: Capability, schema: type[M], value: msgspec.Raw) -> M:
    size = len(bytes(value))
    if size > capability.max_bytes:
        raise ProtocolError(f"{capability.name} must have at most {capability.max_bytes} bytes, got {size}")
    try:
        return msgspec.msgpack.decode(value, type=schema)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ProtocolError(f"{capability.name} is malformed: {error}") from error
