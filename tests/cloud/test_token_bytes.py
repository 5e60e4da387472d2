"""The bytes of single tokens, of byte-level tokenizers and of ones with a piece for each byte."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models

from sideplug.cloud.token_bytes import byte_letters, token_bytes
from sideplug.cloud.tokenizer import Tokenizer as OurTokenizer

TEXTS = ["Is it far? nails", "Grüße, 你好\n\tx", "🧑‍🚀 and 😀!"]


@pytest.mark.parametrize("text", TEXTS)
def test_byte_level(tiny: Path, text: str) -> None:
    fast = Tokenizer.from_file(str(tiny / "tokenizer.json"))
    of = token_bytes(fast)
    ids = fast.encode(text, add_special_tokens=False).ids
    assert b"".join(map(of, ids)) == text.encode()


@pytest.mark.parametrize("text", TEXTS)
def test_a_piece_for_each_byte(text: str) -> None:
    """As SentencePiece's tokenizers are: ▁ is a space, what has no piece is bytes."""
    pieces = ["<s>", "▁", "▁far", "n", *(f"<0x{byte:02X}>" for byte in range(256))]
    fast = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True, unk_token="<s>"))
    fast.add_special_tokens(["<s>"])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    fast.decoder = decoders.Sequence(steps)
    of = token_bytes(fast)
    assert [of(fast.token_to_id(piece)) for piece in ("<s>", "▁far", "n", "<0xF0>")] == [b"", b" far", b"n", b"\xf0"]
    ids = fast.encode(text.replace(" ", "▁")).ids
    assert b"".join(map(of, ids)) == text.encode()


def test_the_alphabet_has_a_letter_for_each_byte() -> None:
    assert sorted(byte_letters().values()) == list(range(256))
    assert byte_letters()["Ġ"] == ord(" ")


def test_the_first_token_of_a_reply(tiny: Path) -> None:
    """It stands as the reply's text begins."""
    tokenizer = OurTokenizer(tiny)
    for token in range(300):
        text = tokenizer.token_text(token, first=True)
        assert text == tokenizer.token_text(token) or text == tokenizer.decode([token])
    special = tokenizer.stop_ids
    assert {tokenizer.token_text(token) for token in special} == {""}
