"""Keys, certificates and pins by hand: real commands, a real cloud in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from sideplug.cloud.keys import Keys
from sideplug.device.address import Address
from tests.conftest import Run, a_plugin
from tests.test_cli import FACTS, sentence
from tests.test_cli_device import a_gateway

ASK = ["generate", "hi", "--max-tokens", 3, "--cloud"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's own folder of settings: everything that a test starts finds its keys there."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "sideplug"


@contextlib.contextmanager
def serving(model: Path, *options: Any, env: dict[str, str] | None = None) -> Iterator[dict[str, Any]]:
    """`sideplug serve` in a process of its own: what its --json line says."""
    command = [sys.executable, "-m", "sideplug", "serve", str(model), "--port", "0", "--json", *map(str, options)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})}
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            first = process.stdout.readline()
            assert first, process.stderr.read()
            yield json.loads(first)
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=30)
            assert process.returncode == 0
            assert "Traceback" not in err
        finally:
            process.kill()


def test_add_list_and_revoke(run: Run, home: Path) -> None:
    none = run("keys", "list")
    assert (none.returncode, none.stdout) == (0, "")
    assert "no keys in" in none.stderr
    assert not home.exists()
    ada = run("keys", "add", "ada")
    assert ada.returncode == 0
    assert re.fullmatch(r"sp-[0-9a-f]{12}-[\w-]{43}\n", ada.stdout)
    assert ada.stderr == "ada's device shows it as SIDEPLUG_CLOUD_KEY=… or --cloud-key-file …; it is not shown again\n"
    assert run("keys", "add", "bert", "--sessions", 2, "--tokens-per-minute", 1200).returncode == 0
    assert (home / "keys.json").stat().st_mode & 0o777 == 0o600
    found = json.loads(run("keys", "list", "--json").stdout)
    limits = [(key["name"], key["sessions"], key["tokens_per_minute"], key["revoked"]) for key in found]
    assert limits == [("ada", 8, 0, None), ("bert", 2, 1200, None)]
    lines = run("keys", "list").stdout.splitlines()
    assert lines[0].startswith("ada  ")
    assert lines[0].endswith(" 8 sessions, any tokens")
    assert lines[1].endswith(" 2 sessions, 1,200 tokens a minute")
    sentence(run("keys", "add", "ada"), 2, "there is a key named ada already")
    done = run("keys", "revoke", "ada")
    assert (done.returncode, done.stdout) == (0, "ada's key is revoked\n")
    assert " revoked 2" in run("keys", "list").stdout.splitlines()[0]
    assert json.loads(run("keys", "list", "--json").stdout)[0]["revoked"].startswith("2")
    sentence(run("keys", "revoke", "ada"), 2, "there is no key named 'ada'", "there are: bert")
    assert ada.stdout.split("-", 2)[2].strip() not in (home / "keys.json").read_text()


def test_a_file_of_ones_own(run: Run, home: Path, tmp_path: Path) -> None:
    own = tmp_path / "mine.json"
    assert run("keys", "add", "ada", "--keys", own).returncode == 0
    assert [key.name for key in Keys(own).listed()] == ["ada"]
    assert "ada" in run("keys", "list", env={"SIDEPLUG_KEYS": str(own)}).stdout
    assert run("keys", "revoke", "ada", env={"SIDEPLUG_KEYS": str(own)}).returncode == 0
    assert not home.exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["keys", "add"], "Missing argument 'NAME'"),
        (["keys", "add", "a b"], "a key's name must have 1 to 64 letters"),
        (["keys", "add", "local"], "is the key that sideplug serve makes for this machine"),
        (["keys", "add", "ada", "--sessions", "-1"], "-1 is not in the range"),
        (["keys", "add", "ada", "--tokens-per-minute", "x"], "not a valid integer"),
        (["keys", "revoke", "ada"], "there is no key named 'ada'"),
        (["keys", "list", "--keys", "garbage"], "garbage is damaged, or no keys file"),
        (["keys", "add", "ada", "--keys", "garbage"], "garbage is damaged, or no keys file"),
        (["serve", "--keys", "garbage"], "garbage is damaged, or no keys file"),
        (["serve", "--keys", "missing"], "there is no keys file missing: sideplug keys add NAME --keys missing"),
        (["serve", "--insecure", "--keys", "missing"], "there is no keys file missing"),
        (["serve", "--host", "0.0.0.0"], "TLS (--tls-cert and --tls-key, or --tls-self) and keys (there are none in"),
        (["serve", "--host", "mill.example", "--tls-self"], "is beyond this machine: it needs keys (there are none in"),
        (["serve", "--host", "::", "--keys", "good"], "is beyond this machine: it needs TLS (--tls-cert and"),
        (
            ["serve", "--host", "::", "--keys", "revoked"],
            "and keys (there are none in revoked: sideplug keys add NAME)",
        ),
        (["serve", "--tls-self", "--tls-cert", "x", "--tls-key", "y"], "can't be given together"),
        (["serve", "--tls-self", "--host", "mühle", "--keys", "good"], "a certificate can't be made for 'mühle'"),
        (["generate", "hi", "--pin", "x"], "a pin must look like sha256:"),
        (["chat", "--cloud", "wss://h", "--pin", "sha256:0"], "a pin must look like sha256:"),
        (["generate", "hi", "--pin", "sha256:" + "0" * 64], "a pin needs a certificate"),
        (["gateway", "--pin", "x"], "a pin must look like sha256:"),
        (
            ["generate", "hi", "--cloud", "ws://h", "--cloud-key", "sp-a-b"],
            "the key would travel to ws://h in the clear",
        ),
        (["train", "x", "--out", "y", "--cloud", "ws://h", "--cloud-key", "sp-a-b"], "in the clear"),
        (["gateway", "--cloud", "ws://h", "--cloud-key", "sp-a-b"], "in the clear"),
        (["generate", "hi", "--cloud-key", "a b"], "must be one word of ASCII"),
    ],
    ids=lambda x: " ".join(x)[:60] if isinstance(x, list) else "",
)
def test_bad_input(run: Run, home: Path, tmp_path: Path, arguments: list[str], says: str) -> None:
    (tmp_path / "garbage").write_text("garbage")
    Keys(tmp_path / "good").add("ada")
    Keys(tmp_path / "revoked").add("ada")
    Keys(tmp_path / "revoked").revoke("ada")
    sentence(run(*arguments, cwd=tmp_path), 2, says)
    assert not (home / "local-key").exists()


def test_help_has_examples(run: Run) -> None:
    for command in ("add", "list", "revoke"):
        assert f"Example:  sideplug keys {command}" in run("keys", command, "--help").stdout


def test_on_this_machine_nothing_is_to_be_done(run: Run, tiny: Path, home: Path) -> None:
    """serve, then generate: the key is made, kept, found; another user's device has none."""
    with serving(tiny) as about:
        assert (home / "local-key").stat().st_mode & 0o777 == 0o600
        kept = (home / "local-key").read_bytes()
        assert run(*ASK, about["url"]).returncode == 0
        assert run(*ASK, about["url"].replace("127.0.0.1", "localhost")).returncode == 0
        stranger = {"XDG_CONFIG_HOME": str(home / "elsewhere")}
        sentence(run(*ASK, about["url"], env=stranger), 1, "this cloud wants a key", "--cloud-key")
        sentence(run(*ASK, about["url"], "--cloud-key", "sp-0-0"), 1, "this cloud does not know this key")
        ada = run("keys", "add", "ada").stdout.strip()
        assert run(*ASK, about["url"], env={**stranger, "SIDEPLUG_CLOUD_KEY": ada}).returncode == 0
        with serving(tiny) as second:
            assert (home / "local-key").read_bytes() == kept
            assert run(*ASK, second["url"]).returncode == 0
        assert run("keys", "revoke", "local").returncode == 0
        sentence(run(*ASK, about["url"]), 1, "this cloud does not know this key")
        with serving(tiny) as third:
            assert (home / "local-key").read_bytes() != kept
            for url in (about["url"], third["url"]):
                assert run(*ASK, url).returncode == 0


def test_other_places_for_the_files(run: Run, tiny: Path, home: Path, tmp_path: Path) -> None:
    env = {"SIDEPLUG_KEYS": str(tmp_path / "k.json"), "SIDEPLUG_LOCAL_KEY": str(tmp_path / "a" / "local")}
    with serving(tiny, env=env) as about:
        assert run(*ASK, about["url"], env=env).returncode == 0
        sentence(run(*ASK, about["url"]), 1, "this cloud wants a key")
    assert not home.exists()


def test_with_a_keys_file_this_machine_needs_a_key_too(run: Run, tiny: Path, home: Path, tmp_path: Path) -> None:
    ada = run("keys", "add", "ada", "--keys", tmp_path / "k.json").stdout.strip()
    with serving(tiny, "--keys", tmp_path / "k.json") as about:
        assert not home.exists()
        sentence(run(*ASK, about["url"]), 1, "this cloud wants a key")
        assert run(*ASK, about["url"], "--cloud-key", ada).returncode == 0
        assert run("keys", "revoke", "ada", "--keys", tmp_path / "k.json").returncode == 0
        sentence(run(*ASK, about["url"], "--cloud-key", ada), 1, "this cloud does not know this key")


def test_insecure_is_as_it_says(run: Run, tiny: Path, home: Path, tmp_path: Path) -> None:
    with serving(tiny, "--insecure", "--host", "0.0.0.0") as about:
        url = about["url"].replace("0.0.0.0", "127.0.0.1")
        assert run(*ASK, url).returncode == 0
    assert not home.exists()
    ada = run("keys", "add", "ada", "--keys", tmp_path / "k.json").stdout.strip()
    for how in (["--keys", tmp_path / "k.json"], []):
        env = {} if how else {"SIDEPLUG_KEYS": str(tmp_path / "k.json")}
        with serving(tiny, "--insecure", "--host", "0.0.0.0", *how, env=env) as about:
            url = about["url"].replace("0.0.0.0", "127.0.0.1")
            sentence(run(*ASK, url), 1, "this cloud wants a key")
            assert run(*ASK, url, "--cloud-key", ada).returncode == 0


def tickets(url: str, pin: str) -> bool:
    """Does the cloud hand out session tickets? Two threads of a device could trip over one."""
    context, port = Address(url, pin=pin).tls(), urlsplit(url).port
    assert context is not None
    with context.wrap_socket(socket.create_connection(("127.0.0.1", port), 10)) as stream:
        stream.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        stream.recv(1000)
        assert stream.session is not None
        return bool(stream.session.has_ticket)


@pytest.mark.slow
def test_beyond_this_machine(run: Run, tiny: Path, home: Path, tmp_path: Path) -> None:
    """TLS of its own, a pin and a key: every command that connects comes in, and none without all of them."""
    ada = run("keys", "add", "ada").stdout.strip()
    facts = tmp_path / "facts.jsonl"
    facts.write_text(FACTS)
    with serving(tiny, "--host", "0.0.0.0", "--tls-self") as about:
        assert not tickets(about["url"], about["pin"])
        assert not (home / "local-key").exists()
        assert (home / "tls-self.pem").stat().st_mode & 0o777 == 0o600
        pin, url = about["pin"], about["url"].replace("0.0.0.0", "127.0.0.1")
        assert url.startswith("wss://")
        a_plugin(about["fingerprint"]).save(tmp_path / "p")
        env = {"SIDEPLUG_CLOUD": url, "SIDEPLUG_CLOUD_KEY": ada, "SIDEPLUG_PIN": pin}
        assert run(*ASK, url, "--cloud-key", ada, "--pin", pin).returncode == 0
        for command in (
            ["chat", "--max-tokens", 2],
            ["train", facts, "--out", tmp_path / "q", "--epochs", 1],
            ["train", facts, "--update", tmp_path / "q", "--epochs", 1, "--force"],
            ["eval", facts, "--plugin", tmp_path / "p"],
            ["gate", "curve", "--data", facts, "--plugin", tmp_path / "q"],
        ):
            done = run(*command, env=env, stdin="hello\n")
            assert done.returncode == 0, (command, done.stderr)
        far = SimpleNamespace(url=url)
        options = ("--cloud-key", ada, "--pin", pin, "--key", "for-callers")
        with a_gateway(far, tmp_path, *options) as gateway, httpx.Client(trust_env=False, timeout=60) as http:  # type: ignore[arg-type]
            assert http.get(gateway["api"] + "/models").status_code == 401
            bearer = {"Authorization": "Bearer for-callers"}
            assert http.get(gateway["api"] + "/models", headers=bearer).status_code == 200
        with a_gateway(far, tmp_path, "--pin", pin) as gateway, httpx.Client(trust_env=False, timeout=60) as http:  # type: ignore[arg-type]
            refused = http.get(gateway["api"] + "/models")  # the gateway's key is missing, not its caller's
            assert (refused.status_code, refused.json()["error"]["code"]) == (502, "unauthorized")
        sentence(run(*ASK, url, env={"SIDEPLUG_PIN": pin}), 1, "this cloud wants a key")
        sentence(run(*ASK, url, env={"SIDEPLUG_CLOUD_KEY": ada}), 1, "is not trusted")
        wrong = "sha256:" + "0" * 64
        sentence(run(*ASK, url, "--cloud-key", ada, "--pin", wrong), 1, pin, wrong)
        plain = url.replace("wss:", "ws:")
        sentence(run(*ASK, plain), 1, "answers, but is no sideplug cloud")


def test_the_pin_is_told_and_stays(tiny: Path, home: Path) -> None:
    command = [sys.executable, "-m", "sideplug", "serve", str(tiny), "--port", "0", "--tls-self"]
    pins = []
    for _ in range(2):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(3)]
            process.terminate()
        assert "at wss://127.0.0.1:" in lines[0]
        pins += re.findall(r"a device needs --pin (sha256:[0-9a-f]{64})\n", lines[2])
    assert len(pins) == 2
    assert pins[0] == pins[1]
