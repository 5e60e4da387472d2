"""A fleet: one base model served on many machines by Ray Serve. Each replica is a Service with an engine of its own.

    serve run sideplug.cloud.ray_serve:app model=smollm2-135m keys=/shared/keys.json min_replicas=2 max_replicas=8

A WebSocket stays with the replica where it was opened. When that replica ends, its devices reconnect to another one and
resume their replies there (docs/WIRE.md, after a break), so replicas do not know each other. docs/FLEET.md says how to
run a fleet. Test: pytest -m slow tests/slow/test_ray.py
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
LOCAL = "local"  # start Ray on this machine only
POLL_S = 0.25  # how often a replica checks whether it must stop, and `run` whether all have
GRACE_S = 10.0  # how long a replica may close connections after its drain, before Ray kills it
STORE_BYTES = 100 << 20  # Ray's object store, which nothing here uses: about the smallest that Ray accepts
ENVIRONMENT = {
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "sideplug.cloud.flow_control.middlewares",
    "OPENBLAS_NUM_THREADS": "1",  # as in sideplug serve
}


class Replica:
    """One replica: a Service that ends when Ray stops the replica."""

    def __init__(self, settings: dict[str, Any]) -> None:
        config = ServeConfig.parse(settings)
        logs.configure(config.log_level, as_json=False)
        self.service = fleet.replica(config)
        self._end = asyncio.create_task(self._await_the_end())

    def __serve_build_asgi_app__(self) -> Any:
        """Return the replica's ASGI app; Ray calls this."""
        return asgi.app(self.service, queued=True)

    def check_health(self) -> None:
        """Ray calls this and replaces a replica that raises. Raises RuntimeError when the engine hangs."""
        if self.service.thread.hangs:
            raise RuntimeError("the engine hangs")

    async def _await_the_end(self) -> None:
        """Drain when Ray stops the replica: Ray waits for the connections to end but calls nothing, so this polls."""
        while not _is_stopping():
            await asyncio.sleep(POLL_S)
        if not self.service.thread.hangs:
            await self.service.drain()
        await self.service.end()


def _is_stopping() -> bool:
    """Return whether Ray is stopping this process's replica. Ray 2.60 has no public way to tell."""
    actors = getattr(ray._private.worker.global_worker, "actors", {})
    parts = [getattr(actor, "_replica_impl", None) for actor in actors.values()]
    return any(getattr(part, "_shutting_down", False) for part in parts)


def app(args: dict[str, Any]) -> Any:
    """Return the application for the arguments of `serve run` or of a config (docs/FLEET.md). Raises InputError."""
    return build(ServeConfig.parse(args))


def build(config: ServeConfig) -> Any:
    """Return the Ray application of a fleet with these settings."""
    config.check_fleet()
    scaling: dict[str, Any] = {"num_replicas": config.min_replicas}
    if config.most_replicas > config.min_replicas:
        limits = {"min_replicas": config.min_replicas, "max_replicas": config.most_replicas}
        scaling = {"autoscaling_config": {**limits, "target_ongoing_requests": config.target_sessions}}
    deployment: Any = serve.deployment(serve.ingress()(Replica)).options(
        **scaling,
        name=NAME,
        max_ongoing_requests=config.ongoing_requests,
        graceful_shutdown_timeout_s=config.drain_seconds + GRACE_S,
        graceful_shutdown_wait_loop_s=0.5,
        ray_actor_options={"num_cpus": config.cpus or config.threads or _machine_cpus()},
    )
    return deployment.bind(config.ray_arguments())


def _machine_cpus() -> float:
    """Return the CPUs of the cluster's smallest machine: a replica takes all of them if the config names no number."""
    nodes = ray.nodes() if ray.is_initialized() else []
    return min((node["Resources"]["CPU"] for node in nodes if node["Resources"].get("CPU")), default=1.0)


def run(config: ServeConfig, host: str, port: int, tls: tuple[Path, Path] | None, ready: Callable[[], None]) -> None:
    """Run the fleet on this machine, or on the cluster of RAY_ADDRESS, until SIGINT or SIGTERM.

    `tls`: files of certificate and key. `ready` is called when the fleet serves. Raises Stopped.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # otherwise Ray reports its use to its makers
    os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    address = os.environ.get("RAY_ADDRESS") or LOCAL
    cpus = math.ceil(config.most_replicas * (config.cpus or config.threads or 1))  # Ray only counts them
    resources: dict[str, Any] = {"num_cpus": cpus, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # Ray writes its processes' output there
        try:
            ray.init(address=address, logging_level=logging.ERROR, **(resources if address == LOCAL else {}))
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
        raise Stopped(f"the fleet did not start: {_last_line(error, _replica_messages())}") from error


def _undeploy(stops: _Stops, timeout_s: float) -> None:
    """Wait until the replicas have drained: `serve.shutdown` alone would wait for half a minute at most."""
    deadline = time.monotonic() + timeout_s
    serve.delete(NAME, _blocking=False)
    while NAME in serve.status().applications and time.monotonic() < deadline and not stops.again:
        time.sleep(POLL_S)


class _Stops:
    """Counts SIGINT and SIGTERM. again: there was a second one."""

    def __init__(self) -> None:
        self._first = threading.Event()
        self.again = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: Any) -> None:
        self.again = self._first.is_set()
        self._first.set()

    def wait(self) -> None:
        """Wait for the first signal."""
        while not self._first.wait(1.0):
            pass


def _replica_messages() -> str:
    try:
        return "\n".join(part.message for part in serve.status().applications[NAME].deployments.values())
    except Exception:  # there is no such application, or Ray is gone
        return ""


def _last_line(error: Exception, more: str = "") -> str:
    """Return an error's last line, or a sideplug error in it or in `more`: Ray's errors begin with tracebacks."""
    lines = [line.strip() for line in f"{more}\n{error}".splitlines() if line.strip()]
    ours = [line for line in lines if re.match(r"sideplug\.[\w.]+: ", line)]
    return re.sub(r"^[\w.]+: ", "", (ours or lines or [type(error).__name__])[-1])
