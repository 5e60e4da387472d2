"""The text of a token whose bytes are no whole character."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sideplug.contract.token_text import bytes_of, text_of


@pytest.mark.parametrize(
    ("token", "text"),
    [
        (b"", ""),
        (b" far", " far"),
        ("é".encode(), "é"),
        (b"\xf0\x9f\x98", r"bytes:\xf0\x9f\x98"),
        (b" \xc3", r"bytes:\x20\xc3"),
    ],
)
def test_text(token: bytes, text: str) -> None:
    assert text_of(token) == text
    assert bytes_of(text) == token


@given(st.binary(max_size=8))
def test_bytes_come_back(token: bytes) -> None:
    assert bytes_of(text_of(token)) == token


def test_words_that_look_alike_are_words() -> None:
    assert bytes_of("bytes: 5") == b"bytes: 5"
    assert bytes_of(r"bytes:\xg0") == rb"bytes:\xg0"
