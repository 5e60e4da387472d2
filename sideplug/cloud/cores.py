"""How many CPUs and how much memory this process may use: the machine's, its affinity's, its container's."""

from __future__ import annotations

import os
from pathlib import Path


def cores() -> tuple[int, str]:
    """Threads that have a core of their own, and what says so."""
    count, why = os.cpu_count() or 1, "the machine's cores"
    if hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) < count:
        count, why = len(os.sched_getaffinity(0)), "the process's CPU affinity"
    quota = _cgroup_cpus()
    if quota is not None and quota < count:
        count, why = max(1, int(quota)), f"a cgroup quota of {quota:g} CPUs"
    return count, why


def memory_bytes() -> int:
    """Memory that is free for us now: what the system calls available, at most what the cgroup leaves."""
    free = 4 << 30
    try:
        with open("/proc/meminfo") as file:
            free = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        pass
    for folder in _cgroups():
        limit, used = _number(folder / "memory.max"), _number(folder / "memory.current")
        if limit is not None and used is not None:
            free = min(free, max(0, limit - used))
    return free


def _cgroup_cpus() -> float | None:
    """The tightest CPU quota of the process's cgroup (version 2, or 1) and those above it."""
    found = []
    for folder in _cgroups():
        try:
            quota, period = (folder / "cpu.max").read_text().split()
            if quota != "max":
                found.append(int(quota) / int(period))
        except (OSError, ValueError):
            pass
    old = Path("/sys/fs/cgroup/cpu")
    quota_us, period_us = _number(old / "cpu.cfs_quota_us"), _number(old / "cpu.cfs_period_us")
    if quota_us is not None and quota_us > 0 and period_us:
        found.append(quota_us / period_us)
    return min(found, default=None)


def _cgroups() -> list[Path]:
    try:
        line = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return []
    root = Path("/sys/fs/cgroup")
    own = root / line[3:].lstrip("/")
    return [folder for folder in (own, *own.parents) if folder == root or root in folder.parents]


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
