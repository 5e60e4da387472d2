"""A plugin: its parts, and the one tap, merge and context slice under which a session runs them together.

How its files look is in file.py. It does not know the wire or the base model. Test: pytest tests/plugins/test_plugin.py
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sideplug.contract.bias import Bias
from sideplug.contract.correction import Merge
from sideplug.contract.errors import PluginError, WrongBase
from sideplug.contract.frames import MAX_PARTS
from sideplug.contract.gate import Gate
from sideplug.contract.tap import ContextSlice, Tap
from sideplug.plugins import file
from sideplug.plugins.base import NO_PHRASES, Part, Shape, TrainedPart, trained_kind
from sideplug.plugins.validate import ANY_BASE, FORMAT

NO_STATES = Tap((0,), 1)  # of a plugin whose parts read none: a question must carry something


@dataclass
class Plugin:
    """One person's plugin. base: the base model's fingerprint, or ANY_BASE. parts: memories first, then manner.

    Raises PluginError for parts that can't be run together.
    """

    base: str
    base_name: str
    parts: list[Part] = field(default_factory=list)
    folder: Path | None = field(default=None, compare=False)  # where it was loaded from, or saved to
    version: tuple[int, ...] = field(default=(), compare=False)  # of the files that it was loaded from, or kept in

    def __post_init__(self) -> None:
        names = [part.name for part in self.parts]
        if not 1 <= len(names) <= MAX_PARTS or len(set(names)) != len(names):
            raise PluginError(f"a plugin must have 1 to {MAX_PARTS} parts, each with its own name, got {names}")
        self.parts.sort(key=lambda part: part.role != "memory")  # a stable sort: manner keeps its order
        if self.merge == "replace" and len(self.parts) > 1:  # where others spoke alone, z would be replaced by nothing
            raise PluginError("a part whose output replaces z must be the plugin's only part")
        self.tap  # noqa: B018  # raises InputError where the parts' taps can't be united

    @classmethod
    def new(cls, kind: str, base: str, base_name: str, tap: Tap, width: int, model_width: int, seed: int = 0) -> Plugin:
        """An untrained plugin of one part. Raises PluginError for an unknown kind, or a tap that it can't read."""
        made = trained_kind(kind)
        made.check_tap(tap)
        shape = Shape(len(tap.layers), tap.rank, width, model_width)
        params = made.init(shape, np.random.default_rng(seed))
        return cls(base, base_name, [TrainedPart(made, tap, params)])

    @property
    def tap(self) -> Tap:
        """The tap of a session: all layers that any part reads."""
        taps = [part.tap for part in self.parts if part.tap is not None]
        return Tap.union(taps) if taps else NO_STATES

    @property
    def merge(self) -> Merge:
        """What the cloud does with a correction: "add" it to z, or "replace" z by it."""
        return "replace" if any(part.merge == "replace" for part in self.parts) else "add"

    @property
    def gates(self) -> list[Gate]:
        """One for each part, in their order."""
        return [part.gate for part in self.parts]

    @property
    def biases(self) -> list[Bias]:
        """One for each part, in their order."""
        return [part.bias for part in self.parts]

    def gate_at_rate(self, rate: float) -> Gate:
        """The gate that opens for this share of personal tokens, from 0 (shut) to 1 (open). Raises InputError."""
        return self.trained.gate.at_rate(rate) if 0 < rate < 1 else Gate("shut").at_rate(rate)

    @property
    def context(self) -> ContextSlice | None:
        """What a context row must carry for all parts that need one; None where none does."""
        slices = [part.context for part in self.parts if part.context is not None]
        if not slices:
            return None
        layers = sorted({layer for each in slices for layer in each.layers})
        return ContextSlice(self.tap, tuple(layers), max(each.rank for each in slices))

    @property
    def trained(self) -> TrainedPart:
        """The part that training makes: the last one of a trained kind. Raises PluginError where there is none."""
        for part in reversed(self.parts):
            if isinstance(part, TrainedPart):
                return part
        raise PluginError("this plugin has no trained part")

    @property
    def phrases(self) -> np.ndarray:
        """Token ids of the person's texts, −1 between two: for prompt-lookup drafts."""
        found = [part.phrases for part in self.parts if isinstance(part, TrainedPart) and len(part.phrases)]
        return found[-1] if found else NO_PHRASES

    @property
    def about(self) -> dict[str, Any]:
        """What training wrote down of the trained part; empty without one."""
        return next((part.about for part in reversed(self.parts) if isinstance(part, TrainedPart)), {})

    @property
    def size(self) -> int:
        """Numbers that all parts hold."""
        return sum(part.size for part in self.parts)

    def check_base(self, fingerprint: str, name: str) -> None:
        """Raises WrongBase unless the plugin was made for this base model."""
        if self.base not in (fingerprint, ANY_BASE):
            raise WrongBase(
                f"this plugin was made for the base model {self.base[:12]} ({self.base_name}), but the cloud serves "
                f"{fingerprint[:12]} ({name}): serve that model, or train a plugin for this one"
            )

    def check_beside(self, folder: Path) -> list[Part]:
        """The other parts that a folder keeps. Raises PluginError where its own can't stand beside them."""
        mine, kept = {part.name for part in self.parts}, list[Part]()
        with contextlib.suppress(PluginError):  # what can't be read does not stay
            kept = file.read_folder(folder).parts if file.is_plugin(folder) else []
        others = [part for part in kept if part.name not in mine]
        Plugin(self.base, self.base_name, [*others, *self.parts])
        return others

    def save(self, folder: Path) -> None:
        """Write the plugin to a folder. Raises Stopped: then the plugin that was there is whole."""
        file.write_folder(self._whole, folder)
        self.folder = folder

    def save_part(self, part: Part, folder: Path) -> None:
        """Write one part; others in the folder stay, even if they changed since. Raises Stopped, PluginError."""
        file.write_part(part, self.base, self.base_name, folder)
        self.folder = folder

    def keep_read(self) -> None:
        """Write the parts that have read something of the base to the plugin's folder, unless it is sealed, or they are
        gone. Where nobody else has written there, it stays the plugin of this version. Raises Stopped, PluginError."""
        for part in self.parts:
            if part.has_read and self.folder and file.is_plugin(self.folder) and not file.is_sealed(self.folder):
                with file.changing(self.folder):
                    self._keep(part, self.folder)
                part.has_read = False

    def _keep(self, part: Part, folder: Path) -> None:
        if self.version and self.version == file.version_of(folder):
            self.save_part(part, folder)
            self.version = file.version_of(folder)
            return
        stored = {each.name: each for each in file.read_folder(folder).parts}.get(part.name)
        if stored is not None:
            self.save_part(part.merged_with(stored), folder)

    @classmethod
    def load(cls, folder: Path, passphrase: Callable[[], str] = lambda: "") -> Plugin:
        """The plugin of a folder; `passphrase` is called where it is sealed. Raises PluginError."""
        version: tuple[int, ...] = ()
        with contextlib.suppress(OSError, PluginError):  # read_folder says what is wrong
            version = file.version_of(folder)
        whole = file.read_folder(folder, passphrase)
        return cls(whole.base, whole.base_name, whole.parts, folder, version)

    def to_bytes(self, beside: Mapping[str, np.ndarray] | None = None) -> bytes:
        """The whole plugin as one file. beside: further tensors, whose names are no part's (see bundle)."""
        return file.to_bytes(self._whole, beside or {})

    @classmethod
    def from_bytes(cls, data: bytes, path: str) -> Plugin:
        """What `to_bytes` gave. `path` names it in errors. Raises PluginError."""
        whole = file.from_bytes(data, path)
        return cls(whole.base, whole.base_name, whole.parts)

    def config(self) -> dict[str, Any]:
        """What its files say of it: base model, and each part's kind, tap, gate and training."""
        parts = [file.part_config(part, self.base, self.base_name) for part in self.parts]
        return {"format": FORMAT, "base_model_name_or_path": self.base_name, "base_fingerprint": self.base} | {
            "parts": parts
        }

    @property
    def _whole(self) -> file.Whole:
        return file.Whole(self.base, self.base_name, self.parts)
