"""The device's commands in real processes: gateway, train --update, and what keeps plugins in order."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.conftest import Cloud, Run, a_plugin
from tests.test_cli import FACTS, sentence

PHRASE = {"SIDEPLUG_PASSPHRASE": "bees, nails and tea"}
NEW = json.dumps({"instruction": "What is my cat?", "output": "Your cat is Salt."}) + "\n"


@contextlib.contextmanager
def a_gateway(
    cloud: Cloud, tmp_path: Path, *options: Any, stop: int = signal.SIGINT, env: dict[str, str] | None = None
) -> Iterator[dict[str, Any]]:
    """`sideplug gateway` in a process of its own, ended by a signal: what its --json line says."""
    command = ["gateway", "--cloud", cloud.url, "--port", 0, "--plugins", tmp_path / "shelf", "--json", *options]
    environment = {**os.environ, "SIDEPLUG_CACHE": str(tmp_path / "cache"), **(env or {})}
    process = subprocess.Popen(
        [sys.executable, "-m", "sideplug", *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            pytest.fail(process.communicate(timeout=30)[1])
        yield json.loads(line)
        process.send_signal(stop)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (0, "", "")
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def plugin(cloud: Cloud, tmp_path: Path) -> Path:
    a_plugin(cloud.base.fingerprint).save(tmp_path / "anna")
    (tmp_path / "anna" / "tape").mkdir()
    (tmp_path / "anna" / "tape" / "train.tape").write_bytes(b"words")
    return tmp_path / "anna"


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_gateway_from_start_to_end(cloud: Cloud, run: Run, tmp_path: Path, plugin: Path, stop: int) -> None:
    """A plugin of the shelf and one from elsewhere; the text is what `generate` gives."""
    a_plugin(cloud.base.fingerprint, seed=4).save(tmp_path / "shelf" / "mill")
    with a_gateway(cloud, tmp_path, "--plugin", plugin, "--max-tokens", 7, stop=stop) as about:
        assert about == {
            "url": about["url"],
            "api": about["url"] + "/v1",
            "cloud": cloud.url,
            "plugins": ["anna", "mill"],
        }
        with openai.OpenAI(base_url=about["api"], api_key="none", max_retries=0) as client:
            found = client.chat.completions.create(model="anna", messages=[{"role": "user", "content": "hi"}])
            assert len(list(client.models.list())) == 3
        asked = ["generate", "hi", "--plugin", plugin, "--cloud", cloud.url, "--max-tokens", 7, "--json"]
        assert found.choices[0].message.content == json.loads(run(*asked).stdout)["text"]
        port = about["url"].rsplit(":", 1)[1]
        again = run("gateway", "--port", port, "--cloud", cloud.url, "--plugins", tmp_path / "shelf")
        sentence(again, 1, f"port {port} on 127.0.0.1 is taken", "--port")


def test_it_ends_with_a_reply_under_way(cloud: Cloud, tmp_path: Path) -> None:
    """Ctrl-C waits a little for it, then does not."""
    with a_gateway(cloud, tmp_path) as about, httpx.Client(trust_env=False, timeout=60) as http:
        body = {"messages": [{"role": "user", "content": "hi"}], "stream": True, "temperature": 2}
        with http.stream("POST", about["api"] + "/chat/completions", json=body) as answer:
            assert next(answer.iter_lines()).startswith("data: ")


def test_a_key_and_defaults(cloud: Cloud, tmp_path: Path) -> None:
    options = ("--key", "bees", "--allow-origin", "https://notes.example", "--max-tokens", 3, "--host", "0.0.0.0")
    with a_gateway(cloud, tmp_path, *options) as about, httpx.Client(trust_env=False, timeout=60) as http:
        url = about["url"].replace("0.0.0.0", "127.0.0.1")
        assert http.get(url + "/v1/models").status_code == 401
        headers = {"Authorization": "Bearer bees", "Origin": "https://notes.example", "Host": "10.0.0.1"}
        body = {"messages": [{"role": "user", "content": "hi"}]}
        answer = http.post(url + "/v1/chat/completions", json=body, headers=headers)
        assert answer.json()["usage"]["completion_tokens"] <= 3
        assert answer.headers["access-control-allow-origin"] == "https://notes.example"


def test_a_gateway_without_a_cloud(run: Run, tmp_path: Path) -> None:
    """It starts, since the cloud may come later; only the head must be fetched at once."""

    class Nobody:
        url = "ws://127.0.0.1:9"

    with a_gateway(Nobody(), tmp_path) as about, httpx.Client(trust_env=False) as http:  # type: ignore[arg-type]
        assert http.get(about["api"] + "/models").status_code == 503
    wrong = ["gateway", "--cloud", Nobody.url, "--port", 0, "--plugins", tmp_path, "--head", "device"]
    sentence(run(*wrong), 1, "no cloud answers at ws://127.0.0.1:9")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["gateway", "--host", "0.0.0.0"], "--host 0.0.0.0 is beyond this machine: give a --key"),
        (["gateway", "--host", "mill.example"], "is beyond this machine: give a --key"),
        (["gateway", "--plugin", "missing"], "there is no plugin in missing"),
        (["gateway", "--port", "99999"], "99999 is not in the range"),
        (["gateway", "--max-tokens", "0"], "0 is not in the range"),
        (["gateway", "--temperature", "-1"], "-1.0 is not in the range"),
        (["gateway", "--window", "99"], "99 is not in the range"),
        (["audit"], "Missing argument 'FILE'"),
        (["audit", "missing"], "the transcript missing can't be read"),
        (["learn", "x"], "No such command 'learn'"),
        (["train", "x"], "Missing option '--out' (or '--update'"),
        (["train", "missing", "--update", "x"], "there is no file or folder missing"),
        (["train", "x", "--update", "x", "--out", "y"], "--out and --update can't be given together"),
        (["train", "x", "--update", "x", "--width", "8"], "--width can't be given with --update"),
        (["train", "x", "--update", "x", "--kind", "paper", "--resume"], "--kind and --resume can't be given with"),
        (["plugin", "export", "missing", "x"], "there is no plugin in missing"),
        (["plugin", "import", "missing", "x"], "missing can't be read"),
        (["plugin", "lock", "missing"], "a passphrase must not be empty: set SIDEPLUG_PASSPHRASE"),
        (["plugin", "unlock", "missing"], "there is no plugin in missing"),
        (["plugin", "rollback", "missing"], "there is no plugin in missing"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_bad_input(run: Run, tmp_path: Path, arguments: list[str], says: str) -> None:
    sentence(run(*arguments, cwd=tmp_path), 2, says)
    assert not [path for path in tmp_path.iterdir() if path.name in ("missing", "x")]


def test_every_command_has_help_with_an_example(run: Run) -> None:
    commands = ["gateway", "audit", "train"]
    for command in (*([name] for name in commands), *(["plugin", n] for n in ("list", "export", "import", "lock"))):
        text = run(*command, "--help").stdout
        assert "Example:  sideplug " + " ".join(command) in " ".join(text.split("\n")), command


def test_the_list(run: Run, cloud: Cloud, tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    none = run("plugin", "list", "--plugins", shelf)
    assert (none.returncode, none.stdout) == (0, "")
    assert "no plugins yet" in none.stderr
    for name in ("anna", "mill"):
        a_plugin(cloud.base.fingerprint).save(shelf / name)
    assert run("plugin", "lock", shelf / "mill", env=PHRASE).returncode == 0
    lines = run("plugin", "list", "--plugins", shelf).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["anna", "mill"]
    assert ["sealed" in line for line in lines] == [False, True]
    found = json.loads(run("plugin", "list", "--json", env={"SIDEPLUG_PLUGINS": str(shelf)}).stdout)
    assert found == [
        {"name": "anna", "folder": str(shelf / "anna"), "sealed": False},
        {"name": "mill", "folder": str(shelf / "mill"), "sealed": True},
    ]


def test_lock_and_unlock(cloud: Cloud, run: Run, tmp_path: Path, plugin: Path) -> None:
    """Where it is sealed, the passphrase of the variable opens it wherever it is used."""
    before = contents(plugin)
    asked = ["generate", "hi", "--plugin", plugin, "--cloud", cloud.url, "--max-tokens", 4]
    want = run(*asked).stdout
    sentence(run("plugin", "lock", plugin), 2, "a passphrase must not be empty")
    assert contents(plugin) == before
    done = run("plugin", "lock", plugin, env=PHRASE)
    assert (done.returncode, done.stdout) == (0, f"{plugin} is sealed: there is no way in without the passphrase\n")
    locked = contents(plugin)
    assert b"words" not in b"".join(locked.values())
    sentence(run("plugin", "lock", plugin, env=PHRASE), 2, "there is no open plugin in", "that could be sealed")
    sentence(run(*asked), 2, "this plugin is sealed: give its passphrase")
    wrong = {"SIDEPLUG_PASSPHRASE": "wrong"}
    for command in (asked, ["plugin", "info", plugin], ["plugin", "unlock", plugin]):
        sentence(run(*command, env=wrong), 2, "the passphrase is wrong")
    sentence(run("gateway", "--plugin", plugin, env=wrong), 2, "the passphrase is wrong")
    assert run(*asked, env=PHRASE).stdout == want
    with (
        a_gateway(cloud, tmp_path, "--plugin", plugin, env=PHRASE) as about,
        openai.OpenAI(base_url=about["api"], api_key="none") as client,
    ):
        found = client.chat.completions.create(model="anna", messages=[{"role": "user", "content": "hi"}], max_tokens=4)
        assert found.choices[0].message.content == want.removesuffix("\n")
    learn = ["train", write(tmp_path / "new.jsonl", NEW), "--update", plugin, "--cloud", cloud.url]
    sentence(run(*learn, env=PHRASE), 2, "is sealed, its tape too: unlock it first")
    assert contents(plugin) == locked
    done = run("plugin", "unlock", plugin, env=PHRASE)
    assert (done.returncode, done.stdout) == (0, f"{plugin} is open\n")
    assert contents(plugin) == before


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("sealed", [True, False])
def test_export_and_import(cloud: Cloud, run: Run, tmp_path: Path, plugin: Path, sealed: bool) -> None:
    file, other = tmp_path / "anna.sideplug", tmp_path / "other"
    how, env = (["--seal"], PHRASE) if sealed else ([], {})
    if sealed:
        sentence(run("plugin", "export", plugin, file, "--seal"), 2, "a passphrase must not be empty")
    done = run("plugin", "export", plugin, file, *how, env=env)
    assert (done.returncode, done.stdout) == (0, f"{plugin} is in {file}{', sealed' if sealed else ''}\n")
    assert file.stat().st_mode & 0o777 == 0o600
    assert b"words" not in file.read_bytes()
    if sealed:
        sentence(run("plugin", "import", file, other), 2, "this plugin is sealed: give its passphrase")
        sentence(run("plugin", "import", file, other, env={"SIDEPLUG_PASSPHRASE": "x"}), 2, "the passphrase is wrong")
        assert not other.exists()
    assert run("plugin", "import", file, other, env=env).returncode == 0
    assert json.loads(run("plugin", "info", other, "--json").stdout)["base_fingerprint"] == cloud.base.fingerprint
    asked = ["generate", "hi", "--cloud", cloud.url, "--max-tokens", 4, "--plugin"]
    assert run(*asked, other).stdout == run(*asked, plugin).stdout
    sentence(run("plugin", "import", file, other, env=env), 2, "is not empty: give another folder")
    sentence(run("plugin", "export", plugin, tmp_path / "no" / "x"), 1, "could not be written")
    file.write_bytes(file.read_bytes()[:-1])
    sentence(run("plugin", "import", file, tmp_path / "third", env=env), 2, "the plugin file is cut off")
    sentence(run("plugin", "import", write(file, "hello"), tmp_path / "third", env=env), 2, "no plugin file of ours")
    assert not (tmp_path / "third").exists()


def test_learn_more_and_rollback(cloud: Cloud, run: Run, tmp_path: Path) -> None:
    facts, new, out = write(tmp_path / "facts.jsonl", FACTS), write(tmp_path / "new.jsonl", NEW), tmp_path / "p"
    how = ["--cloud", cloud.url, "--json"]
    assert run("train", facts, "--out", out, *how, "--epochs", 3, "--held-out", 0.2, "--no-remember").returncode == 0
    before = contents(out)
    sentence(run("plugin", "rollback", out), 2, "has no version before this one")
    done = run("train", new, "--update", out, *how, "--epochs", 2, "--force")
    assert done.returncode == 0, done.stderr
    learnt = json.loads(done.stdout)
    assert (learnt["plugin"], learnt["examples"], learnt["kept"]) == (str(out), 1, True)
    assert learnt["new_after"] < learnt["new_before"]
    (part,) = json.loads(run("plugin", "info", out, "--json").stdout)["parts"]
    assert part["about"]["examples"] == 6
    told = run("train", new, "--update", out, "--cloud", cloud.url, "--epochs", 1, "--force")
    assert told.stdout.startswith("learnt 1 more in 1 epochs: new text ")
    assert len(told.stdout.splitlines()) == 1
    for examples in (6, 5):
        back = run("plugin", "rollback", out)
        assert (back.returncode, back.stdout) == (0, f"{out} is again what {examples} examples made of it\n")
    after = contents(out)
    assert {name: after[name] for name in before} == before
    sentence(run("plugin", "rollback", out), 2, "has no version before this one")
    imported = tmp_path / "imported"
    shutil.copytree(out, imported, ignore=shutil.ignore_patterns("tape"))
    sentence(run("train", new, "--update", imported, "--cloud", cloud.url), 2, "has no tape to learn on from")
    sentence(run("train", write(new, ""), "--update", out, "--cloud", cloud.url), 2, "new.jsonl is empty")
    sentence(run("train", facts, "--update", out, "--cloud", "ws://127.0.0.1:9"), 1, "no cloud answers at")
    assert {name: contents(out)[name] for name in before} == before
