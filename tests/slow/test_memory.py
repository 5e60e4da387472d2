"""The memory with its real encoder: a set of people's own words, which its threshold was chosen on, and languages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from sideplug.memory.encoder import Encoder
from sideplug.memory.part import Memory
from sideplug.memory.weights import OFF, encoder, fetch_encoder

pytest.importorskip("psutil", reason="pip install 'sideplug[bench]'")
from sideplug.bench.parts import memory as part

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def real() -> Iterator[Encoder]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(OFF, raising=False)
        fetch_encoder(print)
        found = encoder()
        assert found is not None
        yield found


def test_in_own_words(real: Encoder) -> None:
    """Bounds below what was measured, so that a change that loses much is seen: see docs/LOG.md for the figures."""
    asked, spoken, right = Counter[str](), Counter[str](), Counter[str]()
    for person in part.own_words("tune"):
        memory = Memory()
        memory.store.add(person.entries)
        for kind, pairs in part._kinds(person):
            for question, answer in pairs:
                asked[kind] += 1
                recall = memory.recall(question)
                if recall is not None and memory.says(question, recall):
                    spoken[kind] += 1
                    right[kind] += part.holds(recall.text, answer) if answer else 0
    print(asked, spoken, right)
    assert right["told"] >= 0.5 * asked["told"]
    assert spoken["told"] - right["told"] <= 0.03 * asked["told"]
    assert spoken["untold"] + spoken["unnoted"] <= 0.03 * (asked["untold"] + asked["unnoted"])
    assert spoken["general"] <= 0.04 * asked["general"]


@pytest.mark.parametrize(
    ("text", "is_read"),
    [
        ("what's the code for the med room on ward 4", True),
        ("When does Priyanka's bus leave?", True),
        ("Wann fährt der Bus von Tante Hedwig ab?", False),
        ("¿Dónde guardé la llave de repuesto del garaje?", False),
        ("玄関の暗証番号は？", False),
        ("Где лежит запасной ключ?", False),
        ("", True),
    ],
)
def test_what_it_reads(real: Encoder, text: str, is_read: bool) -> None:
    assert real.reads(text) == is_read
