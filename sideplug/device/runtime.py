"""A conversation with the cloud: open a session, ask for a reply, correct what the cloud asks about.

The loop is: tokens come down and are handed on; an ASK comes down, the plugin runs, its ANSWER goes up, those that came
together in one. The cloud may run ahead of the answers: an ASK says on which text it stands, and asks of a run that is
taken back are let lie. A reply that is cut off goes on where it stopped, with the cloud that is found then: the device
has the ids so far and a running hash of them, and hears each once. It does not know sockets (see link), files or the
command line.
Test: pytest tests/test_equalities.py
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from sideplug import __version__
from sideplug.contract.codec import pack, unpack
from sideplug.contract.errors import CloudError, ProtocolError, SideplugError, WrongBase
from sideplug.contract.gate import Gate
from sideplug.contract.progress import running_hash
from sideplug.contract.sampling import Sampling, choose
from sideplug.contract.tap import Tap
from sideplug.contract.text import Prompt
from sideplug.contract.wire import Frame, Kind
from sideplug.device.drafts import PromptLookup
from sideplug.device.head import DeviceHead
from sideplug.device.link import Link
from sideplug.device.plugin import Plugin
from sideplug.device.reconnect import RetryPolicy

AHEAD = 24  # asks that may be open while the cloud goes on


@dataclass(frozen=True)
class Piece:
    """Some of a reply: token ids, their text, and who chose them.

    by: "cloud"; "plugin"; "draft", the plugin and just what the device had drafted; "fallback", the base, because the
    device was late. tops: of each token, where asked for, [text, log-probability] of itself, then of the best.
    """

    ids: list[int]
    text: str
    by: str
    tops: list[list[list[Any]]] = field(default_factory=list)


@dataclass(frozen=True)
class DecodeOptions:
    """How a reply is fetched; the text does not depend on it, but for a deadline's.

    ahead: asks that may be open while the cloud goes on with guesses, 0 to 32; 0 waits for each answer. lookahead:
    drafts from the person's phrases go up with the answers. deadline_ms: after it the base's token is used; 0: never.
    head: the base's, on the device, which then picks the tokens that it is asked about; None: the cloud picks.
    top: alternatives to be told of each token (not of those that the device picks itself), 0 to 20.
    """

    ahead: int = AHEAD
    lookahead: bool = True
    deadline_ms: int = 0
    head: DeviceHead | None = None
    top: int = 0


@dataclass
class Usage:
    """What one reply took. Bytes are of whole WebSocket messages; TCP and TLS add theirs.

    round_trips: times that the text waited for the device, which with run-ahead are far fewer than what was asked.
    kept: tokens of the prompt that the cloud had in memory. resumed: times that the reply was cut off and went on; what
    the cloud had counted until then is lost.
    """

    prompt_tokens: int = 0
    kept: int = 0
    resumed: int = 0
    reply_tokens: int = 0
    plugin_tokens: int = 0
    round_trips: int = 0
    asked: int = 0
    speculated: int = 0
    confirmed: int = 0
    rolled_back: int = 0
    wasted: int = 0
    drafted: int = 0
    accepted: int = 0
    fallback: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    first_token_s: float = 0.0
    total_s: float = 0.0
    plugin_s: float = 0.0
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        return {name: round(value, 6) if isinstance(value, float) else value for name, value in vars(self).items()}

    @property
    def line(self) -> str:
        """One line for a person to read."""
        speed = self.reply_tokens / self.total_s if self.total_s else 0.0
        gate = 100 * self.plugin_tokens / self.reply_tokens if self.reply_tokens else 0.0
        late = f" · {self.fallback} without the plugin (late)" if self.fallback else ""
        return (
            f"{self.reply_tokens} tokens, {speed:.1f} a second · {self.round_trips} round trips · "
            f"gate open {gate:.0f} % · {self.bytes_down:,} bytes down, {self.bytes_up:,} up{late}"
        )


@dataclass(frozen=True)
class Model:
    """The base model as OPENED describes it."""

    name: str
    fingerprint: str
    blocks: int
    width: int
    vocab: int
    context: int
    chat: bool


@dataclass
class Session:
    """An open session. `usage` is the last reply's."""

    link: Link
    model: Model
    plugin: Plugin | None
    readings: int  # examples that may be in reading at once
    opening: Frame
    connect: Callable[[], Link] | None = None
    again: RetryPolicy = field(default_factory=RetryPolicy)
    usage: Usage = field(default_factory=Usage)
    _turn: int = 0
    _running: bool = False
    _at: int | None = None  # where the next token of the reply stands; None: the cloud has not begun
    done: list[int] = field(default_factory=list)  # the reply's ids so far …
    _hash: str = ""  # … and the running hash of the prompt and these
    _over: bool = False  # its last text has come
    _lookahead: PromptLookup | None = None
    _head: DeviceHead | None = None
    _sampling: Sampling = Sampling()
    _text: list[int] = field(default_factory=list)  # prompt and reply, where the head's choice depends on them

    @classmethod
    def open(
        cls,
        link: Link,
        plugin: Plugin | None = None,
        tap: Tap | None = None,
        gate: Gate | None = None,
        connect: Callable[[], Link] | None = None,
        again: RetryPolicy | None = None,
    ) -> Session:
        """With a plugin: its tap, and its gate unless another is given. Without: the gate is shut (or `tap` is read).

        `connect` makes another link where this one breaks, as `again` says; None: a break is an error.
        Raises WrongBase when the plugin was made for another base model, CloudError when the cloud is gone.
        """
        gate = gate or (plugin.gate if plugin else Gate("shut"))
        tap = plugin.tap if plugin else tap
        control = {
            "base": plugin.base if plugin else "",
            "tap": tap.name if tap else "",
            "merge": plugin.merge if plugin else "add",
            "gate": gate.to_wire(),
            "client": f"sideplug/{__version__}",
        }
        opening = Frame(Kind.OPEN, control, {"gate": gate.weight_D})
        again = again or RetryPolicy()
        try:
            model, readings = _open(link, opening)
        except SideplugError as error:
            link.close()
            if connect is None or not isinstance(error, (CloudError, ProtocolError)):
                raise
            link, (model, readings) = again.until(partial(_connect, connect, opening), error)
        if plugin is not None:
            try:
                plugin.check_base(model.fingerprint, model.name)
            except BaseException:
                link.close()
                raise
        return cls(link, model, plugin, readings, opening, connect, again)

    def reconnect(self, lost: SideplugError) -> None:
        """Another connection to the same base. Raises `lost` where that can't be, or what stands in its way."""
        if not self.again.is_retryable(lost):
            raise lost
        self.link.close()
        if self.connect is None:
            raise lost
        link, (model, self.readings) = self.again.until(partial(_connect, self.connect, self.opening), lost)
        link.down.update(self.link.down)
        link.up.update(self.link.up)
        self.link = link
        if model.fingerprint != self.model.fingerprint:
            raise WrongBase(f"the cloud serves another base model now ({model.name}): begin anew")

    def generate(
        self,
        prompt: Prompt,
        max_tokens: int = 256,
        sampling: Sampling = Sampling(),
        pace: DecodeOptions = DecodeOptions(),
    ) -> Generator[Piece, None, None]:
        """The reply, piece by piece; `usage` is complete afterwards. Closing the iterator cancels the reply."""
        self._turn += 1
        usage = self.usage = Usage()
        down, up = sum(self.link.down.values()), sum(self.link.up.values())
        start = time.perf_counter()
        control = {"turn": self._turn, **prompt.to_wire(), "max_tokens": max_tokens, "sampling": sampling.to_wire()}
        control |= {"ahead": pace.ahead, "deadline_ms": pace.deadline_ms}
        if pace.head:
            control["head"] = "device"
        if pace.top:
            control["top"] = pace.top
        self._head, self._sampling, self._text = pace.head, sampling, []
        phrases = self.plugin.phrases if self.plugin and pace.lookahead and pace.ahead else None
        self._lookahead = None if phrases is None or not len(phrases) else PromptLookup(phrases)
        self._at, self.done, self._hash, self._over = None, [], "", False
        self.again.breaks = 0
        self._running = True
        try:
            while self._running:
                try:
                    self.link.send(Frame(Kind.PROMPT, control))
                    for piece in self._pieces():
                        if not usage.first_token_s:
                            usage.first_token_s = time.perf_counter() - start
                        if piece.by in ("plugin", "draft"):
                            usage.plugin_tokens += len(piece.ids)
                        yield piece
                except (CloudError, ProtocolError) as error:
                    self.reconnect(error)
                    usage.resumed += 1
                    if self.done:
                        control |= {"done": self.done, "hash": self._hash}
        except SideplugError:
            self._running = False  # the cloud has ended it: there is nothing to cancel
            raise
        finally:
            if self._running:
                self._cancel()
            usage.total_s = time.perf_counter() - start
            usage.bytes_down = sum(self.link.down.values()) - down
            usage.bytes_up = sum(self.link.up.values()) - up

    def _pieces(self) -> Iterator[Piece]:
        """What the cloud says of this turn, answered where it asks, to its DONE."""
        while self._running:
            asks: list[Frame] = []
            frame: Frame | None = self.link.receive()
            while frame is not None:
                if frame.control.get("turn") != self._turn:
                    raise ProtocolError(f"the cloud must speak of turn {self._turn}, got {frame.kind.name} of another")
                if frame.kind is Kind.ASK:
                    asks.append(frame)
                elif frame.kind is Kind.TOKENS:
                    new = self._hear(frame)
                    try:
                        asks = self._answer(asks)  # which never waits for whoever reads the text
                    finally:  # nor is a text that was heard lost with its connection
                        if new:
                            yield Piece(frame["ids"], frame["text"], frame["by"], frame.control.get("top", []))
                elif frame.kind is Kind.BEGUN:
                    self._begin(frame)
                else:
                    self._finish(_expect(frame, Kind.DONE))
                    break
                frame = self.link.arrived()
            self._answer(asks)

    def _begin(self, begun: Frame) -> None:
        self.usage.prompt_tokens, self.usage.kept = begun["prompt"], begun["kept"]
        if self._at is None:
            self._at, self._hash = begun["prompt"], begun["hash"]
        elif not self.done and begun["hash"] != self._hash:
            raise ProtocolError("the cloud must read the prompt as the one that began the reply did", "local")

    def _hear(self, tokens: Frame) -> bool:
        """Keep account of TOKENS; whether they are new."""
        ids = tokens["ids"]
        if (
            self._at is None
            or tokens["at"] != self._at
            or not all(type(token) is int and 0 <= token < 1 << 31 for token in ids)
        ):
            raise ProtocolError(f"the cloud must go on with the ids from position {self._at}, got {tokens['at']}")
        if self._over:  # the last text came, but the DONE behind it was lost: it is said twice
            return False
        self._over = not ids
        self._at += len(ids)
        self.done += ids
        self._hash = running_hash(ids, self._hash)
        self.again.breaks = 0
        if self._lookahead:
            self._lookahead.settled(tokens["at"], ids)
        return True

    def _answer(self, asks: list[Frame]) -> list[Frame]:
        """Answer these in one frame, but for those of a run that was taken back; nothing is left."""
        asks = [ask for ask in asks if ask["run"] == asks[-1]["run"]]
        if not asks or not self._running:
            return []
        start = time.perf_counter()
        # One by one: a matrix product of several rows may differ in the last bit, and the text must not.
        answers = [self._pick(ask) if self._head else self.corrections(ask) for ask in asks]
        tensors = {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}
        drafts = [self._draft(ask) for ask in asks]
        tensors["draft"] = np.full((len(asks), max(map(len, drafts))), -1, np.int32)
        for row, draft in zip(tensors["draft"], drafts, strict=True):
            row[: len(draft)] = draft
        self.usage.plugin_s += time.perf_counter() - start
        control = {"turn": self._turn, "run": asks[-1]["run"], "at": [at for ask in asks for at in ask["at"]]}
        self.link.send(Frame(Kind.ANSWER, control, tensors))
        return []

    def _pick(self, ask: Frame) -> dict[str, np.ndarray]:
        """The token of an ASK by the device's own head, as the tensor that goes up."""
        if self._head is None or self.plugin is None or "z" not in ask.tensors or ask["from"] < 0:
            raise ProtocolError("the cloud must send z with each ASK where the device has the head")
        # The very correction that the cloud would see.
        answer = self.corrections(ask)
        delta_1D = unpack(answer["delta"], answer["scales"])
        z_1D = ask.tensors["z"].astype(np.float32) + delta_1D if self.plugin.merge == "add" else delta_1D
        if self._sampling.repetition_penalty != 1:
            self._text[ask["from"] :] = ask["ids"]
        token = choose(self._head.logits(z_1D), self._sampling, ask["at"][0], self._text)
        return {"ids": np.array([token], np.int32)}

    def _draft(self, ask: Frame) -> list[int]:
        if self._lookahead is None:
            return []
        self._lookahead.hear(ask["from"], ask["ids"])
        return self._lookahead.draft(ask["at"][0])

    def _finish(self, done: Frame) -> None:
        """The reply is over: take over what the cloud counted."""
        self._running = False
        self.usage.why, self.usage.prompt_tokens, self.usage.reply_tokens = done["why"], done["prompt"], done["reply"]
        for name, value in done["counts"].items():
            if name in Usage.__dataclass_fields__ and type(value) is int:
                setattr(self.usage, name, value)

    def corrections(self, asked: Frame) -> dict[str, np.ndarray]:
        """The plugin's answer to the codes of an ASK or EXAMPLE, as the tensors that go up."""
        if self.plugin is None:
            raise ProtocolError("the cloud asked, but this session has no plugin")
        delta_TD = self.plugin.correct(self.plugin.tap.decode(asked.tensors["codes"], asked.tensors["scales"]))
        codes, scales = pack(delta_TD, int8=self.plugin.tap.codec == "int8")
        return {"delta": codes, "scales": scales}

    def _cancel(self) -> None:
        """Stop the reply and wait for the cloud's DONE, so that the session can go on."""
        self._running = False
        try:
            self.link.send(Frame(Kind.CANCEL, {"turn": self._turn}))
            while True:
                frame = self.link.receive()
                if frame.kind is Kind.DONE:
                    self._finish(frame)
                    return
        except (CloudError, ProtocolError):
            self.link.close()  # the next reply connects anew, or says that it can't

    def bytes_by_kind(self) -> dict[str, Counter[str]]:
        return {"down": self.link.down, "up": self.link.up}


def _connect(connect: Callable[[], Link], opening: Frame) -> tuple[Link, tuple[Model, int]]:
    link = connect()
    try:
        return link, _open(link, opening)
    except BaseException:
        link.close()
        raise


def _open(link: Link, opening: Frame) -> tuple[Model, int]:
    """OPEN and its OPENED: the model, and how many examples may be in reading at once."""
    link.send(opening)
    opened = _expect(link.receive(), Kind.OPENED)
    about = opened["model"]
    try:
        return Model(**{name: about[name] for name in Model.__dataclass_fields__}), int(opened["limits"]["readings"])
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"OPENED must describe the model and its limits: {error}") from error


def _expect(frame: Frame, kind: Kind) -> Frame:
    if frame.kind is not kind:
        raise ProtocolError(f"the cloud must answer {kind.name}, got {frame.kind.name}")
    return frame
