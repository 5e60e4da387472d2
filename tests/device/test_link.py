"""The device's end: addresses, TLS with a real certificate, a cloud that is not there or is something else."""

import asyncio
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme
from websockets.asyncio.server import serve
from websockets.sync.client import connect

from sideplug.contract.errors import CloudError, InputError, ProtocolError, Unreachable
from sideplug.contract.text import Prompt
from sideplug.contract.wire import Frame, Kind, decode, encode
from sideplug.device.link import WebSocketLink
from sideplug.device.runtime import AHEAD, Session
from sideplug.listen import bind
from tests.conftest import Cloud, a_session


def closed_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_nobody_there() -> None:
    with pytest.raises(Unreachable, match="no cloud answers at .*sideplug serve"):
        WebSocketLink.connect(f"ws://127.0.0.1:{closed_port()}")


@pytest.mark.parametrize("url", ["", "127.0.0.1:8765", "ftp://x", "ws://", "ws://h:99999"])
def test_bad_addresses(url: str) -> None:
    with pytest.raises(InputError, match="the cloud's address"):
        WebSocketLink.connect(url)


def test_something_else_answers(cloud: Cloud) -> None:
    with pytest.raises(Unreachable, match="is no sideplug cloud"):
        WebSocketLink.connect(cloud.url + "/elsewhere")


def test_bytes_are_counted_by_kind(cloud: Cloud) -> None:
    with a_session(cloud.url) as session:
        list(session.generate(Prompt(ids=(5, 6)), 4))
        assert set(session.link.up) == {"OPEN", "PROMPT"}
        assert set(session.link.down) == {"OPENED", "BEGUN", "TOKENS", "DONE"}
        control = {"turn": 1, "ids": [5, 6], "max_tokens": 4, "sampling": session_sampling()}
        control |= {"ahead": AHEAD, "deadline_ms": 0}
        assert session.link.up["PROMPT"] == len(encode(Frame(Kind.PROMPT, control)))


def session_sampling() -> dict[str, Any]:
    from sideplug.contract.sampling import Sampling

    return Sampling().to_wire()


class Fake:
    """A WebSocket server that says whatever a test tells it to."""

    def __init__(self, answers: list[bytes | str | None]) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

        async def handle(connection: Any) -> None:
            for answer in answers:
                await connection.recv()
                if answer is None:
                    return
                await connection.send(answer)
            await connection.wait_closed()

        async def start() -> Any:
            return await serve(handle, "127.0.0.1", 0)

        self.server = asyncio.run_coroutine_threadsafe(start(), self.loop).result(10)
        self.url = f"ws://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    def close(self) -> None:
        async def stop() -> None:
            self.server.close()
            await self.server.wait_closed()

        asyncio.run_coroutine_threadsafe(stop(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()


OPENED = {
    "session": "s",
    "model": {"name": "m", "fingerprint": "f", "blocks": 2, "width": 64, "vocab": 99, "context": 9, "chat": True},
    "limits": {"readings": 8},
}


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        ([b"garbage"], ProtocolError),
        (["text"], CloudError),
        ([None], CloudError),
        ([encode(Frame(Kind.DONE, {"turn": 1, "why": "", "prompt": 0, "reply": 0, "counts": {}}))], ProtocolError),
        ([encode(Frame(Kind.OPENED, {**OPENED, "model": {}}))], ProtocolError),
        ([encode(Frame(Kind.OPENED, {**OPENED, "limits": {}}))], ProtocolError),
        ([encode(Frame(Kind.OPENED, OPENED)), None], CloudError),
        ([encode(Frame(Kind.OPENED, OPENED)), encode(Frame(Kind.OPENED, OPENED))], ProtocolError),
        (
            [
                encode(Frame(Kind.OPENED, OPENED)),
                encode(Frame(Kind.DONE, {"turn": 5, "why": "", "prompt": 0, "reply": 0, "counts": {}})),
            ],
            ProtocolError,
        ),
    ],
)
def test_a_cloud_that_misbehaves(answers: list[bytes | str | None], error: type[Exception]) -> None:
    fake = Fake(answers)
    link = WebSocketLink.connect(fake.url)
    try:
        with pytest.raises(error) as caught:
            list(Session.open(link).generate(Prompt(text="hi"), 4))
        assert "\n" not in str(caught.value)
    finally:
        link.close()
        fake.close()


@pytest.fixture
def tls(tmp_path: Path) -> Iterator[tuple[trustme.CA, Path]]:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    yield ca, tmp_path / "ca.pem"


def test_tls(cloud: Cloud, tls: tuple[trustme.CA, Path]) -> None:
    """A second listener of the same cloud, with a certificate: trusted when told to, refused when not."""
    ca, pem = tls
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    first = cloud.server._server
    url = cloud._call(cloud.server.start(bind("127.0.0.1", 0), context))
    second, cloud.server._server = cloud.server._server, first
    try:
        link = WebSocketLink.connect(url, pem)
        pieces = list(Session.open(link).generate(Prompt(ids=(5, 6)), 3))
        assert sum(len(p.ids) for p in pieces) <= 3
        link.close()
        with pytest.raises(Unreachable, match="not trusted"):
            WebSocketLink.connect(url)
    finally:
        second.close()
        cloud._call(second.wait_closed())


def test_health(cloud: Cloud) -> None:
    import json
    import urllib.request

    with urllib.request.urlopen(cloud.url.replace("ws:", "http:") + "/health") as answer:
        about = json.load(answer)
    assert about["status"] == "ok"
    assert about["fingerprint"] == cloud.base.fingerprint


def test_decode_is_what_connect_gives(cloud: Cloud) -> None:
    """The wire from a client that is not ours: plain websockets, plain frames."""
    with connect(cloud.url + "/v1/session") as ws:
        ws.send(
            encode(
                Frame(
                    Kind.OPEN,
                    {"base": "", "tap": "", "merge": "add", "gate": {"kind": "shut"}, "client": "test"},
                    {"gate": np.zeros(0, np.float32)},
                )
            )
        )
        opened = decode(ws.recv())  # type: ignore[arg-type]
        assert opened.kind is Kind.OPENED
        assert opened["model"]["width"] == 64
