"""The door on real sockets: who comes in, who does not, and who has to leave."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin, Subprotocol

from sideplug.cloud import access, certificate
from sideplug.cloud import session as sessions
from sideplug.cloud.keys import Keys
from sideplug.contract.errors import Busy, InputError, Unauthorized, Unreachable
from sideplug.contract.frames import Error, Opened
from sideplug.contract.text import Prompt
from sideplug.contract.wire import decode, encode
from tests.cloud.test_server import opening
from tests.conftest import Cloud, a_cloud, a_link, a_plugin, a_session, eventually

PROMPT = Prompt(ids=(5, 6))


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(tmp_path_factory.mktemp("keys") / "keys.json")


@pytest.fixture(scope="module")
def guarded(tiny: Path, keys: Keys) -> Iterator[Cloud]:
    """A cloud that asks for keys."""
    with a_cloud(tiny, keys=Keys(keys.path)) as cloud:
        yield cloud


@pytest.fixture
def ada(keys: Keys) -> Iterator[str]:
    yield keys.add("ada", sessions=2)
    with contextlib.suppress(InputError):
        keys.revoke("ada")


def get(url: str, path: str, *headers: tuple[str, str]) -> tuple[int, dict[str, str], str]:
    """A plain request, as curl makes it: status, headers, the sentence (or whole answer) in its JSON."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
    connection.putrequest("GET", path)
    for name, value in headers:
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    assert answer.getheader("Content-Type") == "application/json"
    return answer.status, dict(answer.getheaders()), json.loads(body).get("error", body)


def bearer(key: str) -> tuple[str, str]:
    return "Authorization", f"Bearer {key}"


ROUTES = ("/metrics", "/v1/model", "/v1/session", "/", "/v1/session/", "/nothing", "//", "/%2e%2e/health", "*")


@pytest.mark.parametrize("path", ROUTES)
def test_every_route_wants_a_key(guarded: Cloud, path: str) -> None:
    status, headers, says = get(guarded.url, path)
    assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
    assert "this cloud wants a key" in says
    assert "\n" not in says
    assert guarded.base.name not in says
    status, headers, says = get(guarded.url, path, bearer("sp-000000000000-x"))
    assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
    assert "does not know this key" in says


def test_with_its_key(guarded: Cloud, ada: str) -> None:
    status, _, whole = get(guarded.url, "/health", bearer(ada))
    assert status == 200
    assert json.loads(whole)["status"] == "ok"
    assert get(guarded.url, "/nothing", bearer(ada))[0] == 404
    link = a_link(guarded.url, key=ada)
    assert list(a_session(link).generate(PROMPT, 3))
    holders = [session.holder for session in guarded.server.sessions]
    assert [(h.name, h.limits.sessions) for h in holders if h] == [("ada", 2)]
    link.close()


@pytest.mark.parametrize(
    "headers",
    [
        [("Authorization", "")],
        [("Authorization", "Bearer")],
        [("Authorization", "Bearer ")],
        [("Authorization", "KEY")],
        [("Authorization", "Basic KEY")],
        [("Authorization", "BearerKEY")],
        [("Authorization", "Bearer KEY KEY")],
        [("Authorization", "Bearer KEY"), ("Authorization", "Bearer KEY")],
        [("Authorization", "Bearer KEY,")],
        [("Authorization", "Bearer \u00ff\u00fe")],
        [("Authorization", "Bearer " + "x" * 7000)],
        [("Cookie", "key=KEY")],
    ],
    ids=lambda headers: repr(headers)[:60],
)
def test_headers_that_do_not_open(guarded: Cloud, ada: str, headers: list[tuple[str, str]]) -> None:
    given = [(name, value.replace("KEY", ada)) for name, value in headers]
    assert get(guarded.url, "/v1/model", *given)[0] == 401


def test_a_scheme_in_other_letters(guarded: Cloud, ada: str) -> None:
    assert get(guarded.url, "/health", ("authorization", f"bearer  {ada}"))[0] == 200


def test_a_key_in_the_address_is_none(guarded: Cloud, ada: str) -> None:
    assert get(guarded.url, f"/v1/model?key={ada}")[0] == 401


PAGE = "https://plugin.example"


def test_a_web_page_comes_in_where_its_origin_is_allowed(tiny: Path, keys: Keys, ada: str) -> None:
    """Its key is a sub-protocol, since a browser sets no headers; the key is never said back."""
    with a_cloud(tiny, keys=Keys(keys.path), origins=(PAGE,)) as cloud:
        offered = [Subprotocol("sideplug"), Subprotocol(f"key.{ada}")]
        with connect(f"{cloud.url}/v1/session", subprotocols=offered, origin=Origin(PAGE)) as connection:
            assert connection.subprotocol == "sideplug"
            connection.send(encode(opening()))
            message = connection.recv(10)
            assert isinstance(message, bytes)
            assert isinstance(decode(message), Opened)
        for more in ({"subprotocols": offered[:1]}, {"subprotocols": [*offered, Subprotocol(f"key.{ada}")]}):
            with pytest.raises(InvalidStatus) as refused:
                connect(f"{cloud.url}/v1/session", origin=Origin(PAGE), **more)
            assert refused.value.response.status_code == 401
        for origin in ("https://other.example", "null", PAGE + "x", f"{PAGE}, {PAGE}"):
            status, _, says = get(cloud.url, "/v1/session", ("Origin", origin), bearer(ada))
            assert (status, "may not use this cloud" in says) == (403, True)
        assert cloud.engine.counters.refused["wrong-origin"] == 4


def test_a_page_of_anywhere_may_not_use_a_cloud_without_keys(cloud: Cloud) -> None:
    """A cloud on one's own machine asks nobody for a key: no page that is looked at may use it."""
    assert get(cloud.url, "/v1/model", ("Origin", "https://news.example"))[0] == 403
    assert get(cloud.url, "/v1/model")[0] == 200


def test_origins_as_they_are_written() -> None:
    assert access.checked_origins(" https://A.example/, http://127.0.0.1:8000 ") == (
        "https://a.example",
        "http://127.0.0.1:8000",
    )
    assert access.checked_origins("") == ()
    for wrong in ("*", "a.example", "https://a.example/path", "https://"):
        with pytest.raises(InputError, match="--allow-origin must be like"):
            access.checked_origins(wrong)


def test_a_key_of_another_file(guarded: Cloud, tmp_path: Path) -> None:
    with pytest.raises(Unauthorized, match="does not know this key, or no longer"):
        a_link(guarded.url, key=Keys(tmp_path / "keys.json").add("ada"))


def test_a_key_that_is_made_while_it_serves(guarded: Cloud, keys: Keys) -> None:
    key = keys.add("new")
    a_link(guarded.url, key=key).close()
    keys.revoke("new")
    with pytest.raises(Unauthorized):
        a_link(guarded.url, key=key)


def test_a_revoked_keys_session_ends(guarded: Cloud, keys: Keys, ada: str) -> None:
    """In the middle of a reply, and only that key's."""
    other = keys.add("other")
    stays = a_link(guarded.url, key=other)
    session = a_session(stays)
    link = a_link(guarded.url, key=ada)
    revoked = a_session(link, a_plugin(guarded.base.fingerprint))
    next(revoked.generate(PROMPT, 200))
    keys.revoke("ada")
    began = time.monotonic()
    with pytest.raises(Unauthorized, match="this session's key was revoked") as caught:
        while True:
            link.receive(10)
    assert time.monotonic() - began < 5  # about one second; the machine may be busy
    assert "\n" not in str(caught.value)
    link.close()
    eventually(lambda: [s.holder.name for s in guarded.server.sessions if s.holder] == ["other"])
    eventually(lambda: not guarded.engine._works)
    assert list(session.generate(PROMPT, 2))
    stays.close()
    keys.revoke("other")


def test_how_a_revoked_session_is_closed(guarded: Cloud, keys: Keys, ada: str) -> None:
    with connect(guarded.url + "/v1/session", additional_headers=dict([bearer(ada)])) as ws:
        ws.send(encode(opening()))
        assert isinstance(decode(ws.recv(10)), Opened)  # type: ignore[arg-type]
        keys.revoke("ada")
        error = decode(ws.recv(10))  # type: ignore[arg-type]
        assert isinstance(error, Error)
        assert error.code == "unauthorized"
        with pytest.raises(ConnectionClosed) as closed:
            ws.recv(10)
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1008, "unauthorized")


def test_a_revoked_device_that_does_not_listen(
    guarded: Cloud, keys: Keys, ada: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers no closing handshake: the line is cut."""
    monkeypatch.setattr(sessions, "GOODBYE_S", 0.2)
    where = urlsplit(guarded.url)
    with socket.create_connection((where.hostname, where.port), timeout=20) as raw:
        lines = ["GET /v1/session HTTP/1.1", "Host: x", "Upgrade: websocket", "Connection: Upgrade"]
        lines += ["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13"]
        lines += [f"Authorization: Bearer {ada}"]
        raw.sendall("\r\n".join([*lines, "", ""]).encode())
        assert b" 101 " in raw.recv(4096)
        eventually(lambda: bool(guarded.server.sessions))
        keys.revoke("ada")
        eventually(lambda: not guarded.server.sessions)
        with contextlib.suppress(ConnectionResetError):
            while raw.recv(4096):
                pass


def test_a_key_has_so_many_sessions(guarded: Cloud, keys: Keys, ada: str) -> None:
    links = [a_link(guarded.url, key=ada) for _ in range(2)]
    with pytest.raises(Busy, match="this key has its 2 sessions: end one, or try later"):
        a_link(guarded.url, key=ada)
    with pytest.raises(InvalidStatus) as refused:
        connect(guarded.url + "/v1/session", additional_headers=dict([bearer(ada)]))
    assert (refused.value.response.status_code, refused.value.response.headers["Retry-After"]) == (429, "5")
    assert get(guarded.url, "/health", bearer(ada))[0] == 200
    other = keys.add("other")
    a_link(guarded.url, key=other).close()
    keys.revoke("other")
    links.pop().close()
    eventually(lambda: len(guarded.server.sessions) == 1)
    links.append(a_link(guarded.url, key=ada))
    for link in links:
        link.close()
    eventually(lambda: not guarded.server.sessions)


def test_many_on_their_way_at_once_are_counted_too(guarded: Cloud, ada: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They pass the first look together; the second one, as they begin, lets two stay."""
    look = access.AccessControl.check_room

    def late(holder: Any, others: Any) -> None:
        if isinstance(others, list):  # the second look's
            look(holder, others)

    monkeypatch.setattr(access.AccessControl, "check_room", staticmethod(late))
    links = [a_link(guarded.url, key=ada) for _ in range(3)]
    with pytest.raises(Busy, match="this key has its 2 sessions"):
        links[2].receive(10)
    for link in links:
        link.close()
    eventually(lambda: not guarded.server.sessions)


def test_zero_sessions_is_as_many_as_the_cloud_has(guarded: Cloud, keys: Keys) -> None:
    key = keys.add("many", sessions=0)
    links = [a_link(guarded.url, key=key) for _ in range(12)]
    for link in links:
        link.close()
    keys.revoke("many")


def test_without_keys_everybody_comes_in(cloud: Cloud, ada: str) -> None:
    assert get(cloud.url, "/health")[0] == 200
    a_link(cloud.url, key=ada).close()


def test_a_certificate_of_its_own(tiny: Path, keys: Keys, ada: str, tmp_path: Path) -> None:
    """The pin opens, another pin does not, no pin trusts it not, and its file may be trusted by name."""
    own = certificate.self_signed(tmp_path / "tls-self.pem", "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own.file)
    wrong = "sha256:" + "0" * 64
    with a_cloud(tiny, keys=keys, tls=context) as cloud:
        assert cloud.url.startswith("wss://")
        for pin in (own.fingerprint, own.fingerprint.upper().replace("SHA", "sha")):
            link = a_link(cloud.url, key=ada, pin=pin)
            assert list(a_session(link).generate(PROMPT, 3))
            link.close()
        for key in ("", ada):
            with pytest.raises(Unreachable) as caught:
                a_link(cloud.url, key=key, pin=wrong)
            assert own.fingerprint in str(caught.value)
            assert wrong in str(caught.value)
            assert "\n" not in str(caught.value)
        with pytest.raises(Unreachable, match="is not trusted"):
            a_link(cloud.url, key=ada)
        a_link(cloud.url, own.file, key=ada).close()
        with pytest.raises(Unauthorized, match="does not know this key"):
            a_link(cloud.url, key="sp-0-0", pin=own.fingerprint)
        a_link(cloud.url.replace("127.0.0.1", "localhost"), key=ada, pin=own.fingerprint).close()


def test_what_a_key_may_use_of_a_minute(tiny: Path, tmp_path: Path) -> None:
    """Prompts are counted when they come, replies when they end; others are not touched."""
    keys = Keys(tmp_path / "keys.json")
    anna, bo = keys.add("anna", tokens_per_minute=60), keys.add("bo")
    with a_cloud(tiny, keys=keys) as cloud:
        links = [a_link(cloud.url, key=key) for key in (anna, bo)]
        first, other = map(a_session, links)
        list(first.generate(Prompt(ids=tuple(range(5, 25))), 30))  # 50, and 10 are left
        with pytest.raises(Busy, match="has used its 60 tokens a minute"):
            list(first.generate(Prompt(ids=tuple(range(5, 25))), 30))
        list(first.generate(Prompt(ids=(5, 6)), 4))  # the session goes on
        list(other.generate(Prompt(ids=tuple(range(5, 25))), 30))
        for link in links:
            link.close()


def test_a_beginning_is_shared_within_a_key_only(tiny: Path, tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.json")
    anna, bo = keys.add("anna"), keys.add("bo")
    cached = []
    with a_cloud(tiny, keys=keys) as cloud:
        for key in (anna, bo, anna, bo):
            link = a_link(cloud.url, key=key)
            session = a_session(link)
            list(session.generate(Prompt(ids=tuple(range(5, 45))), 4))
            cached.append(session.usage.cached)
            link.close()
    assert cached == [0, 0, 38, 38]
