"""A fleet: a base model on many machines, by Ray Serve. Each replica is a Service, with an engine of its own.

    serve run sideplug.cloud.ray_serve:app model=smollm2-135m keys=/shared/keys.json min_replicas=2 max_replicas=8

A WebSocket stays with the replica where it was opened. When that replica ends, its devices come back to another, and
their replies go on there (docs/WIRE.md, after a break), so replicas need not know of each other. docs/FLEET.md says how
it is run. Test: pytest -m slow tests/slow/test_ray.py
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

from sideplug.cloud import asgi, fleet, logs
from sideplug.cloud.config import ServeConfig
from sideplug.contract.errors import Stopped

NAME = "sideplug"
LOCAL = "local"  # a Ray of our own, on this machine alone
LOOK_S = 0.25  # how often a replica asks whether it is to go
GRACE_S = 10.0  # behind the drain, for goodbyes, before Ray kills it
STORE_BYTES = 100 << 20  # of Ray's object store, which nothing of ours uses: the least that it takes, about
ENVIRONMENT = {
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "sideplug.cloud.flow_control.middlewares",
    "OPENBLAS_NUM_THREADS": "1",  # as in sideplug serve
}


class Replica:
    """One engine, its sessions, and the end of both."""

    def __init__(self, settings: dict[str, Any]) -> None:
        config = ServeConfig.parse(settings)
        logs.configure(config.log_level, as_json=False)
        self.service = fleet.replica(config)
        self._end = asyncio.create_task(self._await_the_end())

    def __serve_build_asgi_app__(self) -> Any:
        return asgi.app(self.service, queued=True)

    def check_health(self) -> None:
        """Asked by Ray, which replaces a replica that raises."""
        if self.service.thread.hangs:
            raise RuntimeError("the engine hangs")

    async def _await_the_end(self) -> None:
        """Ray waits for all connections to end, and tells nobody of us that it does: so we look."""
        while not _is_stopping():
            await asyncio.sleep(LOOK_S)
        if not self.service.thread.hangs:
            await self.service.drain()
        await self.service.end()


def _is_stopping() -> bool:
    """Whether Ray has told this process's replica to go. There is no public way to know (Ray 2.60)."""
    actors = getattr(ray._private.worker.global_worker, "actors", {})
    parts = [getattr(actor, "_replica_impl", None) for actor in actors.values()]
    return any(getattr(part, "_shutting_down", False) for part in parts)


def app(args: dict[str, Any]) -> Any:
    """The application, from `serve run`'s arguments or a config's (docs/FLEET.md). Raises InputError."""
    return build(ServeConfig.parse(args))


def build(config: ServeConfig) -> Any:
    """The Ray application of a fleet with these settings."""
    config.check_fleet()
    how: dict[str, Any] = {"num_replicas": config.min_replicas}
    if config.most_replicas > config.min_replicas:
        least, most = config.min_replicas, config.most_replicas
        scale = {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": config.target_sessions}
        how = {"autoscaling_config": scale}
    deployment: Any = serve.deployment(serve.ingress()(Replica)).options(
        **how,
        name=NAME,
        max_ongoing_requests=config.ongoing_requests,
        graceful_shutdown_timeout_s=config.drain_seconds + GRACE_S,
        graceful_shutdown_wait_loop_s=0.5,
        ray_actor_options={"num_cpus": config.cpus or config.threads or _machine_cpus()},
    )
    return deployment.bind(config.ray_arguments())


def _machine_cpus() -> float:
    """Of the smallest of the cluster's machines: a replica without a number of threads takes them all."""
    nodes = ray.nodes() if ray.is_initialized() else []
    return min((node["Resources"]["CPU"] for node in nodes if node["Resources"].get("CPU")), default=1.0)


def run(config: ServeConfig, host: str, port: int, tls: tuple[Path, Path] | None, ready: Callable[[], None]) -> None:
    """The fleet, on this machine or on the cluster that RAY_ADDRESS names, until SIGINT or SIGTERM.

    `tls`: certificate and key. `ready` is called when it serves. Raises Stopped.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers of us
    os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    address = os.environ.get("RAY_ADDRESS") or LOCAL
    cpus = math.ceil(config.most_replicas * (config.cpus or config.threads or 1))  # Ray counts, and does not look
    own: dict[str, Any] = {"num_cpus": cpus, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # Ray shows there what its processes say
        try:
            ray.init(address=address, logging_level=logging.ERROR, **(own if address == LOCAL else {}))
        except Exception as error:
            raise Stopped(f"Ray can't be started (or reached at {address}): {_last_line(error)}") from error
        try:
            _deploy(config, host, port, tls)
            stops = _Stops()
            with contextlib.redirect_stdout(out):
                ready()
            stops.wait()
            _undeploy(stops, config.drain_seconds + 2 * GRACE_S)
            if address != LOCAL and not stops.again:
                serve.shutdown()
        finally:
            ray.shutdown()


def _deploy(config: ServeConfig, host: str, port: int, tls: tuple[Path, Path] | None) -> None:
    with contextlib.suppress(ValueError):
        ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
        raise Stopped("this Ray cluster runs Ray Serve already: deploy there with serve run or serve deploy")
    options: dict[str, Any] = {"host": host, "port": port}
    if tls:
        options |= {"ssl_certfile": str(tls[0].resolve()), "ssl_keyfile": str(tls[1].resolve())}
    quiet = {"log_level": "WARNING"}
    environment = {"runtime_env": {"env_vars": ENVIRONMENT}}  # the proxies and replicas inherit it
    try:
        serve.start("EveryNode", options, logging_config=quiet, controller_options=environment)
        serve.run(build(config), name=NAME, logging_config=quiet)
    except Exception as error:
        raise Stopped(f"the fleet did not start: {_last_line(error, _what_replicas_said())}") from error


def _undeploy(stops: _Stops, most_s: float) -> None:
    """Let the replicas drain: `serve.shutdown` alone would wait for half a minute at most."""
    last = time.monotonic() + most_s
    serve.delete(NAME, _blocking=False)
    while NAME in serve.status().applications and time.monotonic() < last and not stops.again:
        time.sleep(LOOK_S)


class _Stops:
    """SIGINT and SIGTERM, counted from now on."""

    def __init__(self) -> None:
        self._first = threading.Event()
        self.again = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._hear)

    def _hear(self, number: int, frame: Any) -> None:
        self.again = self._first.is_set()
        self._first.set()

    def wait(self) -> None:
        while not self._first.wait(1.0):
            pass


def _what_replicas_said() -> str:
    try:
        return "\n".join(part.message for part in serve.status().applications[NAME].deployments.values())
    except Exception:  # there is none, or Ray is gone
        return ""


def _last_line(error: Exception, more: str = "") -> str:
    """What an error says in its end, or `more` in words of ours: Ray's begin with tracebacks of other processes."""
    said = [line.strip() for line in f"{more}\n{error}".splitlines() if line.strip()]
    ours = [line for line in said if re.match(r"sideplug\.[\w.]+: ", line)]
    return re.sub(r"^[\w.]+: ", "", (ours or said or [type(error).__name__])[-1])
