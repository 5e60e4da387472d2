"""What the benchmarks share: a served model in its own process, the machine, medians with their spread."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil


@contextmanager
def served(model: str, *options: str) -> Iterator[tuple[str, psutil.Process]]:
    """`sideplug serve` as a user starts it: (its URL, its process)."""
    command = [sys.executable, "-m", "sideplug", "serve", model, "--port", "0", "--json", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        sys.exit(process.wait() or 1)
    try:
        yield json.loads(line)["url"], psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(30)


def sideplug(*arguments: Any) -> dict[str, Any]:
    """One `sideplug … --json` command in its own process."""
    command = [sys.executable, "-m", "sideplug", *map(str, arguments), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return json.loads(done.stdout)


def machine() -> dict[str, Any]:
    """Cores, memory, versions: what a figure stands with."""
    packages = ("onnxruntime", "torch", "transformers", "peft", "xllamacpp", "numpy", "sideplug")
    return {
        "cpu": next(
            (line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")),
            platform.processor(),
        ),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        **{name: version for name in packages if (version := _version(name))},
    }


def _version(package: str) -> str:
    """ "" for one that is not installed: some benchmarks need few."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def alike(one: list[int], other: list[int]) -> int:
    """Tokens that two texts begin with in common."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
        "runs": len(values),
    }
