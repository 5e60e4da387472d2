"""What an operator sees, and what others do not: liveness, readiness, roles, refused keys, use by key."""

from __future__ import annotations

import http.client
import json
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sideplug.cloud import access
from sideplug.cloud.access import RefusalLog
from sideplug.cloud.keys import FORMAT, FORMAT_ROLES, Keys
from sideplug.contract.errors import Busy, CloudError, InputError, Unauthorized
from sideplug.contract.frames import Begun, PromptFrame, Read
from sideplug.contract.gate import Gate
from sideplug.contract.progress import running_hash
from sideplug.contract.sampling import Sampling
from sideplug.contract.text import Prompt
from sideplug.contract.version import __version__
from tests.conftest import Cloud, a_cloud, a_link, a_session, eventually

Answered = tuple[int, dict[str, Any] | str]


def get(url: str, path: str, key: str = "") -> Answered:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
    connection.request("GET", path, headers={"Authorization": f"Bearer {key}"} if key else {})
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, json.loads(body) if body.startswith("{") else body


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(tmp_path_factory.mktemp("keys") / "keys.json")


@pytest.fixture(scope="module")
def guarded(tiny: Path, keys: Keys) -> Iterator[Cloud]:
    with a_cloud(tiny, keys=Keys(keys.path)) as cloud:
        yield cloud


@pytest.fixture(scope="module")
def user(keys: Keys) -> str:
    return keys.add("user")


@pytest.fixture(scope="module")
def operator(keys: Keys) -> str:
    return keys.add("operator", role="operator")


def test_who_sees_what(guarded: Cloud, user: str, operator: str) -> None:
    url = guarded.url
    assert get(url, "/health") == (200, {"status": "ok"})
    assert get(url, "/ready") == (200, {"ready": True})
    assert get(url, "/metrics")[0] == get(url, "/v1/model")[0] == get(url, "/nothing")[0] == 401
    assert get(url, "/health", "sp-0-0")[0] == get(url, "/ready", "sp-0-0")[0] == 401, "a wrong key is told so"
    own = get(url, "/health", user)[1]
    assert isinstance(own, dict)
    assert sorted(own) == ["fingerprint", "model", "status", "version"]
    status, says = get(url, "/metrics", user)
    assert status == 403
    assert isinstance(says, dict)
    assert "keys add NAME --role operator" in says["error"]
    everything = get(url, "/health", operator)[1]
    assert isinstance(everything, dict)
    assert sorted(everything) == ["fingerprint", "model", "pid", "sessions", "status", "version"]
    assert get(url, "/metrics", operator)[0] == 200


def samples(url: str, key: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(str(get(url, "/metrics", key)[1]))
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_the_process_and_the_build(guarded: Cloud, operator: str) -> None:
    found = samples(guarded.url, operator)
    for name in ("resident_memory_bytes", "virtual_memory_bytes", "open_fds", "max_fds", "cpu_seconds_total"):
        assert found[f"process_{name}", ()] > 0
    assert abs(found["process_start_time_seconds", ()] - time.time()) < 10 * 3600
    (labels,) = [dict(labels) for name, labels in found if name == "sideplug_build_info"]
    assert labels["version"] == __version__
    assert sorted(labels) == ["python", "version", "wire"]


def test_use_by_key(guarded: Cloud, keys: Keys, operator: str) -> None:
    key = keys.add("counted")
    link = a_link(guarded.url, key=key)
    list(a_session(link, gate=Gate("shut")).generate(Prompt(ids=tuple(range(5, 25))), 7))
    link.close()
    found = samples(guarded.url, operator)
    assert found["sideplug_key_tokens_total", (("key", "counted"),)] == 27
    assert found["sideplug_key_sessions_total", (("key", "counted"),)] == 1
    assert found["sideplug_key_bytes_total", (("key", "counted"),)] > 100
    assert not any("user" in dict(labels).values() for name, labels in found if name == "sideplug_key_tokens_total")


def test_a_server_that_goes_down_is_not_ready_and_says_so(tiny: Path) -> None:
    """While a reply is under way: it listens until that is over."""
    with a_cloud(tiny) as cloud:
        link = a_link(cloud.url)
        pieces = a_session(link, gate=Gate("shut")).generate(Prompt.user("Is it far?"), 200)
        next(pieces)
        down = threading.Thread(target=lambda: cloud._call(cloud.server.drain()))
        down.start()
        eventually(lambda: cloud.server.draining)
        assert get(cloud.url, "/ready") == (503, {"ready": False, "why": "going down"})
        assert get(cloud.url, "/health")[0] == 200
        with pytest.raises(Busy, match="going down"):
            a_link(cloud.url)
        list(pieces)
        link.close()
        down.join(20)
        with pytest.raises(OSError, match=r"refused|reset"):
            get(cloud.url, "/ready")


def test_a_role_is_kept_and_an_old_file_stays_old(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    keys = Keys(path)
    keys.add("ada")
    assert json.loads(path.read_text())["format"] == FORMAT
    assert "role" not in json.loads(path.read_text())["keys"][0], "earlier versions read it"
    text = keys.add("op", role="operator")
    assert json.loads(path.read_text())["format"] == FORMAT_ROLES
    holder = Keys(path).check(text)
    assert holder is not None
    assert holder.is_operator
    keys.revoke("op")
    assert json.loads(path.read_text())["format"] == FORMAT_ROLES, "its entry is there still"
    with pytest.raises(InputError, match="a key's role must be user or operator, got 'admin'"):
        keys.add("eve", role="admin")
    path.write_text(path.read_text().replace('"operator"', '"admin"'))
    with pytest.raises(InputError, match="damaged"):
        Keys(path)


def test_refused_keys_are_logged_with_their_address_and_do_not_fill_the_log(
    guarded: Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "sideplug.cloud"):
        guarded.server._refusals = RefusalLog()
        for _ in range(50):
            assert get(guarded.url, "/v1/model", "sp-0-secretsecret")[0] == 401
        with pytest.raises(Unauthorized):
            a_link(guarded.url)
    lines = [record for record in caplog.records if record.getMessage() == "a key was refused"]
    assert len(lines) == access.LOGGED_A_MINUTE
    assert lines[0].fields == {"address": "127.0.0.1", "path": "/v1/model"}  # type: ignore[attr-defined]
    assert "secretsecret" not in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "sideplug.cloud"):
        guarded.server._refusals.tick(time.monotonic() + 61)
    (more,) = caplog.records
    assert more.getMessage() == "more keys were refused in a minute"
    assert more.fields == {"count": 41, "addresses": 1, "such_as": "127.0.0.1"}  # type: ignore[attr-defined]


def test_who_connects_without_a_pause_waits(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "CONNECTIONS", 5)
    monkeypatch.setattr(access, "CONNECTIONS_OF_EACH", 1)
    keys = Keys(tmp_path / "keys.json")
    restless, calm = keys.add("restless", sessions=3), keys.add("calm")
    with a_cloud(tiny, keys=keys) as cloud:
        for _ in range(5):
            a_link(cloud.url, key=restless).close()
            eventually(lambda: not cloud.server.sessions)
        with pytest.raises(Busy, match="this key has begun 5 sessions in a minute: try again in"):
            a_link(cloud.url, key=restless)
        a_link(cloud.url, key=calm).close()


# ── tokens a minute, charged where they are run ───────────────────────────────────────────────────────────────────────

LIMIT = 6000
IDS = tuple(range(5, 45))


def used(cloud: Cloud, key: str) -> float:
    """The tokens that a key's bucket lacks, but for what flowed in since (100 a second)."""
    bucket = cloud.server.shared.buckets._buckets.get(key.split("-")[1])
    return LIMIT - bucket.level if bucket else 0


def test_what_is_run_is_charged(tiny: Path, tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.json")
    with a_cloud(tiny, keys=keys) as cloud:
        resumed = keys.add("resumed", tokens_per_minute=LIMIT)
        link = a_link(cloud.url, key=resumed)
        a_session(link, gate=Gate("shut"))
        done = [9] * 60
        seal = running_hash(done, running_hash(list(IDS)))
        link.send(PromptFrame(1, 200, Sampling().to_wire(), ids=list(IDS), done=done, hash=seal))
        while not isinstance(link.receive(20), Begun):
            pass
        eventually(lambda: cloud.server.shared.usage.tokens["resumed"] > 100)
        link.close()  # long before DONE
        eventually(lambda: not cloud.server.sessions)
        eventually(lambda: not cloud.engine.working)
        ran = cloud.server.shared.usage.tokens["resumed"]
        assert 100 < ran <= 240
        assert used(cloud, resumed) > 60, "`done` is run again, so it is charged"

        reading = keys.add("reading", tokens_per_minute=LIMIT)
        link = a_link(cloud.url, key=reading)
        a_session(link)
        link.send(Read(1, "", False, text="Anna wrote to her sister", greedy_tokens=100))
        link.receive(20)
        link.close()
        assert cloud.server.shared.usage.tokens["reading"] >= 20

        cached = keys.add("cached", tokens_per_minute=LIMIT)
        with a_session(a_link(cloud.url, key=cached), gate=Gate("shut")) as session:
            list(session.generate(Prompt(ids=IDS), 4))
            first = cloud.server.shared.usage.tokens["cached"]
            list(session.generate(Prompt(ids=IDS), 4))
            assert (first, cloud.server.shared.usage.tokens["cached"]) == (44, 44 + 2 + 4), "38 tokens were cached"


def test_a_key_cannot_begin_more_than_it_has(tiny: Path, tmp_path: Path) -> None:
    """`done` counts before anything is run; and what is refused costs nothing."""
    keys = Keys(tmp_path / "keys.json")
    key = keys.add("ada", tokens_per_minute=100)
    with a_cloud(tiny, keys=keys) as cloud, a_session(a_link(cloud.url, key=key), gate=Gate("shut")) as session:
        list(session.generate(Prompt(ids=IDS), 4))
        with pytest.raises(Busy, match="has used its 100 tokens a minute"):
            list(session.generate(Prompt(ids=tuple(range(5, 75))), 4))
        with pytest.raises((InputError, CloudError)):
            list(session.generate(Prompt(ids=IDS[:20]), 0))
        assert cloud.server.shared.usage.tokens["ada"] == 44
