"""remember --watch: a memory that is kept in step with a folder of files. Test: pytest tests/test_cli_follow.py"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sideplug.contract.errors import DataError
from sideplug.terminal import say, tell

if TYPE_CHECKING:
    from sideplug.memory.store import Entry

EVERY_S = 2.0  # between two looks at the folder
Stamp = dict[str, tuple[int, int]]


def stamp(folder: Path) -> Stamp:
    """What shows that a file of a folder has changed: its time and size, by path."""
    from sideplug.readers.folder import files_in
    from sideplug.readers.report import Report

    found: Stamp = {}
    for file in files_in(folder, None, Report()):
        try:
            status = file.stat()
        except OSError:
            continue  # it went while it was looked at
        found[str(file)] = status.st_mtime_ns, status.st_size
    return found


def differences(kept: Sequence[Entry], folder: Path, read: Sequence[Entry]) -> tuple[list[Entry], list[int]]:
    """(what is to be told of what was read, the numbers of what came from the folder's files and stands there no more).

    Two entries are one where question, reply and file are; the line may be another.
    """
    root = f"{folder}/"

    def key(entry: Entry) -> tuple[str, str, str]:
        return entry.question, entry.reply, entry.source.rpartition(":")[0]

    there = {key(entry) for entry in read}
    known = {key(entry): entry for entry in kept if entry.source.startswith(root)}
    gone = [entry.number for of, entry in known.items() if of not in there]
    return [entry for entry in read if key(entry) not in known], gone


def follow(
    folder: Path,
    plugin: Path,
    read: Callable[[Path], list[Entry]],
    remember: Callable[[list[Entry]], None],
    forget: Callable[[list[int]], None],
    looks: Iterator[None] | None = None,
) -> None:
    """Keep the memory of `plugin` in step with the files below `folder`, until Ctrl-C.

    looks: one for each look at the folder; None: every EVERY_S seconds. What can't be read now is told, and read when
    it has changed; until then the memory stays as it is. What was told otherwise stays too.
    """
    from sideplug.memory.book import open_memory
    from sideplug.plugins.file import is_plugin
    from sideplug.readers.files import Empty

    folder = folder.resolve()
    tell(f"{plugin} is kept in step with {folder}: Ctrl-C ends that")
    last: Stamp | None = None
    try:
        for _ in looks if looks is not None else _every(EVERY_S):
            now = stamp(folder)
            if now == last:
                continue
            settled, last = last is None or now == stamp(folder), now
            if not settled:  # it is being written: look again
                last = None
                continue
            try:
                found = read(folder) if now else []
            except Empty:
                found = []
            except DataError as error:
                say(f"the memory stays as it is: {error}")
                continue
            kept = list(open_memory(plugin).store.entries()) if is_plugin(plugin) else []
            new, gone = differences([each for each in kept if not each.replaced_by], folder, found)
            if gone:
                forget(gone)
                count = "1 entry is" if len(gone) == 1 else f"{len(gone)} entries are"
                tell(f"{count} forgotten: the files have that no more")
            if new:
                remember(new)
    except KeyboardInterrupt:
        tell(f"{plugin} stays as it is")


def _every(seconds: float) -> Iterator[None]:
    while True:
        yield
        time.sleep(seconds)
