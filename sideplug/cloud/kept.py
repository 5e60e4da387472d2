"""What is kept because it takes long to make: folders and files with a checksum, which are made anew where it is wrong.

A folder has a list of its files with their checksums; a file that comes later has its own beside it. A byte that the
disk lost is found at the next start. It does not know what it keeps. Test: pytest tests/cloud/test_kept.py
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sideplug.paths import not_written, write_aside

SUMS = "checksums.json"
_CHUNK = 1 << 20  # bytes


def make(folder: Path, fill: Callable[[Path], None]) -> None:
    """Call `fill` on a temporary folder, list its checksums, and rename it to `folder`, in the place of a damaged one.

    Raises Stopped where it can't be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            fill(aside)
            sums = {path.name: checksum(path) for path in sorted(aside.iterdir())}
            (aside / SUMS).write_text(json.dumps(sums), "utf-8")
            aside.chmod(0o755)
            if is_whole(folder):
                return  # another process has made it meanwhile
            with contextlib.suppress(FileNotFoundError):
                folder.replace(aside / ".damaged")  # whoever has it mapped keeps what is mapped
            os.rename(aside, folder)
            shutil.rmtree(folder / ".damaged", ignore_errors=True)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        if not is_whole(folder):  # otherwise another process has made it meanwhile
            raise not_written(folder, error) from error


def is_whole(folder: Path) -> bool:
    """Return whether a folder is there, with every file that `make` listed as it was then."""
    try:
        sums = json.loads((folder / SUMS).read_bytes())
        return all(checksum(folder / name) == wanted for name, wanted in sums.items())
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def file(path: Path, fill: Callable[[Path], None]) -> Path:
    """Return a kept file that comes later than its folder; it is made, by `fill`, where it is missing or damaged."""
    beside = path.with_name(path.name + ".sum")
    try:
        if beside.read_text("ascii") == checksum(path):
            return path
    except (OSError, ValueError):
        pass
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    fill(aside)
    write_aside(beside, checksum(aside).encode())
    aside.replace(path)
    return path


def checksum(path: Path) -> str:
    """Return a file's checksum: a hash over the sums of its megabytes, which costs what reading it costs."""
    digest = hashlib.sha256(str(path.stat().st_size).encode())
    buffer = np.zeros(_CHUNK // 8, np.uint64)
    with path.open("rb") as source:
        while size := source.readinto(buffer.data.cast("B")):
            buffer.view(np.uint8)[size:] = 0
            digest.update(np.add.reduce(buffer).tobytes())
    return digest.hexdigest()
