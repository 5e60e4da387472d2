"""A plugin as files: a folder with a subfolder for each part, or one file for another device. Format 3.

    my-plugin/plugin.json                             format, base model, names of the parts
    my-plugin/manner/adapter_config.json              a part for people to read, with PEFT's names
    my-plugin/manner/adapter_model.safetensors        the part; its header holds all that matters
    my-plugin/manner/adapter_model.safetensors.sealed … the same, where only a passphrase opens it

A part is written aside and then renamed, so a reader sees the old one or the new one, whole.
Test: pytest tests/plugins/test_file.py
"""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from sideplug.contract.errors import PluginError, SideplugError, Stopped
from sideplug.contract.frames import MAX_PARTS
from sideplug.contract.tap import Tap
from sideplug.paths import locked, write_aside, writing
from sideplug.plugins import sealed_file
from sideplug.plugins.base import Part, kind_named
from sideplug.plugins.gates import gate_config, gate_of, gate_tensors
from sideplug.plugins.validate import (
    ANY_BASE,
    FORMAT,
    MAX_JSON_BYTES,
    PluginJson,
    parse_part,
    parse_plugin,
    parse_tensors,
    read_file,
)

PLUGIN = "plugin.json"
MANNER = "manner"  # the name of the part that training makes
CONFIG, PART = "adapter_config.json", "adapter_model.safetensors"
WEIGHTS = f"{MANNER}/{PART}"
SUFFIX = ".sealed"  # of what only a passphrase opens
OLD_WEIGHTS = PART  # where format 2 (sideplug 0.1) had a plugin's one file


def is_plugin(folder: Path) -> bool:
    """Whether there is a plugin, open or sealed."""
    with contextlib.suppress(OSError):  # a folder that we may not look into holds none of ours
        return (folder / PLUGIN).is_file()
    return False


def is_trained(folder: Path) -> bool:
    """Whether there is a plugin with a part that training made. Raises PluginError for a damaged one."""
    return is_plugin(folder) and MANNER in read_plugin(folder).parts


def is_sealed(folder: Path) -> bool:
    """Whether a part of the plugin is sealed."""
    return is_plugin(folder) and any(folder.glob(f"*/{PART}{SUFFIX}"))


def part_files(folder: Path) -> list[Path]:
    """The files of a plugin's parts, open or sealed, as `read_folder` reads them. Raises PluginError."""
    return [_part_path(folder, name) for name in read_plugin(folder).parts]


def version_of(folder: Path) -> tuple[int, ...]:
    """What changes whenever a part of the plugin is written. Raises PluginError, OSError where a part is gone."""
    statuses = [path.stat() for path in part_files(folder)]
    return tuple(n for status in statuses for n in (status.st_ino, status.st_mtime_ns, status.st_size))


@dataclass(frozen=True)
class Whole:
    """A plugin's parts and the base model (fingerprint and name) that they were made for."""

    base: str
    base_name: str
    parts: list[Part]


def part_config(part: Part, base: str, base_name: str) -> dict[str, Any]:
    """What a part's file says of it, beside its tensors."""
    if part.fits_any_base:
        base, base_name = ANY_BASE, ANY_BASE
    return {
        "peft_type": "SIDEPLUG",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "base_fingerprint": base,
        "format": FORMAT,
        "kind": part.kind_name,
        "name": part.name,
        "tap": part.tap.name if part.tap else "",
        **gate_config(part.gate),
        **part.config(),
        "about": part.about,
    }


def write_folder(whole: Whole, folder: Path) -> None:
    """Write each part aside and rename it, plugin.json last. Raises Stopped: then the old plugin is whole.

    Only their owner can read the files. Raises PluginError for a folder with a sealed plugin: nothing open is written
    beside it.
    """
    if is_sealed(folder):
        raise PluginError(f"{folder} holds a sealed plugin: unlock it first (sideplug plugin unlock {folder})")
    with _writing(folder):
        for part in whole.parts:
            _write_part(part, whole.base, whole.base_name, folder)
        _write_plugin(PluginJson(whole.base, whole.base_name, [part.name for part in whole.parts]), folder)


def write_part(part: Part, base: str, base_name: str, folder: Path) -> None:
    """Write one part of a plugin for this base; the others that are in the folder stay. See write_folder.

    Raises PluginError too where what is there was made for another base.
    """
    with changing(folder), _writing(folder):
        there = read_plugin(folder) if is_plugin(folder) else PluginJson(ANY_BASE, ANY_BASE, [])
        if is_sealed(folder):
            raise PluginError(f"{folder} holds a sealed plugin: unlock it first (sideplug plugin unlock {folder})")
        others = [name for name in there.parts if name != part.name]
        fixed = there.base_fingerprint not in (base, ANY_BASE) and base != ANY_BASE
        if fixed and not all(_fits_any_base(folder, name) for name in others):
            raise PluginError(
                f"{folder} holds a plugin that was made for another base, {there.base_model_name_or_path}"
            )
        if base == ANY_BASE:
            base, base_name = there.base_fingerprint, there.base_model_name_or_path
        _write_part(part, base, base_name, folder)
        _write_plugin(PluginJson(base, base_name, [*others, part.name]), folder)


def drop_part(folder: Path, name: str) -> None:
    """Delete one part of a plugin; the others stay, at least one. Raises Stopped, PluginError."""
    with changing(folder), _writing(folder):
        there = read_plugin(folder)
        left = [each for each in there.parts if each != name]
        if not left:
            raise PluginError(f"{folder} has no part but {name}: delete the plugin instead")
        base, base_name = there.base_fingerprint, there.base_model_name_or_path
        if all(_fits_any_base(folder, each) for each in left):
            base, base_name = ANY_BASE, ANY_BASE
        _write_plugin(PluginJson(base, base_name, left), folder)
        shutil.rmtree(folder / name)


@contextlib.contextmanager
def changing(folder: Path) -> Iterator[None]:
    """Hold a plugin's folder for a change: others wait. Raises Stopped, InputError (a system without file locks)."""
    held: set[Path] = _HELD.__dict__.setdefault("folders", set())
    if folder.resolve() in held:  # by this thread
        yield
        return
    with writing(folder), locked(folder / PLUGIN):
        held.add(folder.resolve())
        try:
            yield
        finally:
            held.discard(folder.resolve())


_HELD = threading.local()


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Stopped(f"the plugin could not be written to {folder}: {error.strerror or error}") from error


def _fits_any_base(folder: Path, name: str) -> bool:
    path = _part_path(folder, name)
    return bool(parse_tensors(read_file(path), str(path))[0].get("base_fingerprint") == ANY_BASE)


def _write_part(part: Part, base: str, base_name: str, folder: Path) -> None:
    (folder / part.name).mkdir(parents=True, exist_ok=True)
    config = part_config(part, base, base_name)
    write_aside(folder / part.name / PART, _part_bytes(part, config))
    write_aside(folder / part.name / CONFIG, json.dumps(config, indent=2).encode() + b"\n")


def _write_plugin(about: PluginJson, folder: Path) -> None:
    said = {"format": FORMAT, **{name: getattr(about, name) for name in PluginJson.__struct_fields__}}
    write_aside(folder / PLUGIN, json.dumps(said, indent=2).encode() + b"\n")


def read_folder(folder: Path, passphrase: Callable[[], str] = lambda: "") -> Whole:
    """The parts of a folder. Raises PluginError, in one sentence, where there is no whole one.

    `passphrase` is called where a part is sealed; a wrong one raises WrongPassphrase, a PluginError too.
    """
    about = read_plugin(folder)
    parts, said = [], ""
    for name in about.parts:
        path = _part_path(folder, name)
        data = read_file(path)
        if path.suffix == SUFFIX:
            said = said or passphrase()
            data = sealed_file.unseal(data, said)
        part, base = _part_from_bytes(data, str(path))
        if base not in (about.base_fingerprint, ANY_BASE) or part.name != name:
            raise PluginError(f"{path} is damaged: it is a part of another plugin")
        parts.append(part)
    return Whole(about.base_fingerprint, about.base_model_name_or_path, parts)


def read_plugin(folder: Path) -> PluginJson:
    """What a folder's plugin.json says. Raises PluginError where there is no plugin of this version."""
    path = folder / PLUGIN
    if not is_plugin(folder):
        if (folder / OLD_WEIGHTS).is_file() or (folder / (OLD_WEIGHTS + SUFFIX)).is_file():
            raise PluginError(f"{folder} holds a plugin of sideplug 0.1 (format 2): train it anew with this version")
        raise PluginError(
            f"there is no plugin in {folder}: it must have {PLUGIN} (sideplug remember or train makes it)"
        )
    return parse_plugin(read_file(path, MAX_JSON_BYTES), str(path))


def _part_path(folder: Path, name: str) -> Path:
    path, sealed = folder / name / PART, folder / name / (PART + SUFFIX)
    if path.is_file() and sealed.is_file():
        raise PluginError(
            f"{path} lies open beside its sealed form: sideplug plugin lock {folder}, with the passphrase, ends what "
            "was begun; if somebody else put it there, delete it"
        )
    if not path.is_file() and not sealed.is_file():
        raise PluginError(f"the plugin in {folder} lacks its part {name}: there is no {path}")
    return path if path.is_file() else sealed


def _part_bytes(part: Part, config: dict[str, Any]) -> bytes:
    return safetensors.numpy.save({**part.tensors(), **gate_tensors(part.gate)}, {"sideplug": json.dumps(config)})


def _part_from_bytes(data: bytes, path: str) -> tuple[Part, str]:
    """A part, and the base model that it was made for. Raises PluginError."""
    header, tensors = parse_tensors(data, path)
    return _part_of(header, tensors, path), header["base_fingerprint"]


def _part_of(config: dict[str, Any], tensors: dict[str, np.ndarray], path: str) -> Part:
    said = parse_part(config, path)
    kind = kind_named(said.kind, path)
    try:
        gate = gate_of(config, tensors)
        part = kind.load(config, tensors, Tap.parse(said.tap) if said.tap else None, gate, said.about)
    except SideplugError as error:
        raise PluginError(f"{path} is damaged: {error}") from error
    except Exception as error:
        raise PluginError(f"{path} is damaged: what it holds does not fit what it says of itself") from error
    part.name = said.name
    return part


def to_bytes(whole: Whole, beside: Mapping[str, np.ndarray]) -> bytes:
    """The whole plugin as one safetensors file: each part's tensors below its name, and those `beside` them."""
    tensors: dict[str, np.ndarray] = dict(beside)
    for part in whole.parts:
        own = {**part.tensors(), **gate_tensors(part.gate)}
        tensors |= {f"{part.name}.{name}": tensor for name, tensor in own.items()}
    about = {"format": FORMAT, "parts": [part_config(part, whole.base, whole.base_name) for part in whole.parts]}
    return safetensors.numpy.save(tensors, {"sideplug": json.dumps(about)})


def from_bytes(data: bytes, path: str) -> Whole:
    """What `to_bytes` gave. `path` names it in errors. Raises PluginError."""
    about, tensors = parse_tensors(data, path)
    configs = about.get("parts")
    if not isinstance(configs, list) or not 1 <= len(configs) <= MAX_PARTS:
        raise PluginError(f"{path} is damaged: it must have 1 to {MAX_PARTS} parts")
    said = [parse_part(config, path) for config in configs]
    bases = {each.base_fingerprint: each.base_model_name_or_path for each in said}
    if len(bases) > 1:
        bases.pop(ANY_BASE, None)
    if len(bases) > 1:
        raise PluginError(f"{path} is damaged: its parts are of several plugins")
    parts = []
    for config, each in zip(configs, said, strict=True):
        start = each.name + "."
        own = {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
        parts.append(_part_of(config, own, path))
    return Whole(*bases.popitem(), parts)
