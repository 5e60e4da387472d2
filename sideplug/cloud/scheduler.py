"""Which tokens run in the next step: every sequence that decodes, then as much prefill as the budget leaves.

A sequence that waits for its device has nothing pending, so it takes no part and holds nobody up. Prefill is cut into
chunks, smaller ones while others decode, so a long prompt does not stall them; prefills take turns. A chunk is never
one token and never leaves one: an engine may sum a single token in another order than several, and then a text would
depend on who else was in its step. It does not know models, gates or sockets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

from sideplug.contract.errors import InputError


class Work(Protocol):
    """A sequence with token ids, of which the last `pending` are not in its cache yet."""

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
        for work in [work for work in works if work.pending > 1]:
            count = min(work.pending, left)
            if work.pending - count == 1:
                count -= 1
            if count < 2:
                continue
            ids = work.next_ids(count)
            batch.append((work, ids))
            left -= len(ids)
            works.remove(work)
            works.append(work)
        return batch
