"""Sessions with the cloud: taken by one request at a time, kept for the next one with the same plugin and gate.

The pool also keeps, for each open page, the messages that the page's own requests sent and got, so that the page can
show what left this device. This is the only module of the gateway that opens sessions and asks them for replies.
It does not know HTTP. Test: pytest tests/device/test_gateway.py
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sideplug.contract.errors import Busy, SideplugError, Stopped
from sideplug.contract.frames import ModelInfo
from sideplug.contract.gate import Gate
from sideplug.contract.sampling import Sampling
from sideplug.contract.text import Prompt
from sideplug.device.address import Address
from sideplug.device.audit import Recent
from sideplug.device.client import Client
from sideplug.device.link import Record
from sideplug.device.reading import MANY
from sideplug.device.reply import DecodeOptions, Reply
from sideplug.device.session import Session
from sideplug.plugins import Plugin

IDLE_SESSIONS = 4  # sessions that are kept open, of all plugins together
FIRST_PAUSE_S, MAX_PAUSE_S = 0.05, 1.0  # between two tries, where the cloud has no room for a session
PAGES = 16  # pages whose messages are remembered; the oldest are forgotten
log = logging.getLogger("sideplug.gateway")

OpenSession = Callable[[Plugin | None, Gate | None, Record], Session]  # the last hears the session's messages


def session_opener(cloud: Address, head: str = "cloud") -> OpenSession:
    """Return a function that opens sessions with the cloud at this address. head: where their tokens are picked."""

    def open_session(plugin: Plugin | None, gate: Gate | None, record: Record) -> Session:
        def reading(done: int, count: int) -> None:
            if not done and count >= MANY and plugin is not None:
                name = plugin.folder.name if plugin.folder else "a plugin"
                log.warning("the base reads %d texts of %s, once; the reply waits for it", count, name)

        return Client(cloud, record, log.warning, reading, head).connect(plugin, gate)

    return open_session


class SessionRecorder:
    """Hears all messages of one session: keeps how it was opened, and passes the rest to whoever holds the session."""

    def __init__(self, transcript: Record | None, number: int) -> None:
        self.opening: list[tuple[str, bytes]] = []
        self.is_open = False
        self.listener: Recent | None = None
        self._transcript, self._number = transcript, number

    def __call__(self, direction: str, message: bytes) -> None:
        """Hear a message."""
        if not self.is_open:
            self.opening.append((direction, message))
        if self.listener is not None:
            self.listener(direction, message)
        if self._transcript is not None:
            self._transcript(f"{self._number}{direction}", message)


@dataclass(frozen=True)
class PoolKey:
    """Which requests may share a session one after another: those with the same plugin, loaded once, and gate."""

    plugin_name: str
    plugin_id: int
    gate: tuple[str, float] | None


@dataclass(eq=False)
class PooledSession:
    """A session with the cloud that one request holds at a time."""

    key: PoolKey
    plugin: Plugin | None
    session: Session
    recorder: SessionRecorder

    @property
    def model(self) -> ModelInfo:
        """What the cloud serves."""
        return self.session.model

    def reply(self, prompt: Prompt, max_tokens: int, sampling: Sampling, options: DecodeOptions) -> Reply:
        """Begin a reply."""
        return self.session.generate(prompt, max_tokens, sampling, options)

    def is_alive(self) -> bool:
        """Return whether the connection still stands."""
        try:
            self.session.link.arrived()
        except SideplugError:
            return False
        return True

    def close(self) -> None:
        """Close the connection."""
        self.session.close()


@dataclass(frozen=True)
class PageRecord:
    """The messages of a page's newest session. `plugin` is the one it was opened with, be it deleted since."""

    plugin_name: str
    plugin: Plugin | None
    recorder: SessionRecorder
    messages: Recent


class Pool:
    """The gateway's sessions with the cloud. `transcript` hears the messages of all of them.

    The cloud lets a key have a number of sessions. Where it has no room for one more, who needs it waits for one of
    ours, first come first served; where none of ours is in use, because other devices have them all, for `patience_s`.
    """

    def __init__(self, open_session: OpenSession, transcript: Record | None = None, patience_s: float = 60.0) -> None:
        self.open_session = open_session
        self._transcript = transcript
        self._patience_s = patience_s
        self._idle: list[PooledSession] = []
        self._numbers = itertools.count(1)  # of the sessions
        self._lent = 0
        self._line: deque[object] = deque()  # who waits for room, the first one first
        self._pages: OrderedDict[str, PageRecord] = OrderedDict()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)  # a session became idle or was closed, or the line moved
        self._model: ModelInfo | None = None

    @contextlib.contextmanager
    def session(
        self,
        plugin_name: str,
        plugin: Plugin | None,
        gate: Gate | None,
        page: str = "",
        gave_up: Callable[[], bool] = lambda: False,
    ) -> Iterator[PooledSession]:
        """Lend a session that nobody else uses. What it says meanwhile is remembered for `page` ("": for nobody).

        Waits for room at the cloud, until `gave_up`. Raises Busy where there is none, and CloudError and its kin.
        """
        key = PoolKey(plugin_name, id(plugin), (gate.kind, gate.threshold) if gate else None)
        session = self._obtain(key, plugin, gate, gave_up)
        if page:
            session.recorder.listener = self._listen(page, session)
        try:
            yield session
        except BaseException:
            self._give_back()
            session.close()
            raise
        session.recorder.listener = None
        self._give_back(session)

    def _give_back(self, session: PooledSession | None = None) -> None:
        """A lent session is not used any more; it is kept, unless it was closed (None)."""
        with self._changed:
            self._lent -= 1
            if session is not None:
                self._idle.append(session)
            spare = [self._idle.pop(0) for _ in range(len(self._idle) - IDLE_SESSIONS)]
            self._changed.notify_all()
        for old in spare:
            old.close()

    def _obtain(
        self, key: PoolKey, plugin: Plugin | None, gate: Gate | None, gave_up: Callable[[], bool]
    ) -> PooledSession:
        """An idle session of this key, or a new one, when there is room for it; it counts as lent."""
        if not self._line:
            with contextlib.suppress(Busy):
                return self._take(key) or self._open(key, plugin, gate)
        with self._turn(gave_up):
            return self._wait_for_room(key, plugin, gate, gave_up)

    @contextlib.contextmanager
    def _turn(self, gave_up: Callable[[], bool]) -> Iterator[None]:
        """Wait until those who came before have their sessions."""
        ticket = object()
        with self._changed:
            self._line.append(ticket)
        try:
            with self._changed:
                while self._line[0] is not ticket:
                    self._changed.wait(MAX_PAUSE_S)
                    _check(gave_up)
            yield
        finally:
            with self._changed:
                self._line.remove(ticket)
                self._changed.notify_all()

    def _wait_for_room(
        self, key: PoolKey, plugin: Plugin | None, gate: Gate | None, gave_up: Callable[[], bool]
    ) -> PooledSession:
        """Try again when one of our sessions comes back, and now and then. Raises Busy."""
        pause_s, hopeless_since_s = FIRST_PAUSE_S, time.monotonic()
        while True:
            _check(gave_up)
            try:
                return self._take(key) or self._open(key, plugin, gate)
            except Busy:
                with self._changed:
                    idle, self._idle = self._idle, []  # those of other plugins take the room that this one needs
                for other in idle:
                    other.close()
                with self._changed:
                    if idle or self._lent:
                        hopeless_since_s = time.monotonic()
                    elif time.monotonic() - hopeless_since_s >= self._patience_s:
                        raise
                    self._changed.wait(pause_s)
            pause_s = min(2 * pause_s, MAX_PAUSE_S)

    def page_record(self, page: str) -> PageRecord | None:
        """Return what this page's requests sent and got; None where they sent nothing, or it has been forgotten."""
        with self._lock:
            return self._pages.get(page)

    @property
    def known_model(self) -> ModelInfo | None:
        """The cloud's model as it was last seen; None before the first session and after forget_model()."""
        return self._model

    def model(self) -> ModelInfo:
        """Return what the cloud serves; asks it once. Raises Unreachable, CloudError."""
        model = self._model
        if model is None:
            with self.session("", None, None) as session:
                model = self._model = session.model
        return model

    def forget_model(self) -> None:
        """Ask the cloud again next time: it may have come back with another model."""
        self._model = None

    def close(self) -> None:
        """Close all idle sessions."""
        with self._lock:
            idle, self._idle = self._idle, []
        for session in idle:
            session.close()

    def _take(self, key: PoolKey) -> PooledSession | None:
        """An idle session of this key that is still alive."""
        while True:
            with self._lock:
                session = next((session for session in reversed(self._idle) if session.key == key), None)
                if session is None:
                    return None
                self._idle.remove(session)
            if session.is_alive():
                with self._lock:
                    self._lent += 1
                return session
            session.close()

    def _open(self, key: PoolKey, plugin: Plugin | None, gate: Gate | None) -> PooledSession:
        recorder = SessionRecorder(self._transcript, next(self._numbers))
        session = self.open_session(plugin, gate, recorder)
        recorder.is_open = True
        with self._lock:
            self._lent += 1
        return PooledSession(key, plugin, session, recorder)

    def _listen(self, page: str, session: PooledSession) -> Recent:
        """Where the page's messages go: further ones of the same session stand behind the earlier ones."""
        with self._lock:
            record = self._pages.pop(page, None)
            if record is None or record.recorder is not session.recorder:
                record = PageRecord(session.key.plugin_name, session.plugin, session.recorder, Recent())
                for direction, message in session.recorder.opening:
                    record.messages(direction, message)
            self._pages[page] = record
            while len(self._pages) > PAGES:
                self._pages.popitem(last=False)
            return record.messages


def _check(gave_up: Callable[[], bool]) -> None:
    """Raises Stopped where nobody waits for the session any more."""
    if gave_up():
        raise Stopped("the caller has left")
