"""Output of the commands: it shows progress on the error stream, so that standard output has results only.

All text that a cloud may have had a hand in goes through `say`, `tell` or `print_json` here, which write control
characters out: no cloud steers a terminal.

On a terminal it shows a bar (rich), elsewhere a plain line every ten seconds. It does not know what the work is.
Test: pytest tests/test_cli.py
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import click

from sideplug.contract.printable import STEERING, escaped

LINE_EVERY_S = 10.0
_NOT_IN_JSON = re.compile(f"[{STEERING}]")


def say(line: str) -> None:
    """Print a line on the error stream."""
    print(escaped(line), file=sys.stderr, flush=True)


def tell(text: str, end: str = "\n") -> None:
    """Print a text on standard output, at once."""
    click.echo(escaped(text) + end, nl=False)


def print_json(value: Any) -> None:
    """Print a value as JSON, on one line of standard output."""
    click.echo(as_json(value))


def as_json(value: Any) -> str:
    """The value as one line of JSON; control characters, C1 and bidi too, as \\u escapes, which JSON has for them."""
    return _NOT_IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(value, ensure_ascii=False))


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """Yield `show(done, note)`, which shows how much of `total` is done, and a note beside it."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True)) as bar:
            task = bar.add_task(label, total=total, note="")

            def draw(done: int, note: str = "") -> None:
                bar.update(task, completed=done, note=note)

            yield draw
        return
    start = last = time.monotonic()

    def show(done: int, note: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= LINE_EVERY_S or done >= total:
            last = now
            say(f"{label}: {done} of {total}{'  ' + note if note else ''}  ({now - start:.0f} s)")

    yield show


@contextmanager
def counted(label: str) -> Iterator[Callable[[int, int], None]]:
    """Yield `show(done, count)`, which shows how much of `count` is done, of work whose amount is not known before."""
    with ExitStack() as stack:
        shown: Callable[[int, str], None] | None = None
        total = 0

        def show(done: int, count: int) -> None:
            nonlocal shown, total
            if shown is None or count != total:
                stack.close()
                shown, total = stack.enter_context(progress(label, count)), count
            shown(done, "")

        yield show
