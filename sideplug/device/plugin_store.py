"""The plugin store: this device's plugins by name, in one folder, and single plugin folders from elsewhere.

A plugin is loaded when it is first needed and kept in memory until somebody else changes its file. A deleted plugin is
gone for the next request, while a reply in progress ends with the plugin that it began with. The store does not know
the network.
Test: pytest tests/device/test_plugin_store.py
"""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import threading
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sideplug.contract.errors import InputError, PluginError, Stopped, UnknownModel
from sideplug.device.lock import check_passphrase
from sideplug.paths import sweep
from sideplug.plugins import Plugin, bundle, sealed_file
from sideplug.plugins.file import CONFIG, PART, PLUGIN, SUFFIX, is_plugin, is_sealed, version_of

NAME = re.compile(r"[\w][\w.-]{0,63}")
log = logging.getLogger("sideplug.plugins")
OURS = re.compile(r"plugin\.json|tape|versions|checkpoint\.safetensors(\.sealed)?|\..*\.lock")  # beside the parts


@dataclass(frozen=True)
class Entry:
    """A plugin of the store. `sealed`: it needs a passphrase."""

    name: str
    folder: Path
    sealed: bool


class PluginStore:
    """The plugins in `root`, where new and imported ones go, and those in `others`, folders that are read only.

    passphrase: called with a sealed plugin's name. Raises InputError where two folders have one name.
    """

    def __init__(
        self, root: Path, others: Iterable[Path] = (), passphrase: Callable[[str], str] = lambda name: ""
    ) -> None:
        self.root = root
        self._others = _by_name(root, others)
        self._passphrase = passphrase
        self._loaded: dict[Path, Plugin] = {}
        self._lock = threading.Lock()
        self._twins: set[Path] = set()  # folders that were said to have another's name

    def entries(self) -> list[Entry]:
        """Return the plugins that are there now, by name."""
        folders = dict(self._others)
        for folder in sorted(self.root.glob("*")) if self.root.is_dir() else []:
            name = normal(folder.name)
            if NAME.fullmatch(name) and folders.setdefault(name, folder) is not folder and is_plugin(folder):
                self._tell_twin(folders[name], folder)
        return [Entry(name, folder, is_sealed(folder)) for name, folder in sorted(folders.items()) if is_plugin(folder)]

    def find(self, name: str) -> Entry:
        """Return the entry of this name. Raises UnknownModel."""
        for entry in self.entries():
            if entry.name == normal(name):
                return entry
        names = ", ".join(entry.name for entry in self.entries()) or "none"
        raise UnknownModel(f"there is no plugin {name[:80]!r} here; there are: {names}")

    def load(self, name: str) -> Plugin:
        """Return the plugin of this name. Raises UnknownModel, or PluginError for a damaged one."""
        entry = self.find(name)
        try:
            version = version_of(entry.folder)
        except OSError:
            raise UnknownModel(f"the plugin {name!r} has just been deleted") from None
        with self._lock:
            loaded = self._loaded.get(entry.folder)
            if loaded is None or loaded.version != version:
                loaded = self._loaded[entry.folder] = Plugin.load(entry.folder, lambda: self._passphrase(name))
            return loaded

    def new_folder(self, name: str) -> Path:
        """Return where a new plugin of this name would go. Raises InputError for a malformed or taken name."""
        name = normal(name)
        folder = self.folder(name)
        if is_plugin(folder):
            raise InputError(f"there is a plugin {name!r} already: choose another name, or delete that one")
        return folder

    def folder(self, name: str) -> Path:
        """Return the folder of this plugin, or where a new one would go. Raises InputError for a malformed name."""
        name = normal(name)
        if not NAME.fullmatch(name):
            raise InputError(f"a plugin's name must be 1 to 64 letters, digits, _ . or -, got {name[:80]!r}")
        return next((entry.folder for entry in self.entries() if entry.name == name), self.root / name)

    def reload(self) -> None:
        """Load each plugin anew when it is next needed, even if its file has not changed."""
        with self._lock:
            self._loaded.clear()

    def rename(self, name: str, new: str) -> None:
        """Rename a plugin. Raises UnknownModel, InputError, Stopped (the disk)."""
        entry, target = self._changeable(name), self.new_folder(new)
        with _stopping(f"{name} could not be renamed"):
            entry.folder.rename(target)

    def delete(self, name: str) -> None:
        """Delete a plugin with its tape and its checkpoints. Raises UnknownModel, InputError, Stopped (the disk)."""
        entry = self._changeable(name)
        with _stopping(f"{name} could not be deleted"):
            shutil.rmtree(entry.folder)

    def export(self, name: str, passphrase: str = "") -> bytes:
        """Return the plugin as one file, without its tape; sealed where there is a passphrase. Raises PluginError,
        InputError (the package cryptography is missing, or the passphrase is too short)."""
        if passphrase:
            check_passphrase(passphrase)
        return sealed_file.seal(self.load(name).to_bytes(), passphrase)

    def import_(self, name: str, file: bytes, passphrase: str = "") -> Plugin:
        """Save another device's plugin file, with its tapes if it has some, under this name; return the plugin.

        Raises PluginError, InputError.
        """
        folder = self.new_folder(name)
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"{folder} holds something else, perhaps of a stopped training: give another name")
        return import_to(folder, sealed_file.unseal(file, passphrase), "the plugin file")

    def is_own(self, name: str) -> bool:
        """Return whether the plugin lies in `root`, so that it may be renamed and deleted. Raises UnknownModel."""
        return self.find(name).folder.parent == self.root

    def _tell_twin(self, used: Path, folder: Path) -> None:
        """Say once that a folder's plugin is not offered, because another one has its name."""
        if folder not in self._twins and not (used.exists() and used.samefile(folder)):
            self._twins.add(folder)
            log.warning("the plugin in %s is not offered: %s has the same name; rename one folder", folder, used)

    def _changeable(self, name: str) -> Entry:
        entry = self.find(name)
        if not self.is_own(name):
            raise InputError(f"{name} lies outside the plugin store, in {entry.folder}: change it there")
        return entry


def normal(name: str) -> str:
    """Return a name with each accented letter as one character, however it was written."""
    return unicodedata.normalize("NFC", name)


def _by_name(root: Path, folders: Iterable[Path]) -> dict[str, Path]:
    """The folders by their plugins' names. Raises InputError where two have one name, or one has that of a plugin in
    `root`."""
    inside = {normal(folder.name): folder for folder in root.glob("*") if is_plugin(folder)} if root.is_dir() else {}
    named: dict[str, Path] = {}
    for folder in folders:
        name = normal(folder.resolve().name)
        twin = named.get(name) or inside.get(name)
        if twin is not None and twin.resolve() != folder.resolve():
            raise InputError(f"two plugins are named {name}: {twin} and {folder}; rename one of the folders")
        named[name] = folder
    return named


def import_to(folder: Path, data: bytes, path: str) -> Plugin:
    """Save the plugin of an unsealed file, and its tapes, to a folder; return it. Raises PluginError, Stopped."""
    plugin, tapes = Plugin.from_bytes(data, path), bundle.tapes_in(data, path)
    plugin.save(folder)
    if tapes:
        bundle.write_tapes(folder, tapes)
    return plugin


def delete_folder(folder: Path) -> list[Path]:
    """Delete a plugin's folder: the plugin, its tapes, versions and checkpoint; return what else is there and stays.

    Raises PluginError where there is no plugin, Stopped (the disk).
    """
    if not is_plugin(folder):
        raise PluginError(f"there is no plugin in {folder}")
    sweep(folder)
    with _stopping(f"{folder} could not be deleted"):
        parts = {path.parent for name in (PART, PART + SUFFIX, CONFIG) for path in folder.glob(f"*/{name}")}
        own = [path for path in folder.iterdir() if path in parts or OURS.fullmatch(path.name)]
        for path in sorted(own, key=lambda path: path.name == PLUGIN):  # last, so that a cut work can be done again
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        left = sorted(folder.iterdir())
        if not left:
            folder.rmdir()
    return left


@contextlib.contextmanager
def _stopping(sentence: str) -> Iterator[None]:
    """Raise Stopped where the block raises OSError."""
    try:
        yield
    except OSError as error:
        raise Stopped(f"{sentence}: {error.strerror or error}") from error
