"""sideplug trunk …: what a part of manner begins with, learnt once from many writers.

Test: pytest tests/test_cli_trunk.py
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sideplug.cli.common import FOLDER, cloud_options, group, json_option, option, print_json
from sideplug.cli.train import training_progress
from sideplug.contract.errors import InputError
from sideplug.terminal import say, tell

if TYPE_CHECKING:
    from sideplug.cli.session import Cloud
    from sideplug.plugins.trunk import Trunk


@group.group("trunk")
def trunk_group() -> None:
    """Make and choose trunks: what everybody's manner begins with, learnt once from many writers' public text."""


@trunk_group.command("train", epilog='Example:  sideplug trunk train letters/ --licence "CC0" --out letters.trunk')
@click.argument("texts", type=FOLDER)
@option("--out", type=FOLDER, required=True, metavar="FILE", help="The trunk's file.")
@option("--name", help="Its name; without it, that of the file.")
@option("--version", "number", default=1, type=click.IntRange(1), help="Its version.")
@option(
    "--licence",
    default="",
    help="Under which licence the texts are. A list of texts (a .json file: a writer, licence and file a row) says it "
    "for each.",
)
@option("--passages", default=80, type=click.IntRange(4), help="Of each writer, at most.")
@option("--epochs", default=6, type=click.IntRange(1), help="How often the texts are read.")
@option("--seed", default=0, type=click.IntRange(0), help="Seed of the writers that are held out, and of the order.")
@option("--force", is_flag=True, help="Replace a file that is there.")
@cloud_options
@json_option
def trunk_train(
    texts: Path,
    out: Path,
    name: str | None,
    number: int,
    licence: str,
    passages: int,
    epochs: int,
    seed: int,
    force: bool,
    cloud: Cloud,
    as_json: bool,
) -> None:
    """Learn a trunk of TEXTS: a folder with a file a writer, or a list of them. It is public: use no private text.

    A tenth of the writers is held out, to say what it is worth to people whom it has not read.
    """
    from sideplug.paths import cache_dir
    from sideplug.training.tape import digest
    from sideplug.trunk import making
    from sideplug.trunk.texts import read_writers

    if out.exists() and not force:
        raise InputError(f"{out} is there already: give another file, or --force to replace it")
    writers = read_writers(texts, licence, passages, seed, say)
    model = cloud.client.model()
    count = sum(len(writer.examples) for writer in writers)
    say(f"{len(writers)} writers, {count:,} passages, for {model.name}: the cloud reads each passage once")
    mark = digest([example for writer in writers for example in writer.examples])
    folder = cache_dir() / "trunk-tapes" / f"{model.fingerprint[:12]}-{mark[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    config = replace(making.CONFIG, epochs=epochs, seed=seed)
    trunk, worth = making.make(cloud.client, writers, folder, name or out.stem, number, training_progress, say, config)
    trunk.save(out)
    shutil.rmtree(folder, ignore_errors=True)
    if as_json:
        print_json({"trunk": str(out), "bytes": out.stat().st_size, **trunk.card})
        return
    tell(f"{out}: the trunk {trunk.title}, {trunk.size:,} parameters, {out.stat().st_size / 1e6:.1f} MB; {worth.line}")
    say(f"sideplug trunk pull {out} installs it: new parts of manner on {model.name} begin with it then")


@trunk_group.command("list", epilog="Example:  sideplug trunk list")
@json_option
def trunk_list(as_json: bool) -> None:
    """List the trunks that are installed, with the base that each is for."""
    from sideplug.plugins.trunk import installed

    trunks = installed()
    if as_json:
        print_json([_told(trunk) for trunk in trunks])
        return
    for trunk in trunks:
        worth = trunk.card.get("worth", {})
        gain = f"{worth['own'] - worth['base']:+.3f} nats with one's own words" if worth else ""
        tell(f"{trunk.title:16} {trunk.base_name:32} {trunk.sha256[:12]}  {gain}")
    if not trunks:
        say("sideplug: no trunk is installed: sideplug trunk train makes one, sideplug trunk pull installs it")


@trunk_group.command("info", epilog="Example:  sideplug trunk info prose")
@click.argument("trunk", metavar="NAME|FILE")
@json_option
def trunk_info(trunk: str, as_json: bool) -> None:
    """Show a trunk's card: of whose texts it is made, under which licences, and what it is worth."""
    from sideplug.plugins.trunk import named

    found = named(trunk)
    if as_json:
        print_json({**_told(found), "card": found.card})
        return
    tell(f"{found.title}, for {found.base_name} ({found.base[:12]}); {found.size:,} parameters; {found.sha256[:12]}")
    for text in found.card.get("texts", []):
        held = "  (held out)" if text["name"] in found.card.get("held_out", []) else ""
        tell(f"  {text['name']:32} {text['tokens']:>8,} tokens  {text['licence']}{held}")
    worth = found.card.get("worth")
    if worth:
        from sideplug.trunk.making import Worth

        tell(Worth(**worth).line)


@trunk_group.command("pull", epilog="Example:  sideplug trunk pull letters.trunk")
@click.argument("source", metavar="FILE|URL")
@option("--sha256", "expected", default="", help="What the file must have, in hex; without it, what it has is shown.")
def trunk_pull(source: str, expected: str) -> None:
    """Install a trunk on this device, from a file or a URL."""
    from sideplug.plugins.trunk import SUFFIX, Trunk, fetched, shelves

    with fetched(source) as path:
        trunk = Trunk.load(path)
        if expected and trunk.sha256 != expected.lower():
            raise InputError(f"{source} must have sha256 {expected[:16]}…, it has {trunk.sha256[:16]}…")
        shelf = shelves()[0]
        shelf.mkdir(parents=True, exist_ok=True)
        trunk.install(path, shelf / f"{trunk.sha256[:16]}{SUFFIX}")
    tell(f"the trunk {trunk.title} for {trunk.base_name} is installed (sha256 {trunk.sha256})")


def _told(trunk: Trunk) -> dict[str, Any]:
    names = ("name", "version", "base", "base_name", "kind", "sha256")
    return {name: getattr(trunk, name) for name in names} | {"parameters": trunk.size}
