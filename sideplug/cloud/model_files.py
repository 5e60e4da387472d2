"""The files of a model, which other people made: read whole, or refused in one sentence that names the file.

`reading` is the one wrapper round whatever reads a foreign file. It does not know what the files mean.
Test: pytest tests/cloud/test_model_files.py
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sideplug.contract.errors import SideplugError, UnknownModel

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
_POINTER = b"version https://git-lfs"
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")


class Unfit(Exception):
    """This engine or reader does not support the model, but another may. str(): the reason, "its … is …"."""


@contextlib.contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Raise UnknownModel, "<path> can't be read: <why>", for whatever a foreign file makes the block raise.

    Our own errors, and those of the machine (a full disk, no memory), pass.
    """
    try:
        yield
    except (SideplugError, Unfit):
        raise
    except (KeyError, IndexError) as error:
        raise UnknownModel(f"{path} can't be read: it lacks {error}, or names what is not there") from error
    except OSError as error:
        if error.errno and not isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError)):
            raise
        raise UnknownModel(f"{path} can't be read: {error.strerror or _words(error)}") from error
    except Exception as error:  # the readers of other people's formats raise many classes
        raise UnknownModel(f"{path} can't be read: {_words(error)}") from error


def _words(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    if isinstance(error, MemoryError):
        return "it would take more memory than there is"
    line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line.replace("'NoneType' object", "none").replace("NoneType", "none")[:300]


def check_whole(path: Path) -> None:
    """Raise UnknownModel for what stands in the place of a file: a git-LFS pointer, or nothing."""
    with reading(path), path.open("rb") as file:
        start = file.read(len(_POINTER))
    if start == _POINTER:
        raise UnknownModel(f"{path} is a git-LFS pointer, not the file itself: run git lfs pull in its folder")
    if not start:
        raise UnknownModel(f"{path} is empty: fetch it again")


def read_text(path: Path) -> str:
    """Return a file's text, which is UTF-8 whatever the locale. Raises UnknownModel."""
    check_whole(path)
    try:
        with reading(path):
            return path.read_bytes().decode("utf-8-sig")
    except UnknownModel as error:
        if isinstance(error.__cause__, UnicodeDecodeError):
            raise UnknownModel(f"{path} must be UTF-8 text") from error
        raise


def read_json(path: Path) -> dict[str, Any]:
    """Return a file's JSON object; {} where there is no such file. Raises UnknownModel."""
    if not path.exists():
        return {}
    text = read_text(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnknownModel(f"{path} must be JSON: {_words(error)}") from error
    if not isinstance(value, dict):
        kind = {list: "a list", str: "a text", type(None): "null", bool: "true or false"}.get(type(value), "a number")
        raise UnknownModel(f"{path} must be a JSON object, got {kind}")
    return value


def weight_files(folder: Path) -> dict[Path, set[str] | None]:
    """Return the safetensors files that are the model's, each with its tensors' names (None: all of its tensors).

    The index of sharded weights decides where there is one; else model.safetensors; else every file. Raises
    UnknownModel for an index that can't be read, and for a file that it names, or a part, that is missing.
    """
    weight_map = read_json(folder / INDEX).get("weight_map", {})
    if not isinstance(weight_map, dict):
        raise UnknownModel(f"{folder / INDEX} must have a weight_map, of tensors and files")
    chosen: dict[Path, set[str] | None] = {}
    if weight_map:
        by_file: dict[str, set[str]] = {}
        for tensor, name in weight_map.items():
            if not isinstance(name, str) or Path(name).name != name:
                raise UnknownModel(f"{folder / INDEX} must name files beside it, got {str(name)[:80]!r}")
            by_file.setdefault(name, set()).add(tensor)
        chosen = {folder / name: tensors for name, tensors in sorted(by_file.items())}
    elif (folder / INDEX).exists():
        raise UnknownModel(f"{folder / INDEX} must have a weight_map, of tensors and files")
    elif (folder / WHOLE).exists():
        chosen = {folder / WHOLE: None}
    else:
        chosen = dict.fromkeys(sorted(folder.glob("*.safetensors")))
        for match in filter(None, (_SHARD.fullmatch(path.name) for path in list(chosen))):
            parts = [f"{match[1]}-{n:05}-of-{match[3]}.safetensors" for n in range(1, min(int(match[3]), 9999) + 1)]
            chosen |= {folder / name: None for name in parts}
    for path in chosen:
        if not path.is_file():
            raise UnknownModel(f"the model in {folder} lacks its file {path.name}")
        check_whole(path)
    return chosen


def tensor_entries(path: Path) -> tuple[int, dict[str, dict[str, Any]]]:
    """Return where a safetensors file's data begin, and its header: type, shape and place of each tensor.

    Raises UnknownModel for a file that is damaged or cut off.
    """
    check_whole(path)
    size = path.stat().st_size
    with reading(path), path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        if size < 8 or (start > size and start < 1 << 32):
            raise UnknownModel(f"{path} is cut off: fetch it again")
        if start > size:
            raise UnknownModel(f"{path} is no safetensors file, or damaged: fetch it again")
        header = json.loads(file.read(start - 8))
        header.pop("__metadata__", None)
        end = start + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if end > size:
        raise UnknownModel(f"{path} is cut off: it has {size:,} of {end:,} bytes, fetch it again")
    return start, header
