"""One message of a chat, as programs write it: its role and its words, under all the names and shapes that are in use.

Training data and the gateway read messages here, so both take the same ones.

    {"role", "content"}     OpenAI; content is text, null beside tool calls, or a list of parts
    {"from", "value"}       ShareGPT

It does not know conversations. Test: pytest tests/contract/test_message.py
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sideplug.contract.errors import InputError

TOOL = "tool"
ROLE_NAMES = {
    "system": ("system", "developer"),
    "user": ("user", "human"),
    "assistant": ("assistant", "gpt", "model", "bot", "chatgpt", "bing", "bard"),
    TOOL: ("tool", "function", "observation", "function_call", "function_response", "tool_call", "tool_response"),
}
_ROLES = {name: role for role, names in ROLE_NAMES.items() for name in names}
ROLE_KEYS, CONTENT_KEYS = ("role", "from"), ("content", "value")
CALLS, RESULTS, REASONING = "tool calls", "tool results", "reasoning"
_CALL_ROLES = ("function_call", "tool_call")
# Of each type of part the key of its text.
TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
_PASSED_PARTS = {
    "tool_use": CALLS,
    "tool_call": CALLS,
    "tool_result": RESULTS,
    "thinking": REASONING,
    "redacted_thinking": REASONING,
    "reasoning": REASONING,
}
_PASSED_ENDS = ("_tool_use", "_tool_result")  # of tools that a provider runs by itself
FIELDS = (*ROLE_KEYS, *CONTENT_KEYS, "tool_calls", "function_call", "tool_call_id", "refusal")  # that are read here


@dataclass(frozen=True)
class ChatMessage:
    """A message. content: its words; None where it has none, because it is a tool's call or result.

    passed_over: what it holds beside its words (CALLS, RESULTS, REASONING), which a chat template is not given.
    """

    role: str
    content: str | None
    passed_over: tuple[str, ...] = ()


def read_message(message: object, name: str = "a message") -> ChatMessage:
    """Return a message as role and words. Raises InputError, in whose sentence it is called `name`."""
    if not isinstance(message, Mapping):
        raise InputError(f"{name} must be an object with role and content, got {kind_of(message)}")
    role_key = next((key for key in ROLE_KEYS if message.get(key) is not None), "role")
    given = message.get(role_key)
    role = _ROLES.get(given.strip().lower()) if isinstance(given, str) else None
    if role is None:
        allowed = ", ".join(other for names in ROLE_NAMES.values() for other in names)
        got = repr(given[:40]) if isinstance(given, str) else kind_of(given)
        raise InputError(f"{name}'s {role_key} must be one of {allowed}; got {got}")
    has_call = bool(message.get("tool_calls") or message.get("function_call"))
    passed = [CALLS] if has_call else []
    if role == TOOL:
        return ChatMessage(role, None, (CALLS if str(given).strip().lower() in _CALL_ROLES else RESULTS,))
    key = next((key for key in CONTENT_KEYS if key in message), "content")
    content = message.get(key)
    if content is None and role == "assistant" and not has_call:
        content = message.get("refusal") or ""
    if isinstance(content, list):
        words, passed_parts = _parts(content, name)
        return ChatMessage(role, words, (*passed, *passed_parts))
    if isinstance(content, str) and (content.strip() or not has_call):
        return ChatMessage(role, content, tuple(passed))
    if (content is None or content == "") and has_call:
        return ChatMessage(role, None, tuple(passed))
    raise InputError(f"{name}'s {key} must be text, got {kind_of(content)}")


def _parts(parts: list[object], name: str) -> tuple[str | None, list[str]]:
    """Return (the text of the parts, None where there are only tools' parts; what is passed over)."""
    words, passed = list[str](), list[str]()
    for part in parts:
        kind = str(part.get("type", "text")) if isinstance(part, Mapping) else "text"
        text = part if isinstance(part, str) else None
        if isinstance(part, Mapping) and kind in TEXT_PARTS:
            text = part.get(TEXT_PARTS[kind])
        if isinstance(text, str):
            words.append(text)
        elif kind in _PASSED_PARTS or kind.endswith(_PASSED_ENDS):
            passed.append(_PASSED_PARTS.get(kind, RESULTS if kind.endswith("_result") else CALLS))
        else:
            got = f"a part of the type {kind[:40]!r}" if isinstance(part, Mapping) else kind_of(part)
            raise InputError(f"{name}'s content must be text: pictures, sound and files can't be read; it has {got}")
    return "".join(words) if words or not passed else None, passed


def kind_of(value: object) -> str:
    """Return what a JSON value is, in words: "a number", "a list", "nothing"."""
    if value is None:
        return "nothing"
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), "something else")
