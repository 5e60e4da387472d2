"""OpenAI's shapes without a socket: every field, each refusal, stop texts over any pieces, whole and streamed alike."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from sideplug.contract import errors
from sideplug.contract.errors import InputError
from sideplug.contract.message import TEXT_PARTS
from sideplug.contract.sampling import Sampling
from sideplug.device.gateway import openai_api, openai_reply
from sideplug.device.gateway.openai_api import CompletionRequest, Defaults, parse
from sideplug.device.gateway.openai_reply import DONE, ResponseShaper, StopTexts, chunks
from sideplug.device.reply import Piece, Usage

HI = {"messages": [{"role": "user", "content": "hi"}]}


def chat(**fields: Any) -> CompletionRequest:
    return parse(json.dumps({**HI, **fields}).encode(), True)


def text(**fields: Any) -> CompletionRequest:
    return parse(json.dumps({"prompt": "hi", **fields}).encode(), False)


def test_where_a_request_is_silent() -> None:
    request = chat()
    assert request == CompletionRequest("", request.prompt, True, 512, Sampling())
    assert request.prompt.messages == ({"role": "user", "content": "hi"},)
    assert text().prompt.text == "hi"
    assert not text().chat
    warm = parse(json.dumps(HI).encode(), True, Defaults(7, 0.5))
    assert (warm.max_tokens, warm.sampling.temperature) == (7, 0.5)
    others = ("stop", "seed", "model", "temperature", "sideplug", "stream")
    nothing = dict.fromkeys((*openai_api.UNSUPPORTED, *openai_api.PASSED_OVER, *others))
    assert chat(**nothing) == request, "null is silence"


@pytest.mark.parametrize(
    ("fields", "what", "want"),
    [
        ({"model": "tiny+anna"}, "model", "tiny+anna"),
        ({"max_tokens": 7}, "max_tokens", 7),
        ({"max_tokens": 7.0}, "max_tokens", 7),
        ({"max_tokens": 1 << 80}, "max_tokens", 1 << 31),
        ({"max_tokens": -1}, "max_tokens", 1 << 31),
        ({"max_tokens": None}, "max_tokens", 1 << 31),
        ({"max_completion_tokens": None, "max_tokens": 7}, "max_tokens", 7),
        ({"max_completion_tokens": 3, "max_tokens": 9}, "max_tokens", 3),
        ({"stream": True}, "stream", True),
        ({"stream_options": {"include_usage": True}}, "include_usage", True),
        ({"stream_options": {}}, "include_usage", False),
        ({"stop": "x"}, "stops", ("x",)),
        ({"stop": ["x", "yy"]}, "stops", ("x", "yy")),
        ({"stop": []}, "stops", ()),
        ({"stop": ""}, "stops", ()),
        ({"stop": ["x", ""]}, "stops", ("x",)),
        ({"stop": [f"s{i}" for i in range(32)]}, "stops", tuple(f"s{i}" for i in range(32))),
        ({"tools": [{"type": "function"}], "tool_choice": "none"}, "passed_over", ("tools",)),
        ({"user": "ada", "metadata": {"a": "b"}}, "passed_over", ("metadata", "user")),
        ({"temperature": 1}, "sampling.temperature", 1.0),
        ({"temperature": 0.5, "seed": 3}, "sampling.seed", 3),
        ({"seed": -1}, "sampling.seed", (1 << 63) - 1),
        ({"seed": 1 << 70}, "sampling.seed", 0),
        ({"top_p": 0.5}, "sampling.top_p", 0.5),
        ({"top_p": 0}, "sampling.top_p", 1e-9),
        ({"top_k": 40}, "sampling.top_k", 40),
        ({"top_k": 40.0}, "sampling.top_k", 40),
        ({"top_k": -1}, "sampling.top_k", 0),
        ({"min_p": 0.1}, "sampling.min_p", 0.1),
        ({"repetition_penalty": 1.3}, "sampling.repetition_penalty", 1.3),
        ({"sideplug": {"gate_rate": 0}}, "gate_rate", 0.0),
        ({"sideplug": {"gate_rate": 0.25}}, "gate_rate", 0.25),
        ({"sideplug": {"detail": True}}, "detail", True),
        ({"sideplug": {"detail": True}}, "alternatives", 5),
        ({"sideplug": {"detail": True}}, "shown_alternatives", 0),
        ({"sideplug": {}}, "gate_rate", None),
    ],
    ids=str,
)
def test_fields(fields: dict[str, Any], what: str, want: Any) -> None:
    for request in (chat(**fields), text(**fields)):
        for name in what.split("."):
            request = getattr(request, name)
        assert request == want


def test_fields_of_chat_only() -> None:
    for fields, want in (
        ({}, (False, 0, 0)),
        ({"logprobs": False, "top_logprobs": 3}, (False, 0, 0)),
        ({"logprobs": True}, (True, 1, 0)),
        ({"logprobs": True, "top_logprobs": 3}, (True, 3, 3)),
        ({"logprobs": True, "top_logprobs": 20, "sideplug": {"detail": True}}, (True, 20, 20)),
    ):
        request = chat(**fields)
        assert (request.logprobs, request.alternatives, request.shown_alternatives) == want, fields


def test_fields_of_completions_only() -> None:
    for given_, want in ((None, (False, 0, 0)), (False, (False, 0, 0)), (0, (True, 1, 0)), (4, (True, 4, 4))):
        request = text(logprobs=given_)
        assert (request.logprobs, request.alternatives, request.shown_alternatives) == want
    assert text(prompt=["hi"]).prompt.text == "hi"
    assert text(prompt=[5]).prompt.ids == (5,)
    assert text(prompt=[5, 6]).prompt.ids == (5, 6)
    assert text(prompt=[[5, 6]]).prompt.ids == (5, 6)


def test_calls_and_results_of_tools_are_passed_over_and_named() -> None:
    messages = [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "tool", "tool_call_id": "1", "content": "dry"},
        {"role": "assistant", "content": "It is dry."},
        {"role": "user", "content": "And now?"},
    ]
    request = chat(messages=messages)
    assert request.prompt.messages == tuple(messages[i] for i in (0, 3, 4))
    assert request.passed_over == ("messages: tool calls", "messages: tool results")


def test_messages_as_clients_write_them() -> None:
    messages = [
        {"role": "developer", "content": "be brief", "name": "x"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": ""},
        {"role": "assistant", "content": None, "tool_calls": None, "annotations": []},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"role": "assistant", "content": None, "refusal": "Never."},
        {"role": "user", "content": [{"type": "input_text", "text": "c", "cache_control": {}}, {"text": "d"}]},
    ]
    want = (
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "ab"},
        {"role": "assistant", "content": ""},
        {"role": "assistant", "content": ""},
        {"role": "assistant", "content": "No."},
        {"role": "assistant", "content": "Never."},
        {"role": "user", "content": "cd"},
    )
    request = chat(messages=messages)
    assert request.prompt.messages == want
    assert request.passed_over == ("messages.annotations", "messages.content.cache_control", "messages.name")


def test_without_a_seed_each_text_is_another() -> None:
    """But greedy ones, which have none."""
    assert len({chat(temperature=1).sampling.seed for _ in range(5)}) == 5
    assert {chat().sampling.seed for _ in range(5)} == {0}
    assert {chat(temperature=1, seed=0).sampling.seed for _ in range(5)} == {0}


@pytest.mark.parametrize("name", [name for name in openai_api.UNSUPPORTED if name not in openai_api.OF_CHAT])
def test_what_is_not_to_be_had(name: str) -> None:
    """Said, and not passed over; but what asks for nothing does no harm."""
    for nothing in openai_api.UNSUPPORTED[name]:
        assert chat(**{name: nothing}) == chat()
    with pytest.raises(InputError, match=f"^{name} is not supported: leave it out, or give ") as caught:
        chat(**{name: {"other": 1}})
    assert "temperature, top_k, top_p, min_p, repetition_penalty, seed" in str(caught.value)


@pytest.mark.parametrize("name", openai_api.PASSED_OVER)
def test_what_no_text_depends_on_is_passed_over_and_told(name: str) -> None:
    shape, told = made(chat(**{name: "x"}))
    assert shape.whole(told, USAGE)["usage"]["sideplug"]["passed_over"] == [name]
    with_usage = {"stream": True, "stream_options": {"include_usage": True}}
    assert last_chunk(made(chat(**{name: "x"}, **with_usage))[0])["usage"]["sideplug"]["passed_over"] == [name]
    assert "passed_over" not in last_chunk(made(chat(**with_usage))[0])["usage"]["sideplug"]


@pytest.mark.parametrize("name", ["xtc_probability", "guided_json", "grammar", "num_ctx", "Temperature", "top_n_sigma"])
def test_what_nobody_knows_is_refused(name: str) -> None:
    for ask in (chat, text):
        with pytest.raises(InputError, match=f"^{name} is not known here: leave it out .* temperature, top_k, top_p"):
            ask(**{name: 1})
        assert ask(**{name: None}).passed_over == (), "null is silence"


def test_a_field_of_the_other_endpoint_is_not_known() -> None:
    with pytest.raises(InputError, match="messages is not known here"):
        text(messages=[])
    with pytest.raises(InputError, match="prompt is not known here"):
        chat(prompt="hi")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"n": 2}, "n is not supported: leave it out, or give 1"),
        ({"model": 5}, "model must be text, got 5"),
        ({"n": True}, "n is not supported"),
        ({"max_tokens": -2}, "max_tokens must be 1 or more, or -1 for as many as fit, got -2"),
        ({"max_tokens": 0}, "max_tokens must be 1 or more, or -1 for as many as fit, got 0"),
        ({"max_tokens": 0.0}, "max_tokens must be 1 or more, or -1 for as many as fit, got 0"),
        (
            {"max_completion_tokens": 0, "max_tokens": 9},
            "max_completion_tokens must be 1 or more, or -1 for as many as fit, got 0",
        ),
        ({"max_tokens": False}, "max_tokens must be a whole number, got false"),
        ({"min_p": 1.5}, "min_p must be 0 to 1, got 1.5"),
        ({"top_k": -2}, "top_k must be 0 or more, got -2"),
        ({"top_k": 1.5}, "top_k must be a whole number, got 1.5"),
        ({"repetition_penalty": 0}, "repetition_penalty must be 0.1 to 10, got 0"),
        ({"continue_final_message": True}, "continue_final_message is not supported"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs is not supported"),
        ({"add_generation_prompt": False}, "add_generation_prompt is not supported"),
        ({"stream_options": {"continuous": True}}, "stream_options must have include_usage only, got continuous"),
        ({"stream_options": {"include_usage": 1}}, "include_usage must be true or false, got 1"),
        ({"sideplug": {"detail": 1}}, "detail must be true or false, got 1"),
        ({"max_tokens": 1.5}, "max_tokens must be a whole number, got 1.5"),
        ({"max_tokens": True}, "max_tokens must be a whole number, got true"),
        ({"temperature": "warm"}, 'temperature must be a number, got "warm"'),
        ({"temperature": True}, "temperature must be a number, got true"),
        ({"temperature": -1}, "temperature must be 0, or 0.001 to 10, got -1.0"),
        ({"temperature": float("nan")}, "temperature must be 0, or 0.001 to 10, got nan"),
        ({"temperature": 10**400}, "temperature must be 0, or 0.001 to 10, got inf"),
        ({"top_p": 2}, "top_p must be above 0 and at most 1, got 2.0"),
        ({"top_p": -0.1}, "top_p must be above 0"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"stream": 1}, "stream must be true or false, got 1"),
        ({"stream_options": True}, "stream_options must be an object"),
        ({"stop": 5}, "stop must be a text, or a list of at most 32 texts, got 5"),
        ({"stop": ["x", None]}, "stop must be a text"),
        ({"stop": ["x"] * 33}, "stop must be a text"),
        ({"sideplug": 5}, "sideplug must be an object, got 5"),
        ({"sideplug": {"gate": 1}}, "sideplug must have gate_rate and detail only, got gate"),
        ({"sideplug": {"gate_rate": 1.5}}, "sideplug.gate_rate must be 0 to 1, got 1.5"),
        ({"sideplug": {"gate_rate": True}}, "sideplug.gate_rate must be 0 to 1, got true"),
        ({"sideplug": {"gate_rate": "all"}}, "sideplug.gate_rate must be 0 to 1, got .all."),
    ],
    ids=str,
)
def test_refusals(fields: dict[str, Any], says: str) -> None:
    for ask in (chat, text):
        with pytest.raises(InputError, match=says) as caught:
            ask(**fields)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"logprobs": 1}, "logprobs must be true or false"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs must be 0 to 20, got 21"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs must be 0 to 20, got -1"),
        ({"max_completion_tokens": -3}, "max_completion_tokens must be 1 or more"),
        ({"messages": None}, "messages must be a list of {role, content}"),
        ({"messages": "hi"}, "messages must be a list of {role, content}"),
        ({"messages": []}, "messages must be a list of 1 to "),
        ({"messages": ["hi"]}, "message 1 must be an object with role and content, got text"),
        ({"messages": [{"content": "hi"}]}, "message 1's role must be one of system, developer, user, .*; got nothing"),
        ({"messages": [{"role": "tool", "content": "hi"}]}, "messages must be a list of 1 to "),
        ({"messages": [{"role": ["user"], "content": "hi"}]}, "message 1's role must be one of .*; got a list"),
        ({"messages": [{"role": "user"}]}, "message 1's content must be text, got nothing"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "pictures, sound and files can't be read; it has a part of the type 'image_url'",
        ),
        ({"messages": [{"role": "user", "content": [7]}]}, "message 1's content must be text: .*; it has a number"),
        ({"messages": [{"role": "user", "content": [{"type": 1, "text": "x"}]}]}, "it has a part of the type '1'"),
    ],
    ids=str,
)
def test_refusals_of_chat(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        chat(**fields)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"logprobs": True}, "logprobs must be a whole number, got true"),
        ({"logprobs": 21}, "logprobs must be 0 to 20, got 21"),
        ({"logprobs": -1}, "logprobs must be 0 to 20, got -1"),
        *[
            ({"prompt": p}, "prompt must be one text")
            for p in (None, "", [], ["a", "b"], [""], [[]], [-1], [1 << 31], 5)
        ],
    ],
    ids=str,
)
def test_refusals_of_completions(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        text(**fields)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "the body must be JSON: "),
        (b"{", "the body must be JSON: "),
        (b"\xff\xfe{", "the body must be JSON: "),
        (b"[" * 100_000, "the body must be JSON: "),
        (b'{"max_tokens": ' + b"9" * 5000 + b"}", "the body must be JSON: "),
        (b"[]", r"the body must be a JSON object, got \[\]"),
        (b"null", "the body must be a JSON object, got null"),
        (b'{"messages": [{"role": "user", "content": "\\ud83d"}]}', "it has half of a character"),
        (b'{"\\udc00": 1}', "it has half of a character"),
    ],
)
def test_bodies_that_are_none(body: bytes, says: str) -> None:
    """Half of an emoji, say, as JavaScript sends it where a text was cut: it can't go on to the cloud."""
    with pytest.raises(InputError, match=says) as caught:
        parse(body, True)
    assert not re.search("codec|NoneType|0x", str(caught.value))
    str(caught.value).encode()


# ── stop texts ────────────────────────────────────────────────────────────────────────────────────────────────────────


def cut(whole: str, stops: list[str]) -> str:
    """Before the stop text that is complete first; the twin of StopTexts, a character at a time."""
    for end in range(len(whole) + 1):
        starts = [end - len(stop) for stop in stops if whole[:end].endswith(stop)]
        if starts:
            return whole[: min(starts)]
    return whole


@given(
    st.text("ab", max_size=20),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=4),
    st.lists(st.integers(0, 20), max_size=6),
)
@example("xabcde", ["abcde", "c"], [3])
@example("aab", ["aab", "ab"], [])
def test_any_split_gives_the_text_before_the_first_stop(whole: str, stops: list[str], at: list[int]) -> None:
    edges = [0, *sorted(min(n, len(whole)) for n in at), len(whole)]
    pieces = [whole[a:b] for a, b in itertools.pairwise(edges)]
    cutter = StopTexts(tuple(stops))
    shown = ""
    for piece in pieces:
        shown += cutter.push(piece)
        assert cut(whole, stops).startswith(shown), "what is shown is never taken back"
    assert shown + cutter.rest() == cut(whole, stops)
    assert cutter.reached == any(stop in whole for stop in stops)


def test_what_can_be_no_stop_is_shown_at_once() -> None:
    stops = StopTexts(("\n\nUser:", "END"))
    assert [stops.push(piece) for piece in ("Hello", "\n", "\nUs", "ually", " E", "NE", "x")] == [
        "Hello",
        "",
        "",
        "\n\nUsually",
        " ",
        "EN",
        "Ex",
    ]
    assert stops.push("EN") == ""
    assert stops.rest() == "EN"
    assert stops.push("D") == "D"  # what was told as the rest is no beginning any more


# ── chunks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def token(word: str, by: str = "cloud") -> Piece:
    """A piece of one token, with two alternatives."""
    tops = [[[word, -0.5], [word, -0.5], ["other", -1.0], ["é", -2.0]]]
    return Piece([len(word)], word, by, tops)


PIECES = [token("Is "), token("it ", "plugin"), Piece([3], "", "cloud", token("f").tops), token("far?")]
USAGE = Usage(prompt_tokens=5, reply_tokens=4, plugin_tokens=1, why="length", total_s=0.1234567891)


def made(
    request: CompletionRequest, pieces: list[Piece] | None = None, why: str = "length"
) -> tuple[ResponseShaper, list[dict[str, Any]]]:
    shape = ResponseShaper(request, "tiny+anna", "f" * 64)
    usage = Usage(**{**vars(USAGE), "why": why})
    return shape, list(chunks(shape, iter(PIECES if pieces is None else pieces), lambda: usage))


def last_chunk(shape: ResponseShaper) -> Any:
    """What a stream tells at its end of what the reply took."""
    told, done = shape.end(USAGE)
    assert done == DONE
    return json.loads(told.removeprefix(b"data: "))


@pytest.mark.parametrize(
    ("why", "want"), [("length", "length"), ("stop", "stop"), ("context", "stop"), ("cancelled", "stop")]
)
def test_chat_chunks(why: str, want: str) -> None:
    shape, told = made(chat(stream=True), why=why)
    assert [c["choices"][0]["delta"] for c in told] == [
        {"role": "assistant", "content": ""},
        {"content": "Is "},
        {"content": "it "},
        {"content": "far?"},
        {},
    ]
    assert [c["choices"][0]["finish_reason"] for c in told] == [None] * 4 + [want]
    assert len({c["id"] for c in told}) == 1
    assert told[0]["id"].startswith("chatcmpl-")
    for chunk in told:
        parsed = ChatCompletionChunk.model_validate(chunk)
        assert (parsed.model, parsed.object, parsed.system_fingerprint) == (
            "tiny+anna",
            "chat.completion.chunk",
            "f" * 16,
        )
        assert "sideplug" not in chunk
    assert shape.end(USAGE) == [DONE], "what it took was not asked for"
    last = last_chunk(made(chat(stream=True, stream_options={"include_usage": True}), why=why)[0])
    assert last["choices"] == []
    assert ChatCompletionChunk.model_validate(last).usage is not None


@pytest.mark.parametrize(
    "fields",
    [{}, {"logprobs": 2}, {"stop": "it"}, {"sideplug": {"detail": True}}, {"logprobs": 0, "stop": ["r?", "zz"]}],
)
@pytest.mark.parametrize("is_chat", [True, False])
def test_whole_is_the_chunks_put_together(fields: dict[str, Any], is_chat: bool) -> None:
    if is_chat and "logprobs" in fields:
        fields = {**fields, "logprobs": True, "top_logprobs": fields["logprobs"]}
    shape, told = made((chat if is_chat else text)(**fields))
    whole = shape.whole(told, USAGE)
    parsed: Any = (ChatCompletion if is_chat else Completion).model_validate(whole)
    (choice,) = parsed.choices
    content = choice.message.content if is_chat else choice.text
    streamed = "".join(
        c["choices"][0].get("delta", {}).get("content", "") + c["choices"][0].get("text", "") for c in told
    )
    assert (
        content
        == streamed
        == cut("Is it far?", [fields["stop"]] if isinstance(fields.get("stop"), str) else fields.get("stop", []))
    )
    assert choice.finish_reason == told[-1]["choices"][0]["finish_reason"] == ("stop" if "stop" in fields else "length")
    assert (whole["id"], whole["created"]) == (told[0]["id"], told[0]["created"])
    assert whole["object"] == ("chat.completion" if is_chat else "text_completion")
    assert (parsed.usage.prompt_tokens, parsed.usage.completion_tokens, parsed.usage.total_tokens) == (5, 4, 9)
    assert whole["usage"]["sideplug"]["plugin_tokens"] == 1
    if "sideplug" in fields:
        assert [piece["by"] for piece in whole["sideplug"]] == ["cloud", "plugin", "cloud", "cloud"]
        assert whole["sideplug"] == [{"by": p.by, "ids": p.ids, "tops": p.tops} for p in PIECES]
    else:
        assert "sideplug" not in whole
    json.dumps(whole)


@pytest.mark.parametrize("shown", [0, 2])
def test_log_probabilities_of_chat(shown: int) -> None:
    """A token without text of its own (a part of a character) has its own too, and its bytes."""
    shape, told = made(chat(logprobs=True, top_logprobs=shown))
    content = shape.whole(told, USAGE)["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in content] == ["Is ", "it ", "f", "far?"]
    own = {"token": "Is ", "logprob": -0.5, "bytes": [73, 115, 32]}
    other = {"token": "other", "logprob": -1.0, "bytes": list(b"other")}
    assert content[0] == {**own, "top_logprobs": [own, other][:shown]}
    assert told[0]["choices"][0]["logprobs"] is None
    part = made(chat(logprobs=True), [Piece([7], "", "cloud", [[("bytes:\\xf0\\x9f", -0.5)]])])[1][1]
    assert part["choices"][0]["logprobs"]["content"][0]["bytes"] == [0xF0, 0x9F]
    assert ChatCompletion.model_validate(shape.whole(told, USAGE)).choices[0].logprobs is not None


def test_log_probabilities_of_completions() -> None:
    shape, told = made(text(logprobs=2))
    found = shape.whole(told, USAGE)["choices"][0]["logprobs"]
    assert found == {
        "tokens": ["Is ", "it ", "f", "far?"],
        "token_logprobs": [-0.5] * 4,
        "top_logprobs": [{word: -0.5, "other": -1.0} for word in ("Is ", "it ", "f", "far?")],
    }
    shape, told = made(text(logprobs=0))
    assert shape.whole(told, USAGE)["choices"][0]["logprobs"]["top_logprobs"] == [{}] * 4


def test_tokens_without_alternatives() -> None:
    """The device picks some itself, and then nobody tells."""
    shape, told = made(chat(logprobs=True), [token("a"), Piece([1, 2], "b", "plugin", [[], []]), token("c")])
    assert told[2]["choices"][0]["logprobs"] is None
    content = shape.whole(told, USAGE)["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in content] == ["a", "c"]


def test_a_stop_ends_it_and_nothing_more_is_fetched() -> None:
    fetched: list[str] = []

    def pieces() -> Iterator[Piece]:
        for word in ("one ", "t", "wo ", "three"):
            fetched.append(word)
            yield token(word)

    told = list(chunks(ResponseShaper(chat(stop="two"), "m", "f"), pieces(), lambda: pytest.fail("not over yet")))
    assert [c["choices"][0]["delta"].get("content") for c in told] == ["", "one ", None]
    assert told[-1]["choices"][0]["finish_reason"] == "stop"
    assert fetched == ["one ", "t", "wo "]


def test_what_was_held_back_is_told_at_the_end() -> None:
    _, told = made(chat(stop="far?!", logprobs=True))
    assert [c["choices"][0]["delta"].get("content") for c in told] == ["", "Is ", "it ", "", "", "far?", None]
    assert told[-2]["choices"][0]["logprobs"] is None
    assert told[-1]["choices"][0]["finish_reason"] == "length"


def test_an_error_before_the_first_piece_comes_before_any_chunk() -> None:
    def pieces() -> Iterator[Piece]:
        raise InputError("too long")
        yield token("x")

    with pytest.raises(InputError):
        next(chunks(ResponseShaper(chat(), "m", "f"), pieces(), lambda: USAGE))


def test_a_reply_of_nothing() -> None:
    shape, told = made(chat(), [], "stop")
    assert len(told) == 2
    assert shape.whole(told, USAGE)["choices"][0]["message"] == {"role": "assistant", "content": ""}
    shape, told = made(text(), [], "stop")
    assert shape.whole(told, USAGE)["choices"][0]["text"] == ""


@pytest.mark.parametrize(
    ("problem", "status", "kind", "code"),
    [
        (InputError("x"), 400, "invalid_request_error", "bad-input"),
        (errors.TooLong("x"), 400, "invalid_request_error", "context_length_exceeded"),
        (errors.PluginError("x"), 400, "invalid_request_error", "bad-plugin"),
        (errors.WrongBase("x"), 400, "invalid_request_error", "wrong-base"),
        (errors.UnknownModel("x"), 404, "invalid_request_error", "model_not_found"),
        (errors.Busy("x"), 429, "rate_limit_error", "busy"),
        (errors.Unreachable("x"), 503, "api_error", "unreachable"),
        (errors.CloudError("x"), 502, "api_error", "cloud"),
        (errors.ProtocolError("x"), 502, "api_error", "protocol"),
        (errors.Stopped("x"), 502, "api_error", "stopped"),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, Exception) else "",
)
def test_errors(problem: Exception, status: int, kind: str, code: str) -> None:
    assert openai_reply.error(problem) == (
        status,
        {"error": {"message": "x", "type": kind, "param": None, "code": code}},
    )


def test_a_fault_of_ours_is_not_told_to_others() -> None:
    status, body = openai_reply.error(KeyError("the person's words"))
    assert (status, body["error"]["code"], body["error"]["type"]) == (500, "internal", "server_error")
    assert "the person's words" not in body["error"]["message"]


def test_events_are_a_line_each() -> None:
    """Whatever is in the text: a line's end would cut an event in two."""
    event = openai_reply.event({"text": "a\nb\r\n\u2028é"})
    assert event.startswith(b"data: {")
    assert event.endswith(b"}\n\n")
    assert b"\n" not in event[:-2]
    assert b"\r" not in event
    assert json.loads(event[6:]) == {"text": "a\nb\r\n\u2028é"}


def test_the_docs_name_every_field() -> None:
    page = (Path(__file__).parents[2] / "docs" / "GATEWAY.md").read_text("utf-8")
    for name in (*openai_api.OF_CHAT, *openai_api.OF_TEXT, *openai_api.PASSED_OVER, *TEXT_PARTS):
        assert re.search(rf"\b{name}\b", page), name
