"""Processes of the command that need not import it: each is forked from one that has done so.

A test of the command wants a process of its own, with its own environment, folder, streams and end; that the package
is read anew from the disk half a second long, several hundred times, it does not want. What is read at the start
(`python -m sideplug`, its signals and its logs) the tests with real starts hold: test_cli.start, serving, and so on.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

WITH_EXTRAS = ("sideplug.bench", "sideplug.cloud.model.torch", "sideplug.cloud.ray_serve", "sideplug.__main__")


class Prepared:
    """A process that has imported the command, and forks it."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.prepared"]
        root = str(Path(__file__).parent.parent)
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root)

    def run(
        self,
        args: list[str],
        env: Mapping[str, str],
        stdin: str = "",
        cwd: Path | str | None = None,
        timeout: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        """As subprocess.run(["sideplug", *args], text=True, capture_output=True) would end."""
        assert self._process.stdin
        assert self._process.stdout
        with tempfile.TemporaryDirectory() as folder:
            streams = {name: str(Path(folder) / name) for name in ("stdin", "stdout", "stderr")}
            Path(streams["stdin"]).write_text(stdin, "utf-8")
            order = {"args": args, "env": dict(env), "cwd": str(cwd or Path.cwd()), "timeout": timeout, **streams}
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            code = json.loads(self._process.stdout.readline())
            said = [Path(streams[name]).read_text("utf-8") if code is not None else "" for name in ("stdout", "stderr")]
        if code is None:
            raise subprocess.TimeoutExpired(args, timeout)
        return subprocess.CompletedProcess(args, code, *said)

    def close(self) -> None:
        """End it."""
        self._process.communicate(timeout=10)


def _main() -> None:
    """Fork a command for each order on standard input; say how it ended on standard output."""
    import sideplug

    for module in pkgutil.walk_packages(sideplug.__path__, "sideplug."):
        if not module.name.startswith(WITH_EXTRAS):
            with contextlib.suppress(ImportError):
                importlib.import_module(module.name)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if not child:
            os._exit(_run(order))
        answers.write(json.dumps(_ended(child, order["timeout"])) + "\n")
        answers.flush()


def _ended(child: int, timeout_s: float) -> int | None:
    """The exit code, negative for a signal's; None: it took too long and was killed."""
    import select
    import signal

    watched = os.pidfd_open(child)
    ready = select.select([watched], [], [], timeout_s)[0]
    os.close(watched)
    if not ready:
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code if ready else None


def _run(order: dict[str, Any]) -> int:
    os.environ.clear()
    os.environ.update(order["env"])
    os.chdir(order["cwd"])
    for number, (name, flags) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        with open(order[name], flags, encoding="utf-8") as file:
            os.dup2(file.fileno(), number)
    streams: list[IO[str]] = [os.fdopen(number, "r" if not number else "w", encoding="utf-8") for number in range(3)]
    sys.stdin, sys.stdout, sys.stderr = sys.__stdin__, sys.__stdout__, sys.__stderr__ = streams  # type: ignore[misc]
    sys.argv = ["sideplug", *order["args"]]
    code = 1
    try:
        from sideplug.cli import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    return code


if __name__ == "__main__":
    _main()
