"""Tools through the gateway: by the makers' own clients, before a cloud whose template has them; calls read from text.

A random model does not choose to call, so these replies must: what "auto" reads is given as text, letter by letter.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from sideplug.contract.capabilities import CallForm
from sideplug.contract.errors import InputError
from sideplug.device.gateway import messages_api, responses_api, tools
from sideplug.device.gateway.openai_api import parse
from sideplug.device.gateway.tools import Call, CallReader
from tests.conftest import a_cloud, a_plugin, make_folder
from tests.gateway import HI, Stage, a_stage, root, stage
from tests.templates import LISTED, TAGGED, UNMARKED, use_template

__all__ = ["root", "stage"]  # fixtures
PLACE = {
    "type": "object",
    "properties": {"place": {"enum": ["Åre", "Bo"]}},
    "required": ["place"],
    "additionalProperties": False,
}
WEATHER: dict[str, Any] = {"type": "function", "function": {"name": "weather", "parameters": PLACE}}
FORM = CallForm("<tool_call>\n", "\n</tool_call>", "name", "arguments")
BARE = CallForm("", "", "name", "parameters")
SEVERAL = CallForm("CALLS ", "", "name", "arguments", is_list=True)
UNKNOWN = '<tool_call>{"name": "boat", "arguments": {}}</tool_call>'
ONE = '{"name": "weather", "arguments": {"place": "Åre"}}'


# ── calls read from a text ───────────────────────────────────────────────────────────────────────────────────────────

Told = list[str | tuple[str, str]]
READ: list[tuple[CallForm, str, Told]] = [
    (FORM, f"<tool_call>\n{ONE}\n</tool_call>", [("weather", '{"place": "Åre"}')]),
    (FORM, f"Let me see. <tool_call>\n{ONE}\n</tool_call>\n", ["Let me see. ", ("weather", '{"place": "Åre"}')]),
    (FORM, f"<tool_call>{ONE}</tool_call><tool_call>{ONE}</tool_call>", [("weather", '{"place": "Åre"}')] * 2),
    (FORM, f"<tool_call>{ONE}</tool_call> So.", [("weather", '{"place": "Åre"}'), "So."]),
    (FORM, f"<tool_call>{ONE}", [("weather", '{"place": "Åre"}')]),
    (FORM, "It is <b>5</b> < 6 <tool", ["It is <b>5</b> < 6 <tool"]),
    (FORM, '<tool_call>\n{"name": "weather", "argum', ['<tool_call>\n{"name": "weather", "argum']),
    (FORM, "<tool_call>\nweather(Åre)\n</tool_call>", ["<tool_call>\nweather(Åre)\n</tool_call>"]),
    (
        FORM,
        '<tool_call>{"name": "boat", "arguments": {}}</tool_call>',
        ['<tool_call>{"name": "boat", "arguments": {}}</tool_call>'],
    ),
    (FORM, '{"name": "weather", "arguments": {}}', ['{"name": "weather", "arguments": {}}']),
    (BARE, ONE.replace("arguments", "parameters"), [("weather", '{"place": "Åre"}')]),
    (BARE, "\n " + ONE.replace("arguments", "parameters"), [("weather", '{"place": "Åre"}')]),
    (BARE, 'So: {"name": "weather"}', ['So: {"name": "weather"}']),
    (BARE, '{"a": 1} is JSON', ['{"a": 1} is JSON']),
    (BARE, "[1, 2", ["[1, 2"]),
    (SEVERAL, f"CALLS [{ONE}, {ONE}]", [("weather", '{"place": "Åre"}')] * 2),
    (SEVERAL, f"CALLS [{ONE}, 3]", [f"CALLS [{ONE}, 3]"]),
    (SEVERAL, "CALLS []", ["CALLS []"]),
]


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(("form", "text", "expected"), READ)
def test_calls_are_read_however_the_text_comes(form: CallForm, text: str, expected: Told, size: int) -> None:
    reader, told = CallReader(form, ["weather"]), Told()
    parts = [part for at in range(0, len(text), size) for part in reader.push(text[at : at + size])]
    for part in [*parts, *reader.push("", last=True)]:
        if isinstance(part, Call):
            told.append((part.name, part.arguments))
        elif told and isinstance(told[-1], str):
            told[-1] += part
        else:
            told.append(part)
    assert told == expected


def test_text_before_a_mark_is_not_held_back() -> None:
    reader = CallReader(FORM, ["weather"])
    assert list(reader.push("It rains. <to")) == ["It rains. "]
    assert list(reader.push("day>")) == ["<today>"]


# ── what requests bring ──────────────────────────────────────────────────────────────────────────────────────────────

USE = {"type": "tool_use", "id": "c1", "name": "weather", "input": {"place": "Bo"}}
RESULT = {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "Yes."}]}
CALLED = [
    {"role": "user", "content": "Rain?"},
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"place": "Bo"}'}}]},
    {"role": "tool", "tool_call_id": "c1", "content": "Yes."},
]  # fmt: skip
BODIES = {
    "chat": {"messages": CALLED, "tools": [WEATHER, {"type": "web_search"}], "max_tokens": 9},
    "responses": {
        "input": [
            {"role": "user", "content": "Rain?"},
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"place": "Bo"}'},
            {"type": "function_call_output", "call_id": "c1", "output": "Yes."},
        ],
        "tools": [{"type": "function", "name": "weather", "parameters": PLACE, "strict": None}, {"type": "web_search"}],
        "max_output_tokens": 9,
    },
    "messages": {
        "messages": [
            {"role": "user", "content": "Rain?"},
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "c1", "name": "weather", "input": {"place": "Bo"}}],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "Yes."}]}
                ],
            },
        ],
        "tools": [{"name": "weather", "input_schema": PLACE}, {"type": "web_search"}],
        "max_tokens": 9,
    },
}


def asked(api: str, **more: Any) -> Any:
    body = json.dumps({**BODIES[api], **more}).encode()
    return {"chat": lambda b: parse(b, True), "responses": responses_api.parse, "messages": messages_api.parse}[api](
        body
    )


@pytest.mark.parametrize("api", BODIES)
def test_each_api_brings_the_same(api: str) -> None:
    request = asked(api)
    assert request.prompt.tools == asked("chat").prompt.tools
    assert request.prompt.messages == asked("chat").prompt.messages
    assert [message["role"] for message in request.prompt.messages] == ["user", "assistant", "assistant"]
    assert json.loads(request.prompt.tools.turns[1])["tool_calls"][0]["function"]["name"] == "weather"
    assert json.loads(request.prompt.tools.turns[2]) == {"role": "tool", "tool_call_id": "c1"}
    assert request.prompt.tools.choice == "auto"
    assert request.functions == ["weather"]
    assert "tools: web_search" in request.passed_over
    prompt, passed_over = request.plain  # agents send tools along whatever the base is
    assert prompt.messages == ({"role": "user", "content": "Rain?"},)
    assert "tools: the base's chat template has no place for them" in passed_over


@pytest.mark.parametrize(
    ("api", "choice", "want"),
    [
        ("chat", "required", "required"),
        ("chat", {"type": "function", "function": {"name": "weather"}}, "weather"),
        ("responses", {"type": "function", "name": "weather"}, "weather"),
        ("responses", "auto", "auto"),
        ("messages", {"type": "any"}, "required"),
        ("messages", {"type": "tool", "name": "weather"}, "weather"),
        ("messages", {"type": "auto", "disable_parallel_tool_use": True}, "auto"),
    ],
)
def test_choices(api: str, choice: Any, want: str) -> None:
    request = asked(api, tool_choice=choice)
    assert request.prompt.tools.choice == want
    assert (request.plain is None) == (want != "auto"), "what must be called can't be passed over"


@pytest.mark.parametrize("api", BODIES)
def test_none_is_none(api: str) -> None:
    request = asked(api, tool_choice="none" if api != "messages" else {"type": "none"})
    assert request.prompt.tools is None
    assert "tools" in request.passed_over


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"tools": {"a": 1}}, "tools must be a list"),
        ({"tools": [3]}, "tools must be a list of objects, got 3"),
        ({"tools": [{"type": "function", "function": {}}]}, "a tool must have a name of at most 128 characters"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": 3}}]},
            "parameters of the tool a must be",
        ),
        ({"tool_choice": "boat"}, "tool_choice must be none, auto, required, or name a function; got"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "boat"}}},
            r"must name one of the tools \(weather\)",
        ),
        ({"tool_choice": {"other": 1}}, "tool_choice must be none, auto, required"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "description": "b" * (1 << 20)}}]},
            "at most 524,288 characters",
        ),
        ({"tools": None, "tool_choice": "required"}, "tool_choice must be auto or none where there are no tools"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        asked("chat", **fields)


# ── on sockets ───────────────────────────────────────────────────────────────────────────────────────────────────────


SHAPES = [pytest.param(TAGGED, id="tagged")] + [
    pytest.param(template, id=name, marks=pytest.mark.slow)
    for template, name in ((UNMARKED, "bare"), (LISTED, "listed"))
]


@pytest.fixture(scope="module", params=SHAPES)
def called(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A gateway before a cloud whose base has tools; with the plugin "anna"."""
    folder = tmp_path_factory.mktemp("tools")
    model = use_template(make_folder(folder / "model"), request.param)
    config = model / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": 1024}))
    with a_cloud(model) as cloud:
        a_plugin(cloud.base.fingerprint, scale=0.15).save(folder / "plugins" / "anna")
        with a_stage(cloud.url, folder / "plugins") as running:
            yield running


@pytest.mark.parametrize("who", ["", "anna"])
def test_chat_completions(called: Stage, who: str) -> None:
    with called.client() as client:
        model = who or client.models.list().data[0].id
        ask: Any = {"model": model, "messages": CALLED, "tools": [WEATHER], "max_tokens": 80, "tool_choice": "required"}
        whole = client.chat.completions.create(**ask).choices[0]
        assert whole.finish_reason == "tool_calls"
        assert whole.message.content is None
        (call,) = whole.message.tool_calls or []
        assert call.type == "function"
        assert call.function.name == "weather"
        assert json.loads(call.function.arguments)["place"] in ("Åre", "Bo")
        with client.chat.completions.stream(**ask) as stream:
            last = stream.get_final_completion().choices[0]
        (streamed,) = last.message.tool_calls or []
        assert (streamed.function.name, streamed.function.arguments) == (call.function.name, call.function.arguments)
        assert last.finish_reason == "tool_calls"
        free = client.chat.completions.create(**{**ask, "tool_choice": "auto", "max_tokens": 12}).choices[0]
        assert free.message.content, "a random model says anything"
        assert free.finish_reason == "length"


def test_responses_and_messages(called: Stage) -> None:
    with called.client() as client:
        model = client.models.list().data[0].id
        body: Any = {"model": model, **BODIES["responses"], "tool_choice": "required", "max_output_tokens": 80}
        answer = client.responses.create(**body)
        (item,) = answer.output
        assert item.type == "function_call"
        assert json.loads(item.arguments)["place"] in ("Åre", "Bo")
        with client.responses.stream(**body) as stream:
            kinds = [event.type for event in stream]
            assert stream.get_final_response().output[0].arguments == item.arguments  # type: ignore[union-attr]
        assert kinds.count("response.function_call_arguments.done") == 1
        assert "response.output_text.delta" not in kinds
    with anthropic.Anthropic(base_url=called.url, api_key="none", max_retries=0) as theirs:
        ask: Any = {"model": model, **BODIES["messages"], "tool_choice": {"type": "any"}, "max_tokens": 80}
        message = theirs.messages.create(**ask)
        (block,) = message.content
        assert block.type == "tool_use"
        assert block.input["place"] in ("Åre", "Bo")  # type: ignore[index]
        assert message.stop_reason == "tool_use"
        with theirs.messages.stream(**ask) as told:
            final = told.get_final_message()
        assert final.content[0].type == "tool_use"
        assert final.content[0].input == block.input
        free = theirs.messages.create(**{**ask, "tool_choice": {"type": "auto"}, "max_tokens": 9})
        assert free.content[0].type == "text"


@pytest.mark.parametrize("api", BODIES)
def test_a_base_without_tools_says_so_in_one_sentence(stage: Stage, api: str) -> None:
    """Who may call none is told what was passed over; who must call one is refused."""
    path = {"chat": "/v1/chat/completions"}.get(api, f"/v1/{api}")
    told = stage.post(path, model="tiny", **BODIES[api])
    assert told.status_code == 200, told.text
    assert "tools: the base's chat template has no place for them" in told.json()["usage"]["sideplug"]["passed_over"]
    choice = {"type": "any"} if api == "messages" else "required"
    refused = stage.post(path, model="tiny", **BODIES[api], tool_choice=choice)
    assert refused.status_code == 400
    assert "this base's chat template has no place for tools" in refused.json()["error"]["message"]


def test_tokens_are_counted_with_tools_and_without(stage: Stage, called: Stage) -> None:
    body = {name: value for name, value in BODIES["messages"].items() if name != "max_tokens"}
    plain = {**body, "messages": [{"role": "user", "content": "Rain?"}], "tools": []}
    counts = [each.post("/v1/messages/count_tokens", model="", **what).json()["input_tokens"]
              for each in (stage, called) for what in (plain, body)]  # fmt: skip
    assert counts[0] == counts[1] == counts[2] < counts[3]


def test_tools_and_a_form_are_refused_together(called: Stage) -> None:
    form = {"type": "json_object"}
    answer = called.post(messages=HI, tools=[WEATHER], response_format=form, model="")
    assert answer.status_code == 400
    assert "must not have tools and another form" in answer.json()["error"]["message"]


def test_a_schema_of_a_tool_that_can_t_be_met_is_refused(called: Stage) -> None:
    never = {
        "type": "function",
        "function": {"name": "a", "parameters": {"type": "string", "minLength": 3, "maxLength": 1}},
    }
    answer = called.post(messages=HI, tools=[never], tool_choice="required", model="")
    assert answer.status_code == 400
    assert "the grammar can't be held to" in answer.json()["error"]["message"]
    assert tools.REQUIRED == "required"
