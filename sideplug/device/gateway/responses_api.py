"""OpenAI's Responses, without a socket: a body → CompletionRequest; pieces of a reply → events and answers.

Stateless: nothing is stored, so a request brings the whole conversation.
Test: pytest tests/device/test_newer_apis.py
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from sideplug.contract.errors import InputError
from sideplug.device.gateway.json_fields import Fields, JsonObject, json_object, shown, typed
from sideplug.device.gateway.lenient import event, named, request_of
from sideplug.device.gateway.openai_api import CompletionRequest, Defaults
from sideplug.device.gateway.openai_reply import error, ours
from sideplug.device.gateway.structured import of_response_format
from sideplug.device.gateway.tools import Call, text_of
from sideplug.device.reply import Piece, Usage

READ = ("input", "instructions", "text", "store", "previous_response_id", "conversation", "background")
SEEN = ("input_image", "input_file", "input_audio")  # items that can't be read


def parse(body: bytes, defaults: Defaults = Defaults()) -> CompletionRequest:
    """The request of a body. Raises InputError, in one sentence."""
    fields = json_object(body)
    for name in ("previous_response_id", "conversation"):
        if fields.get(name):
            raise InputError(f"{name} is not supported: nothing is kept here, so send the whole conversation as input")
    if fields.get("background"):
        raise InputError("background is not supported: a reply is made while its caller waits")
    grammar = of_response_format(typed(fields, "text", dict, {}).get("format"), "text.format")
    instructions = typed(fields, "instructions", str, "")
    messages, unread = _messages(fields)
    if instructions:
        messages.insert(0, {"role": "system", "content": instructions})
    return request_of(fields, messages, READ, "max_output_tokens", "stop", defaults, unread, grammar)


def _messages(fields: Fields) -> tuple[list[object], list[str]]:
    """(the messages of an input, what of its items is passed over)."""
    given = fields.get("input")
    if isinstance(given, str):
        return [{"role": "user", "content": given}], []
    if not isinstance(given, list):
        raise InputError(f"input must be a text or a list of items, got {shown(given)}")
    messages, unread = list[object](), set[str]()
    for item in given:
        kind = str(item.get("type", "message")) if isinstance(item, Mapping) else "message"
        if kind == "message":
            messages.append(item)
        elif kind == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments") or "{}"}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            last = messages[-1] if messages else None
            if isinstance(last, dict) and last.get("tool_calls"):
                last["tool_calls"].append(call)  # calls that were made at once
            else:
                messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        elif kind == "function_call_output":
            content = text_of(item.get("output"))
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": content})
        elif kind in SEEN:
            raise InputError(f"input can't have items of the type {kind!r}: pictures, sound and files can't be read")
        else:
            unread.add(f"input: {kind[:60]}")  # a provider's own: what its tools did, its reasoning, its bookkeeping
    return messages, sorted(unread)


@dataclass
class ResponsesShaper:
    """Puts one reply into the shapes of Responses."""

    request: CompletionRequest
    model: str
    fingerprint: str
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    created: int = field(default_factory=lambda: int(time.time()))
    _text: str = ""
    _why: str = ""
    _number: int = -1
    _at: int | None = None  # of the message that is open
    _count: int = 0  # items so far
    _output: list[JsonObject] = field(default_factory=list)

    def start(self) -> list[JsonObject]:
        """See Shaper. Where there are tools, a message is opened when its first words come."""
        response = self._response("in_progress", [])
        begun = [named("response.created", response=response), named("response.in_progress", response=response)]
        return begun if self.request.prompt.tools else begun + self._opened()

    def _opened(self) -> list[JsonObject]:
        self._at, self._count, self._text = self._count, self._count + 1, ""
        item = {**self._item("in_progress"), "content": []}
        return [
            named("response.output_item.added", output_index=self._at, item=item),
            named("response.content_part.added", **self._place(), part=self._part("")),
        ]

    def _closed(self) -> list[JsonObject]:
        if self._at is None:
            return []
        self._output.append(self._item(self._status))
        chunks = [
            named("response.output_text.done", **self._place(), text=self._text, logprobs=[]),
            named("response.content_part.done", **self._place(), part=self._part(self._text)),
            named("response.output_item.done", output_index=self._at, item=self._output[-1]),
        ]
        self._at = None
        return chunks

    def piece(self, text: str, piece: Piece | None) -> list[JsonObject]:
        """See Shaper."""
        opened = self._opened() if self._at is None else []
        self._text += text
        more = {"sideplug": {"by": piece.by, "ids": piece.ids}} if self.request.detail and piece else {}
        return [*opened, named("response.output_text.delta", **self._place(), delta=text, logprobs=[], **more)]

    def call(self, call: Call) -> list[JsonObject]:
        """See Shaper."""
        closed = self._closed()
        at, self._count = self._count, self._count + 1
        item = {"id": f"fc_{call.id}", "type": "function_call", "call_id": call.id, "name": call.name}
        self._output.append({**item, "arguments": call.arguments, "status": "completed"})
        place, begun = {"item_id": item["id"], "output_index": at}, {**item, "arguments": "", "status": "in_progress"}
        return [
            *closed,
            named("response.output_item.added", output_index=at, item=begun),
            named("response.function_call_arguments.delta", **place, delta=call.arguments),
            named("response.function_call_arguments.done", **place, arguments=call.arguments, name=call.name),
            named("response.output_item.done", output_index=at, item=self._output[-1]),
        ]

    def finish(self, reason: str) -> list[JsonObject]:
        """See Shaper."""
        self._why = reason
        opened = self._opened() if not self._count else []  # a reply of no words and no calls is an empty message
        return [*opened, *self._closed()]

    def end(self, usage: Usage) -> list[bytes]:
        """See Shaper."""
        whole = self.whole([], usage)
        return [self.event(named(f"response.{whole['status']}", response=whole))]

    def event(self, chunk: JsonObject) -> bytes:
        """See Shaper."""
        self._number += 1
        return event(chunk["kind"], {"sequence_number": self._number, **chunk["data"]})

    def failed(self, problem: Exception) -> bytes:
        """See Shaper."""
        told = error(problem)[1]["error"]
        return self.event(named("error", code=told["code"], message=told["message"], param=None))

    def whole(self, chunks: list[JsonObject], usage: Usage) -> JsonObject:
        """See Shaper."""
        counts = {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached},
            "output_tokens": usage.reply_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.prompt_tokens + usage.reply_tokens,
            "sideplug": ours(usage, self.request),
        }
        return {**self._response(self._status, self._output), "usage": counts}

    @property
    def _status(self) -> str:
        return "incomplete" if self._why == "length" else "completed"

    @property
    def _message(self) -> str:
        return f"msg_{self.id}{self._at or ''}"

    def _place(self) -> JsonObject:
        return {"item_id": self._message, "output_index": self._at, "content_index": 0}

    def _part(self, text: str) -> JsonObject:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def _item(self, status: str) -> JsonObject:
        about = {"id": self._message, "type": "message", "status": status, "role": "assistant"}
        return {**about, "content": [self._part(self._text)]}

    def _response(self, status: str, output: list[JsonObject]) -> JsonObject:
        sampling = self.request.sampling
        return {
            "id": f"resp_{self.id}",
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": None,
            "max_output_tokens": self.request.max_tokens,
            "model": self.model,
            "output": output,
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": sampling.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "top_p": sampling.top_p,
            "truncation": "disabled",
            "usage": None,
            "metadata": {},
        }
