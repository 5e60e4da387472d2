"""The rule by which the wire grows: asked for in OPEN, granted in OPENED, then allowed in frames; all bounded."""

from __future__ import annotations

import msgspec
import pytest

from sideplug.contract.capabilities import (
    CONTEXT,
    Capability,
    ContextSettings,
    check_extensions,
    extension_of,
    grant,
    settings_of,
    want,
)
from sideplug.contract.errors import InputError, ProtocolError
from sideplug.contract.frames import Cancel, Kind, Map, PromptFrame, SamplingSpec, Wanted
from sideplug.contract.wire import decode, encode


class GrammarSettings(Map, frozen=True):
    language: str


class Rules(Map, frozen=True):
    rules: str


GRAMMAR = Capability("grammar", GrammarSettings, 100, {Kind.PROMPT: Rules})
KNOWN = {"grammar": GRAMMAR, "context": CONTEXT}


def prompt(**extensions: Map) -> PromptFrame:
    packed = {name: msgspec.Raw(msgspec.msgpack.encode(value)) for name, value in extensions.items()}
    return PromptFrame(1, 1, SamplingSpec(), text="x", extensions=packed)


def test_granted_and_used() -> None:
    granted = grant(
        {"grammar": want(GrammarSettings("gbnf")), "future": want(Rules("?"), required=False)}, KNOWN.values()
    )
    assert granted == {"grammar": GrammarSettings("gbnf")}
    assert settings_of(granted, GRAMMAR, GrammarSettings) == GrammarSettings("gbnf")
    assert settings_of(granted, CONTEXT, ContextSettings) is None
    frame = decode(encode(prompt(grammar=Rules("a | b"))))
    check_extensions(frame, granted, KNOWN)
    assert extension_of(frame, GRAMMAR, Rules) == Rules("a | b")
    assert extension_of(prompt(), GRAMMAR, Rules) is None


def test_what_a_cloud_lacks_is_said() -> None:
    with pytest.raises(InputError, match="does not have 'future', which the session needs"):
        grant({"future": want(Rules("?"))}, KNOWN.values())


@pytest.mark.parametrize(
    "wanted",
    [
        Wanted(msgspec.Raw(msgspec.msgpack.encode({"language": 5}))),
        Wanted(msgspec.Raw(msgspec.msgpack.encode({"language": "x", "more": 1}))),
        Wanted(msgspec.Raw(b"\xc1")),
        want(GrammarSettings("x" * 200)),
    ],
)
def test_settings_have_a_schema_and_a_bound(wanted: Wanted) -> None:
    with pytest.raises(ProtocolError):
        grant({"grammar": wanted}, KNOWN.values())


def test_nothing_else_may_stand_in_a_frame() -> None:
    raw = msgspec.Raw(msgspec.msgpack.encode(Rules("a")))
    for frame, granted in (
        (prompt(grammar=Rules("a")), []),
        (prompt(future=Rules("a")), ["future"]),
        (Cancel(1, extensions={"grammar": raw}), ["grammar"]),
        (prompt(grammar=GrammarSettings("x")), ["grammar"]),
        (prompt(grammar=Rules("a" * 200)), ["grammar"]),
    ):
        with pytest.raises(ProtocolError):
            check_extensions(frame, granted, KNOWN)
