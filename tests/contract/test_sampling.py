"""One token from logits: greedy, coupled noise, filters."""

import numpy as np
import pytest

from sideplug.contract.errors import InputError
from sideplug.contract.frames import SamplingSpec
from sideplug.contract.sampling import Sampling, choose, gumbel, uniform

LOGITS = np.array([0.0, 2.0, 1.0, -1.0, 1.9], np.float32)


def test_greedy_takes_the_best() -> None:
    assert choose(LOGITS, Sampling(), 0) == 1


def test_noise_depends_on_seed_and_position_only() -> None:
    np.testing.assert_array_equal(uniform(1, 2, 50), uniform(1, 2, 99)[:50])
    assert not np.array_equal(uniform(1, 2, 50), uniform(1, 3, 50))
    assert not np.array_equal(uniform(1, 2, 50), uniform(2, 2, 50))


def test_frequencies_are_the_softmax() -> None:
    n = 4000
    counts = np.bincount([choose(LOGITS, Sampling(0.7, seed=5), i) for i in range(n)], minlength=5) / n
    p = np.exp(LOGITS / 0.7)
    p /= p.sum()
    assert np.abs(counts - p).max() < 4 * np.sqrt(0.25 / n)


def test_filters() -> None:
    assert {choose(LOGITS, Sampling(5.0, top_k=2), i) for i in range(200)} == {1, 4}
    assert {choose(LOGITS, Sampling(1.0, top_p=0.3), i) for i in range(50)} == {1}
    kept = {choose(LOGITS, Sampling(1.0, top_p=0.7), i) for i in range(300)}
    assert kept == {1, 4}
    assert {choose(LOGITS, Sampling(5.0, min_p=0.9), i) for i in range(200)} == {1, 4}  # exp(-0.1 / 5) is above 0.9
    assert {choose(LOGITS, Sampling(5.0, min_p=0.8), i) for i in range(200)} == {1, 2, 4}
    assert {choose(LOGITS, Sampling(5.0, top_k=2, min_p=0.8), i) for i in range(200)} == {1, 4}
    assert {choose(LOGITS, Sampling(5.0, min_p=1), i) for i in range(50)} == {1}


def test_a_filter_does_not_change_the_noise_of_what_it_keeps() -> None:
    """Coupling: where the unfiltered choice survives the filter, it stays the choice."""
    for i in range(200):
        free = choose(LOGITS, Sampling(1.5), i)
        if free in (1, 4):
            assert choose(LOGITS, Sampling(1.5, top_k=2), i) == free


def naive(logits: np.ndarray, sampling: Sampling, position: int) -> int:
    """Everything is sorted and everything gets its noise."""
    scores = logits.astype(np.float64) / sampling.temperature
    kept = np.arange(logits.size)
    if 0 < sampling.top_k < logits.size:
        kept = np.sort(np.argsort(-logits, kind="stable")[: sampling.top_k])
    order = kept[np.argsort(-scores[kept], kind="stable")]
    p = np.exp(scores - scores[kept].max())
    before = np.cumsum(p[order]) - p[order]
    kept = np.sort(order[before < sampling.top_p * p[kept].sum()]) if sampling.top_p < 1 else kept
    probability = np.exp(scores - scores[kept].max())
    kept = np.array([i for i in kept if probability[i] >= sampling.min_p * (1 - 1e-12)])
    return int(kept[np.argmax(scores[kept] + gumbel(uniform(sampling.seed, position, logits.size))[kept])])


@pytest.mark.parametrize("spread", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("size", [1, 2, 300, 5000])
def test_only_what_may_win_is_computed_and_nothing_else_changes(size: int, spread: float) -> None:
    rng = np.random.default_rng(size)
    for position in range(40):
        logits = np.round(rng.normal(0, spread, size), 1).astype(np.float32)  # rounded: many are equal
        for top_p, min_p in ((1.0, 0.0), (0.9, 0.0), (0.2, 0.0), (0.999, 0.0), (1.0, 0.3), (0.9, 0.01)):
            sampling = Sampling(0.8, 0, top_p, seed=3, min_p=min_p)
            assert choose(logits, sampling, position) == naive(logits, sampling, position)
        distinct = rng.permutation(size).astype(np.float32) * spread / size
        assert (
            choose(distinct, Sampling(1.0, 40, 0.9), position) == naive(distinct, Sampling(1.0, 40, 0.9), position)
            or not spread
        )


def test_repetition_penalty() -> None:
    assert choose(LOGITS, Sampling(repetition_penalty=1.5), 0, [1]) == 4
    assert LOGITS[1] == 2.0


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -1},
        {"temperature": 1e-310},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"seed": -1},
        {"repetition_penalty": 0},
        {"min_p": -0.1},
        {"min_p": 1.1},
    ],
)
def test_out_of_range(bad: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(bad))} must be"):
        Sampling.from_wire(SamplingSpec(**bad))  # type: ignore[arg-type]


def test_over_the_wire() -> None:
    every = Sampling(0.5, 3, 0.9, 1.2, 7, 0.1)
    assert Sampling.from_wire(every.to_wire()) == every
