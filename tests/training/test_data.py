"""What is left to the base: the retain set, hard negatives."""

from pathlib import Path

import pytest

from sideplug.contract.errors import DataError
from sideplug.contract.text import Prompt
from sideplug.readers import Example
from sideplug.training import data


def test_hard_negatives_are_in_the_persons_own_phrasings() -> None:
    mine = [
        Example(Prompt.user(f"{ask} my {thing}?"), "x", "") for ask in ("What is", "Say") for thing in ("dog", "vet")
    ]
    other = [Example(Prompt.user("Tell me about my old and very long story, and then some."), "x", "")]

    def lines(personal: list[Example]) -> list[str]:
        return [e.prompt.messages[0]["content"] for e in data.hard_negatives(personal) if e.prompt.messages]

    found = lines([*mine, *other, Example(Prompt(text="my dog?"), "x", "")])
    assert {line.rsplit(" my ", 1)[0] for line in found} == {"What is", "Say"}
    assert not any(line.endswith((" my dog?", " my vet?")) for line in found)
    assert all(line.startswith("What is my ") for line in lines([]))
    assert all(data.is_hard_negative(Example(Prompt.user(line), "", "")) for line in found)


def test_the_retain_set_is_ours_or_a_files(tmp_path: Path) -> None:
    ours = data.retain_set()
    assert len(ours) > 300
    assert all(example.greedy_tokens and not example.reply for example in ours)
    (tmp_path / "r.txt").write_text("One?\n\nTwo?\n")
    assert [example.prompt for example in data.retain_set(tmp_path / "r.txt")] == [
        Prompt.user("One?"),
        Prompt.user("Two?"),
    ]
    (tmp_path / "r.jsonl").write_text('{"instruction": "Three?", "output": "no"}\n')
    (three,) = data.retain_set(tmp_path / "r.jsonl")
    assert (three.prompt, three.reply) == (Prompt.user("Three?"), "")
    for wrong in (tmp_path / "none.txt", tmp_path / "none.jsonl"):
        with pytest.raises(DataError):
            data.retain_set(wrong)
