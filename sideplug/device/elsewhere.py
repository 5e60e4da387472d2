"""The plugins that this device made outside the plugin store: a list of their folders, so that they can be found.

`train --out` and `plugin import` write a folder down; `plugin list` reads the list, and forgets in words what is gone.
The list is a file in the store's folder. It holds paths and nothing of a plugin.
Test: pytest tests/device/test_elsewhere.py
"""

from __future__ import annotations

import json
from pathlib import Path

from sideplug.contract.errors import Stopped
from sideplug.paths import locked, write_aside
from sideplug.plugins.file import is_plugin

LIST = ".elsewhere.json"
MOST = 1000  # folders that are remembered, the newest


def remember(root: Path, folder: Path) -> None:
    """Write down that there is a plugin in `folder`, unless that is in the store `root`. Raises Stopped."""
    here = folder.resolve()
    if here.parent == root.resolve():
        return
    try:
        with locked(root / LIST):
            folders = [path for path in _read(root) if path != here]
            _write(root, [*folders, here][-MOST:])
    except OSError as error:
        raise Stopped(f"{root / LIST} could not be written: {error.strerror or error}") from error


def folders(root: Path) -> tuple[list[Path], list[Path]]:
    """The folders outside the store that hold a plugin, and those that held one: they are forgotten from now on."""
    known = _read(root)
    here = [path for path in known if is_plugin(path)]
    gone = [path for path in known if path not in here]
    if gone:
        try:
            with locked(root / LIST):
                _write(root, [path for path in _read(root) if path not in gone])
        except OSError:  # a store that can't be written: they are told of again
            pass
    return here, gone


def forget(root: Path, folder: Path) -> None:
    """Take a folder off the list, if it is on it. Raises OSError."""
    here = folder.resolve()
    if here in _read(root):
        with locked(root / LIST):
            _write(root, [path for path in _read(root) if path != here])


def _read(root: Path) -> list[Path]:
    try:
        listed = json.loads((root / LIST).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    return [Path(path) for path in listed if isinstance(path, str) and path] if isinstance(listed, list) else []


def _write(root: Path, folders: list[Path]) -> None:
    write_aside(root / LIST, json.dumps([str(path) for path in folders], indent=1).encode() + b"\n")
