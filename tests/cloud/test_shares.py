"""How what all share is divided among users, and the engine's time."""

from __future__ import annotations

import pytest

from sideplug.cloud.fair_share import CREDIT_S, SLACK_S, FairShare
from sideplug.cloud.shares import Shares


def test_there_is_always_room_for_one_more() -> None:
    shares = Shares(120)
    assert shares.most("a") == 60
    held = shares.take("a", 60)
    assert not shares.allows("a", 1)
    assert shares.most("b") == 40
    assert shares.allows("b", 40)
    assert not shares.allows("b", 41)
    assert shares.most("b", wanting={"c", "d"}) == 24
    held.release()
    assert (shares.held("a"), shares.total) == (0, 0)
    assert shares.most("b") == 60


def test_what_nobody_holds_any_more_is_free() -> None:
    shares = Shares(100)
    held = shares.take("a", 10)
    held.join(shares.take("a", 5))
    assert shares.held("a") == 15
    del held
    assert shares.total == 0


def spent(fair: FairShare, costs: dict[str, float], steps: int) -> dict[str, int]:
    """In how many steps each of these users takes part, where all always have something to run."""
    taken = dict.fromkeys(costs, 0)
    for _ in range(steps):
        resting = fair.resting(costs, costs)
        for user in costs.keys() - resting:
            taken[user] += 1
            fair.spend(costs[user], {user: 1})
    return taken


def test_who_costs_more_takes_part_in_fewer_steps() -> None:
    taken = spent(FairShare(), {"one row": 0.01, "nine rows": 0.09}, 2000)
    assert taken["one row"] == 2000
    assert taken["nine rows"] == pytest.approx(2000 / 9, abs=4)


@pytest.mark.parametrize("users", [2, 10])
def test_those_who_cost_alike_never_rest(users: int) -> None:
    assert set(spent(FairShare(), {str(n): 0.02 for n in range(users)}, 500).values()) == {500}


def test_time_that_nobody_else_wants_is_free() -> None:
    fair = FairShare()
    fair.spend(100, {"a": 1})
    assert fair.resting({"a"}, {"a", "b"}) == set()
    assert fair.is_ahead("a")
    assert fair.resting({"a", "b"}, {"a", "b"}) == {"a"}


def test_leaving_clears_no_debt_and_idleness_saves_nothing() -> None:
    fair = FairShare()
    fair.resting({"a", "b"}, set())
    fair.spend(5, {"a": 1})
    fair.resting({"b"}, set())
    assert fair.resting({"a", "b"}, set()) == {"a"}
    fair.spend(50, {"b": 1})  # while a was away for long
    fair.resting({"b"}, set())
    fair.resting({"a", "b"}, set())
    assert fair.used("b") - fair.used("a") == pytest.approx(CREDIT_S)
    assert SLACK_S >= CREDIT_S, "or who is there would rest whenever somebody comes"
