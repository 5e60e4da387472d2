"""Follows a grammar through a reply: which tokens may come next. It is llguidance's work, on the bytes of the tokens.

llguidance was chosen by measurement (docs/BENCHMARK.md): of three libraries it alone took nothing that a schema forbids
in JSON Schema's own test suite; what it can't hold a reply to, it refuses before the first token.
V vocabulary. Test: pytest tests/test_structured.py
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sideplug.contract.capabilities import Grammar
from sideplug.contract.errors import InputError
from sideplug.contract.grammar import WRITTEN

if TYPE_CHECKING:
    from sideplug.cloud.tokenizer import Tokenizer

TOO_COMPLEX = "the grammar is too complex to be followed: give a simpler one"
WHAT = {"json": "the schema", "regex": "the regular expression", "lark": "the grammar"}


class Grammars:
    """Reads grammars for one base's tokens."""

    def __init__(self, tokenizer: Tokenizer, vocab: int) -> None:
        self._tokenizer, self._vocab = tokenizer, vocab
        self._tokens: Any = None
        self._making = threading.Lock()

    def guide(self, grammar: Grammar) -> Guide:
        """What follows a grammar. Raises InputError for one that can't be read, can't be met, or is too complex."""
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokens_of_base(), _source(grammar), log_level=0)
        if matcher.is_error():
            raise InputError(f"{WHAT[grammar.kind]} can't be held to: {_reason(matcher.get_error())}")
        guide = Guide(matcher, self._tokenizer.stop_ids, self._vocab)
        try:
            guide.allowed([])
        except InputError as error:
            raise InputError(f"{WHAT[grammar.kind]} can't be met: no reply has that form") from error
        return guide

    def _tokens_of_base(self) -> Any:
        """llguidance's table of the tokens; made when it is first needed, which takes about a second."""
        with self._making:
            if self._tokens is None:
                from llguidance import LLTokenizer, TokenizerWrapper

                spelling = [self._tokenizer.spelling(token) for token in range(self._vocab)]
                end = min(self._tokenizer.stop_ids, default=0)
                wrapped = TokenizerWrapper(_Spelt(self._tokenizer, spelling, end))
                self._tokens = LLTokenizer(wrapped, n_vocab=self._vocab, eos_token=end)
            return self._tokens


class Guide:
    """A grammar during one reply. Asked in any order of positions: it goes back where the text was rolled back."""

    def __init__(self, matcher: Any, stop_ids: Collection[int], vocab: int) -> None:
        self._matcher, self._vocab = matcher, vocab
        self._stops = [token for token in stop_ids if token < vocab]
        self._ids: list[int] = []
        self.numbers: dict[bytes, int] = {}  # the packed masks that the device has → their numbers

    def allowed(self, ids: Sequence[int]) -> np.ndarray | None:
        """Which tokens (V,) bool may follow a reply's `ids`; None: the ids left the grammar, so anything may.

        A reply leaves its grammar only by a speculative token, which is rolled back. Raises InputError where the
        grammar is too complex to be followed.
        """
        if not self._go_to(ids):
            if self._matcher.is_error():
                raise InputError(TOO_COMPLEX)
            return None
        ended = self._matcher.is_stopped()
        if ended:
            allowed = np.zeros(self._vocab, bool)
        else:
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            allowed = np.unpackbits(bits, count=self._vocab, bitorder="little").astype(bool)
        if self._matcher.is_error():
            raise InputError(TOO_COMPLEX)
        allowed[self._stops] = ended or self._matcher.is_accepting()
        if not allowed.any():
            raise InputError("the grammar leads to a place where no token may come: give a simpler one")
        return allowed

    def _go_to(self, ids: Sequence[int]) -> bool:
        """Let the matcher stand behind these ids. False: they are not of the grammar."""
        known = self._ids
        shared = next(
            (n for n, (a, b) in enumerate(zip(known, ids, strict=False)) if a != b), min(len(known), len(ids))
        )
        if shared < len(known):
            self._matcher.rollback(len(known) - shared)
            del known[shared:]
        more = list(ids[shared:])
        taken = self._matcher.try_consume_tokens(more) if more else 0
        known += more[:taken]
        return taken == len(more)


class _Spelt:
    """The base's tokens as llguidance's wrapper wants to find them."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, spelling: list[bytes], end: int) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = end
        self.tokens = spelling
        self.special_token_ids = [token for token, piece in enumerate(spelling) if not piece]

    def __call__(self, text: str | bytes) -> list[int]:
        """The token ids of a text."""
        return self._tokenizer.ids(text if isinstance(text, str) else text.decode("utf-8", "replace"))


def _source(grammar: Grammar) -> str:
    """A grammar in the form that llguidance reads. Raises InputError for a schema that is no JSON."""
    from llguidance import LLMatcher

    if grammar.kind == "regex":
        return str(LLMatcher.grammar_from_regex(grammar.text))
    if grammar.kind == "lark":
        return str(LLMatcher.grammar_from_lark(grammar.text))
    try:
        schema = json.loads(grammar.text)
        if isinstance(schema, bool):
            schema = {} if schema else {"not": {}}
        return str(LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=WRITTEN))
    except (ValueError, RecursionError) as error:
        raise InputError("the schema can't be held to: it is no JSON object, or nested too deep") from error


def _reason(error: str) -> str:
    """What llguidance says, in one line without its own words for places."""
    lines = [line.strip() for line in error.splitlines() if line.strip()] or ["it can't be read"]
    line = next((each.removeprefix("error: ") for each in lines if each.startswith("error: ")), lines[0])
    return re.sub(r"^at \d+\(\d+\): ", "", line)[:200].rstrip(". ")
