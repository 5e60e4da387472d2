"""Commands of whoever serves a model: pull, serve, top."""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sideplug.contract.errors import InputError
from sideplug.listen import LOOPBACK
from sideplug.terminal import say

if TYPE_CHECKING:
    from sideplug.cloud.keys import Keys

from sideplug.cli.common import (
    DEFAULT_CLOUD,
    DEFAULT_MODEL,
    FOLDER,
    command,
    json_option,
    keys_option,
    option,
    print_json,
    trust_options,
)


@command("pull", "sideplug pull smollm2-135m")
@click.argument("model", default=DEFAULT_MODEL)
@json_option
def pull(model: str, as_json: bool) -> None:
    """Fetch a model and convert it, once: smollm2-135m, a hub id, a folder or a .gguf file."""
    _check_cloud_packages()
    from sideplug.cloud.store import find

    base = find(model, say)
    if as_json:
        print_json({"name": base.name, "folder": str(base.folder), "fingerprint": base.fingerprint})
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
    from sideplug.cloud.admission import AdmissionLimits
    from sideplug.cloud.engine import Engine
    from sideplug.cloud.engines import Opened, Wanted, open_engine, read_prefix
    from sideplug.cloud.host import Limits
    from sideplug.cloud.server import CloudServer
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
            print_json({"url": url, **about, "start_s": seconds, **({"pin": pin} if pin else {})})
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
        model, made = open_engine(base, wanted, step_tokens, AdmissionLimits(queue, keep_s=keep_seconds), prefix, say)
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
