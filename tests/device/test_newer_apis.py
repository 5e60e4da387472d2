"""Responses, Messages and embeddings, by their makers' own clients, on a real socket before a tiny cloud."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import numpy as np
import openai
import pytest

from sideplug.contract.text import Prompt
from sideplug.device.gateway.openai_api import NO_TOOLS
from sideplug.device.states import listen
from tests.conftest import Cloud
from tests.gateway import HI, Stage, a_stage, root, stage, wanted

__all__ = ["root", "stage"]  # fixtures
SO = {"type": "text", "text": "So?"}
TOOL = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}, "strict": None}


@pytest.fixture
def opened() -> Iterator[contextlib.ExitStack]:
    """Closes the clients of a test."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def ours(stage: Stage, opened: contextlib.ExitStack) -> openai.OpenAI:
    return opened.enter_context(stage.client())


@pytest.fixture
def theirs(stage: Stage, opened: contextlib.ExitStack) -> anthropic.Anthropic:
    return opened.enter_context(messages_client(stage))


def messages_client(stage: Stage, key: str = "none") -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=stage.url, api_key=key, max_retries=0)


@pytest.mark.parametrize("model", ["", "anna"])
def test_responses(cloud: Cloud, ours: openai.OpenAI, model: str) -> None:
    """Whole and streamed, by OpenAI's client: the text of a session, with the plugin and without."""
    want, client = wanted(cloud, model), ours
    name = f"tiny+{model}" if model else "tiny"
    whole = client.responses.create(model=name, input="Is it far?", max_output_tokens=24, store=False)
    assert (whole.output_text, whole.status, whole.model) == (want, "incomplete", name)
    assert whole.incomplete_details is not None
    assert whole.incomplete_details.reason == "max_output_tokens"
    assert whole.usage is not None
    assert whole.usage.output_tokens == 24
    with client.responses.stream(model=name, input=HI, max_output_tokens=24) as stream:  # type: ignore[arg-type]
        events = list(stream)
    kinds, last = [event.type for event in events], events[-1]
    assert last.type == "response.incomplete"
    assert last.response.output_text == want
    assert kinds[0] == "response.created"
    assert kinds.count("response.output_text.delta") >= 1


def test_what_agents_send_along_is_passed_over_and_told(cloud: Cloud, stage: Stage) -> None:
    """Instructions and a conversation with what tools did in it; tools of unknown types, strict: null."""
    items: list[Any] = [
        {"role": "user", "content": [{"type": "input_text", "text": "Is it far?"}]},
        {"type": "reasoning", "summary": []},
        {"type": "function_call", "call_id": "1", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "no"},
        {"type": "tool_search_output"},
    ]
    body = {
        "model": "tiny", "input": items, "instructions": "Be short.", "max_output_tokens": 24, "store": True,
        "tools": [TOOL, {"type": "apply_patch"}], "reasoning": {"effort": "high"}, "include": ["x"], "new_field": 1,
    }  # fmt: skip
    answer = stage.post("/v1/responses", **body).json()
    prompt = Prompt(messages=({"role": "system", "content": "Be short."}, HI[0]))
    assert answer["output"][0]["content"][0]["text"] == wanted(cloud, prompt=prompt)
    told = answer["usage"]["sideplug"]["passed_over"]
    assert {NO_TOOLS, "reasoning", "include", "new_field", "messages: tool calls", "input: reasoning"} <= set(told)


@pytest.mark.parametrize("model", ["", "anna"])
def test_messages(cloud: Cloud, theirs: anthropic.Anthropic, model: str) -> None:
    """Whole and streamed, by Anthropic's client, its beta path too."""
    want, name, client = wanted(cloud, model), model or "tiny", theirs
    whole = client.messages.create(model=name, max_tokens=24, messages=HI)  # type: ignore[arg-type]
    assert whole.content[0].type == "text"
    assert (whole.content[0].text, whole.stop_reason, whole.usage.output_tokens) == (want, "max_tokens", 24)
    beta = client.beta.messages.create(model=name, max_tokens=24, messages=HI, betas=["x-2026"])  # type: ignore[arg-type]
    assert beta.content[0].type == "text"
    assert beta.content[0].text == want
    with client.messages.stream(model=name, max_tokens=24, messages=HI) as stream:  # type: ignore[arg-type]
        assert "".join(stream.text_stream) == want
        final = stream.get_final_message()
    assert (final.stop_reason, final.usage.output_tokens) == ("max_tokens", 24)


def test_messages_of_an_agent(cloud: Cloud, stage: Stage) -> None:
    """System blocks, a system message in the middle, tools and their results, stop sequences; tokens are counted."""
    said = [
        HI[0],
        {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "look", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "no"}, SO,
                                     {"type": "web_search_tool_result"}]},
        {"role": "system", "content": "Be kind."},
    ]  # fmt: skip
    system = [{"type": "text", "text": "Be short.", "cache_control": {"type": "ephemeral"}}]
    body = {"model": "tiny", "max_tokens": 24, "system": system, "messages": said, "thinking": {"type": "adaptive"}}
    answer = stage.post("/v1/messages", **body, tools=[{"name": "look", "input_schema": {}}]).json()
    messages = ({"role": "system", "content": "Be short."}, HI[0], {"role": "user", "content": "So?"})
    prompt = Prompt(messages=(*messages, {"role": "system", "content": "Be kind."}))
    want = wanted(cloud, prompt=prompt)
    assert answer["content"] == [{"type": "text", "text": want}]
    assert {"thinking", NO_TOOLS, "messages: tool calls", "messages: tool results"} <= set(
        answer["usage"]["sideplug"]["passed_over"]
    )
    usage = answer["usage"]
    counted = stage.post("/v1/messages/count_tokens", model="tiny", system=system, messages=said).json()
    assert counted == {"input_tokens": usage["input_tokens"] + usage["cache_read_input_tokens"]}
    stop = want[3:6]
    answer = stage.post("/v1/messages", **body, stop_sequences=[stop]).json()
    assert answer["stop_reason"] == "stop_sequence"
    assert answer["content"][0]["text"] == want[: want.index(stop)]


def test_embeddings(cloud: Cloud, stage: Stage, ours: openai.OpenAI) -> None:
    """The mean of the base's own states, by OpenAI's client (base64) and plainly; the first dimensions of it."""
    client, texts = ours, ["Is it far to the mill?", "rain fell over the hill"]
    got = client.embeddings.create(model="tiny", input=texts)
    with listen(cloud.url) as listening:
        z = [listening.read(Prompt(text=""), text).z.mean(0) for text in texts]
    for each, mean in zip(got.data, z, strict=True):
        np.testing.assert_allclose(each.embedding, mean / np.linalg.norm(mean), atol=2e-3)
    assert got.usage.prompt_tokens > 8
    plain = stage.post("/v1/embeddings", model="tiny", input=texts[0], dimensions=16).json()["data"][0]["embedding"]
    assert len(plain) == 16
    assert abs(np.linalg.norm(plain) - 1) < 1e-4
    packed = stage.post("/v1/embeddings", model="tiny", input=texts[0], encoding_format="base64").json()
    vector = np.frombuffer(base64.b64decode(packed["data"][0]["embedding"]), "<f4")
    np.testing.assert_allclose(vector, got.data[0].embedding, atol=1e-6)


def test_models_tell_what_they_can(ours: openai.OpenAI, theirs: anthropic.Anthropic) -> None:
    base, anna, _ = ours.models.list().data
    assert base.model_extra is not None
    assert base.model_extra["context_length"] > 0
    assert "embeddings" in base.model_extra["capabilities"]
    assert anna.model_extra is not None
    assert anna.model_extra["capabilities"] == ["chat", "completions", "responses", "messages"]
    assert [each.id for each in theirs.models.list().data] == ["tiny", "tiny+anna", "tiny+mill"]


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("responses", {"input": "x", "previous_response_id": "resp_1"}, "send the whole conversation as input"),
    ("responses", {"input": "x", "background": True}, "background is not supported"),
    ("responses", {"input": 3}, "input must be a text or a list of items"),
    ("responses", {"input": [{"type": "input_image"}]}, "items of the type 'input_image'"),
    ("responses", {"input": "x", "text": {"format": {"type": "json_schema"}}}, "text.format must have a schema"),
    ("responses", {"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "pictures, sound and files"),
    ("responses", {"input": "x", "temperature": "hot"}, "temperature must be a number"),
    ("messages", {"messages": HI}, "max_tokens must be given"),
    ("messages", {"messages": "x", "max_tokens": 5}, "messages must be a list"),
    ("messages", {"messages": HI, "max_tokens": 5, "system": [{"type": "image"}]}, "system must have blocks of text"),
    ("messages", {"messages": HI, "max_tokens": 5, "stop_sequences": [1]}, "stop must be a text"),
    ("embeddings", {"input": []}, "a list of 1 to 256 texts"),
    ("embeddings", {"input": [[1, 2]]}, "token ids can't be embedded"),
    ("embeddings", {"input": "x", "dimensions": 9999}, "dimensions must be 1 to 64"),
    ("embeddings", {"input": "x", "encoding_format": "hex"}, "encoding_format must be float or base64"),
]


@pytest.mark.parametrize(("path", "body", "says"), REFUSED, ids=[f"{path}: {says}" for path, _, says in REFUSED])
def test_what_can_t_be_is_told_in_the_api_s_shape(stage: Stage, path: str, body: dict[str, Any], says: str) -> None:
    answer = stage.post(f"/v1/{path}", model="tiny", **body)
    assert answer.status_code == 400
    told = answer.json()
    if path == "messages":
        assert told["type"] == "error"
        assert told["error"]["type"] == "invalid_request_error"
    assert says in told["error"]["message"]
    assert "\n" not in told["error"]["message"]


def test_an_unknown_model_and_a_missing_key(cloud: Cloud, root: Path, opened: contextlib.ExitStack) -> None:
    with a_stage(cloud.url, root, key="pepper") as keyed:
        client = opened.enter_context(messages_client(keyed, "pepper"))  # which it sends as x-api-key
        assert client.messages.create(model="anna", max_tokens=4, messages=HI).content  # type: ignore[arg-type]
        with pytest.raises(anthropic.NotFoundError, match="there is no model 'bo' here"):
            client.messages.create(model="bo", max_tokens=4, messages=HI)  # type: ignore[arg-type]
        with pytest.raises(anthropic.AuthenticationError, match="authentication_error.*wants its key"):
            opened.enter_context(messages_client(keyed, "salt")).messages.create(
                model="anna", max_tokens=4, messages=HI
            )  # type: ignore[arg-type]
        with pytest.raises(anthropic.AuthenticationError):
            opened.enter_context(messages_client(keyed, "salt")).models.list()
        with pytest.raises(openai.NotFoundError, match="there is no model 'bo' here"):
            opened.enter_context(keyed.client(api_key="pepper")).responses.create(model="bo", input="x")


def test_a_fault_in_a_stream_is_an_event(stage: Stage) -> None:
    """The prompt is found too long when the stream has begun, or before: both ways are told."""
    long = "far " * 5000
    for path, body in (
        ("/v1/messages", {"max_tokens": 4, "messages": [{"role": "user", "content": long}]}),
        ("/v1/responses", {"input": long}),
    ):
        answer = stage.post(path, model="tiny", stream=True, **body)
        assert "token" in answer.text
        assert "error" in answer.text
        last = answer.text.strip().split("\n")[-1].removeprefix("data: ")
        assert "Traceback" not in last
        json.loads(last)
