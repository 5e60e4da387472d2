"""Anthropic's Messages, without a socket: a body → CompletionRequest; pieces of a reply → events and answers.

Test: pytest tests/device/test_newer_apis.py
"""

from __future__ import annotations

import json
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
from sideplug.device.gateway.tools import Call, text_of
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
    told = [each for message in listed for each in _unpacked(message)]
    messages = [{"role": "system", "content": system}, *told] if system else told
    config = typed(fields, "output_config", dict, {})
    grammar = of_response_format(config.get("format"), "output_config.format")
    unread = [f"output_config.{name}"[:80] for name in config if name != "format"]
    return request_of(fields, messages, READ, "max_tokens", "stop_sequences", defaults, unread, grammar)


def _unpacked(message: object) -> list[object]:
    """A message in chat completions' shape: its calls as tool_calls, its results as messages of their own."""
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(message, Mapping) or not isinstance(content, list):
        return [message]
    blocks = [block if isinstance(block, Mapping) else {} for block in content]
    kinds = [block.get("type") for block in blocks]
    if not {"tool_use", "tool_result"} & set(kinds):
        return [message]
    rest = [each for each, kind in zip(content, kinds, strict=True) if kind not in ("tool_use", "tool_result")]
    calls = [
        {
            "id": block.get("id"),
            "type": "function",
            "function": {
                "name": block.get("name"),
                "arguments": json.dumps(block.get("input") or {}, ensure_ascii=False),
            },
        }
        for block, kind in zip(blocks, kinds, strict=True)
        if kind == "tool_use"
    ]
    results = [
        {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": text_of(block.get("content"))}
        for block, kind in zip(blocks, kinds, strict=True)
        if kind == "tool_result"
    ]
    spoken = {**message, "content": rest or None, **({"tool_calls": calls} if calls else {})}
    return [*results, *([spoken] if rest or calls else [])]


def _call(block: Mapping[str, object]) -> JsonObject:
    """A tool_use block as chat completions have it."""
    arguments = json.dumps(block.get("input") or {}, ensure_ascii=False)
    function = {"name": block.get("name"), "arguments": arguments}
    return {"id": block.get("id"), "type": "function", "function": function}


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
    _content: list[JsonObject] = field(default_factory=list)
    _is_open: bool = False
    _why: str = ""

    def start(self) -> list[JsonObject]:
        """See Shaper. How long the prompt is, is told at the end: the stream begins before it is read."""
        message = {**self._message([]), "usage": {"input_tokens": 0, "output_tokens": 0}}
        begun = [named("message_start", message=message)]
        return begun if self.request.prompt.tools else begun + self._opened({"type": "text", "text": ""})

    def _opened(self, block: JsonObject) -> list[JsonObject]:
        self._content.append(block)
        self._is_open = True
        return [named("content_block_start", index=len(self._content) - 1, content_block=dict(block))]

    def _closed(self) -> list[JsonObject]:
        closed = [named("content_block_stop", index=len(self._content) - 1)] if self._is_open else []
        self._is_open = False
        return closed

    def piece(self, text: str, piece: Piece | None) -> list[JsonObject]:
        """See Shaper."""
        opened = [] if self._is_open else self._opened({"type": "text", "text": ""})
        self._content[-1]["text"] += text
        more = {"sideplug": {"by": piece.by, "ids": piece.ids}} if self.request.detail and piece else {}
        place = {"index": len(self._content) - 1}
        return [*opened, named("content_block_delta", **place, delta={"type": "text_delta", "text": text}, **more)]

    def call(self, call: Call) -> list[JsonObject]:
        """See Shaper."""
        closed = self._closed()
        block = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
        opened = self._opened(block)
        delta = {"type": "input_json_delta", "partial_json": call.arguments}
        told = named("content_block_delta", index=len(self._content) - 1, delta=delta)
        self._content[-1] = {**block, "input": json.loads(call.arguments)}
        return [*closed, *opened, told, *self._closed()]

    def finish(self, reason: str) -> list[JsonObject]:
        """See Shaper."""
        whys = {"length": "max_tokens", "stop_text": "stop_sequence", "tool_calls": "tool_use"}
        self._why = whys.get(reason, "end_turn")
        opened = [] if self._content else self._opened({"type": "text", "text": ""})
        return [*opened, *self._closed()]

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
        message = self._message(self._content)
        return {**message, "stop_reason": self._why, "usage": self._usage(usage)}

    def _usage(self, usage: Usage) -> JsonObject:
        read = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": usage.cached}
        tokens = {"input_tokens": usage.prompt_tokens - usage.cached, "output_tokens": usage.reply_tokens}
        return {**tokens, **read, "sideplug": ours(usage, self.request)}

    def _message(self, content: list[JsonObject]) -> JsonObject:
        about = {"id": f"msg_{self.id}", "type": "message", "role": "assistant", "model": self.model}
        return {**about, "content": content, "stop_reason": None, "stop_sequence": None}
