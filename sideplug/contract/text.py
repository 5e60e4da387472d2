"""What a prompt is, on both sides: chat messages, plain text to be continued, or token ids.

The device sends words and never needs a tokenizer; `sideplug.cloud.tokenizer` turns them into ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sideplug.contract.errors import InputError

ROLES = ("system", "user", "assistant")
MAX_MESSAGES = 4096


@dataclass(frozen=True)
class Prompt:
    """Exactly one of the three is set. `text` may be empty: a reply from nothing."""

    messages: tuple[dict[str, str], ...] | None = None
    text: str | None = None
    ids: tuple[int, ...] | None = None

    @classmethod
    def user(cls, content: str) -> Prompt:
        return cls(messages=({"role": "user", "content": content},))

    @property
    def characters(self) -> int:
        """How much there is to tokenize."""
        return len(self.text or "") + sum(len(message["content"]) for message in self.messages or ())

    def to_wire(self) -> dict[str, Any]:
        if self.messages is not None:
            return {"messages": list(self.messages)}
        if self.text is not None:
            return {"text": self.text}
        return {"ids": list(self.ids or ())}

    @classmethod
    def from_wire(cls, control: dict[str, Any]) -> Prompt:
        """Raises InputError unless there is exactly one well-formed prompt."""
        given = [name for name in ("messages", "text", "ids") if name in control]
        if len(given) != 1:
            raise InputError(f"a prompt must be one of messages, text or ids, got {' and '.join(given) or 'none'}")
        if given == ["text"]:
            return cls(text=control["text"])
        if given == ["ids"]:
            ids = control["ids"]
            if not all(type(i) is int and 0 <= i < 1 << 31 for i in ids):
                raise InputError("a prompt's ids must be whole numbers, 0 or more")
            return cls(ids=tuple(ids))
        return cls(messages=tuple(check_messages(control["messages"])))


def check_messages(messages: Any) -> list[dict[str, str]]:
    """The messages with role and content only. Raises InputError: roles, types, or none at all."""
    if not isinstance(messages, list) or not 1 <= len(messages) <= MAX_MESSAGES:
        raise InputError(f"messages must be a list of 1 to {MAX_MESSAGES}")
    out = []
    for message in messages:
        if not isinstance(message, dict):
            raise InputError(f"a message must have role and content, got {type(message).__name__}")
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise InputError(f"a message's role must be {', '.join(ROLES)}, got {str(role)[:40]!r}")
        if not isinstance(content, str):
            raise InputError(f"a message's content must be text, got {type(content).__name__}")
        out.append({"role": role, "content": content})
    return out
