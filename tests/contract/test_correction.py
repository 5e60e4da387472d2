"""Corrections: how they are merged, packed, checked and applied; mixtures against the formula."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from sideplug.contract.correction import (
    Correction,
    Mixture,
    apply_delta,
    check_merge,
    check_shapes,
    mix,
    mixed_logp,
    mixture_of,
    pack_corrections,
)
from sideplug.contract.errors import InputError, ProtocolError
from sideplug.contract.frames import Answer
from sideplug.contract.sampling import Sampling, choose

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, 50).astype(np.float32)
MIXTURE = Mixture(0.25, np.array([7, 3], np.int32), np.array([0.75, 0.25], np.float32))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x.astype(np.float64) - x.max())
    return e / e.sum()


def answer(corrections: list[Correction], int8: bool = True) -> Answer:
    return Answer(
        1,
        0,
        list(range(len(corrections))),
        np.zeros((len(corrections), 0), np.int32),
        **pack_corrections(corrections, 8, int8),
    )


def test_a_mixture_is_its_formula() -> None:
    want = 0.75 * softmax(LOGITS)
    want[[7, 3]] += 0.25 * MIXTURE.weights
    mixed = mix(LOGITS, MIXTURE)
    np.testing.assert_allclose(softmax(mixed), want, rtol=1e-5)
    for target in (3, 9):
        logp = float(np.log(softmax(LOGITS)[target]))
        assert mixed_logp(logp, target, MIXTURE) == pytest.approx(np.log(want[target]), rel=1e-5)
    assert mix(LOGITS, None) is LOGITS
    assert mixed_logp(-1.5, 3, None) == -1.5


def test_a_mixture_alone_says_its_tokens() -> None:
    """λ = 1 leaves nothing of the base, under every way of choosing."""
    alone = mix(LOGITS, Mixture(1.0, np.array([11], np.int32), np.ones(1, np.float32)))
    for sampling in (Sampling(), Sampling(1.0, seed=3), Sampling(0.7, top_k=5, top_p=0.9), Sampling(2.0, top_p=0.5)):
        assert choose(alone, sampling, 4) == 11


def test_a_small_mixture_changes_little() -> None:
    """Other tokens keep their logits but for log(1 − λ), so that the repetition penalty sees the same scale."""
    mixed = mix(LOGITS, Mixture(1e-6, np.array([11], np.int32), np.ones(1, np.float32)))
    np.testing.assert_allclose(np.delete(mixed, 11), np.delete(LOGITS, 11), atol=1e-5)


@pytest.mark.parametrize("int8", [True, False])
def test_packed_and_unpacked(int8: bool) -> None:
    deltas = RNG.normal(size=(3, 8)).astype(np.float32)
    corrections = [Correction(deltas[0]), Correction(None, MIXTURE), Correction(deltas[2], MIXTURE)]
    frame = answer(corrections, int8)
    check_shapes(frame, 3, 8, 50, max_pairs=64)
    z = RNG.normal(size=(3, 8)).astype(np.float32)
    corrected = apply_delta(z, frame, "add")
    np.testing.assert_allclose(corrected[[0, 2]], z[[0, 2]] + deltas[[0, 2]], atol=0.03)
    np.testing.assert_array_equal(corrected[1], z[1])
    np.testing.assert_array_equal(apply_delta(z[[2]], frame, "add", rows=[2]), corrected[[2]])
    assert mixture_of(frame, 0) is None
    back = mixture_of(frame, 2)
    assert back is not None
    assert (back.weight, back.ids.tolist(), back.weights.tolist()) == (0.25, [7, 3], [0.75, 0.25])


def test_neither_leaves_everything() -> None:
    frame = answer([Correction(), Correction()])
    assert (frame.delta, frame.mix) == (None, None)
    check_shapes(frame, 2, 8, 50, max_pairs=0)
    z = RNG.normal(size=(2, 8)).astype(np.float32)
    assert apply_delta(z, frame, "replace") is z


F, N = np.float32, np.int32
REFUSED: dict[str, dict[str, Any]] = {
    "another size": {"delta": np.zeros((2, 8), np.int8)},
    "another type": {"delta": np.zeros((1, 8), F)},
    "no scales": {"scales": None},
    "scales of another size": {"scales": np.zeros(2, F)},
    "a mixture without ids": {"mix_ids": None},
    "λ above 1": {"mix": np.array([1.5], F)},
    "λ that is no number": {"mix": np.array([np.nan], F)},
    "too many pairs": {"mix_ids": np.zeros((1, 65), N), "mix_weights": np.zeros((1, 65), F)},
    "an id past the vocabulary": {"mix_ids": np.array([[7, 50]], N)},
    "an id twice": {"mix_ids": np.array([[7, 7]], N)},
    "a negative weight": {"mix_weights": np.array([[1.5, -0.5]], F)},
    "an infinite weight": {"mix_weights": np.array([[np.inf, 0]], F)},
    "weights that do not sum to 1": {"mix_weights": np.array([[0.5, 0.25]], F)},
    "weights as another type": {"mix_weights": np.array([[0.75, 0.25]], np.float16)},
}


@pytest.mark.parametrize("changed", REFUSED.values(), ids=REFUSED.keys())
def test_refused(changed: dict[str, Any]) -> None:
    frame = answer([Correction(np.ones(8, F), MIXTURE)])
    check_shapes(frame, 1, 8, 50, max_pairs=64)
    with pytest.raises(ProtocolError):
        check_shapes(dataclasses.replace(frame, **changed), 1, 8, 50, max_pairs=64)


def test_a_session_may_ask_for_fewer_pairs() -> None:
    with pytest.raises(ProtocolError, match="at most 1 pairs"):
        check_shapes(answer([Correction(None, MIXTURE)]), 1, 8, 50, max_pairs=1)


def test_mixtures_are_asked_for() -> None:
    with pytest.raises(ProtocolError, match="did not ask for that capability"):
        check_shapes(answer([Correction(None, MIXTURE)]), 1, 8, 50, max_pairs=0)


@pytest.mark.parametrize("value", [np.inf, np.nan, 1e7])
def test_a_correction_must_be_finite(value: float) -> None:
    frame = Answer(1, 0, [0], np.zeros((1, 0), N), delta=np.ones((1, 8), np.int8), scales=np.array([value], F))
    with pytest.raises(ProtocolError, match="must be finite"):
        apply_delta(np.zeros((1, 8), F), frame, "add")


def test_merges() -> None:
    assert check_merge("add") == "add"
    with pytest.raises(InputError, match="must be add or replace, got 'x'"):
        check_merge("x")
