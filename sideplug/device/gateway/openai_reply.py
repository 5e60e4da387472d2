"""OpenAI's replies, without a socket: pieces of a reply → chunks and answers; errors → bodies; server-sent events.

One generator of chunks serves streamed and whole replies. Our extensions stand under the key `sideplug`: in a chunk who
chose its tokens, in `usage` what the reply took. This module does not know plugins, HTTP or the cloud.
Test: pytest tests/device/test_openai_api.py
"""

from __future__ import annotations

import itertools
import json
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from sideplug.contract.capabilities import TOOLS, CallForm
from sideplug.contract.errors import Busy, InputError, SideplugError, TooLong, UnknownModel, Unreachable
from sideplug.contract.token_text import bytes_of
from sideplug.device.gateway.json_fields import JsonObject
from sideplug.device.gateway.openai_api import CompletionRequest
from sideplug.device.gateway.tools import Call, CallReader
from sideplug.device.reply import Piece, Usage


class StopTexts:
    """Cuts a growing text before the stop text that is complete first, however the text is divided into pieces.

    A piece's end that may be the beginning of a stop text is held back until that is decided. `reached`: a stop text
    has been met, and the reply is over.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.reached = False

    def push(self, text: str) -> str:
        """Take the next piece and return the text that may be shown now."""
        if self.reached:
            return ""
        self._held += text
        cuts = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if cuts:
            self.reached = True
            shown, self._held = self._held[: min(cuts)[1]], ""
            return shown
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        end = len(self._held) - keep
        shown, self._held = self._held[:end], self._held[end:]
        return shown

    def rest(self) -> str:
        """Return what was held back, when nothing more comes."""
        held, self._held = self._held, ""
        return held

    def _overlap(self, stop: str) -> int:
        """How many characters at the end may be the beginning of `stop`."""
        return next((n for n in range(min(len(stop) - 1, len(self._held)), 0, -1) if self._held.endswith(stop[:n])), 0)


@dataclass
class ResponseShaper:
    """Puts one reply into OpenAI's shapes: as chunks of a stream, or as one answer."""

    request: CompletionRequest
    model: str
    fingerprint: str
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))
    _calls: int = 0

    def start(self) -> list[JsonObject]:
        """Return the chunks before the first piece."""
        if not self.request.chat:
            return []
        return [self._chunk({"delta": {"role": "assistant", "content": ""}, "finish_reason": None})]

    def piece(self, text: str, piece: Piece | None) -> list[JsonObject]:
        """See Shaper."""
        choice: JsonObject = {"delta": {"content": text}} if self.request.chat else {"text": text}
        choice["finish_reason"] = None
        if self.request.logprobs:
            choice["logprobs"] = self._logprobs(piece)
        chunk = self._chunk(choice)
        if self.request.detail and piece is not None:
            chunk["sideplug"] = {"by": piece.by, "ids": piece.ids, "tops": piece.tops}
        return [chunk]

    def call(self, call: Call) -> list[JsonObject]:
        """See Shaper. Its name comes first, then its arguments, as clients expect it."""
        at, self._calls = self._calls, self._calls + 1
        begun = {"index": at, "id": call.id, "type": "function", "function": {"name": call.name, "arguments": ""}}
        told = {"index": at, "function": {"arguments": call.arguments}}
        return [self._chunk({"delta": {"tool_calls": [each]}, "finish_reason": None}) for each in (begun, told)]

    def finish(self, reason: str) -> list[JsonObject]:
        """See Shaper."""
        end: JsonObject = {"delta": {}} if self.request.chat else {"text": ""}
        return [self._chunk({**end, "finish_reason": reason if reason in ("length", "tool_calls") else "stop"})]

    def end(self, usage: Usage) -> list[bytes]:
        """See Shaper. What the reply took is told where it was asked for."""
        if not (self.request.include_usage or self.request.detail):
            return [DONE]
        return [event({**self._head(), "choices": [], "usage": self._usage(usage)}), DONE]

    def event(self, chunk: JsonObject) -> bytes:
        """See Shaper."""
        return event(chunk)

    def failed(self, problem: Exception) -> bytes:
        """See Shaper."""
        return event(error(problem)[1])

    def whole(self, chunks: list[JsonObject], usage: Usage) -> JsonObject:
        """Return one answer made of all chunks."""
        choices = [chunk["choices"][0] for chunk in chunks]
        text = "".join(c.get("text", "") or c.get("delta", {}).get("content", "") for c in choices)
        choice: JsonObject = {"index": 0, "finish_reason": choices[-1]["finish_reason"], "logprobs": None}
        choice |= {"message": _message(text, choices)} if self.request.chat else {"text": text}
        logprobs = [c["logprobs"] for c in choices if c.get("logprobs")]
        if logprobs:
            choice["logprobs"] = {name: [entry for part in logprobs for entry in part[name]] for name in logprobs[0]}
        answer: JsonObject = {**self._head(whole=True), "choices": [choice], "usage": self._usage(usage)}
        pieces = [chunk["sideplug"] for chunk in chunks if "sideplug" in chunk]
        return {**answer, "sideplug": pieces} if pieces else answer

    def _usage(self, usage: Usage) -> JsonObject:
        """What the reply took, and which of the request's fields were passed over."""
        tokens = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.reply_tokens}
        return {**tokens, "total_tokens": sum(tokens.values()), "sideplug": ours(usage, self.request)}

    def _logprobs(self, piece: Piece | None) -> JsonObject | None:
        """Log-probabilities of a piece's tokens; None where the cloud told none (a token that the device picked)."""
        if piece is None or not all(piece.tops):
            return None
        shown = self.request.shown_alternatives
        if self.request.chat:
            content = [
                {**_logprob(*chosen), "top_logprobs": [_logprob(*other) for other in best[:shown]]}
                for chosen, *best in piece.tops
            ]
            return {"content": content}
        return {
            "tokens": [chosen[0] for chosen, *_ in piece.tops],
            "token_logprobs": [chosen[1] for chosen, *_ in piece.tops],
            "top_logprobs": [dict(best[:shown]) for _, *best in piece.tops],
        }

    def _head(self, whole: bool = False) -> JsonObject:
        """The fields that every chunk and every answer begins with."""
        kind, prefix = ("chat.completion", "chatcmpl") if self.request.chat else ("text_completion", "cmpl")
        if self.request.chat and not whole:
            kind = "chat.completion.chunk"
        head = {"id": f"{prefix}-{self.id}", "object": kind, "created": self.created, "model": self.model}
        return {**head, "system_fingerprint": self.fingerprint[:16]}

    def _chunk(self, choice: JsonObject) -> JsonObject:
        return {**self._head(), "choices": [{"index": 0, "logprobs": None, **choice}]}


def _message(text: str, choices: Sequence[JsonObject]) -> JsonObject:
    """A whole message, with the calls of its chunks."""
    deltas = [each for choice in choices for each in choice.get("delta", {}).get("tool_calls", [])]
    if not deltas:
        return {"role": "assistant", "content": text}
    calls = [
        {"id": begun["id"], "type": "function", "function": {**begun["function"], **told["function"]}}
        for begun, told in zip(deltas[::2], deltas[1::2], strict=True)
    ]
    return {"role": "assistant", "content": text or None, "tool_calls": calls}


def _logprob(token: str, logprob: float) -> JsonObject:
    return {"token": token, "logprob": logprob, "bytes": list(bytes_of(token))}


def ours(usage: Usage, request: CompletionRequest) -> JsonObject:
    """What a reply took, beside the counts that each API has; with the request's fields that were passed over."""
    counts = {name: value for name, value in usage.to_json().items() if name not in ("prompt_tokens", "reply_tokens")}
    return counts | ({"passed_over": list(request.passed_over)} if request.passed_over else {})


class Shaper(Protocol):
    """Puts one reply into the shapes of an API. fingerprint: of the base that it is asked of."""

    request: CompletionRequest
    fingerprint: str

    def start(self) -> list[JsonObject]:
        """The chunks before the first piece."""
        ...

    def piece(self, text: str, piece: Piece | None) -> list[JsonObject]:
        """The chunks of some text; `piece` is what it came from."""
        ...

    def call(self, call: Call) -> list[JsonObject]:
        """The chunks of a tool's call."""
        ...

    def finish(self, reason: str) -> list[JsonObject]:
        """The last chunks. `reason`: why the cloud ended the reply."""
        ...

    def end(self, usage: Usage) -> list[bytes]:
        """What ends a stream, behind its last chunk."""
        ...

    def event(self, chunk: JsonObject) -> bytes:
        """A chunk as a server-sent event."""
        ...

    def failed(self, problem: Exception) -> bytes:
        """What ends a stream in which something went wrong."""
        ...

    def whole(self, chunks: list[JsonObject], usage: Usage) -> JsonObject:
        """One answer made of all chunks."""
        ...


def chunks(
    shaper: Shaper,
    pieces: Iterator[Piece],
    usage: Callable[[], Usage],
    form: Callable[[], CallForm | None] = lambda: None,
) -> Iterator[JsonObject]:
    """Yield all chunks of a reply, from its first piece on; a stop text ends them.

    usage: called at the end. form: how the base writes calls; called when the first piece has come.
    """
    request, stops, called = shaper.request, StopTexts(shaper.request.stops), False
    first = next(pieces, None)  # an error in the request shows here, before anything has been sent
    reads = form() if request.prompt.tools else None
    reader = CallReader(reads, request.functions) if reads else None
    yield from shaper.start()

    def told(text: str, piece: Piece | None, last: bool = False) -> Iterator[JsonObject]:
        nonlocal called
        parts = reader.push(text, last) if reader else [text] if text else []
        for part in parts:
            called = called or isinstance(part, Call)
            yield from shaper.call(part) if isinstance(part, Call) else shaper.piece(part, piece)

    for piece in itertools.chain([first] if first else [], pieces):
        text = stops.push(piece.text)
        if text:
            yield from told(text, piece)
        elif piece.ids and (request.detail or request.logprobs) and not stops.reached:
            yield from shaper.piece("", piece)
        if stops.reached:
            break
    yield from told(stops.rest(), None, last=True)
    yield from shaper.finish("tool_calls" if called else "stop_text" if stops.reached else usage().why)


def prompt_for(request: CompletionRequest, granted: Sequence[str]) -> CompletionRequest:
    """The request as a base can take it: without tools, which its reply may use, where it has none of them."""
    if request.plain is None or TOOLS.name in granted:
        return request
    prompt, passed_over = request.plain
    return replace(request, prompt=prompt, plain=None, passed_over=request.passed_over + passed_over)


# ── errors and events ────────────────────────────────────────────────────────────────────────────────────────────────


def error_body(message: str, kind: str, code: str) -> JsonObject:
    """Return OpenAI's error object."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def error(problem: Exception) -> tuple[int, JsonObject]:
    """Return the HTTP status and OpenAI's error object of an exception."""
    status, kind, code = 500, "server_error", "internal"
    if isinstance(problem, TooLong):
        status, kind, code = 400, "invalid_request_error", "context_length_exceeded"
    elif isinstance(problem, UnknownModel):
        status, kind, code = 404, "invalid_request_error", "model_not_found"
    elif isinstance(problem, InputError):
        status, kind, code = 400, "invalid_request_error", problem.code
    elif isinstance(problem, Busy):
        status, kind, code = 429, "rate_limit_error", "busy"
    elif isinstance(problem, Unreachable):
        status, kind, code = 503, "api_error", problem.code
    elif isinstance(problem, SideplugError):
        status, kind, code = 502, "api_error", problem.code
    message = str(problem) if code != "internal" else "the gateway met a fault of its own; its log has the details"
    return status, error_body(message, kind, code)


def event(value: JsonObject) -> bytes:
    """Return one server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"  # a comment, so that nobody on the way takes a silent stream for a dead one
