"""Commands that a plugin is used with: generate, chat, gateway; and audit, which says what left."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sideplug.contract.errors import InputError, Stopped
from sideplug.listen import LOOPBACK
from sideplug.terminal import say

if TYPE_CHECKING:
    from sideplug.device.address import Address

from sideplug.cli.common import (
    FOLDER,
    check_utf8,
    chosen_gate,
    chosen_pace,
    chosen_sampling,
    cloud_options,
    command,
    gate_options,
    json_option,
    load_plugin,
    open_session,
    option,
    pace_options,
    paced,
    passphrase_of,
    peak_rss_mb,
    plugin_option,
    print_json,
    sampling_options,
    stream,
    transcript,
)


@command("generate", 'sideplug generate --plugin my-plugin "Dear Anna,"')
@click.argument("prompt", required=False)
@plugin_option
@cloud_options
@option("--raw", is_flag=True, help="Continue the text as it is, without the chat template.")
@option("--system", help="A system message (chat).")
@gate_options
@pace_options
@sampling_options
@json_option
def generate(
    prompt: str | None,
    folder: Path | None,
    cloud: Address,
    raw: bool,
    system: str | None,
    gate: str | None,
    gate_rate: float | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """One reply to PROMPT (or to standard input), streamed."""
    from sideplug.contract.text import Prompt

    wanted = paced(settings)
    max_tokens, sampling = chosen_sampling(settings)
    if prompt is None or prompt == "-":
        prompt = "" if sys.stdin.isatty() else sys.stdin.read()
    check_utf8(prompt)
    if not prompt.strip():
        raise InputError("the prompt is empty: give it as an argument or on standard input")
    if raw:
        asked = Prompt(text=prompt)
    else:
        start = [{"role": "system", "content": system}] if system else []
        asked = Prompt(messages=(*start, {"role": "user", "content": prompt}))
    plugin = load_plugin(folder)
    with open_session(cloud, plugin, chosen_gate(plugin, gate, gate_rate)) as session:
        pace = chosen_pace(session, **wanted)
        text, ids, interrupted = stream(session, asked, max_tokens, sampling, pace, show=not as_json)
        if as_json:
            about = {"text": text, "ids": ids, "model": session.model.name, "usage": session.usage.to_json()}
            print_json({**about, "plugin": str(folder) if folder else None, "peak_rss_mb": peak_rss_mb()})
        else:
            click.echo()
        if interrupted:
            raise Stopped("stopped in the middle of the reply")


@command("chat", "sideplug chat --plugin my-plugin")
@plugin_option
@cloud_options
@option("--system", help="A system message.")
@gate_options
@pace_options
@sampling_options
def chat(
    folder: Path | None,
    cloud: Address,
    system: str | None,
    gate: str | None,
    gate_rate: float | None,
    **settings: Any,
) -> None:
    """A conversation in the terminal. Ctrl-C stops a reply; Ctrl-D or /quit ends; /new forgets what was said."""
    from sideplug.contract.text import Prompt

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (line editing and history in input())
    wanted = paced(settings)
    max_tokens, sampling = chosen_sampling(settings)
    plugin = load_plugin(folder)
    start = [{"role": "system", "content": system}] if system else []
    messages = list(start)
    with open_session(cloud, plugin, chosen_gate(plugin, gate, gate_rate)) as session:
        pace = chosen_pace(session, **wanted)
        who = f"your plugin {folder}" if folder else "no plugin"
        say(f"{session.model.name} with {who}. Ctrl-D ends, /new starts afresh.")
        while True:
            try:
                line = check_utf8(input("> " if sys.stdin.isatty() else "").strip())
            except EOFError:
                break
            if line in ("/quit", "/exit"):
                break
            if line == "/new":
                messages = list(start)
            elif line:
                asked = [*messages, {"role": "user", "content": line}]
                try:
                    text, _, _ = stream(session, Prompt(messages=tuple(asked)), max_tokens, sampling, pace, show=True)
                except InputError as error:  # too long, say: the conversation goes on without it
                    say(f"sideplug: {error}")
                    continue
                messages = [*asked, {"role": "assistant", "content": text}]
                click.echo(f"\n{click.style(session.usage.line, dim=True)}")


@command("gateway", "sideplug gateway --plugin my-plugin")
@option("--plugin", "folders", type=FOLDER, multiple=True, metavar="DIR", help="A plugin to offer; may be repeated.")
@option("--plugins", "shelf", type=FOLDER, metavar="DIR", help="The folder of your plugins.")
@cloud_options
@option("--host", default="127.0.0.1", help="The address to listen on.")
@option("--port", default=8766, type=click.IntRange(0, 65535), help="0: any free one.")
@option("--key", default="", help="A key that callers must bear; beyond this machine there must be one.")
@option("--allow-origin", "origins", multiple=True, metavar="ORIGIN", help="A web page's origin that may call.")
@option("--max-tokens", default=512, type=click.IntRange(1), help="Of a reply, where a request does not say.")
@option("--temperature", default=0.0, type=click.FloatRange(0), help="Where a request does not say; 0 is greedy.")
@pace_options
@json_option
def gateway(
    folders: tuple[Path, ...],
    shelf: Path | None,
    cloud: Address,
    host: str,
    port: int,
    key: str,
    origins: tuple[str, ...],
    max_tokens: int,
    temperature: float,
    as_json: bool,
    **settings: Any,
) -> None:
    """Serve OpenAI's API and a page on this machine, with your plugins behind them.

    The base is the model "smollm2-135m" (as the cloud calls it), a plugin "smollm2-135m+NAME", or just NAME.
    """
    import asyncio
    import logging

    from sideplug.device.gateway import Defaults, Gateway, GatewayConfig
    from sideplug.device.plugin import is_sealed
    from sideplug.device.plugin_store import PluginStore
    from sideplug.listen import bind
    from sideplug.paths import plugins_dir
    from sideplug.training.job import TrainingJob

    if host not in LOOPBACK and not key:
        raise InputError(f"--host {host} is beyond this machine: give a --key that callers must bear")
    for folder in folders:
        load_plugin(folder)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # a caller that hangs up in a reply is no event of ours
    listener = bind(host, port)
    passphrases = {folder.resolve().name: passphrase_of(folder.name) for folder in folders if is_sealed(folder)}
    own = PluginStore(shelf or plugins_dir(), folders, lambda name: passphrases.get(name) or _env_passphrase())
    training = TrainingJob(own, lambda tap: open_session(cloud, tap=tap))
    wanted = paced(settings)
    if wanted["head"] == "device":
        with open_session(cloud) as session:
            pace = chosen_pace(session, **wanted, needed=True)
    else:
        pace = chosen_pace(None, **wanted)
    hosts = () if host in LOOPBACK else (host,)
    config = GatewayConfig(key, origins, hosts, options=pace, defaults=Defaults(max_tokens, temperature))

    def ready(url: str) -> None:
        names = [entry.name for entry in own.entries()]
        if as_json:
            print_json({"url": url, "api": f"{url}/v1", "cloud": cloud.url, "plugins": names})
        else:
            click.echo(f"sideplug's gateway is at {url}/v1 (OpenAI's API), its page at {url}/ — Ctrl-C ends it")
            click.echo(f"plugins: {', '.join(names) or 'none yet, train one on the page'}; cloud: {cloud.url}")
        sys.stdout.flush()

    record = transcript[-1] if transcript else None
    asyncio.run(Gateway(own, cloud, config, training, record).serve(listener, ready))


def _env_passphrase() -> str:
    return os.environ.get("SIDEPLUG_PASSPHRASE", "")


@command("audit", "sideplug audit session.sp --plugin my-plugin")
@click.argument("transcript", type=FOLDER, metavar="FILE")
@plugin_option
@json_option
def audit(transcript: Path, folder: Path | None, as_json: bool) -> None:
    """What left this device and what came, read off a transcript (any command's --transcript), byte for byte.

    Exit code 1: a parameter of the plugin was in it, or bytes that no field explains.
    """
    from sideplug.device import audit as audits

    report = audits.report(audits.read(transcript), load_plugin(folder))
    if as_json:
        print_json(report.to_json())
    else:
        for line in report.lines():
            click.echo(line)
    if not report.clean:
        raise Stopped("the transcript has what must not be in it")
