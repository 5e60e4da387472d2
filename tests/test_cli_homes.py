"""The commands in odd homes (read-only, missing), other encodings, with keys in files and data on standard input."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from sideplug import paths
from sideplug.cli import escape
from sideplug.cli.session import data_or_stdin
from sideplug.cloud import kept
from sideplug.contract.errors import InputError, Stopped
from tests.conftest import Cloud, Run, a_cloud, free_port
from tests.test_cli import FACTS, sentence

HOMES = ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME")
VARIABLES = (*HOMES, "SIDEPLUG_CACHE", "SIDEPLUG_PLUGINS", "SIDEPLUG_KEYS", "SIDEPLUG_LOCAL_KEY")


@pytest.fixture
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


# ── homes ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("no_variables")
@pytest.mark.parametrize(
    ("folder", "variable"),
    [
        (paths.cache_dir, "SIDEPLUG_CACHE"),
        (paths.plugins_dir, "SIDEPLUG_PLUGINS"),
        (paths.local_key_file, "SIDEPLUG_LOCAL_KEY"),
        (paths.keys_file, "XDG_CONFIG_HOME"),
    ],
)
def test_what_can_not_be_written_says_what_moves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Any, variable: str
) -> None:
    """A file where the home should be stands for a read-only one: it can't be written to by anybody, root too."""
    (tmp_path / "home").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path = folder() / "x"
    with pytest.raises(Stopped) as caught, paths.writing(path):
        path.parent.mkdir(parents=True)
    assert re.search(rf"could not be written: Not a directory; .*{variable}.* names another place", str(caught.value))
    with pytest.raises(Stopped) as caught:
        kept.make(path, lambda aside: None)
    assert re.search(rf"could not be written: .*{variable}.* names another place", str(caught.value))
    with pytest.raises(Stopped) as caught, paths.writing(tmp_path / "elsewhere"):
        raise OSError(28, "No space left on device")
    assert "names another place" not in str(caught.value)


@pytest.mark.usefixtures("no_variables")
def test_no_home_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", missing)
    for folder, variable in ((paths.cache_dir, "XDG_CACHE_HOME"), (paths.keys_file, "XDG_CONFIG_HOME")):
        with pytest.raises(InputError, match=f"there is no home folder here .*: set HOME, or {variable}"):
            folder()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="/proc is a folder in which nobody can make another")
def test_serve_in_a_home_that_can_not_be_written(run: Run, tiny: Path) -> None:
    done = run("serve", str(tiny), "--port", "0", env={**dict.fromkeys(HOMES, ""), "HOME": "/proc"})
    sentence(done, 1, "/proc/.config", "XDG_CONFIG_HOME (or SIDEPLUG_KEYS and SIDEPLUG_LOCAL_KEY) names another place")


def test_a_system_without_file_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(InputError, match="no file locks .*Linux, macOS and WSL 2"), paths.locked(tmp_path / "x"):
        pass


# ── encodings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("text", ["brücke", "你好", "a “b” — c", "🧑‍🚀", "\ud83d"])
def test_escapes_are_those_of_json(text: str) -> None:
    error = UnicodeEncodeError("ascii", text, 0, len(text), "")
    escaped, end = escape(error)
    assert json.loads(f'"{escaped}"') == text
    assert (escaped.isascii(), end) == (True, len(text))


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-8"])
def test_an_encoding_that_can_not_hold_a_character(run: Run, cloud: Cloud, encoding: str) -> None:
    """Nothing is lost, JSON stays JSON, errors stay sentences."""
    env = {"PYTHONIOENCODING": encoding}
    plain = run("generate", "Is it far?", "--max-tokens", 24, "--json", "--cloud", cloud.url, encoding="utf-8")
    done = run("generate", "Is it far?", "--max-tokens", 24, "--json", "--cloud", cloud.url, env=env, encoding=encoding)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["text"] == json.loads(plain.stdout)["text"]
    sentence(run("generate", "hi", "--plugin", "你好", env=env, encoding=encoding), 2, "there is no plugin in")
    assert run("--help", env=env, encoding=encoding).returncode == 0


# ── keys in files ─────────────────────────────────────────────────────────────────────────────────────────────────────


def secret_file(folder: Path, text: str = "sp-x\n", mode: int = 0o600) -> Path:
    path = folder / "key"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_secret_in_a_file(tmp_path: Path) -> None:
    assert paths.read_secret(secret_file(tmp_path), "the key file") == "sp-x"


@pytest.mark.parametrize(
    ("text", "mode", "says"),
    [
        ("sp-x", 0o644, "can be read by other users of this machine: chmod 600"),
        ("sp-x", 0o640, "can be read by other users"),
        ("", 0o600, "must hold one key"),
        ("two words", 0o600, "must hold one key"),
        ("schlüssel", 0o600, "must hold one key"),
    ],
)
def test_secrets_that_are_refused(tmp_path: Path, text: str, mode: int, says: str) -> None:
    with pytest.raises(InputError, match=f"the key file .*key {says}"):
        paths.read_secret(secret_file(tmp_path, text, mode), "the key file")


def test_no_such_secret(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the key file .* can't be read: No such file"):
        paths.read_secret(tmp_path / "none", "the key file")


def test_keys_from_files(run: Run, tiny: Path, tmp_path: Path) -> None:
    """A key that is made as JSON, kept in a file, shown from it by every command, and by its variable."""
    from sideplug.cloud.keys import Keys

    made = run("keys", "add", "ada", "--role", "operator", "--sessions", 2, "--json", "--keys", tmp_path / "keys.json")
    about = json.loads(made.stdout)
    assert {**about, "key": ""} == {"name": "ada", "key": "", "sessions": 2, "tokens_per_minute": 0, "role": "operator"}
    file = secret_file(tmp_path, about["key"])
    with a_cloud(tiny, keys=Keys(tmp_path / "keys.json")) as cloud:
        ask = ("generate", "hi", "--max-tokens", 3, "--cloud", cloud.url)
        assert run(*ask, "--cloud-key-file", file).returncode == 0
        assert run(*ask, env={"SIDEPLUG_CLOUD_KEY_FILE": str(file)}).returncode == 0
        assert run("top", cloud.url, "--once", "--every", 0.1, "--cloud-key-file", file).returncode == 0
        sentence(run(*ask, "--cloud-key-file", file, "--cloud-key", "x"), 2, "can't be given together")
        file.chmod(0o644)
        sentence(run(*ask, "--cloud-key-file", file), 2, "can be read by other users")
    sentence(run("gateway", "--key-file", file), 2, "can be read by other users")


# ── standard input, variables ─────────────────────────────────────────────────────────────────────────────────────────


def test_top_looks_where_the_variable_says(run: Run, cloud: Cloud) -> None:
    done = run("top", "--once", "--every", 0.1, "--json", env={"SIDEPLUG_CLOUD": cloud.url})
    assert json.loads(done.stdout)["model"] == cloud.base.name
    nowhere = f"ws://127.0.0.1:{free_port()}"
    sentence(run("top", "--once", env={"SIDEPLUG_CLOUD": nowhere}), 1, f"no cloud answers at {nowhere}")


def test_training_from_standard_input(run: Run, cloud: Cloud, tmp_path: Path) -> None:
    done = run("train", "-", "--out", tmp_path / "p", "--epochs", 1, "--cloud", cloud.url, stdin=FACTS)
    assert done.returncode == 0, done.stderr
    assert "standard-input.jsonl" in done.stderr
    assert os.listdir(tmp_path / "p")
    sentence(run("train", "-", "--out", tmp_path / "q", "--cloud", cloud.url), 2, "standard input is empty")


@pytest.mark.parametrize(
    ("content", "name"),
    [("[1]", "standard-input.jsonl"), (' {"a": 1}', "standard-input.jsonl"), ("Dear Anna", "standard-input.txt")],
)
def test_what_comes_on_standard_input(monkeypatch: pytest.MonkeyPatch, content: str, name: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode()), encoding="utf-8"))
    with data_or_stdin(Path("-")) as path:
        assert (path.name, path.read_text()) == (name, content)
    assert not path.exists()
    with data_or_stdin(Path("notes")) as path:
        assert path == Path("notes")


def test_a_preview_sends_and_changes_nothing(run: Run, tmp_path: Path) -> None:
    lines = ["Anna: are the nails there?", "Bo: since noon", "Anna: good", "Bo: my number is 0171 2345678"]
    (tmp_path / "chat.txt").write_text("".join(f"13.11.23, 09:1{n} - {line}\n" for n, line in enumerate(lines)))
    nowhere = ["--cloud", "ws://127.0.0.1:9", "--preview"]
    for command in (["remember", "--plugin", tmp_path / "p"], ["train", "--out", tmp_path / "p"]):
        asked = run(*command, tmp_path / "chat.txt", *nowhere)
        assert asked.returncode == 2
        assert "give --me with one of these names" in asked.stderr
        done = run(*command, tmp_path / "chat.txt", *nowhere, "--me", "bo", "--redact", "numbers")
        assert done.returncode == 0, done.stderr
        assert "my number is [number]" in done.stdout
        assert "redacted numbers: 1, such as 0171 2345678" in done.stderr
        assert "nothing was sent or changed" in done.stdout.splitlines()[-1]
        told = json.loads(run(*command, tmp_path / "chat.txt", *nowhere, "--me", "bo", "--json").stdout)
        assert told["items"][0] == {"question": "are the nails there?", "reply": "since noon"}
    assert not (tmp_path / "p").exists()
