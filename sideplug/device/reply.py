"""One reply: its pieces as they come, answered where the cloud asks; what it took; how it goes on after a break.

Tokens come down and are handed on; an ASK comes down, the responder runs, its ANSWER goes up, together for asks that
came together. The cloud may decode speculatively: asks of a run that was rolled back are ignored. A reply that is cut
off continues where it stopped, with whatever cloud is found then: the device has the ids so far and their running hash,
and receives each token once. It does not know sockets (see link) or plugins (see responders).
Test: pytest tests/test_equalities.py
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np

from sideplug.contract import grammar
from sideplug.contract.capabilities import GRAMMAR, QUOTE, TOOLS, CallForm, Grammar, Quote, extension_of, extensions
from sideplug.contract.errors import CloudError, InputError, ProtocolError, SideplugError
from sideplug.contract.frames import Answer, Ask, Begun, Cancel, Context, Done, Frame, ModelInfo, PromptFrame, Tokens
from sideplug.contract.progress import running_hash
from sideplug.contract.sampling import Sampling
from sideplug.contract.text import Prompt
from sideplug.device.guard import Asked, Guard
from sideplug.device.head import DeviceHead
from sideplug.device.link import Link
from sideplug.device.responders import Answering, ReplyOptions, Responder
from sideplug.device.terms import Terms

MAX_UNREAD = 4096  # messages that may still come after a CANCEL
NO_TOOLS = "this base's chat template has no place for tools, or its calls are not JSON: leave tools out"
WINDOW = 24  # asks that may be open while the cloud decodes speculatively


@dataclass(frozen=True)
class Piece:
    """Some of a reply: token ids, their text, and who chose them.

    by: "cloud"; "plugin"; "draft", the plugin, and the device had drafted exactly this; "fallback", the base, because
    the device was late; "trunk", the plugin, by a public trunk that the cloud has too. tops: of each token, where asked
    for, (text, log-probability) of itself, then of the best.
    """

    ids: list[int]
    text: str
    by: str
    tops: list[list[tuple[str, float]]] = field(default_factory=list)


@dataclass(frozen=True)
class DecodeOptions:
    """How a reply is fetched; the text does not depend on it, except for a deadline's and a grammar's.

    window: asks that may be open while the cloud decodes speculatively, 0 to 32; 0 waits for each answer.
    drafts: drafts from the person's phrases go up with the answers. deadline_ms: after it the base's token is used; 0:
    never. head: the base's head on the device, which then picks the tokens that it is asked about; None: the cloud
    picks. top: alternatives to tell of each token (not of those that the device picks itself), 0 to 20. grammar: the
    form that the reply must have; a memory says nothing then.
    """

    window: int = WINDOW
    drafts: bool = True
    deadline_ms: int = 0
    head: DeviceHead | None = None
    top: int = 0
    grammar: Grammar | None = None


@dataclass
class Usage:
    """What one reply took. Bytes are of whole WebSocket messages; TCP and TLS add theirs.

    round_trips: times that the text waited for the device, which with speculation are far fewer than what was asked.
    cached: tokens of the prompt that the cloud had in memory. resumed: times that the reply was cut off and continued;
    what the cloud had counted until then is lost. context_rows: rows that came without a question. source: what a
    memory answered from, in words. entry: the number of the entry that it was; 0 without one. trunk: tokens of the
    plugin's that the cloud corrected by itself, because its part is a public trunk.
    """

    prompt_tokens: int = 0
    cached: int = 0
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
    trunk: int = 0
    context_rows: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    first_token_s: float = 0.0
    total_s: float = 0.0
    plugin_s: float = 0.0
    why: str = ""
    source: str = ""
    entry: int = 0

    def to_json(self) -> dict[str, Any]:
        """The fields by name; seconds to six places."""
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


class Channel:
    """What a reply needs of its session: the link that works now, and another one after a break.

    Implemented by session.Session; here so that a reply does not know sessions.
    """

    link: Link
    model: ModelInfo
    terms: Terms
    responder: Responder

    def reconnect(self, lost: SideplugError) -> None:
        """Connect again. Raises `lost` where that can't be, or what stands in the way."""
        raise NotImplementedError

    def progressed(self) -> None:
        """Something new came: the next break is the first of its kind."""
        raise NotImplementedError


class Reply:
    """An iterator over the pieces of one reply. Nothing is sent before the first piece is asked for.

    usage: complete when the iterator has ended. ids: the token ids so far. on_begun: called when the cloud has
    taken the prompt, before it is read. calls: how the base writes calls, where the prompt has tools and the reply has
    begun. `close`, or leaving a `with` block, cancels.
    """

    def __init__(
        self, channel: Channel, turn: int, prompt: Prompt, max_tokens: int, sampling: Sampling, options: DecodeOptions
    ) -> None:
        self.usage = Usage()
        self.ids: list[int] = []
        self.calls: CallForm | None = None
        self.on_begun: Callable[[], None] = lambda: None
        self._channel = channel
        self._turn = turn
        self._text: list[str] = []
        self._next: int | None = None  # position of the next token; None: the cloud has not begun
        self._hash = ""  # running hash of the prompt and `ids`
        self._complete = False  # the last text has come
        self._running = False
        if options.grammar is not None:
            grammar.checked(options.grammar)
            if GRAMMAR.name not in channel.terms.granted:
                raise InputError("this cloud can't hold a reply to a form (a schema or a grammar): use a newer cloud")
        if prompt.tools is not None and TOOLS.name not in channel.terms.granted:
            raise InputError(NO_TOOLS)
        must_call = prompt.tools is not None and prompt.tools.choice != "auto"
        knows = ReplyOptions(
            drafts=options.drafts and options.window > 0,
            head=options.head,
            width=channel.model.width,
            has_grammar=options.grammar is not None or must_call,
        )
        self._answering: Answering = channel.responder.begin(prompt, sampling, knows)
        self.usage.source, self.usage.entry = self._answering.source, self._answering.entry
        self._prompt = PromptFrame(
            turn,
            max_tokens,
            sampling.to_wire(),
            **prompt.to_wire(),
            window=options.window,
            deadline_ms=options.deadline_ms,
            head="device" if options.head else "cloud",
            top=options.top,
            extensions=extensions({GRAMMAR.name: options.grammar, TOOLS.name: prompt.tools}),
        )
        self._quote = [] if options.top else self._answering.quote  # no alternatives are told of a quote
        self._guard = Guard(channel.terms, self._asked_for(max_tokens, sampling, options))
        self._pieces = self._run()

    def _asked_for(self, max_tokens: int, sampling: Sampling, options: DecodeOptions) -> Asked:
        gates = [gate.kind for gate in self._channel.responder.opening.gates]
        now = self._answering.gates or [""] * len(gates)
        shut = [(own or gate) == "shut" for own, gate in zip(now, gates, strict=True)]
        return Asked(
            max_tokens,
            options.window,
            sampling,
            shut,
            head=options.head is not None,
            rows=self._answering.rows is not None,
            deadline=options.deadline_ms > 0,
            top=options.top,
            quote=self._quote,
        )

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        return next(self._pieces)

    def __enter__(self) -> Reply:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel the reply, unless it has ended."""
        self._pieces.close()

    @property
    def text(self) -> str:
        """The whole text: what has not come yet is waited for."""
        for _ in self:
            pass
        return "".join(self._text)

    def _run(self) -> Generator[Piece, None, None]:
        usage, link = self.usage, self._channel.link
        down, up = sum(link.down.values()), sum(link.up.values())
        start = time.perf_counter()
        self._running = True
        try:
            while self._running:
                try:
                    self._guard.prompted(self._channel.terms)
                    self._channel.link.send(self._asked())
                    for piece in self._received():
                        if not usage.first_token_s:
                            usage.first_token_s = time.perf_counter() - start
                        if piece.by in ("plugin", "draft", "trunk"):
                            usage.plugin_tokens += len(piece.ids)
                        yield piece
                except (CloudError, ProtocolError) as error:
                    self._channel.reconnect(error)
                    usage.resumed += 1
                    self._answering.resume(self._next or 0, usage.prompt_tokens)
        except SideplugError:
            self._running = False  # the cloud has ended it: there is nothing to cancel
            raise
        finally:
            if self._running:
                self._cancel()
            link = self._channel.link
            usage.total_s = time.perf_counter() - start
            usage.bytes_down = sum(link.down.values()) - down
            usage.bytes_up = sum(link.up.values()) - up

    def _asked(self) -> PromptFrame:
        """The PROMPT to send now: with what is done of the reply, and the rows that the device has."""
        answering = self._answering
        prompt = replace(self._prompt, gates=answering.gates, context=answering.rows)
        quotes = bool(self._quote) and QUOTE.name in self._channel.terms.granted
        if quotes:
            prompt = replace(prompt, extensions={**prompt.extensions, **quoted(self._quote)})
        if self.ids:
            return replace(prompt, done=self.ids, hash=self._hash)
        return prompt if quotes else replace(prompt, draft=answering.draft)

    def _received(self) -> Iterator[Piece]:
        """What the cloud says of this turn, answered where it asks, to its DONE."""
        while self._running:
            asks: list[Ask] = []
            frame: Frame | None = self._channel.link.receive()
            while frame is not None:
                if getattr(frame, "turn", None) != self._turn:
                    raise ProtocolError(f"the cloud must speak of turn {self._turn}, got {frame.kind.name} of another")
                if isinstance(frame, Ask):
                    self._guard.ask(frame)
                    asks.append(frame)
                elif isinstance(frame, Context):
                    self._guard.context(frame)
                    asks = self._answer(asks)  # rows come in their order
                    self._take_context(frame)
                elif isinstance(frame, Tokens):
                    new = self._take_tokens(frame)
                    try:
                        asks = self._answer(asks)  # which never waits for whoever reads the text
                    finally:  # nor is a text that came lost with its connection
                        if new:
                            self._answering.settled(frame.at, frame.ids)  # after the asks that came before it
                            yield Piece(frame.ids, frame.text, frame.by, frame.top)
                elif isinstance(frame, Begun):
                    self._begin(frame)
                elif isinstance(frame, Done):
                    self._finish(frame)
                    break
                else:
                    raise ProtocolError(f"the cloud must answer DONE, got {frame.kind.name}")
                frame = self._channel.link.arrived()
            self._answer(asks)

    def _begin(self, begun: Begun) -> None:
        self._guard.begun(begun)
        self._answering.begun(begun.prompt)
        self.calls = extension_of(begun, TOOLS, CallForm) or self.calls
        self.usage.prompt_tokens, self.usage.cached = begun.prompt, begun.cached
        if self._next is None:
            self._next, self._hash = begun.prompt, begun.hash
        elif not self.ids and begun.hash != self._hash:
            raise ProtocolError("the cloud must read the prompt as the one that began the reply did", "local")
        self.on_begun()

    def _take_context(self, frame: Context) -> None:
        start = time.perf_counter()
        self._answering.context(frame)
        self.usage.context_rows += len(frame.codes)
        self.usage.plugin_s += time.perf_counter() - start

    def _take_tokens(self, tokens: Tokens) -> bool:
        """Keep account of TOKENS; whether they are new."""
        if self._next is None or tokens.at != self._next:
            raise ProtocolError(f"the cloud must go on with the ids from position {self._next}, got {tokens.at}")
        self._guard.tokens(tokens)
        if self._complete:  # the last text came, but the DONE behind it was lost: it comes twice
            return False
        self._complete = not tokens.ids
        self._next += len(tokens.ids)
        self.ids += tokens.ids
        self._text.append(tokens.text)
        self._hash = running_hash(tokens.ids, self._hash)
        self._channel.progressed()
        return True

    def _answer(self, asks: list[Ask]) -> list[Ask]:
        """Answer these in one frame, without those of a run that was rolled back; nothing is left."""
        if not asks or not self._running:
            return []
        start = time.perf_counter()
        answer = answer_to(self._answering, self._turn, asks)
        self.usage.plugin_s += time.perf_counter() - start
        self._channel.link.send(answer)
        return []

    def _finish(self, done: Done) -> None:
        """The reply is over: take over what the cloud counted."""
        self._guard.done(done)
        self._running = False
        self.usage.why, self.usage.prompt_tokens, self.usage.reply_tokens = done.why, done.prompt, done.reply
        for name, value in done.counts.items():
            setattr(self.usage, name, value)

    def _cancel(self) -> None:
        """Stop the reply and wait for the cloud's DONE, so that the session can go on."""
        self._running = False
        link = self._channel.link
        try:
            link.send(Cancel(self._turn))
            for _ in range(MAX_UNREAD):
                frame = link.receive()
                if isinstance(frame, Done):
                    self._finish(frame)
                    return
            link.close()  # it goes on as if nobody had cancelled
        except (CloudError, ProtocolError):
            link.close()  # the next reply connects anew, or says that it can't


def quoted(ids: list[int]) -> dict[str, msgspec.Raw]:
    """The extension of a PROMPT that brings a quote."""
    return extensions({QUOTE.name: Quote(ids)})


def answer_to(answering: Answering, turn: int, asks: list[Ask]) -> Answer:
    """The ANSWER to these asks, without those of a run that was rolled back."""
    run = asks[-1].run
    for ask in asks:
        if ask.run != run:
            answering.skip(ask)
    asks = [ask for ask in asks if ask.run == run]
    answers = answering.answer(asks)
    positions = [at for ask in asks for at in ask.at]
    drafts = [answering.drafts(replace(ask, at=[at])) for ask in asks for at in ask.at]
    draft = np.full((len(positions), max(map(len, drafts))), -1, np.int32)
    for row, expected in zip(draft, drafts, strict=True):
        row[: len(expected)] = expected
    return Answer(turn, run, positions, draft, **answers)
