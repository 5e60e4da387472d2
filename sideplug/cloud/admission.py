"""Admission: work waits here until there is memory for all that it may become, then begins with its cached prefix.

The memory is reserved for a work's greatest possible length, so nothing that has begun ever runs out of it. A reply
begins with the keys and values of the longest prefix that the prefix cache or a running reply has of its text. A user
has its share of the memory and of the places in the queue, so that one with many texts never shuts another out; a
user's first text may take more than a share. This module does not know gates, answers or sockets.
Test: pytest tests/cloud/test_admission.py tests/cloud/test_prefix_cache.py
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

from sideplug.cloud import reply_frames
from sideplug.cloud.counters import Counters
from sideplug.cloud.model.base import Cache, Model
from sideplug.cloud.model.memory import Reservation, tokens_for
from sideplug.cloud.prefix_cache import MIN_PREFIX, CachedPrefix, PrefixCache, Text
from sideplug.cloud.reading import ExampleWork, Fail
from sideplug.cloud.reply import Reply, Sequence
from sideplug.cloud.shares import Shares
from sideplug.contract.errors import Busy, TooLong
from sideplug.contract.wire import error_frame

QUEUE_RETRY_S = 5.0  # what a device that finds the queue full is told to wait
EXAMPLES_BYTES = 16 << 20  # of one user's examples that were not taken yet; a single one may have more


@dataclass(frozen=True)
class AdmissionLimits:
    """queue: works that may wait. queue_s: seconds that one may wait. keep_s: seconds that the prefix cache holds an
    unused text (0: it caches nothing)."""

    queue: int = 64
    queue_s: float = 30.0
    keep_s: float = 600.0


def _text(reply: Reply, gate_id: bytes | None = None) -> Text:
    gates = reply.gate_id if gate_id is None else gate_id
    return Text(reply.scope, reply.ids_array, reply.prompt_tokens, gates, rows=reply.rows)


class Admission:
    """The queue of works that have not begun."""

    def __init__(self, model: Model, prefix_cache: PrefixCache, limits: AdmissionLimits, counters: Counters) -> None:
        self.limits = limits
        self._model = model
        self._prefix_cache = prefix_cache
        self._counters = counters
        self._waiting: list[Reply | ExampleWork] = []
        self.shares = Shares(model.memory.tokens)  # of the tokens that are reserved, by user
        self._examples = Shares(EXAMPLES_BYTES)  # bytes of examples that were not taken yet, by user
        self.lacking: Reply | ExampleWork | None = None  # the work that found no memory in the last round

    def __len__(self) -> int:
        return len(self._waiting)

    def check_size(self, work: Reply | ExampleWork) -> None:
        """Raises TooLong when the whole memory could not hold the work."""
        if work.max_length > self._model.memory.tokens:
            raise TooLong(
                f"the text may come to {work.max_length} tokens with its reply, the cloud's memory holds "
                f"{self._model.memory.tokens}: ask for fewer tokens"
            )
        if self._size(work) > self._model.memory.tokens:
            raise TooLong(
                f"the text may come to {work.max_length} tokens, and the cloud's memory does not hold what is asked "
                f"for of each of them: ask for fewer tokens, or tap fewer layers"
            )

    def _size(self, work: Reply | ExampleWork) -> int:
        """The tokens whose memory it takes, with what it holds beside its keys and values."""
        return work.max_length + tokens_for(self._model.memory, work.held_bytes)

    def add(self, work: Reply | ExampleWork) -> None:
        """Let it wait for memory. Where the queue is full, the newest work of the user who has the most there goes.

        Raises Busy when that is this work's user.
        """
        if len(self._waiting) >= self.limits.queue:
            waiting = Counter(other.user for other in self._waiting)
            user = max(waiting, key=waiting.__getitem__, default=work.user)
            if waiting[user] <= waiting[work.user] + 1:
                raise self._full()
            self._turn_away(next(other for other in reversed(self._waiting) if other.user == user), self._full())
        self._waiting.append(work)

    def _full(self) -> Busy:
        return Busy(f"{len(self._waiting)} texts wait for the cloud already: try later", QUEUE_RETRY_S)

    def _turn_away(self, work: Reply | ExampleWork, why: Busy) -> None:
        """End a work that waits: its device is sent ERROR busy."""
        work.send(error_frame(why, work.number if isinstance(work, ExampleWork) else None))
        work.alive = False
        work.bill.close()
        self._waiting.remove(work)

    def remove(self, work: Sequence) -> None:
        """Let it wait no more, if it waits."""
        if work in self._waiting:
            self._waiting.remove(work)  # type: ignore[arg-type]

    def expire(self) -> None:
        """End the works that have waited longer than `queue_s`: each is sent ERROR busy."""
        oldest_s = time.monotonic() - self.limits.queue_s
        for work in [work for work in self._waiting if work.since_s < oldest_s]:
            busy = Busy(f"the cloud had no room for {self.limits.queue_s:.0f} s: try later", QUEUE_RETRY_S)
            self._turn_away(work, busy)

    def begin_waiting(self, running: list[Sequence], fail: Fail) -> None:
        """Begin the works that memory allows and append them to `running`.

        First come the users with the fewest running works, then those who came first. A work of a user who has its
        share waits. The first other work that finds no memory ends the round, so that small works do not overtake it
        for ever. `fail` is called with a work that cannot begin because of an error; it must remove it from the queue.
        """
        self.lacking = None
        if not self._waiting:
            return
        works_of = Counter(work.user for work in running)
        users = {work.user for work in self._waiting}
        candidates = list(self._waiting)
        while candidates:
            work = min(candidates, key=lambda work: works_of[work.user])
            candidates.remove(work)
            if not self._has_share(work, users):
                continue
            if isinstance(work, Reply) and self._waits_for_prompt(work, running):
                continue
            try:
                if not self._begin(work, running):
                    self.lacking = work
                    return
            except Exception as error:
                fail(work, error)
                continue
            self._counters.queue_s.add(time.monotonic() - work.since_s)
            works_of[work.user] += 1
            self._waiting.remove(work)
            running.append(work)

    def _has_share(self, work: Reply | ExampleWork, wanting: set[str]) -> bool:
        """Whether its user's share allows it. A user who has nothing may have anything that there is memory for."""
        user = work.user
        examples = self._examples.held(user) if isinstance(work, ExampleWork) else 0
        if examples and examples + work.held_bytes > EXAMPLES_BYTES:
            return False
        return not self.shares.held(user) or self.shares.allows(user, self._size(work), wanting)

    def _waits_for_prompt(self, reply: Reply, running: list[Sequence]) -> bool:
        """Whether a prompt that begins alike is being run: then its keys and values are copied, not computed twice."""
        if reply.waits_for:
            other, shared = reply.waits_for
            if other.alive and other.cache.length < shared:
                return True
        reply.waits_for = None
        prefilling = [w for w in running if isinstance(w, Reply) and w.cache.length < w.prompt_tokens]
        if not prefilling:
            return False
        text = _text(reply)
        _, cached = self._prefix_cache.best(text)
        for other in prefilling:
            shared = _text(other, b"").shared(text)
            if shared > max(cached, other.cache.length, MIN_PREFIX - 1):
                reply.waits_for = (other, shared)
                return True
        return False

    def _begin(self, work: Reply | ExampleWork, running: list[Sequence]) -> bool:
        """Give it memory, and the longest prefix that there is of its text. False: there is no memory yet."""
        if not isinstance(work, Reply):
            claim = self._reserve(work.user, self._size(work) - work.max_length)
            cache = self._new_cache(work) if claim is not None else None
            if claim is None or cache is None:
                return False
            claim.join(self._examples.take(work.user, work.held_bytes))
            work.cache, work.claim = cache, claim
            return True
        text = _text(work)
        entry, length = self._prefix_cache.best(text)
        donor: Reply | None = None  # a running reply that has a longer prefix in its cache
        for other in running:
            if isinstance(other, Reply) and other.cache.length > length:
                shared = min(_text(other, b"").shared(text), other.cache.length)
                if shared > max(length, MIN_PREFIX - 1):
                    entry, donor, length = None, other, shared
        cache = self._new_cache(work, entry)
        if cache is None:
            return False
        if entry:
            cache.write(entry.states, length)
            self._prefix_cache.use(entry, text)
        elif donor:
            cache.write(donor.cache.read(length), length)
        work.begin(cache, entry.text if entry else _text(donor) if donor else None, length)
        self._counters.tokens["cached"] += length
        self._counters.resumed += bool(work.done)
        work.send(reply_frames.begun(work, length))
        return True

    def _new_cache(self, work: Reply | ExampleWork, spare: CachedPrefix | None = None) -> Cache | None:
        """A cache for its greatest length; cached prefixes but `spare` are evicted for it. None: there is no memory."""
        size = self._size(work) if isinstance(work, Reply) else work.max_length
        reservation = self._reserve(work.user, size, spare)
        if reservation is None:
            return None
        try:
            return self._model.cache_in(reservation)
        except Busy:
            return None

    def _reserve(self, user: str, tokens: int, spare: CachedPrefix | None = None) -> Reservation | None:
        """Memory for `tokens` that counts against the user's share; None: there is none."""
        reservation = self._prefix_cache.reserve(tokens, spare)
        if reservation is not None:
            reservation.join(self.shares.take(user, tokens))
        return reservation
