"""Every command that README.md, CONTRIBUTING.md and docs/ show is run as it is written, or stands here with why not.

The fast test looks that none is missing. The slow one runs them: each page in a folder of its own, in their order,
against a cloud that the page's own `sideplug serve` starts at the default address.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MADE = ("CLI.md", "API.md", "LOG.md")  # their examples are tested elsewhere, or are history
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAM = re.compile(
    r"(?:[A-Z_]+=\S+ )*(?:sideplug|pip|make|python3?|\.venv/bin/python|ray|serve|export|llm) .*|sideplug"
)
INSTALLS = "installs packages: tests/slow/test_small.py installs the wheel into an empty environment"
ITSELF = "is the very suite, or what it was set up with"
LONG = "takes long: sideplug bench --quick is in tests/slow/test_bench.py"
MACHINES = "is for several machines: tests/slow/test_ray.py starts a fleet on one"
NOT_RUN = {
    "sideplug plugin rollback mara": "works behind an update that was taken, which the page can not promise",
    "make demo": "takes minutes: tests/slow/test_135m.py has its parts",
    "make setup": ITSELF,
    "make test": ITSELF,
    "make test-twins": ITSELF,
    "make test-slow": ITSELF,
    "make bench": LONG,
    "make lint": ITSELF,
    "make docs": "would change the pages: tests/test_docs.py compares them",
    ".venv/bin/python -m tests.robustness.fuzz": "takes minutes: tests/robustness/test_robustness.py runs a sample",
    ".venv/bin/python -m tests.robustness.load": "takes minutes: tests/robustness/test_robustness.py runs a sample",
    "pip install '.[bench]'": INSTALLS,
    "pip install '.[cloud]'": INSTALLS,
    "pip install 'sideplug[ray]'": INSTALLS,
    "python3 -m venv .venv && . .venv/bin/activate": INSTALLS,
    "sideplug bench --quick": LONG,
    "sideplug bench": LONG,
    "sideplug bench --data mine.jsonl": LONG,
    "sideplug bench Qwen/Qwen2.5-0.5B-Instruct --quick": "downloads another model",
    'sideplug bench --system gated --system "cloud LoRA"': LONG,
    "sideplug bench --task mails --task curve": LONG,
    "sideplug serve --ray --replicas 2": MACHINES,
    "ray start --head": MACHINES,
    "ray start --address FIRST:6379": MACHINES,
    "RAY_ADDRESS=auto sideplug serve --ray --max-replicas 8 --host 0.0.0.0 --keys /shared/keys.json --tls-cert … "
    "--tls-key …": MACHINES,
    "export RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=sideplug.cloud.flow_control.middlewares": MACHINES,
    "serve run sideplug.cloud.ray_serve:app model=smollm2-135m insecure=true": MACHINES,
    "sideplug service install gateway": "would start a service here: tests/test_cli_service.py",
    "sideplug serve --host 0.0.0.0 --tls-self": "is for another machine: tests/cloud/test_certificate.py serves so",
    "export SIDEPLUG_CLOUD=wss://that-machine:8765 SIDEPLUG_PIN=sha256:… SIDEPLUG_CLOUD_KEY=sp-…": "the same",
}
SERVERS = {"sideplug serve": 8765, "sideplug gateway": 8766}  # go on: they are stopped at the end
INPUT = {"sideplug chat": "What is my dog's name?\n/quit\n"}
ELSEWHERE = ("sideplug plugin import",)  # "on the other device": in an empty folder that has the file


def commands(page: Path) -> list[str]:
    """The commands in a page's code blocks, without what is said of them, in their order."""
    found, fenced = [], False
    for line in page.read_text("utf-8").splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            command = re.split(r"\s{2,}|\s# ", line.strip())[0]
            if PROGRAM.fullmatch(command):
                found.append(command)
    return found


def promises(page: Path) -> dict[str, str]:
    """What a page says that its commands say: "# → THIS" behind them."""
    lines = [line.strip() for line in page.read_text("utf-8").splitlines() if " # → " in line]
    return {re.split(r"\s{2,}|\s# ", line)[0]: line.split(" # → ")[1].strip() for line in lines}


RUN = {page: [each for each in commands(page) if each not in NOT_RUN] for page in PAGES if page.name not in MADE}


def test_each_is_run_or_has_a_reason() -> None:
    shown = {command for page in RUN for command in commands(page)}
    assert {"sideplug serve", "sideplug train my-notes/ --out my-plugin", "make demo"} <= shown, "it reads the pages"
    assert sorted(set(NOT_RUN) - shown) == [], "these stand on no page any more"
    starts = [command.split()[0] for page in RUN.values() for command in page]
    assert set(starts) == {"sideplug"}, "of other programs each needs a reason, or a way to be run"


def test_what_is_promised_is_of_commands_that_run() -> None:
    promised = {(page, command) for page in RUN for command in promises(page)}
    assert len(promised) >= 3
    assert promised <= {(page, command) for page, found in RUN.items() for command in found}


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a page's reader: `sideplug` on the path, configuration and data of their own."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "sideplug"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m sideplug "$@"\n')
    program.chmod(0o755)
    own = {"XDG_CONFIG_HOME": str(tmp_path / "config"), "XDG_DATA_HOME": str(tmp_path / "data")}
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    inherited = {name: value for name, value in os.environ.items() if name != "SIDEPLUG_NO_ENCODER"}
    yield {**inherited, **own, "PATH": path, "PYTHONPATH": str(ROOT), "SIDEPLUG_PASSPHRASE": "bees, nails and tea"}


def answers(port: int) -> bool:
    with contextlib.closing(socket.socket()) as asked:
        return asked.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", [page for page, found in RUN.items() if found], ids=lambda page: page.name)
def test_the_commands_of_a_page_run_as_written(page: Path, shell: dict[str, str], tmp_path: Path) -> None:
    if any(answers(port) for port in SERVERS.values()):
        pytest.skip("something else listens at the default address")
    here = tmp_path / "here"
    shutil.copytree(ROOT / "examples", here / "examples")
    (here / "my-notes").mkdir()
    shutil.copy(ROOT / "docs" / "GUIDE.md", here / "my-notes")
    (here / "asked.jsonl").write_text(
        json.dumps({"instruction": "Where does the spare key hang?", "output": "by the cellar door"}) + "\n", "utf-8"
    )
    (here / "corrections.jsonl").write_text(
        '{"instruction": "What is my boat?", "output": "Your boat is Vinga.\\n/M."}\n'
    )
    running: list[subprocess.Popen[bytes]] = []
    try:
        for command in RUN[page]:
            server = next((port for name, port in SERVERS.items() if command.startswith(name)), 0)
            if server:
                running.append(subprocess.Popen(command, shell=True, cwd=here, env=shell, start_new_session=True))
                while not answers(server):
                    assert running[-1].poll() is None, command
                    time.sleep(0.2)
                continue
            where = here
            if command.startswith(ELSEWHERE):
                where = tmp_path / "other"
                where.mkdir()
                shutil.copy(here / "mara.sideplug", where)
            told = INPUT.get(" ".join(command.split()[:2]), "")
            done = subprocess.run(
                command, shell=True, cwd=where, env=shell, input=told, capture_output=True, text=True, timeout=900
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
            assert done.stdout.strip(), command
            assert promises(page).get(command, "") in done.stdout, command
    finally:
        for process in reversed(running):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)
        last = time.monotonic() + 60  # the shell is gone before what it started: the next page needs the ports
        while any(answers(port) for port in SERVERS.values()) and time.monotonic() < last:
            time.sleep(0.2)
