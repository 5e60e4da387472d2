"""The device's end: addresses, TLS with a real certificate, a cloud that is not there or is something else."""

import asyncio
import contextlib
import hashlib
import itertools
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import trustme
from websockets.asyncio.server import serve
from websockets.sync.client import connect

from sideplug.contract.errors import Busy, CloudError, InputError, ProtocolError, Unauthorized, Unreachable
from sideplug.contract.frames import Done, GateSpec, Kind, ModelInfo, Open, Opened, PromptFrame, Scored, SessionLimits
from sideplug.contract.sampling import Sampling
from sideplug.contract.text import Prompt
from sideplug.contract.wire import HEADER_BYTES, decode, encode, join
from sideplug.device.address import Address
from sideplug.device.reply import WINDOW
from sideplug.sockets import bind
from tests.conftest import Cloud, a_link, a_session


def closed_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_nobody_there() -> None:
    with pytest.raises(Unreachable, match="no cloud answers at .*sideplug serve"):
        a_link(f"ws://127.0.0.1:{closed_port()}")


@pytest.mark.parametrize("url", ["", "127.0.0.1:8765", "ftp://x", "ws://", "ws://h:99999", "ws://h#@127.0.0.1"])
def test_bad_addresses(url: str) -> None:
    with pytest.raises(InputError, match="the cloud's address"):
        a_link(url)


def test_something_else_answers(cloud: Cloud) -> None:
    with pytest.raises(Unreachable, match="is no sideplug cloud"):
        a_link(cloud.url + "/elsewhere")


def test_one_that_resets_every_connection_is_not_there() -> None:
    """Before, in or after the handshake: as a machine does that goes down just then."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def reset() -> None:
            with contextlib.suppress(OSError):
                for n in itertools.count():
                    line, _ = listener.accept()
                    time.sleep(0.003 * (n % 3))
                    line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    line.close()

        threading.Thread(target=reset, daemon=True).start()
        for _ in range(30):
            with pytest.raises(Unreachable):
                a_link(f"ws://127.0.0.1:{listener.getsockname()[1]}")
        listener.shutdown(socket.SHUT_RDWR)


def test_bytes_are_counted_by_kind(cloud: Cloud) -> None:
    with a_session(cloud.url) as session:
        list(session.generate(Prompt(ids=(5, 6)), 4))
        assert set(session.link.up) == {"OPEN", "PROMPT"}
        assert set(session.link.down) == {"OPENED", "BEGUN", "TOKENS", "DONE"}
        prompt = PromptFrame(1, 4, Sampling().to_wire(), ids=[5, 6], window=WINDOW)
        assert session.link.up["PROMPT"] == len(encode(prompt))


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


MODEL = ModelInfo("m", "f" * 64, blocks=2, width=64, vocab=99, context=9, chat=True)
OPENED = encode(Opened("s", MODEL, SessionLimits(8, 1 << 20)))


def done(turn: int, number: int = 0) -> bytes:
    return encode(Done(turn, "", 0, 0, {}), number)


def opened(**changed: Any) -> bytes:
    """OPENED with other values, as a cloud that does not keep to the wire would send it."""
    control = decode_control(OPENED)
    return join(Kind.OPENED, msgspec.msgpack.encode({**control, **changed}))


def decode_control(message: bytes) -> dict[str, Any]:
    return dict(msgspec.msgpack.decode(message[HEADER_BYTES:]))


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        ([b"garbage"], ProtocolError),
        (["text"], CloudError),
        ([None], CloudError),
        ([done(1)], ProtocolError),
        ([opened(model={})], ProtocolError),
        ([opened(limits={})], ProtocolError),
        ([OPENED, None], CloudError),
        ([OPENED, OPENED], ProtocolError),
        ([OPENED, encode(Opened("s", MODEL, SessionLimits(8, 1 << 20)), 1)], ProtocolError),
        ([OPENED, done(5)], ProtocolError),
        ([OPENED, done(5, 1)], ProtocolError),
        ([OPENED, encode(Scored(0, np.zeros(1, np.float32), np.zeros(1, np.float32)), 1)], ProtocolError),
    ],
)
def test_a_cloud_that_misbehaves(answers: list[bytes | str | None], error: type[Exception]) -> None:
    fake = Fake(answers)
    link = a_link(fake.url)
    try:
        with pytest.raises(error) as caught:
            list(a_session(link).generate(Prompt(text="hi"), 4))
        assert "\n" not in str(caught.value)
    finally:
        link.close()
        fake.close()


@pytest.fixture
def tls(tmp_path: Path) -> Iterator[tuple[trustme.CA, Path]]:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    yield ca, tmp_path / "ca.pem"


def test_a_broken_line_prints_nothing(cloud: Cloud) -> None:
    """What websockets logs of one (two tracebacks where a machine slept) is for nobody: our own sentence says it."""
    code = (
        "import logging, sys; logging.basicConfig()\n"
        "from sideplug.device.link import WebSocketLink; from sideplug.device.address import Address; "
        "link = WebSocketLink.open(Address(sys.argv[1])); "
        "link._connection.logger.error('unexpected internal error'); link.close()"
    )
    done = subprocess.run([sys.executable, "-c", code, cloud.url], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_tls(cloud: Cloud, tls: tuple[trustme.CA, Path]) -> None:
    """A second listener of the same cloud, with a certificate: trusted when told to, refused when not."""
    ca, pem = tls
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    first = cloud.server._server
    url = cloud._call(cloud.server.start(bind("127.0.0.1", 0), context))
    second, cloud.server._server = cloud.server._server, first
    try:
        link = a_link(url, pem)
        pieces = list(a_session(link).generate(Prompt(ids=(5, 6)), 3))
        assert sum(len(p.ids) for p in pieces) <= 3
        link.close()
        with pytest.raises(Unreachable, match="not trusted"):
            a_link(url)
    finally:
        second.close()
        cloud._call(second.wait_closed())


PIN = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"url": "wss://h", "pin": "sha256:00"}, "a pin must look like sha256: and 64 hex digits, got 'sha256:00'"),
        ({"url": "wss://h", "pin": "0" * 64}, "a pin must look like"),
        ({"url": "wss://h", "pin": PIN + "\n"}, "a pin must look like"),
        ({"url": "wss://h", "pin": "sha512:" + "0" * 64}, "a pin must look like"),
        ({"url": "ws://127.0.0.1", "pin": PIN}, "a pin needs a certificate, and ws://127.0.0.1 has none"),
        ({"url": "http://h", "pin": PIN}, "a pin needs a certificate"),
        ({"url": "ws://h", "key": "sp-a-b"}, "the key would travel to ws://h in the clear: give a wss:// address"),
        ({"url": "http://localhost.h", "key": "sp-a-b"}, "in the clear"),
        ({"url": "ws://127.0.0.1@h", "key": "sp-a-b"}, "in the clear"),
        ({"url": "ws://192.0.2.1:1", "key": "sp-a-b"}, "in the clear"),
        ({"url": "wss://h", "key": "sp-a b"}, "must be one word of ASCII"),
        ({"url": "wss://h", "key": "sp-a-b\r\nX: y"}, "must be one word of ASCII"),
        ({"url": "wss://h", "key": "schlüssel"}, "must be one word of ASCII"),
        ({"url": "wss://h", "key": "x" * 2000}, "must be one word of ASCII"),
    ],
)
def test_bad_keys_and_pins(how: dict[str, str], says: str) -> None:
    with pytest.raises(InputError) as caught:
        a_link(**how)  # type: ignore[arg-type]
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "sp-a" not in str(caught.value)


def test_an_address_does_not_show_its_key() -> None:
    assert "secret" not in repr(Address("wss://h", key="sp-1-secret"))


def test_the_local_key_is_for_this_machine_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "local-key"
    monkeypatch.setenv("SIDEPLUG_LOCAL_KEY", str(file))
    assert Address("ws://127.0.0.1:1").bearer == ""
    file.write_text("sp-1-secret\n")
    for url in ("ws://127.0.0.1:1", "ws://localhost", "wss://LOCALHOST:1", "http://[::1]:9", "ws://x@127.0.0.1"):
        assert Address(url).bearer == "sp-1-secret"
        assert Address(url, key="own").bearer == "own"
    for url in (
        "ws://127.0.0.2",
        "wss://h",
        "ws://127.0.0.1.h",
        "ws://127.0.0.1@h",
        "ws://0.0.0.0",
    ):
        assert Address(url).bearer == ""
    for garbage in (b"", b"two words", b"\xff", b"a\r\nb", b"x" * 2000):
        file.write_bytes(garbage)
        assert Address("ws://127.0.0.1:1").bearer == ""


class Answering:
    """Answers one connection with these bytes (behind TLS, where there is a context), and keeps what it got."""

    def __init__(self, answer: bytes, context: ssl.SSLContext | None = None) -> None:
        self.got = b""
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self._serve, args=(answer, context), daemon=True)
        self.thread.start()

    def _serve(self, answer: bytes, context: ssl.SSLContext | None) -> None:
        connection, _ = self.listener.accept()
        connection.settimeout(20)
        try:
            if context is not None:
                connection = context.wrap_socket(connection, server_side=True)
            while not self.got.endswith(b"\r\n\r\n") and (more := connection.recv(4096)):
                self.got += more
            if self.got:
                connection.sendall(answer)
        except OSError:
            pass
        finally:
            connection.close()
            self.listener.close()


REFUSALS = [
    (401, b'{"error": "no, thank you"}', Unauthorized, "no, thank you"),
    (429, b'{"error": "two are enough"}', Busy, "two are enough"),
    (503, b'{"error": "full"}', Busy, "full"),
    (503, b"<html>", Busy, "ws://127.0.0.1:PORT says HTTP 503"),
    (401, b"", Unauthorized, "ws://127.0.0.1:PORT says HTTP 401"),
    (401, b'{"error": "   "}', Unauthorized, "ws://127.0.0.1:PORT says HTTP 401"),
    (401, b"[" * 5000, Unauthorized, "ws://127.0.0.1:PORT says HTTP 401"),
    (429, b'{"error": "a\\n\\u001b[2Jb\\u202ec"}', Busy, r"a \x1b[2Jb\u202ec"),
    (429, b'{"error": "' + b"x" * 9000 + b'"}', Busy, "x" * 300),
    (404, b'{"error": "no such path"}', Unreachable, "answers, but is no sideplug cloud: it says HTTP 404"),
    (500, b"", Unreachable, "answers, but is no sideplug cloud: it says HTTP 500"),
]


@pytest.mark.parametrize(("status", "body", "error", "says"), REFUSALS, ids=lambda x: repr(x)[:40])
def test_refusals(status: int, body: bytes, error: type[Exception], says: str) -> None:
    server = Answering(b"HTTP/1.1 %d No\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body)
    with pytest.raises(error) as caught:
        a_link(f"ws://127.0.0.1:{server.port}", key="sp-1-secret")
    assert type(caught.value) is error
    found = str(caught.value)
    assert found.endswith(says.replace("PORT", str(server.port)))
    assert len(found) <= 400
    assert found.isprintable()
    server.thread.join(20)
    assert b"\r\nAuthorization: Bearer sp-1-secret\r\n" in server.got


def test_behind_a_wrong_pin_nothing_is_sent(tls: tuple[trustme.CA, Path]) -> None:
    """Neither the key nor a request: the line ends with the handshake, though the certificate itself is trusted."""
    ca, pem = tls
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    server = Answering(b"", context)
    with pytest.raises(Unreachable, match=f"and not {PIN}, which --pin asks for"):
        a_link(f"wss://127.0.0.1:{server.port}", pem, key="sp-1-secret", pin=PIN)
    server.thread.join(20)
    assert server.got == b""


def test_a_pin_holds_inside_of_another_tls_too(tls: tuple[trustme.CA, Path]) -> None:
    """As behind an https proxy, where TLS is done in memory."""
    ca, _ = tls
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf = ca.issue_cert("127.0.0.1")
    leaf.configure_cert(theirs)
    der = ssl.PEM_cert_to_DER_cert(leaf.cert_chain_pems[0].bytes().decode())
    right = "sha256:" + hashlib.sha256(der).hexdigest()
    for pin in (right, PIN):
        ours = Address("wss://127.0.0.1", pin=pin).tls()
        assert ours is not None
        up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
        client, server = ours.wrap_bio(down, up), theirs.wrap_bio(up, down, server_side=True)

        def shake(client: ssl.SSLObject = client, server: ssl.SSLObject = server) -> None:
            for side in (client, server) * 4:
                with contextlib.suppress(ssl.SSLWantReadError):
                    side.do_handshake()

        if pin == right:
            shake()
        else:
            with pytest.raises(Unreachable, match="which --pin asks for"):
                shake()


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
        ws.send(encode(Open("", "", "add", [GateSpec("shut")], "test", np.zeros((0, 0), np.float32))))
        opened = decode(ws.recv())  # type: ignore[arg-type]
        assert isinstance(opened, Opened)
        assert opened.model.width == 64
