"""A prompt, as both sides understand it: chat messages, plain text to be continued, or token ids.

The device sends text and needs no tokenizer; `sideplug.cloud.tokenizer` turns it into ids. It does not know tokens or
chat templates. Test: pytest tests/contract/test_text.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict

from sideplug.contract.capabilities import TOOLS, ToolUse, extension_of
from sideplug.contract.errors import InputError
from sideplug.contract.frames import MAX_MESSAGES, Message, PromptFrame, Read

ROLES = ("system", "user", "assistant")


class ReadFields(TypedDict, total=False):
    """The fields of a READ frame that hold a prompt."""

    messages: list[Message]
    text: str


class PromptFields(ReadFields, total=False):
    """The fields of a PROMPT frame that hold a prompt."""

    ids: list[int]


@dataclass(frozen=True)
class Prompt:
    """A prompt: chat messages, text to be continued, or token ids. Exactly one of them is set; `text` may be empty.

    tools: what messages have beside their words; the base's own chat template writes it.

    >>> sideplug.Prompt.user("Is it far?").messages
    ({'role': 'user', 'content': 'Is it far?'},)
    >>> sideplug.Prompt(text="Dear Anna,").characters
    10
    """

    messages: tuple[dict[str, str], ...] | None = None
    text: str | None = None
    ids: tuple[int, ...] | None = None
    tools: ToolUse | None = None

    @classmethod
    def user(cls, content: str) -> Prompt:
        """Return the prompt of one message by the user."""
        return cls(messages=({"role": "user", "content": content},))

    @property
    def characters(self) -> int:
        """Return the number of characters to tokenize; 0 for token ids."""
        used = (self.tools.tools, *self.tools.turns.values()) if self.tools else ()
        words = (message["content"] for message in self.messages or ())
        return len(self.text or "") + sum(map(len, (*words, *used)))

    def to_wire(self) -> PromptFields:
        """Return the field of a PROMPT frame that holds this prompt."""
        if self.messages is not None:
            return {"messages": [Message(each["role"], each["content"]) for each in self.messages]}
        if self.text is not None:
            return {"text": self.text}
        return {"ids": list(self.ids or ())}

    def to_read(self) -> ReadFields:
        """Return the field of a READ frame that holds this prompt. Raises InputError for token ids."""
        if self.messages is not None:
            return {"messages": [Message(each["role"], each["content"]) for each in self.messages]}
        if self.text is None:
            raise InputError("an example's prompt must be messages or text")
        return {"text": self.text}

    def to_json(self) -> dict[str, Any]:
        """Return the prompt as plain values."""
        if self.messages is not None:
            return {"messages": list(self.messages)}
        return {"text": self.text} if self.text is not None else {"ids": list(self.ids or ())}

    @classmethod
    def from_wire(cls, frame: PromptFrame | Read) -> Prompt:
        """Return the prompt of a frame. Raises InputError unless it has exactly one, well-formed."""
        ids = frame.ids if isinstance(frame, PromptFrame) else None
        fields = {"messages": frame.messages, "text": frame.text, "ids": ids}
        names = [name for name, value in fields.items() if value is not None]
        if len(names) != 1:
            raise InputError(f"a prompt must be one of messages, text or ids, got {' and '.join(names) or 'none'}")
        if frame.messages is not None:
            messages = check_messages([{"role": m.role, "content": m.content} for m in frame.messages])
            return cls(messages=tuple(messages), tools=extension_of(frame, TOOLS, ToolUse))
        return cls(text=frame.text) if ids is None else cls(ids=tuple(ids))


def check_messages(messages: Any) -> list[dict[str, str]]:
    """Return the messages with role and content only. Raises InputError for wrong roles, types or lengths."""
    if not isinstance(messages, list) or not 1 <= len(messages) <= MAX_MESSAGES:
        raise InputError(f"messages must be a list of 1 to {MAX_MESSAGES}")
    out = []
    for message in messages:
        if not isinstance(message, dict):
            raise InputError(f"a message must have role and content, got {str(message)[:40]!r}")
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise InputError(f"a message's role must be {', '.join(ROLES)}, got {str(role)[:40]!r}")
        if not isinstance(content, str):
            raise InputError(f"a message's content must be text, got {str(content)[:40]!r}")
        out.append({"role": role, "content": content})
    return out
