"""The text of a single token, whose bytes need not be whole characters: how it is told, and what its bytes are.

A token that is part of a character (of an emoji, say) has no text. It is written as `bytes:` and its bytes, like
`bytes:\\xf0\\x9f`. Test: pytest tests/contract/test_token_text.py
"""

from __future__ import annotations

import re

_WRITTEN = re.compile(r"bytes:(?:\\x[0-9a-f]{2})+")


def text_of(token: bytes) -> str:
    """Return the text of a token's bytes; those that are no whole characters are written as numbers.

    >>> text_of("é".encode()), text_of("é".encode()[:1])
    ('é', 'bytes:\\\\xc3')
    """
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def bytes_of(text: str) -> bytes:
    """Return the bytes of the token that `text_of` wrote."""
    return bytes.fromhex(text[6:].replace("\\x", "")) if _WRITTEN.fullmatch(text) else text.encode()
