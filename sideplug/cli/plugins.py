"""sideplug plugin …: looking at plugins, and keeping them in order. Test: pytest tests/test_cli_device.py"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sideplug.cli.common import FOLDER, group, json_option, option, plugins_option, print_json
from sideplug.cli.session import load_plugin, passphrase_of, remember_plugin
from sideplug.contract.errors import InputError, Stopped
from sideplug.terminal import say, tell

if TYPE_CHECKING:
    from sideplug.device.plugin_store import PluginStore


@group.group("plugin")
def plugin_group() -> None:
    """Look at plugins, and keep them in order."""


def _store(folder: Path | None) -> PluginStore:
    from sideplug.device.plugin_store import PluginStore
    from sideplug.paths import plugins_dir

    return PluginStore(folder or plugins_dir(), passphrase=passphrase_of)


@plugin_group.command("list", epilog="Example:  sideplug plugin list")
@plugins_option
@json_option
def plugin_list(plugins_folder: Path | None, as_json: bool) -> None:
    """List the plugins of this device: those of the plugin store, and those that train and import made elsewhere."""
    from sideplug.device import elsewhere
    from sideplug.device.plugin_store import Entry
    from sideplug.plugins.file import is_sealed

    store = _store(plugins_folder)
    others, gone = elsewhere.folders(store.root)
    entries = store.entries() + [Entry(folder.name, folder, is_sealed(folder)) for folder in others]
    for folder in gone:
        say(f"sideplug: the plugin that was in {folder} is gone; it is not listed any more")
    if as_json:
        print_json([{"name": e.name, "folder": str(e.folder), "sealed": e.sealed} for e in entries])
        return
    for entry in entries:
        tell(f"{entry.name:24} {'sealed  ' if entry.sealed else ''}{entry.folder}")
    if not entries:
        say("sideplug: no plugins yet: sideplug train, or the gateway's page, makes one")


@plugin_group.command("delete", epilog="Example:  sideplug plugin delete my-plugin")
@click.argument("plugin", metavar="DIR|NAME")
@plugins_option
@option("--force", is_flag=True, help="Do not ask.")
def plugin_delete(plugin: str, plugins_folder: Path | None, force: bool) -> None:
    """Delete a plugin with its tape and its earlier versions: a folder, or a name that plugin list shows.

    Files in its folder that are not the plugin's stay.
    """
    from sideplug.device import elsewhere
    from sideplug.device.plugin_store import delete_folder
    from sideplug.plugins.file import is_plugin

    store = _store(plugins_folder)
    named = [folder for folder in elsewhere.folders(store.root)[0] if folder.name == plugin]
    if is_plugin(Path(plugin)):
        folder = Path(plugin)
    elif any(entry.name == plugin for entry in store.entries()) or not named:
        folder = store.find(plugin).folder
    elif len(named) > 1:
        raise InputError(f"there are several plugins {plugin}, give a folder: {', '.join(map(str, named))}")
    else:
        folder = named[0]
    if not force:
        if not sys.stdin.isatty():
            raise InputError(f"{folder} would be deleted with its tape: give --force where nobody can be asked")
        if not click.confirm(f"Delete the plugin in {folder} with its tape? There is no way back", err=True):
            raise Stopped("nothing was deleted")
    left = delete_folder(folder)
    with contextlib.suppress(OSError):  # it is forgotten by the next list then
        elsewhere.forget(store.root, folder)
    kept = f"; what is not the plugin's stays: {', '.join(path.name for path in left[:5])}" if left else ""
    tell(f"the plugin in {folder} is deleted{kept}")


@plugin_group.command("export", epilog="Example:  sideplug plugin export my-plugin my-plugin.sideplug")
@click.argument("folder", type=FOLDER, metavar="DIR")
@click.argument("file", type=FOLDER, metavar="FILE")
@option("--seal", is_flag=True, help="Encrypt the file with a passphrase (SIDEPLUG_PASSPHRASE, or typed).")
@option("--tape", "with_tape", is_flag=True, help="With its tape, so that it can learn on there; needs --seal.")
def plugin_export(folder: Path, file: Path, seal: bool, with_tape: bool) -> None:
    """Write a plugin as one file, for your other device. Its tape stays here without --tape."""
    from sideplug.device.lock import check_passphrase
    from sideplug.paths import write_aside, writing
    from sideplug.plugins import bundle, sealed_file
    from sideplug.training.update import tapes_to_export

    if with_tape and not seal:
        raise InputError("a tape holds your words: it is exported under a passphrase only, give --seal too")
    plugin = load_plugin(folder)
    tapes = tapes_to_export(folder) if with_tape else {}
    passphrase = passphrase_of(file.name, twice=True) if seal else ""
    if seal:
        check_passphrase(passphrase)
    with writing(file):
        write_aside(file, sealed_file.seal(bundle.to_bytes(plugin, tapes), passphrase))
    tell(f"{folder} is in {file}{', with its tape' if tapes else ''}{', sealed' if seal else ''}")


@plugin_group.command("import", epilog="Example:  sideplug plugin import my-plugin.sideplug my-plugin")
@click.argument("file", type=FOLDER, metavar="FILE")
@click.argument("folder", type=FOLDER, metavar="DIR")
@click.option(
    "--merge", is_flag=True, help="Into a plugin that is there: its memory takes over what this one was told."
)
def plugin_import(file: Path, folder: Path, merge: bool) -> None:
    """Make a plugin's folder from a file that your other device exported.

    With --merge, the plugin in DIR stays, and its memory takes over what the other one was told, each thing once. Where
    both were told another reply to one question, the later one holds; the other one stays, and can be restored.
    A trained part that DIR lacks comes along; one that it has stays as it is.
    """
    from sideplug.device.plugin_store import import_to
    from sideplug.plugins import sealed_file
    from sideplug.plugins.validate import read_file

    if not merge and folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty: give another folder, or --merge for two memories of one person")
    data = read_file(file)
    passphrase = passphrase_of(file.name) if sealed_file.is_sealed(data) else ""
    whole = sealed_file.unseal(data, passphrase)
    if merge and folder.exists() and any(folder.iterdir()):
        _merge(folder, whole, file)
        return
    import_to(folder, whole, str(file))
    remember_plugin(folder)
    tell(f"{file} is in {folder}")


def _merge(folder: Path, data: bytes, file: Path) -> None:
    from sideplug.memory import book
    from sideplug.memory.merging import merge
    from sideplug.plugins import Plugin

    other, mine = Plugin.from_bytes(data, str(file)), Plugin.load(folder)
    memory = book.memory_of(other)
    kept = {part.name for part in mine.parts}
    lacking = [part for part in other.parts if part.name not in kept and part is not memory]
    if memory is None and not lacking:
        raise InputError(f"{file} has no memory, and no part that {folder} lacks: there is nothing to merge")
    for part in lacking:
        other.save_part(part, folder)
        tell(f"{folder} has the part {part.name} of {file} now")
    if memory is None:
        return
    merged = book.change(folder, lambda own: merge(own, memory), must_be=False)
    for holds, gone in merged.conflicts:
        say(
            f"{holds.question!r}: {holds.reply!r} holds, told last; entry {gone.number}, {gone.reply!r}, does not "
            f"(sideplug memory restore {gone.number} brings it back)"
        )
    count = merged.added
    tell(f"{folder} remembers {count} more {'entry' if count == 1 else 'entries'}, {merged.known} were known")


@plugin_group.command("lock", epilog="Example:  sideplug plugin lock my-plugin")
@click.argument("folder", type=FOLDER, metavar="DIR")
def plugin_lock(folder: Path) -> None:
    """Encrypt a plugin and its tape on the disk with a passphrase, which every use of the plugin then needs."""
    from sideplug.device.lock import lock

    lock(folder, passphrase_of(folder.name, twice=True))
    tell(f"{folder} is sealed: there is no way in without the passphrase")


@plugin_group.command("unlock", epilog="Example:  sideplug plugin unlock my-plugin")
@click.argument("folder", type=FOLDER, metavar="DIR")
def plugin_unlock(folder: Path) -> None:
    """Decrypt a plugin and its tape on the disk: the opposite of lock."""
    from sideplug.device.lock import unlock

    unlock(folder, passphrase_of(folder.name))
    tell(f"{folder} is open")


@plugin_group.command("rollback", epilog="Example:  sideplug plugin rollback my-plugin")
@click.argument("folder", type=FOLDER, metavar="DIR")
def plugin_rollback(folder: Path) -> None:
    """Restore the plugin as it was before it last learnt more (train --update)."""
    from sideplug.training.update import rollback

    plugin = rollback(folder)
    tell(f"{folder} is again what {plugin.about.get('examples', '?')} examples made of it")


@plugin_group.command("info", epilog="Example:  sideplug plugin info my-plugin")
@click.argument("folder", type=FOLDER, metavar="DIR")
@json_option
def plugin_info(folder: Path, as_json: bool) -> None:
    """Show what a plugin is: its base, tap, gate, size, and what its training reached."""
    plugin = load_plugin(folder)
    about = {**plugin.config(), "parameters": plugin.size, "tap_bytes_per_token": plugin.tap.bytes_per_token}
    about["phrases_tokens"] = len(plugin.phrases)
    if as_json:
        print_json(about)
        return
    for name in ("base_model_name_or_path", "base_fingerprint", "tap_bytes_per_token", "parameters"):
        tell(f"{name:24} {about[name]}")
    tell(f"{'phrases':24} {len(plugin.phrases):,} tokens, for the drafts")
    for part in plugin.parts:
        tell(f"\npart {part.name}")
        shown = {
            "kind": part.kind_name,
            "tap": part.tap.name if part.tap else "none",
            "gate": part.gate.kind,
            "entries" if part.role == "memory" else "parameters": part.size,
        }
        for name, value in {**shown, **part.about}.items():
            tell(f"  {name:22} {value}")
