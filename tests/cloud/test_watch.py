"""What a server does about devices that are silent or don't read, and how it goes down."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
import time
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sideplug.cloud import host, service
from sideplug.cloud import session as sessions
from sideplug.contract.errors import CloudError, Silent
from sideplug.contract.frames import Cancel, Done, Frame, PromptFrame, Tokens
from sideplug.contract.gate import Gate
from sideplug.contract.sampling import Sampling
from sideplug.contract.text import Prompt
from sideplug.device.link import WebSocketLink
from sideplug.device.reconnect import RetryPolicy
from tests.conftest import Cloud, a_cloud, a_link, a_plugin, a_session, eventually, free_port, serving
from tests.raw_device import a_raw_device, ask_for_rows

PROMPT = Prompt.user("Is it far to the mill?")
SAMPLED = Sampling(temperature=1.2, seed=5)
soon = partial(eventually, within_s=20.0)


def status(url: str, path: str) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(url.replace("ws://", "http://") + path) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def asked(link: WebSocketLink, tokens: int = 200) -> None:
    link.send(PromptFrame(1, tokens, SAMPLED.to_wire(), **PROMPT.to_wire()))


def test_a_silent_device_is_let_go_and_what_it_had_is_kept(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "WATCH_S", 0.02)
    with a_cloud(tiny, answer_s=0.1) as cloud:
        plugin = a_plugin(cloud.base.fingerprint)
        link = a_link(cloud.url)
        a_session(link, plugin)
        asked(link)
        with pytest.raises(Silent, match="has not answered for 0 s"):
            while True:
                link.receive()
        soon(lambda: (cloud.engine.working, len(cloud.engine.prefix_cache)) == (0, 1))
        link.close()


def test_a_device_that_does_not_read_has_its_reply_held(tiny: Path) -> None:
    """Nothing piles up: the reply stops after some frames, and goes on when they are read, with the same text."""
    with a_cloud(tiny) as cloud:
        with a_session(cloud.url, gate=Gate("shut")) as session:
            want = "".join(piece.text for piece in session.generate(PROMPT, 200, SAMPLED))
        reading, read = threading.Event(), a_link(cloud.url)
        a_session(read, gate=Gate("shut"))
        (held,) = cloud.server.sessions
        sends = held._transmit

        async def slow(frame: Frame) -> None:
            while not reading.is_set() and isinstance(frame, Tokens):
                await asyncio.sleep(0.01)
            await sends(frame)

        held._transmit = slow  # type: ignore[method-assign]
        asked(read)
        soon(lambda: held._exchange.reply is not None and held._exchange.reply.held)
        assert held._outbox.qsize() < 2 * sessions.OUTBOX_FRAMES
        reply = held._exchange.reply
        assert reply is not None
        settled = reply.settled
        time.sleep(0.1)
        assert held._exchange.reply is reply
        assert reply.settled == settled
        reading.set()
        text, frame = "", read.receive()
        while not isinstance(frame, Done):
            text += frame.text if isinstance(frame, Tokens) else ""
            frame = read.receive()
        assert text == want
        read.close()


def test_a_device_whose_socket_is_full_is_cut_off(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "WATCH_S", 0.02)
    with a_cloud(tiny) as cloud, a_raw_device(cloud.url) as device:
        ask_for_rows(device, cloud.server.counters)  # megabytes, until no more fits into the socket's buffers
        assert 1 < cloud.server.counters.frames["down", "head"] < 80, "or this test shows nothing"
        assert len(cloud.server.sessions) == 1, "two seconds are not too long"
        monkeypatch.setattr(sessions, "STALL_S", 1.0)
        soon(lambda: not cloud.server.sessions)


def test_a_device_that_reads_slowly_is_not(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its socket is full again and again, but no frame waits for long."""
    monkeypatch.setattr(service, "WATCH_S", 0.02)
    with a_cloud(tiny) as cloud, a_raw_device(cloud.url) as device:
        ask_for_rows(device, cloud.server.counters)
        sent = cloud.server.counters.frames["down", "head"]
        for _ in range(sent):
            device.recv(10)
            time.sleep(0.005)
        monkeypatch.setattr(sessions, "STALL_S", 1.0)
        time.sleep(0.2)
        assert len(cloud.server.sessions) == 1


def test_one_that_is_cut_off_with_much_to_send_is_gone_too(tiny: Path) -> None:
    """Its session waited for what it had to send to be read, and says something still."""
    with a_cloud(tiny) as cloud:
        link = a_link(cloud.url)
        a_session(link)
        (session,) = cloud.server.sessions
        cut = asyncio.Event()

        async def send(message: bytes) -> None:
            await cut.wait()
            raise sessions.Gone

        session._connection.send = send  # type: ignore[method-assign]
        loop = cloud._loop
        cancel = Cancel(1)
        loop.call_soon_threadsafe(lambda: [session._put(cancel) for _ in range(2 * sessions.OUTBOX_FRAMES)])
        link.send(cancel)
        soon(lambda: session._received == 2)
        loop.call_soon_threadsafe(session._connection.abort)
        loop.call_soon_threadsafe(cut.set)
        soon(lambda: not cloud.server.sessions)
        link.close()


def test_going_down_it_finishes_what_is_under_way(tiny: Path) -> None:
    with a_cloud(tiny) as cloud, a_cloud(tiny) as second:
        plugin = a_plugin(cloud.base.fingerprint)
        with a_session(second.url, plugin) as session:
            want = "".join(piece.text for piece in session.generate(PROMPT, 30, SAMPLED))
        urls = iter([cloud.url])
        connect = lambda: a_link(next(urls, second.url))  # noqa: E731
        session = a_session(connect(), plugin, connect=connect, retry=RetryPolicy(20.0))
        idle = a_link(cloud.url)
        a_session(idle)
        pieces = session.generate(PROMPT, 30, SAMPLED)
        text = next(pieces).text
        down = threading.Thread(target=lambda: cloud._call(cloud.server.drain()))
        down.start()
        with pytest.raises(CloudError, match="closed the connection: the cloud is going down"):
            idle.receive()
        text += "".join(piece.text for piece in pieces)
        assert (text, session.usage.resumed) == (want, 0)
        down.join(20)
        assert not cloud.server.sessions
        assert not cloud.server.ready
        assert "".join(piece.text for piece in session.generate(PROMPT, 30, SAMPLED)) == want  # the second's
        assert session.usage.resumed == 1
        session.link.close()
        idle.close()


def test_ready_and_health(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with a_cloud(tiny) as cloud:
        assert status(cloud.url, "/ready") == (200, {"ready": True})
        assert status(cloud.url, "/health")[1]["status"] == "ok"
        assert status(cloud.url, "/nothing")[0] == 404
        monkeypatch.setattr(host, "HANGS_S", -1.0)
        assert status(cloud.url, "/ready") == (503, {"ready": False, "why": "the engine hangs"})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_real_process_ends_in_a_reply_and_another_takes_its_port(tiny: Path, cloud: Cloud, number: int) -> None:
    """SIGTERM: the reply ends where it began. SIGKILL: it goes on at the next one. The text is the same."""
    plugin = a_plugin(cloud.base.fingerprint)
    with a_session(cloud.url, plugin) as session:
        want = "".join(piece.text for piece in session.generate(PROMPT, 40, SAMPLED))
    port, said = free_port(), list[str]()
    connect = lambda: a_link(f"ws://127.0.0.1:{port}")  # noqa: E731
    with serving(port, tiny, "--bits", 16) as first:
        session = a_session(connect(), plugin, connect=connect, retry=RetryPolicy(60.0, said.append))
        pieces = session.generate(PROMPT, 40, SAMPLED)
        text = next(pieces).text + next(pieces).text
        first.send_signal(number)
        if number == signal.SIGTERM:
            text += "".join(piece.text for piece in pieces)
            assert first.wait(30) == 0
            assert (text, session.usage.resumed) == (want, 0)
            pieces = session.generate(PROMPT, 40, SAMPLED)
            text = ""
        first.wait(30)
        with serving(port, tiny, "--bits", 16):
            text += "".join(piece.text for piece in pieces)
            assert (text, session.usage.resumed) == (want, 1)
            assert len(said) == 1
            session.link.close()
