"""Which tokens run in the next step: every sequence that decodes, then as much prefill as the budget leaves.

A sequence that waits for its device has nothing pending, so it takes no part and holds nobody up. Prefill is cut into
chunks, smaller ones while others decode, so a long prompt does not stall them. It is fair between users: who has had
the least prefill comes first (start-time fair queueing), so that one with many texts slows another's down by half at
most; the texts of one user take turns. A chunk is never one token and never leaves one: an engine may sum a single
token in another order than several, and then a text would depend on who else was in its step. It does not know models,
gates or sockets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from sideplug.contract.errors import InputError


class Work(Protocol):
    """A sequence with token ids, of which the last `pending` are not in its cache yet; `user`: who it is for."""

    user: str

    @property
    def pending(self) -> int: ...

    def next_ids(self, count: int) -> list[int]: ...


W = TypeVar("W", bound=Work)
LEAST = 3  # tokens of a step: two, where three are left


@dataclass(frozen=True)
class Budget:
    """Tokens a step: in all, and of prefill while somebody decodes."""

    step_tokens: int = 512
    prefill_beside_decode_tokens: int = 64

    def __post_init__(self) -> None:
        if min(self.step_tokens, self.prefill_beside_decode_tokens) < LEAST:
            raise InputError(f"a step must have at least {LEAST} tokens")


class Scheduler:
    def __init__(self, budget: Budget = Budget()) -> None:
        self.budget = budget
        self._had: dict[str, int] = {}  # tokens of prefill, of the users that have some now; all count from the least

    def pick(self, works: list[W]) -> list[tuple[W, list[int]]]:
        """(work, ids) of the next step; `works` is reordered so that prefills take turns."""
        decoding = [work for work in works if work.pending == 1]
        for work in decoding[self.budget.step_tokens :]:  # more than a step takes: these come first the next time
            works.remove(work)
            works.insert(0, work)
        del decoding[self.budget.step_tokens :]
        batch = [(work, work.next_ids(1)) for work in decoding]
        left = self.budget.step_tokens - len(batch)
        if batch:
            left = min(left, self.budget.prefill_beside_decode_tokens)
        for work in self._fairly([work for work in works if work.pending > 1]):
            count = min(work.pending, left)
            if work.pending - count == 1:
                count -= 1
            if count < 2:
                continue
            ids = work.next_ids(count)
            batch.append((work, ids))
            left -= len(ids)
            self._had[work.user] += len(ids)
            works.remove(work)
            works.append(work)
        return batch

    def _fairly(self, prefills: list[W]) -> Iterator[W]:
        """In turn, always of the user who has had the least; a new one counts from the least of those who are there."""
        queues: dict[str, list[W]] = {}
        for work in prefills:
            queues.setdefault(work.user, []).append(work)
        known = {user: had for user, had in self._had.items() if user in queues}
        least = min(known.values(), default=0)
        self._had = {user: known.get(user, least) - least for user in queues}
        while queues:
            user = min(queues, key=self._had.__getitem__)
            yield queues[user].pop(0)
            if not queues[user]:
                del queues[user]
