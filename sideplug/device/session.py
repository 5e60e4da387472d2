"""A session with a cloud: opened once, for one reply after another; connected again after a break.

It keeps what outlives a reply: the link, the model, the responder, the retry policy. It does not know sockets (see
link) nor how an address becomes a link (see client). Test: pytest tests/test_equalities.py
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from sideplug.contract.errors import CloudError, InputError, ProtocolError, SideplugError, Untrusted, WrongBase
from sideplug.contract.frames import Frame, ModelInfo, Open, Opened
from sideplug.contract.gate import pack_gates
from sideplug.contract.sampling import Sampling
from sideplug.contract.text import Prompt
from sideplug.contract.version import __version__
from sideplug.device.link import Link
from sideplug.device.reconnect import RetryPolicy
from sideplug.device.reply import Channel, DecodeOptions, Reply, Usage
from sideplug.device.responders import Opening, Responder, Silent
from sideplug.device.terms import Terms


class Session(Channel):
    """An open session. model: the base model. readings: examples that may be in reading at once. granted: capabilities.

    `with` closes it.
    """

    def __init__(
        self,
        link: Link,
        responder: Responder | None = None,
        connect: Callable[[], Link] | None = None,
        retry: RetryPolicy | None = None,
    ) -> None:
        """Opens a session over `link`. `connect` makes another link where this one breaks, as `retry` says; None: a
        break is an error.

        Raises WrongBase when the responder was made for another base model, CloudError when the cloud is gone.
        """
        self.responder: Responder = responder or Silent()
        self.retry = retry or RetryPolicy()
        self._connect = connect
        self._turns = 0
        self._last: Reply | None = None
        try:
            opened = _open(link, self.responder.opening)
        except SideplugError as error:
            link.close()
            if connect is None or not isinstance(error, (CloudError, ProtocolError)):
                raise
            link, opened = self.retry.connect(partial(_connect_and_open, connect, self.responder.opening), error)
        self.link = link
        try:
            self._take(opened)
        except BaseException:
            link.close()
            raise

    def _take(self, opened: Opened) -> None:
        """Hold OPENED against what OPEN asked for, and every later frame against both."""
        self.model: ModelInfo = opened.model
        self.responder.check_base(self.model)
        self.terms = Terms.of(opened, self.responder.opening)
        self.link.check = self.terms.check
        self.readings = opened.limits.readings
        self.granted = tuple(opened.granted)
        missing = [name for name, wanted in self.responder.opening.capabilities.items() if wanted.required]
        if not set(missing) <= set(self.granted):
            raise ProtocolError(f"the cloud must grant {', '.join(missing)} or refuse the session")

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the session."""
        self.link.close()

    def generate(
        self,
        prompt: str | Prompt,
        max_tokens: int = 256,
        sampling: Sampling = Sampling(),
        options: DecodeOptions = DecodeOptions(),
    ) -> Reply:
        """The reply to a prompt, as an iterator over its pieces; a string is a user's message. One reply at a time."""
        if self.responder.opening.head == "device" and options.head is None:
            raise InputError("this session was opened for picking tokens on the device: open another for the cloud's")
        self._turns += 1
        self.progressed()
        asked = Prompt.user(prompt) if isinstance(prompt, str) else prompt
        self._last = Reply(self, self._turns, asked, max_tokens, sampling, options)
        return self._last

    @property
    def usage(self) -> Usage:
        """What the last reply took."""
        return self._last.usage if self._last else Usage()

    def send(self, frame: Frame) -> None:
        """Send a frame on the link that works now. Raises CloudError."""
        self.link.send(frame)

    def receive(self) -> Frame:
        """The next frame. Raises what an ERROR says, and CloudError."""
        return self.link.receive()

    def progressed(self) -> None:
        """See Channel."""
        self.retry.breaks = 0

    def reconnect(self, lost: SideplugError) -> None:
        """Another connection to the same base. Raises `lost` where that can't be, or what stands in the way."""
        if not self.retry.is_retryable(lost):
            if isinstance(lost, Untrusted):
                self.link.close()
            raise lost
        self.link.close()
        if self._connect is None:
            raise lost
        opening = self.responder.opening
        link, opened = self.retry.connect(partial(_connect_and_open, self._connect, opening), lost)
        link.down.update(self.link.down)
        link.up.update(self.link.up)
        self.link, before = link, self.model
        if opened.model.fingerprint != before.fingerprint:
            raise WrongBase(f"the cloud serves another base model now ({opened.model.name}): begin anew")
        self._take(opened)


def _connect_and_open(connect: Callable[[], Link], opening: Opening) -> tuple[Link, Opened]:
    link = connect()
    try:
        return link, _open(link, opening)
    except BaseException:
        link.close()
        raise


def _open(link: Link, opening: Opening) -> Opened:
    """Send OPEN; the OPENED that answers it."""
    width = max((gate.weight_D.size for gate in opening.gates), default=0)
    specs, weights_GD = pack_gates(opening.gates, width)
    tap = opening.tap.name if opening.tap else ""
    client = f"sideplug/{__version__}"
    link.send(Open(opening.base, tap, opening.merge, specs, client, weights_GD, opening.capabilities))
    opened = link.receive()
    if not isinstance(opened, Opened):
        raise ProtocolError(f"the cloud must answer OPENED, got {opened.kind.name}")
    return opened
