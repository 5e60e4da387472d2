"""A cloud that serves a tiny model, and plugins for it: what the load test and the fuzzer need, without a download.

Test: pytest -m slow tests/robustness
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from sideplug.contract.gate import Gate
from sideplug.contract.tap import Tap
from sideplug.device.address import Address, get
from sideplug.plugins import Plugin, register
from tests.plugins.toy_attention import ToyAttention
from tests.plugins.toy_memory import ToyMemory
from tests.tiny_model import TEXT, make_llama

WIDTH, BLOCKS, CONTEXT = 64, 2, 1024
VOCAB = 340
KV_TOKEN_BYTES = BLOCKS * 2 * 2 * 16 * 4  # keys and values of two heads of 16 float32
WORDS = TEXT.replace('"', "").split()


def make_model(folder: Path, seed: int = 0) -> Path:
    """A model folder as `sideplug serve` takes it."""
    return make_llama(folder, seed, CONTEXT)


def a_plugin(base: str, seed: int, gate: str = "open", codec: str = "int8", kind: str = "ladder") -> Plugin:
    """Return a plugin whose every parameter is random: its corrections change tokens.

    A `linear` gate opens for about half of them.
    """
    register(ToyAttention())  # here, not on import: the benchmark's own tests count every registered kind
    rng = np.random.default_rng([seed, 77])
    tap = Tap.raw(BLOCKS, WIDTH) if kind == "paper" else Tap(tuple(range(BLOCKS + 1)), 16, 0, codec)
    plugin = Plugin.new(kind, base, "tiny", tap, 24, WIDTH, seed)
    params = plugin.trained.params
    for name, value in params.items():
        params[name] = (value + rng.normal(0, 0.5, value.shape)).astype(np.float32)
    if gate == "linear":
        weight_D = rng.normal(0, WIDTH**-0.5, WIDTH).astype(np.float32)
        plugin.trained.gate = Gate("linear", weight_D, memory=float(rng.choice([0.0, 0.5])))
    else:
        plugin.trained.gate = Gate(gate)
    return plugin


def with_memory(plugin: Plugin, question: str, seed: int) -> Plugin:
    """Return the plugin with a memory before it, which answers this question by mixtures, with a draft."""
    ids = np.random.default_rng([seed, 78]).integers(2, VOCAB, 12).astype(np.int32)
    memory = ToyMemory(question, ids, Tap((1,), plugin.tap.rank, 0, plugin.tap.codec))
    return Plugin(plugin.base, plugin.base_name, [*plugin.parts, memory])


@dataclass
class Cloud:
    """A served model in its own process."""

    url: str
    pin: str
    fingerprint: str
    key: str  # one that any request may bear; "" where none is asked for
    process: psutil.Process
    log: Path  # what it says on its error stream

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.rsplit(":", 1)[1])

    def address(self, key: str = "") -> Address:
        """Return its address, with this key or the one that any request may bear."""
        return Address(self.url, key=key or self.key, pin=self.pin)

    def metrics(self) -> dict[str, float]:
        """What /metrics says, by the names and labels there."""
        lines = get(self.address(), "/metrics", timeout_s=30).splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[:1] != "#")}

    def settled(self, seconds: float, *names: str) -> dict[str, float]:
        """/metrics as soon as all of these are 0, or as they are after so many seconds."""
        last = time.monotonic() + seconds
        while True:
            metrics = self.metrics()
            if time.monotonic() > last or not any(metrics[name] for name in names):
                return metrics
            time.sleep(0.2)

    @property
    def complaints(self) -> list[str]:
        """Lines of its log that are errors, and the last line of each traceback."""
        lines, inside = [], False
        for line in self.log.read_text(errors="replace").splitlines():
            if " ERROR " in line:
                lines.append(line.split(" ", 1)[1])
            if line.startswith("Traceback"):
                inside = True
            elif inside and line[:1] not in ("", " "):
                lines.append(line)
                inside = False
        return lines


@contextmanager
def a_cloud(folder: Path, *options: str, keys: Path | None = None, key: str = "") -> Iterator[Cloud]:
    """`sideplug serve` of a model folder as a user starts it, with nothing of the user's: the certificate, graphs and
    log go beside the folder. With `keys` it has TLS too. Exits where it does not start."""
    scratch = folder.parent
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SIDEPLUG_")}
    environment |= {"XDG_CONFIG_HOME": str(scratch / "config"), "SIDEPLUG_CACHE": str(scratch / "cache")}
    door = ["--tls-self", "--keys", str(keys)] if keys else ["--insecure"]
    command = [sys.executable, "-m", "sideplug", "serve", str(folder), "--bits", "16", "--port", "0", "--json"]
    log = scratch / "serve.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*command, *door, *options], stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        sys.exit(f"the cloud did not start: {log.read_text().strip()}")
    started = json.loads(line)
    try:
        yield Cloud(
            started["url"], started.get("pin", ""), started["fingerprint"], key, psutil.Process(process.pid), log
        )
    finally:
        process.terminate()
        try:
            process.wait(90)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


class Watch(threading.Thread):
    """Samples a process's memory each second, from `start` to `stop`."""

    def __init__(self, process: psutil.Process) -> None:
        super().__init__(name="watch", daemon=True)
        self._process = process
        self._stopped = threading.Event()
        self.rss_mb: list[float] = []

    def run(self) -> None:
        """Sample until `stop`."""
        while not self._stopped.is_set():
            try:
                self.rss_mb.append(self._process.memory_info().rss / 2**20)
            except psutil.Error:
                return
            self._stopped.wait(1)

    def stop(self) -> None:
        """End the sampling."""
        self._stopped.set()
        self.join()
