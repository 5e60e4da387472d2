"""Passages of any script: short enough, whole, and as the person wrote them."""

from __future__ import annotations

import textwrap

import pytest

from sideplug.readers.passages import PASSAGE_BYTES, joined, passages_of

SENTENCES = {  # a sentence of each script, with its own end
    "English": "The garden has three rows and a bench, and one of them is dry today. ",
    "Russian": "Сегодня утром я полил три грядки в саду, а одна из них всё ещё сухая. ",
    "Chinese": "今天早上给花园里的三排植物浇水。",
    "Japanese": "今朝、庭の三列に水をやりました！",
    "Hindi": "आज सुबह मैंने बगीचे की तीन क्यारियों को पानी दिया। ",
    "Arabic": "هل سقيت الصفوف الثلاثة في الحديقة هذا الصباح؟ ",
    "Urdu": "آج صبح میں نے باغ کی تین قطاروں کو پانی دیا۔ ",
    "Armenian": "Այսօր առավոտյան ջրեցի այգու երեք շարքերը։ ".replace("։", "\u0589"),
    "Amharic": "ዛሬ ጠዋት የአትክልቱን ሦስት ረድፎች አጠጣሁ። ",
    "Burmese": "ဒီမနက် ဥယျာဉ်ထဲက အပင်တွေကို ရေလောင်းခဲ့တယ်။",
    "Khmer": "ព្រឹកនេះខ្ញុំបានស្រោចទឹកសួនច្បារ។",
    "Tibetan": "དེ་རིང་ཞོགས་པ་སྡུམ་རྭའི་ནང་ཆུ་བླུགས་པ་ཡིན།",
    "quoted": "„Row two is dry!“ she said to him … «Again?» And then she left the garden. ",
}


def texts(text: str) -> list[str]:
    return [passage for _, passage in passages_of(text)]


@pytest.mark.parametrize("name", SENTENCES)
def test_every_script_is_cut_between_sentences(name: str) -> None:
    sentence = SENTENCES[name]
    found = texts(sentence * 60)
    assert all(len(passage.encode()) <= PASSAGE_BYTES for passage in found)
    assert len(found) <= 60 * len(sentence.encode()) / PASSAGE_BYTES * 1.5 + 1, "they are filled"
    ends = {passage.rstrip()[-1] for passage in found[:-1]}
    assert ends <= set(".!?…。！？।؟۔\u0589።။។།“»"), "each ends with a sentence"
    assert "".join("".join(found).split()) == "".join((sentence * 60).split()), "nothing is lost"


@pytest.mark.parametrize(
    "text",
    [
        "ทุกเช้าฉันรดน้ำต้นไม้สามแถวในสวน " * 50,
        "x" * 5000,
        "é" * 3000,
        "e\u0301" * 3000,
        "字" * 3000,
        "word " * 1000,
        "\n".join(f"- row {i}" for i in range(500)),
        "a\n\n\n\n" * 700,
        "😀‍" * 900,
    ],
    ids=[
        "Thai",
        "no spaces",
        "accents",
        "combining accents",
        "no ends",
        "no sentences",
        "list",
        "blank lines",
        "joiners",
    ],
)
def test_what_has_no_sentences_is_cut_too(text: str) -> None:
    found = texts(text)
    assert all(len(passage.encode()) <= PASSAGE_BYTES + 3 for passage in found)
    assert len(found) > 2
    assert "".join("".join(found).split()) == "".join(text.split())
    assert not any(passage.startswith(("\u0301", "\u200d")) for passage in found), "a mark stays with its letter"


KEPT = {
    "a list": "# Garden\n- row one\n- row two\n    - dry\n1. water\n2. wait",
    "a poem": "The hose is long,\nthe row is dry,\n    the bench is wet,\nand so am I.",
    "code": "```python\ndef water(row):\n    if row.dry:\n        hose(row)\n\n    return row\n```",
    "indented code": "    def water(row):\n        hose(row)",
    "a table": "| row | state |\n|---|---|\n| one | dry |",
    "a quotation": "> The row is dry, as it was on every day of that long summer, and nobody\n> came with the hose.",
    "hard breaks": "The row is dry, as it was on every day of that long and hot summer, and no  \nother line.",
    "an address": "Ines Prado\nRua do Moinho 4\n4000-001 Porto",
    "tabs": "row\tstate\none\tdry",
    "code in a fence that looks like prose": "```\n"
    + textwrap.fill("the row is dry and the hose is long " * 8, 70)
    + "\n```",
}


@pytest.mark.parametrize("text", KEPT.values(), ids=KEPT.keys())
def test_line_breaks_and_indentation_are_the_persons(text: str) -> None:
    assert texts(text) == [text]
    assert texts(f"\n\n{text}\n\n") == [text]


@pytest.mark.parametrize("width", [50, 72, 79, 100])
def test_wrapped_prose_is_joined(width: int) -> None:
    prose = "The garden has three rows and a bench, and one of them is dry today although it rained. " * 6
    wrapped = textwrap.fill(prose, width)
    assert joined(f"{wrapped}\n\nAnd more.\n") == f"{prose.strip()}\n\nAnd more.\n"
    assert len(joined(wrapped)) == len(wrapped)


def test_paragraphs_stay_whole_where_they_fit() -> None:
    paragraphs = [f"Paragraph {i}. " + "It has words. " * 20 for i in range(9)]
    found = texts("\n\n".join(paragraphs))
    assert found[0].rstrip() == "\n\n".join(paragraphs[:3]).rstrip()
    assert found[0] != found[0].rstrip(), "the text goes on behind it"
    assert found[-1] == found[-1].rstrip()
    assert all(passage.startswith("Paragraph") for passage in found)


def test_offsets_are_of_the_text() -> None:
    text = "\n\n" + "\n\n".join(f"    Line {i}.\n" + "Words. " * 100 for i in range(5))
    for at, passage in passages_of(text):
        assert text[at : at + len(passage)] == passage
