"""A reply that must have a form: the same text wherever and however it is made, and always of that form."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sideplug import Client, DecodeOptions, Grammar, Prompt, Sampling
from sideplug.contract.errors import InputError
from sideplug.contract.gate import Gate
from sideplug.device.head import DeviceHead
from sideplug.device.responders import PluginResponder
from sideplug.device.session import Session
from sideplug.memory.part import Memory
from sideplug.memory.store import Entry
from sideplug.plugins import Plugin
from tests.conftest import Cloud, a_link, a_plugin, a_session
from tests.faults import Fault, faulty

DOG = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 30},
        "kind": {"enum": ["dog", "cat"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}
FORMS = {
    "schema": Grammar("json", json.dumps(DOG)),
    "regex": Grammar("regex", "(yes|no), because [a-z ]{5,30}[.]"),
    "lark": Grammar("lark", 'start: "<" WORD ("," WORD){2,4} ">"\nWORD: /[a-z]{2,6}/'),
}
SAMPLED = Sampling(temperature=0.9, seed=4)
PROMPT = "Tell me of my dog."


def fits(form: str, text: str) -> bool:
    if form == "schema":
        dog = json.loads(text)
        return set(dog) == {"name", "age", "kind"} and 0 <= dog["age"] <= 30 and dog["kind"] in ("dog", "cat")
    return (
        re.fullmatch("(yes|no), because [a-z ]{5,30}[.]" if form == "regex" else "<[a-z]{2,6}(,[a-z]{2,6}){2,4}>", text)
        is not None
    )


def said(url: str, plugin: Any, form: str, gate: Any = None, sampling: Sampling = SAMPLED, **options: Any) -> str:
    with a_session(url, plugin, gate) as session:
        asked = DecodeOptions(grammar=FORMS[form], **options)
        return str(session.generate(PROMPT, 120, sampling, asked).text)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gate", ["open", "shut"])
def test_the_text_has_the_form_and_does_not_depend_on_speculation(cloud: Cloud, form: str, gate: str) -> None:
    plugin = a_plugin(cloud.base.fingerprint, "attention")
    texts = {said(cloud.url, plugin, form, Gate(gate), window=window) for window in (0, 1, 24)}
    assert len(texts) == 1
    assert fits(form, texts.pop())
    free = DecodeOptions()
    with a_session(cloud.url, plugin, Gate(gate)) as session:
        assert not re.match("[{<]|yes|no", session.generate(PROMPT, 120, SAMPLED, free).text), "the base does not do so"


@pytest.mark.parametrize("form", FORMS)
def test_the_device_that_has_the_head_picks_the_same(cloud: Cloud, form: str, tmp_path: Path) -> None:
    plugin = a_plugin(cloud.base.fingerprint, "mlp")
    with Session(a_link(cloud.url), PluginResponder(plugin, Gate("open"), head="device")) as session:
        head = DeviceHead.fetch(session.link, tmp_path, session.model.fingerprint, session.model.vocab)
        options = DecodeOptions(head=head, grammar=FORMS[form])
        text = session.generate(PROMPT, 120, SAMPLED, options).text
        again = session.generate(PROMPT, 120, SAMPLED, options).text
    assert fits(form, text)
    assert text == again == said(cloud.url, plugin, form, Gate("open"))


def test_it_goes_on_where_it_was_cut_off(cloud: Cloud) -> None:
    plugin = a_plugin(cloud.base.fingerprint, "ladder")
    plan = lambda number: [Fault("reset", "down", 12 + 6 * number)] if number < 2 else []  # noqa: E731
    for form in FORMS:
        with faulty(cloud.url, plan) as proxy:
            connect = lambda url=proxy.url: a_link(url)  # noqa: E731
            with a_session(connect(), plugin, Gate("open"), connect=connect) as session:
                reply = session.generate(PROMPT, 120, SAMPLED, DecodeOptions(grammar=FORMS[form]))
                assert reply.text == said(cloud.url, plugin, form, Gate("open"))
                assert session.usage.resumed


def test_a_memory_is_silent_where_the_reply_has_a_form(cloud: Cloud) -> None:
    memory = Memory()
    question = "What is my dog's name?"
    memory.store.add([Entry(question, "Biscuit, the old one.").check()])
    plugin = Plugin(cloud.base.fingerprint, "tiny", [memory, *a_plugin(cloud.base.fingerprint).parts])
    Client.at(cloud.url).connect(plugin).close()  # the base has read what it tells
    with a_session(cloud.url, plugin) as session:
        assert session.generate(question).text == "Biscuit, the old one."
        text = session.generate(question, 120, SAMPLED, DecodeOptions(grammar=FORMS["schema"])).text
        assert fits("schema", text)
        assert not session.usage.source


def test_it_ends_where_the_form_is_complete(cloud: Cloud) -> None:
    with a_session(cloud.url) as session:
        for _ in range(2):
            assert session.generate(PROMPT, 50, options=DecodeOptions(grammar=Grammar("regex", "yes"))).text == "yes"
            assert session.usage.why == "stop"
        cut = session.generate(PROMPT, 3, options=DecodeOptions(grammar=FORMS["schema"])).text
        assert session.usage.why == "length"
        assert cut.startswith("{")


@pytest.mark.parametrize(
    ("grammar", "says"),
    [
        (
            Grammar("json", json.dumps({"type": "string", "minLength": 5, "maxLength": 2})),
            "the schema can't be held to",
        ),
        (Grammar("json", '{"allOf": [{"type": "string"}, {"type": "integer"}]}'), "the schema can't be held to"),
        (Grammar("json", "false"), "the schema can't be held to"),
        (Grammar("json", '{"$ref": "#"}'), "the schema can't be"),
        (
            Grammar("json", '{"not": {"type": "string"}}'),
            "the schema can't",
        ),
        (Grammar("json", "{"), "the schema can't be held to: it is no JSON"),
        (Grammar("json", "[" * 100_000), "the schema can't be held to: it is no JSON"),
        (Grammar("json", '{"type": "cat"}'), "the schema can't be held to"),
        (Grammar("regex", "(yes"), "the regular expression can't be held to: unclosed group"),
        (Grammar("lark", "start: nothing"), "the grammar can't be held to"),
        (Grammar("json", '{"enum": ["' + "a" * (300 << 10) + '"]}'), "a grammar must have 1 to 262,144 bytes"),
    ],
)
def test_what_cannot_be_met_is_refused_before_the_first_token(cloud: Cloud, grammar: Grammar, says: str) -> None:
    with a_session(cloud.url) as session:
        with pytest.raises(InputError) as refused:
            session.generate(PROMPT, 20, options=DecodeOptions(grammar=grammar)).text  # noqa: B018
        assert says in str(refused.value)
        assert "\n" not in str(refused.value)
        assert len(str(refused.value)) < 300
        assert session.generate(PROMPT, 5).text, "the session goes on"


def test_a_grammar_that_gets_stuck_ends_its_reply_with_a_sentence_and_nothing_else(cloud: Cloud) -> None:
    """2^400 letters, which no parser follows: whatever comes of it, the next reply is whole."""
    rules = "\n".join(f"a{n}: a{n + 1} a{n + 1}" for n in range(400))
    endless = Grammar("lark", f'start: a0\n{rules}\na400: "x"\n')
    with a_session(cloud.url) as session:
        try:
            assert set(session.generate(PROMPT, 20, options=DecodeOptions(grammar=endless)).text) <= {"x"}
        except InputError as refused:
            assert "the grammar" in str(refused)
        assert session.generate(PROMPT, 50, options=DecodeOptions(grammar=Grammar("regex", "yes"))).text == "yes"


def test_a_schema_that_recurses_is_followed(cloud: Cloud) -> None:
    tree = {"$ref": "#/$defs/t", "$defs": {"t": {"type": "array", "items": {"$ref": "#/$defs/t"}, "maxItems": 2}}}
    with a_session(cloud.url) as session:
        options = DecodeOptions(grammar=Grammar("json", json.dumps(tree)))
        for seed in range(20):
            text = session.generate(PROMPT, 80, replace(SAMPLED, seed=seed), options).text
            if session.usage.why == "stop":
                assert isinstance(json.loads(text), list)
                return
    raise AssertionError("no reply came to its end")


def test_raw_text_and_penalties_work_too(cloud: Cloud) -> None:
    with a_session(cloud.url) as session:
        options = DecodeOptions(grammar=FORMS["regex"], top=3)
        sampling = Sampling(0.7, top_k=20, top_p=0.9, repetition_penalty=1.2, seed=2)
        pieces = list(session.generate(Prompt(text="It is"), 60, sampling, options))
    assert fits("regex", "".join(piece.text for piece in pieces))
    assert all(len(top) == 4 for piece in pieces for top in piece.tops)
