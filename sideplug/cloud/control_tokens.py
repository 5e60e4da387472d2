"""A model's control tokens, kept apart from people's text: only the chat template writes them.

A tokenizer reads `<|im_end|>` as a control token wherever it stands, so whoever types it could end a turn. Here each
control token gets a stand-in, a spelling that nobody knows: the tokenizer is loaded with the stand-ins in place of the
tokens' own spellings, which are text like any other from then on. A rendered template has its tokens replaced by their
stand-ins (`ControlTokens.mark`), after the contents' own were taken out of the way (`Mask`). What holds no control
token is encoded exactly as the unchanged tokenizer does.

It knows neither a template nor messages. Test: pytest tests/cloud/test_control_tokens.py
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer as FastTokenizer

from sideplug.contract.errors import UnknownModel

# The frame of a stand-in, and what masks a character: private-use characters, which no template writes.
_EDGE = "\U0010f5d5"
_MASKS = range(0xF0000, 0xFFFFE)
# How control tokens look that a tokenizer does not list as special (DeepSeek's <｜User｜>).
_LOOKS = re.compile(r"<[|｜][^\s<>]*[|｜]>")


@dataclass(frozen=True)
class ControlTokens:
    """The control tokens of a tokenizer: for each spelling its id, and its stand-in.

    others: the added tokens that are none; a spelling that begins one is not looked for inside it.
    """

    ids: dict[str, int]
    stand_ins: dict[str, str]
    others: frozenset[str]

    def mark(self, text: str) -> str:
        """Return the text with a stand-in in the place of each control token."""
        if not self.ids:
            return text
        return self._any.sub(lambda match: self.stand_ins.get(match[0], match[0]), text)

    def unmark(self, text: str) -> str:
        """Return the text with each stand-in spelt as its token."""
        for spelling, stand_in in self.stand_ins.items() if _EDGE in text else ():
            text = text.replace(stand_in, spelling)
        return text

    def holds(self, text: str) -> bool:
        """Return whether the text spells a control token."""
        return any(match[0] in self.ids for match in self._any.finditer(text)) if self.ids else False

    @cached_property
    def _any(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted({*self.ids, *self.others}, key=len, reverse=True))))


class Mask:
    """It takes the control tokens in people's texts out of a template's sight, without a change of any length.

    Each character that begins a control token is replaced by one that neither `texts` nor `constants` have, unless one
    of the template's own `constants` begins there, which it may look for (</think>). whole: only where a whole control
    token begins.
    """

    def __init__(self, tokens: ControlTokens, texts: Iterable[str], constants: Collection[str], whole: bool) -> None:
        taken = set().union(*texts, *constants)
        free = (chr(number) for number in _MASKS if chr(number) not in taken)
        self._mask = {first: next(free) for first in sorted({spelling[0] for spelling in tokens.ids})}
        self._back = {ord(mask): first for first, mask in self._mask.items()}
        spelt = "|".join(map(re.escape, sorted(tokens.ids, key=len, reverse=True)))
        if whole:
            self._place = re.compile(f"(?={spelt}).", re.DOTALL)
        else:
            kept = [re.escape(c) for c in constants if c[0] in self._mask and c not in tokens.ids]
            firsts = "".join(map(re.escape, self._mask))
            unless = f"(?!{'|'.join(kept)})" if kept else ""
            self._place = re.compile(f"(?={spelt}).|{unless}[{firsts}]", re.DOTALL)

    def hide(self, text: str) -> str:
        """Return the text with its control tokens' first characters masked."""
        return self._place.sub(lambda match: self._mask[match[0]], text)

    def show(self, text: str) -> str:
        """Return what `hide` was given, or what a template made of it."""
        return text.translate(self._back)


def load(described: dict[str, Any], more: Iterable[str] = ()) -> tuple[FastTokenizer, ControlTokens]:
    """Return a tokenizer.json as a tokenizer that reads stand-ins in place of its control tokens, and these tokens.

    more: spellings that are control tokens too, if they are added tokens (the model's own names of its end). Raises
    UnknownModel for one that can't be kept apart from text; the library's own errors for one that can't be read.
    """
    named, added = set(more), {token["content"]: token for token in described.get("added_tokens") or ()}
    ids: dict[str, int] = {
        spelling: token["id"]
        for spelling, token in added.items()
        if spelling and (token.get("special") or spelling in named or _LOOKS.fullmatch(spelling))
    }
    nonce = secrets.token_hex(16)
    stand_ins = {spelling: f"{_EDGE}{nonce}{number}{_EDGE}" for spelling, number in ids.items()}
    tokens = ControlTokens(ids, stand_ins, frozenset(added) - set(ids))
    if not ids:
        return FastTokenizer.from_str(json.dumps(described)), tokens
    for normalized in (True, False):
        fast = FastTokenizer.from_str(json.dumps(_renamed(described, stand_ins, normalized)))
        if all(fast.token_to_id(stand_ins[spelling]) == number for spelling, number in ids.items()):
            read = fast.encode(" ".join(stand_ins.values()), add_special_tokens=False).ids
            if set(ids.values()) <= set(read):
                return fast, tokens
    raise UnknownModel("its control tokens can't be kept apart from people's text")


def _renamed(described: dict[str, Any], stand_ins: dict[str, str], normalized: bool) -> dict[str, Any]:
    """Return a tokenizer.json with these tokens renamed; `normalized` False: found before the text is normalised."""
    model = dict(described["model"])
    vocab = model.get("vocab")
    if isinstance(vocab, dict):
        model["vocab"] = {stand_ins.get(token, token): number for token, number in vocab.items()}
    elif isinstance(vocab, list):
        model["vocab"] = [[stand_ins.get(token, token), score] for token, score in vocab]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = stand_ins.get(model["unk_token"], model["unk_token"])
    added = []
    for token in described["added_tokens"]:
        if token["content"] in stand_ins:
            token = {**token, "content": stand_ins[token["content"]]}
            token["normalized"] = token.get("normalized", False) and normalized
        added.append(token)
    return {**described, "model": model, "added_tokens": added}
