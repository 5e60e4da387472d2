"""What stands around the gateway's routes: names of models, hosts, origins, keys, paths, packed bodies, headers."""

from __future__ import annotations

import gzip
import json
import logging
import os
import re
import unicodedata
import zlib
from pathlib import Path
from typing import Any

import pytest

from sideplug.contract.errors import InputError
from sideplug.device.gateway import body as gateway_body
from sideplug.device.gateway.middleware import AROUND, checked_hosts, checked_origins
from sideplug.device.gateway.names import ModelNames
from sideplug.device.plugin_store import PluginStore
from tests.conftest import Cloud, a_plugin
from tests.gateway import ASK, Stage, a_person, a_stage, raw, refused, root, stage, wanted

__all__ = ["root", "stage"]  # fixtures
BODY = json.dumps(ASK).encode()


# ── names of models ───────────────────────────────────────────────────────────────────────────────────────────────────

NAMES = ModelNames("owner/Base-1B", ["anna", "brücke"])


@pytest.mark.parametrize(
    ("name", "plugin"),
    [
        ("", ""),
        ("owner/Base-1B", ""),
        ("Base-1B", ""),
        ("anna", "anna"),
        ("owner/Base-1B+anna", "anna"),
        ("Base-1B+anna", "anna"),
        (unicodedata.normalize("NFD", "brücke"), "brücke"),
        (unicodedata.normalize("NFD", "Base-1B+brücke"), "brücke"),
    ],
)
def test_names(name: str, plugin: str) -> None:
    assert NAMES.plugin(name) == plugin


@pytest.mark.parametrize("name", ["nobody", "other/Base-1B", "+anna", "owner/Base-1B+", "Anna", "x" * 500])
def test_names_of_nothing(name: str) -> None:
    with pytest.raises(InputError, match=r"there is no model .* here; there are: owner/Base-1B, owner/Base-1B\+anna, "):
        NAMES.plugin(name)


def test_every_name_that_a_reply_takes_is_a_model(cloud: Cloud, stage: Stage) -> None:
    base = cloud.base.name
    with stage.http() as http:
        for name, full in ((base, base), ("anna", f"{base}+anna"), (f"{base}+anna", f"{base}+anna")):
            assert http.get(f"/v1/models/{name}").json()["id"] == full
            assert stage.post(model=name).json()["model"] == full
        assert http.get("/v1/models/").json() == http.get("/v1/models").json()
        assert len(http.get("/v1/models/").json()["data"]) == 3


def test_a_base_that_is_a_folder_goes_by_its_name_alone(cloud: Cloud, stage: Stage, tiny: Path) -> None:
    """No path of the server is told to anybody."""
    with stage.http() as http:
        for path in ("/v1/models", "/sideplug/state"):
            assert str(tiny.parent) not in http.get(path).text
    assert cloud.base.name == tiny.name


def test_a_plugin_s_name_is_one_however_it_is_written(cloud: Cloud, root: Path) -> None:
    """macOS writes accented letters as two characters."""
    composed, apart = (unicodedata.normalize(form, "brücke") for form in ("NFC", "NFD"))
    a_person(cloud.base.fingerprint, "anna").save(root / apart)
    with a_stage(cloud.url, root) as stage, stage.http() as http:
        for name in (composed, apart):
            assert stage.text(model=name) == wanted(cloud, "anna")
        names = [plugin["name"] for plugin in http.get("/sideplug/state").json()["plugins"]]
        assert names == ["anna", composed, "mill"]
        refused(http.patch("/sideplug/plugins/mill", json={"name": composed}), 400, "bad-input", "already")


def test_two_folders_of_one_name_are_told(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for folder in ("a/bees", "b/bees", "c/anna"):
        a_plugin("e" * 64).save(tmp_path / folder)
    twins = [tmp_path / "a" / "bees", tmp_path / "b" / "bees"]
    with pytest.raises(InputError, match="two plugins are named bees: .*/a/bees and .*/b/bees"):
        PluginStore(root, twins)
    with pytest.raises(InputError, match="two plugins are named anna: .*/shelf/anna and .*/c/anna"):
        PluginStore(root, [tmp_path / "c" / "anna"])
    assert len(PluginStore(root, [twins[0], twins[0], root / "anna"]).entries()) == 3
    for form in ("NFC", "NFD"):
        a_plugin("e" * 64).save(root / unicodedata.normalize(form, "brücke"))
    if len(os.listdir(root)) == 4:  # the file system keeps both
        with caplog.at_level(logging.WARNING):
            store = PluginStore(root)
            for _ in range(2):
                assert len(store.entries()) == 3
        assert caplog.text.count("has the same name") == 1


# ── hosts and origins ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("host", ["localhost.", "LOCALHOST.:8766", "host.docker.internal", "Host.Docker.internal.:80"])
def test_hosts_that_are_allowed(cloud: Cloud, root: Path, host: str) -> None:
    with a_stage(cloud.url, root, hosts=("host.docker.Internal.",)) as stage:
        answer = raw(stage.url, f"GET /health HTTP/1.1\r\nHost: {host}\r\n".encode())
        assert answer.split(b"\r\n")[0].endswith(b"200 OK")


def test_a_host_that_is_not_allowed_hears_how_it_could_be(stage: Stage) -> None:
    with stage.http(headers={"Host": "host.docker.internal:8766"}) as http:
        refused(http.get("/v1/models"), 403, "wrong_host", "'host.docker.internal:8766'", "--allow-host")


@pytest.mark.parametrize(("given", "want"), [("Mill.Example.", "mill.example"), ("[::1]", "::1"), ("10.0.0.1",) * 2])
def test_names_of_hosts(given: str, want: str) -> None:
    assert checked_hosts([given]) == (want,)


@pytest.mark.parametrize("given", ["", "mill.example:80", "http://mill.example", "mill/x", "*"])
def test_what_is_no_host(given: str) -> None:
    with pytest.raises(InputError, match="--allow-host must be a name without port or path"):
        checked_hosts([given])


@pytest.mark.parametrize(
    ("given", "want"),
    [
        ("https://Notes.example/", "https://notes.example"),
        ("app://obsidian.md", "app://obsidian.md"),
        ("http://localhost:5173", "http://localhost:5173"),
        ("null", "null"),
    ],
)
def test_origins(given: str, want: str) -> None:
    assert checked_origins([given], "") == (want,)


@pytest.mark.parametrize("given", ["notes.example", "", "https://notes.example/page", "https://"])
def test_what_is_no_origin(given: str) -> None:
    with pytest.raises(InputError, match="--allow-origin must be like https://notes.example"):
        checked_origins([given], "bees")


def test_every_origin_may_call_only_where_there_is_a_key(cloud: Cloud, root: Path) -> None:
    with pytest.raises(InputError, match="give a --key too, or name the pages"):
        checked_origins(["*"], "")
    page = {"Origin": "app://obsidian.md"}
    with a_stage(cloud.url, root, origins=("*",), key="bees") as stage, stage.http(headers=page) as http:
        wants = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
        preflight = http.options("/v1/models", headers=wants)
        answer = http.get("/v1/models", headers={"Authorization": "Bearer bees"})
        for each in (preflight, answer):
            assert (each.status_code, each.headers["access-control-allow-origin"]) == (200, "*")
        refused(http.get("/v1/models"), 401, "invalid_api_key")


@pytest.mark.parametrize("header", ["Bearer bees", "bearer bees", "BEARER  bees"])
def test_the_key_in_any_case_of_its_scheme(cloud: Cloud, root: Path, header: str) -> None:
    with a_stage(cloud.url, root, key="bees") as stage, stage.http() as http:
        assert http.get("/v1/models", headers={"Authorization": header}).status_code == 200
        for wrong in ("bees", "Basic bees", "Bearer Bees"):
            refused(http.get("/v1/models", headers={"Authorization": wrong}), 401, "invalid_api_key")


# ── paths, bodies, headers ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", ["/v1/chat/completions", "//v1/chat/completions", "/v1//chat/completions///"])
def test_slashes(stage: Stage, path: str) -> None:
    with stage.http() as http:
        assert http.post(f"{stage.url}{path}", json=ASK).status_code == 200


def test_slashes_do_not_pass_the_key(cloud: Cloud, root: Path) -> None:
    with a_stage(cloud.url, root, key="bees") as stage, stage.http() as http:
        for path in ("//v1/models", "/v1/models/", "/health//v1/models", "//sideplug/state"):
            refused(http.get(f"{stage.url}{path}"), 401, "invalid_api_key")
        assert http.get(f"{stage.url}//health/").status_code == 200


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [("gzip", gzip.compress), ("X-GZIP", gzip.compress), ("deflate", zlib.compress), ("identity", bytes)],
)
def test_packed_bodies(cloud: Cloud, stage: Stage, encoding: str, pack: Any) -> None:
    with stage.http(headers={"Content-Encoding": encoding}) as http:
        answer = http.post("/v1/chat/completions", content=pack(BODY))
        assert answer.json()["choices"][0]["message"]["content"] == wanted(cloud)


@pytest.mark.parametrize(
    ("encoding", "body", "says"),
    [
        ("br", b"x", "a body packed with 'br' can't be read"),
        ("gzip, br", b"x", "can't be read: send it plain, or packed with gzip"),
        ("gzip", BODY, "the body is packed, and damaged"),
        ("gzip", gzip.compress(BODY, mtime=0)[:-9], "the body is packed, and cut off"),
        ("", gzip.compress(BODY, mtime=0), "the body must be JSON"),
    ],
)
def test_bodies_that_can_not_be_unpacked(stage: Stage, encoding: str, body: bytes, says: str) -> None:
    headers = {"Content-Encoding": encoding} if encoding else {}
    with stage.http(headers=headers) as http:
        answer = http.post("/v1/chat/completions", content=body)
        refused(answer, 400, "bad-input", says)
        assert "codec" not in answer.text


def test_a_small_body_that_unpacks_to_a_large_one(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_body, "MAX_BODY_BYTES", 1 << 20)
    body = gzip.compress(b'{"messages": "' + b"x" * (8 << 20) + b'"}')
    assert len(body) < 1 << 16
    with stage.http(headers={"Content-Encoding": "gzip"}) as http:
        answer = http.post("/v1/chat/completions", content=body)
    refused(answer, 400, "context_length_exceeded", "the body must have at most 1 MiB")


@pytest.mark.parametrize("megabytes", [1, 10, 20])
def test_a_message_beyond_all_contexts_is_refused_in_words(stage: Stage, megabytes: int) -> None:
    """And the next one is not."""
    for stream in (False, True):
        long = [{"role": "user", "content": "nails " * (megabytes * 1_000_000 // 6)}]
        answer = stage.post(messages=long, stream=stream)
        refused(answer, 400, "context_length_exceeded")
        assert re.search("context length is 256 tokens|the text must have at most 4.0 MiB", answer.text)
    assert stage.post().status_code == 200


@pytest.mark.parametrize(
    "path", ["/v1/models", "/sideplug/state", "/health", "/nowhere", "/", "/page.js", "/sideplug/plugins/anna"]
)
def test_what_stands_around_every_answer(stage: Stage, path: str) -> None:
    """No answer is shown inside another page, or taken for another type than it says."""
    with stage.http() as http:
        answer = http.get(path)
    for name, value in AROUND.items():
        if name != "Content-Security-Policy":
            assert answer.headers[name] == value
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


def test_the_page_s_addresses_are_relative(stage: Stage) -> None:
    """So that a proxy may put a path before them."""
    with stage.http() as http:
        page, script = http.get("/").text, http.get("/page.js").text
    assert 'src="page.js"' in page
    assert 'href="page.css"' in page
    assert '"/v1/' not in script
    assert '"/sideplug' not in script
    assert "`/sideplug" not in script
