"""Chat templates, example boundaries, text that streams whole characters."""

import json
import shutil
from pathlib import Path

import pytest

from sideplug.cloud.tokenizer import TextStream, Tokenizer
from sideplug.contract.errors import InputError, UnknownModel
from sideplug.contract.text import Prompt
from tests.conftest import twin


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Tokenizer:
    return Tokenizer(tiny)


@pytest.mark.twin
def test_chat_template_as_transformers_renders_it(tiny: Path, tokenizer: Tokenizer) -> None:
    theirs = twin("transformers").AutoTokenizer.from_pretrained(tiny)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "  Is it far?\n"},
        {"role": "assistant", "content": "As far as your feet are tired."},
        {"role": "user", "content": "Höher 🐝?"},
    ]
    want = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert tokenizer.render(messages) == want
    assert tokenizer.encode(Prompt(messages=tuple(messages))) == theirs(want, add_special_tokens=False).input_ids


def test_chat_example_ends_with_the_turns_end(tokenizer: Tokenizer) -> None:
    prompt, reply = tokenizer.encode_example(Prompt.user("Is it far?"), "No.")
    assert prompt == tokenizer.encode(Prompt.user("Is it far?"))
    assert reply == [*tokenizer.ids("No."), 1]


def test_text_example_is_all_learnt_but_its_first_token(tokenizer: Tokenizer) -> None:
    prompt, reply = tokenizer.encode_example(Prompt(text=""), "Anna wrote to her brother.")
    assert len(prompt) == 1
    assert prompt + reply == [*tokenizer.ids("Anna wrote to her brother."), 1], "a text that ends is learnt to end"
    prompt, reply = tokenizer.encode_example(Prompt(text=""), "Anna wrote to her brother.\n\n")
    assert prompt + reply == tokenizer.ids("Anna wrote to her brother.\n\n"), "and one that goes on is not"
    prompt, reply = tokenizer.encode_example(Prompt(text="Anna wrote"), " to her brother.")
    assert prompt + reply == [*tokenizer.ids("Anna wrote to her brother."), 1]
    assert tokenizer.decode(prompt).startswith("Anna")


@pytest.mark.parametrize("text", ["plain words", "Höher 🐝🐝 ağaç 日本語", "a\n\n  b", "", "🐝"])
def test_stream_gives_the_text_in_whole_characters(tokenizer: Tokenizer, text: str) -> None:
    stream = TextStream(tokenizer)
    ids = tokenizer.ids(text)
    pieces = [stream.push([i]) for i in ids] + [stream.push([], last=True)]
    assert "".join(pieces) == text
    assert not any("�" in piece for piece in pieces)


def test_a_character_that_never_ends_comes_out_at_the_end(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer)
    ids = tokenizer.ids("ab🐝")[:-1]
    assert "".join(stream.push([i]) for i in ids) == "ab"
    assert stream.push([], last=True) == "�"


def test_templates_that_refuse_are_broken_or_missing(tiny: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "config.json"):
        shutil.copy(tiny / name, tmp_path)

    def with_template(source: str | None) -> Tokenizer:
        config = {"eos_token": "<|im_end|>"} | ({"chat_template": source} if source else {})
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        return Tokenizer(tmp_path)

    hi = [{"role": "user", "content": "hi"}]
    with pytest.raises(InputError, match="no chat template"):
        with_template(None).render(hi)
    with pytest.raises(InputError, match="roles must alternate"):
        with_template("{{ raise_exception('roles must alternate') }}").render(hi)
    with pytest.raises(InputError):  # the sandbox
        with_template("{{ messages.__class__.__mro__[1].__subclasses__() }}").render(hi)
    with pytest.raises(UnknownModel):
        with_template("{% if %}")
    # A template that strips the reply still gives an example with an end.
    stripping = with_template("{% for m in messages %}[{{ m.content | trim }}]{% endfor %}")
    prompt, reply = stripping.encode_example(Prompt.user("hi"), "  No. ")
    assert (prompt, reply) == (stripping.ids("[hi]"), [*stripping.ids("  No. "), 1])
