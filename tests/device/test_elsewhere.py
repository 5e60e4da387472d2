"""Plugins outside the store are remembered, once each, and forgotten in words when they are gone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sideplug.contract.errors import Stopped
from sideplug.device.elsewhere import LIST, folders, forget, remember
from tests.conftest import Run, a_plugin
from tests.test_cli import sentence


def made(folder: Path) -> Path:
    a_plugin("f" * 64).save(folder)
    return folder


def test_what_is_remembered(tmp_path: Path) -> None:
    root = tmp_path / "store"
    assert folders(root) == ([], [])
    a, b, inside = made(tmp_path / "x" / "a"), made(tmp_path / "b"), made(root / "inside")
    for folder in (a, b, inside, tmp_path / "x" / ".." / "x" / "a"):
        remember(root, folder)
    assert folders(root) == ([b, a], []), "once each, the newest last, and none of the store's own"
    shutil.rmtree(b)
    assert folders(root) == ([a], [b])
    assert folders(root) == ([a], []), "it is told once"
    forget(root, a)
    assert folders(root) == ([], [])


@pytest.mark.parametrize("content", ["", "{", "{}", "[1, null]", "[" * 100_000, '["\\u0000"]'])
def test_a_list_that_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / LIST).write_text(content)
    assert folders(tmp_path)[0] == []
    remember(tmp_path, made(tmp_path / "far" / "a"))
    assert folders(tmp_path)[0] == [tmp_path / "far" / "a"]


def test_a_store_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises(Stopped, match="could not be written"):
        remember(tmp_path / "store", made(tmp_path / "a"))


def test_list_and_delete_by_hand(run: Run, tmp_path: Path) -> None:
    env = {"SIDEPLUG_PLUGINS": str(tmp_path / "store")}
    made(tmp_path / "store" / "anna")
    far = made(tmp_path / "far")
    file = tmp_path / "f.sideplug"
    assert run("plugin", "export", far, file, env=env).returncode == 0
    assert run("plugin", "import", file, tmp_path / "brought", env=env).returncode == 0
    listed = run("plugin", "list", env=env).stdout
    assert [line.split()[0] for line in listed.splitlines()] == ["anna", "brought"]
    sentence(run("plugin", "delete", "anna", env=env), 2, "give --force where nobody can be asked")
    (tmp_path / "brought" / "notes.txt").write_text("mine")
    done = run("plugin", "delete", "brought", "--force", env=env)
    assert (done.returncode, "what is not the plugin's stays: notes.txt" in done.stdout) == (0, True), done.stderr
    assert [path.name for path in (tmp_path / "brought").iterdir()] == ["notes.txt"]
    assert run("plugin", "delete", "anna", "--force", env=env).returncode == 0
    assert not (tmp_path / "store" / "anna").exists()
    assert run("plugin", "delete", far, "--force", env=env).returncode == 0
    assert not far.exists()
    sentence(run("plugin", "delete", "nobody", "--force", env=env), 2, "there is no plugin 'nobody' here")
    remember(tmp_path / "store", made(tmp_path / "lost"))
    shutil.rmtree(tmp_path / "lost")
    told = run("plugin", "list", env=env)
    assert f"the plugin that was in {tmp_path / 'lost'} is gone" in told.stderr
    assert "is gone" not in run("plugin", "list", env=env).stderr
