"""Processes as a user starts them: a served model, a command, anything that prints a line of JSON when it is ready."""

from __future__ import annotations

import ctypes
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil

from sideplug.contract.errors import Stopped


def _end_with_us() -> None:
    """In a child of Linux: a SIGTERM when its parent is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


@contextmanager
def child(*command: Any) -> Iterator[tuple[dict[str, Any], psutil.Process]]:
    """Python with these arguments: (what its first line said, its process). Raises Stopped where there is none."""
    line = [sys.executable, *map(str, command)]
    # Ctrl-C is for the benchmark, which ends its children; and they end where it is killed.
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=_end_with_us)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise Stopped(f"{' '.join(map(str, command[:4]))} … has ended; what it said stands above")
        yield json.loads(line), psutil.Process(process.pid)
    finally:
        process.terminate()
        try:
            process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


@contextmanager
def served(model: str, *options: Any) -> Iterator[tuple[str, psutil.Process]]:
    """`sideplug serve`: (its URL, its process)."""
    with child("-m", "sideplug", "serve", model, "--port", "0", "--json", *options) as (told, process):
        yield told["url"], process


def command(*arguments: Any) -> Any:
    """One `sideplug … --json` command: what it printed. Raises Stopped where it fails."""
    line = [sys.executable, "-m", "sideplug", *map(str, arguments), "--json"]
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise Stopped(f"sideplug {arguments[0]} could not be done; what it said stands above")
    return json.loads(done.stdout)
