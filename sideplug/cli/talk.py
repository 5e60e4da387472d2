"""Commands that a plugin is used with: chat and generate; and audit, which says what left the device."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sideplug.cli.common import (
    FOLDER,
    cloud_options,
    command,
    decode_options,
    form_options,
    gate_options,
    json_option,
    max_tokens_option,
    option,
    plugin_option,
    print_json,
    sampling_options,
)
from sideplug.cli.session import (
    Cloud,
    DecodeChoice,
    GateChoice,
    check_utf8,
    load_plugin_if,
    peak_rss_mb,
    stream_reply,
)
from sideplug.contract.errors import InputError, Stopped
from sideplug.terminal import say, tell

if TYPE_CHECKING:
    from sideplug.contract.capabilities import Grammar
    from sideplug.contract.sampling import Sampling


@command("generate", 'sideplug generate --plugin my-plugin "Dear Anna,"')
@click.argument("prompt", required=False)
@plugin_option
@cloud_options
@option("--raw", is_flag=True, help="Continue the text as it is, without the chat template.")
@option("--system", help="A system message (chat).")
@gate_options
@decode_options
@form_options
@max_tokens_option
@sampling_options
@json_option
def generate(
    prompt: str | None,
    folder: Path | None,
    cloud: Cloud,
    raw: bool,
    system: str | None,
    gate: GateChoice,
    decode: DecodeChoice,
    form: Grammar | None,
    max_tokens: int,
    sampling: Sampling,
    as_json: bool,
) -> None:
    """Print one reply to PROMPT, or to standard input."""
    from sideplug.contract.text import Prompt

    if prompt is None or prompt == "-":
        prompt = "" if sys.stdin.isatty() else sys.stdin.read()
    check_utf8(prompt)
    if not prompt.strip():
        raise InputError("the prompt is empty: give it as an argument or on standard input")
    if raw:
        request = Prompt(text=prompt)
    else:
        start = [{"role": "system", "content": system}] if system else []
        request = Prompt(messages=(*start, {"role": "user", "content": prompt}))
    plugin = load_plugin_if(folder)
    with cloud.session(plugin, gate.of(plugin), decode.head) as session:
        options = replace(decode.options_for(session), grammar=form)
        text, ids, interrupted = stream_reply(session, request, max_tokens, sampling, options, show=not as_json)
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
@decode_options
@max_tokens_option
@sampling_options
def chat(
    folder: Path | None,
    cloud: Cloud,
    system: str | None,
    gate: GateChoice,
    decode: DecodeChoice,
    max_tokens: int,
    sampling: Sampling,
) -> None:
    """Talk with the model in the terminal.

    Ctrl-C stops a reply; Ctrl-D or /quit ends; /new forgets what was said.
    """
    from sideplug.contract.text import Prompt

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (line editing and history in input())
    plugin = load_plugin_if(folder)
    start = [{"role": "system", "content": system}] if system else []
    messages = list(start)
    with cloud.session(plugin, gate.of(plugin), decode.head) as session:
        options = decode.options_for(session)
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
                turns = [*messages, {"role": "user", "content": line}]
                prompt = Prompt(messages=tuple(turns))
                try:
                    text, _, _ = stream_reply(session, prompt, max_tokens, sampling, options, show=True)
                except InputError as error:  # too long, say: the conversation goes on without it
                    say(f"sideplug: {error}")
                    continue
                messages = [*turns, {"role": "assistant", "content": text}]
                source = f"{session.usage.source}\n" if session.usage.source else ""
                click.echo(f"\n{click.style(source + session.usage.line, dim=True)}")


@command("audit", "sideplug audit session.sp --plugin my-plugin")
@click.argument("transcript", type=FOLDER, metavar="FILE")
@plugin_option
@json_option
def audit(transcript: Path, folder: Path | None, as_json: bool) -> None:
    """Show what left this device, from a transcript.

    FILE is what any command's --transcript wrote. All that left and all that came is told, byte for byte.

    Exit code 1: the transcript holds a parameter of the plugin, or bytes that no field explains.
    """
    from sideplug.device import audit as audits

    report = audits.report(audits.read(transcript), load_plugin_if(folder))
    if as_json:
        print_json(report.to_json())
    else:
        for line in report.lines():
            tell(line)
    if not report.clean:
        raise Stopped("the transcript has what must not be in it")
