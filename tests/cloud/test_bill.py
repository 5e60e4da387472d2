"""What is charged for a token, and when."""

from __future__ import annotations

import time

import pytest

from sideplug.cloud.bill import Account, Bill, Usage
from sideplug.cloud.token_bucket import TokenBuckets
from sideplug.contract.errors import Busy


def an_account(limit: int = 100) -> Account:
    return Account(TokenBuckets(), Usage(), "id", "ada", limit)


def left(account: Account) -> float:
    """The tokens in the bucket, but for what flowed in since."""
    return round(account.buckets._bucket(account.id, account.limit, time.monotonic()).level)


@pytest.mark.parametrize(
    ("prepaid", "runs", "charged"),
    [
        (30, [(0, 30)], 30),  # a prompt
        (30, [(20, 30)], 10),  # … of which 20 were cached
        (30, [(0, 30), (30, 31), (31, 32)], 32),  # … and two tokens of a reply
        (30, [(0, 30), (30, 33), (31, 33)], 33),  # … rolled back, and run again
        (50, [(0, 30), (30, 31)], 31),  # … left by its device before the rest of `done` was run
        (50, [], 0),  # refused after it was taken
        (60, [(0, 20), (20, 21), (21, 22)], 22),  # an example that the base ends early
    ],
)
def test_what_was_run_is_charged_once(prepaid: int, runs: list[tuple[int, int]], charged: int) -> None:
    account = an_account(6000)
    bill = account.open_bill(prepaid)
    assert left(account) == 6000 - prepaid
    for start, stop in runs:
        bill.run_to(start, stop)
    bill.close()
    bill.close()
    assert 6000 - left(account) == pytest.approx(charged, abs=1)
    assert account.usage.tokens["ada"] == charged


def test_nobody_begins_more_than_there_is() -> None:
    account = an_account(100)
    account.open_bill(60)
    with pytest.raises(Busy, match="has used its 100 tokens a minute: try again in"):
        account.open_bill(60)


def test_without_a_key_nothing_is_charged() -> None:
    bill = Bill()
    bill.run_to(0, 100)
    bill.close()
