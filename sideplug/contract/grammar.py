"""A reply that must have a form: which tokens are allowed, applied to logits, and packed for a device that picks.

    l'_v = l_v where token v is allowed, −∞ elsewhere

It is applied to the logits of the corrected z, after biases and mixtures. Where a mixture gives no allowed token any
probability (a memory that says what the form has no place for), the logits without the mixture are taken. A grammar is
followed in the cloud, which has the tokenizer (cloud/grammar); here is what both sides share.
V vocabulary. Test: pytest tests/contract/test_grammar.py
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from sideplug.contract.capabilities import MAX_GRAMMAR, Grammar
from sideplug.contract.errors import InputError, ProtocolError

# JSON as most of it is written; with free white space a small model writes nothing else.
WRITTEN: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def json_grammar(schema: object) -> Grammar:
    """The grammar of JSON that a schema allows: an object, true or false. Raises InputError."""
    if not isinstance(schema, (Mapping, bool)):
        raise InputError("a JSON schema must be an object, true or false")
    try:
        text = json.dumps(schema, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError("a JSON schema must be JSON, and not nested without an end") from error
    return checked(Grammar("json", text))


def checked(grammar: Grammar) -> Grammar:
    """The grammar. Raises InputError for one that is empty or too large to be sent."""
    size = len(grammar.text.encode("utf-8", "surrogatepass"))
    if not 0 < size <= MAX_GRAMMAR:
        raise InputError(f"a grammar must have 1 to {MAX_GRAMMAR:,} bytes, got {size:,}")
    return grammar


def constrain(logits_V: np.ndarray, unmixed_V: np.ndarray, allowed_V: np.ndarray | None) -> np.ndarray:
    """Logits (V,) float32 with −∞ where `allowed_V` is False; None allows all. unmixed_V: those before the mixture."""
    if allowed_V is None:
        return logits_V
    masked: np.ndarray = np.where(allowed_V, logits_V, np.float32(-np.inf))
    if masked.max() == -np.inf:
        masked = np.where(allowed_V, unmixed_V, np.float32(-np.inf))
    return masked


def pack_mask(allowed_V: np.ndarray) -> bytes:
    """A mask (V,) bool as bytes: bits, eight tokens a byte, the lowest first; deflated."""
    return zlib.compress(np.packbits(allowed_V, bitorder="little").tobytes(), 1)


def unpack_mask(packed: bytes, vocab: int) -> np.ndarray:
    """The mask (V,) bool of `pack_mask`'s bytes. Raises ProtocolError; it takes no more memory than a mask has."""
    size = (vocab + 7) // 8
    inflate = zlib.decompressobj()
    try:
        bits = inflate.decompress(packed, size)
    except zlib.error as error:
        raise ProtocolError("a mask is damaged") from error
    if len(bits) != size:
        raise ProtocolError(f"a mask must have {vocab} bits, got {8 * len(bits)}")
    allowed: np.ndarray = np.unpackbits(np.frombuffer(bits, np.uint8), count=vocab, bitorder="little").astype(bool)
    if not allowed.any():
        raise ProtocolError("a mask must allow a token")
    return allowed
