"""sideplug plugin …: looking at plugins, and keeping them in order. Test: pytest tests/test_cli_device.py"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sideplug.cli.common import FOLDER, group, json_option, option, plugins_option, print_json
from sideplug.cli.session import load_plugin, passphrase_of
from sideplug.contract.errors import InputError
from sideplug.terminal import say

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
    """List the plugins of this device, as the gateway's page shows them."""
    entries = _store(plugins_folder).entries()
    if as_json:
        print_json([{"name": e.name, "folder": str(e.folder), "sealed": e.sealed} for e in entries])
        return
    for entry in entries:
        click.echo(f"{entry.name:24} {'sealed  ' if entry.sealed else ''}{entry.folder}")
    if not entries:
        say("sideplug: no plugins yet: sideplug train, or the gateway's page, makes one")


@plugin_group.command("export", epilog="Example:  sideplug plugin export my-plugin my-plugin.sideplug")
@click.argument("folder", type=FOLDER, metavar="DIR")
@click.argument("file", type=FOLDER, metavar="FILE")
@option("--seal", is_flag=True, help="Encrypt the file with a passphrase (SIDEPLUG_PASSPHRASE, or typed).")
def plugin_export(folder: Path, file: Path, seal: bool) -> None:
    """Write a plugin as one file, for your other device. Its tape stays here."""
    from sideplug.paths import write_aside, writing
    from sideplug.plugins import sealed_file

    plugin = load_plugin(folder)
    passphrase = _new_passphrase(file.name) if seal else ""
    with writing(file):
        write_aside(file, sealed_file.seal(plugin.to_bytes(), passphrase))
    click.echo(f"{folder} is in {file}{', sealed' if seal else ''}")


@plugin_group.command("import", epilog="Example:  sideplug plugin import my-plugin.sideplug my-plugin")
@click.argument("file", type=FOLDER, metavar="FILE")
@click.argument("folder", type=FOLDER, metavar="DIR")
def plugin_import(file: Path, folder: Path) -> None:
    """Make a plugin's folder from a file that your other device exported."""
    from sideplug.plugins import Plugin, sealed_file

    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty: give another folder")
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file} can't be read: {error.strerror or error}") from error
    passphrase = passphrase_of(file.name) if sealed_file.is_sealed(data) else ""
    Plugin.from_bytes(sealed_file.unseal(data, passphrase), str(file)).save(folder)
    click.echo(f"{file} is in {folder}")


@plugin_group.command("lock", epilog="Example:  sideplug plugin lock my-plugin")
@click.argument("folder", type=FOLDER, metavar="DIR")
def plugin_lock(folder: Path) -> None:
    """Encrypt a plugin and its tape on the disk with a passphrase, which every use of the plugin then needs."""
    from sideplug.device.plugin_store import lock

    lock(folder, _new_passphrase(folder.name))
    click.echo(f"{folder} is sealed: there is no way in without the passphrase")


@plugin_group.command("unlock", epilog="Example:  sideplug plugin unlock my-plugin")
@click.argument("folder", type=FOLDER, metavar="DIR")
def plugin_unlock(folder: Path) -> None:
    """Decrypt a plugin and its tape on the disk: the opposite of lock."""
    from sideplug.device.plugin_store import unlock

    unlock(folder, passphrase_of(folder.name))
    click.echo(f"{folder} is open")


@plugin_group.command("rollback", epilog="Example:  sideplug plugin rollback my-plugin")
@click.argument("folder", type=FOLDER, metavar="DIR")
def plugin_rollback(folder: Path) -> None:
    """Restore the plugin as it was before it last learnt more (train --update)."""
    from sideplug.training.update import rollback

    plugin = rollback(folder)
    click.echo(f"{folder} is again what {plugin.about.get('examples', '?')} examples made of it")


def _new_passphrase(name: str) -> str:
    passphrase = passphrase_of(name, twice=True)
    if not passphrase:
        raise InputError("a passphrase must not be empty: set SIDEPLUG_PASSPHRASE, or type one on a terminal")
    return passphrase


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
        click.echo(f"{name:24} {about[name]}")
    click.echo(f"{'phrases':24} {len(plugin.phrases):,} tokens, for the drafts")
    for part in plugin.parts:
        click.echo(f"\npart {part.name}")
        shown = {"kind": part.kind_name, "tap": part.tap.name, "gate": part.gate.kind, "parameters": part.size}
        for name, value in {**shown, **part.about}.items():
            click.echo(f"  {name:22} {value}")
