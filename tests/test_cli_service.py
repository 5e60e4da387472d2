"""sideplug service: the file that a manager of services reads, and what is asked of that manager.

No such manager runs here: a program of its name stands in for it, and systemd's own checker reads the file, where it is
installed.
"""

from __future__ import annotations

import json
import os
import plistlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sideplug.cli.service import Manager, _quoted
from tests.conftest import Run
from tests.test_cli import sentence

SYSTEMCTL = """#!/bin/sh
echo "$@" >> {log}
case "$2" in is-active) test -f {active} ;; enable) touch {active} ;; disable) rm -f {active} ;; esac
"""


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    program = tmp_path / "bin" / "systemctl"
    program.parent.mkdir()
    program.write_text(SYSTEMCTL.format(log=tmp_path / "log", active=tmp_path / "active"), "utf-8")
    program.chmod(0o755)
    return {"XDG_CONFIG_HOME": str(tmp_path / "config"), "PATH": f"{program.parent}:{os.environ['PATH']}"}


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="systemd is Linux's")


@linux
def test_from_install_to_remove(run: Run, home: dict[str, str], tmp_path: Path) -> None:
    unit = tmp_path / "config" / "systemd" / "user" / "sideplug-gateway.service"
    assert run("service", "status", env=home).stdout.splitlines() == [
        "gateway    not installed",
        "serve      not installed",
    ]
    done = run("service", "install", "gateway", "--port", "9000", "--plugins", tmp_path / "my plugins", env=home)
    assert done.returncode == 0, done.stderr
    assert "runs now, and from each login on" in done.stdout.splitlines()[-1]
    line = next(line for line in unit.read_text("utf-8").splitlines() if line.startswith("ExecStart="))
    assert line.endswith(f'sideplug gateway --port 9000 --plugins "{tmp_path}/my plugins"')
    assert Path(line.split("=")[1].split()[0]).is_file()
    if shutil.which("systemd-analyze"):
        seen = subprocess.run(
            ["systemd-analyze", "--user", "verify", str(unit)], capture_output=True, text=True, check=False
        )
        assert "Unknown" not in seen.stderr
    assert json.loads(run("service", "status", "--json", env=home).stdout)["gateway"]["runs"]
    (tmp_path / "active").unlink()
    down = run("service", "status", env=home)
    assert down.returncode == 1
    assert "gateway    does not run: journalctl --user -u sideplug-gateway.service says why" in down.stdout
    assert run("service", "remove", env=home).returncode == 0
    assert not unit.exists()
    sentence(run("service", "remove", env=home), 2, "there is no service gateway")
    asked = (tmp_path / "log").read_text("utf-8").splitlines()
    assert asked[:2] == ["--user daemon-reload", "--user enable --now sideplug-gateway.service"]
    assert asked[-1] == "--user disable --now sideplug-gateway.service"


@linux
def test_what_can_not_be_installed(run: Run, home: dict[str, str], tmp_path: Path) -> None:
    sentence(run("service", "install", "gateway", "--cloud-key", "sp-1", env=home), 2, "give --cloud-key-file")
    sentence(run("service", "install", "gateway", "--prot", "1", env=home), 2, "No such option")
    sentence(run("service", "install", "gateway", "--port", "x", env=home), 2, "not a valid integer")
    sentence(run("service", "install", "garden", env=home), 2, "is not one of 'gateway', 'serve'")
    assert not (tmp_path / "config").exists()
    nowhere = {**home, "PATH": "/nowhere"}
    gone = run("service", "install", "serve", env=nowhere)
    sentence(gone, 1, "there is no systemctl on this machine", "when it runs: systemctl --user daemon-reload && ")
    assert (tmp_path / "config" / "systemd" / "user" / "sideplug-serve.service").is_file(), "it waits for its manager"


def test_an_agent_of_launchd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setenv("HOME", str(tmp_path))
    manager = Manager.of("gateway")
    assert manager.file == tmp_path / "Library" / "LaunchAgents" / "org.sideplug.gateway.plist"
    told = plistlib.loads(manager.text(["/opt/sideplug", "gateway", "--port", "9000"], "gateway"))
    assert told["ProgramArguments"] == ["/opt/sideplug", "gateway", "--port", "9000"]
    assert told["RunAtLoad"] is True
    assert manager.start == [["launchctl", "bootstrap", f"gui/{os.getuid()}", str(manager.file)]]


@pytest.mark.parametrize(
    ("word", "written"),
    [("plain", "plain"), ("", '""'), ("a b", '"a b"'), ("50%", "50%%"), ("$HOME", "$$HOME"), ('a"b', '"a\\"b"')],
)
def test_words_as_systemd_reads_them(word: str, written: str) -> None:
    assert _quoted(word) == written
