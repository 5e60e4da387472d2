"""What a work's tokens are charged to: the tokens a minute of its key, and the operator's view of who used how much.

A token is charged where it is run, so it is the same whether it stands in a prompt, in what a device has of a reply
from before a break, in an example, or in a reply that its device has left; a token that was cached is free, and one
that is run again after a rollback is charged once. What a request is known to need is taken before it begins, so that a
key can't begin more than it has; what of this was not run is given back. It does not know sessions or key files.
Test: pytest tests/cloud/test_bill.py
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from sideplug.cloud.token_bucket import TokenBuckets
from sideplug.contract.errors import Busy


@dataclass
class Usage:
    """What each key has used since the start of the process, by the key's name."""

    tokens: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)  # received and sent
    sessions: Counter[str] = field(default_factory=Counter)  # opened


@dataclass(frozen=True)
class Account:
    """A key's account. name: for the operator's view; limit: tokens a minute, 0: no limit."""

    buckets: TokenBuckets
    usage: Usage
    id: str
    name: str
    limit: int = 0

    def open_bill(self, tokens: int) -> Bill:
        """The bill of a work that needs so many tokens at least, which are taken now. Raises Busy."""
        wait_s = self.buckets.take(self.id, tokens, self.limit, time.monotonic())
        if wait_s:
            raise Busy(f"this key has used its {self.limit:,} tokens a minute: try again in {wait_s:.0f} s", wait_s)
        return Bill(self, tokens)


@dataclass(eq=False)
class Bill:
    """The tokens of one work. account: None charges nobody. `run_to` and `close` are called in the engine's thread."""

    account: Account | None = None
    prepaid: int = 0  # tokens that are taken and not run yet
    _top: int = 0  # the positions before this one have been charged

    def run_to(self, start: int, stop: int) -> None:
        """Charge the positions `start` to `stop` - 1 that were not charged before."""
        tokens = stop - max(start, self._top)
        if tokens <= 0:
            return
        self._top = stop
        if self.account is None:
            return
        self.account.usage.tokens[self.account.name] += tokens
        covered = min(tokens, self.prepaid)
        self.prepaid -= covered
        if tokens > covered:
            self.account.buckets.charge(self.account.id, tokens - covered, self.account.limit, time.monotonic())

    def close(self) -> None:
        """Give back what was taken and not run."""
        if self.account is not None and self.prepaid:
            self.account.buckets.charge(self.account.id, -self.prepaid, self.account.limit, time.monotonic())
        self.prepaid = 0
