"""sideplug gateway: OpenAI's API and a page on this machine, with the person's plugins behind them."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

import click

from sideplug.cli.common import (
    FOLDER,
    cloud_options,
    command,
    decode_options,
    json_option,
    option,
    plugins_option,
    print_json,
)
from sideplug.cli.session import (
    Cloud,
    DecodeChoice,
    fetch_head,
    key_or_file,
    load_plugin,
    passphrase_in_environment,
    passphrase_of,
)
from sideplug.contract.errors import InputError
from sideplug.sockets import LOOPBACK, bind


@command("gateway", "sideplug gateway --plugin my-plugin")
@option("--plugin", "folders", type=FOLDER, multiple=True, metavar="DIR", help="A plugin to offer; may be repeated.")
@plugins_option
@cloud_options
@option("--host", default="127.0.0.1", env="SIDEPLUG_GATEWAY_HOST", help="The address to listen on.")
@option(
    "--port",
    default=8766,
    env="SIDEPLUG_GATEWAY_PORT",
    type=click.IntRange(0, 65535),
    help="The port to listen on; 0 takes any free one.",
)
@option(
    "--key",
    default="",
    env="SIDEPLUG_GATEWAY_KEY",
    help="A key that callers must show. Beyond this machine there must be one.",
)
@option(
    "--key-file",
    type=FOLDER,
    env="SIDEPLUG_GATEWAY_KEY_FILE",
    metavar="FILE",
    help="A file with that key, which only you can read.",
)
@option(
    "--allow-origin",
    "origins",
    multiple=True,
    env="SIDEPLUG_GATEWAY_ALLOW_ORIGIN",
    metavar="ORIGIN",
    help="The origin of a web page that may call; may be repeated.",
)
@option(
    "--allow-host",
    "hosts",
    multiple=True,
    env="SIDEPLUG_GATEWAY_ALLOW_HOST",
    metavar="NAME",
    help="A further name that the gateway answers to, as a container or a proxy calls it; may be repeated.",
)
@option(
    "--max-tokens",
    default=512,
    env="SIDEPLUG_GATEWAY_MAX_TOKENS",
    type=click.IntRange(1),
    help="The most tokens of a reply, for requests that do not say.",
)
@option(
    "--temperature",
    default=0.0,
    env="SIDEPLUG_GATEWAY_TEMPERATURE",
    type=click.FloatRange(0),
    help="The temperature, for requests that do not say; 0 is greedy.",
)
@decode_options
@json_option
def gateway(
    folders: tuple[Path, ...],
    plugins_folder: Path | None,
    cloud: Cloud,
    host: str,
    port: int,
    key: str,
    key_file: Path | None,
    origins: tuple[str, ...],
    hosts: tuple[str, ...],
    max_tokens: int,
    temperature: float,
    decode: DecodeChoice,
    as_json: bool,
) -> None:
    """Serve OpenAI's API and a page, with your plugins behind them.

    The base is the model "smollm2-135m" (as the cloud calls it), a plugin "smollm2-135m+NAME", or just NAME.
    """
    from sideplug.cli.memory import entries_of_files, fetch_encoder_for, forgotten, preview_files
    from sideplug.device.gateway import Defaults, Gateway, GatewayConfig
    from sideplug.device.plugin_store import PluginStore
    from sideplug.memory.desk import Desk
    from sideplug.paths import plugins_dir
    from sideplug.plugins.file import is_sealed
    from sideplug.training.job import TrainingJob

    key = key_or_file("--key", key, key_file)
    if host not in LOOPBACK and not key:
        raise InputError(f"--host {host} is beyond this machine: give a --key that callers must bear")
    for folder in folders:
        load_plugin(folder)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # a caller that hangs up in a reply is no event of ours
    listener = bind(host, port)
    passphrases = {folder.resolve().name: passphrase_of(folder.name) for folder in folders if is_sealed(folder)}
    plugins = PluginStore(
        plugins_folder or plugins_dir(), folders, lambda name: passphrases.get(name) or passphrase_in_environment()
    )
    head = None
    if decode.needs_head:
        with cloud.session() as session:
            head = fetch_head(session)
    config = GatewayConfig(
        key,
        origins,
        hosts if host in LOOPBACK else (host, *hosts),
        options=decode.options(head),
        defaults=Defaults(max_tokens, temperature),
    )

    def ready(url: str) -> None:
        names = [entry.name for entry in plugins.entries()]
        if as_json:
            print_json({"url": url, "api": f"{url}/v1", "cloud": cloud.address.url, "plugins": names})
        else:
            click.echo(f"sideplug's gateway is at {url}/v1 (OpenAI's API), its page at {url}/ — Ctrl-C ends it")
            click.echo(f"plugins: {', '.join(names) or 'none yet, train one on the page'}; cloud: {cloud.address.url}")
        sys.stdout.flush()

    job = TrainingJob(plugins, cloud.client)
    desk = Desk(entries_of_files, lambda: fetch_encoder_for(plugins), forgotten)
    gateway = Gateway(plugins, cloud.address, config, job, cloud.recorder, desk, preview_files)
    asyncio.run(gateway.serve(listener, ready))
