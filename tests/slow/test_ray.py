"""A fleet of two on this machine, by Ray Serve, in real processes: one is killed, all are replaced, all go down.

Nothing of Ray is imported here: it has its own interpreters. Run: make test-slow (pip install 'sideplug[ray]')
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sideplug.cloud.keys import Keys
from sideplug.contract.errors import Unauthorized
from sideplug.contract.sampling import Sampling
from sideplug.contract.text import Prompt
from sideplug.device.link import WebSocketLink
from sideplug.device.reconnect import RetryPolicy
from sideplug.device.reply import DecodeOptions
from sideplug.device.session import Session
from tests.conftest import Cloud, a_link, a_plugin, a_session, eventually

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not here: pip install 'sideplug[ray]'"),
]
ROOT = Path(__file__).parent.parent.parent
DEVICES, REPLIES, TOKENS = 6, 2, 180
REDEPLOY = """
import os, sys, logging
import ray
from ray import serve
from sideplug.cloud import ray_serve
from sideplug.cloud.config import ServeConfig
ray.init(address="auto", logging_level=logging.ERROR, log_to_driver=False)
replica = {"bits": "16", "threads": 1, "kv_memory": 0.25, "queue": 63}
config = ServeConfig(model=sys.argv[1], keys=sys.argv[2], min_replicas=2, **replica)
serve.run(ray_serve.build(config), name=ray_serve.NAME)
"""

REPLICA = """
import asyncio, sys
from sideplug.cloud import host, ray_serve
async def main():
    settings = {"model": sys.argv[1], "insecure": True, "bits": 16, "threads": 1, "kv_memory": 0.25}
    replica = ray_serve.Replica(settings)
    replica.check_health()
    assert not ray_serve._is_stopping()
    host.HANGS_S = -1.0
    try:
        replica.check_health()
    except RuntimeError as error:
        print(error)
    replica._end.cancel()
asyncio.run(main())
"""


@dataclass
class Fleet:
    """`sideplug serve --ray` in a process; `home`: where its Ray lives, by which its processes are known."""

    process: subprocess.Popen[str]
    url: str
    key: str
    pin: str
    home: Path
    env: dict[str, str]
    keys: Path
    errors: Path

    def connect(self) -> WebSocketLink:
        return a_link(self.url, key=self.key, pin=self.pin)

    def session(self, plugin: Any, said: list[str]) -> Session:
        return a_session(self.connect(), plugin, connect=self.connect, retry=RetryPolicy(120.0, said.append))

    def health(self) -> dict[str, Any]:
        """Of whichever answers."""
        with self.get("/health", {"Authorization": f"Bearer {self.key}"}) as answer:
            found: dict[str, Any] = json.loads(answer.read())
            return found

    def get(self, path: str, headers: dict[str, str]) -> Any:
        trusting = ssl.create_default_context()
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
        request = urllib.request.Request(self.url.replace("wss:", "https:") + path, headers=headers)
        return urllib.request.urlopen(request, timeout=10, context=trusting)

    @property
    def replicas(self) -> set[int]:
        return {number for number, name in processes(self.home).items() if name.startswith("ray::ServeReplica:")}

    def two_without(self, gone: set[int], old: set[int]) -> None:
        """Wait until there are two replicas, none of them of `gone`, and one that is not of `old` serves."""
        eventually(lambda: len(self.replicas) == 2 and not self.replicas & gone, 150)
        eventually(lambda: self.answers() in self.replicas - old, 60)

    def answers(self) -> int:
        with contextlib.suppress(OSError, ValueError):
            return int(self.health()["pid"])
        return 0


def processes(home: Path) -> dict[int, str]:
    """All that were started with this home in their environment, and live: their command lines."""
    found = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            number, command = int(folder.name), (folder / "cmdline").read_bytes()
            if command and str(home).encode() in (folder / "environ").read_bytes():
                found[number] = command.replace(b"\0", b" ").decode()
    return found


@contextlib.contextmanager
def a_fleet(model: Path, *options: str) -> Iterator[Fleet]:
    home = Path(tempfile.mkdtemp(prefix="sp-ray-"))  # short: Ray makes sockets in it, whose names may have 107 bytes
    keys = Keys(home / "keys.json")
    key = keys.add("ada", sessions=0, role="operator")  # whose /health has the process's id
    paths = {"RAY_TMPDIR": str(home), "HOME": str(home), "SIDEPLUG_CACHE": str(home / "cache")}
    paths["XDG_CONFIG_HOME"] = str(home / "config")
    env = {**os.environ, **paths, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "sideplug", "serve", str(model), "--ray", "--replicas", "2", "--bits", "16"]
    command += ["--threads", "1", "--kv-memory", "0.25", "--keys", str(keys.path), "--tls-self"]
    command += ["--port", "0", "--json", *options]
    errors = home / "errors.txt"
    with errors.open("w") as file:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True, env=env, cwd=home)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, errors.read_text()
        about = json.loads(line)
        assert about["engine"] == "ray"
        assert about["how"] == "a fleet of 2, 1 thread each"
        yield Fleet(process, about["url"], key, about["pin"], home, env, keys.path, errors)
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()  # type: ignore[union-attr]
        with contextlib.suppress(AssertionError):  # Ray's own end with the one that started them
            eventually(lambda: not processes(home), 10)
        for number in processes(home):
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def fleet(tiny: Path) -> Iterator[Fleet]:
    with a_fleet(tiny) as running:
        yield running


def prompt(device: int) -> Prompt:
    return Prompt.user(f"Is it far to the {device}. mill?")


@pytest.fixture(scope="module")
def wanted(cloud: Cloud) -> tuple[Any, list[str]]:
    """A plugin, and what each device gets with it where nothing breaks."""
    plugin = a_plugin(cloud.base.fingerprint)
    texts = []
    for device in range(DEVICES):
        with a_session(cloud.url, plugin) as session:
            texts.append("".join(p.text for p in session.generate(prompt(device), TOKENS, sampling(device))))
    assert len(set(texts)) > 1
    return plugin, texts


def sampling(device: int) -> Sampling:
    return Sampling(temperature=1.2, seed=device)


def together(work: Callable[[int], None]) -> None:
    """Each device in a thread of its own; the first of their errors."""
    errors: list[BaseException] = []

    def run(device: int) -> None:
        try:
            work(device)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(device,), daemon=True) for device in range(DEVICES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


def test_the_doors(fleet: Fleet) -> None:
    assert fleet.url.startswith("wss://")
    with pytest.raises(Unauthorized, match="this cloud wants a key"):
        a_link(fleet.url, pin=fleet.pin)
    with pytest.raises(Unauthorized, match="does not know this key"):
        a_link(fleet.url, pin=fleet.pin, key="sp-000000000000-x")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        fleet.get("/v1/model", {})
    assert fleet.health()["status"] == "ok"
    assert len(fleet.replicas) == 2
    assert fleet.answers() in fleet.replicas


def test_a_replica_that_hangs_is_not_healthy(tiny: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", REPLICA, str(tiny)], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "the engine hangs\n", done.stderr


def test_what_a_replica_can_not_have_is_said(tiny: Path, tmp_path: Path) -> None:
    home = Path(tempfile.mkdtemp(prefix="sp-ray-"))
    env = {**os.environ, "RAY_TMPDIR": str(home), "HOME": str(home), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "sideplug", "serve", str(tiny), "--ray", "--insecure", "--port", "0"]
    done = subprocess.run(
        [*command, "--kv-memory", "0.00001"], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("sideplug: the fleet did not start: the memory for texts in work must be at least"), last
    assert done.stdout == ""
    eventually(lambda: not processes(home), 20)
    shutil.rmtree(home, ignore_errors=True)


def test_one_is_killed_in_the_middle_of_replies(fleet: Fleet, wanted: tuple[Any, list[str]]) -> None:
    """Those that it had go on at the other, which runs again what they have; nobody's text is another."""
    plugin, texts = wanted
    begun, killed, at = threading.Barrier(DEVICES + 1), threading.Event(), [0.0]
    resumed, waits = [0] * DEVICES, [0.0] * DEVICES

    def work(device: int) -> None:
        said: list[str] = []
        session = fleet.session(plugin, said)
        for number in range(REPLIES):
            text = ""
            pieces = session.generate(prompt(device), TOKENS, sampling(device), DecodeOptions(window=0))
            for heard, piece in enumerate(pieces):
                if heard == number == 0:
                    begun.wait(60)
                    killed.wait(60)
                if said and not waits[device]:
                    waits[device] = time.monotonic() - at[0]
                text += piece.text
            assert text == texts[device], f"device {device}, reply {number}"
            resumed[device] += session.usage.resumed
        session.link.close()

    def kill() -> None:
        begun.wait(60)
        about = fleet.health()
        old = fleet.replicas
        (other,) = old - {about["pid"]}
        shared = {about["pid"]: about["sessions"], other: DEVICES - about["sessions"]}
        victim = max(shared, key=shared.__getitem__)
        os.kill(victim, signal.SIGKILL)
        at[0] = time.monotonic()
        killed.set()
        fleet.two_without({victim}, old)  # Ray makes another
        print(f"\n{shared[victim]} of {DEVICES} were its; a new one serves after {time.monotonic() - at[0]:.1f} s")

    killing = threading.Thread(target=kill, daemon=True)
    killing.start()
    together(work)
    killing.join(120)
    assert not killing.is_alive()
    assert sum(resumed) > 0
    print("from the kill to the next token, s:", [round(wait, 3) for wait in waits if wait])


def test_all_are_replaced_while_they_serve(tiny: Path, fleet: Fleet, wanted: tuple[Any, list[str]]) -> None:
    """A redeployment: replies under way end where they began, and who is idle is told to come back."""
    plugin, texts = wanted
    before = fleet.replicas
    done, said = threading.Event(), [list[str]() for _ in range(DEVICES)]

    def work(device: int) -> None:
        session = fleet.session(plugin, said[device])
        while not done.is_set():
            text = "".join(
                p.text for p in session.generate(prompt(device), TOKENS, sampling(device), DecodeOptions(window=0))
            )
            assert text == texts[device]
            done.wait(0.5)
        session.link.close()

    def replace() -> None:
        try:
            command = [sys.executable, "-c", REDEPLOY, str(tiny), str(fleet.keys)]
            subprocess.run(command, env=fleet.env, cwd=fleet.home, check=True, capture_output=True, timeout=200)
            fleet.two_without(before, before)
        finally:
            done.set()

    replacing = threading.Thread(target=replace, daemon=True)
    replacing.start()
    together(work)
    replacing.join(10)
    assert not fleet.replicas & before
    assert all(len(lines) >= 1 for lines in said)
    assert all("the cloud is going down: trying again" in line for lines in said for line in lines), said


def test_it_goes_down_when_the_reply_is_done(fleet: Fleet, wanted: tuple[Any, list[str]]) -> None:
    plugin, texts = wanted
    session, idle = fleet.session(plugin, []), fleet.connect()
    a_session(idle)
    pieces = session.generate(prompt(0), TOKENS, sampling(0), DecodeOptions(window=0))
    text = next(pieces).text
    fleet.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    with pytest.raises(Exception, match="the cloud is going down"):
        idle.receive()
    text += "".join(piece.text for piece in pieces)
    assert (text, session.usage.resumed) == (texts[0], 0)
    session.link.close()
    idle.close()
    assert fleet.process.wait(120) == 0
    print(f"\ndown {time.monotonic() - began:.1f} s after SIGTERM")
    assert "Traceback" not in fleet.errors.read_text()
    eventually(lambda: not processes(fleet.home), 20)
