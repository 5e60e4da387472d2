"""What is put out of sight before anything is learnt or sent, and what stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from sideplug.contract.errors import InputError
from sideplug.readers import read
from sideplug.readers.redact import Redactor, check_kinds

TEXTS = {
    "ring 0171 234 5678 or +44 (0)20 7946-0958.": "ring [number] or [number].",
    "IBAN DE89 3704 0044 0532 0130 00 is mine": "IBAN [number] is mine",
    "born 12.03.1984, row 2, page 341, in 1984": "born [number], row 2, page 341, in 1984",
    "write to ines.prado+garden@example.co.uk today": "write to [address] today",
    "see https://example.org/row/2?x=1, or www.example.org": "see [address] or [address]",
    "Ines's row is Rui's, not Ruipé's, and prado is dry": "[name]'s row is [name]'s, not Ruipé's, and [name] is dry",
    "It cost 1,250 euros and 12.50": "It cost 1,250 euros and 12.50",
}


@pytest.mark.parametrize(("text", "left"), TEXTS.items())
def test_what_is_found(tmp_path: Path, text: str, left: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    (example,) = read(tmp_path)
    redactor = Redactor(check_kinds(["numbers", "addresses", "names"]), ["Ines Prado <ines@example.org>", "Rui"])
    assert redactor.redact(example).reply == left


def test_in_a_chat_its_people_are_meant_and_what_was_found_is_told(tmp_path: Path) -> None:
    lines = ["Anna Berg: Bo, ring me: 0171 2345678", "Bo Lund: I will, Anna", "Bo Lund: or mail anna@example.org"]
    (tmp_path / "a.txt").write_text("".join(f"13.11.23, 09:1{n} - {line}\n" for n, line in enumerate(lines)))
    told: list[str] = []
    (example,) = read(tmp_path, me="Bo", redact=["names", "numbers", "addresses"], tell=told.append)
    assert (example.prompt.messages or ())[0]["content"] == "[name], ring me: [number]"
    assert example.reply == "I will, [name]\nor mail [address]"
    assert "redacted addresses: 1, such as anna@example.org" in told
    assert "redacted numbers: 1, such as 0171 2345678" in told
    assert "redacted names: 2, such as Bo, Anna" in told


def test_an_unknown_kind(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Row two is dry.")
    with pytest.raises(InputError, match="--redact must be some of numbers, addresses, names, got 'phones'"):
        read(tmp_path, redact=["phones"])
