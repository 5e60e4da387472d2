"""sideplug config and sideplug doctor: what comes from where, and what is missing; nothing secret is printed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sideplug.cli import variables
from sideplug.contract.errors import InputError
from sideplug.memory import book
from sideplug.memory.store import Entry
from tests.conftest import Cloud, Run
from tests.test_cli import sentence


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config.toml"
    monkeypatch.setenv("SIDEPLUG_CONFIG", str(path))
    return path


def test_the_file_stands_for_variables(file: Path) -> None:
    file.write_text(
        'cloud = "wss://far:1"\nretry = 5\n[gateway]\nport = 9000\nallow-origin = ["https://a", "https://b"]\n',
        encoding="utf-8",
    )
    environ = {"SIDEPLUG_RETRY": "7"}
    variables.apply(environ)
    assert environ == {
        "SIDEPLUG_CLOUD": "wss://far:1",
        "SIDEPLUG_RETRY": "7",
        "SIDEPLUG_GATEWAY_PORT": "9000",
        "SIDEPLUG_GATEWAY_ALLOW_ORIGIN": "https://a https://b",
    }
    file.unlink()
    variables.apply(environ := {})
    assert environ == {}


BAD = {
    "cloud = \n": "is not TOML",
    'passphrase = "gate"\n': "a passphrase must not stand in a file",
    "[gateway.more]\nx = 1\n": "gateway-more must be a text, a number",
    "cloud = 2026-01-01\n": "cloud must be a text, a number, true, false or a list of texts, got 2026-01-01",
}


@pytest.mark.parametrize(("text", "says"), BAD.items())
def test_a_bad_file_is_one_sentence(file: Path, run: Run, text: str, says: str) -> None:
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=says):
        variables.read_file()
    sentence(run("plugin", "list"), 2, says)


def test_where_each_value_comes_from(file: Path, run: Run) -> None:
    file.write_text('cloud = "ws://127.0.0.1:9"\ncloud-key = "sp-secret"\n[gateway]\nport = 9000\n', encoding="utf-8")
    shown = run("config", "show", env={"SIDEPLUG_RETRY": "7"}).stdout
    rows = {line.split()[0]: line.split()[1:] for line in shown.splitlines()[1:-1]}
    assert rows["SIDEPLUG_CLOUD"] == ["ws://127.0.0.1:9", "file"]
    assert rows["SIDEPLUG_GATEWAY_PORT"] == ["9000", "file"]
    assert rows["SIDEPLUG_RETRY"] == ["7", "variable"]
    assert "sp-secret" not in shown
    assert "SIDEPLUG_WINDOW" not in rows
    told = json.loads(run("config", "show", "--json").stdout)
    assert {each["variable"]: each["from"] for each in told["settings"]}["SIDEPLUG_WINDOW"] == "default"
    file.write_text('clowd = "ws://127.0.0.1:9"\n', encoding="utf-8")
    sentence(run("config", "show"), 2, "there is no setting 'clowd'; there are: allow-origin, answer-deadline-ms")


def test_the_file_is_used(file: Path, run: Run, cloud: Cloud) -> None:
    file.write_text(f'cloud = "{cloud.url}"\n', encoding="utf-8")
    assert run("generate", "Is it far?", "--max-tokens", "2").returncode == 0
    sentence(run("generate", "Is it far?", "--cloud", "ws://127.0.0.1:9", "--retry", "0"), 1, "no cloud answers")


def test_doctor(run: Run, cloud: Cloud, tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    book.remember(shelf / "mine", [Entry("", "The secret word is here.")], lambda line: None)
    (shelf / "bad").mkdir()
    (shelf / "bad" / "plugin.json").write_text("{")
    env = {"SIDEPLUG_PLUGINS": str(shelf), "SIDEPLUG_CLOUD_KEY": "sp-secret", "HOME": str(tmp_path)}
    seen = run("doctor", "--cloud", cloud.url, env=env)
    assert seen.returncode == 1, "one plugin is damaged"
    assert seen.stdout.splitlines()[-1] == "1 of 12 need a hand: plugin"
    for what in (
        "ok  base",
        "ok  clock",
        "ok  key",
        "ok  plugin     ~/shelf/mine: memory, 1 entries",
        "!!  plugin     ~/shelf/bad",
    ):
        assert what in seen.stdout
    assert "secret" not in seen.stdout
    assert str(tmp_path) not in seen.stdout
    told = json.loads(run("doctor", "--cloud", cloud.url, "--plugin", shelf / "mine", "--json").stdout)
    assert told["good"]
    gone = run("doctor", "--cloud", "ws://127.0.0.1:9", env={**env, "SIDEPLUG_PLUGINS": str(tmp_path / "none")})
    assert gone.returncode == 1
    assert "!!  cloud      no cloud answers" in gone.stdout
    assert "none yet: sideplug remember or sideplug train makes one" in gone.stdout


def test_every_variable_of_an_option_can_stand_in_the_file() -> None:
    from sideplug.cli.home import every_option

    names = [name for name, *_ in every_option()]
    assert all(name.startswith("SIDEPLUG_") for name in names)
    assert len(names) > 30
    assert os.environ.get("SIDEPLUG_CLOUD") is None
