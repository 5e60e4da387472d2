"""`connect`: an address, a plugin, a gate or another responder become an open session; the model is told on request."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest

from sideplug.contract.errors import CloudError, InputError, SideplugError, Unreachable, WrongBase
from sideplug.contract.gate import Gate
from sideplug.contract.tap import Tap
from sideplug.contract.text import Prompt
from sideplug.contract.wire import MODEL_PATH
from sideplug.device.address import Address
from sideplug.device.client import Client, connect
from sideplug.device.responders import Listener
from sideplug.device.session import Session
from tests.conftest import Cloud, a_cloud, a_plugin, a_session, free_port
from tests.faults import Fault, faulty, once

PROMPT = Prompt.user("Is it far?")


def text(session: Session) -> str:
    return session.generate(PROMPT, 12).text


def test_an_open_session(cloud: Cloud) -> None:
    """By its URL or its address; the base, a plugin, a plugin with another gate."""
    plugin = a_plugin(cloud.base.fingerprint)
    with a_session(cloud.url) as session:
        base = text(session)
    with a_session(cloud.url, plugin) as session:
        want = text(session)
    assert want != base
    for url in (cloud.url, Address(cloud.url)):
        with connect(url) as session:
            assert session.model == Client.at(url).model()
            assert text(session) == base
        with connect(url, plugin) as session:
            assert text(session) == want
            assert session.usage.plugin_tokens == session.usage.reply_tokens
        with connect(url, plugin, Gate("shut")) as session:
            assert text(session) == base
            assert session.usage.asked == 0


def test_another_responder(cloud: Cloud) -> None:
    listener = Listener(Tap((0, 2), 16), 64)
    with Client.at(cloud.url).connect(responder=listener) as session:
        assert session.responder is listener
        reply = session.generate(PROMPT, 4)
        assert reply.text
    assert len(listener.heard) >= len(reply.ids)


def test_the_model(cloud: Cloud) -> None:
    model = Client.at(cloud.url).model()
    assert (model.name, model.fingerprint) == (cloud.base.name, cloud.base.fingerprint)
    served = cloud.engine.model
    shape = (served.blocks, served.width, served.vocab, served.context)
    assert (model.blocks, model.width, model.vocab, model.context) == shape
    assert model.chat


def test_all_messages_are_recorded(cloud: Cloud) -> None:
    heard: list[tuple[str, bytes]] = []
    client = Client(Address(cloud.url), lambda direction, message: heard.append((direction, message)))
    with client.connect() as session:
        assert text(session)
    for direction, counted in ((">", session.link.up), ("<", session.link.down)):
        assert sum(len(message) for way, message in heard if way == direction) == sum(counted.values()) > 0


def test_it_connects_again_and_says_so(cloud: Cloud) -> None:
    said: list[str] = []
    plugin = a_plugin(cloud.base.fingerprint)
    with connect(cloud.url, plugin) as session:
        want = text(session)
    with (
        faulty(cloud.url, once(Fault("reset", "down", 3))) as network,
        Client(Address(network.url, retry_s=20), say=said.append).connect(plugin) as session,
    ):
        assert text(session) == want
        assert session.usage.resumed == 1
    assert len(said) == 1
    assert said[0].endswith("closed the connection: trying again for up to 20 s")
    with (
        faulty(cloud.url, once(Fault("reset", "down", 3))) as network,
        Client(Address(network.url, retry_s=0)).connect(plugin) as session,
        pytest.raises(CloudError, match="closed the connection"),
    ):
        text(session)


def in_a_sentence(error: SideplugError) -> None:
    assert "\n" not in str(error)
    assert not str(error)[0].isupper()


def test_nobody_there() -> None:
    client = Client.at(f"ws://127.0.0.1:{free_port()}")
    for work in (client.model, client.connect):
        with pytest.raises(Unreachable, match=f"no cloud answers at {client.address.url} .*sideplug serve") as caught:
            work()
        in_a_sentence(caught.value)


@pytest.mark.parametrize("url", ["", "127.0.0.1:8765", "ftp://x", "ws://h:99999"])
def test_an_address_that_is_none(url: str) -> None:
    for work in (Client.at, connect):
        with pytest.raises(InputError, match="the cloud's address must look like") as caught:
            work(url)
        in_a_sentence(caught.value)


def test_a_plugin_of_another_base(cloud: Cloud, other: Path) -> None:
    with a_cloud(other) as another, pytest.raises(WrongBase, match="made for the base model") as caught:
        connect(another.url, a_plugin(cloud.base.fingerprint))
    in_a_sentence(caught.value)


def test_a_gate_of_another_width(cloud: Cloud) -> None:
    gate = Gate("linear", np.ones(5, np.float32))
    with pytest.raises(InputError, match="linear gates must have weights of") as caught:
        connect(cloud.url, a_plugin(cloud.base.fingerprint), gate)
    in_a_sentence(caught.value)


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """The address of a server that answers every plain request so."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == MODEL_PATH
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join(10)


WHOLE = {"name": "m", "fingerprint": "f" * 64, "blocks": 2, "width": 64, "vocab": 9, "context": 9, "chat": True}


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (200, b"<html>", "does not describe its model"),
        (200, b"[]", "does not describe its model"),
        (200, b"{}", "does not describe its model"),
        (200, json.dumps({**WHOLE, "blocks": 0}).encode(), "does not describe its model"),
        (200, json.dumps({**WHOLE, "fingerprint": "x"}).encode(), "does not describe its model"),
        (200, b"\xff\xfe", "does not describe its model|no cloud answers at"),
        (404, b"", "says HTTP 404"),
        (503, b'{"error": "it is full"}', "^it is full$"),
        (401, b'{"error": "show a key"}', "^show a key$"),
    ],
)
def test_a_model_that_is_not_told(status: int, body: bytes, says: str) -> None:
    with answering(status, body) as url, pytest.raises(CloudError, match=says) as caught:
        Client.at(url).model()
    in_a_sentence(caught.value)


def test_a_model_as_it_is_told() -> None:
    with answering(200, json.dumps(WHOLE).encode()) as url:
        assert Client.at(url).model().vocab == 9
