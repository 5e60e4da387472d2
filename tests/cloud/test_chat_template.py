"""A chat template is foreign code: what transformers' templates use works, and whatever goes wrong is one sentence."""

from __future__ import annotations

import re
import resource

import pytest

from sideplug.cloud.chat_template import ChatTemplate
from sideplug.contract.errors import InputError, UnknownModel

TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
BIG = "{% set ns=namespace(x='aa', l=[1, 2], n=3) %}{% for i in range(60) %}"


def render(source: str) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}).render(TURNS, True)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %};{% endfor %}", "hi;yo;"),
        ("{% generation -%} a {%- endgeneration %}{% do messages %}{{ bos_token }}", "a<s>"),
        ("{% if tools is none and documents is none %}none{% endif %}{% if tools %}T{% endif %}", "none"),
        ("{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.last }}{% break %}{% endfor %}", "1/2False"),
        (
            "{% for m in messages %}{{ loop.previtem.role if loop.previtem }}{{ loop.nextitem is defined }}"
            "{% endfor %}",
            "TrueuserFalse",
        ),
        ("{{ messages | map(attribute='content') | join('|') }}{{ messages[1:] | length }}", "hi|yo1"),
        ("{{ {'a': 'ü'} | tojson }}{{ [1] | tojson(indent=1) }}", '{"a": "ü"}[\n 1\n]'),
        ("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ 'a' ~ 1 ~ none }}", "1a1None"),
        ("{% macro m(x) %}[{{ x }}{{ caller() }}]{% endmacro %}{% call m('a') %}b{% endcall %}", "[ab]"),
        ("{% set x %}{{ 'a' * 3 }}{% endset %}{{ x }}{% filter upper %}b{% endfilter %}", "aaaB"),
        ("{{ strftime_now('%Y') | length }}{{ '%s-%d' % ('a', 2) }}{{ '{:>3}'.format(1) }}", "4a-2  1"),
    ],
)
def test_what_templates_use(source: str, text: str) -> None:
    assert render(source) == text


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refuses these messages: roles must alternate"),
        ("{{ messages[0].content + 1 }}", "can only concatenate"),
        ("{{ foo.bar.baz }}", "'foo' is undefined"),
        ("{{ messages[9].content.x }}", "no element 9"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ none + 1 }}", "none"),
        ("{{ messages | sum }}", "unsupported"),
        ("{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}", "calls itself without an end"),
        ("{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}", "calls itself without an end"),
        ("{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}", "steps"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "steps"),
        ("{% for i in range(999) %}{{ range(99999) | list | length }}{% endfor %}", "steps"),
        ("{{ [1] | slice(10000000000) | list | length }}", "steps"),
        ("{{ messages[0].content * 10000000000 }}", "too large"),
        ("{{ 'x' * 10000000000 }}", "too large"),
        ("{{ [1] * 10000000000 }}", "too large"),
        ("{{ 9 ** 999999999 }}", "too large"),
        (BIG + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}", "too large"),
        (BIG + "{% set ns.x = ns.x + ns.x %}{% endfor %}", "too large"),
        (BIG + "{% set ns.l = ns.l + ns.l %}{% endfor %}", "too large|steps"),
        (BIG + "{% set ns.n = ns.n * ns.n %}{% endfor %}", "too large"),
        (BIG + "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}", "too large"),
        ("{% for i in range(9999) %}{{ 'a' * 1000000 }}{% endfor %}", "too large|steps"),
        ("{{ 'x' | center(10000000000) }}", "too large"),
        ("{{ 'x'.ljust(10000000000) }}", "too large"),
        ("{{ '{:10000000000}'.format(1) }}", "too wide"),
        ("{{ '%10000000000d' % 1 }}", "too wide"),
        ("{{ '%10000000000d' | format(1) }}", "too wide"),
        ("{% set x = 'a' * 1000000 %}{{ x.replace('a', x) }}", "too large"),
        ("{% set x = 'a' * 1000000 %}{{ x | join(x) }}", "too large"),
        ("{{ lipsum(100000) }}", "undefined"),
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    ],
)
def test_whatever_a_template_does_is_one_sentence(source: str, why: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="the base model's chat template") as caught:
        render(source)
    assert re.search(why, str(caught.value))
    assert not re.search("NoneType|Traceback|\n", str(caught.value))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 << 10, "KiB that it took"


@pytest.mark.parametrize("source", ["{% foo %}", "{% if %}", "{% generation %}", "{{ " + "(" * 5000, "{{ 1 | no }}"])
def test_a_source_that_is_no_template(source: str) -> None:
    with pytest.raises(UnknownModel, match="chat template can't be read"):
        ChatTemplate(source, {})


def test_a_long_conversation_has_steps_of_its_own() -> None:
    source = "{% for m in messages %}{{ m.content | trim | upper | lower | trim }}{{ m.role.strip() }}{% endfor %}"
    assert len(ChatTemplate(source, {}).render([{"role": "user", "content": "a"}] * 4096, True)) == 4096 * 5
