"""The bytes of each single token of a tokenizer: what it adds to a text, which need not be whole characters.

Byte-level tokenizers (GPT-2's, Llama 3's) write a byte as one letter of an alphabet of 256; others (SentencePiece's)
have a piece like <0xF0> for each byte, and write a space as ▁. Test: pytest tests/cloud/test_token_bytes.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from tokenizers import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def token_bytes(tokenizer: Tokenizer, control: frozenset[int] = frozenset()) -> Callable[[int], bytes]:
    """Return a function from a token's id to its bytes; special tokens, and those of `control`, have none."""
    special = control | {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    steps = list(_steps(json.loads(tokenizer.decoder.__getstate__()) if tokenizer.decoder else {}))
    kinds = {step["type"] for step in steps}
    replaced = [(step["pattern"]["String"], step["content"]) for step in steps if _replaces(step)]
    replaced += [(step.get("replacement", "▁"), " ") for step in steps if step["type"] == "Metaspace"]
    letters = byte_letters() if "ByteLevel" in kinds else {}

    def of(token: int) -> bytes:
        piece = tokenizer.id_to_token(token)
        if token in special or piece is None:
            return b""
        if letters:
            return b"".join(bytes([letters[c]]) if c in letters else c.encode() for c in piece)
        byte = _BYTE.fullmatch(piece) if "ByteFallback" in kinds else None
        if byte:
            return bytes([int(byte[1], 16)])
        if not replaced:
            return str(tokenizer.decode([token])).encode()
        for old, new in replaced:
            piece = piece.replace(old, new)
        return piece.encode()

    return of


def byte_letters() -> dict[str, int]:
    """Return the byte of each letter of the byte-level alphabet: those that can be printed stand for themselves."""
    printed = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _steps(decoder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The steps of a decoder, one after the other."""
    if decoder.get("type") == "Sequence":
        for step in decoder["decoders"]:
            yield from _steps(step)
    elif decoder:
        yield decoder


def _replaces(step: dict[str, Any]) -> bool:
    return step["type"] == "Replace" and "String" in step["pattern"]
