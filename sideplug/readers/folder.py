"""A folder as a list of files: what is hidden, empty, seen before or of an earlier plugin is passed over, and counted.

It does not know formats. Test: pytest tests/readers/test_folder.py
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from sideplug.contract.errors import DataError
from sideplug.readers.report import Report

HIDDEN, EMPTY, UNREADABLE, DANGLING, SEEN, SPECIAL, PLUGIN = (
    "hidden",
    "empty",
    "unreadable",
    "dangling",
    "seen before",
    "neither file nor folder",
    "of an earlier plugin",
)


def shown(path: Path) -> str:
    """Return a path as text that can be printed: names on disk may be any bytes, control characters too."""
    text = os.fsencode(path).decode("utf-8", "replace")
    return "".join(each if each.isprintable() else "\ufffd" for each in text)


def files_in(root: Path, skip: Path | None, report: Report) -> Iterator[Path]:
    """Yield the files below a folder, folder by folder, in the order of their names. Raises DataError for a plugin's.

    skip: a folder that is left out, without a word: what is being made.
    """
    if is_plugin(root):
        raise DataError(f"{shown(root)} is a plugin, which can't be learnt: give the folder of your texts")
    skipped = _identity(skip) if skip is not None and skip.exists() else None
    if skipped == _identity(root):
        raise DataError(f"{shown(root)} can't be the folder of your texts and the plugin's too: give another --out")
    seen = {skipped} if skipped else set[tuple[int, int]]()
    seen.add(_identity(root))
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            if folder == root:
                raise DataError(f"the folder {shown(root)} can't be read: {error.strerror or error}") from error
            report.passed[UNREADABLE] += 1
            continue
        folders = list[Path]()
        for entry in entries:
            path = folder / entry.name
            why = _why_passed(path, seen, skipped)
            if why:
                report.passed[why] += 1
            elif why is None:
                folders.append(path) if path.is_dir() else (yield path)
        waiting += reversed(folders)


def is_plugin(folder: Path) -> bool:
    """Return whether a training made this folder: a plugin, or a tape of one that is not finished."""
    try:
        if any((folder / "tape").glob("*.tape")):
            return True
        about = json.loads((folder / "plugin.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(about, dict) and {"format", "parts"} <= about.keys()


def _why_passed(path: Path, seen: set[tuple[int, int]], skipped: tuple[int, int] | None) -> str | None:
    """Return why an entry is passed over; "": without a word; None: it is a file or folder to be read."""
    if path.name.startswith("."):
        return HIDDEN
    try:
        status = path.stat()
    except OSError:
        return DANGLING if path.is_symlink() else UNREADABLE
    is_folder = stat.S_ISDIR(status.st_mode)
    if not is_folder and not stat.S_ISREG(status.st_mode):
        return SPECIAL
    identity = (status.st_dev, status.st_ino)
    if identity == skipped:
        return ""
    if identity in seen and (is_folder or path.is_symlink()):
        return SEEN
    seen.add(identity)
    if is_folder:
        return PLUGIN if is_plugin(path) else None
    if not status.st_size:
        return EMPTY
    return None if os.access(path, os.R_OK) else UNREADABLE


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
