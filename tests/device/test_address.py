"""Addresses of clouds behind proxies: with a path, in any case; a proxy on the way that does not run is named."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import httpx
import pytest

from sideplug.contract.errors import InputError, Unreachable
from sideplug.contract.text import Prompt
from sideplug.contract.wire import MODEL_PATH, PATH
from sideplug.device.address import Address, Proxy, get
from sideplug.device.client import Client
from tests.conftest import Cloud, a_link, a_session, free_port
from tests.gateway import ASK, a_stage
from tests.path_proxy import a_path_proxy


@pytest.mark.parametrize(
    ("url", "session", "metrics"),
    [
        ("ws://h:1", "ws://h:1/v1/session", "http://h:1/metrics"),
        ("wss://h", "wss://h/v1/session", "https://h/metrics"),
        ("wss://h/", "wss://h/v1/session", "https://h/metrics"),
        ("https://h/cloud", "wss://h/cloud/v1/session", "https://h/cloud/metrics"),
        ("HTTPS://H/cloud/", "wss://H/cloud/v1/session", "https://H/cloud/metrics"),
        ("WS://h/a/b//", "ws://h/a/b/v1/session", "http://h/a/b/metrics"),
        ("Http://h/v1/session", "ws://h/v1/session", "http://h/metrics"),
        ("ws://h/cloud/v1/session/", "ws://h/cloud/v1/session", "http://h/cloud/metrics"),
    ],
)
def test_a_path_stands_before_all_paths(url: str, session: str, metrics: str) -> None:
    address = Address(url)
    assert address.endpoint == address.at(PATH) == session
    assert address.at("/metrics") == metrics


@pytest.mark.parametrize("url", ["ws://h/?x=1", "ws://h/#x", "ws://h/a b"])
def test_what_an_address_must_not_have(url: str) -> None:
    with pytest.raises(InputError, match="must have no"):
        Address(url)


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_cloud_behind_a_path(cloud: Cloud, slash: str) -> None:
    """Its session, its model and its metrics."""
    with a_path_proxy(cloud.url, "/cloud") as (host, asked):
        url = f"WS://{host}/cloud{slash}"
        with a_session(cloud.url) as session:
            want = session.generate(Prompt.user("Is it far?"), 8).text
        with Client.at(url).connect() as session:
            assert session.generate(Prompt.user("Is it far?"), 8).text == want
        assert Client.at(url).model().fingerprint == cloud.base.fingerprint
        assert "sideplug_sessions" in get(Address(url), "/metrics")
    assert set(asked) == {"/cloud/v1/session", f"/cloud{MODEL_PATH}", "/cloud/metrics"}


def test_a_gateway_behind_a_path(cloud: Cloud, tmp_path: Path) -> None:
    """The API, and the page: whatever it asks for is below the path."""
    with a_stage(cloud.url, tmp_path) as stage, a_path_proxy(stage.url, "/llm") as (host, asked):
        with httpx.Client(base_url=f"http://{host}/llm", trust_env=False, timeout=60) as http:
            assert http.post("/v1/chat/completions", json=ASK).json()["choices"][0]["message"]["content"]
            page = http.get("/").text
            for name in ("page.css", "page.js"):
                assert f'"{name}"' in page
                assert http.get(f"/{name}").status_code == 200
        assert all(path.startswith("/llm/") for path in asked)


def test_a_server_that_sends_on(cloud: Cloud) -> None:
    """A web server that knows another address for it, in http."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def redirect() -> None:
            connection = listener.accept()[0]
            with connection:
                connection.recv(1 << 16)
                connection.sendall(b"HTTP/1.1 301 Moved\r\nLocation: http://h/x/\r\nContent-Length: 0\r\n\r\n")

        threading.Thread(target=redirect, daemon=True).start()
        with pytest.raises(Unreachable, match="is no sideplug cloud: it sends on to another address"):
            a_link(f"ws://127.0.0.1:{listener.getsockname()[1]}")


# ── proxies ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for scheme in ("http", "https", "ws", "wss", "socks", "all", "no"):
        for name in (f"{scheme}_proxy", f"{scheme}_PROXY".upper()):
            monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_proxies")
@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "WSS_PROXY"])
def test_a_proxy_that_does_not_run_is_named(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """And how to go without it; its password is not shown."""
    proxy = f"http://ada:secret@127.0.0.1:{free_port()}"
    monkeypatch.setenv(variable, proxy)
    for ask in (lambda a: Client(a).connect(), lambda a: get(a, "/metrics")):
        if variable == "WSS_PROXY" and ask is not None:
            monkeypatch.setenv("HTTPS_PROXY", proxy)  # plain requests know only this one
        with pytest.raises(Unreachable) as caught:
            ask(Address("wss://cloud.example:8765", key="sp-x", retry_s=0))
        sentence = str(caught.value)
        assert f"the proxy http://127.0.0.1:{proxy.rsplit(':', 1)[1]} ({variable.upper()})" in sentence
        assert "NO_PROXY=cloud.example" in sentence
        assert "secret" not in sentence
        assert "sideplug serve" not in sentence


@pytest.mark.usefixtures("no_proxies")
def test_which_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Address("wss://cloud.example").proxy is None
    monkeypatch.setenv("HTTPS_PROXY", "http://p:1")
    assert Address("wss://cloud.example").proxy == Proxy("http://p:1", "HTTPS_PROXY")
    assert Address("ws://127.0.0.1:8765").proxy is None
    monkeypatch.setenv("NO_PROXY", "example")
    assert Address("wss://cloud.example:8765").proxy is None


@pytest.mark.usefixtures("no_proxies")
def test_a_proxy_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            connection = listener.accept()[0]
            with connection:
                connection.recv(1 << 16)
                connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

        threading.Thread(target=refuse, daemon=True).start()
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(Unreachable, match=r"the proxy http://127.* does not let through to wss://.*HTTP 403"):
            a_link("wss://cloud.example")


@pytest.mark.usefixtures("no_proxies")
def test_a_proxy_of_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "ftp://p:1")
    with pytest.raises(InputError, match=r"the proxy ftp://p:1 \(HTTPS_PROXY\) can't be used"):
        a_link("wss://cloud.example")
