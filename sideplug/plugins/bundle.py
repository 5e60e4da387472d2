"""A plugin with its tapes as one file, for a device that is to train it further.

The file is the plugin's own (see file.to_bytes) with each tape as one more tensor of bytes beside its parts, so a
version that knows no bundles reads the plugin and leaves the tapes. A tape holds the person's words: a bundle goes into
a sealed file only. It does not know what is on a tape. Test: pytest tests/plugins/test_bundle.py
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sideplug.contract.errors import PluginError
from sideplug.paths import write_aside, writing
from sideplug.plugins.plugin import Plugin
from sideplug.plugins.validate import FOLDERS, MAX_PART_BYTES, parse_tensors, read_file

TAPE = FOLDERS[0]  # the folder of a plugin's tapes
RETAIN = "retain.tape"  # the retain set's, which otherwise lies in the cache
_OF_A_TAPE = re.compile(r"(?:train|held|hard_negatives|retain|more-[1-9]\d{0,3})\.(?:tape|json)")
MAX_TAPES_BYTES = MAX_PART_BYTES // 2
_PREFIX = f"{TAPE}:"


def tapes_of(folder: Path) -> dict[str, bytes]:
    """The files of the tapes in a plugin's folder, by name. Raises PluginError for one that can't be read."""
    paths = sorted((folder / TAPE).glob("*")) if (folder / TAPE).is_dir() else []
    return {path.name: read_file(path) for path in paths if _OF_A_TAPE.fullmatch(path.name)}


def to_bytes(plugin: Plugin, tapes: Mapping[str, bytes]) -> bytes:
    """The plugin and its tapes as one file. Raises PluginError for more than a file may hold."""
    if sum(map(len, tapes.values())) > MAX_TAPES_BYTES:
        raise PluginError(f"the plugin's tapes are too large for one file: at most {MAX_TAPES_BYTES:,} bytes may be")
    return plugin.to_bytes({_PREFIX + name: np.frombuffer(data, np.uint8) for name, data in tapes.items()})


def tapes_in(data: bytes, path: str) -> dict[str, bytes]:
    """The tapes of such a file, by name; none in a plugin's own file. Raises PluginError."""
    tensors = parse_tensors(data, path)[1]
    tapes = {name.removeprefix(_PREFIX): value for name, value in tensors.items() if name.startswith(_PREFIX)}
    for name, value in tapes.items():
        if not _OF_A_TAPE.fullmatch(name) or value.dtype != np.uint8 or value.ndim != 1:
            raise PluginError(f"{path} is damaged: it holds a tape that can't be one of a plugin's")
    return {name: value.tobytes() for name, value in tapes.items()}


def write_tapes(folder: Path, tapes: Mapping[str, bytes]) -> None:
    """Write the tapes into a plugin's folder; only their owner can read them. Raises Stopped."""
    with writing(folder / TAPE, "the tape"):
        (folder / TAPE).mkdir(parents=True, exist_ok=True)
        for name, data in tapes.items():
            write_aside(folder / TAPE / name, data)
