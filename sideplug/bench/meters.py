"""The meters, and what figures stand with: the machine, its memory's speed, its energy meter.

Test: pytest tests/bench/test_measures.py
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from sideplug.contract.version import __version__

RAPL = Path("/sys/class/powercap")


def machine() -> dict[str, Any]:
    """Return cores, memory, versions, and in a checkout the commit: what a figure stands with."""
    packages = ("onnxruntime", "torch", "transformers", "peft", "xllamacpp", "numpy")
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        **{name: version for name in packages if (version := _version(name))},
        "sideplug": __version__,
        **({"commit": commit} if (commit := _commit()) else {}),
    }


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> str:
    """ "" outside a checkout; "-dirty" behind it where tracked files have changed."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, encoding="utf-8").stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _version(package: str) -> str:
    """ "" for one that is not installed: some benchmarks need few."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def read_gb_s(threads: int) -> float:
    """Return memory's read rate in GB/s: 1 GB by so many threads, the best of five."""
    parts = np.array_split(np.ones(1 << 27), threads)
    best = 0.0
    for _ in range(5):
        readers = [threading.Thread(target=part.max) for part in parts]
        start = time.perf_counter()
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        best = max(best, sum(part.nbytes for part in parts) / (time.perf_counter() - start) / 1e9)
    return best


class Energy:
    """The processor packages' counters (RAPL), which wrap. `joules` since the start; None where there is no meter."""

    def __init__(self, root: Path = RAPL) -> None:
        self._meters = [path for path in root.glob("intel-rapl:?") if os.access(path / "energy_uj", os.R_OK)]
        self._start = self._read()

    def _read(self) -> list[int]:
        return [int((path / "energy_uj").read_text(encoding="utf-8")) for path in self._meters]

    @property
    def joules(self) -> float | None:
        """Since the start; None where there is no meter."""
        if not self._meters:
            return None
        wraps = [int((path / "max_energy_range_uj").read_text(encoding="utf-8")) for path in self._meters]
        return sum((b - a) % wrap for a, b, wrap in zip(self._start, self._read(), wraps, strict=True)) / 1e6
