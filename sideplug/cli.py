"""The command line: parses, then imports the one room that a command needs.

Results go to standard output, progress and errors to the error stream. Exit codes: 0 done; 1 could not be done (cloud,
network, disk, interrupted); 2 what was given can't be used. Every option is also a SIDEPLUG_… variable.
Test: pytest tests/test_cli.py
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sideplug import __version__
from sideplug.contract.errors import InputError, PluginError, SideplugError, Stopped
from sideplug.listen import LOOPBACK
from sideplug.terminal import progress, say

if TYPE_CHECKING:
    from sideplug.cloud.keys import Keys
    from sideplug.contract.gate import Gate
    from sideplug.contract.sampling import Sampling
    from sideplug.contract.text import Prompt
    from sideplug.device.address import Address
    from sideplug.device.plugin import Plugin
    from sideplug.device.runtime import Pace, Session
    from sideplug.learn.make import Made
    from sideplug.learn.tape import Judged

DEFAULT_MODEL = "smollm2-135m"
DEFAULT_CLOUD = "ws://127.0.0.1:8765"
FOLDER = click.Path(path_type=Path)


def main(args: list[str] | None = None) -> None:
    """The entry point: one plain sentence and the exit code for whatever goes wrong."""
    try:
        code = group.main(args, prog_name="sideplug", standalone_mode=False)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "sideplug"
        say(f"sideplug: {error.format_message().rstrip('.')} (see {where} --help)")
        code = 2
    except click.ClickException as error:
        say(f"sideplug: {error.format_message()}")
        code = 2
    except SideplugError as error:
        say(f"sideplug: {error}")
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        say("sideplug: stopped")
        code = 1
    except BrokenPipeError:  # the reader of our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


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


@command("pull", "sideplug pull smollm2-135m")
@click.argument("model", default=DEFAULT_MODEL)
@json_option
def pull(model: str, as_json: bool) -> None:
    """Fetch a model and convert it, once: smollm2-135m, a hub id, a folder or a .gguf file."""
    _check_cloud_packages()
    from sideplug.cloud.store import find

    base = find(model, say)
    if as_json:
        _print_json({"name": base.name, "folder": str(base.folder), "fingerprint": base.fingerprint})
    else:
        click.echo(f"{base.name} is ready: {base.folder} (fingerprint {base.fingerprint[:12]})")


@command("serve", "sideplug serve smollm2-135m --port 8765")
@click.argument("model", default=DEFAULT_MODEL)
@option("--host", default="127.0.0.1", help="The address to listen on.")
@option("--port", default=8765, type=click.IntRange(0, 65535), help="0: any free one.")
@option("--tls-cert", type=FOLDER, help="The server's certificate, PEM; serves wss.")
@option("--tls-key", type=FOLDER, help="The certificate's private key, PEM.")
@option("--tls-self", is_flag=True, help="Sign a certificate of its own, once; devices get its --pin.")
@keys_option
@option("--insecure", is_flag=True, help="Demand no keys, and beyond this machine no TLS.")
@option(
    "--engine",
    default="auto",
    type=click.Choice(["auto", "onnx", "torch"]),
    help="onnx: fast on a CPU; torch: GPUs, and models that onnx does not know.",
)
@option(
    "--bits",
    default="auto",
    type=click.Choice(["auto", "4", "8", "16"]),
    help="Of the weights (onnx); auto: 8, or a GGUF's own 4; 16: as they are, not quantised.",
)
@option("--device", default="cpu", help="Where the model runs, as torch calls it: cpu, cuda, cuda:1.")
@option("--threads", default=0, type=click.IntRange(0), help="CPU threads; 0: as many as the process may use.")
@option(
    "--kv-memory",
    default=0.0,
    type=click.FloatRange(0),
    help="GiB for all texts in work (their KV caches); 0: half of what is free at the start.",
)
@option("--max-sessions", default=1024, type=click.IntRange(1), help="Connections at once.")
@option("--queue", default=64, type=click.IntRange(0), help="Texts that may wait for memory; more are sent away.")
@option(
    "--keep-seconds",
    default=600.0,
    type=click.FloatRange(0),
    help="How long a conversation's keys and values are kept for its next turn; 0: not at all.",
)
@option(
    "--shared-prefix",
    type=FOLDER,
    metavar="FILE",
    help="A system message that many use, to be run once for all; what keys share among themselves needs none.",
)
@option("--step-tokens", default=512, type=click.IntRange(3), help="Tokens of a step at most.")
@option("--drain-seconds", default=60.0, type=click.FloatRange(0), help="For replies under way when it is stopped.")
@option(
    "--log-level", default="warning", type=click.Choice(["debug", "info", "warning", "error"]), help="What is logged."
)
@option("--log-json", is_flag=True, help="Log JSON lines.")
@option("--ray", is_flag=True, help="A fleet by Ray Serve (docs/FLEET.md), here or on the cluster of RAY_ADDRESS.")
@option("--replicas", default=0, type=click.IntRange(0), help="Of a fleet; 0: one, or up to --max-replicas.")
@option("--max-replicas", default=0, type=click.IntRange(0), help="So many, as sessions come and go; 0: no more.")
@option(
    "--target-sessions", default=64.0, type=click.FloatRange(1), help="Of a replica, where their number may change."
)
@json_option
def serve(
    model: str,
    host: str,
    port: int,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_self: bool,
    keys_path: Path | None,
    insecure: bool,
    engine: str,
    bits: str,
    device: str,
    threads: int,
    kv_memory: float,
    max_sessions: int,
    queue: int,
    keep_seconds: float,
    shared_prefix: Path | None,
    step_tokens: int,
    drain_seconds: float,
    log_level: str,
    log_json: bool,
    ray: bool,
    replicas: int,
    max_replicas: int,
    target_sessions: float,
    as_json: bool,
) -> None:
    """Serve a base model to everybody's plugins, until stopped.

    Whoever connects must bear a key (sideplug keys). Devices on this machine have one by themselves, unless --keys is
    given. Beyond this machine there must be TLS too. Ctrl-C (or SIGTERM) finishes the replies under way; twice, it does
    not.
    """
    import asyncio
    import time

    if bool(tls_cert) != bool(tls_key):
        raise InputError("--tls-cert and --tls-key must be given together")
    if tls_cert and tls_self:
        raise InputError("--tls-self and --tls-cert can't be given together: one certificate is served")
    if not ray and (replicas or max_replicas):
        raise InputError("--replicas and --max-replicas are of a fleet: give --ray too")
    if ray:
        _check_fleet(replicas, max_replicas, device, log_json)
    keys = _keys_to_check(host, bool(tls_cert or tls_self), keys_path, insecure)
    started = time.perf_counter()
    # NumPy's part of a step is small, and its threads would fight with the model's: 5 ms where one takes 1.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from sideplug.cloud import logs

    logs.configure(log_level, log_json)
    tls, pin = _server_tls(tls_cert, tls_key) if tls_cert and tls_key else None, ""
    if tls_self:
        from sideplug.cloud import certificate
        from sideplug.paths import own_certificate_file

        own = certificate.own(own_certificate_file(), host)
        tls, pin = _server_tls(own.file, own.file), own.fingerprint
    _check_cloud_packages()
    from sideplug.cloud.engine import Engine, Room
    from sideplug.cloud.engines import Opened, Wanted, open_engine, read_prefix
    from sideplug.cloud.server import CloudServer
    from sideplug.cloud.service import Limits
    from sideplug.cloud.store import find
    from sideplug.listen import bind

    prefix = read_prefix(shared_prefix)
    wanted = Wanted(engine, bits, device, threads, int(kv_memory * 2**30))
    listener = bind(host, port)  # a port that is taken is said before the model is loaded
    base = find(model, say)

    def ready(url: str, engine: str, how: str) -> None:
        seconds = round(time.perf_counter() - started, 2)
        if as_json:
            about = {"model": base.name, "fingerprint": base.fingerprint, "engine": engine, "how": how}
            _print_json({"url": url, **about, "start_s": seconds, **({"pin": pin} if pin else {})})
        else:
            click.echo(f"sideplug serves {base.name} ({base.fingerprint[:12]}) at {url} — ready in {seconds:.1f} s")
            click.echo(how)
            if pin:
                click.echo(f"its certificate is its own; a device needs --pin {pin}")
        sys.stdout.flush()

    if ray:
        files = (own.file, own.file) if tls_self else (tls_cert, tls_key) if tls_cert and tls_key else None
        told = {"model": model, "engine": engine, "bits": bits, "threads": threads, "kv_memory": kv_memory}
        told |= {"max_sessions": max_sessions, "queue": queue, "keep_seconds": keep_seconds, "step_tokens": step_tokens}
        told |= {"drain_seconds": drain_seconds, "log_level": log_level, "insecure": keys is None}
        told |= {"keys": str(keys.path) if keys else "", "shared_prefix": str(shared_prefix or "")}
        told |= {"min_replicas": replicas or 1, "max_replicas": max_replicas, "target_sessions": target_sessions}
        _serve_fleet(told, listener, files, ready)
        return
    opened: list[Opened] = []

    def make_engine() -> Engine:
        model, made = open_engine(base, wanted, step_tokens, Room(queue, keep_s=keep_seconds), prefix, say)
        opened.append(model)
        return made

    server = CloudServer(base, make_engine, Limits(sessions=max_sessions, drain_s=drain_seconds), keys)
    how = f"{opened[0].engine} engine, {opened[0].how}"

    async def run() -> None:
        ready(await server.start(listener, tls), opened[0].engine, how)
        await server.serve_until_stopped()

    asyncio.run(run())


def _check_fleet(replicas: int, max_replicas: int, device: str, log_json: bool) -> None:
    """Raises InputError for what --ray can't do."""
    if not importlib.util.find_spec("ray"):
        raise InputError("--ray needs the package ray: pip install 'sideplug[ray]'")
    if replicas and max_replicas:
        raise InputError("--replicas and --max-replicas can't be given together: a fleet has a fixed size, or grows")
    if device != "cpu":
        raise InputError(f"--ray runs on CPUs: leave out --device {device}")
    if log_json:
        raise InputError("--log-json can't be given with --ray, which begins each line with whose it is")


def _serve_fleet(
    told: dict[str, Any],
    listener: socket.socket,
    tls: tuple[Path, Path] | None,
    ready: Callable[[str, str, str], None],
) -> None:
    """`told`: see cloud/fleet.Settings. The address that was reserved is given back for Ray to take."""
    from sideplug.cloud.fleet import Settings

    for name in ("model", "keys", "shared_prefix"):  # replicas run in other folders
        path = Path(told[name]).expanduser()
        told[name] = str(path.resolve()) if told[name] and path.exists() else told[name]
    settings = Settings(**told)
    if not os.environ.get("RAY_ADDRESS"):
        settings = settings.on_one_machine()
    (host, port), most = listener.getsockname()[:2], settings.most_replicas
    listener.close()
    url = f"{'wss' if tls else 'ws'}://{f'[{host}]' if ':' in host else host}:{port}"
    number = f"{settings.min_replicas} to {most}" if most > settings.min_replicas else str(most)
    threads = f", {settings.threads} thread{'s' * (settings.threads != 1)} each" if settings.threads else ""
    from sideplug.cloud import ray_serve

    ray_serve.run(settings, host, port, tls, lambda: ready(url, "ray", f"a fleet of {number}{threads}"))


def _keys_to_check(host: str, has_tls: bool, chosen: Path | None, insecure: bool) -> Keys | None:
    """The keys that may come in; None: everybody may. Raises InputError where they, or TLS, are missing."""
    from sideplug.cloud.keys import Keys
    from sideplug.paths import keys_file, local_key_file

    given = chosen or os.environ.get("SIDEPLUG_KEYS")
    if insecure and not given:
        return None
    keys = Keys(chosen or keys_file())
    local = host in LOOPBACK
    if local and not chosen and not insecure:
        keys.keep_local(local_key_file())
    if not local and not insecure:
        missing = [] if has_tls else ["TLS (--tls-cert and --tls-key, or --tls-self)"]
        if all(key.revoked for key in keys.listed()):
            missing.append(f"keys (there are none in {keys.path}: sideplug keys add NAME)")
        if missing:
            raise InputError(f"--host {host} is beyond this machine: it needs {' and '.join(missing)}, or --insecure")
    if given and not keys.path.exists():
        raise InputError(f"there is no keys file {keys.path}: sideplug keys add NAME --keys {keys.path} makes one")
    return keys


def _check_cloud_packages() -> None:
    """The cloud's packages are an extra: said before anything is fetched, where they are missing."""
    needed = ("onnx", "onnxruntime", "tokenizers", "gguf", "jinja2", "huggingface_hub", "prometheus_client")
    missing = [name for name in needed if not importlib.util.find_spec(name)]
    if missing:
        raise InputError(f"models need the cloud's packages ({', '.join(missing)}): pip install 'sideplug[cloud]'")


def _server_tls(cert: Path, key: Path) -> Any:
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert, key)
    except OSError as error:
        raise InputError(f"the certificate {cert} and key {key} can't be used: {error}") from error
    return context


@command("train", "sideplug train my-notes/ --out my-plugin")
@click.argument("data", type=FOLDER)
@option("--out", type=FOLDER, required=True, metavar="DIR", help="Where the plugin goes; its tape and checkpoint too.")
@cloud_options
@option("--format", "form", default="auto", help="auto, alpaca, messages, sharegpt or text.")
@limit_option
@option("--held-out", default=0.1, help="Share of the examples kept from training, to stop by.")
@option(
    "--kind",
    default="ladder",
    type=click.Choice(["ladder", "paper", "paper-added"]),
    help="Ours; the paper's, whose output replaces z; or that added to z.",
)
@option("--taps", default=9, type=click.IntRange(1, 256), help="Layers that are tapped.")
@option("--rank", default=64, type=click.IntRange(1), help="Width of a tapped layer's code.")
@option("--tap", "tap_name", help="A tap by name, or raw: every layer, unprojected, fp16.")
@option("--width", default=0, type=click.IntRange(0), help="The plugin's width; 0: 128 (ladder), 32 (paper).")
@option("--epochs", default=6, type=click.IntRange(1), help="Passes over the tape at most.")
@option("--learning-rate", default=1e-3, help="AdamW's peak rate.")
@option("--batch-tokens", default=64, type=click.IntRange(1), help="Tokens of a step, about.")
@option(
    "--candidates", default=4096, type=click.IntRange(1), help="Vocabulary rows of the candidate softmax, at least."
)
@option(
    "--general",
    type=FOLDER,
    metavar="FILE",
    help="Prompts, one a line or in any format, where your plugin is to be silent; none: sideplug's own list.",
)
@option(
    "--general-weight",
    default=1.0,
    type=click.FloatRange(0),
    help="Of staying the base on general text; 0: no general text, and a gate that is always open.",
)
@option("--seed", default=0, type=click.IntRange(0), help="Of the split, the start and the order.")
@option("--resume", is_flag=True, help="Go on from the checkpoint in --out.")
@option("--force", is_flag=True, help="Replace a plugin that is in --out.")
@json_option
def train(data: Path, out: Path, cloud: Address, form: str, held_out: float, **settings: Any) -> None:
    """Train a plugin on your files (text, alpaca, OpenAI messages, ShareGPT), on this device.

    Ctrl-C keeps a checkpoint; the same command with --resume goes on from it.

    The cloud reads each example once, for the tape; it keeps none of it. The plugin is made here and stays here.
    """
    from sideplug.device.plugin import WEIGHTS, is_sealed
    from sideplug.learn import data as files
    from sideplug.learn.make import Recipe, Texts, make
    from sideplug.learn.trainer import Settings

    as_json, seed = settings["as_json"], settings["seed"]
    if (out / WEIGHTS).exists() and not (settings["force"] or settings["resume"]):
        raise InputError(f"{out} already holds a plugin: give another --out, or --force to replace it")
    if is_sealed(out):
        raise InputError(f"{out} holds a sealed plugin: unlock it first, or give another --out")
    examples = files.some(files.read(data, form, skip=out), settings["limit"], seed)
    training, held = files.split(examples, held_out, seed)
    silent = files.general(settings["general"]) if settings["general_weight"] else []
    near = files.near_misses(training) if silent and not settings["general"] else []
    first = training[0]
    start = " ".join(((first.prompt.messages or ({"content": ""},))[-1]["content"] + " ⟶ " + first.reply).split())
    say(f"{len(training)} examples to train on, {len(held)} held out; {first.where}: {start[:100]}…")
    hyper = Settings(
        settings["epochs"],
        settings["learning_rate"],
        settings["batch_tokens"],
        seed=seed,
        general_weight=settings["general_weight"],
    )
    chosen = {name: settings[name] for name in ("kind", "taps", "rank", "width", "candidates")}
    recipe = Recipe(**chosen, tap=settings["tap_name"] or "", training=hyper)
    texts = Texts(training, held, silent, near)
    connect = lambda tap: _session(cloud, tap=tap)  # noqa: E731
    made = make(connect, texts, out, recipe, progress, _interrupts, settings["resume"], say)
    if as_json:
        about = {"parameters": made.plugin.size, "tap": made.plugin.tap.name, "peak_rss_mb": _peak_rss_mb()}
        _print_json({"plugin": str(out), **about, **made.plugin.about})
    else:
        click.echo(_learnt(made, out))


def _learnt(made: Made, out: Path) -> str:
    """One line on what training reached."""
    result, gated = made.result, made.gated
    gain = result.best_loss - result.base_loss
    learnt = f"held-out loss {result.base_loss:.3f} → {result.best_loss:.3f} nats a token ({gain:+.3f})"
    if gain >= 0:
        learnt = (
            f"nothing that helps on held-out text (loss {result.base_loss:.3f}): the plugin leaves the base as it is"
        )
    if gated:
        ours, others = gated["personal"], gated["general"]
        learnt += (
            f", gated {ours['gated']:.3f}; the gate opens for {ours['rate']:.0%} of your tokens and for "
            f"{others['rate']:.1%} of general ones (loss there {others['base']:.3f} → {others['gated']:.3f})"
        )
    return (
        f"learnt from {result.tokens:,} tokens in {result.seconds:.0f} s: {learnt}; "
        f"{made.plugin.size / 1e6:.2f} M parameters in {out}"
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

    wanted = _paced(settings)
    max_tokens, sampling = _sampling(settings)
    if prompt is None or prompt == "-":
        prompt = "" if sys.stdin.isatty() else sys.stdin.read()
    _check_utf8(prompt)
    if not prompt.strip():
        raise InputError("the prompt is empty: give it as an argument or on standard input")
    if raw:
        asked = Prompt(text=prompt)
    else:
        start = [{"role": "system", "content": system}] if system else []
        asked = Prompt(messages=(*start, {"role": "user", "content": prompt}))
    plugin = _load(folder)
    with _session(cloud, plugin, _gate(plugin, gate, gate_rate)) as session:
        pace = _pace(session, **wanted)
        text, ids, interrupted = _stream(session, asked, max_tokens, sampling, pace, show=not as_json)
        if as_json:
            about = {"text": text, "ids": ids, "model": session.model.name, "usage": session.usage.to_json()}
            _print_json({**about, "plugin": str(folder) if folder else None, "peak_rss_mb": _peak_rss_mb()})
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
    wanted = _paced(settings)
    max_tokens, sampling = _sampling(settings)
    plugin = _load(folder)
    start = [{"role": "system", "content": system}] if system else []
    messages = list(start)
    with _session(cloud, plugin, _gate(plugin, gate, gate_rate)) as session:
        pace = _pace(session, **wanted)
        who = f"your plugin {folder}" if folder else "no plugin"
        say(f"{session.model.name} with {who}. Ctrl-D ends, /new starts afresh.")
        while True:
            try:
                line = _check_utf8(input("> " if sys.stdin.isatty() else "").strip())
            except EOFError:
                break
            if line in ("/quit", "/exit"):
                break
            if line == "/new":
                messages = list(start)
            elif line:
                asked = [*messages, {"role": "user", "content": line}]
                try:
                    text, _, _ = _stream(session, Prompt(messages=tuple(asked)), max_tokens, sampling, pace, show=True)
                except InputError as error:  # too long, say: the conversation goes on without it
                    say(f"sideplug: {error}")
                    continue
                messages = [*asked, {"role": "assistant", "content": text}]
                click.echo(f"\n{click.style(session.usage.line, dim=True)}")


@command("eval", "sideplug eval held-out.txt --plugin my-plugin")
@click.argument("data", type=FOLDER)
@option("--plugin", "folder", type=FOLDER, required=True, metavar="DIR", help="The plugin's folder.")
@cloud_options
@option("--format", "form", default="auto", help="auto, alpaca, messages, sharegpt or text.")
@limit_option
@json_option
def evaluate(data: Path, folder: Path, cloud: Address, form: str, limit: int, as_json: bool) -> None:
    """Loss on DATA, of the base, with the plugin at every token and gated: exact, over the whole vocabulary."""
    import numpy as np

    plugin, judged, examples = _judge(data, folder, cloud, form, limit)
    opens = plugin.gate.opens(plugin.gate.scores(judged.z_TD, judged.starts))
    gated = np.where(opens, judged.plugin, judged.base)
    found = {"base": judged.base, "plugin": judged.plugin, "gated": gated}
    result: dict[str, Any] = {"examples": examples, "tokens": len(judged.base)}
    result |= {f"{name}_loss": round(float(-logp.mean()), 5) for name, logp in found.items()}
    result |= {f"{name}_perplexity": round(float(np.exp(-logp.mean())), 3) for name, logp in found.items()}
    result["gate_rate"] = round(float(opens.mean()), 5)
    if as_json:
        _print_json(result)
        return
    base = result["base_loss"]
    click.echo(
        f"loss {base:.3f} → {result['plugin_loss']:.3f} nats a token ({result['plugin_loss'] - base:+.3f}), gated "
        f"{result['gated_loss']:.3f} ({result['gated_loss'] - base:+.3f}) with the gate open for {opens.mean():.1%}; "
        f"{len(judged.base):,} tokens of {examples} examples"
    )


def _judge(data: Path, folder: Path, cloud: Address, form: str, limit: int) -> tuple[Plugin, Judged, int]:
    """(plugin, what it makes of the data, how many examples)."""
    from sideplug.learn import data as files
    from sideplug.learn import tape

    plugin = _load(folder)
    assert plugin is not None
    examples = files.some(files.read(data, form), limit)
    with _session(cloud, plugin) as session, progress("evaluating", len(examples)) as show:
        return plugin, tape.score(session, examples, lambda done: show(done, "")), len(examples)


@group.group("gate")
def gate_group() -> None:
    """Look at a plugin's gate."""


@gate_group.command(
    "curve", epilog="Example:  sideplug gate curve --plugin my-plugin --data held-out.txt --picture curve.png"
)
@option("--plugin", "folder", type=FOLDER, required=True, metavar="DIR", help="The plugin's folder.")
@option("--data", type=FOLDER, required=True, help="Text that the plugin was not trained on.")
@cloud_options
@option("--format", "form", default="auto", help="auto, alpaca, messages, sharegpt or text.")
@limit_option
@option("--picture", type=FOLDER, metavar="FILE", help="Draw the curve: .png, .svg or .pdf.")
@json_option
def gate_curve(
    folder: Path, data: Path, cloud: Address, form: str, limit: int, picture: Path | None, as_json: bool
) -> None:
    """Quality against traffic over the gate's dial, beside a random gate of the same rate."""
    from sideplug.learn import gate

    if picture:
        gate.check_picture(picture)
    loaded = _load(folder)
    if loaded is not None and loaded.gate.kind != "linear":
        raise PluginError(f"the gate of {folder} is {loaded.gate.kind}: it has no dial (train it with general text)")
    plugin, judged, examples = _judge(data, folder, cloud, form, limit)
    points = gate.curve(plugin.gate, judged, plugin.tap)
    rate, loss = gate.at(plugin.gate, judged)
    if picture:
        gate.draw(points, (rate, loss), f"{folder.name} on {data.name}", picture)
    if as_json:
        about = {"examples": examples, "tokens": len(judged.base), "points": gate.to_json(points)}
        _print_json({**about, "default": {"rate": round(rate, 5), "loss": round(loss, 5)}})
        return
    click.echo("rate   opened    loss   random   bytes down   up   round trips   (a token, nothing run ahead)")
    for p in points:
        losses = f"{p.loss:7.3f}  {p.random_loss:7.3f}"
        traffic = f"{p.bytes_down:12.0f} {p.bytes_up:4.0f} {p.round_trips:13.2f}"
        click.echo(f"{p.asked_for:<6g} {p.rate:6.1%} {losses} {traffic}")
    click.echo(f"default {rate:6.1%} {loss:6.3f}   over {len(judged.base):,} tokens of {examples} examples")


@command("learn", "sideplug learn corrections.jsonl --plugin my-plugin")
@click.argument("data", type=FOLDER)
@option("--plugin", "folder", type=FOLDER, required=True, metavar="DIR", help="The plugin that learns on.")
@cloud_options
@option("--format", "form", default="auto", help="auto, alpaca, messages, sharegpt or text.")
@option("--epochs", default=6, type=click.IntRange(1), help="Passes over old and new examples at most.")
@option("--force", is_flag=True, help="Replace the plugin even where it does worse on what was held out before.")
@json_option
def learn(data: Path, folder: Path, cloud: Address, form: str, epochs: int, force: bool, as_json: bool) -> None:
    """Let a plugin learn more (replies that you liked, corrections, new notes), without forgetting.

    The cloud reads only what is new. A worse plugin does not replace a better one; plugin rollback goes back.
    """
    from sideplug.learn import data as files
    from sideplug.learn import more

    connect = lambda tap: _session(cloud, tap=tap)  # noqa: E731
    learnt = more.learn(connect, folder, files.read(data, form), progress, _interrupts, epochs, force)
    if as_json:
        _print_json({"plugin": str(folder), **learnt.to_json()})
    else:
        click.echo(learnt.line)


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

    from sideplug.device.gateway import Gateway, Settings
    from sideplug.device.openai_api import Defaults
    from sideplug.device.plugin import is_sealed
    from sideplug.device.shelf import Shelf
    from sideplug.learn.teacher import Teacher
    from sideplug.listen import bind
    from sideplug.paths import plugins_dir

    if host not in LOOPBACK and not key:
        raise InputError(f"--host {host} is beyond this machine: give a --key that callers must bear")
    for folder in folders:
        _load(folder)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # a caller that hangs up in a reply is no event of ours
    listener = bind(host, port)
    passphrases = {folder.resolve().name: _passphrase(folder.name) for folder in folders if is_sealed(folder)}
    own = Shelf(shelf or plugins_dir(), folders, lambda name: passphrases.get(name) or _env_passphrase())
    teacher = Teacher(own, lambda tap: _session(cloud, tap=tap))
    wanted = _paced(settings)
    if wanted["head"] == "device":
        with _session(cloud) as session:
            pace = _pace(session, **wanted, needed=True)
    else:
        pace = _pace(None, **wanted)
    how = Settings(key, origins, () if host in LOOPBACK else (host,), pace=pace)
    how = dataclasses.replace(how, defaults=Defaults(max_tokens, temperature))

    def ready(url: str) -> None:
        names = [entry.name for entry in own.entries()]
        if as_json:
            _print_json({"url": url, "api": f"{url}/v1", "cloud": cloud.url, "plugins": names})
        else:
            click.echo(f"sideplug's gateway is at {url}/v1 (OpenAI's API), its page at {url}/ — Ctrl-C ends it")
            click.echo(f"plugins: {', '.join(names) or 'none yet, teach one on the page'}; cloud: {cloud.url}")
        sys.stdout.flush()

    record = _transcript[-1] if _transcript else None
    asyncio.run(Gateway(own, cloud, how, teacher, record).serve(listener, ready))


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

    report = audits.report(audits.read(transcript), _load(folder))
    if as_json:
        _print_json(report.to_json())
    else:
        for line in report.lines():
            click.echo(line)
    if not report.clean:
        raise Stopped("the transcript has what must not be in it")


@command("top", "sideplug top wss://mill.example:8765 --cloud-key sp-…")
@click.argument("url", default=DEFAULT_CLOUD)
@trust_options
@option("--every", default=2.0, type=click.FloatRange(0.1), metavar="SECONDS", help="Between two looks.")
@option("--once", is_flag=True, help="Look twice, show it and end; with --json always so.")
@json_option
def top(url: str, cloud_key: str, ca: Path | None, pin: str, every: float, once: bool, as_json: bool) -> None:
    """Watch a cloud at work: sessions, queue, memory, tokens, gate, answers, traffic. Ctrl-C ends it."""
    import time

    if not importlib.util.find_spec("prometheus_client"):
        raise InputError("top needs the cloud's packages: pip install 'sideplug[cloud]'")
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

    from sideplug.cloud.top import Now, Sample
    from sideplug.device.address import Address, get

    address = Address(url, ca, cloud_key, pin)

    def look() -> Sample:
        return Sample.read(get(address, "/metrics"), time.monotonic())

    def table(now: Now) -> Table:
        found = Table(title=url, title_justify="left", show_header=False, box=None)
        for name, value in now.rows():
            found.add_row(f"[bold]{name}[/]", value)
        return found

    old = look()
    if once or as_json:
        time.sleep(every)
        now = Now(look(), old)
        if as_json:
            _print_json({name: round(v, 6) if isinstance(v, float) else v for name, v in now.to_json().items()})
        else:
            Console().print(table(now))
        return
    with Live(table(Now(old)), auto_refresh=False, screen=sys.stdout.isatty()) as live:
        while True:
            time.sleep(every)
            new = look()
            live.update(table(Now(new, old)), refresh=True)
            old = new


@group.command("bench")
@click.argument("model", default=DEFAULT_MODEL)
@option("--quick", is_flag=True, help="Little of everything: ten minutes on two cores. Without: hours.")
@option(
    "--task",
    "tasks",
    multiple=True,
    type=click.Choice(["authors", "facts"]),
    help="Of these; may be repeated; none: both, or only your own with --data.",
)
@option("--data", type=FOLDER, metavar="FILE", help="A task of your own, in any format that training takes.")
@option("--system", "systems", multiple=True, metavar="NAME", help="Only these systems; may be repeated.")
@option(
    "--out",
    default="bench/results",
    envvar="SIDEPLUG_BENCH_OUT",
    type=FOLDER,
    metavar="DIR",
    help="Where results and reports go.",
)
@option("--report", "result", type=FOLDER, metavar="FILE", help="Only write a result's tables, page and pictures anew.")
@json_option
def bench(
    model: str,
    quick: bool,
    tasks: tuple[str, ...],
    data: Path | None,
    systems: tuple[str, ...],
    out: Path,
    result: Path | None,
    as_json: bool,
) -> None:
    """Compare ways to split and personalise MODEL, in one run, under one network.

    Ours, the paper's, LoRA in the cloud, the device alone, examples in the prompt, a round trip a layer: quality, speed
    over networks, bytes, memory, training. A run that was stopped goes on where it was. It serves the model itself.

    \b
        pip install 'sideplug[bench]'
        sideplug bench --quick
    """
    try:
        from sideplug_bench import main as run
    except ImportError as error:
        raise InputError(f"sideplug bench needs {error.name}: pip install 'sideplug[bench]'") from error
    if result:
        files = run.report(run.read(result), result)
    else:
        chosen = tasks or (() if data else run.TASKS)
        result, found = run.bench(model, "quick" if quick else "full", chosen, systems, data, out)
        files = run.report(found, result)
    if as_json:
        _print_json({"result": str(result), "report": [str(file) for file in files]})
    else:
        say(f"{result}\nthe page: {result.with_suffix('.html')}")


@group.group("keys")
def keys_group() -> None:
    """Say who may use your cloud. What is changed holds at once, without a restart."""


@keys_group.command("add", epilog="Example:  sideplug keys add ada")
@click.argument("name")
@option("--sessions", default=8, type=click.IntRange(0), help="Connections at once; 0: as many as the cloud has.")
@option("--tokens-per-minute", default=0, type=click.IntRange(0), help="Of prompts and replies; 0: no limit.")
@keys_option
def keys_add(name: str, sessions: int, tokens_per_minute: int, keys_path: Path | None) -> None:
    """Make a key for NAME and show it, this once: the file has only its hash."""
    click.echo(_keys(keys_path).add(name, sessions, tokens_per_minute))
    say(f"{name}'s device shows it as SIDEPLUG_CLOUD_KEY=… or --cloud-key …; it is not shown again")


@keys_group.command("list", epilog="Example:  sideplug keys list")
@keys_option
@json_option
def keys_list(keys_path: Path | None, as_json: bool) -> None:
    """The keys, by name, and what each may do. The keys themselves are kept nowhere."""
    keys = _keys(keys_path)
    found = [
        {"name": key.name, "id": key.id, "created": key.created, **vars(key.limits), "revoked": key.revoked or None}
        for key in keys.listed()
    ]
    if as_json:
        _print_json(found)
        return
    for key in found:
        tokens = f"{key['tokens_per_minute']:,} tokens a minute" if key["tokens_per_minute"] else "any tokens"
        limits = f"{key['sessions'] or 'any'} sessions, {tokens}"
        state = f"revoked {key['revoked'][:10]}" if key["revoked"] else f"since {key['created'][:10]}"
        click.echo(f"{key['name']:24} {key['id']}  {state:19} {limits}")
    if not found:
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


@group.group("plugin")
def plugin_group() -> None:
    """Look at plugins, and keep them in order."""


shelf_option = option("--plugins", "shelf", type=FOLDER, metavar="DIR", help="The folder of your plugins.")


def _shelf(folder: Path | None) -> Any:
    from sideplug.device.shelf import Shelf
    from sideplug.paths import plugins_dir

    return Shelf(folder or plugins_dir(), passphrase=_passphrase)


@plugin_group.command("list", epilog="Example:  sideplug plugin list")
@shelf_option
@json_option
def plugin_list(shelf: Path | None, as_json: bool) -> None:
    """The plugins of this device, as the gateway's page shows them."""
    entries = _shelf(shelf).entries()
    if as_json:
        _print_json([{"name": e.name, "folder": str(e.folder), "sealed": e.sealed} for e in entries])
        return
    for entry in entries:
        click.echo(f"{entry.name:24} {'sealed  ' if entry.sealed else ''}{entry.folder}")
    if not entries:
        say("sideplug: no plugins yet: sideplug train, or the gateway's page, makes one")


@plugin_group.command("export", epilog="Example:  sideplug plugin export my-plugin my-plugin.sideplug")
@click.argument("folder", type=FOLDER, metavar="DIR")
@click.argument("file", type=FOLDER, metavar="FILE")
@click.option("--seal", is_flag=True, help="With a passphrase (asked for, or SIDEPLUG_PASSPHRASE).")
def plugin_export(folder: Path, file: Path, seal: bool) -> None:
    """Write a plugin as one file, for your other device. Its tape stays here."""
    from sideplug.device import vault
    from sideplug.device.plugin import write_aside

    plugin = _load(folder)
    assert plugin is not None
    passphrase = _new_passphrase(file.name) if seal else ""
    try:
        write_aside(file, vault.seal(plugin.to_bytes(), passphrase))
    except OSError as error:
        raise Stopped(f"{file} could not be written: {error.strerror or error}") from error
    click.echo(f"{folder} is in {file}{', sealed' if seal else ''}")


@plugin_group.command("import", epilog="Example:  sideplug plugin import my-plugin.sideplug my-plugin")
@click.argument("file", type=FOLDER, metavar="FILE")
@click.argument("folder", type=FOLDER, metavar="DIR")
def plugin_import(file: Path, folder: Path) -> None:
    """Make a plugin's folder from a file that your other device exported."""
    from sideplug.device import vault
    from sideplug.device.plugin import Plugin

    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty: give another folder")
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file} can't be read: {error.strerror or error}") from error
    passphrase = _passphrase(file.name) if vault.is_sealed(data) else ""
    Plugin.from_bytes(vault.unseal(data, passphrase), str(file)).save(folder)
    click.echo(f"{file} is in {folder}")


@plugin_group.command("lock", epilog="Example:  sideplug plugin lock my-plugin")
@click.argument("folder", type=FOLDER, metavar="DIR")
def plugin_lock(folder: Path) -> None:
    """Seal a plugin and its tape on the disk with a passphrase; it is asked for wherever the plugin is used."""
    from sideplug.device.shelf import lock

    lock(folder, _new_passphrase(folder.name))
    click.echo(f"{folder} is sealed: there is no way in without the passphrase")


@plugin_group.command("unlock", epilog="Example:  sideplug plugin unlock my-plugin")
@click.argument("folder", type=FOLDER, metavar="DIR")
def plugin_unlock(folder: Path) -> None:
    """The opposite of lock."""
    from sideplug.device.shelf import unlock

    unlock(folder, _passphrase(folder.name))
    click.echo(f"{folder} is open")


@plugin_group.command("rollback", epilog="Example:  sideplug plugin rollback my-plugin")
@click.argument("folder", type=FOLDER, metavar="DIR")
def plugin_rollback(folder: Path) -> None:
    """The plugin as it was before it last learnt (sideplug learn)."""
    from sideplug.learn.more import rollback

    plugin = rollback(folder)
    click.echo(f"{folder} is again what {plugin.about.get('examples', '?')} examples made of it")


def _new_passphrase(name: str) -> str:
    passphrase = _passphrase(name, twice=True)
    if not passphrase:
        raise InputError("a passphrase must not be empty: set SIDEPLUG_PASSPHRASE, or type one on a terminal")
    return passphrase


@plugin_group.command("info", epilog="Example:  sideplug plugin info my-plugin")
@click.argument("folder", type=FOLDER, metavar="DIR")
@json_option
def plugin_info(folder: Path, as_json: bool) -> None:
    """What a plugin is: its base, tap, gate, size, and what its training reached."""
    plugin = _load(folder)
    assert plugin is not None
    about = {**plugin.config(), "parameters": plugin.size, "tap_bytes_per_token": plugin.tap.bytes_per_token}
    about["phrases_tokens"] = len(plugin.phrases)
    if as_json:
        _print_json(about)
        return
    for name in ("kind", "base_model_name_or_path", "base_fingerprint", "tap", "tap_bytes_per_token", "parameters"):
        click.echo(f"{name:24} {about[name]}")
    click.echo(f"{'gate':24} {plugin.gate.kind}")
    click.echo(f"{'phrases':24} {len(plugin.phrases):,} tokens, for the lookahead")
    for name, value in plugin.about.items():
        click.echo(f"{name:24} {value}")


_transcript: list[Callable[[str, bytes], None]] = []  # of this process, where --transcript asks for one


def _transcribe(path: Path | None) -> None:
    if path is not None:
        from sideplug.device.audit import Recorder

        _transcript.append(Recorder(path))


def _load(folder: Path | None) -> Plugin | None:
    from sideplug.device.plugin import Plugin

    return Plugin.load(folder, lambda: _passphrase(folder.name)) if folder else None


def _passphrase(name: str, twice: bool = False) -> str:
    """SIDEPLUG_PASSPHRASE, or asked for on the terminal; "" where neither is to be had."""
    given = os.environ.get("SIDEPLUG_PASSPHRASE", "")
    if given or not sys.stdin.isatty():
        return given
    asked: str = click.prompt(f"Passphrase of {name}", hide_input=True, confirmation_prompt=twice, err=True)
    return asked


@contextlib.contextmanager
def _session(
    cloud: Address, plugin: Plugin | None = None, gate: Gate | None = None, tap: Any = None
) -> Iterator[Session]:
    from sideplug.device.again import Again
    from sideplug.device.link import WebSocketLink
    from sideplug.device.runtime import Session

    connect = functools.partial(WebSocketLink.open, cloud, _transcript[-1] if _transcript else None)
    session = Session.open(connect(), plugin, tap, gate, connect, Again(cloud.retry_s, say))
    try:
        yield session
    finally:
        session.link.close()


def _gate(plugin: Plugin | None, kind: str | None, rate: float | None) -> Gate | None:
    """What --gate and --gate-rate ask for; None: the plugin's own. Raises InputError."""
    from sideplug.contract.gate import Gate

    if kind and rate is not None:
        raise InputError("--gate and --gate-rate can't be given together: --gate open is --gate-rate 1")
    if plugin is None:
        if kind == "open" or rate:
            raise PluginError(f"{'--gate open' if kind else '--gate-rate'} needs a --plugin to ask")
        return None
    return plugin.gate.at_rate(rate) if rate is not None else Gate(kind) if kind else None


def _paced(settings: dict[str, Any]) -> dict[str, Any]:
    """Takes out of `settings` what pace_options gave."""
    return {name: settings.pop(name) for name in ("ahead", "lookahead", "answer_deadline_ms", "head")}


def _pace(
    session: Session | None, ahead: int, lookahead: bool, answer_deadline_ms: int, head: str, needed: bool = False
) -> Pace:
    """With --head device the base's head comes down, unless it is here already or nobody needs it."""
    from sideplug.device.head import DeviceHead
    from sideplug.device.runtime import Pace

    own = None
    if head == "device" and session is not None and (session.plugin is not None or needed):
        from sideplug.paths import cache_dir

        model = session.model
        with progress("fetching the base's head, once", model.vocab) as show:
            own = DeviceHead.fetch(
                session.link, cache_dir() / "heads", model.fingerprint, model.vocab, lambda n: show(n, "")
            )
    return Pace(ahead, lookahead, answer_deadline_ms, own)


def _sampling(settings: dict[str, Any]) -> tuple[int, Sampling]:
    from sideplug.contract.sampling import Sampling

    return settings.pop("max_tokens"), Sampling(**settings)


def _check_utf8(text: str) -> str:
    """Python hands on bytes that are no text as lone surrogates; they can't be sent. Raises InputError."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError("what is given must be UTF-8 text") from error
    return text


def _stream(
    session: Session, prompt: Prompt, max_tokens: int, sampling: Sampling, pace: Pace, show: bool
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
def _interrupts() -> Iterator[Callable[[], bool]]:
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


def _peak_rss_mb() -> float | None:
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


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, ensure_ascii=False))


if __name__ == "__main__":
    main()
