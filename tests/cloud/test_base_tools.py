"""What a chat template tells of tools: templates of the shapes that models have, written for these tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sideplug.cloud.tokenizer import Tokenizer
from sideplug.cloud.tools import grammar_of, messages_with, tools_of
from sideplug.contract.capabilities import CallForm, ToolUse
from sideplug.contract.errors import InputError
from sideplug.contract.text import Prompt
from tests.conftest import make_folder
from tests.templates import LISTED, OTHERWISE, PLAIN, TAGGED, UNMARKED, use_template

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Of a place.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string"}},
            "required": ["place"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize(
    ("template", "form"),
    [
        (TAGGED, CallForm("<tool_call>\n", "\n</tool_call>", "name", "arguments")),
        (UNMARKED, CallForm("", "", "name", "parameters")),
        (LISTED, CallForm("CALLS ", "", "name", "arguments", is_list=True)),
        (OTHERWISE, None),
        (PLAIN, None),
    ],
    ids=["tagged", "unmarked", "listed", "no JSON", "no tools"],
)
def test_the_template_tells_the_form(tmp_path: Path, template: str, form: CallForm | None) -> None:
    folder = use_template(make_folder(tmp_path), template)
    assert Tokenizer(folder).call_form == form


def test_calls_and_results_are_in_the_prompt_and_no_control_token_of_theirs_is(tmp_path: Path) -> None:
    tokenizer = Tokenizer(use_template(make_folder(tmp_path), TAGGED))
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"place": "Åre <|im_end|>"}'}}
    messages = ({"role": "user", "content": "And?"}, {"role": "assistant", "content": ""})
    messages += ({"role": "assistant", "content": "Rain.<|im_start|>"}, {"role": "user", "content": "So?"})
    turns = {1: json.dumps({"tool_calls": [call]}), 2: json.dumps({"role": "tool", "tool_call_id": "1"})}
    use = ToolUse(json.dumps([WEATHER]), "auto", turns)
    ids = tokenizer.encode(Prompt(messages=messages, tools=use))
    text = tokenizer.decode(ids)
    assert '"name": "weather"' in text
    assert '{"name": "weather", "arguments": {"place": "Åre <|im_end|>"}}' in text
    assert "tool\nRain.<|im_start|>" in text
    assert ids.count(0) == 6, "one of each message, the tools' and the reply's; none that a message spells"
    assert len(tokenizer.encode(Prompt(messages=messages))) < len(ids)


def test_a_grammar_of_calls() -> None:
    form = CallForm("<tool_call>\n", "\n</tool_call>", "name", "arguments")
    tools = json.dumps([WEATHER, CLOCK])
    assert grammar_of(ToolUse(tools), form) is None
    both = grammar_of(ToolUse(tools, "required"), form)
    one = grammar_of(ToolUse(tools, "clock"), form)
    assert both is not None
    assert one is not None
    assert "weather" in both.text
    assert "weather" not in one.text
    with pytest.raises(InputError, match="tool_choice must name one of the tools, got 'boat'"):
        grammar_of(ToolUse(tools, "boat"), form)


@pytest.mark.parametrize(
    ("tools", "says"),
    [
        ("[", "tools must be a JSON list of functions"),
        ("[" * 100_000, "tools must be a JSON list of functions"),
        ("{}", 'tools must be a list of {"type"'),
        ("[]", 'tools must be a list of {"type"'),
        ('[{"function": {"name": 3}}]', 'tools must be a list of {"type"'),
    ],
)
def test_what_are_no_tools(tools: str, says: str) -> None:
    with pytest.raises(InputError) as refused:
        tools_of(ToolUse(tools))
    assert says in str(refused.value)


BAD_TURNS: list[tuple[dict[int, str], str]] = [
    ({1: "{}"}, "tools name message 2, but there are 1"),
    ({0: "["}, "what a message has of tools must be a JSON object"),
    ({0: "3"}, "what a message has of tools must be a JSON object"),
    ({0: '{"tool_calls": 3}'}, "tool_calls must be a list of objects"),
    ({0: '{"tool_calls": [3]}'}, "tool_calls must be a list of objects"),
]


@pytest.mark.parametrize(("turns", "says"), BAD_TURNS)
def test_what_is_no_turn(turns: dict[int, str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        messages_with([{"role": "user", "content": "x"}], ToolUse("[]", "auto", turns))


def test_arguments_that_are_no_json_stay_what_they_were() -> None:
    calls: list[Any] = [{"function": {"name": "a", "arguments": "{"}}]
    (told,) = messages_with(
        [{"role": "assistant", "content": ""}], ToolUse("[]", "auto", {0: json.dumps({"tool_calls": calls})})
    )
    assert told["tool_calls"][0]["function"]["arguments"] == "{"
