"""The device's install is small, and stays so: a wheel in an empty environment, its packages, disk, memory, start.

The bounds have some slack; what is measured is printed (pytest -s) and stands in docs/GUIDE.md.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cloud, a_plugin

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).parent.parent.parent
LIMIT_BYTES = 256 << 20


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment that has the wheel and what it needs, and nothing else."""
    folder = tmp_path_factory.mktemp("small")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--quiet", "--no-deps", "-w", folder, ROOT], check=True)
    venv.create(folder / "env", with_pip=True)
    inside = folder / "env" / "bin"
    (wheel,) = folder.glob("sideplug-*.whl")
    subprocess.run([inside / "python", "-m", "pip", "install", "--quiet", wheel], check=True)
    return inside


def run(inside: Path, *arguments: Any, **settings: Any) -> subprocess.CompletedProcess[str]:
    command = [inside / "sideplug", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **settings)


def test_few_packages_and_megabytes(installed: Path) -> None:
    listed = subprocess.run(
        [installed / "python", "-m", "pip", "list", "--format", "json"], capture_output=True, text=True, check=True
    )
    names = {package["name"] for package in json.loads(listed.stdout)} - {"pip", "setuptools"}
    files = [p for p in (installed.parent / "lib").rglob("*") if p.is_file() and "/pip" not in str(p)]
    size_mb = sum(p.stat().st_size for p in files) / 1e6
    print(f"{len(names)} packages, {size_mb:.0f} MB: {', '.join(sorted(names))}")
    assert len(names) <= 20
    assert size_mb < 150


def test_it_starts_quickly_because_it_imports_little(installed: Path) -> None:
    """Not a clock: what --help and generate load."""
    code = "import sys, sideplug.cli; print(len(sys.modules), 'numpy' in sys.modules, 'starlette' in sys.modules)"
    count, *heavy = subprocess.run(
        [installed / "python", "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    print(f"{count} modules for --help")
    assert heavy == ["False", "False"]
    assert int(count) < 400


@pytest.fixture
def plugin(cloud: Cloud, tmp_path: Path) -> Path:
    a_plugin(cloud.base.fingerprint).save(tmp_path / "plugin")
    return tmp_path / "plugin"


def test_the_wheel_works_where_nothing_else_is_installed(installed: Path, cloud: Cloud, plugin: Path) -> None:
    assert "sideplug" in run(installed, "--version").stdout
    done = run(installed, "generate", "hello", "--plugin", plugin, "--cloud", cloud.url, "--max-tokens", 8, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["usage"]["plugin_tokens"] > 0
    refused = run(installed, "serve")
    assert refused.returncode == 2
    assert "pip install 'sideplug[cloud]'" in refused.stderr
    with a_gateway(installed, plugin, cloud.url) as (url, process):
        page = urllib.request.urlopen(url).read().decode()
        assert "<title>" in page
        idle = memory_mb(process.pid)
        body = {"model": "plugin", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 40}
        request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode())
        assert json.loads(urllib.request.urlopen(request, timeout=60).read())["usage"]["completion_tokens"] > 0
        print(f"gateway: {idle:.0f} MB idle, {memory_mb(process.pid):.0f} MB after a reply")
        assert memory_mb(process.pid) < 110


@contextmanager
def a_gateway(inside: Path, plugin: Path, cloud: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    command = [inside / "sideplug", "gateway", "--plugin", plugin, "--cloud", cloud, "--port", "0", "--json"]
    empty = {**os.environ, "SIDEPLUG_PLUGINS": str(plugin.parent / "shelf")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=empty)
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())["url"], process
    finally:
        process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 0


def memory_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


def test_it_generates_in_256_mb(installed: Path, cloud: Cloud, plugin: Path) -> None:
    """In a cgroup where that is allowed: all of its memory counts there. Elsewhere by RLIMIT_DATA: the heap."""
    arguments = ["generate", "hello", "--plugin", plugin, "--cloud", cloud.url, "--max-tokens", "40", "--json"]
    with limited() as (enter, how):
        done = run(installed, *arguments, preexec_fn=enter)
    assert done.returncode == 0, done.stderr
    peak = json.loads(done.stdout)["peak_rss_mb"]
    print(f"{peak} MB at the most, {how}")
    assert peak < 80


@contextmanager
def limited() -> Iterator[tuple[Any, str]]:
    """What a child calls to be held to LIMIT_BYTES, and how that is done."""
    group = Path("/sys/fs/cgroup/memory") / f"sideplug-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(LIMIT_BYTES))
        yield lambda: (group / "cgroup.procs").write_text(str(os.getpid())), "in a cgroup"
    except OSError:
        limits = (LIMIT_BYTES, LIMIT_BYTES)
        yield lambda: resource.setrlimit(resource.RLIMIT_DATA, limits), "by RLIMIT_DATA"
    finally:
        for _ in range(20):
            try:
                group.rmdir()
                break
            except FileNotFoundError:
                break
            except OSError:  # its last process is still on its way out
                time.sleep(0.1)
