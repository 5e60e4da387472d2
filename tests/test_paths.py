"""Only one writer of a path at a time; who comes second is told whom it met."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sideplug.contract.errors import Stopped
from sideplug.paths import alone

HOLDER = """
import sys
from pathlib import Path
from sideplug.paths import alone
with alone(Path(sys.argv[1])):
    print("mine", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds tmp_path/p."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "p")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "mine\n"
        yield process
        process.kill()


def test_the_second_is_refused_with_the_first_ones_number(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    says = rf"another training writes into {tmp_path / 'p'} \(process {holder.pid}\)"
    with pytest.raises(Stopped, match=says), alone(tmp_path / "p"):
        pytest.fail("two at once")
    with alone(tmp_path / "q"):  # another path is free
        pass


def test_the_second_may_wait(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    told: list[str] = []

    def wait(line: str) -> None:
        told.append(line)
        assert holder.stdin is not None
        holder.stdin.close()

    with alone(tmp_path / "p", wait):
        assert holder.wait(30) == 0
    assert str(holder.pid) in told[0]


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_holder_holds_nobody_up(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait(30)
    with alone(tmp_path / "p"):
        assert (tmp_path / ".p.lock").read_text() == str(os.getpid())
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_an_error_in_the_block_frees_it(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(FileNotFoundError), alone(tmp_path / "p"):
            raise FileNotFoundError
    with alone(tmp_path / "p"), pytest.raises(Stopped), alone(tmp_path / "p"):  # in one process too: the page's thread
        pass
