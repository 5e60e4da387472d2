"""A network in a process: a TCP proxy with a delay, jitter and a bandwidth, each way.

    python -m sideplug.bench.shaper 127.0.0.1:8765 --rtt-ms 50 --jitter-ms 2 --mbit 10

A piece that is read waits for the line (its bytes over the bandwidth), then for the delay; nothing overtakes, nothing
is lost. It prints the port to connect to, and for every line that it is given, the bytes that came by so far: down, up.
It does not know what passes. Test: pytest tests/bench/test_measures.py
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Network:
    """rtt_ms: both ways together; jitter_ms: standard deviation of each way's delay; mbit a second each way, 0: any.

    up_mbit: of the way up, where it is another.
    """

    rtt_ms: float = 0.0
    jitter_ms: float = 0.0
    mbit: float = 0.0
    up_mbit: float = 0.0

    @property
    def up(self) -> Network:
        """The way up."""
        return replace(self, mbit=self.up_mbit or self.mbit)


class Way:
    """One direction of one connection: what it reads is delivered when the network would have."""

    def __init__(
        self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, network: Network, by: Counter[str]
    ) -> None:
        self._name, self._reader, self._writer, self._network, self._bytes = name, reader, writer, network, by
        self._sent: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(4096)

    async def run(self) -> None:
        """Pass everything on, until the reader ends."""
        deliver = asyncio.create_task(self._deliver())
        clock = asyncio.get_running_loop().time
        free = due = 0.0
        with contextlib.suppress(OSError):
            while piece := await self._reader.read(1 << 14):
                now = clock()
                self._bytes[self._name] += len(piece)
                free = max(now, free) + (len(piece) * 8e-6 / self._network.mbit if self._network.mbit else 0.0)
                delay = self._network.rtt_ms / 2 + abs(random.gauss(0, self._network.jitter_ms))
                due = max(due, free + delay / 1000)
                await self._sent.put((due, piece))
        await self._sent.put((due, b""))
        await deliver

    async def _deliver(self) -> None:
        clock = asyncio.get_running_loop().time
        with contextlib.suppress(OSError):
            while True:
                due, piece = await self._sent.get()
                if due > clock():
                    await asyncio.sleep(due - clock())
                if not piece:
                    break
                self._writer.write(piece)
                await self._writer.drain()
        self._writer.close()


async def shape(host: str, port: int, network: Network) -> None:
    """Pass connections on to host:port until standard input ends; print the port to connect to."""
    passed: Counter[str] = Counter()
    over = asyncio.Event()

    def tell() -> None:
        if sys.stdin.readline():
            print(json.dumps([passed["down"], passed["up"]]), flush=True)
        else:  # whoever it was for is gone
            over.set()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(host, port)
        except OSError:
            writer.close()
            return
        up, down = (
            Way("up", reader, far_writer, network.up, passed),
            Way("down", far_reader, writer, network, passed),
        )
        await asyncio.gather(up.run(), down.run())

    server = await asyncio.start_server(pass_on, "127.0.0.1", 0)
    with contextlib.suppress(OSError):  # what is no pipe asks nothing
        asyncio.get_running_loop().add_reader(sys.stdin, tell)
    print(server.sockets[0].getsockname()[1], flush=True)
    await over.wait()


class Shaped:
    """A network that somebody is behind, in a process of its own. `url`: where to connect to."""

    def __init__(self, url: str, process: subprocess.Popen[str]) -> None:
        self.url = url
        self._process = process

    def passed(self) -> tuple[int, int]:
        """Return the bytes that came by so far: down, up."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        down, up = json.loads(self._process.stdout.readline())
        return down, up


@contextlib.contextmanager
def shaped(url: str, network: Network) -> Iterator[Shaped]:
    """A ws:// or http:// address behind this network."""
    parts = urlsplit(url)
    numbers = ["--rtt-ms", network.rtt_ms, "--jitter-ms", network.jitter_ms]
    numbers += ["--mbit", network.mbit, "--up-mbit", network.up_mbit]
    command = [sys.executable, __file__, f"{parts.hostname}:{parts.port}", *map(str, numbers)]
    process = subprocess.Popen(
        command, text=True, start_new_session=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
    )
    assert process.stdout is not None
    try:
        yield Shaped(f"{parts.scheme}://127.0.0.1:{int(process.stdout.readline())}", process)
    finally:
        process.kill()  # what is under way in a network that goes away is lost
        process.communicate()


def main() -> None:
    """Be a network until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("to", metavar="HOST:PORT")
    parser.add_argument("--rtt-ms", type=float, default=0.0)
    parser.add_argument("--jitter-ms", type=float, default=0.0)
    parser.add_argument("--mbit", type=float, default=0.0)
    parser.add_argument("--up-mbit", type=float, default=0.0)
    options = parser.parse_args()
    host, port = options.to.rsplit(":", 1)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(shape(host, int(port), Network(options.rtt_ms, options.jitter_ms, options.mbit, options.up_mbit)))


if __name__ == "__main__":
    main()
