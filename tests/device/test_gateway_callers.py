"""More callers than a key has sessions, callers who leave while they wait, and streams that are silent for long."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from sideplug.cloud.keys import Keys
from sideplug.device.address import Address
from sideplug.device.gateway import Gateway, GatewayConfig
from sideplug.device.gateway import run as gateway_run
from sideplug.device.plugin_store import PluginStore
from tests.conftest import Cloud, a_cloud, a_link
from tests.gateway import ASK, NAMES, ONE_BY_ONE, Stage, a_person, a_stage, held, refused, serving, soon, wanted


@contextlib.contextmanager
def a_small_key(tiny: Path, folder: Path, sessions: int, **how: Any) -> Iterator[tuple[Cloud, Stage, str]]:
    """A cloud, a gateway before it whose key may have so many sessions, and the key."""
    keys = Keys(folder / "keys.json")
    key = keys.add("ada", sessions)
    with a_cloud(tiny, keys=keys) as cloud:
        for name in NAMES:
            a_person(cloud.base.fingerprint, name).save(folder / "shelf" / name)
        address = Address(cloud.url, key=key, retry_s=how.pop("retry_s", 60.0))
        gateway = Gateway(PluginStore(folder / "shelf"), address, GatewayConfig(**how))
        with serving(gateway) as url:
            yield cloud, Stage(gateway, url), key


@pytest.mark.parametrize(("callers", "sessions"), [(8, 8), pytest.param(50, 3, marks=pytest.mark.slow), (9, 1)])
def test_all_callers_get_their_reply(cloud: Cloud, tiny: Path, tmp_path: Path, callers: int, sessions: int) -> None:
    """With and without plugins, streamed and whole: nobody is sent away, whatever the key's sessions are."""
    want = {name: wanted(cloud, name) for name in ("", *NAMES)}
    with a_small_key(tiny, tmp_path, sessions) as (_, stage, _), stage.client(timeout=120) as client:

        def ask(number: int) -> tuple[str, str]:
            name = ("", *NAMES)[number % 3]
            if number % 2:
                told = client.chat.completions.create(model=name, **ASK, stream=True)
                return name, "".join(chunk.choices[0].delta.content or "" for chunk in told)
            whole: Any = client.chat.completions.create(model=name, **ASK)
            return name, whole.choices[0].message.content

        with ThreadPoolExecutor(callers) as pool:
            for name, text in pool.map(ask, range(callers)):
                assert text == want[name]
        assert stage.gateway.places.free == 8
        assert stage.gateway.pool._lent == 0


def test_who_comes_first_is_served_first(tiny: Path, tmp_path: Path) -> None:
    """A session that comes back goes to who has waited longest, though another could use it as it is."""
    ended: list[str] = []
    with a_small_key(tiny, tmp_path, 1, options=ONE_BY_ONE) as (_, stage, _), ThreadPoolExecutor(4) as pool:

        def ask(name: str) -> None:
            stage.text(model=name)
            ended.append(name)

        with held(stage.gateway.plugins.load("anna"), 5) as go_on:
            asked = [pool.submit(ask, "anna")]
            for waiting, name in enumerate(("mill", "anna", "")):
                soon(lambda: len(stage.gateway.pool._line) == waiting and stage.gateway.pool._lent == 1)  # noqa: B023
                asked.append(pool.submit(ask, name))
            soon(lambda: len(stage.gateway.pool._line) == 3)
            go_on.set()
            for each in asked:
                each.result(60)
    assert ended == ["anna", "mill", "anna", ""]


def test_a_full_queue_sends_away(cloud: Cloud, tiny: Path, tmp_path: Path) -> None:
    """Its own limit is what a caller may be refused for, with a sentence and when to come again."""
    with (
        a_small_key(tiny, tmp_path, 8, replies=1, queue=2, options=ONE_BY_ONE) as (_, stage, _),
        ThreadPoolExecutor(3) as pool,
    ):
        with held(stage.gateway.plugins.load("anna"), 5) as go_on:
            first = pool.submit(stage.text, model="anna")
            soon(lambda: stage.gateway.places.free == 0)
            waiting = [pool.submit(stage.text) for _ in range(2)]
            soon(lambda: stage.gateway.places._waiting == 2)
            for stream in (True, False):
                answer = stage.post(stream=stream)
                refused(answer, 429, "busy", "2 callers wait for this gateway already: try later")
                assert answer.headers["retry-after"] == "5"
            go_on.set()
        assert first.result(60) == wanted(cloud, "anna")
        assert [each.result(60) for each in waiting] == [wanted(cloud)] * 2


def test_sessions_that_other_devices_have(tiny: Path, tmp_path: Path) -> None:
    """Nothing of ours will come back: after `--retry` seconds the caller hears it; a freed one is taken at once."""
    with a_small_key(tiny, tmp_path, 1, retry_s=0.2) as (cloud, stage, key):
        other = a_link(cloud.url, key=key)
        refused(stage.post(), 429, "busy", "this key has its 1 sessions")
        other.close()
        soon(lambda: stage.post().status_code == 200)


def test_a_caller_who_leaves_the_line(cloud: Cloud, tiny: Path, tmp_path: Path) -> None:
    """Their place is free, and nobody waits behind them."""
    with a_small_key(tiny, tmp_path, 1, options=ONE_BY_ONE) as (_, stage, _), ThreadPoolExecutor(2) as pool:
        with held(stage.gateway.plugins.load("anna"), 5) as go_on:
            first = pool.submit(stage.text, model="anna")
            soon(lambda: stage.gateway.pool._lent == 1)
            impatient = stage.client(timeout=0.5)
            for stream in (True, False):
                with pytest.raises(openai.APITimeoutError):
                    list(impatient.chat.completions.create(model="mill", **ASK, stream=stream))
            soon(lambda: not stage.gateway.pool._line)
            go_on.set()
        assert first.result(60) == wanted(cloud, "anna")
        assert stage.text(model="mill") == wanted(cloud, "mill")
        soon(lambda: stage.gateway.places.free == 8)


# ── silence ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def a_slow_engine(cloud: Cloud) -> Iterator[threading.Event]:
    """The cloud takes texts, and reads none before the event."""
    go_on = threading.Event()
    model = cloud.engine.model
    forward = model.forward

    def waiting(*arguments: Any) -> Any:
        assert go_on.wait(60)
        return forward(*arguments)

    model.forward = waiting  # type: ignore[method-assign]
    try:
        yield go_on
    finally:
        go_on.set()
        del model.forward


def test_headers_come_when_the_cloud_has_taken_the_text(tiny: Path, tmp_path: Path) -> None:
    """Before it has read it; then comments, which no client takes for chunks."""
    with pytest.MonkeyPatch.context() as patch, a_cloud(tiny) as cloud:
        want = wanted(cloud)
        patch.setattr(gateway_run, "KEEP_ALIVE_S", 0.1)
        with a_stage(cloud.url, tmp_path) as stage, stage.http() as http:
            stage.text()  # there is a session
            with a_slow_engine(cloud) as go_on:
                with http.stream("POST", "/v1/chat/completions", json={**ASK, "stream": True}) as answer:
                    assert answer.status_code == 200
                    lines = (line for line in answer.iter_lines() if line)
                    assert [next(lines) for _ in range(3)] == [": keep-alive"] * 3
                    go_on.set()
                    rest = [line for line in lines if line != ": keep-alive"]
                assert rest[-1] == "data: [DONE]"
            with a_slow_engine(cloud) as go_on, stage.client() as client:
                told = client.chat.completions.create(model="", **ASK, stream=True)
                go_on.set()
                assert "".join(chunk.choices[0].delta.content or "" for chunk in told) == want


def test_what_goes_wrong_before_is_a_status(cloud: Cloud, tmp_path: Path) -> None:
    with a_stage(cloud.url, tmp_path) as stage:
        long = [{"role": "user", "content": "nails " * 300}]
        refused(stage.post(messages=long, stream=True), 400, "context_length_exceeded")


def test_a_stream_that_waits_long_for_its_place(cloud: Cloud, tmp_path: Path) -> None:
    """Its headers come all the same, so that no proxy cuts it off; what goes wrong then is an event."""
    a_person(cloud.base.fingerprint, "anna").save(tmp_path / "anna")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gateway_run, "KEEP_ALIVE_S", 0.1)
        with (
            a_stage(cloud.url, tmp_path, replies=1, options=ONE_BY_ONE) as stage,
            ThreadPoolExecutor(1) as pool,
            stage.http() as http,
        ):
            with held(stage.gateway.plugins.load("anna"), 5) as go_on:
                first = pool.submit(stage.text, model="anna")
                soon(lambda: stage.gateway.places.free == 0)
                long = {**ASK, "messages": [{"role": "user", "content": "nails " * 300}], "stream": True}
                with http.stream("POST", "/v1/chat/completions", json=long) as answer:
                    assert answer.status_code == 200
                    lines = (line for line in answer.iter_lines() if line)
                    assert next(lines) == ": keep-alive"
                    go_on.set()
                    rest = [line for line in lines if line != ": keep-alive"]
                assert len(rest) == 1
                assert "context_length_exceeded" in rest[0]
            assert first.result(60) == wanted(cloud, "anna")
