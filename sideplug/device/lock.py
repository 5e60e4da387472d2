"""Under lock and key: a plugin's folder, its tape and its checkpoints, sealed with a passphrase and opened again.

Either work may be cut short by a full disk or a kill; the same call with the same passphrase ends it. Nothing is lost,
and nothing that is open stays beside what is sealed: not the file of a killed save, and not a copy that somebody put
there, which is named. Test: pytest tests/device/test_plugin_store.py
"""

from __future__ import annotations

from pathlib import Path

from sideplug.contract.errors import InputError, PluginError
from sideplug.paths import sweep, write_aside, writing
from sideplug.plugins import sealed_file
from sideplug.plugins.file import PART, SUFFIX, read_plugin
from sideplug.plugins.validate import read_file

SHORTEST = 8  # characters of a new passphrase: whoever has the file may try as many as they like
PRIVATE = (".safetensors", ".tape")  # suffixes of the files that hold what a plugin learnt, or from what


def check_passphrase(passphrase: str, goes_on: bool = False) -> None:
    """Raises InputError for a new passphrase that is too short. goes_on: it is what sealed a part already."""
    if not passphrase:
        raise InputError("a passphrase must not be empty: set SIDEPLUG_PASSPHRASE, or type one on a terminal")
    if len(passphrase) < SHORTEST and not goes_on:
        raise InputError(f"a passphrase must have {SHORTEST} characters or more, this one has {len(passphrase)}")


def lock(folder: Path, passphrase: str) -> None:
    """Seal a plugin's folder: the plugin, its tape and its checkpoints.

    Its main file is sealed last, so that after a full disk the same call with the same passphrase can finish the work.
    Raises PluginError, InputError, Stopped; nothing is lost then.
    """
    check_passphrase(passphrase, goes_on=any(folder.rglob("*" + SUFFIX)))
    read_plugin(folder)
    swept = sweep(folder)
    plain = [path for path in folder.rglob("*") if path.suffix in PRIVATE and path.is_file()]
    if not plain and not swept:
        raise PluginError(f"there is no open plugin in {folder} that could be sealed")
    twins = _both_forms(folder, passphrase)
    for path in sorted(plain, key=lambda path: (path.name == PART, path)):
        if path not in twins:
            sealed = sealed_file.seal(read_file(path), passphrase)
            with writing(path):
                write_aside(path.with_name(path.name + SUFFIX), sealed)
        path.unlink()


def unlock(folder: Path, passphrase: str) -> None:
    """Undo lock(); the plugin's main file is opened last too.

    Raises PluginError (wrong passphrase, damaged, altered); nothing is changed then.
    """
    read_plugin(folder)
    paths = sorted(folder.rglob("*" + SUFFIX))
    if not paths:
        raise PluginError(f"there is no sealed plugin in {folder}")
    twins = _both_forms(folder, passphrase)
    sweep(folder)
    for path in sorted(paths, key=lambda path: path.name == PART + SUFFIX):
        opened = path.with_name(path.name.removesuffix(SUFFIX))
        if opened not in twins:
            with writing(opened):
                write_aside(opened, sealed_file.unseal(read_file(path), passphrase))
        path.unlink()


def _both_forms(folder: Path, passphrase: str) -> set[Path]:
    """The open files that stand beside their sealed form, and are the same: work that was cut short.

    Raises PluginError where one is not the same, and WrongPassphrase where this is not what seals the others.
    """
    twins = set()
    for path in sorted(folder.rglob("*" + SUFFIX)):
        data = sealed_file.unseal(read_file(path), passphrase)
        opened = path.with_name(path.name.removesuffix(SUFFIX))
        if not opened.is_file():
            continue
        if read_file(opened) != data:
            raise PluginError(f"{opened} is not what is sealed beside it: delete the one of the two that is not yours")
        twins.add(opened)
    return twins
