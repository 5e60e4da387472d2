"""The one validator of plugin files: size first, then what they say of themselves, then every tensor.

A plugin's file may come from anybody. Nothing of it names a file, takes memory or is computed with before it is checked
here; whatever is wrong is a PluginError in one sentence. What the parameters of a kind must be like, the kind says
(TrainedKind.shapes). Test: pytest tests/plugins/test_validate.py
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
import safetensors.numpy
from msgspec import Meta

from sideplug.contract.errors import PluginError
from sideplug.contract.frames import MAX_PARTS, Name, TapName, Word
from sideplug.contract.printable import one_line

FORMAT = 3
ANY_BASE = "any"  # of a part that fits every model, and of a plugin of such parts
MAX_JSON_BYTES = 1 << 20  # of plugin.json
MAX_HEADER_BYTES = 16 << 20  # of what a part's file says of itself
MAX_PART_BYTES = 1 << 30
MAX_TENSORS = 4096
TYPES = ("float16", "float32", "int8", "int32", "int64", "uint8", "bool")
FOLDERS = ("tape", "versions")  # of a plugin's folder, so no part has such a name
T = TypeVar("T")

PartName = Annotated[str, Meta(pattern=r"\A[^\W\d]\w{0,63}\Z")]  # it names a folder
Base = Annotated[str, Meta(pattern=r"\A[!-~]{1,64}\Z")]  # it is compared with the cloud's fingerprint, and no more


class PluginJson(msgspec.Struct, frozen=True):
    """What plugin.json says."""

    base_fingerprint: Base
    base_model_name_or_path: Name
    parts: Annotated[list[PartName], Meta(min_length=1, max_length=MAX_PARTS)]


class GateJson(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part's gate without its weights."""

    kind: Word
    bias: float
    threshold: float
    memory: float
    dial: Annotated[list[float], Meta(max_length=1 << 12)]


class ByGainJson(GateJson, frozen=True, forbid_unknown_fields=True):
    """The gate that a part's dial turns at low rates, and up to which rate."""

    rate: float


class PartJson(msgspec.Struct, frozen=True):
    """What every part's file says of it; a kind may say more."""

    base_fingerprint: Base
    base_model_name_or_path: Name
    kind: Word
    name: PartName
    tap: TapName
    gate: GateJson
    about: dict[str, Any]
    by_gain: ByGainJson | None = None


def read_file(path: Path, most: int = MAX_PART_BYTES) -> bytes:
    """The bytes of a file that has at most so many. Raises PluginError."""
    try:
        size = path.stat().st_size
        if size > most:
            raise PluginError(
                f"{path} is too large for a plugin's file: it has {size:,} bytes, at most {most:,} may be"
            )
        return path.read_bytes()
    except OSError as error:
        raise PluginError(f"{path} can't be read: {error.strerror or error}") from error


def parse_plugin(data: bytes, path: str) -> PluginJson:
    """What a plugin.json says. Raises PluginError."""
    about = check_format(parse_json(data, path), path)
    plugin = converted(about, PluginJson, path)
    if len(set(plugin.parts)) < len(plugin.parts) or set(plugin.parts) & set(FOLDERS):
        raise PluginError(f"{path} is damaged: its parts must have names of their own")
    return plugin


def parse_part(config: Any, path: str) -> PartJson:
    """What a part's file says of it. Raises PluginError."""
    part = converted(config, PartJson, path)
    if part.name in FOLDERS:
        raise PluginError(f"{path} is damaged: a part can't have the name {part.name}")
    return part


def check_format(config: Any, path: str) -> dict[str, Any]:
    """What a file says, if it is of our format. Raises PluginError."""
    number = config.get("format") if isinstance(config, dict) else None
    if not isinstance(config, dict) or number != FORMAT:
        newer = isinstance(number, int) and number > FORMAT
        hint = "use a newer sideplug" if newer else "train the plugin anew"
        raise PluginError(f"{path} has format {one_line(str(number))[:20]}, this version reads {FORMAT}: {hint}")
    return config


def parse_json(data: bytes | str, path: str) -> Any:
    """The value of a JSON text; numbers that are not finite become None. Raises PluginError."""
    try:
        return json.loads(data, parse_constant=lambda name: None, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise PluginError(f"{path} is truncated or damaged: it is no JSON") from error


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def converted(value: Any, schema: type[T], path: str) -> T:
    """The value as this schema has it. Raises PluginError."""
    try:
        return msgspec.convert(value, schema)
    except msgspec.ValidationError as error:
        where = str(error).rpartition("`$")[2].strip("`.") or "all of it"
        raise PluginError(f"{path} is damaged: what it says of {where} can't be") from error


def parse_tensors(data: bytes, path: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What a part's file says of itself, and its tensors: of known types, and finite. Raises PluginError."""
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > min(MAX_HEADER_BYTES, len(data) - 8):
        raise PluginError(f"{path} is truncated or damaged: it ends in the middle")
    header = parse_json(data[8 : 8 + size], path)
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    said = metadata.get("sideplug") if isinstance(metadata, dict) else None
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        raise PluginError(f"{path} is truncated or damaged: it is no list of tensors")
    if not isinstance(said, str):
        raise PluginError(f"{path} is not a side plugin: it holds another kind of adapter")
    try:
        tensors = safetensors.numpy.load(data)
    except Exception as error:  # types that NumPy lacks raise others than SafetensorError
        raise PluginError(f"{path} is truncated or damaged: its tensors can't be read") from error
    for name, tensor in tensors.items():
        check_tensor(name, tensor, path)
    return check_format(parse_json(said, path), path), tensors


def check_tensor(name: str, tensor: np.ndarray, path: str) -> None:
    """Raises PluginError for a tensor of a type that no plugin has, or with numbers that are not finite."""
    if tensor.dtype.name not in TYPES:
        raise PluginError(f"{path} is damaged: {one_line(name)[:64]} holds numbers of the type {tensor.dtype.name}")
    if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
        raise PluginError(f"{path} is damaged: {one_line(name)[:64]} holds numbers that are not finite")
