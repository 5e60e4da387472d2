"""sideplug serve: a cloud, or a fleet of them. Its options are the fields of cloud/config.ServeConfig.

Test: pytest tests/test_cli.py tests/test_cli_keys.py tests/cloud/test_fleet.py
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.util
import os
import socket
import ssl
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sideplug.cli.cloud import check_cloud_packages
from sideplug.cli.common import DEFAULT_MODEL, command, gathered, json_option, option, print_json
from sideplug.cloud.config import COMMAND, ServeConfig, Setting, settings
from sideplug.contract.errors import InputError
from sideplug.sockets import LOOPBACK
from sideplug.terminal import say

if TYPE_CHECKING:
    from sideplug.cloud.keys import Keys

Ready = Callable[[str, str, str], None]  # (url, engine, how it runs)


@dataclasses.dataclass(frozen=True)
class Tls:
    """The files of a certificate and its private key; pin: what devices are told of one that nobody signed."""

    cert: Path
    key: Path
    pin: str = ""

    def context(self) -> ssl.SSLContext:
        """For a server. Raises InputError for files that can't be used."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.cert, self.key)
        except OSError as error:
            raise InputError(f"the certificate {self.cert} and key {self.key} can't be used: {error}") from error
        return context


def click_option(about: Setting) -> Any:
    """The option of `sideplug serve` that a field of ServeConfig makes."""
    more: dict[str, Any] = {"help": about.help, "default": about.default}
    if about.choices:
        more["type"] = click.Choice(about.choices)
    elif about.is_file:
        more |= {"type": click.Path(), "default": None}
    elif about.kind is bool:
        more["is_flag"] = True
    elif about.kind in (int, float):
        kind: Any = click.IntRange if about.kind is int else click.FloatRange
        least = about.least if about.above is None else about.above
        more["type"] = kind(least, None if about.most == float("inf") else about.most, min_open=about.above is not None)
    if about.metavar:
        more["metavar"] = about.metavar
    # SIDEPLUG_KEYS is read by paths.keys_file, for all commands that have --keys.
    return option("--" + about.name.replace("_", "-"), env=about.name != "keys", **more)


def config_of(model: str, **values: Any) -> ServeConfig:
    """The config that the options make; a file that is not given is ""."""
    given: dict[str, Any] = {name: "" if value is None else value for name, value in values.items()}
    return ServeConfig(model, **given)


OFFERED = [about for about in settings(COMMAND) if about.name != "model"]


@command("serve", "sideplug serve smollm2-135m --port 8765")
@click.argument("model", default=DEFAULT_MODEL)
@gathered("config", config_of, map(click_option, OFFERED), ["model", *(about.name for about in OFFERED)])
@json_option
def serve(config: ServeConfig, as_json: bool) -> None:
    """Serve a base model to everybody's plugins, until stopped.

    Whoever connects must show a key (sideplug keys). Devices on this machine have one already, unless --keys is given.
    Beyond this machine there must be TLS too. Ctrl-C (or SIGTERM) finishes the replies under way; a second one does
    not.
    """
    check_options(config)
    keys = keys_to_check(config)
    started = time.perf_counter()
    # NumPy's part of a step is small, and its threads would fight with the model's: 5 ms where one takes 1.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from sideplug.cloud import logs

    logs.configure(config.log_level, config.log_json)
    tls = certificate_of(config)
    context = tls.context() if tls else None
    check_cloud_packages()
    from sideplug.cloud.start import Parts
    from sideplug.cloud.store import find
    from sideplug.sockets import bind

    parts = Parts.of(config)
    listener = bind(config.host, config.port)  # a port that is taken is said before the model is loaded
    base = find(config.model, say)

    def ready(url: str, engine: str, how: str) -> None:
        seconds = round(time.perf_counter() - started, 2)
        pin = tls.pin if tls else ""
        if as_json:
            about = {"model": base.name, "fingerprint": base.fingerprint, "engine": engine, "how": how}
            print_json({"url": url, **about, "start_s": seconds, **({"pin": pin} if pin else {})})
        else:
            click.echo(f"sideplug serves {base.name} ({base.fingerprint[:12]}) at {url} — ready in {seconds:.1f} s")
            click.echo(how)
            if pin:
                click.echo(f"its certificate is its own; a device needs --pin {pin}")
        sys.stdout.flush()

    if config.ray:
        serve_fleet(fleet_config(config, keys), listener, tls, ready)
        return
    from sideplug.cloud.server import CloudServer

    server, opened = parts.service(CloudServer, base, keys, say)

    async def run() -> None:
        ready(await server.start(listener, context), opened.engine, f"{opened.engine} engine, {opened.description}")
        await server.serve_until_stopped()

    asyncio.run(run())


def check_options(config: ServeConfig) -> None:
    """Raises InputError for options that can't be given together, and for what --ray can't do."""
    if bool(config.tls_cert) != bool(config.tls_key):
        raise InputError("--tls-cert and --tls-key must be given together")
    if config.tls_cert and config.tls_self:
        raise InputError("--tls-self and --tls-cert can't be given together: one certificate is served")
    if not config.ray:
        if config.replicas or config.max_replicas:
            raise InputError("--replicas and --max-replicas are of a fleet: give --ray too")
        return
    if not importlib.util.find_spec("ray"):
        raise InputError("--ray needs the package ray: pip install 'sideplug[ray]'")
    if config.replicas and config.max_replicas:
        raise InputError("--replicas and --max-replicas can't be given together: a fleet has a fixed size, or grows")
    if config.device != "cpu":
        raise InputError(f"--ray runs on CPUs: leave out --device {config.device}")
    if config.log_json:
        raise InputError("--log-json can't be given with --ray, which begins each line with whose it is")


def certificate_of(config: ServeConfig) -> Tls | None:
    """The certificate to serve with: the one given, or one of the server's own; None without TLS. Raises InputError."""
    if config.tls_self:
        from sideplug.cloud import certificate
        from sideplug.paths import own_certificate_file

        own = certificate.self_signed(own_certificate_file(), config.host)
        return Tls(own.file, own.file, own.fingerprint)
    return Tls(Path(config.tls_cert), Path(config.tls_key)) if config.tls_cert else None


def keys_to_check(config: ServeConfig) -> Keys | None:
    """The keys that may come in; None: everybody may. Raises InputError where they, or TLS, are missing."""
    from sideplug.cloud.keys import Keys
    from sideplug.paths import keys_file, local_key_file

    given = config.keys or os.environ.get("SIDEPLUG_KEYS")
    if config.insecure and not given:
        return None
    keys = Keys(Path(config.keys) if config.keys else keys_file())
    local = config.host in LOOPBACK
    if local and not config.keys and not config.insecure:
        keys.keep_local(local_key_file())
    if not local and not config.insecure:
        has_tls = config.tls_cert or config.tls_self
        missing = [] if has_tls else ["TLS (--tls-cert and --tls-key, or --tls-self)"]
        if all(key.revoked for key in keys.listed()):
            missing.append(f"keys (there are none in {keys.path}: sideplug keys add NAME)")
        if missing:
            needed = " and ".join(missing)
            raise InputError(f"--host {config.host} is beyond this machine: it needs {needed}, or --insecure")
    if given and not keys.path.exists():
        raise InputError(f"there is no keys file {keys.path}: sideplug keys add NAME --keys {keys.path} makes one")
    return keys


def fleet_config(config: ServeConfig, keys: Keys | None) -> ServeConfig:
    """The settings of each replica: with the keys that were found, and its part of the machine if all run on it."""
    from sideplug.cloud.fleet import share_machine, with_full_paths

    replicas = dataclasses.replace(
        config, keys=str(keys.path) if keys else "", insecure=keys is None, min_replicas=config.replicas or 1
    )
    replicas.check_fleet()
    replicas = with_full_paths(replicas)
    return replicas if os.environ.get("RAY_ADDRESS") else share_machine(replicas)


def serve_fleet(config: ServeConfig, listener: socket.socket, tls: Tls | None, ready: Ready) -> None:
    """Run a fleet until it is stopped. The address that was reserved is given back, for Ray to take."""
    from sideplug.cloud import ray_serve

    (host, port), most = listener.getsockname()[:2], config.most_replicas
    listener.close()
    url = f"{'wss' if tls else 'ws'}://{f'[{host}]' if ':' in host else host}:{port}"
    number = f"{config.min_replicas} to {most}" if most > config.min_replicas else str(most)
    threads = f", {config.threads} thread{'s' * (config.threads != 1)} each" if config.threads else ""
    files = (tls.cert, tls.key) if tls else None
    ray_serve.run(config, host, port, files, lambda: ready(url, "ray", f"a fleet of {number}{threads}"))
