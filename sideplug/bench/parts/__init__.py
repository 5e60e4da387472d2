"""The parts of the benchmark: each answers one question and runs alone, by `sideplug bench --part NAME`.

A part is a module of this folder and a line in PARTS. The module has `Settings` (a frozen dataclass: what can be set,
with the values of a whole run), `QUICK` (the settings of --quick), `run(model, settings, save)`, which measures and
returns the result, and `summary(result)`, its lines for a reader. `run` may call `save` with what it has so far.
It does not know what a part measures. Test: pytest tests/bench/test_parts.py
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from sideplug.contract.errors import InputError, Stopped
from sideplug.paths import writing

Result = dict[str, Any]
Save = Callable[[Result], None]
PARTS = {
    "context": "what the rows of positions without a question cost: bytes, prefill, time to the first token",
    "decode": "tokens a second and memory of a served model, against llama.cpp and transformers",
    "lora": "time, memory and held-out loss of making a plugin, against a LoRA adapter by PEFT",
    "manner": "what a plugin learns of a person's manner, with a trunk, without one, and as a ladder",
    "memory": "what a memory knows in own words and a generator's, and that it is silent elsewhere",
    "network": "tokens a second over networks: what the gate, the window and drafts save",
    "person": "what a plugin of a made-up person knows, and that it is silent elsewhere",
    "rivals": "settings of kNN-LM and of a small model that steers, chosen on people whom no task has",
    "users": "one base model, many people: a plugin each, one for all, and PEFT with a LoRA each",
}
FILES = {"users": "many"}  # results that have another name


class Part(Protocol):
    """What a part's module has."""

    Settings: type[Any]
    QUICK: Any

    def run(self, model: str, settings: Any, save: Save) -> Result:
        """Measure."""

    def summary(self, result: Result) -> list[str]:
        """Return the result as lines of text."""


def load(name: str) -> Part:
    """Return the part of this name. Raises InputError where there is none."""
    if name not in PARTS:
        raise InputError(f"there is no part {name!r}; there are {', '.join(PARTS)}")
    return cast(Part, importlib.import_module(f"sideplug.bench.parts.{name}"))


def settings_of(part: Part, quick: bool, changes: Sequence[str]) -> Any:
    """Return the part's settings with changes such as "rounds=3" or "rtt-ms=0,50". Raises InputError for a bad one."""
    settings = part.QUICK if quick else part.Settings()
    types = typing.get_type_hints(part.Settings)
    values: dict[str, Any] = {}
    for change in changes:
        name, separator, text = change.partition("=")
        name = name.strip().replace("-", "_")
        if not separator or name not in types:
            known = ", ".join(f"{field}={_text(getattr(settings, field))}" for field in types)
            raise InputError(f"--set must be NAME=VALUE, with a NAME of {known}; got {change!r}")
        values[name] = _value(name, text, types[name])
    return dataclasses.replace(settings, **values)


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _value(name: str, text: str, kind: Any) -> Any:
    """Return the text as an int, a float, or a tuple of one of these."""
    item = typing.get_args(kind)[0] if typing.get_args(kind) else kind
    try:
        values = tuple(item(word) for word in text.split(",") if word.strip())
    except ValueError as error:
        raise InputError(f"{name} must be {item.__name__} values, got {text!r}") from error
    if (not values and (text or item is not str)) or (item is kind and len(values) != 1):
        raise InputError(
            f"{name} must be {'one value' if item is kind else 'values with commas between'}, got {text!r}"
        )
    return values[0] if item is kind else values


def run_part(name: str, model: str, quick: bool, changes: Sequence[str], out: Path) -> tuple[Path, Result, list[str]]:
    """Run a part and write its result: (the file in `out`, the result, its summary). Raises InputError, Stopped."""
    part = load(name)
    settings = settings_of(part, quick, changes)
    path = out / f"{FILES.get(name, name)}{'_quick' if quick else ''}.json"

    def save(result: Result) -> None:
        with writing(path):
            path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Stopped(f"{out} can't be made: {error.strerror}") from error
    result = part.run(model, settings, save)
    save(result)
    return path, result, part.summary(result)
