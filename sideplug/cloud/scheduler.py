"""Which tokens run in the next step: every sequence that decodes, then as much prefill as the budget leaves.

A sequence that waits for its device has nothing pending, so it takes no part and holds nobody up. Prefill is cut into
chunks, smaller ones while others decode, so a long prompt does not stall them; prefills take turns.
It does not know models, gates or sockets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar


class Work(Protocol):
    """A sequence with token ids, of which the last `pending` are not in its cache yet."""

    @property
    def pending(self) -> int: ...

    def next_ids(self, count: int) -> list[int]: ...


W = TypeVar("W", bound=Work)


@dataclass(frozen=True)
class Budget:
    """Tokens a step: in all, and of prefill while somebody decodes."""

    step_tokens: int = 512
    prefill_beside_decode_tokens: int = 64


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
            if left <= 0:
                break
            ids = work.next_ids(min(work.pending, left))
            batch.append((work, ids))
            left -= len(ids)
            works.remove(work)
            works.append(work)
        return batch
