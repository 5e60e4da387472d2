"""Words to token ids and back, for one model folder: tokenizer.json and the chat template.

The device never does this: it sends words and gets ids and text. It does not know the model's weights.
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

from sideplug.contract.errors import InputError, UnknownModel
from sideplug.contract.text import Prompt


class Tokenizer:
    """`encode` a prompt, `decode` ids, `stream` a reply's text."""

    def __init__(self, folder: Path) -> None:
        try:
            self._fast = FastTokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises this very class
            raise UnknownModel(f"{folder / 'tokenizer.json'} can't be read: {error}") from error
        self._fast.no_truncation()
        self._fast.no_padding()
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
        """Ids that end a reply: the config's and the generation config's eos, and the tokenizer's own."""
        found: set[int] = set()
        for name in ("generation_config.json", "config.json"):
            eos = _read_json(folder / name).get("eos_token_id")
            found.update(eos if isinstance(eos, list) else [eos] if isinstance(eos, int) else [])
        own = self._fast.token_to_id(self._special.get("eos_token", ""))
        if own is not None:
            found.add(own)
        return frozenset(found)

    @property
    def has_chat(self) -> bool:
        """Whether the model has a chat template."""
        return self._template is not None

    def render(self, messages: list[dict[str, str]], ask: bool = True) -> str:
        """The chat template's text; `ask` adds the opening of the assistant's turn. Raises InputError."""
        if self._template is None:
            raise InputError("this base model has no chat template: give plain text (--raw) instead of messages")
        try:
            return self._template.render(messages=messages, add_generation_prompt=ask, **self._special)
        except jinja2.TemplateError as error:
            raise InputError(f"the base model's chat template refuses these messages: {error}") from error

    def ids(self, text: str, special: bool = False) -> list[int]:
        """Token ids of a text; `special` adds what the tokenizer puts around a text of its own (BOS)."""
        return self._fast.encode(text, add_special_tokens=special).ids

    def encode(self, prompt: Prompt) -> list[int]:
        """A prompt's token ids. Plain text gets the tokenizer's BOS, chat has what its template writes."""
        if prompt.ids is not None:
            return list(prompt.ids)
        if prompt.text is not None:
            return self.ids(prompt.text, special=True)
        return self.ids(self.render(list(prompt.messages or ())))

    def encode_example(self, prompt: Prompt, reply: str) -> tuple[list[int], list[int]]:
        """Ids of a training example: (prompt, reply). A chat reply ends with the token that ends the turn.

        A plain text without a prompt needs one token to start from: the tokenizer's BOS, or else its own first token.
        """
        if prompt.messages is None:
            whole = self.encode(Prompt(text=(prompt.text or "") + reply)) if prompt.ids is None else None
            start = self.encode(prompt)
            if whole is None:
                return start, self.ids(reply)
            same = 0
            while same < min(len(start), len(whole) - 1) and start[same] == whole[same]:
                same += 1
            same = max(1, same)
            return whole[:same], whole[same:]
        asked = self.render(list(prompt.messages))
        whole_text = self.render([*prompt.messages, {"role": "assistant", "content": reply}], ask=False)
        tail = self.ids(whole_text[len(asked) :]) if whole_text.startswith(asked) else []
        stop = next((i for i, token in enumerate(tail) if token in self.stop_ids), None)
        if stop is None:  # a template that trims or rewrites the reply: end it ourselves
            tail = self.ids(reply) + sorted(self.stop_ids)[:1]
            stop = len(tail) - 1
        return self.ids(asked), tail[: stop + 1]

    def shared_prefix(self, system: str) -> list[int]:
        """The ids that every conversation with this system message begins with. Raises InputError where none do."""
        first, second = (
            self.encode(Prompt(messages=({"role": "system", "content": system}, {"role": "user", "content": word})))
            for word in ("Yes.", "no")
        )
        same = next((n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), len(first))
        if same < 2:
            raise InputError("the model's chat template has no place for a system message that could be shared")
        return first[:same]

    def decode(self, ids: list[int]) -> str:
        """The text of these token ids."""
        return self._fast.decode(ids, skip_special_tokens=True)


class TextStream:
    """The text of a growing reply, piece by piece: a character split over tokens comes out whole, with its last one."""

    _WINDOW = 6  # tokens of context: enough for tokenizers whose text depends on the neighbour (leading spaces)

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._done = 0  # tokens whose text is out

    def push(self, ids: list[int], last: bool = False) -> str:
        """The new text that is certain after these ids, the same in whatever portions they come.

        `last` lets go of what was held back.
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
