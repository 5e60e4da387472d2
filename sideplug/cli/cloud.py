"""sideplug pull and top: getting a model, and watching a cloud at work."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import click

from sideplug.cli.common import (
    DEFAULT_MODEL,
    address_option,
    command,
    json_option,
    option,
    options,
    print_json,
    trust_options,
)
from sideplug.cli.session import key_or_file
from sideplug.contract.errors import InputError
from sideplug.contract.printable import escaped
from sideplug.terminal import say


@command("pull", "sideplug pull smollm2-135m")
@click.argument("model", default=DEFAULT_MODEL)
@json_option
def pull(model: str, as_json: bool) -> None:
    """Fetch a model and convert it, once.

    MODEL is smollm2-135m, a hub id (owner/name@revision), a folder or a .gguf file.
    """
    check_cloud_packages()
    from sideplug.cloud.store import find

    base = find(model, say)
    if as_json:
        print_json({"name": base.name, "folder": str(base.folder), "fingerprint": base.fingerprint})
    else:
        click.echo(f"{base.name} is ready: {base.folder} (fingerprint {base.fingerprint[:12]})")


def check_cloud_packages() -> None:
    """Raises InputError where the cloud's packages, an extra, are missing: before anything is fetched."""
    needed = ("onnx", "onnxruntime", "tokenizers", "gguf", "jinja2", "huggingface_hub", "prometheus_client")
    missing = [name for name in needed if not importlib.util.find_spec(name)]
    if missing:
        raise InputError(f"models need the cloud's packages ({', '.join(missing)}): pip install 'sideplug[cloud]'")


@command("top", "sideplug top wss://mill.example:8765 --cloud-key sp-…")
@click.argument("url", required=False)
@address_option
@options(trust_options)
@option("--every", default=2.0, type=click.FloatRange(0.1), metavar="SECONDS", help="Seconds between two looks.")
@option("--once", is_flag=True, help="Look twice, show the result and end; --json always does so.")
@json_option
def top(
    url: str | None,
    cloud: str,
    cloud_key: str,
    cloud_key_file: Path | None,
    ca: Path | None,
    pin: str,
    every: float,
    once: bool,
    as_json: bool,
) -> None:
    """Watch a cloud at work.

    It shows sessions, queue, memory, tokens, gate, answers and traffic, of the cloud at URL (or --cloud). Ctrl-C
    ends it.
    """
    import time

    if not importlib.util.find_spec("prometheus_client"):
        raise InputError("top needs the cloud's packages: pip install 'sideplug[cloud]'")
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    from sideplug.cloud.top import Now, Sample
    from sideplug.device.address import Address, get

    url = url or cloud
    address = Address(url, ca, key_or_file("--cloud-key", cloud_key, cloud_key_file), pin)

    def look() -> Sample:
        return Sample.read(get(address, "/metrics"), time.monotonic())

    def table(now: Now) -> Table:
        rows = Table(title=Text(url), title_justify="left", show_header=False, box=None)
        for name, value in now.rows():
            rows.add_row(f"[bold]{name}[/]", Text(escaped(value)))
        return rows

    old = look()
    if once or as_json:
        time.sleep(every)
        now = Now(look(), old)
        if as_json:
            print_json({name: round(v, 6) if isinstance(v, float) else v for name, v in now.to_json().items()})
        else:
            Console().print(table(now))
        return
    with Live(table(Now(old)), auto_refresh=False, screen=sys.stdout.isatty()) as live:
        while True:
            time.sleep(every)
            new = look()
            live.update(table(Now(new, old)), refresh=True)
            old = new
