"""Tools: what a request brings of them, in one shape for all APIs; and calls read from a reply's text as it grows.

The one shape is that of OpenAI's chat completions. The base's chat template writes it, so it depends on the base
whether there are tools. A call is read where the text has the base's form of one (CallForm); what is no whole call
stays text.
Test: pytest tests/device/test_tools.py
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from sideplug.contract.capabilities import MAX_TOOLS, CallForm, ToolUse
from sideplug.contract.errors import InputError
from sideplug.contract.message import TOOL, read_message
from sideplug.contract.text import Prompt, check_messages
from sideplug.device.gateway.json_fields import Fields, JsonObject, shown

NONE, AUTO, REQUIRED = "none", "auto", "required"


# ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Asked:
    """The tools of a request. functions: [] where none may be called. choice: "auto", "required" or a name.

    passed_over: tools that are no functions, or all of them where none may be called.
    """

    functions: list[JsonObject]
    choice: str
    passed_over: list[str]


def asked_of(fields: Fields) -> Asked:
    """The tools that a request in any API asks for. Raises InputError."""
    given = fields.get("tool_choice")
    if (given.get("type") if isinstance(given, Mapping) else given) == NONE:
        return Asked([], AUTO, ["tools"] if fields.get("tools") else [])
    functions, passed = functions_of(fields.get("tools"))
    return Asked(functions, choice_of(given, [each["function"]["name"] for each in functions]), passed)


def functions_of(tools: object) -> tuple[list[JsonObject], list[str]]:
    """(the functions among a request's tools, in chat completions' shape; what is passed over). Raises InputError."""
    if tools is None:
        return [], []
    if not isinstance(tools, list):
        raise InputError(f"tools must be a list, got {shown(tools)}")
    found, passed = list[JsonObject](), set[str]()
    for tool in tools:
        if not isinstance(tool, Mapping):
            raise InputError(f"tools must be a list of objects, got {shown(tool)}")
        kind = tool.get("type") or ("function" if "name" in tool or "function" in tool else "")
        about = tool.get("function", tool)
        if kind not in ("function", "custom") or ("input_schema" not in about and kind == "custom"):
            passed.add(f"tools: {str(kind)[:60]}")
            continue
        name = about.get("name") if isinstance(about, Mapping) else None
        if not isinstance(name, str) or not 0 < len(name) <= 128:
            raise InputError("a tool must have a name of at most 128 characters")
        schema = about.get("parameters") or about.get("input_schema") or {"type": "object", "properties": {}}
        if not isinstance(schema, Mapping):
            raise InputError(f"the parameters of the tool {name} must be a JSON schema")
        function = {"name": name, "description": str(about.get("description") or ""), "parameters": schema}
        found.append({"type": "function", "function": function})
    return found, sorted(passed)


def choice_of(given: object, names: Sequence[str]) -> str:
    """ "auto", "required" or the name of a tool, of the tool_choice of any API. Raises InputError."""
    kind = given.get("type") if isinstance(given, Mapping) else given
    if given is None or kind == AUTO:
        return AUTO
    if kind in (REQUIRED, "any"):
        if not names:
            raise InputError("tool_choice must be auto or none where there are no tools")
        return REQUIRED
    if isinstance(given, Mapping) and kind in ("function", "tool"):
        function = given.get("function")
        name = function.get("name") if isinstance(function, Mapping) else given.get("name")
        if name in names:
            return str(name)
        raise InputError(f"tool_choice must name one of the tools ({', '.join(names)[:200] or 'none'})")
    raise InputError(f"tool_choice must be none, auto, required, or name a function; got {shown(given)}")


def prompt_with(listed: Sequence[object], functions: Sequence[JsonObject], choice: str) -> Prompt:
    """The prompt of messages in chat completions' shape, calls and results among them. Raises InputError."""
    messages, turns = list[dict[str, str]](), dict[int, str]()
    for number, message in enumerate(listed):
        read = read_message(message, f"message {number + 1}")
        assert isinstance(message, Mapping)
        if read.role == TOOL:
            content = message.get("content")
            told = {"role": TOOL, **{key: message[key] for key in ("tool_call_id", "name") if message.get(key)}}
            # For a memory it is nobody's question, so it stands as what was said until the template's role is set.
            messages.append({"role": "assistant", "content": text_of(content)})
            turns[number] = json.dumps(told, ensure_ascii=False)
            continue
        messages.append({"role": read.role, "content": read.content or ""})
        if message.get("tool_calls"):
            turns[number] = json.dumps({"tool_calls": message["tool_calls"]}, ensure_ascii=False)
    tools = json.dumps(list(functions), ensure_ascii=False)
    if len(tools) > MAX_TOOLS:
        raise InputError(f"tools must have at most {MAX_TOOLS:,} characters, got {len(tools):,}")
    return Prompt(messages=tuple(check_messages(messages)), tools=ToolUse(tools, choice, turns))


def text_of(content: object) -> str:
    """The words of a tool's result: a text, or parts of it; anything else as JSON."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [each.get("text") if isinstance(each, Mapping) else each for each in content]
        if all(isinstance(part, str) for part in parts):
            return "\n".join(map(str, parts))
    return "" if content is None else json.dumps(content, ensure_ascii=False)


# ── replies ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Call:
    """A tool's call. arguments: JSON."""

    name: str
    arguments: str
    id: str = field(default_factory=lambda: f"call_{secrets.token_hex(12)}")


class CallReader:
    """Reads calls from a growing text. form: how the base writes them; names: of the functions that there are."""

    def __init__(self, form: CallForm, names: Sequence[str]) -> None:
        self._form, self._names = form, frozenset(names)
        self._held = ""
        self._in_call = self._in_end = self._is_behind_one = False
        self._begun = False  # whether something of the reply was read: a call without a mark can only begin it

    def push(self, text: str, last: bool = False) -> Iterator[str | Call]:
        """What can be told now: texts and calls, in their order. `last`: nothing more comes."""
        self._held += text
        while True:
            if self._in_end:
                self._held = self._held.lstrip()
                ending = self._form.end.strip()
                if not last and len(self._held) < len(ending) and ending.startswith(self._held):
                    return  # the mark of the end has not come whole
                self._held = self._held.removeprefix(ending).lstrip()
                self._in_end = False
            if self._in_call:
                calls, end = self._calls()
                if not calls and not end and not last:
                    return
                self._in_call, self._in_end = False, bool(calls)
                if calls:
                    self._held, self._is_behind_one = self._held[end:], True
                    yield from calls
                    continue
                yield self._take(len(self._held))  # what is no call, and can't become one, is text
            begin, size = self._find()
            if begin is None:
                shown = self._take(len(self._held) if last else size)
                shown = shown.lstrip() if self._is_behind_one else shown
                if shown:
                    self._is_behind_one = False
                    yield shown
                return
            before = self._take(begin)
            if before.strip():
                yield before
            self._in_call = True

    def _take(self, count: int) -> str:
        taken, self._held = self._held[:count], self._held[count:]
        self._begun = self._begun or bool(taken.strip())
        return taken

    def _find(self) -> tuple[int | None, int]:
        """(where a call begins; None: nowhere yet, how much of the text can't be part of one)."""
        mark, held = self._form.begin.strip(), self._held
        if not mark:
            start = len(held) - len(held.lstrip())
            begins = not self._begun and held[start : start + 1] in ("{", "[")
            return (start, 0) if begins and held[start:] else (None, len(held) if self._begun or held.strip() else 0)
        at = held.find(mark)
        if at >= 0:
            return at, 0
        kept = next((n for n in range(min(len(mark) - 1, len(held)), 0, -1) if held.endswith(mark[:n])), 0)
        return None, len(held) - kept

    def _calls(self) -> tuple[list[Call], int]:
        """(the calls that the held text begins with, where they end); ([], 1) where it begins with something else."""
        text = self._held
        start = len(self._form.begin.strip())
        while start < len(text) and text[start].isspace():
            start += 1
        if start == len(text):
            return [], 0
        try:
            value, end = json.JSONDecoder().raw_decode(text, start)
        except (ValueError, RecursionError):
            return [], int(text[start] not in "{[")
        given = value if isinstance(value, list) else [value]
        calls = [self._call(each) for each in given]
        return ([], 1) if not calls or None in calls else ([each for each in calls if each], end)

    def _call(self, given: object) -> Call | None:
        if not isinstance(given, Mapping):
            return None
        name, arguments = given.get(self._form.name), given.get(self._form.arguments, {})
        if not isinstance(name, str) or name not in self._names:
            return None
        return Call(name, arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False))
