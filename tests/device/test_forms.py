"""Structured output through the gateway, by the makers' own clients and in every API's field."""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

import anthropic
import openai
import pytest
from pydantic import BaseModel

from sideplug.contract.capabilities import Grammar
from sideplug.contract.errors import InputError
from sideplug.device.gateway.structured import of_chat, of_response_format
from tests.gateway import HI, Stage, root, stage

__all__ = ["root", "stage"]  # fixtures
SCHEMA = {
    "type": "object",
    "properties": {"far": {"type": "boolean"}, "by": {"enum": ["foot", "boat"]}},
    "required": ["far", "by"],
    "additionalProperties": False,
}


class Way(BaseModel):
    """What OpenAI's client makes a schema of."""

    far: bool
    miles: int


@pytest.mark.parametrize("model", ["tiny", "anna"])
def test_openai_s_client(stage: Stage, model: str) -> None:
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(stage.client())
        form: Any = {"type": "json_schema", "json_schema": {"name": "way", "schema": SCHEMA, "strict": True}}
        ask: Any = {"model": model, "messages": HI, "max_tokens": 200}
        whole = client.chat.completions.create(**ask, response_format=form).choices[0]
        assert set(json.loads(whole.message.content or "")) == {"far", "by"}
        assert whole.finish_reason == "stop"
        pieces = [each.choices[0].delta.content or "" for each in client.chat.completions.create(
            **ask, response_format=form, stream=True) if each.choices]  # fmt: skip
        assert "".join(pieces) == whole.message.content
        parsed = client.beta.chat.completions.parse(**ask, temperature=0.5, seed=3, response_format=Way)
        assert isinstance(parsed.choices[0].message.parsed, Way)
        answer = client.responses.parse(model=model, input="Is it far?", text_format=Way, max_output_tokens=200)
        assert isinstance(answer.output_parsed, Way)
        one = client.chat.completions.create(**ask, extra_body={"structured_outputs": {"choice": ["a (b)", "c|d"]}})
        assert one.choices[0].message.content in ("a (b)", "c|d")
        said = client.completions.create(
            model=model, prompt="It is", max_tokens=60, extra_body={"structured_outputs": {"regex": "[0-9]{3}-[a-z]+!"}}
        )
        assert re.fullmatch("[0-9]{3}-[a-z]*!?", said.choices[0].text)


def test_json_mode_and_anthropic_s_client(stage: Stage) -> None:
    answer = stage.post(
        "/v1/chat/completions", model="tiny", messages=HI, max_tokens=60, response_format={"type": "json_object"}
    ).json()
    assert answer["choices"][0]["message"]["content"].startswith("{")
    with anthropic.Anthropic(base_url=stage.url, api_key="none", max_retries=0) as client:
        config: Any = {"format": {"type": "json_schema", "schema": SCHEMA}}
        message = client.messages.create(
            model="tiny",
            max_tokens=100,
            messages=HI,
            extra_body={"output_config": config},  # type: ignore[arg-type]
        )
        assert message.content[0].type == "text"
        assert set(json.loads(message.content[0].text)) == {"far", "by"}


WHOLE = {"type": "json_schema", "json_schema": {"schema": {"type": "integer"}}}
FORMS: list[tuple[dict[str, Any], Grammar | None]] = [
    ({}, None),
    ({"response_format": None}, None),
    ({"response_format": {"type": "text"}}, None),
    ({"response_format": {"type": "json_object"}}, Grammar("json", '{"type": "object"}')),
    ({"response_format": WHOLE}, Grammar("json", '{"type": "integer"}')),
    ({"structured_outputs": {"json": {"type": "integer"}}}, Grammar("json", '{"type": "integer"}')),
    ({"structured_outputs": {"json": '{"type": "null"}'}}, Grammar("json", '{"type": "null"}')),
    ({"structured_outputs": {"json": True}}, Grammar("json", "true")),
    ({"structured_outputs": {"regex": "a+", "json": None}}, Grammar("regex", "a+")),
    ({"structured_outputs": {"choice": ["a", "b.c"]}}, Grammar("regex", r"a|b\.c")),
    ({"structured_outputs": {"grammar": 'start: "a"'}}, Grammar("lark", 'start: "a"')),
]


@pytest.mark.parametrize(("fields", "want"), FORMS)
def test_each_field(fields: dict[str, Any], want: Grammar | None) -> None:
    assert of_chat(fields) == want


def test_the_newer_shape() -> None:
    form = {"type": "json_schema", "name": "n", "schema": {"type": "integer"}, "strict": True}
    assert of_response_format(form, "text.format") == Grammar("json", '{"type": "integer"}')


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"response_format": "json"}, "response_format must have a type of text, json_object, json_schema, got"),
    ({"response_format": {"type": "xml"}}, "response_format must have a type of"),
    ({"response_format": {"type": "json_schema"}}, "response_format must have a schema where"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": [1]}}}, "a JSON schema must be an object"),
    ({"response_format": WHOLE, "structured_outputs": {"regex": "a"}}, "can't be given together"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "must have one of json, regex, choice, grammar"),
    ({"structured_outputs": {"xml": "a"}}, "must have one of json, regex, choice, grammar, got xml"),
    ({"structured_outputs": {"choice": []}}, "choice must be a list of texts"),
    ({"structured_outputs": {"choice": "a"}}, "choice must be a list of texts, got"),
    ({"structured_outputs": {"regex": 1}}, "regex must be a text, got 1"),
    ({"structured_outputs": {"regex": ""}}, "a grammar must have 1 to 262,144 bytes, got 0"),
    ({"structured_outputs": {"json": {"enum": ["a" * (1 << 20)]}}}, "a grammar must have 1 to 262,144 bytes"),
]


@pytest.mark.parametrize(("fields", "says"), REFUSED, ids=[says for _, says in REFUSED])
def test_what_is_no_form(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=re.escape(says)):
        of_chat(fields)


def test_what_the_cloud_refuses_comes_in_each_api_s_shape(stage: Stage) -> None:
    schema = {"allOf": [{"type": "string"}, {"type": "integer"}]}
    form = {"type": "json_schema", "schema": schema}
    chat = {"messages": HI, "response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}
    for path, body in {
        "chat/completions": chat,
        "responses": {"input": "x", "text": {"format": form}},
        "messages": {"messages": HI, "max_tokens": 9, "output_config": {"format": form}},
    }.items():
        for stream in (False, True):
            answer = stage.post(f"/v1/{path}", model="tiny", stream=stream, **body)
            assert answer.status_code == 400, path
            assert "the schema can't be held to: " in answer.json()["error"]["message"]
            assert (answer.json().get("type") == "error") == (path == "messages")


def test_two_api_s_fields_mixed(stage: Stage) -> None:
    with pytest.raises(openai.BadRequestError, match="input is not known here"), stage.client() as client:
        client.chat.completions.create(model="tiny", messages=HI, extra_body={"input": "x"})  # type: ignore[arg-type]
