"""The scheduler chooses the tokens of the next step: one of each sequence that decodes, then prefill up to the budget.

A sequence that waits for its device has no pending tokens, so it takes no part and delays nobody. A prompt is prefilled
in chunks, smaller ones while others decode, so that a long prompt does not stall them. Prefill is shared fairly between
users by start-time fair queueing: the user who has had the least prefill comes first, so a user with many texts slows
another's down to half at most; the texts of one user take turns. Who has had more of the engine's time than others
rests meanwhile (fair_share). A chunk never has one token and never leaves one over: an engine may sum a single token in
another order than several, and then a text would depend on what else was in its step. The scheduler does not know
models, gates or sockets. Test: pytest tests/cloud/test_scheduler.py
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from sideplug.contract.errors import InputError


class Work(Protocol):
    """A sequence of token ids, the last `pending` of which are not in its cache yet. user: its owner."""

    user: str

    @property
    def pending(self) -> int:
        """Return how many tokens may run now."""
        ...

    def next_ids(self, count: int) -> list[int]:
        """Return the next `count` pending tokens."""
        ...


W = TypeVar("W", bound=Work)
MIN_STEP_TOKENS = 3  # with less, three remaining tokens could not be cut: a chunk of two leaves one


@dataclass(frozen=True)
class Budget:
    """The tokens of one step: in all, and for prefill while a sequence decodes. Raises InputError below 3.

    prefill_ahead_tokens: for prefill of users who are ahead, while somebody else's device is about to answer.
    """

    step_tokens: int = 512
    prefill_beside_decode_tokens: int = 64
    prefill_ahead_tokens: int = 16

    def __post_init__(self) -> None:
        if min(self.step_tokens, self.prefill_beside_decode_tokens, self.prefill_ahead_tokens) < MIN_STEP_TOKENS:
            raise InputError(f"a step must have at least {MIN_STEP_TOKENS} tokens")


class Scheduler:
    """Chooses the tokens of each step, with `pick`."""

    def __init__(self, budget: Budget = Budget()) -> None:
        self.budget = budget
        # Tokens of prefill that each user has had, of the users with prefill now; the smallest number is 0.
        self._prefilled: dict[str, int] = {}

    def pick(
        self, works: list[W], resting: Collection[str] = (), most_prefill: int | None = None
    ) -> list[tuple[W, list[int]]]:
        """Return (work, token ids) for the next step. Reorders `works` in place so that prefills take turns.

        `resting`: users whose works take no part. `most_prefill`: tokens of prefill, if fewer than the budget's.
        """
        decoding = [work for work in works if work.pending == 1 and work.user not in resting]
        for work in decoding[self.budget.step_tokens :]:  # these do not fit into this step: first in the next one
            works.remove(work)
            works.insert(0, work)
        del decoding[self.budget.step_tokens :]
        batch = [(work, work.next_ids(1)) for work in decoding]
        left = self.budget.step_tokens - len(batch)
        if batch:
            left = min(left, self.budget.prefill_beside_decode_tokens)
        if most_prefill is not None:
            left = min(left, most_prefill)
        for work in self._in_fair_order([work for work in works if work.pending > 1 and work.user not in resting]):
            count = min(work.pending, left)
            if work.pending - count == 1:
                count -= 1
            if count < 2:
                continue
            ids = work.next_ids(count)
            batch.append((work, ids))
            left -= len(ids)
            self._prefilled[work.user] += len(ids)
            works.remove(work)
            works.append(work)
        return batch

    def _in_fair_order(self, prefills: list[W]) -> Iterator[W]:
        """Yield works, each from the user with the least prefill so far; a new user starts at the current minimum."""
        queues: dict[str, list[W]] = {}
        for work in prefills:
            queues.setdefault(work.user, []).append(work)
        known = {user: tokens for user, tokens in self._prefilled.items() if user in queues}
        minimum = min(known.values(), default=0)
        self._prefilled = {user: known.get(user, minimum) - minimum for user in queues}
        while queues:
            user = min(queues, key=self._prefilled.__getitem__)
            yield queues[user].pop(0)
            if not queues[user]:
                del queues[user]
