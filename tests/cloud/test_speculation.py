"""When a speculative token is worth its step."""

from __future__ import annotations

import pytest

from sideplug.cloud.speculation import FULL_BATCH, AcceptanceStats, SpeculationPolicy


def a_policy(step_s: float = 0.01, batch: int = 1) -> SpeculationPolicy:
    policy = SpeculationPolicy()
    for _ in range(400):  # a running mean comes to what it sees
        policy.observe_step(step_s)
    policy.batch = batch
    return policy


@pytest.mark.parametrize(
    ("accuracy", "answer_s", "step_s", "batch", "open_asks", "worthwhile"),
    [
        (0.7, 0.1, 0.01, 1, 1, True),
        (0.7, 0.001, 0.01, 1, 1, False),  # a wrong token costs 0.3 steps of 10 ms, the answer comes after 1 ms
        (0.95, 0.001, 0.01, 1, 1, True),  # 0.05 steps: cheaper than to wait
        (0.7, 0.1, 0.01, 1, 7, True),  # 0.7^7 × 16 = 1.3 sequences
        (0.7, 0.1, 0.01, 1, 8, False),  # 0.7^8 × 16 = 0.9
        (1.0, 0.1, 0.01, FULL_BATCH - 1, 30, True),
        (1.0, 0.1, 0.01, FULL_BATCH, 1, False),  # nobody's in a full batch
        (0.7, 0.1, 0.01, 11, 1, True),  # 0.7 × 16 = 11.2
        (0.7, 0.1, 0.01, 12, 1, False),
    ],
)
def test_what_is_worth_its_step(
    accuracy: float, answer_s: float, step_s: float, batch: int, open_asks: int, worthwhile: bool
) -> None:
    stats = AcceptanceStats(prediction_accuracy=accuracy, draft_accuracy=0.0, answer_s=answer_s)
    assert a_policy(step_s, batch).is_worthwhile(stats, False, open_asks) == worthwhile


def test_a_draft_counts_only_where_there_is_one() -> None:
    stats = AcceptanceStats(prediction_accuracy=0.5, draft_accuracy=0.9)
    assert (stats.accuracy(False), stats.accuracy(True)) == (0.5, 0.9)
    assert AcceptanceStats(prediction_accuracy=0.8, draft_accuracy=0.1).accuracy(True) == 0.8


def test_the_newest_observation_weighs_a_twentieth() -> None:
    stats = AcceptanceStats(answer_s=0.1)
    stats.observe("answer_s", 0.3)
    assert stats.answer_s == pytest.approx(0.11)
