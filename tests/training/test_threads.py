"""The number of threads is the one that was measured to be faster."""

from __future__ import annotations

import importlib.util

import pytest

from sideplug.training.threads import chosen, measured


@pytest.mark.parametrize(
    ("one", "every", "want"), [(1.0, 0.7, 8), (1.0, 0.9, 1), (1.0, 20.0, 1), (1.0, 0.1, 8)], ids=str
)
def test_the_faster_is_chosen(one: float, every: float, want: int) -> None:
    asked: list[int] = []

    def timed(threads: int) -> float:
        asked.append(threads)
        warm_up = 50.0 if len(asked) <= 2 else 0.0  # the first of each is not counted
        spike = 30.0 if len(asked) == 5 else 0.0  # nor does one slow round decide
        return warm_up + spike + (one if threads == 1 else every)

    assert chosen(timed, 8) == want
    assert asked[:4] == [1, 8, 1, 8], "in turn, so that both meet the same load"


def test_it_holds_for_the_block_alone() -> None:
    said: list[str] = []
    with measured(said.append) as count:
        assert count >= 0
        assert len(said) == (count == 1 and bool(said))
        if importlib.util.find_spec("threadpoolctl") and count:
            import threadpoolctl

            now = threadpoolctl.ThreadpoolController().select(user_api="blas").info()
            assert {library["num_threads"] for library in now} == {count}
