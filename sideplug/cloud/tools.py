"""A base's tools: whether its chat template has a place for them, how it writes a call, and a grammar of its calls.

The template itself tells: it is given one tool and one call, and what it writes is looked at. A form that is not JSON
with a name and arguments is not read here, and such a base has no tools. Test: pytest tests/cloud/test_base_tools.py
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from sideplug.contract.capabilities import CallForm, Grammar, ToolUse
from sideplug.contract.errors import InputError
from sideplug.contract.grammar import WRITTEN, checked

Render = Callable[[Sequence[Mapping[str, Any]], bool, Sequence[Mapping[str, Any]] | None], str]
NAME, KEY, VALUE, ID = "probe_tool", "probe_key", "probe_value", "probe0001"
_PARAMETERS = {"type": "object", "properties": {KEY: {"type": "string", "description": "It."}}, "required": [KEY]}
_TOOL = {"type": "function", "function": {"name": NAME, "description": "It.", "parameters": _PARAMETERS}}


def form_of(render: Render, control: Collection[str]) -> CallForm | None:
    """How a template writes a call; None where it has no place for tools, or writes calls in another way than JSON.

    render: (messages, whether the assistant's turn is opened, tools) → text. control: the control tokens' spellings.
    """
    asked = [{"role": "user", "content": "x"}]
    call = {"id": ID, "type": "function", "function": {"name": NAME, "arguments": {KEY: VALUE}}}
    try:
        plain, before = render(asked, True, None), render(asked, True, [_TOOL])
        told = render([*asked, {"role": "assistant", "content": "", "tool_calls": [call]}], False, [_TOOL])
    except InputError:
        return None
    if plain == before or NAME not in before:
        return None
    shared = next(
        (n for n, (a, b) in enumerate(zip(before, told, strict=False)) if a != b), min(len(before), len(told))
    )
    return _read(told[shared:], control)


def _read(said: str, control: Collection[str]) -> CallForm | None:
    """The form of what a template wrote for the call."""
    for at, first in enumerate(said):
        if first not in "{[":
            continue
        try:
            value, end = json.JSONDecoder().raw_decode(said, at)
        except ValueError:
            continue
        is_list = isinstance(value, list)
        call = value[0] if is_list and len(value) == 1 else value
        if not isinstance(call, dict):
            continue
        names = [key for key, each in call.items() if each == NAME]
        arguments = [key for key, each in call.items() if each == {KEY: VALUE}]
        if len(names) == len(arguments) == 1:
            begin, rest = _after_control(said[:at], control), _before_control(said[end:], control)
            return CallForm(begin.lstrip("\n "), rest.rstrip("\n "), names[0], arguments[0], is_list)
    return None


def _after_control(text: str, control: Collection[str]) -> str:
    ends = [text.rfind(each) + len(each) for each in control if each in text]
    return text[max(ends, default=0) :]


def _before_control(text: str, control: Collection[str]) -> str:
    begins = [text.find(each) for each in control if each in text]
    return text[: min(begins, default=len(text))]


def messages_with(messages: Sequence[Mapping[str, str]], use: ToolUse) -> list[dict[str, Any]]:
    """The messages as a chat template wants them: with calls and results. Raises InputError.

    The arguments of a call are an object there, not its JSON, which OpenAI's API has.
    """
    told = [dict[str, Any](message) for message in messages]
    for number, text in use.turns.items():
        if number >= len(told):
            raise InputError(f"tools name message {number + 1}, but there are {len(told)}")
        told[number] |= _object(text, "what a message has of tools")
        calls = told[number].get("tool_calls") or []
        if not isinstance(calls, list) or not all(isinstance(each, dict) for each in calls):
            raise InputError("tool_calls must be a list of objects")
        for call in calls:
            function = call.get("function")
            if isinstance(function, dict) and isinstance(function.get("arguments"), str):
                function["arguments"] = _arguments(function["arguments"])
    return told


def _arguments(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text  # a call that a model wrote wrong stands in the history as it was


def _object(text: str, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what} must be a JSON object") from error
    if not isinstance(value, dict):
        raise InputError(f"{what} must be a JSON object")
    return value


def tools_of(use: ToolUse) -> list[dict[str, Any]]:
    """The tools that a prompt brings. Raises InputError."""
    try:
        tools = json.loads(use.tools)
    except (ValueError, RecursionError) as error:
        raise InputError("tools must be a JSON list of functions") from error
    functions = [each.get("function") for each in tools if isinstance(each, dict)] if isinstance(tools, list) else []
    good = [each for each in functions if isinstance(each, dict) and isinstance(each.get("name"), str)]
    if not good or len(good) != len(tools):
        raise InputError('tools must be a list of {"type": "function", "function": {"name", "parameters"}}')
    return [dict(tool) for tool in tools]


def grammar_of(use: ToolUse, form: CallForm) -> Grammar | None:
    """What a reply must be that has to call a tool; None where it need not. Raises InputError."""
    if use.choice == "auto":
        return None
    functions = [tool["function"] for tool in tools_of(use)]
    if use.choice != "required":
        functions = [each for each in functions if each["name"] == use.choice]
        if not functions:
            raise InputError(f"tool_choice must name one of the tools, got {use.choice[:80]!r}")
    calls = [
        {
            "type": "object",
            "properties": {
                form.name: {"const": each["name"]},
                form.arguments: each.get("parameters") or {"type": "object"},
            },
            "required": [form.name, form.arguments],
            "additionalProperties": False,
        }
        for each in functions
    ]
    one: dict[str, Any] = calls[0] if len(calls) == 1 else {"anyOf": calls}
    if form.is_list:
        one = {"type": "array", "items": one, "minItems": 1, "maxItems": 1}
    begin, end = (f"{json.dumps(text, ensure_ascii=False)} " if text else "" for text in (form.begin, form.end))
    schema = json.dumps({"x-guidance": WRITTEN, **one}, ensure_ascii=False)
    return checked(Grammar("lark", f"start: {begin}call {end}\ncall: %json {schema}\n"))
