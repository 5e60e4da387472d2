"""The index: candidates by words and by vectors, held against naive computations, and in step with its store."""

from __future__ import annotations

import contextlib
import math
import random
import zlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from sideplug.memory.index import CANDIDATES, Candidate, Index
from sideplug.memory.part import Memory
from sideplug.memory.store import Entry, Store
from sideplug.memory.words import stem, words

ASKED = {
    "Where was that mill again?": Entry("Where is the mill?", "By the river."),
    "WHO KEEPS BEES": Entry("Who keeps the bees?", "Anna keeps them."),
    "Wie heisst Jorgs Kater, bitte?": Entry("Wie heißt der Kater von Jörg?", "Er heißt Möhrchen."),
    "jorg geburtstage?": Entry("Wann hat Jörg Geburtstag?", "Am 3. März."),
    "猫の名前を教えて": Entry("猫の名前は何ですか", "たまです。"),
    "犬の散歩はいつ？": Entry("犬の散歩は何時ですか", "六時です。"),
    "बिल्ली का नाम बताओ": Entry("मेरी बिल्ली का नाम क्या है?", "उसका नाम मोती है।"),
    "जन्मदिन कब?": Entry("मेरा जन्मदिन कब है?", "पाँच मई को।"),
    "Whom do I ask about a ladder?": Entry("", "The roof leaks above the stairs. Ask Jonas about ladders!"),
}
TOLD = list(ASKED.values())


class FakeEncoder:
    """Unit vectors: those that were put, else random ones by the text."""

    def __init__(self) -> None:
        self.known, self.texts = dict[str, np.ndarray](), list[str]()

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        self.texts += texts
        return np.stack([self.vector(text) for text in texts])

    def vector(self, text: str) -> np.ndarray:
        if text not in self.known:
            vector = np.random.default_rng(zlib.crc32(text.encode())).normal(size=128)
            self.known[text] = (vector / np.linalg.norm(vector)).astype(np.float32)
        return self.known[text]

    def at_cosine(self, text: str, cosine: float) -> np.ndarray:
        mine, other = self.vector(text), self.vector(f"beside {text} {cosine}")
        away = other - (other @ mine) * mine
        return np.asarray(cosine * mine + math.sqrt(1 - cosine**2) * away / np.linalg.norm(away), np.float32)


def a_store(entries: Sequence[Entry]) -> Store:
    store = Store()
    store.add(entries)
    return store


def numbers_of(found: Sequence[Candidate]) -> list[int]:
    return [each.passage.number for each in found]


def stems(text: str) -> set[str]:
    return {stem(word) for word in words(text)}


@pytest.mark.parametrize(("question", "number"), list(zip(ASKED, range(1, 10), strict=True)))
def test_by_words_alone_the_right_one_is_first(question: str, number: int) -> None:
    first, *_ = Index(a_store(TOLD)).candidates(question)
    assert (first.passage.number, first.near) == (number, 0.0)


@pytest.mark.parametrize("embed", [None, FakeEncoder()])
def test_the_shares_are_those_of_a_naive_computation(embed: FakeEncoder | None) -> None:
    store = a_store([*TOLD, *(Entry(f"Where is thing {n}?", f"By the mill {n % 3}.") for n in range(9))])
    question = "Where is the old mill by the river, Anna?"
    has = {each.id: stems(f"{each.asked} {each.said}") for each in store.passages(store.ids().tolist())}
    within = Counter(word for some in has.values() for word in some)

    def weight(some: set[str]) -> float:
        return sum(math.log(1 + len(has) / (within[word] or 1)) for word in some)

    found, asked = Index(store, "fake", embed).candidates(question, count=99), stems(question)
    assert {1, 2, 9, 10, 18} <= set(numbers_of(found))
    for each in found:
        mine, text = has[each.passage.id], f"{each.passage.asked} {each.passage.said}".strip()
        about = stems(each.passage.asked) if each.passage.asked else mine
        assert each.found == pytest.approx(weight(asked & mine) / weight(asked))
        assert each.covered == pytest.approx(weight(asked & about) / weight(about))
        assert each.near == pytest.approx(embed.vector(text) @ embed.vector(question) if embed else 0, abs=0.02)
        assert each.score == each.near + 0.5 * each.found
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
    assert numbers_of(Index(store, "fake", embed).candidates(question, count=3)) == numbers_of(found)[:3]


@pytest.mark.parametrize(("size", "cosines"), [(2000, (0.9, 0.84, 0.78, 0.72, 0.66)), (64, ())])
def test_the_nearest_are_those_of_a_full_scan(size: int, cosines: tuple[float, ...]) -> None:
    embed, texts, questions = FakeEncoder(), [f"passage{n}" for n in range(size)], [f"query{n}" for n in range(30)]
    places = iter(random.Random(0).sample(texts, len(questions) * len(cosines)))
    for question in questions:
        embed.known |= {next(places): embed.at_cosine(question, cosine) for cosine in cosines}
    index = Index(a_store([Entry("", text) for text in texts]), "fake", embed)
    whole_NE = np.rint(np.stack([embed.vector(text) for text in texts]) * 127)
    for question in questions:
        scan_N = whole_NE @ embed.vector(question) / 127
        best = np.argsort(-scan_N)[: len(cosines) or CANDIDATES]
        found = index.candidates(question)
        assert numbers_of(found)[: len(best)] == (best + 1).tolist()
        np.testing.assert_allclose([each.near for each in found], scan_N[np.array(numbers_of(found)) - 1], atol=1e-5)
        assert (len(found), found[0].found) == (CANDIDATES, 0.0)


@pytest.mark.parametrize("embed", [None, FakeEncoder()])
def test_it_follows_its_store(embed: FakeEncoder | None) -> None:
    store, question = a_store(TOLD[:2]), "Where is the mill?"
    index = Index(store, "fake", embed)

    def found() -> list[str]:
        candidates = index.candidates(question)
        assert candidates == Index(Store(store.to_bytes()), "fake", embed).candidates(question), "as a new one finds"
        return [each.passage.said for each in candidates]

    if embed:
        embed.known["cloudy"] = embed.at_cosine(question, 0.3)
    assert found()[0] == "By the river."
    store.add([Entry("", "Is where the mill? Rain."), Entry("", "cloudy")])
    store.edit(1, "What is a barn?", "Hay.")
    assert found()[0] == "Is where the mill?\nRain."
    assert ("cloudy" in found()) == bool(embed)
    store.replace(3, 1)
    assert "Is where the mill?\nRain." not in found()
    store.restore(3)
    assert found()[0] == "Is where the mill?\nRain."
    store.forget([3, 1, 4])
    assert found() == ["Anna keeps them."]


def test_vectors_are_made_once() -> None:
    embed, done = FakeEncoder(), list[tuple[int, int]]()
    store = a_store([Entry(f"q{n}", "a") for n in range(130)])
    Index(store, "fake", embed).fill(lambda *each: done.append(each))
    assert (done, embed.texts) == ([(64, 130), (128, 130), (130, 130)], [f"q{n} a" for n in range(130)])
    store.add([Entry("", "more")])
    Index(Store(store.to_bytes()), "fake", embed).candidates("which")
    assert embed.texts[130:] == ["more", "which"]
    again = list[tuple[int, int]]()
    Index(store, "another", embed).fill(lambda *each: again.append(each))
    assert again == [(64, 131), (128, 131), (131, 131)], "of what is left to make, another encoder's too"
    assert (len(embed.texts), store.missing_vectors(), store.setting("encoder")) == (132 + 131, 0, "another")


def test_the_rarest_words_are_looked_for() -> None:
    common = " ".join(f"{n}{n}{n}" for n in range(50))
    index = Index(a_store([Entry("", f"{common} {n}zebra" if n == 70 else f"{common} {n}") for n in range(99)]))
    assert numbers_of(index.candidates(f"{common} 70zebra"))[0] == 71


def test_nothing_is_found() -> None:
    assert Index(Store()).candidates("mill") == Index(Store(), "fake", FakeEncoder()).candidates("mill") == []
    assert Index(a_store(TOLD)).candidates("") == Index(a_store(TOLD)).candidates("?! zebra") == []


def test_it_follows_a_change_that_failed() -> None:
    store = a_store(TOLD[:2])
    index = Index(store)
    with contextlib.suppress(ZeroDivisionError), store.change():
        store.add(TOLD[2:])
        index.candidates("Where is the mill?")
        raise ZeroDivisionError
    assert index.candidates("the zebra")[0].found == Index(store).candidates("the zebra")[0].found


@pytest.mark.parametrize("seed", range(3))
def test_frequencies_are_those_of_a_recount(seed: int) -> None:
    rng, store, seen = random.Random(seed), Store(), set[str]()
    for step in range(300):
        text = " ".join(f"{rng.choice('abcd') * rng.randrange(1, 7)} x{step}." for _ in range(rng.randrange(1, 60)))
        entry = Entry(text[: rng.choice([0, 9])], text)
        seen |= stems(f"{entry.question} {text}")
        numbers = [each.number for each in store.entries()] or store.add([entry])
        (number, by), work = rng.choices(numbers, k=2), rng.choice("aaaerbf")
        if work == "e":
            store.edit(number, entry.question, entry.reply)
        elif work == "r":
            store.replace(number, by)
        elif work == "b":
            store.restore(number)
        elif work == "a":
            store.add([entry])
        else:
            store.forget([number])
    holding = [two for each in store.entries() if not each.replaced_by for two in each.passages()]
    assert sorted((each.asked, each.said) for each in store.passages(store.ids().tolist())) == sorted(holding)
    recount = Counter(word for two in holding for word in stems(" ".join(two)))
    assert store.frequency(seen) == recount
    assert {word: len(store.by_words([word], 10_000)) for word in recount} == recount
    assert 10 < len(recount) < len(seen), "something was forgotten"


def test_a_name_with_an_initial_is_found_among_many_of_that_name() -> None:
    """People of two names, told apart by an initial alone, or by none."""
    memory = Memory()
    names = [f"{name}{'' if not letter else f' {letter}.'}" for name in ("Anna", "Bo") for letter in ["", *"BCDMST"]]
    told = [Entry(f"What is {name}'s {thing}?", f"{name}: {thing}.") for name in names for thing in ("team", "car")]
    memory.store.add(entry.check() for entry in told)
    for entry in told:
        recall = memory.recall(entry.question.replace("What is", "Tell me, what may it be:"))
        assert recall is not None
        if "." in entry.question:
            assert recall.entry.reply == entry.reply
    recall = memory.recall("What is Anna U.'s team?")
    assert recall is None or not memory.says("What is Anna U.'s team?", recall)
