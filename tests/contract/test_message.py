"""One reader of messages: every role's names, both pairs of keys, parts, tools; a plain sentence for the rest."""

from __future__ import annotations

from typing import Any

import pytest

from sideplug.contract.errors import InputError
from sideplug.contract.message import CALLS, REASONING, RESULTS, ROLE_NAMES, ChatMessage, read_message

READ: list[tuple[dict[str, Any], ChatMessage]] = [
    *(
        ({"role": name, "content": "hi"}, ChatMessage(role, "hi"))
        for role, names in ROLE_NAMES.items()
        for name in names
        if role != "tool"
    ),
    ({"from": "human", "value": "hi"}, ChatMessage("user", "hi")),
    ({"role": "User ", "content": "hi"}, ChatMessage("user", "hi")),
    ({"role": "user", "value": "hi"}, ChatMessage("user", "hi")),
    ({"from": "gpt", "content": "hi"}, ChatMessage("assistant", "hi")),
    ({"role": "user", "content": ""}, ChatMessage("user", "")),
    (
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        ChatMessage("user", "ab"),
    ),
    ({"role": "user", "content": [{"text": "a"}, "b"]}, ChatMessage("user", "ab")),
    ({"role": "user", "content": [{"type": "input_text", "text": "a"}]}, ChatMessage("user", "a")),
    ({"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}, ChatMessage("assistant", "No.")),
    ({"role": "assistant", "content": None, "refusal": "No."}, ChatMessage("assistant", "No.")),
    ({"role": "assistant", "content": None}, ChatMessage("assistant", "")),
    ({"role": "assistant", "content": "hi", "refusal": None, "tool_calls": []}, ChatMessage("assistant", "hi")),
    ({"role": "assistant", "content": None, "tool_calls": [{}]}, ChatMessage("assistant", None, (CALLS,))),
    ({"role": "assistant", "content": "", "tool_calls": [{}]}, ChatMessage("assistant", None, (CALLS,))),
    ({"role": "assistant", "tool_calls": [{}]}, ChatMessage("assistant", None, (CALLS,))),
    ({"role": "assistant", "content": "Wait.", "tool_calls": [{}]}, ChatMessage("assistant", "Wait.", (CALLS,))),
    ({"role": "assistant", "content": None, "function_call": {"name": "f"}}, ChatMessage("assistant", None, (CALLS,))),
    ({"role": "tool", "content": "dry", "tool_call_id": "1"}, ChatMessage("tool", None, (RESULTS,))),
    ({"from": "function_call", "value": "{}"}, ChatMessage("tool", None, (CALLS,))),
    ({"from": "observation", "value": "dry"}, ChatMessage("tool", None, (RESULTS,))),
    (
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "…"}, {"type": "text", "text": "Yes."}]},
        ChatMessage("assistant", "Yes.", (REASONING,)),
    ),
    ({"role": "user", "content": [{"type": "tool_result", "content": "dry"}]}, ChatMessage("user", None, (RESULTS,))),
]
REFUSED: list[tuple[object, str]] = [
    ("hi", "must be an object with role and content, got text"),
    (None, "must be an object with role and content, got nothing"),
    ({"content": "hi"}, r"a message's role must be one of system, developer, user, human, .*; got nothing"),
    ({"role": 3, "content": "hi"}, "role must be one of .*; got a number"),
    ({"from": "clown", "value": "hi"}, "a message's from must be one of .*; got 'clown'"),
    ({"role": "user", "content": None}, "a message's content must be text, got nothing"),
    ({"role": "user"}, "a message's content must be text, got nothing"),
    ({"from": "human", "value": 3}, "a message's value must be text, got a number"),
    ({"role": "user", "content": {"a": 1}}, "content must be text, got an object"),
    (
        {"role": "user", "content": [{"type": "image_url", "image_url": {}}]},
        "pictures.*can't be read; it has a part of the type 'image_url'",
    ),
    ({"role": "user", "content": [7]}, "it has a number"),
    ({"role": "user", "content": [{"type": "text", "text": None}]}, "it has a part of the type 'text'"),
    ({"role": "user", "content": [{"type": ["x"]}]}, "it has a part of the type"),
]


@pytest.mark.parametrize(("message", "read"), READ, ids=str)
def test_read(message: dict[str, Any], read: ChatMessage) -> None:
    assert read_message(message) == read


@pytest.mark.parametrize(("message", "says"), REFUSED, ids=str)
def test_refused(message: object, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        read_message(message)
    assert not any(word in str(caught.value) for word in ("NoneType", "dict", "str", "int "))
