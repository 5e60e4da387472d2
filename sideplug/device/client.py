"""`connect`: an address and a plugin become an open session. Everybody who opens one calls this.

Test: pytest tests/device/test_client.py
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import msgspec

from sideplug.contract.defaults import DEFAULT_URL
from sideplug.contract.errors import CloudError
from sideplug.contract.frames import ModelInfo
from sideplug.contract.gate import Gate
from sideplug.contract.wire import MODEL_PATH
from sideplug.device.address import Address, get
from sideplug.device.link import Link, Record, WebSocketLink
from sideplug.device.reading import Progress, read_for
from sideplug.device.reconnect import RetryPolicy
from sideplug.device.responders import PluginResponder, Responder
from sideplug.device.session import Session
from sideplug.plugins import Plugin


@dataclass(frozen=True)
class Client:
    """A cloud's address, and how its sessions are opened. Everybody who opens one has a Client.

    record: receives (">" or "<", message) of all that passes. say: receives one line for each break. reading: receives
    (done, of how many) where the base reads what a plugin was told since the last time. head: where tokens are picked,
    in the "cloud" or on the "device": there a plugin's biases stay.
    """

    address: Address = Address()
    record: Record | None = None
    say: Callable[[str], None] = lambda line: None
    reading: Progress = lambda done, count: None
    head: str = "cloud"

    @classmethod
    def at(cls, cloud: str | Address = DEFAULT_URL) -> Client:
        """The client of a URL, or of an Address with a key, a certificate or a pin. Raises InputError."""
        return cls(Address(cloud) if isinstance(cloud, str) else cloud)

    def connect(
        self, plugin: Plugin | None = None, gate: Gate | None = None, responder: Responder | None = None
    ) -> Session:
        """An open session, which connects again where a connection breaks.

        gate: instead of the plugin's. responder: what answers, instead of a plugin.
        Raises WrongBase, Unreachable, Unauthorized, Busy.
        """
        if responder is None and plugin is not None:
            responder = PluginResponder(plugin, gate, self.head)
        open_link: Callable[[], Link] = partial(WebSocketLink.open, self.address, self.record)
        session = Session(open_link(), responder, open_link, RetryPolicy(self.address.retry_s, self.say))
        if plugin is not None:
            try:
                read_for(session, plugin, self.reading)
            except BaseException:
                session.close()
                raise
        return session

    def model(self) -> ModelInfo:
        """The base model that the cloud serves, by one plain request. Raises Unreachable, Unauthorized, CloudError."""
        try:
            return msgspec.convert(json.loads(get(self.address, MODEL_PATH)), ModelInfo)
        except (ValueError, msgspec.ValidationError) as error:
            raise CloudError(f"the cloud at {self.address.url} does not describe its model: {error}") from error


def connect(cloud: str | Address = DEFAULT_URL, plugin: Plugin | None = None, gate: Gate | None = None) -> Session:
    """An open session with the cloud at this address, to be closed, or used in a `with` statement.

    cloud: a URL, or an Address with a key, a certificate or a pin. plugin: yours; without one the base speaks.
    gate: instead of the plugin's. Raises InputError, WrongBase, Unreachable, Unauthorized, Busy.

    >>> with sideplug.connect(cloud) as session:
    ...     for piece in session.generate("Is it far to the mill?", max_tokens=3):
    ...         shown = (piece.text, piece.by)
    >>> shown[1]
    'cloud'
    """
    return Client.at(cloud).connect(plugin, gate)
