"""A service behind somebody else's web server: uvicorn, with queues without bounds between, as Ray Serve has them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from sideplug.cloud import asgi, fleet, flow_control
from sideplug.cloud.config import ServeConfig
from sideplug.cloud.keys import Keys
from sideplug.cloud.service import Service
from sideplug.cloud.session import OUTBOX_FRAMES, Gone
from sideplug.contract.errors import Busy, CloudError, SideplugError, Unauthorized
from sideplug.contract.frames import Cancel, Frame, PromptFrame, SamplingSpec
from sideplug.contract.sampling import Sampling
from sideplug.contract.text import Prompt
from sideplug.contract.wire import PATH, encode
from sideplug.device.reconnect import RetryPolicy
from tests.conftest import Cloud, a_link, a_plugin, a_session, eventually
from tests.raw_device import a_raw_device, ask_for_rows
from tests.test_resume import breaking

PROMPT = Prompt.user("Is it far to the mill?")
SAMPLED = Sampling(temperature=1.2, seed=5)
soon = partial(eventually, within_s=20.0)


class Carried:
    """What Ray does with an app: each WebSocket message is put into a queue, however long it is. `waiting`: bytes."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.waiting = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "websocket":
            await self._app(scope, receive, send)
            return
        up, down = asyncio.Queue[Any](), asyncio.Queue[Any]()

        async def put(message: Any) -> None:
            self.waiting += flow_control.size(message)
            down.put_nowait(message)

        async def fetch() -> None:
            while True:
                message = await receive()
                self.waiting += flow_control.size(message)
                up.put_nowait(message)
                if message["type"] == "websocket.disconnect":
                    return

        async def get() -> Any:
            message = await up.get()
            self.waiting -= flow_control.size(message)
            return message

        fetching, running = asyncio.create_task(fetch()), asyncio.create_task(self._app(scope, get, put))
        running.add_done_callback(lambda _: down.put_nowait(None))
        while (message := await down.get()) is not None:
            await send(message)
            self.waiting -= flow_control.size(message)
        fetching.cancel()
        await running


class Carrier:
    """A service at `url`; `carried` where there are queues, `bounded` where they are counted."""

    def __init__(self, folder: Path, bounded: bool = True, direct: bool = False, **settings: Any) -> None:
        told: dict[str, Any] = {"insecure": True, "bits": "16", "threads": 1, "kv_memory": 0.5, **settings}
        self.service: Service = fleet.replica(ServeConfig(model=str(folder), **told))
        self.app: Any = asgi.app(self.service, queued=not direct)
        self.carried = Carried(self.app)
        app: Any = self.app if direct else flow_control.FlowControl(self.carried) if bounded else self.carried
        config = uvicorn.Config(
            app, host="127.0.0.1", port=0, log_config=None, access_log=False, timeout_graceful_shutdown=3
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        soon(lambda: self._server.started)
        self.loop = self._server.servers[0].get_loop()
        self.url = f"ws://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()


@contextlib.contextmanager
def a_carrier(folder: Path, **settings: Any) -> Iterator[Carrier]:
    carrier = Carrier(folder, **settings)
    try:
        yield carrier
    finally:
        carrier.close()


def status(url: str, path: str, key: str = "") -> tuple[int, Any]:
    request = urllib.request.Request(url.replace("ws://", "http://") + path)
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_window_waits_while_too_much_is_on_its_way() -> None:
    async def scenario() -> None:
        window, taken = flow_control.Window(100), flow_control.Received()
        for _ in range(10):
            await window.room()
            window.send(10)
        waiting = asyncio.create_task(window.room())
        await asyncio.sleep(0)
        assert not waiting.done()
        window.acknowledge(1)
        await waiting
        window.send(500)  # a message may be longer than the window
        window.acknowledge(520)
        waiting = asyncio.create_task(window.room())
        window.open()
        await waiting
        assert [taken.add(flow_control.WINDOW // 8) for _ in range(4)] == [
            None,
            {"type": flow_control.NAME, "taken": flow_control.WINDOW // 4},
            None,
            {"type": flow_control.NAME, "taken": flow_control.WINDOW // 2},
        ]

    asyncio.run(scenario())


@pytest.mark.parametrize("how", [{"direct": True}, {"bounded": False}, {"bounded": True}], ids=str)
def test_a_session_is_what_it_is_on_a_socket_of_our_own(tiny: Path, cloud: Cloud, how: Any) -> None:
    plugin = a_plugin(cloud.base.fingerprint)
    with a_session(cloud.url, plugin) as session:
        want = "".join(piece.text for piece in session.generate(PROMPT, 40, SAMPLED))
    with a_carrier(tiny, **how) as carrier:
        with a_session(carrier.url, plugin) as session:
            for _ in range(2):
                assert "".join(piece.text for piece in session.generate(PROMPT, 40, SAMPLED)) == want
        soon(lambda: not carrier.service.sessions)
        session = a_session(
            breaking(carrier.url, 6), plugin, connect=lambda: a_link(carrier.url), retry=RetryPolicy(20.0)
        )
        assert "".join(piece.text for piece in session.generate(PROMPT, 40, SAMPLED)) == want
        assert session.usage.resumed == 1
        session.link.close()
        soon(lambda: not carrier.service.sessions)


def test_the_doors(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIDEPLUG_LOCAL_KEY", str(tmp_path / "none"))  # which another test's cloud may have left
    keys = Keys(tmp_path / "keys.json")
    ada = keys.add("ada", sessions=1)
    with a_carrier(tiny, keys=str(keys.path), insecure=False) as carrier:
        url = carrier.url
        assert status(url, "/v1/model")[0] == status(url, PATH)[0] == 401
        assert status(url, "/health") == (200, '{"status": "ok"}\n')
        about = json.loads(status(url, "/health", ada)[1])
        assert (about["status"], "sessions" in about) == ("ok", False)
        assert status(url, "/metrics", ada)[0] == 403
        assert "sideplug_model" in status(url, "/metrics", keys.add("op", role="operator"))[1]
        assert status(url, "/ready", ada)[0] == 200
        assert status(url, "/nothing", ada)[0] == 404
        assert status(url, PATH, ada)[0] == 426
        with pytest.raises(Unauthorized, match="this cloud wants a key"):
            a_link(url)
        with pytest.raises(CloudError, match="says HTTP 404"):
            a_link(url + "/elsewhere", key=ada)
        link = a_link(url, key=ada)
        a_session(link)
        with pytest.raises(Busy, match="this key has its 1 sessions"):
            a_link(url, key=ada)
        keys.revoke("ada")
        with pytest.raises(Unauthorized, match="was revoked"):
            link.receive()
        link.close()


def test_where_http_can_not_refuse_a_websocket_it_is_closed(tiny: Path) -> None:
    """A server without the extension: HTTP 403 comes of it."""
    said: list[Any] = []

    async def scenario(service: Service) -> None:
        async def send(message: Any) -> None:
            said.append(message)

        async def receive() -> Any:
            return {"type": "websocket.connect"}

        app = asgi.WebSocketApp(service, queued=False)
        await app({"type": "websocket", "path": "/x", "headers": []}, receive, send)

    with a_carrier(tiny) as carrier:
        asyncio.run(scenario(carrier.service))
    assert said == [{"type": "websocket.close", "code": 1008, "reason": ""}]


def test_one_that_goes_down_takes_nobody_new(tiny: Path) -> None:
    with a_carrier(tiny) as carrier:
        link = a_link(carrier.url)
        a_session(link)
        draining = asyncio.run_coroutine_threadsafe(carrier.service.drain(), carrier.loop)
        with pytest.raises(CloudError, match="closed the connection: the cloud is going down"):
            link.receive()
        draining.result(20)
        with pytest.raises(Busy, match="this part of the cloud is going down") as refused:
            a_link(carrier.url)
        assert refused.value.retry_s
        link.close()


@pytest.mark.parametrize("bounded", [False, True])
def test_what_a_device_does_not_read_does_not_pile_up(tiny: Path, bounded: bool) -> None:
    """The same flood with and without our count: without, it waits in queues, 20 MB of it."""
    with a_carrier(tiny, bounded=bounded) as carrier, a_raw_device(carrier.url) as connection:
        ask_for_rows(connection, carrier.service.counters)
        waiting = carrier.carried.waiting
        assert waiting < 2 * flow_control.WINDOW if bounded else waiting > 8 * flow_control.WINDOW
        while carrier.carried.waiting:  # and all of it comes
            connection.recv(10)


@pytest.mark.parametrize("bounded", [False, True])
def test_what_a_session_does_not_read_does_not_either(tiny: Path, bounded: bool) -> None:
    """One whose device reads nothing is not read from; what the device goes on to say waits at the device."""
    with a_carrier(tiny, bounded=bounded) as carrier, a_raw_device(carrier.url) as connection:
        connection.recv(10)
        (session,) = carrier.service.sessions
        go_on = asyncio.Event()

        async def hold(frame: Frame) -> None:
            await go_on.wait()
            raise Gone

        session._transmit = hold  # type: ignore[method-assign]
        cancel = Cancel(1)
        carrier.loop.call_soon_threadsafe(lambda: [session._put(cancel) for _ in range(2 * OUTBOX_FRAMES)])
        prompt = PromptFrame(1, 1, SamplingSpec(), text="x" * 100_000)

        def talk() -> None:
            with contextlib.suppress(ConnectionClosed, OSError):
                for number in range(200):
                    connection.send(encode(cancel if number == 0 else prompt, number + 1))

        talking = threading.Thread(target=talk, daemon=True)
        talking.start()
        talking.join(3.0)
        assert talking.is_alive() == bounded
        unread: Any = session._connection
        waiting = carrier.carried.waiting + 100_000 * unread._inbox.qsize()
        assert waiting < 2 * flow_control.WINDOW if bounded else waiting > 8 * flow_control.WINDOW
        carrier.loop.call_soon_threadsafe(unread.abort)
        carrier.loop.call_soon_threadsafe(go_on.set)
        talking.join(10)
        assert not talking.is_alive()
        soon(lambda: not carrier.service.sessions)


def test_who_reads_nothing_for_long_is_cut_off(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_control, "STALL_S", 0.3)
    with a_carrier(tiny) as carrier, a_raw_device(carrier.url) as connection:
        ask_for_rows(connection, carrier.service.counters)
        soon(lambda: not carrier.service.sessions)


@pytest.mark.parametrize("bounded", [False, True])
def test_where_nobody_counts_it_is_said_once(tiny: Path, bounded: bool, caplog: pytest.LogCaptureFixture) -> None:
    with a_carrier(tiny, bounded=bounded) as carrier:
        for _ in range(2):
            with a_session(carrier.url):
                pass
    assert len([line for line in caplog.messages if "has no flow control" in line]) == (not bounded)


def test_an_end_in_the_middle_is_an_end(tiny: Path) -> None:
    with a_carrier(tiny) as carrier:
        link = a_link(carrier.url)
        a_session(link)
        (session,) = carrier.service.sessions
        carrier.loop.call_soon_threadsafe(session._connection.abort)
        with pytest.raises(SideplugError, match="closed the connection"):
            link.receive()
        soon(lambda: not carrier.service.sessions)
        link.close()


def test_text_is_no_frame(tiny: Path) -> None:
    with a_carrier(tiny) as carrier, connect(carrier.url + PATH, compression=None) as connection:
        connection.send("hello")
        assert b"a message must be binary" in connection.recv(10)  # type: ignore[operator]


def test_ray_finds_the_middleware() -> None:
    (middleware,) = flow_control.middlewares()
    assert middleware.cls is flow_control.FlowControl
