"""A gateway on a real socket before a cloud, for tests: its address, what it connected, and what it refused.

A plugin of these tests asks for every token, and `held` stops it in the middle of a reply, so that no clock decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from sideplug import sockets
from sideplug.contract.sampling import Sampling
from sideplug.contract.text import Prompt
from sideplug.device.address import Address
from sideplug.device.gateway import Gateway, GatewayConfig, GatewayServer
from sideplug.device.plugin_store import PluginStore
from sideplug.device.reply import DecodeOptions
from tests.conftest import Cloud, a_plugin, a_session, eventually

HI = [{"role": "user", "content": "Is it far?"}]
ASK = {"messages": HI, "max_tokens": 24}
NAMES = ("anna", "mill")
soon = partial(eventually, within_s=30.0)
ONE_BY_ONE = DecodeOptions(window=0)  # so that what was answered has come down, when the next is asked


def a_person(base: str, name: str) -> Any:
    """The plugin of this name: it changes the text, and leaves it varied."""
    return a_plugin(base, scale=0.15, seed=NAMES.index(name))


@contextlib.contextmanager
def serving(gateway: Gateway) -> Iterator[str]:
    """uvicorn in a thread: its address."""
    listener = sockets.bind("127.0.0.1", 0)
    listener.listen(128)
    server = GatewayServer(gateway.app)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        gateway.pool.close()
        assert not thread.is_alive()


class Stage:
    """A gateway of the test's own: `url`, and what it connected to the cloud."""

    def __init__(self, gateway: Gateway, url: str) -> None:
        self.gateway = gateway
        self.url = url
        self.connections: list[Any] = []
        open_session = gateway.pool.open_session

        def counted(*arguments: Any) -> Any:
            session = open_session(*arguments)
            self.connections.append(session.link)
            return session

        gateway.pool.open_session = counted

    def client(self, **how: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", **{"api_key": "none", "max_retries": 0, **how})

    def http(self, **how: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, trust_env=False, timeout=60, **how)

    def post(self, path: str = "/v1/chat/completions", **body: Any) -> httpx.Response:
        with self.http() as http:
            return http.post(path, json={**ASK, **body} if "chat" in path else body)

    def text(self, **body: Any) -> str:
        answer = self.post(**body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["message"]["content"])


@contextlib.contextmanager
def a_stage(cloud: str, root: Path, **how: Any) -> Iterator[Stage]:
    training, memory = how.pop("training", None), how.pop("memory", None)
    others, preview = how.pop("others", ()), how.pop("preview", None)
    address = Address(cloud, retry_s=0.3)
    store, config = PluginStore(root, others), GatewayConfig(**how)
    gateway = Gateway(store, address, config, training, memory=memory, preview=preview)
    with serving(gateway) as url:
        yield Stage(gateway, url)


@pytest.fixture
def root(cloud: Cloud, tmp_path: Path) -> Path:
    """A shelf with two plugins."""
    for name in NAMES:
        a_person(cloud.base.fingerprint, name).save(tmp_path / "shelf" / name)
    return tmp_path / "shelf"


@pytest.fixture
def stage(cloud: Cloud, root: Path) -> Iterator[Stage]:
    with a_stage(cloud.url, root) as running:
        yield running


def wanted(
    cloud: Cloud, name: str = "", prompt: Prompt = Prompt.user("Is it far?"), tokens: int = 24, **sampling: Any
) -> str:
    """What a session gives without any gateway; "" is the base."""
    plugin = a_person(cloud.base.fingerprint, name) if name else None
    with a_session(cloud.url, plugin) as session:
        return "".join(piece.text for piece in session.generate(prompt, tokens, Sampling(**sampling)))


def refused(answer: httpx.Response, status: int, code: str, *says: str) -> None:
    """OpenAI's error object with one plain sentence."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == code
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    for part in says:
        assert part in error["message"], error["message"]


def events(answer: httpx.Response) -> Iterator[Any]:
    """The values of server-sent events; "[DONE]" as it is."""
    for line in answer.iter_lines():
        if line:
            assert line.startswith("data: ")
            yield line[6:] if line[6:] == "[DONE]" else json.loads(line[6:])


@contextlib.contextmanager
def held(plugin: Any, after: int) -> Iterator[threading.Event]:
    """The plugin answers so many asks, then waits for the event: the reply stands still in its middle."""
    part, go_on, left = plugin.trained, threading.Event(), [after]
    begin = part.begin

    def begin_waiting(prompt: Prompt) -> Any:
        reply = begin(prompt)
        answer = reply.answer

        def waiting(at: int, code_KR: np.ndarray) -> Any:
            left[0] -= 1
            if left[0] < 0:
                assert go_on.wait(60)
            return answer(at, code_KR)

        reply.answer = waiting
        return reply

    part.begin = begin_waiting
    try:
        yield go_on
    finally:
        go_on.set()
        del part.begin


def raw(url: str, request: bytes) -> bytes:
    """What comes back for bytes that no client would send."""
    with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))) as client:
        client.sendall(request + b"Connection: close\r\n\r\n")
        client.settimeout(30)
        return b"".join(iter(lambda: client.recv(4096), b""))
