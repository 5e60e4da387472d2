"""Who runs in a step."""

from dataclasses import dataclass

import pytest

from sideplug.cloud.scheduler import Budget, Scheduler
from sideplug.contract.errors import InputError


@dataclass(eq=False)
class Work:
    name: str
    pending: int
    user: str = ""

    def next_ids(self, count: int) -> list[int]:
        return [0] * count


def sizes(batch: list[tuple[Work, list[int]]]) -> dict[str, int]:
    return {work.name: len(ids) for work, ids in batch}


def test_decode_first_then_prefill_in_small_chunks() -> None:
    scheduler = Scheduler(Budget(100, 10))
    works = [Work("long", 1000), Work("a", 1), Work("parked", 0), Work("b", 1)]
    assert sizes(scheduler.pick(works)) == {"a": 1, "b": 1, "long": 10}


def test_prefill_alone_takes_the_whole_budget_and_takes_turns() -> None:
    scheduler = Scheduler(Budget(100, 10))
    works = [Work("x", 1000), Work("y", 1000), Work("z", 30)]
    assert sizes(scheduler.pick(works)) == {"x": 100}
    assert sizes(scheduler.pick(works)) == {"y": 100}
    assert sizes(scheduler.pick(works)) == {"z": 30, "x": 70}


def test_a_prompt_is_never_cut_to_one_token() -> None:
    for prompt in range(2, 40):
        for step in range(3, 12):
            scheduler = Scheduler(Budget(step, step))
            work = Work("x", prompt)
            while work.pending:
                ((_, ids),) = scheduler.pick([work])
                assert 2 <= len(ids) <= step
                work.pending -= len(ids)
    with pytest.raises(InputError, match="at least 3 tokens"):
        Budget(2)


def test_nothing_ready() -> None:
    assert Scheduler().pick([Work("parked", 0)]) == []


def test_who_rests_takes_no_part() -> None:
    works = [Work("a", 1, "ada"), Work("b", 1, "bo"), Work("c", 100, "bo")]
    assert sizes(Scheduler(Budget(100, 10)).pick(works, resting={"bo"})) == {"a": 1}
    assert sizes(Scheduler(Budget(100, 10)).pick(works, most_prefill=4)) == {"a": 1, "b": 1, "c": 4}
    assert sizes(Scheduler(Budget(100, 10)).pick(works[2:], most_prefill=4)) == {"c": 4}
