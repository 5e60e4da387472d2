"""Processes as a user starts them: a served model, a command, a child that is asked line by line.

Every child has a session of its own (Ctrl-C is for the benchmark, which ends its children) and ends where the benchmark
is killed. It does not know what the children do. Test: pytest -m slow tests/slow/test_bench.py
"""

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


def _end_with_parent() -> None:
    """In a child on Linux: ask for a SIGTERM when the parent is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


class Child:
    """Python with these arguments, in a process of its own; its first line says that it is ready.

    `ready`: that line. Lines are JSON, each way. Raises Stopped where the process ends instead.
    """

    def __init__(self, *arguments: Any) -> None:
        self._ended = f"{' '.join(map(str, arguments[:4]))} … has ended; what it said stands above"
        self._popen = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=_end_with_parent,
            encoding="utf-8",
        )
        try:
            self.ready = self.read()
        except BaseException:
            self.close()
            raise
        self.process = psutil.Process(self._popen.pid)

    def write(self, line: Any) -> None:
        """Send a line. Raises Stopped where the process has ended."""
        assert self._popen.stdin is not None
        try:
            self._popen.stdin.write(json.dumps(line) + "\n")
            self._popen.stdin.flush()
        except BrokenPipeError as error:
            raise Stopped(self._ended) from error

    def read(self) -> Any:
        """Return the next line that it prints. Raises Stopped where there is none."""
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline()
        if not line:
            raise Stopped(self._ended)
        return json.loads(line)

    def close(self) -> None:
        """End the process: it is asked to, and killed after half a minute."""
        self._popen.terminate()
        try:
            self._popen.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.communicate()


@contextmanager
def child(*arguments: Any) -> Iterator[Child]:
    """A Child, closed at the end."""
    started = Child(*arguments)
    try:
        yield started
    finally:
        started.close()


@contextmanager
def served(model: str, *options: Any) -> Iterator[tuple[str, psutil.Process]]:
    """`sideplug serve` of this model: (its URL, its process)."""
    with child("-m", "sideplug", "serve", model, "--port", "0", "--json", *options) as cloud:
        yield cloud.ready["url"], cloud.process


def command(*arguments: Any) -> Any:
    """Run one `sideplug … --json` command and return what it printed. Raises Stopped where it fails."""
    line = [sys.executable, "-m", "sideplug", *map(str, arguments), "--json"]
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=False, encoding="utf-8")
    if done.returncode:
        raise Stopped(f"sideplug {arguments[0]} could not be done; what it said stands above")
    return json.loads(done.stdout)
