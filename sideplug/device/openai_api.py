"""OpenAI's shapes, without a socket: a request's body → what is asked; pieces of a reply → chunks; errors.

One generator of chunks serves streamed and whole replies. What we add stands under the key `sideplug`: in a request
{"gate_rate", "detail"}, in a chunk who chose its tokens, in `usage` what the reply took. It does not know plugins,
HTTP or the cloud. Test: pytest tests/device/test_openai_api.py
"""

from __future__ import annotations

import itertools
import json
import math
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sideplug.contract.errors import Busy, InputError, SideplugError, TooLong, UnknownModel, Unreachable
from sideplug.contract.sampling import Sampling
from sideplug.contract.text import Prompt, check_messages
from sideplug.contract.wire import MAX_TOP
from sideplug.device.runtime import Piece, Usage

MAX_STOPS = 4
ROLES = {"developer": "system"}
# What a reply could not honour must be said, not passed over; these values ask for nothing.
NOT_HERE: dict[str, tuple[Any, ...]] = {
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


@dataclass(frozen=True)
class Asked:
    """One request: which model, what to go on from, how. `top`: alternatives of each token to fetch; `shown` of them
    stand beside its log-probability."""

    model: str
    prompt: Prompt
    chat: bool
    max_tokens: int
    sampling: Sampling
    stops: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False
    logprobs: bool = False
    top: int = 0
    shown: int = 0
    gate_rate: float | None = None
    detail: bool = False


@dataclass(frozen=True)
class Defaults:
    """Where a request is silent. temperature 0 is greedy: a small model's best."""

    max_tokens: int = 512
    temperature: float = 0.0


def parse(body: bytes, chat: bool, defaults: Defaults = Defaults()) -> Asked:
    """Raises InputError, in one sentence, for what is not a request or asks for what is not to be had."""
    given = json_object(body)
    fields = {name: value for name, value in given.items() if value is not None}
    for name, nothing in NOT_HERE.items():
        if name in fields and fields[name] not in nothing:
            raise InputError(f"{name} is not supported: leave it out, or give {json.dumps(nothing[0])}")
    own = _typed(fields, "sideplug", dict, {})
    unknown = sorted(set(own) - {"gate_rate", "detail"})
    if unknown:
        raise InputError(f"sideplug must have gate_rate and detail only, got {', '.join(map(str, unknown))[:80]}")
    rate = own.get("gate_rate")
    if rate is not None and (isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate <= 1):
        raise InputError(f"sideplug.gate_rate must be 0 to 1, got {rate!r}")
    limit = "max_completion_tokens" if chat and "max_completion_tokens" in fields else "max_tokens"
    max_tokens = _typed(fields, limit, int, defaults.max_tokens)
    if max_tokens < 1:
        raise InputError(f"{limit} must be 1 or more, got {max_tokens}")
    temperature = _number(fields, "temperature", defaults.temperature)
    # A caller who gives no seed wants another text each time.
    seed = _typed(fields, "seed", int, secrets.randbits(62) if temperature else 0)
    top_p = _number(fields, "top_p", 1.0) or 1e-9  # some clients send 0 for "the best one"
    detail = bool(own.get("detail", False))
    logprobs, shown = _logprobs(fields, chat)
    return Asked(
        model=_typed(fields, "model", str, ""),
        prompt=_chat_prompt(fields) if chat else _text_prompt(fields),
        chat=chat,
        max_tokens=min(max_tokens, 1 << 31),
        sampling=Sampling(temperature, top_p=top_p, seed=seed & ((1 << 63) - 1)),
        stops=_stops(fields.get("stop", [])),
        stream=_typed(fields, "stream", bool, False),
        include_usage=bool(_typed(fields, "stream_options", dict, {}).get("include_usage", False)),
        logprobs=logprobs,
        top=max(shown, 5 if detail else 1 if logprobs else 0),
        shown=shown,
        gate_rate=None if rate is None else float(rate),
        detail=detail,
    )


def json_object(body: bytes) -> dict[str, Any]:
    """Raises InputError for what is none, or has text that can't be sent on."""
    try:
        given = json.loads(body)
        json.dumps(given, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InputError("the body must be text: it has half of a character (a lone \\ud800 to \\udfff)") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"the body must be JSON: {error}") from error
    if not isinstance(given, dict):
        raise InputError(f"the body must be a JSON object, got {type(given).__name__}")
    return given


def _typed(fields: dict[str, Any], name: str, kind: Any, otherwise: Any) -> Any:
    value = fields.get(name, otherwise)
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        names = {str: "text", int: "a whole number", float: "a number", bool: "true or false", dict: "an object"}
        raise InputError(f"{name} must be {names[kinds[-1]]}, got {json.dumps(value)[:60]}")
    return value


def _number(fields: dict[str, Any], name: str, otherwise: float) -> float:
    try:
        return float(_typed(fields, name, (int, float), otherwise))
    except OverflowError:
        return math.inf  # a whole number beyond all floats: refused like other ones that are too large


def _logprobs(fields: dict[str, Any], chat: bool) -> tuple[bool, int]:
    """(wanted, alternatives): chat has a switch and a count, completions only a count."""
    if chat:
        wanted, top = _typed(fields, "logprobs", bool, False), _typed(fields, "top_logprobs", int, 0)
        name = "top_logprobs"
    else:
        wanted, name = fields.get("logprobs", False) is not False, "logprobs"
        top = _typed(fields, name, int, 0) if wanted else 0
    if not 0 <= top <= MAX_TOP:
        raise InputError(f"{name} must be 0 to {MAX_TOP}, got {top}")
    return wanted, top if wanted else 0


def _chat_prompt(fields: dict[str, Any]) -> Prompt:
    messages = fields.get("messages")
    if not isinstance(messages, list):
        raise InputError("messages must be a list of {role, content}")
    return Prompt(messages=tuple(check_messages([_message(message) for message in messages])))


def _message(message: Any) -> Any:
    """Content in parts becomes text; roles of newer models become the ones that templates know."""
    if not isinstance(message, dict):
        return message
    content = message.get("content")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
            raise InputError("a message's content must be text: pictures, sound and files can't be read")
        content = "".join(part["text"] for part in content)
    role = message.get("role")
    return {"role": ROLES.get(role, role) if isinstance(role, str) else role, "content": content}


def _text_prompt(fields: dict[str, Any]) -> Prompt:
    prompt = fields.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and type(prompt[0]) is not int:
        prompt = prompt[0]
    if isinstance(prompt, list) and prompt and all(type(i) is int and 0 <= i < 1 << 31 for i in prompt):
        return Prompt(ids=tuple(prompt))
    if not isinstance(prompt, str) or not prompt:
        raise InputError("prompt must be one text (or one list of token ids)")
    return Prompt(text=prompt)


def _stops(stop: Any) -> tuple[str, ...]:
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(s, str) and s for s in stops) or len(stops) > MAX_STOPS:
        raise InputError(f"stop must be a text, or a list of at most {MAX_STOPS} texts")
    return tuple(stops)


class Stops:
    """Cuts a growing text before the stop text that is complete first, however the text is cut into pieces; what might
    be the start of one is held back until it is known."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """The text that may be shown now."""
        if self.found:
            return ""
        self._held += text
        cuts = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if cuts:
            self.found = True
            shown, self._held = self._held[: min(cuts)[1]], ""
            return shown
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        end = len(self._held) - keep
        shown, self._held = self._held[:end], self._held[end:]
        return shown

    def rest(self) -> str:
        """What was held back, when nothing more comes."""
        held, self._held = self._held, ""
        return held

    def _overlap(self, stop: str) -> int:
        """How many characters at the end may be the beginning of `stop`."""
        return next((n for n in range(min(len(stop) - 1, len(self._held)), 0, -1) if self._held.endswith(stop[:n])), 0)


@dataclass
class Shape:
    """The chunks of one reply, streamed or whole."""

    asked: Asked
    model: str
    fingerprint: str
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def start(self) -> list[dict[str, Any]]:
        """Chunks before the first piece."""
        if not self.asked.chat:
            return []
        return [self._chunk({"delta": {"role": "assistant", "content": ""}, "finish_reason": None})]

    def piece(self, text: str, piece: Piece | None) -> dict[str, Any]:
        """A chunk of some text; `piece` is what it came from."""
        choice: dict[str, Any] = {"delta": {"content": text}} if self.asked.chat else {"text": text}
        choice["finish_reason"] = None
        if self.asked.logprobs:
            choice["logprobs"] = self._logprobs(piece)
        chunk = self._chunk(choice)
        if self.asked.detail and piece is not None:
            chunk["sideplug"] = {"by": piece.by, "ids": piece.ids, "tops": piece.tops}
        return chunk

    def finish(self, why: str) -> dict[str, Any]:
        end: dict[str, Any] = {"delta": {}} if self.asked.chat else {"text": ""}
        return self._chunk({**end, "finish_reason": "length" if why == "length" else "stop"})

    def usage(self, usage: Usage) -> dict[str, Any]:
        """The chunk behind the last, where it was asked for."""
        return {**self._about(), "choices": [], "usage": counted(usage)}

    def whole(self, chunks: list[dict[str, Any]], usage: Usage) -> dict[str, Any]:
        """One answer instead of chunks."""
        choices = [chunk["choices"][0] for chunk in chunks]
        text = "".join(c.get("text", "") or c.get("delta", {}).get("content", "") for c in choices)
        choice: dict[str, Any] = {"index": 0, "finish_reason": choices[-1]["finish_reason"], "logprobs": None}
        choice |= {"message": {"role": "assistant", "content": text}} if self.asked.chat else {"text": text}
        told = [c["logprobs"] for c in choices if c.get("logprobs")]
        if told:
            choice["logprobs"] = {name: [entry for part in told for entry in part[name]] for name in told[0]}
        about = {**self._about(whole=True), "choices": [choice], "usage": counted(usage)}
        pieces = [chunk["sideplug"] for chunk in chunks if "sideplug" in chunk]
        return {**about, "sideplug": pieces} if pieces else about

    def _logprobs(self, piece: Piece | None) -> dict[str, Any] | None:
        if piece is None or not all(piece.tops):
            return None
        if self.asked.chat:
            content = [
                {**_logprob(*own), "top_logprobs": [_logprob(*one) for one in best[: self.asked.shown]]}
                for own, *best in piece.tops
            ]
            return {"content": content}
        return {
            "tokens": [own[0] for own, *_ in piece.tops],
            "token_logprobs": [own[1] for own, *_ in piece.tops],
            "top_logprobs": [dict(map(tuple, best[: self.asked.shown])) for _, *best in piece.tops],
        }

    def _about(self, whole: bool = False) -> dict[str, Any]:
        kind, prefix = ("chat.completion", "chatcmpl") if self.asked.chat else ("text_completion", "cmpl")
        if self.asked.chat and not whole:
            kind = "chat.completion.chunk"
        about = {"id": f"{prefix}-{self.id}", "object": kind, "created": self.created, "model": self.model}
        return {**about, "system_fingerprint": self.fingerprint[:16]}

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        return {**self._about(), "choices": [{"index": 0, "logprobs": None, **choice}]}


def _logprob(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}


def counted(usage: Usage) -> dict[str, Any]:
    """OpenAI's three numbers, and ours."""
    tokens = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.reply_tokens}
    own = {name: value for name, value in usage.to_json().items() if name not in ("prompt_tokens", "reply_tokens")}
    return {**tokens, "total_tokens": sum(tokens.values()), "sideplug": own}


def error(problem: Exception) -> tuple[int, dict[str, Any]]:
    """(HTTP status, OpenAI's error object) of whatever went wrong."""
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
    return status, {"error": {"message": message, "type": kind, "param": None, "code": code}}


def event(value: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def chunks(shape: Shape, pieces: Iterator[Piece], usage: Any) -> Iterator[dict[str, Any]]:
    """All chunks of a reply, from its first piece on; a stop text ends them. `usage()`: what it took, afterwards."""
    stops = Stops(shape.asked.stops)
    first = next(pieces, None)  # what is wrong with a request shows here, before anything was sent
    yield from shape.start()
    for piece in itertools.chain([first] if first else [], pieces):
        text = stops.push(piece.text)
        if text or (piece.ids and (shape.asked.detail or shape.asked.logprobs) and not stops.found):
            yield shape.piece(text, piece)
        if stops.found:
            break
    rest = stops.rest()
    if rest:
        yield shape.piece(rest, None)
    yield shape.finish("stop" if stops.found else usage().why)
