"""The verifier: how questions stand beside passages, what its score is made of, and words alone."""

from __future__ import annotations

import numpy as np
import pytest

from sideplug.memory.encoder import FIRST, LAST, LINEAR, WIDTH, Encoder, gelu, quantize
from sideplug.memory.index import Candidate
from sideplug.memory.store import Passage
from sideplug.memory.verifier import PAIR_TOKENS, SAID, Verifier, features, pairs
from tests.memory.test_encoder import PIECES, weights

MILL = Passage(1, 1, "Where is the mill?", "the cafe")
NOTE = Passage(2, 2, "", "the miller is the cafe\nthe mill is a cafe?")
FOUND = [Candidate(MILL, 0.7, 0.5, 0.25), Candidate(NOTE, 0.4, 0.3, 0.1)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    path = tmp_path_factory.mktemp("encoder") / "e"
    path.write_bytes(quantize(weights(), "\n".join(PIECES)))
    return Encoder.load(path)


def random_verifier() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    shapes = {"of": (3, WIDTH), "inner.weight": (16, 2 * WIDTH), "inner.bias": (16,), "outer.weight": (1, 16)}
    shapes |= {
        "outer.bias": (1,),
        "features.weight": (1, 3),
        f"{LINEAR[3]}.a": (2, WIDTH),
        f"{LINEAR[3]}.b": (WIDTH, 2),
    }
    found = {name: rng.normal(0, 0.2, shape).astype(np.float16) for name, shape in shapes.items()}
    return found | {"words": np.array([4.0, 3.0, -2.0, -4.0], np.float32)}


def test_a_question_stands_beside_what_was_asked_and_said(encoder: Encoder) -> None:
    read = pairs(encoder, [("mill?", "Where is the mill?", ["the cafe"]), ("mill", "", ["a cafe", "the mill"])])
    assert [PIECES[each] for each in read.ids_BT[0]] == (
        ["[CLS]", "mill", "[SEP]", "where", "is", "the", "mill", "the", "cafe", "[SEP]"]
    )
    assert read.of_BT[0].tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2, SAID]
    assert read.spans == [(0, 7, 9), (1, 3, 5), (1, 5, 7)]
    assert read.mask_BT.sum(1).tolist() == [10, 8]


def test_long_texts_are_cut_and_every_part_has_a_token(encoder: Encoder) -> None:
    read = pairs(encoder, [("mill " * 200, "where " * 200, ["the " * 200, "a " * 200, "is"])])
    assert read.ids_BT.shape == (1, PAIR_TOKENS)
    assert (read.ids_BT[0, 0], read.ids_BT[0, -1]) == (FIRST, LAST)
    assert all(0 < start < stop <= PAIR_TOKENS for _, start, stop in read.spans)
    assert len(read.spans) == 3


def test_a_score_is_that_of_its_formula(encoder: Encoder) -> None:
    w = random_verifier()
    got = Verifier(encoder, w).scores("where is the mill", FOUND)
    assert [len(each) for each in got] == [1, 2]
    change = {LINEAR[3]: (w[f"{LINEAR[3]}.a"].astype(np.float32), w[f"{LINEAR[3]}.b"].astype(np.float32))}
    for candidate, scores in zip(FOUND, got, strict=True):  # one by one, without padding
        passage = candidate.passage
        read = pairs(encoder, [("where is the mill", passage.asked, passage.parts)])
        rows = encoder.run(read.ids_BT, read.mask_BT, change, w["of"].astype(np.float32)[read.of_BT])[0]
        for (_, start, stop), score in zip(read.spans, scores, strict=True):
            hidden = np.concatenate([rows[0], rows[start:stop].mean(0)])
            inner = gelu(hidden @ w["inner.weight"].astype(np.float32).T + w["inner.bias"])
            wanted = inner @ w["outer.weight"].astype(np.float32)[0] + w["outer.bias"].astype(np.float32)[0]
            wanted += np.dot(features(candidate), w["features.weight"].astype(np.float32)[0])
            assert score == pytest.approx(float(wanted), abs=2e-3)


def test_words_alone() -> None:
    verifier = Verifier(None, random_verifier())
    (one,), two = verifier.scores("Is the mill a cafe?", FOUND)
    assert one == pytest.approx(4 * 0.5 + 3 * 0.25 - 2 * 0.5 * 0.25 - 4)
    note = 4 * 0.3 + 3 * 0.1 - 2 * 0.3 * 0.1 - 4
    assert two == [pytest.approx(note - 2 * 2), pytest.approx(note)]  # two words fewer than the other sentence
    assert verifier.scores("Is the mill a cafe?", []) == []


def test_what_ships_has_all_that_is_computed_with() -> None:
    shipped = Verifier(None)._w
    assert shipped["words"].shape == (4,)
    assert {f"{name}.{part}" for name in LINEAR for part in "ab"} <= set(shipped)
    assert shipped["of"].shape == (3, WIDTH)
