"""Words and sentences of several scripts."""

from __future__ import annotations

import pytest

from sideplug.memory.words import initials, is_of_another, normal, sentences, stem, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Mum's café, at 14:30", ["mum", "s", "cafe", "at", "14", "30"]),
        ("ＷｉＦｉ № 5 ﬁle", ["wifi", "no", "5", "file"]),
        ("犬の名前", ["犬の", "の名", "名前"]),
        ("コーヒーは好き", ["コー", "ーヒ", "ヒー", "ーは", "は好", "好き"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("Straße ΆΛΦΑ", ["strasse", "αλφα"]),
        ("狗", ["狗"]),
        ("a1b2-c3", ["a1b2", "c3"]),
        ("… — !", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_accents_of_other_scripts_stay() -> None:
    assert normal("ไม่") == "ไม่"
    assert normal("が") == "が"


def test_a_stem_is_the_same_for_two_forms_and_whole_for_a_number() -> None:
    assert stem("birthday") == stem("birthdays") == "birth"
    assert stem("1234567") == "1234567"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("He left! She stayed.", ["He left!", "She stayed."]),
        ("It is 3.5 km. Far?", ["It is 3.5 km.", "Far?"]),
        ("- milk\n- eggs\n\nBuy both", ["- milk", "- eggs", "Buy both"]),
        ("行く。来る！見た", ["行く。", "来る！", "見た"]),
        ("مرحبا؟ نعم۔ لا", ["مرحبا؟", "نعم۔", "لا"]),
        ("", []),
        ("\n \n", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


@pytest.mark.parametrize(
    ("question", "text", "expected"),
    [
        ("Where does Anna S. live?", "Anna B. lives in Hamar.", True),
        ("Where does Anna S. live?", "Anna's house is in Hamar.", True),
        ("Where does Anna S. live?", "Anna S lives in Hamar.", False),
        ("Where does Anna S. live?", "ANNA  S.'s house", False),
        ("Where does Anna S. live?", "Joanna lives in Hamar.", False),
        ("Where does Anna live?", "Anna S. lives in Hamar.", False),
        ("What has vitamin C.", "Oranges have vitamin C", False),
        ("Where does Åse Ø. live?", "Åse B. lives in Hamar.", True),
        ("Which is plan b.", "Plan A is the boat.", False),
    ],
)
def test_another_of_the_same_name(question: str, text: str, expected: bool) -> None:
    assert is_of_another(initials(question), text) is expected
