"""OpenAI's shapes, without a socket: a request's body → CompletionRequest; pieces of a reply → chunks; errors → bodies.

One generator of chunks serves streamed and whole replies. Our extensions stand under the key `sideplug`: in a request
{"gate_rate", "detail"}, in a chunk who chose its tokens, in `usage` what the reply took. This module does not know
plugins, HTTP or the cloud. Test: pytest tests/device/test_openai_api.py
"""

from __future__ import annotations

import itertools
import json
import math
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sideplug.contract.errors import Busy, InputError, SideplugError, TooLong, UnknownModel, Unreachable
from sideplug.contract.frames import MAX_TOP
from sideplug.contract.sampling import Sampling
from sideplug.contract.text import Prompt, check_messages
from sideplug.device.reply import Piece, Usage

JsonObject = dict[
    str, Any
]  # a JSON object: OpenAI's shapes differ by endpoint, and its own client checks them in tests
Fields = Mapping[str, object]  # a request's fields before they are checked
T = TypeVar("T")

MAX_STOPS = 4
MAX_TOKENS = 1 << 31
DETAIL_ALTERNATIVES = 5  # that "detail" tells of each token
ROLES = {"developer": "system"}
# Fields that are not supported, each with the values that ask for nothing. Any other value is refused, not passed over.
UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
TYPE_NAMES: dict[type, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "an object",
}


@dataclass(frozen=True)
class CompletionRequest:
    """One request of either endpoint: which model, what it continues, and how.

    chat: it came to /v1/chat/completions. stops: texts that end the reply. alternatives: how many alternatives of each
    token the cloud is asked for; `shown_alternatives` of them stand beside the token's log-probability. gate_rate: the
    share of tokens that the plugin is asked about; None: as the plugin's gate was trained. detail: tell who chose each
    token.
    """

    model: str
    prompt: Prompt
    chat: bool
    max_tokens: int
    sampling: Sampling
    stops: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False
    logprobs: bool = False
    alternatives: int = 0
    shown_alternatives: int = 0
    gate_rate: float | None = None
    detail: bool = False


@dataclass(frozen=True)
class Defaults:
    """The values of a request that does not give them. temperature 0 is greedy, which suits small models best."""

    max_tokens: int = 512
    temperature: float = 0.0


# ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def parse(body: bytes, chat: bool, defaults: Defaults = Defaults()) -> CompletionRequest:
    """Return the request that a body holds.

    Raises InputError, in one sentence, for a body that is no request or asks for something unsupported.
    """
    fields = {name: value for name, value in json_object(body).items() if value is not None}
    for name, allowed in UNSUPPORTED.items():
        if name in fields and fields[name] not in allowed:
            raise InputError(f"{name} is not supported: leave it out, or give {json.dumps(allowed[0])}")
    gate_rate, detail = _extensions(fields)
    limit = "max_completion_tokens" if chat and "max_completion_tokens" in fields else "max_tokens"
    max_tokens = _typed(fields, limit, int, defaults.max_tokens)
    if max_tokens < 1:
        raise InputError(f"{limit} must be 1 or more, got {max_tokens}")
    temperature = _number(fields, "temperature", defaults.temperature)
    # A caller who gives no seed wants a different text each time.
    seed = _typed(fields, "seed", int, secrets.randbits(62) if temperature else 0)
    top_p = _number(fields, "top_p", 1.0) or 1e-9  # some clients send 0 for "the most likely one"
    logprobs, shown = _logprobs(fields, chat)
    stream_options = _typed(fields, "stream_options", dict, {})
    return CompletionRequest(
        model=_typed(fields, "model", str, ""),
        prompt=_chat_prompt(fields) if chat else _text_prompt(fields),
        chat=chat,
        max_tokens=min(max_tokens, MAX_TOKENS),
        sampling=Sampling(temperature, top_p=top_p, seed=seed & ((1 << 63) - 1)),
        stops=_stops(fields.get("stop", [])),
        stream=_typed(fields, "stream", bool, False),
        include_usage=bool(stream_options.get("include_usage", False)),
        logprobs=logprobs,
        alternatives=max(shown, DETAIL_ALTERNATIVES if detail else 1 if logprobs else 0),
        shown_alternatives=shown,
        gate_rate=gate_rate,
        detail=detail,
    )


def json_object(body: bytes) -> JsonObject:
    """Return the JSON object that a body holds. Raises InputError for another body, or text that is not UTF-8."""
    try:
        value = json.loads(body)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InputError("the body must be text: it has half of a character (a lone \\ud800 to \\udfff)") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"the body must be JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"the body must be a JSON object, got {type(value).__name__}")
    return value


def _typed(fields: Fields, name: str, kind: type[T], default: T) -> T:
    """The field of this name, which must be of this type; bool is no int here."""
    value = fields.get(name, default)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise _wrong_type(name, kind, value)
    return value


def _number(fields: Fields, name: str, default: float) -> float:
    value = fields.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _wrong_type(name, float, value)
    try:
        return float(value)
    except OverflowError:
        return math.inf  # a whole number beyond all floats is refused like other numbers that are too large


def _wrong_type(name: str, kind: type, value: object) -> InputError:
    return InputError(f"{name} must be {TYPE_NAMES[kind]}, got {json.dumps(value)[:60]}")


def _extensions(fields: Fields) -> tuple[float | None, bool]:
    """(gate_rate, detail) of the object `sideplug`."""
    options: JsonObject = _typed(fields, "sideplug", dict, {})
    unknown = sorted(set(options) - {"gate_rate", "detail"})
    if unknown:
        raise InputError(f"sideplug must have gate_rate and detail only, got {', '.join(unknown)[:80]}")
    rate = options.get("gate_rate")
    if rate is not None and (isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate <= 1):
        raise InputError(f"sideplug.gate_rate must be 0 to 1, got {rate!r}")
    return None if rate is None else float(rate), bool(options.get("detail", False))


def _logprobs(fields: Fields, chat: bool) -> tuple[bool, int]:
    """(whether log-probabilities are asked for, alternatives): chat has a switch and a count, completions a count."""
    if chat:
        name = "top_logprobs"
        is_on, count = _typed(fields, "logprobs", bool, False), _typed(fields, name, int, 0)
    else:
        name = "logprobs"
        is_on = fields.get(name, False) is not False
        count = _typed(fields, name, int, 0) if is_on else 0
    if not 0 <= count <= MAX_TOP:
        raise InputError(f"{name} must be 0 to {MAX_TOP}, got {count}")
    return is_on, count if is_on else 0


def _chat_prompt(fields: Fields) -> Prompt:
    messages = fields.get("messages")
    if not isinstance(messages, list):
        raise InputError("messages must be a list of {role, content}")
    return Prompt(messages=tuple(check_messages([_message(message) for message in messages])))


def _message(message: object) -> Any:
    """The message with its parts joined to one text, and with a role that chat templates know."""
    if not isinstance(message, dict):
        return message  # check_messages says what is wrong with it
    content = message.get("content")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
            raise InputError("a message's content must be text: pictures, sound and files can't be read")
        content = "".join(part["text"] for part in content)
    role = message.get("role")
    return {"role": ROLES.get(role, role) if isinstance(role, str) else role, "content": content}


def _text_prompt(fields: Fields) -> Prompt:
    prompt = fields.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and type(prompt[0]) is not int:
        prompt = prompt[0]
    if isinstance(prompt, list) and prompt and all(type(i) is int and 0 <= i < 1 << 31 for i in prompt):
        return Prompt(ids=tuple(prompt))
    if not isinstance(prompt, str) or not prompt:
        raise InputError("prompt must be one text (or one list of token ids)")
    return Prompt(text=prompt)


def _stops(stop: object) -> tuple[str, ...]:
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(s, str) and s for s in stops) or len(stops) > MAX_STOPS:
        raise InputError(f"stop must be a text, or a list of at most {MAX_STOPS} texts")
    return tuple(stops)


# ── replies ──────────────────────────────────────────────────────────────────────────────────────────────────────────


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

    def start(self) -> list[JsonObject]:
        """Return the chunks before the first piece."""
        if not self.request.chat:
            return []
        return [self._chunk({"delta": {"role": "assistant", "content": ""}, "finish_reason": None})]

    def piece(self, text: str, piece: Piece | None) -> JsonObject:
        """Return a chunk of some text; `piece` is what it came from."""
        choice: JsonObject = {"delta": {"content": text}} if self.request.chat else {"text": text}
        choice["finish_reason"] = None
        if self.request.logprobs:
            choice["logprobs"] = self._logprobs(piece)
        chunk = self._chunk(choice)
        if self.request.detail and piece is not None:
            chunk["sideplug"] = {"by": piece.by, "ids": piece.ids, "tops": piece.tops}
        return chunk

    def finish(self, reason: str) -> JsonObject:
        """Return the last chunk. `reason`: why the cloud ended the reply."""
        end: JsonObject = {"delta": {}} if self.request.chat else {"text": ""}
        return self._chunk({**end, "finish_reason": "length" if reason == "length" else "stop"})

    def usage(self, usage: Usage) -> JsonObject:
        """Return the chunk that follows the last one where usage was asked for."""
        return {**self._head(), "choices": [], "usage": usage_object(usage)}

    def whole(self, chunks: list[JsonObject], usage: Usage) -> JsonObject:
        """Return one answer made of all chunks."""
        choices = [chunk["choices"][0] for chunk in chunks]
        text = "".join(c.get("text", "") or c.get("delta", {}).get("content", "") for c in choices)
        choice: JsonObject = {"index": 0, "finish_reason": choices[-1]["finish_reason"], "logprobs": None}
        choice |= {"message": {"role": "assistant", "content": text}} if self.request.chat else {"text": text}
        logprobs = [c["logprobs"] for c in choices if c.get("logprobs")]
        if logprobs:
            choice["logprobs"] = {name: [entry for part in logprobs for entry in part[name]] for name in logprobs[0]}
        answer: JsonObject = {**self._head(whole=True), "choices": [choice], "usage": usage_object(usage)}
        pieces = [chunk["sideplug"] for chunk in chunks if "sideplug" in chunk]
        return {**answer, "sideplug": pieces} if pieces else answer

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


def _logprob(token: str, logprob: float) -> JsonObject:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}


def usage_object(usage: Usage) -> JsonObject:
    """Return OpenAI's three counts of tokens, and ours under `sideplug`."""
    tokens = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.reply_tokens}
    ours = {name: value for name, value in usage.to_json().items() if name not in ("prompt_tokens", "reply_tokens")}
    return {**tokens, "total_tokens": sum(tokens.values()), "sideplug": ours}


def chunks(shaper: ResponseShaper, pieces: Iterator[Piece], usage: Callable[[], Usage]) -> Iterator[JsonObject]:
    """Yield all chunks of a reply, from its first piece on; a stop text ends them. `usage` is called at the end."""
    request, stops = shaper.request, StopTexts(shaper.request.stops)
    first = next(pieces, None)  # an error in the request shows here, before anything has been sent
    yield from shaper.start()
    for piece in itertools.chain([first] if first else [], pieces):
        text = stops.push(piece.text)
        if text or (piece.ids and (request.detail or request.logprobs) and not stops.reached):
            yield shaper.piece(text, piece)
        if stops.reached:
            break
    rest = stops.rest()
    if rest:
        yield shaper.piece(rest, None)
    yield shaper.finish("stop" if stops.reached else usage().why)


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
