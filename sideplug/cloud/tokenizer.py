"""The tokenizer of a model folder: it turns text into token ids and back, and applies the chat template.

Only the cloud has it: the device sends text and gets ids and text. It does not know the model's weights.
Test: pytest tests/cloud/test_tokenizer.py
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox
from tokenizers import Tokenizer as FastTokenizer

from sideplug.cloud.token_bytes import token_bytes
from sideplug.contract.errors import InputError, UnknownModel
from sideplug.contract.text import Prompt
from sideplug.contract.token_text import text_of


class Tokenizer:
    """The tokenizer of a model folder. Raises UnknownModel for a folder that can't be read."""

    def __init__(self, folder: Path) -> None:
        try:
            self._fast = FastTokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises no other class
            raise UnknownModel(f"{folder / 'tokenizer.json'} can't be read: {error}") from error
        self._fast.no_truncation()
        self._fast.no_padding()
        self._token_bytes = token_bytes(self._fast)
        config = _read_json(folder / "tokenizer_config.json")
        self._special = {
            name: token["content"] if isinstance(token, dict) else token
            for name, token in config.items()
            if name.endswith("_token") and isinstance(token, (str, dict))
        }
        self.stop_ids = self._stop_ids(folder)
        template_file = folder / "chat_template.jinja"
        source = template_file.read_text() if template_file.exists() else config.get("chat_template")
        if isinstance(source, list):  # several named templates: the default one
            source = next((entry["template"] for entry in source if entry["name"] == "default"), None)
        self._template = _compile(source) if source else None

    def _stop_ids(self, folder: Path) -> frozenset[int]:
        """Return the ids that end a reply: the eos of the config, of the generation config and of the tokenizer."""
        stops: set[int] = set()
        for name in ("generation_config.json", "config.json"):
            eos = _read_json(folder / name).get("eos_token_id")
            stops.update(eos if isinstance(eos, list) else [eos] if isinstance(eos, int) else [])
        tokenizer_eos = self._fast.token_to_id(self._special.get("eos_token", ""))
        if tokenizer_eos is not None:
            stops.add(tokenizer_eos)
        return frozenset(stops)

    @property
    def has_chat(self) -> bool:
        """Return whether the model has a chat template."""
        return self._template is not None

    def render(self, messages: list[dict[str, str]], ask: bool = True) -> str:
        """Return the chat template's text; `ask` adds the opening of the assistant's turn. Raises InputError."""
        if self._template is None:
            raise InputError("this base model has no chat template: give plain text (--raw) instead of messages")
        try:
            return self._template.render(messages=messages, add_generation_prompt=ask, **self._special)
        except jinja2.TemplateError as error:
            raise InputError(f"the base model's chat template refuses these messages: {error}") from error

    def ids(self, text: str, special: bool = False) -> list[int]:
        """Return the token ids of a text; `special` adds the special tokens that begin and end a whole text (BOS)."""
        return self._fast.encode(text, add_special_tokens=special).ids

    def encode(self, prompt: Prompt) -> list[int]:
        """Return a prompt's token ids: plain text after the tokenizer's BOS, messages through the chat template."""
        if prompt.ids is not None:
            return list(prompt.ids)
        if prompt.text is not None:
            return self.ids(prompt.text, special=True)
        return self.ids(self.render(list(prompt.messages or ())))

    def encode_example(self, prompt: Prompt, reply: str) -> tuple[list[int], list[int]]:
        """Return the ids of a training example: (prompt, reply). A chat reply ends with the token that ends the turn.

        The ids of a plain text without a prompt begin with a prompt of one token: the BOS, or else its first token.
        """
        if prompt.messages is None:
            whole = self.encode(Prompt(text=(prompt.text or "") + reply)) if prompt.ids is None else None
            start = self.encode(prompt)
            if whole is None:
                return start, self.ids(reply)
            shared = 0
            while shared < min(len(start), len(whole) - 1) and start[shared] == whole[shared]:
                shared += 1
            shared = max(1, shared)
            return whole[:shared], whole[shared:]
        prompt_text = self.render(list(prompt.messages))
        whole_text = self.render([*prompt.messages, {"role": "assistant", "content": reply}], ask=False)
        tail = self.ids(whole_text[len(prompt_text) :]) if whole_text.startswith(prompt_text) else []
        stop = next((i for i, token in enumerate(tail) if token in self.stop_ids), None)
        if stop is None:  # the template trims or rewrites the reply: append the stop token here
            tail = self.ids(reply) + sorted(self.stop_ids)[:1]
            stop = len(tail) - 1
        return self.ids(prompt_text), tail[: stop + 1]

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
        return self._fast.decode(ids, skip_special_tokens=True)

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


def _compile(source: str) -> jinja2.Template:
    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **kw: json.dumps(value, ensure_ascii=False, **kw)
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise UnknownModel(f"the model's chat template can't be read: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        settings: dict[str, Any] = json.loads(path.read_text())
        return settings
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UnknownModel(f"{path} must be JSON: {error}") from error
