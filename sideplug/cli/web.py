"""sideplug web …: a static folder in which a plugin runs in a browser. Test: pytest tests/slow/test_web.py"""

from __future__ import annotations

from pathlib import Path

import click

from sideplug.cli.common import FOLDER, group, json_option, option, print_json
from sideplug.terminal import say


@group.group("web")
def web_group() -> None:
    """Make your plugin's device of a browser: of a phone's, for example."""


@web_group.command("build", epilog="Example:  sideplug web build public/ --cloud wss://that-machine:8765")
@click.argument("out", type=FOLDER)
@option("--cloud", default="", metavar="URL", help="The only cloud that the page may speak with; without it, any.")
@option("--encoder/--no-encoder", default=True, help="With the sentence encoder (24 MB), or by words alone.")
@json_option
def web_build(out: Path, cloud: str, encoder: bool, as_json: bool) -> None:
    """Write a static folder, OUT, to be served by https: a page that works offline, and in which your plugin runs.

    Bring your plugin by its sealed file (sideplug plugin export). Whoever serves the folder must be trusted: they could
    change what runs in it. files.json has each file's SHA-256.
    """
    from sideplug.memory import weights
    from sideplug.web.build import build

    if encoder:
        weights.fetch_encoder(say)
        encoder = weights.encoder_path().is_file()  # it is not where SIDEPLUG_NO_ENCODER is set
    sums = build(out, cloud, encoder)
    size = sum((out / name).stat().st_size for name in sums)
    if as_json:
        print_json({"folder": str(out), "files": sums, "bytes": size, "encoder": encoder})
        return
    how = "with the sentence encoder" if encoder else "without the sentence encoder: it finds by words alone"
    click.echo(f"{out} has {len(sums)} files, {size / 1e6:.1f} MB, {how}")
    click.echo(f"serve it by https; on this machine: python3 -m http.server 8000 -b 127.0.0.1 -d {out}")
    click.echo("its cloud must let the page in: sideplug serve --allow-origin http://127.0.0.1:8000")
