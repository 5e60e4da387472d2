"""Anthropic's Messages, without a socket: a body → CompletionRequest; pieces of a reply → events and answers.

Tools are passed over, as the base has none. Test: pytest tests/device/test_newer_apis.py
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from sideplug.contract.errors import InputError
from sideplug.device.gateway import openai_reply
from sideplug.device.gateway.json_fields import Fields, JsonObject, json_object, shown, typed
from sideplug.device.gateway.lenient import event, named, request_of
from sideplug.device.gateway.openai_api import CompletionRequest, Defaults
from sideplug.device.gateway.openai_reply import ours
from sideplug.device.gateway.structured import of_response_format
from sideplug.device.reply import Piece, Usage

READ = ("messages", "system", "output_config")
KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def parse(body: bytes, defaults: Defaults = Defaults(), is_counted: bool = False) -> CompletionRequest:
    """The request of a body. is_counted: its tokens are to be counted only. Raises InputError, in one sentence."""
    fields = json_object(body)
    if fields.get("max_tokens") is None and not is_counted:
        raise InputError("max_tokens must be given: the most tokens of the reply")
    listed = fields.get("messages")
    if not isinstance(listed, list):
        raise InputError(f"messages must be a list of {{role, content}}, got {shown(listed)}")
    system = _system(fields)
    messages = [{"role": "system", "content": system}, *listed] if system else listed
    config = typed(fields, "output_config", dict, {})
    grammar = of_response_format(config.get("format"), "output_config.format")
    unread = [f"output_config.{name}"[:80] for name in config if name != "format"]
    return request_of(fields, messages, READ, "max_tokens", "stop_sequences", defaults, unread, grammar)


def _system(fields: Fields) -> str:
    """The system's words: a text, or blocks of text."""
    given = fields.get("system") or ""
    blocks = [given] if isinstance(given, str) else given
    if not isinstance(blocks, list):
        raise InputError(f"system must be a text or a list of blocks, got {shown(given)}")
    texts = [each.get("text") if isinstance(each, Mapping) else each for each in blocks]
    if not all(isinstance(text, str) for text in texts):
        raise InputError("system must have blocks of text only")
    return "\n\n".join(str(text) for text in texts)


def error(problem: Exception) -> tuple[int, JsonObject]:
    """The HTTP status and Anthropic's error object of an exception."""
    status, body = openai_reply.error(problem)
    return status, error_body(status, body["error"]["message"])


def error_body(status: int, message: str) -> JsonObject:
    """Anthropic's error object."""
    return {"type": "error", "error": {"type": KINDS.get(status, "api_error"), "message": message}}


@dataclass
class MessagesShaper:
    """Puts one reply into the shapes of Messages."""

    request: CompletionRequest
    model: str
    fingerprint: str
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    _text: str = ""
    _why: str = ""

    def start(self) -> list[JsonObject]:
        """See Shaper. How long the prompt is, is told at the end: the stream begins before it is read."""
        message = {**self._message([]), "usage": {"input_tokens": 0, "output_tokens": 0}}
        block = {"type": "text", "text": ""}
        return [named("message_start", message=message), named("content_block_start", index=0, content_block=block)]

    def piece(self, text: str, piece: Piece | None) -> JsonObject:
        """See Shaper."""
        self._text += text
        more = {"sideplug": {"by": piece.by, "ids": piece.ids}} if self.request.detail and piece else {}
        return named("content_block_delta", index=0, delta={"type": "text_delta", "text": text}, **more)

    def finish(self, reason: str) -> list[JsonObject]:
        """See Shaper."""
        self._why = {"length": "max_tokens", "stop_text": "stop_sequence"}.get(reason, "end_turn")
        return [named("content_block_stop", index=0)]

    def end(self, usage: Usage) -> list[bytes]:
        """See Shaper."""
        delta = {"stop_reason": self._why, "stop_sequence": None}
        ends = (named("message_delta", delta=delta, usage=self._usage(usage)), named("message_stop"))
        return [self.event(chunk) for chunk in ends]

    def event(self, chunk: JsonObject) -> bytes:
        """See Shaper."""
        return event(chunk["kind"], chunk["data"])

    def failed(self, problem: Exception) -> bytes:
        """See Shaper."""
        return event("error", {"error": error(problem)[1]["error"]})

    def whole(self, chunks: list[JsonObject], usage: Usage) -> JsonObject:
        """See Shaper."""
        message = self._message([{"type": "text", "text": self._text}])
        return {**message, "stop_reason": self._why, "usage": self._usage(usage)}

    def _usage(self, usage: Usage) -> JsonObject:
        read = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": usage.cached}
        tokens = {"input_tokens": usage.prompt_tokens - usage.cached, "output_tokens": usage.reply_tokens}
        return {**tokens, **read, "sideplug": ours(usage, self.request)}

    def _message(self, content: list[JsonObject]) -> JsonObject:
        about = {"id": f"msg_{self.id}", "type": "message", "role": "assistant", "model": self.model}
        return {**about, "content": content, "stop_reason": None, "stop_sequence": None}
