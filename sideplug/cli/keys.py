"""sideplug keys …: who may use a cloud. Test: pytest tests/test_cli_keys.py"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sideplug.cli.common import group, json_option, keys_option, option, print_json
from sideplug.terminal import say

if TYPE_CHECKING:
    from sideplug.cloud.keys import Keys


@group.group("keys")
def keys_group() -> None:
    """Say who may use your cloud. Changes hold at once, without a restart."""


@keys_group.command("add", epilog="Example:  sideplug keys add ada")
@click.argument("name")
@option(
    "--sessions", default=8, type=click.IntRange(0), help="The most connections at once; 0: as many as the cloud has."
)
@option(
    "--tokens-per-minute",
    default=0,
    type=click.IntRange(0),
    help="The most tokens of prompts and replies a minute; 0: no limit.",
)
@option(
    "--role",
    default="user",
    type=click.Choice(["user", "operator"]),
    help="An operator's key also sees what concerns all users: /metrics, `sideplug top`.",
)
@keys_option
@json_option
def keys_add(
    name: str, sessions: int, tokens_per_minute: int, role: str, keys_path: Path | None, as_json: bool
) -> None:
    """Make a key for NAME and show it, this once: the file has only its hash."""
    key = _keys(keys_path).add(name, sessions, tokens_per_minute, role)
    if as_json:
        made = {"name": name, "key": key, "sessions": sessions, "tokens_per_minute": tokens_per_minute, "role": role}
        print_json(made)
    else:
        click.echo(key)
    say(f"{name}'s device shows it as SIDEPLUG_CLOUD_KEY=… or --cloud-key-file …; it is not shown again")


@keys_group.command("list", epilog="Example:  sideplug keys list")
@keys_option
@json_option
def keys_list(keys_path: Path | None, as_json: bool) -> None:
    """List the keys, by name, and what each may do. The keys themselves are kept nowhere."""
    keys = _keys(keys_path)
    keys_json = [
        {"name": key.name, "id": key.id, "created": key.created, **vars(key.limits), "role": key.shown_role}
        | {"revoked": key.revoked or None}
        for key in keys.listed()
    ]
    if as_json:
        print_json(keys_json)
        return
    for key in keys_json:
        tokens = f"{key['tokens_per_minute']:,} tokens a minute" if key["tokens_per_minute"] else "any tokens"
        limits = f"{key['sessions'] or 'any'} sessions, {tokens}{', operator' if key['role'] == 'operator' else ''}"
        state = f"revoked {key['revoked'][:10]}" if key["revoked"] else f"since {key['created'][:10]}"
        click.echo(f"{key['name']:24} {key['id']}  {state:19} {limits}")
    if not keys_json:
        say(f"sideplug: no keys in {keys.path} yet: sideplug keys add NAME makes one")


@keys_group.command("revoke", epilog="Example:  sideplug keys revoke ada")
@click.argument("name")
@keys_option
def keys_revoke(name: str, keys_path: Path | None) -> None:
    """Take a key back: a cloud that runs ends its sessions within a second."""
    _keys(keys_path).revoke(name)
    click.echo(f"{name}'s key is revoked")


def _keys(chosen: Path | None) -> Keys:
    from sideplug.cloud.keys import Keys
    from sideplug.paths import keys_file

    return Keys(chosen or keys_file())
