"""The audit makes again what went up: an honest session is verified to the bit, and leaking clients are found.

LEAKS are clients that send something else than their plugin does, one line each. HIDDEN are those that nobody can find:
the audit must say of each that it can't be ruled out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from sideplug.contract.capabilities import Grammar
from sideplug.contract.frames import (
    Answer,
    Begun,
    Cancel,
    Frame,
    GateSpec,
    Kind,
    Open,
    PromptFrame,
    Read,
    Rows,
    Score,
    control_of,
)
from sideplug.contract.gate import Gate
from sideplug.contract.sampling import Sampling
from sideplug.contract.text import Prompt
from sideplug.contract.wire import HEADER, decode, encode, join
from sideplug.device import audit
from sideplug.device.client import Client
from sideplug.device.head import DeviceHead
from sideplug.device.link import WebSocketLink
from sideplug.device.reconnect import RetryPolicy
from sideplug.device.reply import DecodeOptions, quoted
from sideplug.device.responders import PluginResponder
from sideplug.device.session import Session
from sideplug.memory.part import Memory
from sideplug.memory.store import Entry
from sideplug.plugins import ANY_BASE, Plugin
from sideplug.readers import Example
from sideplug.training import recorder
from tests.conftest import Cloud, a_link, a_plugin, a_session

Heard = list[tuple[str, Frame]]
EXAMPLES = [Example(Prompt.user("Is it far?"), "As far as your feet are tired.", "x:1")] * 2
rng = np.random.default_rng(0)


@lru_cache
def the_plugin(cloud: Cloud) -> Plugin:
    """A plugin with a gate, whose phrases it will really say."""
    plugin = a_plugin(cloud.base.fingerprint)
    weight = np.random.default_rng(5).normal(size=64).astype(np.float32)
    plugin.trained.gate = Gate("linear", weight, 0.5, -3.0, 0.4, (-9.0, -1.0, 9.0))
    with a_session(cloud.url, plugin) as session:
        reply = session.generate(Prompt(text="the bridge had"), 24)
        list(reply)
    plugin.trained.phrases = np.array(reply.ids, np.int32)
    return plugin


@pytest.fixture(scope="module")
def heard(cloud: Cloud, tmp_path_factory: pytest.TempPathFactory) -> Heard:
    """All that an honest device says in a session, and what it hears."""
    messages: list[tuple[str, bytes]] = []
    plugin = the_plugin(cloud)
    with a_session(a_link(cloud.url, record=lambda way, message: messages.append((way, message))), plugin) as session:
        list(session.generate("Is it far?", 16))
        list(session.generate(Prompt(text="Anna wrote"), 12, Sampling(0.9, seed=7), DecodeOptions(window=0)))
        given_up = session.generate(Prompt(ids=(5, 6)), 200, options=DecodeOptions(top=2))
        next(given_up)
        given_up.close()
        list(session.generate(Prompt(text="the bridge had"), 24))
        recorder.score(session, EXAMPLES)
        recorder.record(session, plugin.tap, EXAMPLES, tmp_path_factory.mktemp("tape") / "x.tape")
        folder = tmp_path_factory.mktemp("heads")
        head = DeviceHead.fetch(session.link, folder, session.model.fingerprint, session.model.vocab)
        list(session.generate("Is it far?", 6, options=DecodeOptions(head=head)))
    return [(way, decode(message)) for way, message in messages]


def as_sent(frames: Heard) -> list[tuple[str, bytes]]:
    """The frames as messages, with the numbers that they need."""
    numbers = {">": 0, "<": 0}
    out = []
    for way, frame in frames:
        out.append((way, encode(frame, numbers[way])))
        numbers[way] += 1
    return out


def audited(messages: list[tuple[str, bytes]], plugin: Plugin) -> audit.Report:
    return audit.report(messages, plugin)


def test_an_honest_session_is_made_again_to_the_bit(cloud: Cloud, heard: Heard) -> None:
    report = audited(as_sent(heard), the_plugin(cloud))
    assert report.replay is not None
    assert (dict(report.replay.wrong), report.replay.rounded, report.clean) == ({}, 0, True)
    count = sum(isinstance(frame, Answer) and frame.ids is None for _, frame in heard)
    assert report.replay.verified["answers"] == count > 20
    assert report.replay.verified["scores"] == 2
    assert report.replay.verified["prompts"] == 5
    assert any(frame.draft.size for _, frame in heard if isinstance(frame, Answer)), "or no draft is verified"
    lines = "\n".join(report.lines())
    assert "Made again with your plugin and found the same, bit by bit: 1 openings" in lines
    assert "token ids that your plugin picked were not picked again" in lines
    assert "You, or your app, chose seed: 0, 7." in lines


@pytest.mark.parametrize("drop", [3, 6, 11, 17])
@pytest.mark.parametrize("window", [0, 24])
def test_a_reply_that_broke_off_is_made_again_too(cloud: Cloud, drop: int, window: int) -> None:
    messages: list[tuple[str, bytes]] = []
    client = Client.at(cloud.url)
    left = [drop]

    class Breaking(WebSocketLink):
        def _receive(self, timeout_s: float) -> Any:
            left[0] -= 1
            if left[0] == 0:
                self.close()
            return super()._receive(timeout_s)

    def connect() -> WebSocketLink:
        link = WebSocketLink.open(client.address, lambda way, message: messages.append((way, message)))
        link.__class__ = Breaking
        return link

    plugin = the_plugin(cloud)
    with Session(connect(), PluginResponder(plugin), connect, RetryPolicy(20.0)) as session:
        list(session.generate("Is it far?", 12, options=DecodeOptions(window=window)))
        list(session.generate("And back?", 4, options=DecodeOptions(window=window)))
    assert sum(message[3] == Kind.OPEN for way, message in messages if way == ">") == 2
    report = audited(messages, plugin)
    assert report.replay is not None
    assert dict(report.replay.wrong) == {}
    assert report.clean


def test_sessions_at_once_are_taken_apart(cloud: Cloud) -> None:
    """As a gateway's transcript has them."""
    messages: list[tuple[str, bytes]] = []
    plugin = the_plugin(cloud)
    sessions = [
        a_session(a_link(cloud.url, record=lambda way, m, name=name: messages.append((name + way, m))), plugin)
        for name in ("1", "2")
    ]
    replies = [session.generate(f"Is it far, {n}?", 10) for n, session in enumerate(sessions)]
    for _ in range(3):
        for reply in replies:
            next(reply)
    for reply, session in zip(replies, sessions, strict=True):
        list(reply)
        session.close()
    report = audited(messages, plugin)
    assert report.replay is not None
    assert dict(report.replay.wrong) == {}


# ── clients that leak ─────────────────────────────────────────────────────────────────────────────────────────────────


def first(frames: Heard, kind: type[Frame], nth: int = 0, where: Callable[[Any], bool] = lambda frame: True) -> int:
    return [n for n, (way, f) in enumerate(frames) if way == ">" and isinstance(f, kind) and where(f)][nth]


def changed(
    kind: type[Frame], nth: int = 0, where: Callable[[Any], bool] = lambda frame: True, **fields: Any
) -> Callable[[Heard], Heard]:
    """One message of this kind has these fields, or what these functions make of them."""

    def change(frames: Heard) -> Heard:
        at = first(frames, kind, nth, where)
        frame: Any = frames[at][1]
        new = {name: each(getattr(frame, name)) if callable(each) else each for name, each in fields.items()}
        return [*frames[:at], (">", replace(frame, **new)), *frames[at + 1 :]]

    return change


def added(make: Callable[[Heard], Frame], behind: type[Frame] = Answer, nth: int = 0) -> Callable[[Heard], Heard]:
    """One message more."""

    def change(frames: Heard) -> Heard:
        at = first(frames, behind, nth) + 1
        return [*frames[:at], (">", make(frames)), *frames[at:]]

    return change


def low_bits(delta: np.ndarray) -> np.ndarray:
    noisy: np.ndarray = np.clip(delta.astype(np.int16) ^ rng.integers(0, 2, delta.shape), -127, 127).astype(np.int8)
    return noisy


def an_answer(frames: Heard) -> Frame:
    return frames[first(frames, Answer)][1]


def corrected(answer: Answer) -> bool:
    return answer.delta is not None


def of_draft(answer: Answer) -> bool:
    return answer.draft.shape[1] > 2


GRADIENT = rng.normal(size=64).astype(np.float32)
AT = 3
LEAKS: dict[str, Callable[[Heard], Heard]] = {
    "raw gradients as corrections": changed(
        Answer, AT, corrected, delta=lambda d: np.clip(GRADIENT * 40, -127, 127).astype(np.int8)[None].repeat(len(d), 0)
    ),
    "noise in the low bits of a correction": changed(Answer, AT, corrected, delta=low_bits),
    "one bit of one correction": changed(
        Answer, AT, corrected, delta=lambda d: d ^ (np.arange(d.size) == 9).reshape(d.shape)
    ),
    "the low bits of a scale": changed(Answer, AT, corrected, scales=lambda s: np.nextafter(s, np.float32(9))),
    "a correction in float16": changed(
        Answer, AT, corrected, delta=lambda d: d.astype(np.float16), scales=np.zeros(0, np.float32)
    ),
    "no correction": changed(Answer, AT, corrected, delta=None, scales=None),
    "a mixture beside it": changed(
        Answer,
        AT,
        corrected,
        mix=np.full(1, 1e-7, np.float32),
        mix_ids=np.array([[77]], np.int32),
        mix_weights=np.ones((1, 1), np.float32),
    ),
    "token ids beside it": changed(Answer, AT, corrected, ids=np.array([77], np.int32)),
    "an answer more": added(an_answer),
    "an answer to no question": added(lambda frames: replace(an_answer(frames), at=[99]), PromptFrame),
    "an answer of another run": changed(Answer, AT, run=77),
    "an answer to another position": changed(Answer, AT, at=lambda at: [each + 1 for each in at]),
    "an answer to another turn": changed(Answer, AT, turn=77),
    "an answer left out": lambda frames: [each for n, each in enumerate(frames) if n != first(frames, Answer, AT)],
    "ids as a draft": changed(Answer, AT, draft=np.array([[70, 71, 72, 73]], np.int32)),
    "other ids in a draft": changed(Answer, 0, of_draft, draft=lambda d: np.where(d < 0, d, d ^ 1).astype(np.int32)),
    "a shorter draft": changed(Answer, 0, of_draft, draft=lambda d: d[:, :-1]),
    "drafts left out now and then": changed(Answer, 1, of_draft, draft=lambda d: d[:, :0]),
    "room behind a draft": changed(Answer, AT, draft=lambda d: np.full((len(d), d.shape[1] + 5), -1, np.int32)),
    "a first draft": changed(PromptFrame, 0, draft=[70, 71]),
    "ids of a reply that did not break": changed(PromptFrame, 1, done=[70, 71], hash="0" * 16),
    "a hash without a break": changed(PromptFrame, 1, hash="0123456789abcdef"),
    "gates for one reply": changed(PromptFrame, 1, gates=["open"]),
    "rows that are asked for": changed(PromptFrame, 1, context=7),
    "turns that skip": changed(PromptFrame, 1, turn=77),
    "a message to stop nothing": added(lambda frames: Cancel(1), PromptFrame, 1),
    "a cancel of another turn": changed(Cancel, turn=77),
    "extra fields": changed(Answer, AT, extensions={"grad": msgspec.Raw(b"\x91\x07")}),
    "extra fields of a known name": changed(PromptFrame, extensions={"context": msgspec.Raw(b"\x80")}),
    "another gate's weights": changed(Open, gate=lambda g: np.nextafter(g, np.float32(9))),
    "gates that are none": changed(Open, gate=lambda g: np.concatenate([g, GRADIENT[None]])),
    "a gate's bias": changed(Open, gates=lambda gates: [msgspec.structs.replace(gates[0], bias=0.50001)]),
    "a gate's threshold off the dial": changed(Open, gates=lambda g: [msgspec.structs.replace(g[0], threshold=99.0)]),
    "a client with a message": changed(Open, client="sideplug/0.2.0 c0ffee"),
    "another tap": changed(Open, tap="l0.1.2-r16-s77-int8"),
    "another merge": changed(Open, merge="replace"),
    "a part more": changed(Open, gates=[GateSpec("open"), GateSpec("open")], gate=np.zeros((0, 0), np.float32)),
    "a shape that is a number": changed(Open, gates=[GateSpec("open")], gate=np.zeros((0, 12345), np.float32)),
    "another score": changed(Score, delta=low_bits),
    "a score of nothing": added(lambda frames: frames[first(frames, Score)][1], Score, 1),
    "parts of the head out of order": changed(Rows, part=77),
    "what only a cloud sends": added(lambda frames: Begun(1, 5, 0, "0" * 16)),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_a_client_that_leaks_is_found(cloud: Cloud, heard: Heard, leak: str) -> None:
    report = audited(as_sent(LEAKS[leak](heard)), the_plugin(cloud))
    assert not report.clean
    assert any(line.startswith("NOT ") for line in report.lines())
    assert report.to_json()["clean"] is False


def test_numbers_and_forms_that_carry_something(cloud: Cloud, heard: Heard) -> None:
    """The envelope: frame numbers, and a map that is written otherwise."""
    messages, plugin = as_sent(heard), the_plugin(cloud)
    at = first(heard, Answer, AT)
    gap = [(way, m) for n, (way, m) in enumerate(messages) if n != at - 1 or way == "<"]
    jumps = [*messages[:at], (">", encode(heard[at][1], 12345)), *messages[at + 1 :]]
    prompt = first(heard, PromptFrame)
    number = HEADER.unpack_from(messages[prompt][1])[3]
    control = control_of(heard[prompt][1])
    turned = join(Kind.PROMPT, msgspec.msgpack.encode(dict(reversed(control.items()))), b"", number)
    spelt = join(Kind.PROMPT, msgspec.msgpack.encode({**control, "top": 0}), b"", number)
    for case in (
        jumps,
        [*messages[:prompt], (">", turned), *messages[prompt + 1 :]],
        [*messages[:prompt], (">", spelt), *messages[prompt + 1 :]],
    ):
        report = audited(case, plugin)
        assert not report.clean
        assert report.replay is not None
        assert report.replay.wrong
    assert len(gap) <= len(messages)


HIDDEN: dict[str, tuple[Callable[[Heard], Heard], str]] = {
    "words": (
        changed(PromptFrame, text="Anna wrote c0ffee", where=lambda frame: frame.text == "Anna wrote"),
        "what the words of your prompts and examples themselves say",
    ),
    "an example more": (
        added(lambda frames: Read(0, "c0ffee", False, text="x"), Rows),
        "what the words of your prompts",
    ),
    "a seed": (
        changed(PromptFrame, sampling=lambda s: msgspec.structs.replace(s, seed=0x1EAC)),
        f"chose seed: 0, 7, {0x1EAC}",
    ),
    "a length": (changed(PromptFrame, max_tokens=17), "chose max_tokens: "),
    "a deadline": (changed(PromptFrame, deadline_ms=31337), "chose deadline_ms: 0, 31337"),
    "the dial": (
        changed(Open, gates=lambda g: [msgspec.structs.replace(g[0], threshold=1.2345)]),
        "chose gate's threshold: 1.2345",
    ),
    "rows of the head": (changed(Rows, ids=lambda ids: ids[::-1].copy()), "whose rows of the head were asked for"),
    "picks of a device that has the head": (
        changed(Answer, 0, lambda answer: answer.ids is not None, ids=lambda ids: ids ^ 1),
        "picked were not picked again",
    ),
    "moments": (lambda frames: frames, "the moments at which messages were sent"),
    "past the transcript": (lambda frames: frames, "what a program sends past this transcript"),
}


@pytest.mark.parametrize("how", HIDDEN)
def test_what_can_not_be_ruled_out_is_said(cloud: Cloud, heard: Heard, how: str) -> None:
    change, says = HIDDEN[how]
    lines = "\n".join(audited(as_sent(change(heard)), the_plugin(cloud)).lines())
    assert says in lines


def test_without_a_plugin_or_a_beginning_nothing_is_claimed(cloud: Cloud, heard: Heard) -> None:
    messages = as_sent(heard)
    for report, why in (
        (audit.report(messages), "give --plugin"),
        (audit.report(messages[4:], the_plugin(cloud)), "it is a part of a session"),
    ):
        lines = "\n".join(report.lines())
        assert f"Nothing of it was verified ({why})" in lines
        assert "No gradient" not in lines


def test_another_s_plugin_is_not_ours(cloud: Cloud, heard: Heard, tmp_path: Path) -> None:
    other = a_plugin(cloud.base.fingerprint, seed=8)
    report = audited(as_sent(heard), other)
    assert not report.clean
    assert report.replay is not None
    (wrong,) = [what for what in report.replay.wrong if what.startswith("OPEN messages")]
    assert report.replay.wrong[wrong] == 1


def test_a_transcript_of_another_plugin_is_named(cloud: Cloud, heard: Heard) -> None:
    """By its base, tap, merge and kinds of gates, which OPEN says; what is the same is not named."""
    ours = the_plugin(cloud)
    strange = a_plugin("e" * 64)
    memory = Memory()
    memory.store.add([Entry("Who?", "Anna.")])
    others = {
        f"base {ours.base[:12]}, your plugin's eeeeeeeeeeee": strange,
        f"gates {' and '.join(p.gate.kind for p in ours.parts)}, your plugin's ": Plugin(
            ours.base, ours.base_name, [memory, *ours.parts]
        ),
    }
    for says, plugin in others.items():
        (line,) = [each for each in audited(as_sent(heard), plugin).lines() if "OPEN messages" in each]
        assert f"NOT WHAT YOUR PLUGIN SENDS: OPEN messages of another plugin: {says}" in line


# ── a memory that quotes ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def quoting(cloud: Cloud) -> tuple[Plugin, Heard]:
    """A plugin with a memory, and what an honest device says of it and hears."""
    memory = Memory()
    memory.store.add([Entry("Where is the spare key?", "Behind the clock.")])
    plugin, messages = Plugin(ANY_BASE, ANY_BASE, [memory]), list[tuple[str, bytes]]()
    Client.at(cloud.url).connect(plugin).close()
    with a_session(a_link(cloud.url, record=lambda way, message: messages.append((way, message))), plugin) as session:
        assert session.generate("Where is the spare key?", 30).text == "Behind the clock."
        list(session.generate("Is it far?", 5))
    return plugin, [(way, decode(message)) for way, message in messages]


def test_a_quote_is_made_again(quoting: tuple[Plugin, Heard]) -> None:
    plugin, heard = quoting
    report = audited(as_sent(heard), plugin)
    assert report.replay is not None
    assert (dict(report.replay.wrong), report.clean) == ({}, True)
    assert report.replay.verified["quotes of your memory"] == 1
    assert report.text["token ids that a memory said (quotes)"] > 2


@pytest.mark.parametrize("nth", [0, 1])
def test_a_quote_of_something_else_is_found(quoting: tuple[Plugin, Heard], nth: int) -> None:
    plugin, heard = quoting
    report = audited(as_sent(changed(PromptFrame, nth, extensions=quoted([70, 71]))(heard)), plugin)
    assert report.replay is not None
    assert report.replay.wrong["prompts quote what your memory does not say"] == 1


def test_a_form_and_tools_are_the_persons_own(cloud: Cloud) -> None:
    """What a reply must be is said in its prompt; the memory is silent then, and the audit finds nothing wrong."""
    memory, messages = Memory(), list[tuple[str, bytes]]()
    memory.store.add([Entry("Where is the spare key?", "Behind the clock.")])
    plugin = Plugin(cloud.base.fingerprint, "tiny", [memory, *a_plugin(cloud.base.fingerprint).parts])
    Client.at(cloud.url).connect(plugin).close()
    with a_session(a_link(cloud.url, record=lambda way, message: messages.append((way, message))), plugin) as session:
        formed = DecodeOptions(grammar=Grammar("regex", "[a-z]{3,9}"))
        assert session.generate("Where is the spare key?", 20, options=formed).text != "Behind the clock."
        assert session.generate("Where is the spare key?", 20).text == "Behind the clock."
    report = audited(messages, plugin)
    assert report.replay is not None
    assert not report.replay.wrong
    assert report.replay.verified["quotes of your memory"] == 1
    assert report.replay.verified["prompts"] == 2
