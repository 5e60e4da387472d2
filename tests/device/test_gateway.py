"""The gateway on a real socket before a real cloud: asked by OpenAI's own client, by others, by ones that misbehave.

A plugin of these tests asks for every token, and `held` stops it in the middle of a reply, so that no clock decides.
"""

from __future__ import annotations

import json
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from sideplug import sockets
from sideplug.contract.gate import Gate
from sideplug.contract.text import Prompt
from sideplug.device import audit
from sideplug.device.address import Address
from sideplug.device.audit import Recorder
from sideplug.device.client import Client
from sideplug.device.gateway import Gateway
from sideplug.device.gateway import body as gateway_body
from sideplug.device.gateway.pool import IDLE_SESSIONS, PAGES
from sideplug.device.plugin_store import PluginStore
from sideplug.device.reply import DecodeOptions
from sideplug.plugins.file import WEIGHTS
from sideplug.training.job import TrainingJob
from tests.conftest import Cloud, a_cloud, a_plugin, a_session
from tests.gateway import (
    ASK,
    HI,
    NAMES,
    ONE_BY_ONE,
    Stage,
    a_person,
    a_stage,
    events,
    held,
    raw,
    refused,
    root,
    serving,
    soon,
    stage,
    wanted,
)

__all__ = ["root", "stage"]  # fixtures


# ── replies ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["", *NAMES])
def test_a_reply_is_what_a_session_gives(cloud: Cloud, stage: Stage, name: str) -> None:
    """Chat and completions, whole and streamed, asked by OpenAI's client; a plugin by either of its names."""
    want, raw = wanted(cloud, name), wanted(cloud, name, Prompt(text="Anna wrote"))
    full = f"{cloud.base.name}+{name}" if name else cloud.base.name
    assert want
    with stage.client() as client:
        for model in (full, name):
            ask: Any = {"model": model, **ASK}
            whole = client.chat.completions.create(**ask)
            assert whole.choices[0].message.content == want
            assert whole.model == full
            streamed = list(client.chat.completions.create(**ask, stream=True))
            assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == want
            assert streamed[-1].choices[0].finish_reason == whole.choices[0].finish_reason
            words: Any = {"model": model, "prompt": "Anna wrote", "max_tokens": 24}
            assert client.completions.create(**words).choices[0].text == raw
            told = client.completions.create(**words, stream=True)
            assert "".join(chunk.choices[0].text for chunk in told) == raw
    assert len({wanted(cloud, each) for each in ("", *NAMES)}) == 3, "the plugins make a difference"


def test_usage(cloud: Cloud, stage: Stage) -> None:
    with a_session(cloud.url, a_person(cloud.base.fingerprint, "anna")) as session:
        list(session.generate(Prompt.user("Is it far?"), 24))
        want = session.usage
    with stage.client() as client:
        ask: Any = {"model": "anna", **ASK}
        found = client.chat.completions.create(**ask).usage
        *_, last = client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    assert last.choices == []
    for usage in (found, last.usage):
        assert usage is not None
        assert (usage.prompt_tokens, usage.completion_tokens) == (want.prompt_tokens, want.reply_tokens)
        assert usage.total_tokens == want.prompt_tokens + want.reply_tokens
    own = stage.post(model="anna").json()["usage"]["sideplug"]
    assert own["plugin_tokens"] == want.plugin_tokens == want.reply_tokens
    assert own["bytes_up"] > 0


def test_models(cloud: Cloud, stage: Stage, root: Path) -> None:
    base = cloud.base.name
    with stage.client() as client:
        assert [model.id for model in client.models.list()] == [base, f"{base}+anna", f"{base}+mill"]
        a_plugin(cloud.base.fingerprint).save(root / "new")
        assert f"{base}+new" in [model.id for model in client.models.list()], "without a restart"
    with stage.http() as http:
        for name in (base, f"{base}+anna"):  # a base has a / in its name, where it is of the hub, or a folder
            assert http.get(f"/v1/models/{name}").json()["id"] == name
        refused(http.get("/v1/models/nobody"), 404, "model_not_found", "there is no model 'nobody' here")


def test_errors_are_openai_s_exceptions(stage: Stage) -> None:
    with stage.client() as client:
        ask: Any = {"model": "anna", **ASK}
        with pytest.raises(openai.NotFoundError, match=r"there is no model 'gpt-4o' here; there are: .*\+anna"):
            client.chat.completions.create(**{**ask, "model": "gpt-4o"})
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(**{**ask, "model": "gpt-4o"}, stream=True)
        with pytest.raises(openai.BadRequestError, match="n is not supported"):
            client.chat.completions.create(**ask, n=2)
        with pytest.raises(openai.BadRequestError, match="temperature must be 0") as caught:
            client.chat.completions.create(**{**ask, "temperature": -1}, stream=True)
        assert caught.value.code == "bad-input"
        for stream in (True, False):
            with pytest.raises(openai.BadRequestError, match="the prompt is too long: .* > 256 maximum") as long:
                client.chat.completions.create(
                    **{**ask, "messages": [{"role": "user", "content": "nails " * 300}]}, stream=stream
                )
            assert long.value.code == "context_length_exceeded"
        assert client.chat.completions.create(**ask).choices[0].message.content


def test_a_seed_gives_the_same_text(cloud: Cloud, stage: Stage) -> None:
    for model, name in (("", ""), ("anna", "anna")):
        warm = {"model": model, "temperature": 1.0}
        want = wanted(cloud, name, temperature=1.0, seed=5)
        assert stage.text(**warm, seed=5) == stage.text(**warm, seed=5) == want
        assert stage.text(**warm, seed=6) != want
        assert len({stage.text(**warm) for _ in range(3)}) == 3


def test_the_gate_s_dial(cloud: Cloud, stage: Stage) -> None:
    """0 is the base; the dial of one request is not another's."""
    base, own = wanted(cloud), wanted(cloud, "anna")
    for _ in range(2):
        assert stage.text(model="anna", sideplug={"gate_rate": 0}) == base
        assert stage.text(model="anna") == own
        assert stage.text(model="anna", sideplug={"gate_rate": 1}) == own
        assert stage.text(model=cloud.base.name, sideplug={"gate_rate": 1}) == base
    refused(stage.post(model="anna", sideplug={"gate_rate": 0.5}), 400, "bad-input", "its rate can be 0 or 1")


def test_a_gate_with_a_dial(cloud: Cloud, stage: Stage, root: Path) -> None:
    plugin = a_plugin(cloud.base.fingerprint)
    weight = np.random.default_rng(0).normal(0, 1, 64).astype(np.float32)
    plugin.trained.gate = Gate("linear", weight, 0.0, 0.0, 0.0, tuple(np.linspace(-6, 6, 11).tolist()))
    plugin.save(root / "dialled")
    for rate in (0.3, 0.6):
        with a_session(cloud.url, plugin, gate=plugin.trained.gate.at_rate(rate)) as session:
            want = "".join(piece.text for piece in session.generate(Prompt.user("Is it far?"), 24))
        assert stage.text(model="dialled", sideplug={"gate_rate": rate}) == want


def test_stop_texts(cloud: Cloud, stage: Stage) -> None:
    """The text before the first of them, and the rest is not paid for."""
    whole = wanted(cloud, "anna")
    stop = whole[len(whole) // 2 :][:3]
    want = whole[: whole.index(stop)]
    answer = stage.post(model="anna", stop=[stop, "never said"]).json()
    assert answer["choices"][0]["message"]["content"] == want
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] <= 24
    body = {**ASK, "model": "anna", "stop": stop, "stream": True}
    with stage.http() as http, http.stream("POST", "/v1/chat/completions", json=body) as answer:
        told = [chunk["choices"][0]["delta"].get("content", "") for chunk in events(answer) if chunk != "[DONE]"]
    assert "".join(told) == want
    assert stage.text(model="anna") == whole, "the session goes on"
    assert len(stage.connections) == 2


def test_log_probabilities(cloud: Cloud, stage: Stage) -> None:
    """Greedy: each token is the best of its alternatives, and their bytes together are the reply's."""
    answer = stage.post(model="anna", logprobs=True, top_logprobs=3).json()["choices"][0]
    content = answer["logprobs"]["content"]
    said = b"".join(bytes(entry["bytes"]) for entry in content)
    assert said.decode(errors="replace") == answer["message"]["content"]
    assert any(entry["token"].startswith("bytes:") for entry in content), "some are parts of a character"
    for entry in content:
        assert len(entry["top_logprobs"]) == 3
        assert entry["logprob"] == max(one["logprob"] for one in entry["top_logprobs"]) <= 0
    assert stage.post("/v1/completions", prompt="hi", max_tokens=3, logprobs=2).json()["choices"][0]["logprobs"]


def test_who_chose_each_token(cloud: Cloud, stage: Stage) -> None:
    for model, by in (("", {"cloud"}), ("anna", {"plugin"})):
        answer = stage.post(model=model, sideplug={"detail": True}).json()
        assert {piece["by"] for piece in answer["sideplug"]} == by
        assert sum(len(piece["ids"]) for piece in answer["sideplug"]) == answer["usage"]["completion_tokens"]
        assert all(len(best) == 6 for piece in answer["sideplug"] for best in piece["tops"])


def test_the_head_on_this_device(cloud: Cloud, root: Path, tmp_path: Path) -> None:
    from sideplug.device.head import DeviceHead

    with a_session(cloud.url) as session:
        model = session.model
        head = DeviceHead.fetch(session.link, tmp_path / "heads", model.fingerprint, model.vocab)
    with a_session(cloud.url, a_person(cloud.base.fingerprint, "anna")) as session:
        want = "".join(
            piece.text for piece in session.generate(Prompt.user("Is it far?"), 24, options=DecodeOptions(head=head))
        )
    with a_stage(cloud.url, root, options=DecodeOptions(head=head)) as stage:
        assert stage.text(model="anna") == want
        assert stage.text() == wanted(cloud)
        with stage.http(headers=page_headers(1)) as http:
            http.post("/v1/chat/completions", json={**ASK, "model": "anna"})
            rows = audited(http)["rows"]
    (parts,) = [row["parts"] for row in rows if row["kind"] == "ANSWER"]
    assert "ids (numbers)" in parts
    assert "delta (numbers)" not in parts, "its corrections stay here"


def test_many_at_once(cloud: Cloud, root: Path) -> None:
    """More than there are places for, streamed or not, with different plugins: each gets its own text."""
    texts = ["Is it far?", "Who wrote?", "nails"]
    want = {(name, text): wanted(cloud, name, Prompt.user(text)) for name in ("", *NAMES) for text in texts}
    with a_stage(cloud.url, root, replies=3) as stage, stage.client() as client, ThreadPoolExecutor(18) as pool:

        def ask(name: str, text: str, stream: bool) -> str:
            body: Any = {"model": name, "messages": [{"role": "user", "content": text}], "max_tokens": 24}
            if stream:
                told = client.chat.completions.create(**body, stream=True)
                return "".join(chunk.choices[0].delta.content or "" for chunk in told)
            return str(client.chat.completions.create(**body).choices[0].message.content)

        got = {(*key, stream): pool.submit(ask, *key, stream) for key in want for stream in (True, False)}
        for (name, text, _), future in got.items():
            assert future.result(60) == want[name, text]
        assert len(stage.gateway.pool._idle) <= IDLE_SESSIONS


# ── sessions with the cloud ───────────────────────────────────────────────────────────────────────────────────────────


def test_idle_sessions_are_used_again(stage: Stage) -> None:
    for _ in range(3):
        stage.post()
        stage.post(model="anna")
    assert len(stage.connections) == 2
    stage.post(model="mill")
    assert len(stage.connections) == 3


def test_a_dead_idle_session_is_replaced_unseen(cloud: Cloud, stage: Stage) -> None:
    for model in ("", "anna"):
        stage.post(model=model)
    for link in stage.connections:
        link._connection.socket.shutdown(socket.SHUT_RDWR)
        link._connection.recv_events_thread.join(10)
    assert stage.text() == wanted(cloud)
    assert stage.text(model="anna") == wanted(cloud, "anna")
    assert len(stage.connections) == 4


def test_a_refusal_does_not_spoil_the_next(cloud: Cloud, stage: Stage) -> None:
    for _ in range(3):
        long = [{"role": "user", "content": "nails " * 300}]
        refused(stage.post(model="anna", messages=long), 400, "context_length_exceeded")
        assert stage.text(model="anna") == wanted(cloud, "anna")


def test_a_plugin_of_another_base(stage: Stage, root: Path) -> None:
    a_plugin("e" * 64).save(root / "foreign")
    refused(stage.post(model="foreign"), 400, "wrong-base", "this plugin was made for the base model")
    a_plugin("e" * 64).save(root / "broken")
    (root / "broken" / WEIGHTS).write_bytes(b"x")
    refused(stage.post(model="broken"), 400, "bad-plugin", "is truncated or damaged")
    assert stage.text(model="anna")


def test_a_cloud_without_room(tiny: Path, tmp_path: Path) -> None:
    """Idle sessions of ours give way to the plugin that is needed; where others have them all, come again."""
    with a_cloud(tiny, sessions=2) as small:
        for name in NAMES:
            a_person(small.base.fingerprint, name).save(tmp_path / name)
        want = {name: wanted(small, name) for name in ("", *NAMES)}
        with a_stage(small.url, tmp_path) as stage:
            for name in ("anna", "mill", "", "anna"):
                assert stage.text(model=name) == want[name]
            stage.gateway.pool.close()
            soon(lambda: not small.server.sessions)
            others = [a_session(small.url) for _ in range(2)]
            answer = stage.post(model="mill")
            refused(answer, 429, "busy", "the cloud has its 2 sessions: try later")
            assert answer.headers["retry-after"] == "5"
            with stage.client() as client, pytest.raises(openai.RateLimitError):
                client.chat.completions.create(model="mill", messages=HI)  # type: ignore[arg-type]
            others.pop().close()
            soon(lambda: len(small.server.sessions) == 1)
            assert stage.text(model="anna")
            others.pop().close()


def test_a_cloud_that_is_gone_and_comes_back(
    tiny: Path, other: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sentence while it is away; then all goes on, also where another model has come."""
    first = Cloud(tiny)
    port = int(first.url.rsplit(":", 1)[1])
    with a_stage(first.url, root) as stage:
        bind = sockets.bind
        monkeypatch.setattr(sockets, "bind", lambda host, any_port: bind(host, port))
        want = stage.text(model="anna")
        first.close()
        for model in ("anna", ""):
            for stream in (False, True):
                answer = stage.post(model=model, stream=stream)
                refused(answer, 503, "unreachable", "no cloud answers at", "sideplug serve")
        with stage.http() as http:
            refused(http.get("/v1/models"), 503, "unreachable", "no cloud answers at")
            about = http.get("/sideplug/state").json()
            assert "no cloud answers at" in about["error"]
            assert [plugin["name"] for plugin in about["plugins"]] == ["anna", "mill"]
        with stage.client() as client, pytest.raises(openai.InternalServerError):
            client.chat.completions.create(model="anna", messages=HI)  # type: ignore[arg-type]
        with a_cloud(tiny):
            assert stage.text(model="anna") == want
        with a_cloud(other) as another:
            with stage.http() as http:  # nobody has noticed yet
                assert http.get("/v1/models").json()["data"][0]["id"] == tiny.name
            answer = stage.post(model=tiny.name)
            refused(answer, 502, "cloud", f"the cloud serves {other.name} now: ask again")
            refused(stage.post(model=tiny.name), 404, "model_not_found", other.name)
            refused(stage.post(model="anna"), 400, "wrong-base", "was made for the base model")
            assert stage.post(model=other.name).json()["model"] == another.base.name


def test_a_cloud_that_dies_in_the_middle(tiny: Path, root: Path) -> None:
    """Of a stream: what came stays, then an event says why, then it ends, and not as if it were done."""
    dying = Cloud(tiny)
    with a_stage(dying.url, root, options=ONE_BY_ONE) as stage, held(stage.gateway.plugins.load("anna"), 5) as go_on:
        body = {**ASK, "model": "anna", "stream": True}
        with stage.http() as http, http.stream("POST", "/v1/chat/completions", json=body) as answer:
            told = events(answer)
            first = [next(told), next(told)]
            dying.close()
            go_on.set()
            rest = list(told)
        assert answer.status_code == 200
        assert first[0]["choices"][0]["delta"]["role"] == "assistant"
        assert first[1]["choices"][0]["delta"]["content"]
        assert "[DONE]" not in rest
        assert rest[-1]["error"]["code"] == "cloud"
        assert "closed the connection" in rest[-1]["error"]["message"]
        assert all("choices" in chunk for chunk in rest[:-1])
        refused(stage.post(model="anna"), 503, "unreachable")


def test_openai_s_client_hears_of_a_cloud_that_dies(tiny: Path, root: Path) -> None:
    """Streamed and whole."""
    for stream in (True, False):
        dying = Cloud(tiny)
        with (
            a_stage(dying.url, root, options=ONE_BY_ONE) as stage,
            held(stage.gateway.plugins.load("anna"), 5) as go_on,
            stage.client() as client,
            ThreadPoolExecutor(1) as pool,
        ):

            def ask(client: Any = client, stream: bool = stream) -> list[Any]:
                found = client.chat.completions.create(model="anna", **ASK, stream=stream)
                return list(found)

            asked = pool.submit(ask)
            soon(lambda stage=stage: len(stage.connections) == 2)
            dying.close()
            go_on.set()
            with pytest.raises(openai.APIError, match="closed the connection|no cloud answers"):
                asked.result(60)


# ── who leaves, and what is taken away ────────────────────────────────────────────────────────────────────────────────


def test_a_plugin_deleted_in_the_middle_of_its_reply(cloud: Cloud, root: Path) -> None:
    """The reply ends as it would have; nobody gets another."""
    want, base = wanted(cloud, "anna"), str(cloud.base.name)
    body = {**ASK, "model": "anna", "stream": True}
    with a_stage(cloud.url, root, options=ONE_BY_ONE) as stage, stage.http() as http:
        with (
            held(stage.gateway.plugins.load("anna"), 5) as go_on,
            http.stream("POST", "/v1/chat/completions", json=body) as answer,
        ):
            told = events(answer)
            found = [next(told), next(told)]
            with stage.http() as second:
                assert second.delete("/sideplug/plugins/anna").json() == {"plugins": ["mill"]}
            go_on.set()
            *rest, done = told
        assert done == "[DONE]"
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in found + rest) == want
        assert not (root / "anna").exists()
        refused(stage.post(model="anna"), 404, "model_not_found", "there is no model 'anna' here")
        assert [model["id"] for model in http.get("/v1/models").json()["data"]] == [base, f"{base}+mill"]
        a_person(cloud.base.fingerprint, "mill").save(root / "anna")
        assert stage.text(model="anna") == wanted(cloud, "mill"), "another of its name is another"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_place(cloud: Cloud, root: Path, stream: bool) -> None:
    """There is one place only: the next gets it, and the same session with the cloud."""
    with a_stage(cloud.url, root, replies=1, options=ONE_BY_ONE) as stage:
        with held(stage.gateway.plugins.load("anna"), 5) as go_on:
            body = json.dumps({**ASK, "max_tokens": 200, "model": "anna", "stream": stream}).encode()
            host = ("127.0.0.1", int(stage.url.rsplit(":", 1)[1]))
            with socket.create_connection(host) as client:
                head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
                client.sendall(head.encode() + body)
                if stream:
                    assert b"200 OK" in client.recv(1000)
                soon(lambda: len(stage.connections) == 2)
            soon(lambda: not idle(stage, "anna"))
            go_on.set()
        assert stage.text(model="anna") == wanted(cloud, "anna")
        assert len(stage.connections) == 2
        assert stage.gateway.places.free == 1


def idle(stage: Stage, name: str) -> bool:
    return any(session.key.plugin_name == name for session in stage.gateway.pool._idle)


def test_the_cloud_stops_a_reply_that_nobody_reads(cloud: Cloud, root: Path) -> None:
    """What the gateway gives up is not generated to its end."""
    long = wanted(cloud, "anna", tokens=200)
    with a_stage(cloud.url, root, options=ONE_BY_ONE) as stage:
        with held(stage.gateway.plugins.load("anna"), 5) as go_on, stage.http() as http:
            body = {**ASK, "max_tokens": 200, "model": "anna", "stream": True}
            with http.stream("POST", "/v1/chat/completions", json=body) as answer:
                next(events(answer))
            go_on.set()
            soon(lambda: idle(stage, "anna"))
        (session,) = (s.session for s in stage.gateway.pool._idle if s.key.plugin_name == "anna")
        assert session.usage.why == "cancelled"
        assert stage.text(model="anna", max_tokens=200) == long


def test_who_finds_no_place_waits(cloud: Cloud, root: Path) -> None:
    with (
        a_stage(cloud.url, root, replies=1, options=ONE_BY_ONE) as stage,
        ThreadPoolExecutor(2) as pool,
        held(stage.gateway.plugins.load("anna"), 5) as go_on,
    ):
        first = pool.submit(stage.text, model="anna")
        soon(lambda: len(stage.connections) == 2)
        second = pool.submit(stage.text)
        with stage.http() as http:  # what is no reply needs no place
            assert http.get("/v1/models").status_code == 200
        assert not second.done()
        go_on.set()
        assert first.result(60) == wanted(cloud, "anna")
        assert second.result(60) == wanted(cloud)


# ── the door ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_key(cloud: Cloud, root: Path) -> None:
    with a_stage(cloud.url, root, key="bees") as stage:
        with stage.client(api_key="wrong") as client, pytest.raises(openai.AuthenticationError, match="wants its key"):
            client.models.list()
        with stage.client(api_key="bees") as client:
            assert len(list(client.models.list())) == 3
        with stage.http() as http:
            for path in ("/v1/models", "/sideplug/state", "/sideplug/plugins/anna", "/nowhere"):
                for headers in (
                    {},
                    {"Authorization": "Bearer"},
                    {"Authorization": "Bearer beesx"},
                    {"Authorization": ""},
                ):
                    refused(http.get(path, headers=headers), 401, "invalid_api_key", "wants its key")
            refused(http.post("/v1/chat/completions", json=ASK), 401, "invalid_api_key")
            refused(http.delete("/sideplug/plugins/anna"), 401, "invalid_api_key")
            assert http.get("/health").json()["status"] == "ok"
        assert (root / "anna").exists()


def test_a_host_can_not_hide_the_path_from_the_key(cloud: Cloud, root: Path) -> None:
    with a_stage(cloud.url, root, key="bees") as stage:
        for host in (b"localhost/health?", b"localhost/health#", b"127.0.0.1/health?x=", b"localhost\\health?"):
            answer = raw(stage.url, b"GET /v1/models HTTP/1.1\r\nHost: " + host + b"\r\n")
            assert b" 200 " not in answer.split(b"\r\n")[0], host


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "evil.example:80", "10.0.0.1", "[::1", "", "x@"]
)
def test_another_host_s_name(stage: Stage, host: str) -> None:
    """A web page whose name was made to mean this machine (DNS rebinding) gets nothing."""
    answer = raw(stage.url, f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\n".encode())
    assert answer.split(b"\r\n")[0].endswith(b"403 Forbidden")
    assert b'"code":"wrong_host"' in answer


@pytest.mark.parametrize("host", ["localhost", "localhost:99", "LOCALHOST", "127.0.0.1:8766", "[::1]:8766", "[::1]"])
def test_own_names(stage: Stage, host: str) -> None:
    answer = raw(stage.url, f"GET /health HTTP/1.1\r\nHost: {host}\r\n".encode())
    assert answer.split(b"\r\n")[0].endswith(b"200 OK")


def test_names_beyond_this_machine(cloud: Cloud, root: Path) -> None:
    """The one that it was told; any, where it listens everywhere: there the key tells who may."""
    for hosts, may, may_not in (
        (("mill.example",), ["mill.example:80", "localhost"], ["10.0.0.1"]),
        (("0.0.0.0",), ["10.0.0.1:8766", "mill", "localhost"], []),
    ):
        with a_stage(cloud.url, root, key="bees", hosts=hosts) as stage, stage.http() as http:
            for host in may:
                refused(http.get("/v1/models", headers={"Host": host}), 401, "invalid_api_key")
                headers = {"Host": host, "Authorization": "Bearer bees"}
                assert http.get("/v1/models", headers=headers).status_code == 200
            for host in may_not:
                headers = {"Host": host, "Authorization": "Bearer bees"}
                refused(http.get("/v1/models", headers=headers), 403, "wrong_host")
    with a_stage(cloud.url, root, hosts=("0.0.0.0",)) as stage, stage.http() as http:
        refused(http.get("/v1/models", headers={"Host": "10.0.0.1"}), 403, "wrong_host")  # nobody who has no key


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:1", "http://[::1", "file://"])
def test_another_page_s_origin(stage: Stage, origin: str) -> None:
    with stage.http(headers={"Origin": origin}) as http:
        for answer in (
            http.post("/v1/chat/completions", json=ASK),
            http.get("/v1/models"),
            http.delete("/sideplug/plugins/anna"),
            http.options("/v1/models", headers={"Access-Control-Request-Method": "GET"}),
        ):
            refused(answer, 403, "wrong_origin", "are not allowed (--allow-origin)")
            assert "access-control-allow-origin" not in answer.headers
    assert stage.text(model="anna")


def test_the_own_page_s_origin(stage: Stage) -> None:
    with stage.http(headers={"Origin": stage.url}) as http:
        assert http.post("/v1/chat/completions", json=ASK).status_code == 200


def test_an_origin_that_may(cloud: Cloud, root: Path) -> None:
    """With its preflight, and it may read the refusals too."""
    page = "https://notes.example"
    with a_stage(cloud.url, root, origins=(page,), key="bees") as stage, stage.http(headers={"Origin": page}) as http:
        wants = {
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization, content-type",
        }
        preflight = http.options("/v1/chat/completions", headers=wants)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == page
        assert "authorization" in preflight.headers["access-control-allow-headers"]
        assert "POST" in preflight.headers["access-control-allow-methods"]
        answer = http.post("/v1/chat/completions", json=ASK, headers={"Authorization": "Bearer bees"})
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == page
        locked = http.get("/v1/models")
        refused(locked, 401, "invalid_api_key")
        assert locked.headers["access-control-allow-origin"] == page
        other = http.options("/v1/chat/completions", headers={**wants, "Origin": "https://evil.example"})
        assert other.status_code == 400
        assert "access-control-allow-origin" not in other.headers


# ── what is no request ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "the body must be JSON"),
        (b"{'messages': []}", "the body must be JSON"),
        (b"\xff\xfe", "the body must be JSON"),
        (b"[" * 50_000, "the body must be JSON"),
        (b"[]", "the body must be a JSON object"),
        (b"{}", "messages must be a list"),
        (b'{"messages": [{"role": "user", "content": "\\ud83d"}]}', "half of a character"),
    ],
)
def test_bodies_that_are_none(stage: Stage, body: bytes, says: str) -> None:
    with stage.http() as http:
        refused(http.post("/v1/chat/completions", content=body), 400, "bad-input", says)
        wrong = http.patch("/sideplug/plugins/anna", content=body)
        refused(wrong, 400, "bad-input", "the body must be" if "messages" in says else says)


@pytest.mark.parametrize("chunked", [True, False])
def test_a_body_that_is_too_large(stage: Stage, monkeypatch: pytest.MonkeyPatch, chunked: bool) -> None:
    monkeypatch.setattr(gateway_body, "MAX_BODY_BYTES", 1 << 20)
    body = b'{"messages": "' + b"x" * (1 << 20) + b'"}'
    with stage.http() as http:
        answer = http.post("/v1/chat/completions", content=iter([body[:1000], body[1000:]]) if chunked else body)
        refused(answer, 400, "context_length_exceeded", "the body must have at most 1 MiB")
        assert http.put("/sideplug/plugins/new", content=body + body).status_code == 400
    assert stage.text()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/embeddings"),
        ("POST", "/v1/moderations"),
        ("GET", "/v1/chat/completions"),
        ("POST", "/v1/models"),
        ("GET", "/sideplug/plugins/a/b"),
        ("GET", "/sideplug/plugins/..%2F..%2Fetc"),
        ("DELETE", "/sideplug/plugins/"),
        ("GET", "/" + "x" * 500),
    ],
)
def test_paths_that_are_not_here(stage: Stage, method: str, path: str) -> None:
    with stage.http() as http:
        answer = http.request(method, path)
    refused(answer, answer.status_code, "not_found")
    assert answer.status_code in (404, 405)
    assert "POST /v1/chat/completions" in answer.json()["error"]["message"]
    assert len(answer.text) < 500


def test_a_client_that_leaves_in_its_own_request(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{"
    with socket.create_connection(("127.0.0.1", int(stage.url.rsplit(":", 1)[1]))) as client:
        client.sendall(head)
    assert stage.text()
    assert not [record for record in caplog.records if record.name.startswith("sideplug")]


# ── the page's calls ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_state(cloud: Cloud, stage: Stage, root: Path) -> None:
    a_plugin("e" * 64).save(root / "foreign")
    a_plugin("e" * 64).save(root / "broken")
    (root / "broken" / WEIGHTS).write_bytes(b"x")
    with stage.http() as http:
        about = http.get("/sideplug/state").json()
    assert about["model"]["fingerprint"] == cloud.base.fingerprint
    assert (about["error"], about["training"], about["cloud"]) == (None, None, cloud.url)
    plugins = {plugin.pop("name"): plugin for plugin in about["plugins"]}
    assert [plugins[name].get("fits") for name in ("anna", "foreign", "broken")] == [True, False, None]
    assert plugins["anna"]["own"] is True
    assert plugins["anna"]["parameters"] == a_plugin("x").size
    assert "truncated or damaged" in plugins["broken"]["error"]


def page_headers(number: int) -> dict[str, str]:
    """What a page sends with each of its requests."""
    return {"X-Sideplug-Page": f"{number:032x}"}


def audited(http: httpx.Client) -> Any:
    answer = http.get("/sideplug/audit")
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_audit_is_of_the_newest_session(cloud: Cloud, stage: Stage, root: Path) -> None:
    """With the plugin that it was opened with, be it deleted or trained anew since."""
    with stage.http(headers=page_headers(1)) as http:
        http.post("/v1/chat/completions", json={**ASK, "model": "anna"})
        for name in ("anna", "gone"):
            found = audited(http)
            assert (found["plugin"], found["clean"], found["unaccounted_bytes"]) == ("anna", True, 0)
            assert found["parameters_looked_for"] == a_plugin("x").size
            assert found["text"]["characters of prompts"] == len("Is it far?")
            assert found["dropped"] == 0
            if name == "anna":
                stage.gateway.plugins.delete("anna")
        http.post("/v1/chat/completions", json=ASK)
        assert audited(http)["plugin"] == ""


def test_the_audit_of_a_page_is_of_its_own_requests(cloud: Cloud, stage: Stage) -> None:
    """Two pages and a program take turns with one session of the cloud: each page sees what it sent, and no more."""
    texts = {1: "Is it far?", 2: "Anna's address, which is nobody else's."}

    def ask(http: httpx.Client, text: str) -> None:
        body = {**ASK, "model": "anna", "messages": [{"role": "user", "content": text}]}
        assert http.post("/v1/chat/completions", json=body).status_code == 200

    with (
        stage.http(headers=page_headers(1)) as one,
        stage.http(headers=page_headers(2)) as two,
        stage.http() as program,
    ):
        assert audited(one)["rows"] == [], "before its first request it has sent nothing"
        for _ in range(2):
            ask(program, "nails " * 9)
            ask(one, texts[1])
            ask(two, texts[2])
        for http, text in ((one, texts[1]), (two, texts[2])):
            found = audited(http)
            assert found["text"]["characters of prompts"] == 2 * len(text)
            frames = {row["kind"]: row["frames"] for row in found["rows"]}
            assert (frames["OPEN"], frames["PROMPT"], frames["DONE"]) == (1, 2, 2)
            assert found["clean"]
        assert audited(program)["rows"] == [], "who names no page has none"
        with stage.http(headers=page_headers(3)) as unknown:
            assert audited(unknown)["rows"] == []
    assert len(stage.connections) == 2, "one session for all of them, beside the one that asked for the model"


def test_the_oldest_pages_are_forgotten(stage: Stage) -> None:
    with stage.http() as http:
        for number in range(PAGES + 1):
            http.post("/v1/chat/completions", json={**ASK, "max_tokens": 1}, headers=page_headers(number))
        rows = [http.get("/sideplug/audit", headers=page_headers(n)).json()["rows"] for n in range(PAGES + 1)]
    assert [bool(found) for found in rows] == [False, *[True] * PAGES]


@pytest.mark.parametrize("page", ["x", "0" * 31, "0" * 33, "G" * 32, "../../x"])
def test_a_page_s_id_that_is_none(stage: Stage, page: str) -> None:
    with stage.http(headers={"X-Sideplug-Page": page}) as http:
        for answer in (http.get("/sideplug/audit"), http.post("/v1/chat/completions", json=ASK)):
            refused(answer, 400, "bad-input", "X-Sideplug-Page must be 32 hexadecimal digits")


def test_a_transcript_has_all_sessions(cloud: Cloud, root: Path, tmp_path: Path) -> None:
    """Of many replies at once, each message whole: what --transcript keeps."""
    record = Recorder(tmp_path / "t.sp")
    gateway = Gateway(PluginStore(root), Address(cloud.url), transcript=record)
    with serving(gateway) as url, ThreadPoolExecutor(6) as pool:
        stage = Stage(gateway, url)
        for done in [pool.submit(stage.text, model=name) for name in ("", *NAMES) for _ in range(2)]:
            assert done.result(60) is not None
    record.close()
    found = audit.report(audit.read(tmp_path / "t.sp"))
    assert found.clean
    assert found.rows[">", "PROMPT"].frames == found.rows["<", "DONE"].frames == 6


def test_plugins_come_and_go(cloud: Cloud, stage: Stage, root: Path, tmp_path: Path) -> None:
    with stage.http() as http:
        plain = http.get("/sideplug/plugins/anna")
        assert plain.headers["content-disposition"] == "attachment; filename*=utf-8''anna.sideplug"
        sealed = http.get("/sideplug/plugins/anna", headers={"X-Passphrase": "bees and tea"}).content
        assert http.put("/sideplug/plugins/plain", content=plain.content).status_code == 200
        refused(http.put("/sideplug/plugins/x", content=sealed), 400, "wrong-passphrase", "is sealed")
        wrong = http.put("/sideplug/plugins/x", content=sealed, headers={"X-Passphrase": "no"})
        refused(wrong, 400, "wrong-passphrase", "the passphrase is wrong")
        done = http.put("/sideplug/plugins/sealed", content=sealed, headers={"X-Passphrase": "bees and tea"})
        assert done.json() == {"plugins": ["anna", "mill", "plain", "sealed"]}
        for name in ("plain", "sealed"):
            assert stage.text(model=name) == wanted(cloud, "anna")
        refused(http.put("/sideplug/plugins/mill", content=plain.content), 400, "bad-input", "already")
        refused(http.put("/sideplug/plugins/x", content=b"foreign"), 400, "bad-plugin", "no plugin file of ours")
        assert http.patch("/sideplug/plugins/plain", json={"name": "brücke"}).status_code == 200
        assert stage.text(model="brücke") == wanted(cloud, "anna")
        assert "br%C3%BCcke" in http.get("/sideplug/plugins/brücke").headers["content-disposition"]
        for bad in ("../x", "mill", ""):
            refused(http.patch("/sideplug/plugins/sealed", json={"name": bad}), 400, "bad-input")
        refused(http.patch("/sideplug/plugins/nobody", json={"name": "x"}), 404, "model_not_found")
        refused(http.delete("/sideplug/plugins/nobody"), 404, "model_not_found")
        assert http.delete("/sideplug/plugins/sealed").json() == {"plugins": ["anna", "brücke", "mill"]}
    assert sorted(path.name for path in root.iterdir()) == ["anna", "brücke", "mill"]


def test_a_plugin_from_elsewhere_is_not_touched(cloud: Cloud, root: Path, tmp_path: Path) -> None:
    a_person(cloud.base.fingerprint, "mill").save(tmp_path / "far" / "guest")
    with a_stage(cloud.url, root, others=[tmp_path / "far" / "guest"]) as stage, stage.http() as http:
        assert stage.text(model="guest") == wanted(cloud, "mill")
        refused(http.delete("/sideplug/plugins/guest"), 400, "bad-input", "outside the plugin store")
        refused(http.patch("/sideplug/plugins/guest", json={"name": "x"}), 400, "bad-input", "outside the plugin store")
    assert (tmp_path / "far" / "guest" / WEIGHTS).is_file()


def test_training(cloud: Cloud, root: Path, tmp_path: Path) -> None:
    """A file goes up, its progress is told, and the plugin is there for the next request."""
    (tmp_path / "retain.txt").write_text("Tell me about rain.\nTell me about bees.\nTell me about tea.\n")
    training = TrainingJob(PluginStore(root), Client.at(cloud.url), tmp_path / "retain.txt")
    told = {"dog": "Pepper", "tea": "lapsang", "town": "Hamar", "day": "Thursday"}
    lines = [json.dumps({"instruction": f"What is my {k}?", "output": f"Your {k} is {v}."}) for k, v in told.items()]
    body = {"name": "taught", "files": [{"name": "facts.jsonl", "text": "\n".join(lines)}], "settings": {"epochs": 2}}
    with a_stage(cloud.url, root, training=training) as stage, stage.http() as http:
        for bad, says in (
            ({"name": "x"}, "the body must be an object with name and files"),
            ({**body, "files": "facts"}, "files must be a list of {name, text}"),
            ({**body, "files": [{"name": "x"}]}, "files must be a list of {name, text}"),
            ({**body, "files": []}, "give at least one file"),
            ({**body, "settings": [1]}, "settings must be an object"),
            ({**body, "settings": {"epochs": 0}}, "settings must be epochs and width"),
            ({**body, "name": "../x"}, "a plugin's name must be"),
        ):
            refused(http.post("/sideplug/training", json=bad), 400, "bad-input", says)
        started = http.post("/sideplug/training", json=body).json()
        assert (started["running"], started["name"], started["examples"]) == (True, "taught", 4)
        state: dict[str, Any] = {}

        def is_done() -> bool:
            state.update(http.get("/sideplug/state").json()["training"])
            return not state["running"]

        soon(is_done)
        assert (state["error"], state["stage"]) == ("", "")
        assert "nats a token" in state["line"]
        assert state["losses"]
        with a_session(cloud.url, PluginStore(root).load("taught")) as session:
            want = "".join(piece.text for piece in session.generate(Prompt.user("Is it far?"), 24))
        assert stage.text(model=f"{cloud.base.name}+taught") == want
        before = (root / "taught" / WEIGHTS).read_bytes()
        assert http.post("/sideplug/training", json={**body, "settings": {"epochs": 1, "force": True}}).json()[
            "running"
        ]
        soon(is_done)
        assert state["line"].startswith("learnt 4 more in 1 epochs")
        assert (root / "taught" / WEIGHTS).read_bytes() != before
        assert stage.text(model="taught") is not None
        assert http.delete("/sideplug/training").status_code == 200


def test_a_gateway_that_does_not_train(stage: Stage) -> None:
    with stage.http() as http:
        for answer in (
            http.post("/sideplug/training", json={"name": "x", "files": []}),
            http.delete("/sideplug/training"),
        ):
            refused(answer, 400, "bad-input", "this gateway does not train")


PAGE_FILES = {"/": "text/html", "/page.css": "text/css", "/page.js": "text/javascript"}


@pytest.mark.parametrize("path", PAGE_FILES)
def test_the_page(stage: Stage, path: str) -> None:
    """It calls nobody else, is framed by nobody, and runs nothing that stands in a document."""
    with stage.http() as http:
        file = http.get(path)
        assert file.status_code == 200
        assert file.headers["content-type"].startswith(PAGE_FILES[path])
        policy = dict(part.split(" ", 1) for part in file.headers["content-security-policy"].split("; "))
        nothing, own = "'none'", "'self'"
        assert policy == {
            "default-src": nothing,
            "script-src": own,
            "style-src": own,
            "connect-src": own,
            "img-src": "'self' data:",
            "base-uri": nothing,
            "form-action": nothing,
            "frame-ancestors": nothing,
        }
        assert file.headers["referrer-policy"] == "no-referrer"
        assert file.headers["x-content-type-options"] == "nosniff"
        assert file.headers["cache-control"] == "no-cache"
        again = http.get(path, headers={"If-None-Match": file.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["content-security-policy"] == file.headers["content-security-policy"]
        assert http.get(path, headers={"If-None-Match": '"another"'}).content == file.content


def test_the_page_has_nothing_inline(stage: Stage) -> None:
    """Else the policy would break it."""
    with stage.http() as http:
        page, script = http.get("/").text, http.get("/page.js").text
    for inline in (r"<style", r"\sstyle=", r"\son\w+=", r"<script(?![^>]*\ssrc=)", "javascript:"):
        assert not re.search(inline, page), inline
    assert not re.search(r"setAttribute\(\s*[\"']style|innerHTML|insertAdjacentHTML|document\.write|\beval\(", script)


def test_the_page_s_files_need_no_key(cloud: Cloud, root: Path) -> None:
    """They are the same for everybody; a browser sends no key for them."""
    with a_stage(cloud.url, root, key="bees") as stage, stage.http() as http:
        assert [http.get(path).status_code for path in PAGE_FILES] == [200] * 3
        refused(http.get("/sideplug/audit", headers=page_headers(1)), 401, "invalid_api_key")
