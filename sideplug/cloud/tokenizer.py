"""The tokenizer of a model folder: it turns text into token ids and back, and applies the chat template.

Only the cloud has it: the device sends text and gets ids and text. It does not know the model's weights.
Test: pytest tests/cloud/test_tokenizer.py
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sideplug.cloud import control_tokens
from sideplug.cloud.chat_template import ChatTemplate
from sideplug.cloud.control_tokens import Mask
from sideplug.cloud.model_files import read_json, read_text, reading
from sideplug.cloud.token_bytes import token_bytes
from sideplug.cloud.tools import form_of, messages_with, tools_of
from sideplug.contract.capabilities import CallForm
from sideplug.contract.errors import InputError, UnknownModel
from sideplug.contract.text import Prompt
from sideplug.contract.token_text import text_of

# The usual names of tokens that end a turn or a text. A model means them so even where its files name only one of them.
_ENDS = (
    "<|eot_id|>",
    "<|eom_id|>",
    "<|eot|>",
    "<|eom|>",
    "<|im_end|>",
    "<end_of_turn>",
    "<|end_of_turn|>",
    "<|END_OF_TURN_TOKEN|>",
    "<end_of_utterance>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<｜end▁of▁sentence｜>",
    "<|return|>",
    "<|call|>",
    "<EOT>",
    "<|EOT|>",
    "[EOT]",
    "<eos>",
    "</s>",
)
_NAMED_ENDS = ("eos_token", "eot_token", "eom_token")

Messages = Sequence[Mapping[str, Any]]
LONG_CHARACTERS = 16_000  # a longer text takes milliseconds, for which others would wait


class Tokenizer:
    """The tokenizer of a model folder. Raises UnknownModel for a folder that can't be read."""

    def __init__(self, folder: Path) -> None:
        config = read_json(folder / "tokenizer_config.json")
        self._special = {
            name: token["content"] if isinstance(token, dict) else token
            for name, token in config.items()
            if name.endswith("_token") and (isinstance(token, str) or _is_spelt(token))
        }
        named = [self._special[name] for name in _NAMED_ENDS if name in self._special]
        described = read_json(folder / "tokenizer.json")
        with reading(folder / "tokenizer.json"):
            self._fast, self._control = control_tokens.load(described, [*named, *_ENDS])
        self._fast.no_truncation()
        self._fast.no_padding()
        self._token_bytes = token_bytes(self._fast, frozenset(self._control.ids.values()))
        given = [read_json(folder / name) for name in ("generation_config.json", "config.json")]
        stops = [token for each in given for token in _ids(each.get("eos_token_id"))]
        stops += [number for number in map(self._id, named) if number is not None]
        self.end_id = next((number for number in map(self._id, named) if number is not None), next(iter(stops), None))
        self.stop_ids = frozenset(stops) | self._usual_ends()
        template = _template_of(folder, config)
        self._template = ChatTemplate(template, self._special) if template else None

    def _id(self, spelling: str) -> int | None:
        """Return the id of a token by its spelling; None where there is none."""
        number: int | None = self._fast.token_to_id(self._control.stand_ins.get(spelling, spelling))
        return number

    def _usual_ends(self) -> frozenset[int]:
        """Return the ids of the model's control tokens that have the usual names of an end."""
        control = self._control.ids
        goes_on = {"<|return|>", "<|call|>"} <= set(control)  # then <|end|> ends one message of several
        return frozenset(control[name] for name in _ENDS if name in control and not (goes_on and name == "<|end|>"))

    @property
    def has_chat(self) -> bool:
        """Return whether the model has a chat template."""
        return self._template is not None

    @functools.cached_property
    def call_form(self) -> CallForm | None:
        """How the model's chat template writes a tool's call; None where it has no place for tools."""
        return form_of(self.render, self._control.ids) if self._template is not None else None

    def render(self, messages: Messages, ask: bool = True, tools: Messages | None = None) -> str:
        """Return the chat template's text; `ask` adds the opening of the assistant's turn. Raises InputError."""
        return self._control.unmark(self._marked(messages, ask, tools))

    def _marked(self, messages: Messages, ask: bool = True, tools: Messages | None = None) -> str:
        """As `render`, with a stand-in for each control token of the template; those in the messages are text."""
        template = self._template
        if template is None:
            raise InputError("this base model has no chat template: give plain text (--raw) instead of messages")
        plain = template.render(messages, ask, tools)
        texts = [*_texts(messages), *_texts(tools or ())]
        firsts = {spelling[0] for spelling in self._control.ids}
        if not any(first in text for text in texts for first in firsts):
            return self._control.mark(plain)
        shown = marked = ""
        # A template that looks at what is masked (a "<" of any kind) gets whole control tokens masked, and no more.
        for whole in (False, True):
            mask = Mask(self._control, texts, template.constants, whole)
            rendered = template.render(_with(mask.hide, messages), ask, _with(mask.hide, tools or ()))
            shown, marked = mask.show(rendered), mask.show(self._control.mark(rendered))
            if shown == plain:
                break
        return marked

    def ids(self, text: str, special: bool = False) -> list[int]:
        """Return the token ids of people's text, in which there is no control token.

        special: with the special tokens that begin and end a whole text (BOS).
        """
        return self._encode(text, special)

    def _encode(self, text: str, special: bool = False) -> list[int]:
        if len(text) < LONG_CHARACTERS:
            return self._fast.encode(text, add_special_tokens=special).ids
        # The same ids; but this call lets other threads run meanwhile.
        return self._fast.encode_batch_fast([text], add_special_tokens=special)[0].ids

    def encode(self, prompt: Prompt) -> list[int]:
        """Return a prompt's token ids: plain text after the tokenizer's BOS, messages through the chat template."""
        if prompt.ids is not None:
            return list(prompt.ids)
        if prompt.text is not None:
            return self.ids(prompt.text, special=True)
        if prompt.tools is not None:
            return self.ids(
                self._marked(messages_with(prompt.messages or (), prompt.tools), True, tools_of(prompt.tools))
            )
        return self.ids(self._marked(prompt.messages or ()))

    def encode_example(self, prompt: Prompt, reply: str) -> tuple[list[int], list[int]]:
        """Return the ids of a training example: (prompt, reply). A chat reply ends with the token that ends the turn.

        The ids of a plain text without a prompt begin with a prompt of one token: the BOS, or else its first token. Its
        end is learnt too, unless it ends with a space or a line break: then it goes on.
        """
        if prompt.messages is None:
            end = [] if self.end_id is None or reply != reply.rstrip() or not reply else [self.end_id]
            whole = self.encode(Prompt(text=(prompt.text or "") + reply)) if prompt.ids is None else None
            start = self.encode(prompt)
            if whole is None:
                return start, self.ids(reply) + end
            shared = 0
            while shared < min(len(start), len(whole) - 1) and start[shared] == whole[shared]:
                shared += 1
            shared = max(1, shared)
            return whole[:shared], whole[shared:] + end
        asked = self._marked(prompt.messages)
        told = self._marked([*prompt.messages, {"role": "assistant", "content": reply}], ask=False)
        start, whole = self.ids(asked), self.ids(told)
        if whole[: len(start)] == start:
            tail = whole[len(start) :]
        else:
            tail = self.ids(told[len(asked) :]) if told.startswith(asked) else []
        stop = next((i for i, token in enumerate(tail) if token in self.stop_ids), None)
        if stop is None:  # the template trims or rewrites the reply: append the stop token here
            tail = self.ids(reply) + [token for token in [self.end_id] if token is not None]
            stop = len(tail) - 1
        return start, tail[: stop + 1]

    def shared_prefix(self, system: str) -> list[int]:
        """Return the ids that begin every conversation with this system message. Raises InputError if none do."""
        first, second = (
            self.encode(Prompt(messages=({"role": "system", "content": system}, {"role": "user", "content": word})))
            for word in ("Yes.", "no")
        )
        shared = next((n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), len(first))
        if shared < 2:
            raise InputError("the model's chat template has no place for a system message that could be shared")
        return first[:shared]

    def decode(self, ids: list[int]) -> str:
        """Return the text of these token ids, without special tokens."""
        return self._control.unmark(self._fast.decode(ids, skip_special_tokens=True))

    def spelling(self, token: int) -> bytes:
        """Return the bytes that a token adds to a text; a control token, or one that there is not, adds none."""
        return self._token_bytes(token)

    def token_text(self, token: int, first: bool = False) -> str:
        """Return what one token adds to a reply, as contract/token_text writes it. `first`: it begins the reply."""
        begun = self.decode([token]) if first else "�"  # which may drop the space before the first word
        return text_of(self._token_bytes(token)) if "�" in begun else begun


class TextStream:
    """The text of a growing reply, in pieces. A character of several tokens comes whole, with its last token."""

    _WINDOW = 6  # tokens of context, because a token's text may depend on the one before it (leading spaces)

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._done = 0  # tokens whose text was returned

    def push(self, ids: list[int], last: bool = False) -> str:
        """Add ids; return the new text that can't change any more. It does not depend on how the ids are divided.

        `last`: return all remaining text.
        """
        text = "".join(self._push([token], False) for token in ids)
        return text + self._push([], True) if last else text

    def _push(self, ids: list[int], last: bool) -> str:
        self._ids += ids
        start = max(0, self._done - self._WINDOW)
        before = self._tokenizer.decode(self._ids[start : self._done])
        after = self._tokenizer.decode(self._ids[start:])
        if not last and (after.endswith("�") or not after.startswith(before)):
            return ""
        self._done = len(self._ids)
        return after[len(before) :]


def _texts(value: Any) -> Iterator[str]:
    """Every text in messages or tools, but for roles."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, each in value.items():
            yield from _texts(each) if name != "role" else ()
            yield str(name)
    elif isinstance(value, Sequence):
        for each in value:
            yield from _texts(each)


def _with(change: Callable[[str], str], value: Any) -> Any:
    """The same with every text changed, but for roles and what they are called."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(name): each if name == "role" else _with(change, each) for name, each in value.items()}
    return [_with(change, each) for each in value] if isinstance(value, Sequence) else value


def _is_spelt(token: object) -> bool:
    return isinstance(token, dict) and isinstance(token.get("content"), str)


def _ids(value: object) -> list[int]:
    """Return the token ids that a config gives: one, a list of them, or none."""
    return [token for token in (value if isinstance(value, list) else [value]) if type(token) is int and token >= 0]


def _template_of(folder: Path, config: Mapping[str, object]) -> str | None:
    """Return the source of the chat template; of several named ones the default. Raises UnknownModel."""
    file = folder / "chat_template.jinja"
    if file.exists():
        return read_text(file)
    source = config.get("chat_template") or read_json(folder / "chat_template.json").get("chat_template")
    if isinstance(source, list):
        named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        source = named.get("default")
    if source is not None and not isinstance(source, str):
        raise UnknownModel(f"the chat template of {folder} must be text")
    return source or None
