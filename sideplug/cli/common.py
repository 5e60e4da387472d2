"""What the commands share: options, and what their values become. It imports the one room that a command needs."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sideplug import __version__
from sideplug.contract.errors import InputError, PluginError
from sideplug.terminal import progress, say

if TYPE_CHECKING:
    from sideplug.contract.gate import Gate
    from sideplug.contract.sampling import Sampling
    from sideplug.contract.text import Prompt
    from sideplug.device.address import Address
    from sideplug.device.plugin import Plugin
    from sideplug.device.runtime import DecodeOptions, Session

DEFAULT_MODEL = "smollm2-135m"
DEFAULT_CLOUD = "ws://127.0.0.1:8765"
FOLDER = click.Path(path_type=Path)
transcript: list[Callable[[str, bytes], None]] = []  # of this process, where --transcript asks for one


def option(*names: str, **settings: Any) -> Callable[[Any], Any]:
    """click.option, with its SIDEPLUG_… variable and its default shown in the help."""
    long = next(name for name in names if name.startswith("--")).split("/")[0]
    settings.setdefault("envvar", "SIDEPLUG_" + long.lstrip("-").replace("-", "_").upper())
    settings.setdefault("show_default", True)
    return click.option(*names, show_envvar=True, **settings)


def options(*several: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def apply(function: Any) -> Any:
        for decorator in reversed(several):
            function = decorator(function)
        return function

    return apply


trust_options = options(
    option("--cloud-key", default="", metavar="KEY", help="Yours, of that cloud. On this machine it needs none."),
    option("--ca", type=FOLDER, help="A PEM file to trust beside the system's certificates (wss)."),
    option("--pin", default="", metavar="SHA256", help="Trust this certificate alone: sha256:… (wss)."),
)


def cloud_options(function: Any) -> Any:
    """What says where the cloud is; the command gets it as one Address, `cloud`."""

    @functools.wraps(function)
    def with_address(cloud: str, ca: Path | None, cloud_key: str, pin: str, retry: float, **settings: Any) -> Any:
        from sideplug.device.address import Address

        return function(cloud=Address(cloud, ca, cloud_key, pin, retry), **settings)

    return options(
        option("--cloud", default=DEFAULT_CLOUD, metavar="URL", help="The cloud's address, ws:// or wss://."),
        trust_options,
        option(
            "--retry",
            default=60.0,
            type=click.FloatRange(0),
            metavar="SECONDS",
            help="How long a cloud is tried again that was lost in the middle; 0: not at all.",
        ),
        option(
            "--transcript",
            type=FOLDER,
            metavar="FILE",
            expose_value=False,
            callback=lambda context, _, path: _transcribe(path),
            help="Keep all messages with the cloud, for sideplug audit. It holds your words.",
        ),
    )(with_address)


keys_option = option(
    "--keys",
    "keys_path",
    type=FOLDER,
    envvar=None,
    metavar="FILE",
    help="The file of keys; none: SIDEPLUG_KEYS, or sideplug/keys.json in your configuration.",
)
json_option = option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
sampling_options = options(
    option("--max-tokens", default=256, help="Tokens of the reply at most."),
    option("--temperature", default=0.0, help="0 is greedy."),
    option("--top-k", default=0, help="Keep this many best tokens; 0: all."),
    option("--top-p", default=1.0, help="Keep the best tokens of this mass."),
    option("--repetition-penalty", default=1.0, help="Above 1 discourages what was said before."),
    option("--seed", default=0, help="The same seed gives the same text."),
)
limit_option = option(
    "--limit", default=0, type=click.IntRange(0), help="Use this many examples, drawn by seed; 0: all."
)
plugin_option = option("--plugin", "folder", type=FOLDER, metavar="DIR", help="The plugin's folder; none: the base.")
gate_options = options(
    option("--gate", type=click.Choice(["open", "shut"]), help="Overrides the plugin's gate."),
    option(
        "--gate-rate",
        type=click.FloatRange(0, 1),
        help="Share of the tokens that your plugin is asked about: 0 is the base, 1 every token.",
    ),
)
pace_options = options(
    option(
        "--ahead",
        default=24,
        type=click.IntRange(0, 32),
        help="Asks that may be open while the cloud goes on; 0: wait for each.",
    ),
    option("--lookahead/--no-lookahead", default=True, help="Send drafts from your phrases with the answers."),
    option(
        "--answer-deadline-ms",
        default=0,
        type=click.IntRange(0),
        help="After this the base's token is used instead of your plugin's; 0: never.",
    ),
    option(
        "--head",
        default="cloud",
        type=click.Choice(["cloud", "device"]),
        help="Where tokens of your plugin are picked; device: the base's head comes down once, tokens go up.",
    ),
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="sideplug")
def group() -> None:
    """A frozen LLM in the cloud, your side plugin on your device.

    Your plugin stays on your device; your text passes through the cloud, which keeps none of it.
    """


def command(name: str, example: str) -> Callable[[Any], Any]:
    return group.command(name, epilog=f"Example:  {example}")


def _transcribe(path: Path | None) -> None:
    if path is not None:
        from sideplug.device.audit import Recorder

        transcript.append(Recorder(path))


def load_plugin(folder: Path | None) -> Plugin | None:
    from sideplug.device.plugin import Plugin

    return Plugin.load(folder, lambda: passphrase_of(folder.name)) if folder else None


def passphrase_of(name: str, twice: bool = False) -> str:
    """SIDEPLUG_PASSPHRASE, or asked for on the terminal; "" where neither is to be had."""
    given = os.environ.get("SIDEPLUG_PASSPHRASE", "")
    if given or not sys.stdin.isatty():
        return given
    asked: str = click.prompt(f"Passphrase of {name}", hide_input=True, confirmation_prompt=twice, err=True)
    return asked


@contextlib.contextmanager
def open_session(
    cloud: Address, plugin: Plugin | None = None, gate: Gate | None = None, tap: Any = None
) -> Iterator[Session]:
    from sideplug.device.link import WebSocketLink
    from sideplug.device.reconnect import RetryPolicy
    from sideplug.device.runtime import Session

    connect = functools.partial(WebSocketLink.open, cloud, transcript[-1] if transcript else None)
    session = Session.open(connect(), plugin, tap, gate, connect, RetryPolicy(cloud.retry_s, say))
    try:
        yield session
    finally:
        session.link.close()


def chosen_gate(plugin: Plugin | None, kind: str | None, rate: float | None) -> Gate | None:
    """What --gate and --gate-rate ask for; None: the plugin's own. Raises InputError."""
    from sideplug.contract.gate import Gate

    if kind and rate is not None:
        raise InputError("--gate and --gate-rate can't be given together: --gate open is --gate-rate 1")
    if plugin is None:
        if kind == "open" or rate:
            raise PluginError(f"{'--gate open' if kind else '--gate-rate'} needs a --plugin to ask")
        return None
    return plugin.gate.at_rate(rate) if rate is not None else Gate(kind) if kind else None


def paced(settings: dict[str, Any]) -> dict[str, Any]:
    """Takes out of `settings` what pace_options gave."""
    return {name: settings.pop(name) for name in ("ahead", "lookahead", "answer_deadline_ms", "head")}


def chosen_pace(
    session: Session | None, ahead: int, lookahead: bool, answer_deadline_ms: int, head: str, needed: bool = False
) -> DecodeOptions:
    """With --head device the base's head comes down, unless it is here already or nobody needs it."""
    from sideplug.device.head import DeviceHead
    from sideplug.device.runtime import DecodeOptions

    own = None
    if head == "device" and session is not None and (session.plugin is not None or needed):
        from sideplug.paths import cache_dir

        model = session.model
        with progress("fetching the base's head, once", model.vocab) as show:
            own = DeviceHead.fetch(
                session.link, cache_dir() / "heads", model.fingerprint, model.vocab, lambda n: show(n, "")
            )
    return DecodeOptions(ahead, lookahead, answer_deadline_ms, own)


def chosen_sampling(settings: dict[str, Any]) -> tuple[int, Sampling]:
    from sideplug.contract.sampling import Sampling

    return settings.pop("max_tokens"), Sampling(**settings)


def check_utf8(text: str) -> str:
    """Python hands on bytes that are no text as lone surrogates; they can't be sent. Raises InputError."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError("what is given must be UTF-8 text") from error
    return text


def stream(
    session: Session, prompt: Prompt, max_tokens: int, sampling: Sampling, pace: DecodeOptions, show: bool
) -> tuple[str, list[int], bool]:
    """(text, ids, interrupted by Ctrl-C)."""
    text, ids, interrupted = [], [], False
    with contextlib.closing(session.generate(prompt, max_tokens, sampling, pace)) as pieces:
        try:
            for piece in pieces:
                text.append(piece.text)
                ids += piece.ids
                if show:
                    click.echo(piece.text, nl=False)
        except KeyboardInterrupt:
            interrupted = True
    return "".join(text), ids, interrupted


@contextlib.contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Ctrl-C (or SIGTERM) becomes a question that the work asks between its steps; a second one interrupts."""
    asked: list[int] = []

    def remember(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def peak_rss_mb() -> float | None:
    """This process's largest resident memory so far; None where the system does not tell (Windows)."""
    with contextlib.suppress(OSError):  # Linux: getrusage would also count the process that started this one
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024, 1)
    with contextlib.suppress(ImportError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1)
    return None


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, ensure_ascii=False))
