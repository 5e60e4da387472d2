"""The faulty network itself: each of its faults, seen from both ends, and nothing else."""

import gc
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, ConnectionClosedOK
from websockets.frames import Frame as Written
from websockets.frames import Opcode
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import ServerConnection, serve

from tests.conftest import eventually
from tests.faults import KINDS, Direction, Fault, Plan, Proxy, binary, faulty, once, reset, seeded

BOTH = pytest.mark.parametrize("direction", ["up", "down"])
SENT = [bytes([i]) * (i + 1) for i in range(5)]  # the message at which a fault strikes is 2


class Echo:
    """A WebSocket server that says back what it hears, and keeps it; `ends`: how its connections ended."""

    def __init__(self, says: bytes = b"") -> None:
        self.heard: list[Any] = []
        self.ends: list[ConnectionClosed] = []
        self._says = says
        options: dict[str, Any] = {"compression": None, "max_size": None, "ping_interval": None}
        self._server = serve(self._talk, "127.0.0.1", 0, **options)
        self.port = self._server.socket.getsockname()[1]
        self.url = f"ws://127.0.0.1:{self.port}/talk"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def _talk(self, socket: ServerConnection) -> None:
        if self._says:
            socket.send(self._says)
        try:
            while True:
                self.heard.append(socket.recv())
                socket.send(self.heard[-1])
        except ConnectionClosed as end:
            self.ends.append(end)

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join(10)


@contextmanager
def an_echo(says: bytes = b"") -> Iterator[Echo]:
    server = Echo(says)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    with an_echo() as server:
        yield server


@contextmanager
def a_client(url: str) -> Iterator[ClientConnection]:
    with connect(url, compression=None, max_size=None, ping_interval=None, close_timeout=5) as client:
        yield client


def talk(echo: Echo, plan: Plan, answers: int = len(SENT)) -> tuple[list[Any], Proxy]:
    """Send SENT through a network and read so many answers: the answers, and the network as it was."""
    with faulty(echo.url, plan) as proxy, a_client(proxy.url) as client:
        for message in SENT:
            client.send(message)
        got = [client.recv(5) for _ in range(answers)]
    return got, proxy


@contextmanager
def wire(plan: Plan) -> Iterator[tuple[socket.socket, socket.socket, Proxy]]:
    """A client's and a server's bare sockets, past the upgrade, with a network between them."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)
        url = f"ws://127.0.0.1:{listener.getsockname()[1]}"
        with faulty(url, plan) as proxy, dial(proxy) as client:
            client.sendall(b"GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n")
            server, _ = listener.accept()
            with server:
                server.settimeout(5)
                assert server.recv(1000).endswith(b"\r\n\r\n")
                server.sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
                assert client.recv(1000).endswith(b"\r\n\r\n")
                yield client, server, proxy


def dial(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(proxy.url.split(":")[2].split("/")[0])), 5)


def written(payload: bytes, direction: Direction, opcode: Opcode = Opcode.BINARY, final: bool = True) -> bytes:
    return Written(opcode, payload, final).serialize(mask=direction == "up")


def other(direction: Direction) -> Direction:
    return "down" if direction == "up" else "up"


def read(end: socket.socket, size: int = 1 << 30) -> bytes:
    """So many bytes, or all until the end."""
    got = b""
    while len(got) < size and (piece := end.recv(min(size - len(got), 1 << 16))):
        got += piece
    return got


def what(proxy: Proxy) -> list[str]:
    return [done.what for done in proxy.log]


def test_no_fault_passes_everything(echo: Echo) -> None:
    rng = random.Random(0)
    sizes = [rng.choice((0, 1, 125, 126, 127, rng.randint(0, 5000), rng.randint(0, 5000))) for _ in range(970)]
    sizes += [65535, 65536, 65537] + [rng.randint(60_000, 300_000) for _ in range(27)]
    rng.shuffle(sizes)
    sent: list[str | bytes] = [rng.randbytes(size) if size % 7 else "é" * size for size in sizes]
    got: list[str | bytes] = []
    with faulty(echo.url) as proxy, a_client(proxy.url) as client:
        reader = threading.Thread(target=lambda: got.extend(client.recv(10) for _ in sent))
        reader.start()
        for message in sent:
            client.send(message)
        reader.join()
    assert proxy.url.endswith("/talk")
    assert len(sent) == 1000
    assert echo.heard == sent
    assert got == sent
    assert proxy.connections == 1
    assert not proxy.log
    eventually(lambda: [type(end) for end in echo.ends] == [ConnectionClosedOK])


@BOTH
@pytest.mark.parametrize("seed", range(3))
def test_flip(echo: Echo, direction: Direction, seed: int) -> None:
    fault = Fault("flip", direction, 2, seed=seed)
    got, proxy = talk(echo, once(fault))
    assert [i for i in range(5) if got[i] != SENT[i]] == [2]
    assert len(got[2]) == 3
    assert sum(a != b for a, b in zip(got[2], SENT[2], strict=True)) == 1
    assert echo.heard == (got if direction == "up" else SENT)
    assert [done.fault for done in proxy.log] == [fault]
    assert got == talk(echo, once(fault))[0]


def test_flips_differ_with_their_seed(echo: Echo) -> None:
    assert len({talk(echo, once(Fault("flip", "up", 4, seed=seed)))[0][4] for seed in range(8)}) > 4


def test_flip_of_nothing() -> None:
    with wire(once(Fault("flip", "up", 0))) as (client, server, proxy):
        client.sendall(written(b"", "up"))
        assert server.recv(100)[:2] == b"\x82\x80"
        assert what(proxy) == ["an empty payload: no byte to flip"]


@BOTH
def test_duplicate(echo: Echo, direction: Direction) -> None:
    got, proxy = talk(echo, once(Fault("duplicate", direction, 2)), 6)
    assert got == [*SENT[:3], SENT[2], *SENT[3:]]
    assert echo.heard == (got if direction == "up" else SENT)
    assert what(proxy) == ["duplicate"]


@BOTH
def test_reorder(echo: Echo, direction: Direction) -> None:
    got, proxy = talk(echo, once(Fault("reorder", direction, 2)))
    assert got == [SENT[i] for i in (0, 1, 3, 2, 4)]
    assert echo.heard == (got if direction == "up" else SENT)
    assert what(proxy) == ["reorder"]


@BOTH
def test_reorder_of_the_last(echo: Echo, direction: Direction) -> None:
    """With none behind it it comes late; and before the close, if that is sooner."""
    got, proxy = talk(echo, once(Fault("reorder", direction, 4, seconds=0.05)))
    assert got == echo.heard == SENT
    assert what(proxy) == ["reorder", "sent the held message, with none behind it"]
    with wire(once(Fault("reorder", direction, 0))) as (client, server, _):
        source, sink = (client, server) if direction == "up" else (server, client)
        message, ping = written(b"abc", direction), written(b"", direction, Opcode.PING)
        closing = written(b"\x03\xe8", direction, Opcode.CLOSE)
        source.sendall(message + ping + closing)
        source.shutdown(socket.SHUT_WR)
        assert read(sink) == ping + message + closing


def test_reorder_of_two(echo: Echo) -> None:
    got, _ = talk(echo, lambda number: [Fault("reorder", "up", 2), Fault("reorder", "up", 3)])
    assert got == [SENT[i] for i in (0, 1, 4, 3, 2)]


@BOTH
def test_garbage(echo: Echo, direction: Direction) -> None:
    for seed in range(4):
        echo.heard.clear()
        got, proxy = talk(echo, once(Fault("garbage", direction, 2, seed=seed)), 6)
        assert got[:2] + got[3:] == SENT
        assert what(proxy) == [f"{len(got[2])} bytes of garbage"]
        assert echo.heard == (got if direction == "up" else SENT)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 513])
def test_garbage_is_well_formed(size: int) -> None:
    payload = random.Random(size).randbytes(size)
    assert binary(payload) == written(payload, "down")
    masked = binary(payload, b"mask")
    assert masked[-size - 4 :][:4] == b"mask"
    assert len(masked) == len(written(payload, "up"))


@BOTH
def test_delay(echo: Echo, direction: Direction) -> None:
    """The message is held, and those behind it; those before it, and the other way, are not."""
    fault = Fault("delay", direction, 2, seconds=0.2)
    start = time.monotonic()
    got, proxy = talk(echo, once(fault))
    assert time.monotonic() - start >= 0.2
    assert got == echo.heard == SENT
    assert [done.fault for done in proxy.log] == [fault]
    with wire(once(Fault("delay", direction, 1, seconds=600))) as (client, server, _):
        source, sink = (client, server) if direction == "up" else (server, client)
        first, back = written(b"first", direction), written(b"back", other(direction))
        source.sendall(first + written(b"second", direction) + written(b"third", direction))
        assert read(sink, len(first)) == first
        sink.sendall(back)
        assert read(source, len(back)) == back
        sink.settimeout(0.05)
        with pytest.raises(TimeoutError):
            sink.recv(1)


@BOTH
def test_truncate(echo: Echo, direction: Direction) -> None:
    with wire(once(Fault("truncate", direction, 1))) as (client, server, proxy):
        source, sink = (client, server) if direction == "up" else (server, client)
        first, second = written(b"whole", direction), written(bytes(100_000), direction)
        source.sendall(first + second)
        assert read(sink) == first + second[: len(second) // 2]
        assert read(source) == b""
        assert what(proxy) == ["truncate"]
    with faulty(echo.url, once(Fault("truncate", direction, 2))) as proxy, a_client(proxy.url) as client:
        for message in SENT[:2]:
            client.send(message)
            assert client.recv(5) == message
        client.send(SENT[2])
        with pytest.raises(ConnectionClosedError):
            client.recv(5)
    eventually(lambda: [type(end) for end in echo.ends] == [ConnectionClosedError])
    assert echo.heard == SENT[: 2 if direction == "up" else 3]


@BOTH
def test_reset(echo: Echo, direction: Direction) -> None:
    with faulty(echo.url, once(Fault("reset", direction, 2))) as proxy, a_client(proxy.url) as client:
        for message in SENT[:2]:
            client.send(message)
            assert client.recv(5) == message
        client.send(SENT[2])
        with pytest.raises(ConnectionClosedError) as raised:
            client.recv(5)
        assert isinstance(raised.value.__cause__, ConnectionResetError)
        eventually(lambda: echo.ends)
        with a_client(proxy.url) as again:  # the plan was for the first connection
            again.send(SENT[2])
            assert again.recv(5) == SENT[2]
    assert proxy.connections == 2
    assert isinstance(echo.ends[0].__cause__, ConnectionResetError)
    assert [done.connection for done in proxy.log] == [0]
    assert what(proxy) == ["reset"]


@BOTH
def test_half_open(direction: Direction) -> None:
    """Silence both ways, not an end; then one end gives up, and the other is reset."""
    with wire(once(Fault("half-open", direction, 0))) as (client, server, proxy):
        source, sink = (client, server) if direction == "up" else (server, client)
        for end, way in ((source, direction), (sink, other(direction))):
            end.sendall(written(b"lost", way))
            eventually(lambda: proxy.log)
        for end in (client, server):
            end.settimeout(0.05)
            with pytest.raises(TimeoutError):
                end.recv(1)
            end.settimeout(5)
        source.sendall(bytes(10_000_000))  # nobody blocks: it is read, and dropped
        client.close()
        with pytest.raises(ConnectionResetError):
            server.recv(1)


def test_half_open_for_a_time(echo: Echo) -> None:
    with faulty(echo.url, once(Fault("half-open", "down", 0, seconds=0.2))) as proxy, a_client(proxy.url) as client:
        client.send(b"x")
        with pytest.raises(TimeoutError):
            client.recv(0.05)
        with pytest.raises(ConnectionClosedError) as raised:
            client.recv(5)
        assert isinstance(raised.value.__cause__, ConnectionResetError)
    eventually(lambda: echo.ends)
    assert isinstance(echo.ends[0].__cause__, ConnectionResetError)


def test_several_faults_at_one_message(echo: Echo) -> None:
    kinds = ("reorder", "garbage", "duplicate", "flip")
    got, proxy = talk(echo, lambda number: [Fault(kind, "up", 2) for kind in kinds], 7)  # type: ignore[arg-type]
    garbage, flipped = got[3], got[4]
    assert got == [*SENT[:2], SENT[3], garbage, flipped, flipped, SENT[4]]
    assert flipped != SENT[2]
    assert [done.fault.kind for done in proxy.log if done.fault] == ["flip", "duplicate", "garbage", "reorder"]


@BOTH
def test_fragments_and_control_frames(direction: Direction) -> None:
    """A message of three frames is one; the ping inside it passes, and neither counts."""
    with wire(once(Fault("flip", direction, 1, seed=5))) as (client, server, proxy):
        source, sink = (client, server) if direction == "up" else (server, client)
        ping = written(b"are you there", direction, Opcode.PING)
        first = [written(bytes(200), direction, Opcode.TEXT, False), written(b"", direction, Opcode.CONT, False)]
        first += [written(b"c", direction, Opcode.CONT)]
        second = [written(b"d", direction, Opcode.BINARY, False), written(b"efghij", direction, Opcode.CONT)]
        for piece in (ping, first[0], ping, *first[1:], second[0], ping, second[1], written(b"k", direction)):
            for start in range(0, len(piece), 90):  # in pieces that are no frames
                source.sendall(piece[start : start + 90])
        source.shutdown(socket.SHUT_WR)
        got = read(sink)
        assert got.count(ping) == 3
        size = len(b"".join(second))
        quiet = got.replace(ping, b"")
        assert quiet.startswith(b"".join(first))
        after = quiet[len(b"".join(first)) :]
        assert [a != b for a, b in zip(after[:size], b"".join(second), strict=True)].count(True) == 1
        assert len(after) == size + len(written(b"k", direction))
        assert len(proxy.log) == 1


@BOTH
def test_an_end_in_the_middle_passes_as_it_is(direction: Direction) -> None:
    with wire(lambda number: []) as (client, server, _):
        source, sink = (client, server) if direction == "up" else (server, client)
        begun = written(b"begun", direction, Opcode.BINARY, False) + written(bytes(5000), direction, Opcode.CONT)[:-1]
        source.sendall(begun)
        source.shutdown(socket.SHUT_WR)
        assert read(sink) == begun
        sink.sendall(b"\x81")
        sink.close()
        assert read(source) == b"\x81"


def test_a_reset_end_resets_the_other() -> None:
    with wire(lambda number: []) as (client, server, _):
        begun = written(b"begun", "up")[:-1]
        client.sendall(begun)
        reset(client)
        assert read(server, len(begun)) == begun
        with pytest.raises(ConnectionResetError):
            server.recv(1)


def test_what_a_gone_server_said_last_arrives() -> None:
    """It closes while the client still sends: its last message is not lost to the broken pipe."""
    # More than the kernel keeps for a client that does not read yet.
    last = written(bytes(20_000_000), "down") + written(b"\x03\xea", "down", Opcode.CLOSE)
    with wire(lambda number: []) as (client, server, _):
        server.sendall(last)
        server.close()
        with suppress(ConnectionError):
            for _ in range(200):
                client.sendall(written(bytes(1000), "up"))
        assert read(client) == last


def test_plain_http_passes_and_has_no_number() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        plan = once(Fault("reset", "up", 0))
        with faulty(f"ws://127.0.0.1:{listener.getsockname()[1]}", plan) as proxy, dial(proxy) as client:
            asked = b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody"
            client.sendall(asked)
            server, _ = listener.accept()
            with server:
                assert read(server, len(asked)) == asked
                server.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(9))
            assert read(client) == b"HTTP/1.1 200 OK\r\n\r\n" + bytes(9)
            assert proxy.connections == 0
            assert not proxy.log


def test_refuse(echo: Echo) -> None:
    with faulty(echo.url) as proxy, a_client(proxy.url) as client:
        proxy.refuse(True)
        for _ in range(2):
            with pytest.raises(ConnectionError), dial(proxy) as refused:
                refused.sendall(b"GET")
                assert refused.recv(1) == b"never"
        client.send(b"still here")
        assert client.recv(5) == b"still here"
        proxy.refuse(False)
        with a_client(proxy.url) as again:
            again.send(b"x")
            assert again.recv(5) == b"x"
        assert what(proxy) == ["refused", "refused"]
        assert proxy.connections == 2


def test_retarget(echo: Echo) -> None:
    with an_echo(b"another") as another, faulty(echo.url, once(Fault("flip", "up", 1))) as proxy:
        with a_client(proxy.url) as client:
            proxy.retarget(another.url)
            client.send(b"x")
            assert client.recv(5) == b"x"
        with a_client(proxy.url) as client:
            assert client.recv(5) == b"another"
    assert proxy.connections == 2


def test_a_server_that_is_not_there(echo: Echo) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nobody = f"ws://127.0.0.1:{listener.getsockname()[1]}"
    with faulty(nobody, once(Fault("duplicate", "up", 0))) as proxy:
        with pytest.raises(ConnectionError), dial(proxy) as client:
            client.sendall(b"GET")
            assert client.recv(1) == b"never"
        proxy.retarget(echo.url)
        with a_client(proxy.url) as again:  # it is the first: one that failed does not use up the plan
            again.send(b"x")
            assert [again.recv(5), again.recv(5)] == [b"x", b"x"]
    assert what(proxy) == ["unreachable", "duplicate"]


def test_plans() -> None:
    assert once(Fault("reset", "up", 0))(1) == []
    plan = seeded(7, connections=500)
    faults = [plan(number) for number in range(500)]
    assert all(len(drawn) == 1 for drawn in faults)
    assert faults == [seeded(7, connections=500)(number) for number in range(500)]
    assert faults != [seeded(8, connections=500)(number) for number in range(500)]
    assert {drawn[0].kind for drawn in faults} == set(KINDS)
    assert {drawn[0].direction for drawn in faults} == {"up", "down"}
    assert {drawn[0].message for drawn in faults} == set(range(41))
    assert all(0 < drawn[0].seconds <= 0.5 for drawn in faults)
    assert plan(500) == []
    assert seeded(1, 9, ("delay",))(8)[0].kind == "delay"
    for wrong in ({"kind": "flop"}, {"direction": "left"}):
        with pytest.raises(ValueError, match="no such fault"):
            Fault(**{"kind": "flip", "direction": "up", "message": 0, **wrong})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not a plain ws"), faulty("wss://127.0.0.1:1"):
        pass


def test_nothing_is_left_behind(echo: Echo) -> None:
    """No thread, no socket: after every kind of fault, with connections that stand open at the end."""

    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    gc.collect()
    threads, files = threading.active_count(), descriptors()
    faults = [Fault(kind, way, 1, 0.05) for kind in KINDS for way in ("up", "down")]  # type: ignore[arg-type]
    with ExitStack() as late, faulty(echo.url, lambda number: faults[number : number + 1]) as proxy:
        for _ in range(len(faults) + 4):
            client = late.enter_context(a_client(proxy.url))
            with suppress(ConnectionClosed):
                for message in SENT:
                    client.send(message)
        for _ in range(3):
            late.enter_context(dial(proxy))
        eventually(lambda: {done.fault for done in proxy.log if done.fault} == set(faults))
    eventually(lambda: threading.active_count() == threads)
    gc.collect()
    eventually(lambda: descriptors() == files)
