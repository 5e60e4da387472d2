"""What all sessions of one server have in common: the engine's thread, the limits, and who may come in.

A Service makes one Shared and gives it to each of its sessions. This module does not know sessions, frames or sockets.
Test: pytest tests/cloud/test_watch.py
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from sideplug.cloud.access import AccessControl
from sideplug.cloud.aside import Aside
from sideplug.cloud.bill import Account, Usage
from sideplug.cloud.counters import Counters
from sideplug.cloud.engine import Engine
from sideplug.cloud.grammar import Grammars
from sideplug.cloud.keys import Holder
from sideplug.cloud.model.memory import Reservation
from sideplug.cloud.shares import Shares
from sideplug.cloud.store import Base
from sideplug.cloud.tap_store import TapStore
from sideplug.cloud.token_bucket import TokenBuckets
from sideplug.cloud.tokenizer import Tokenizer
from sideplug.cloud.trunks import Trunks
from sideplug.contract.frames import ModelInfo

HANGS_S = 60.0  # an engine that has not looked into its inbox for this long counts as hanging
PREDICTORS_BYTES = 64 << 20  # of all sessions' predictors, at least …
PREDICTORS_SHARE = 16  # … or a sixteenth of the memory for keys and values
CALLS_PER_STEP = 256  # calls taken from the inbox before each step, so that one device's flood cannot delay the steps
log = logging.getLogger("sideplug.cloud")


@dataclass(frozen=True)
class Limits:
    """What one server allows.

    sessions: sessions that may be open at once. readings: examples that one session may have under way at once.
    message_bytes: size of one incoming message. answer_s: seconds that a device may take to answer an ASK.
    drain_s: seconds that running work gets to finish when the server goes down.
    """

    sessions: int = 1024
    readings: int = 8
    message_bytes: int = 16 << 20
    answer_s: float = 120.0
    drain_s: float = 60.0


class EngineThread:
    """The thread that makes the engine and runs its steps; `call` puts a function into its inbox.

    The model is loaded in the very thread that runs it: OpenMP keeps a team of workers for each thread that has used
    it, and two teams on the same cores cost half of the speed.
    """

    def __init__(self, make: Callable[[], Engine]) -> None:
        """Start the thread and wait until `make` has made the engine in it. Raises what `make` raises."""
        made: Future[Engine] = Future()
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(make, made), name="engine", daemon=True)
        self._thread.start()
        self.engine = made.result()

    def call(self, function: Callable[[], None]) -> None:
        """Run `function` in the engine's thread, between two steps, after all that was put there before it."""
        self._inbox.put(function)

    @property
    def hangs(self) -> bool:
        """Whether the thread has ended, or has not looked into its inbox for HANGS_S seconds."""
        return not self._thread.is_alive() or time.monotonic() - self.engine.alive_s > HANGS_S

    def stop(self) -> None:
        """End the thread after the calls that are in its inbox, and wait up to 10 s for it."""
        self._inbox.put(None)
        self._thread.join(timeout=10)

    def _run(self, make: Callable[[], Engine], made: Future[Engine]) -> None:
        try:
            engine = make()
        except BaseException as error:
            made.set_exception(error)
            return
        made.set_result(engine)
        busy = False
        while True:
            engine.alive_s = time.monotonic()
            try:
                for _ in range(CALLS_PER_STEP):
                    call = self._inbox.get(block=not busy)
                    if call is None:
                        return
                    busy = True
                    call()
                    del call  # it refers to a session's work, which would otherwise live until the next call
            except queue.Empty:
                pass
            except Exception:
                log.exception("a call to the engine failed")
            try:
                busy = engine.step()
            except Exception:  # a fault in one work ends that work inside the engine; this is a fault of the engine
                log.exception("a step failed")
                busy = False


@dataclass(frozen=True)
class Shared:
    """What every session of one server needs. `draining` is set when the server takes no new work any more."""

    thread: EngineThread
    base: Base
    tokenizer: Tokenizer
    limits: Limits
    access: AccessControl
    buckets: TokenBuckets
    counters: Counters
    model_info: ModelInfo
    taps: TapStore
    predictors: Shares
    aside: Aside
    trunks: Trunks
    grammars: Grammars
    usage: Usage = field(default_factory=Usage)
    draining: threading.Event = field(default_factory=threading.Event)

    def predictor_memory(self, user: str, size: int) -> Reservation | None:
        """The memory of a session's correction predictor; None where its user has its share already."""
        return self.predictors.take(user, size) if self.predictors.allows(user, size) else None

    def account(self, holder: Holder | None) -> Account | None:
        """The account of a key's holder; None where no keys are asked for."""
        if holder is None:
            return None
        return Account(self.buckets, self.usage, holder.id, holder.name, holder.limits.tokens_per_minute)
