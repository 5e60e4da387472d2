"""A plugin as files: a folder with a subfolder for each part, or one file for another device. Format 3.

    my-plugin/plugin.json                             format, base model, names of the parts
    my-plugin/manner/adapter_config.json              a part for people to read, with PEFT's names
    my-plugin/manner/adapter_model.safetensors        the part; its header holds all that matters
    my-plugin/manner/adapter_model.safetensors.sealed … the same, where only a passphrase opens it

A part is written aside and then renamed, so a reader sees the old one or the new one, whole.
Test: pytest tests/plugins/test_file.py
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from sideplug.contract.errors import PluginError, Stopped
from sideplug.contract.tap import Tap
from sideplug.paths import write_aside
from sideplug.plugins import sealed_file
from sideplug.plugins.base import Part, kind_named
from sideplug.plugins.gates import gate_config, gate_of, gate_tensors

FORMAT = 3
PLUGIN = "plugin.json"
MANNER = "manner"  # the name of the part that training makes
CONFIG, PART = "adapter_config.json", "adapter_model.safetensors"
WEIGHTS = f"{MANNER}/{PART}"
SUFFIX = ".sealed"  # of what only a passphrase opens
OLD_WEIGHTS = PART  # where format 2 (sideplug 0.1) had a plugin's one file


def is_plugin(folder: Path) -> bool:
    """Whether there is a plugin, open or sealed."""
    return (folder / PLUGIN).is_file()


def is_sealed(folder: Path) -> bool:
    """Whether a part of the plugin is sealed and not also open."""
    return any(not (path.parent / PART).is_file() for path in folder.glob(f"*/{PART}{SUFFIX}") if is_plugin(folder))


def part_files(folder: Path) -> list[Path]:
    """The files of a plugin's parts, open or sealed, as `read_folder` reads them. Raises PluginError."""
    return [_part_path(folder, name) for name in _read_plugin(folder)["parts"]]


@dataclass(frozen=True)
class Whole:
    """A plugin's parts and the base model (fingerprint and name) that they were made for."""

    base: str
    base_name: str
    parts: list[Part]


def part_config(part: Part, base: str, base_name: str) -> dict[str, Any]:
    """What a part's file says of it, beside its tensors."""
    return {
        "peft_type": "SIDEPLUG",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "base_fingerprint": base,
        "format": FORMAT,
        "kind": part.kind_name,
        "name": part.name,
        "tap": part.tap.name,
        **gate_config(part.gate),
        **part.config(),
        "about": part.about,
    }


def write_folder(whole: Whole, folder: Path) -> None:
    """Write each part aside and rename it, plugin.json last. Raises Stopped: then the old plugin is whole.

    Only their owner can read the files.
    """
    try:
        for part in whole.parts:
            (folder / part.name).mkdir(parents=True, exist_ok=True)
            config = part_config(part, whole.base, whole.base_name)
            write_aside(folder / part.name / PART, _part_bytes(part, config))
            write_aside(folder / part.name / CONFIG, json.dumps(config, indent=2).encode() + b"\n")
        about: dict[str, Any] = {"format": FORMAT, "base_model_name_or_path": whole.base_name}
        about |= {"base_fingerprint": whole.base, "parts": [part.name for part in whole.parts]}
        write_aside(folder / PLUGIN, json.dumps(about, indent=2).encode() + b"\n")
    except OSError as error:
        raise Stopped(f"the plugin could not be written to {folder}: {error.strerror or error}") from error


def read_folder(folder: Path, passphrase: Callable[[], str] = lambda: "") -> Whole:
    """The parts of a folder. Raises PluginError, in one sentence, where there is no whole one.

    `passphrase` is called where a part is sealed; a wrong one raises WrongPassphrase, a PluginError too.
    """
    about = _read_plugin(folder)
    parts, said = [], ""
    for name in about["parts"]:
        path = _part_path(folder, name)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise PluginError(f"{path} can't be read: {error.strerror or error}") from error
        if path.suffix == SUFFIX:
            said = said or passphrase()
            data = sealed_file.unseal(data, said)
        part, config = _part_from_bytes(data, str(path))
        if config["base_fingerprint"] != about["base_fingerprint"] or part.name != name:
            raise PluginError(f"{path} is damaged: it is a part of another plugin")
        parts.append(part)
    return Whole(about["base_fingerprint"], about["base_model_name_or_path"], parts)


def _read_plugin(folder: Path) -> dict[str, Any]:
    path = folder / PLUGIN
    if not path.is_file():
        if (folder / OLD_WEIGHTS).is_file() or (folder / (OLD_WEIGHTS + SUFFIX)).is_file():
            raise PluginError(f"{folder} holds a plugin of sideplug 0.1 (format 2): train it anew with this version")
        raise PluginError(f"there is no plugin in {folder}: it must have {PLUGIN} (sideplug train makes it)")
    try:
        about = json.loads(path.read_text("utf-8"))
        if about["format"] != FORMAT:
            newer = "use a newer sideplug" if about["format"] > FORMAT else "train the plugin anew"
            raise PluginError(f"{path} has format {about['format']}, this version reads {FORMAT}: {newer}")
        names = about["parts"]
        ok = all(isinstance(name, str) and name.isidentifier() for name in names)
        if not ok or not all(isinstance(about[key], str) for key in ("base_fingerprint", "base_model_name_or_path")):
            raise ValueError("parts must be names")
        return dict(about)
    except OSError as error:
        raise PluginError(f"{path} can't be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PluginError(f"{path} is damaged: {error}") from error


def _part_path(folder: Path, name: str) -> Path:
    path, sealed = folder / name / PART, folder / name / (PART + SUFFIX)
    if not path.is_file() and not sealed.is_file():
        raise PluginError(f"the plugin in {folder} lacks its part {name}: there is no {path}")
    return path if path.is_file() else sealed


def _part_bytes(part: Part, config: dict[str, Any]) -> bytes:
    return safetensors.numpy.save({**part.tensors(), **gate_tensors(part.gate)}, {"sideplug": json.dumps(config)})


def _part_from_bytes(data: bytes, path: str) -> tuple[Part, dict[str, Any]]:
    """A part and its config. Raises PluginError."""
    header, tensors = _open_safetensors(data, path)
    return _part_of(header, tensors, path), header


def _open_safetensors(data: bytes, path: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    try:
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size]).get("__metadata__", {}).get("sideplug")
        if header is None:
            raise PluginError(f"{path} is not a side plugin: it holds another kind of adapter")
        config, tensors = json.loads(header), safetensors.numpy.load(data)
    except (safetensors.SafetensorError, ValueError, AttributeError) as error:
        raise PluginError(f"{path} is truncated or damaged: {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        got = config.get("format") if isinstance(config, dict) else None
        raise PluginError(f"{path} has format {got}, this version reads {FORMAT}: train the plugin anew")
    return config, tensors


def _part_of(config: dict[str, Any], tensors: dict[str, np.ndarray], path: str) -> Part:
    try:
        gate = gate_of(config, tensors)
        part = kind_named(config["kind"]).load(config, tensors, Tap.parse(config["tap"]), gate, config["about"])
        part.name = config["name"]
        return part
    except PluginError:
        raise
    except Exception as error:
        raise PluginError(f"{path} is damaged: a part of it is missing, or not as a plugin has it") from error


def to_bytes(whole: Whole) -> bytes:
    """The whole plugin as one safetensors file: each part's tensors below its name."""
    tensors: dict[str, np.ndarray] = {}
    for part in whole.parts:
        own = {**part.tensors(), **gate_tensors(part.gate)}
        tensors |= {f"{part.name}.{name}": tensor for name, tensor in own.items()}
    about = {"format": FORMAT, "parts": [part_config(part, whole.base, whole.base_name) for part in whole.parts]}
    return safetensors.numpy.save(tensors, {"sideplug": json.dumps(about)})


def from_bytes(data: bytes, path: str) -> Whole:
    """What `to_bytes` gave. `path` names it in errors. Raises PluginError."""
    about, tensors = _open_safetensors(data, path)
    try:
        configs = list(about["parts"])
        parts = []
        for config in configs:
            start = config["name"] + "."
            own = {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
            parts.append(_part_of(config, own, path))
        return Whole(configs[0]["base_fingerprint"], configs[0]["base_model_name_or_path"], parts)
    except PluginError:
        raise
    except Exception as error:
        raise PluginError(f"{path} is damaged: a part of it is missing, or not as a plugin has it") from error
