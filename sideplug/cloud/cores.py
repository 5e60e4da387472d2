"""The CPUs and the memory that this process may use: limited by the machine, its CPU affinity and its container.

It does not know what they are used for. Test: pytest tests/cloud/test_cores.py
"""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP, _SYS, _MEMINFO = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"), Path("/proc/meminfo")


def cores() -> tuple[int, str]:
    """Return how many threads get a core of their own, and what limits their number, in words."""
    count, reason = os.cpu_count() or 1, "the machine's cores"
    if hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) < count:
        count, reason = len(os.sched_getaffinity(0)), "the process's CPU affinity"
    quota = _cpu_quota()
    if quota is not None and quota < count:
        count, reason = max(1, int(quota)), f"a cgroup quota of {quota:g} CPUs"
    return count, reason


def memory_bytes() -> int:
    """Return the bytes of memory that this process can use now: those that system and cgroup have left."""
    free = 4 << 30
    try:
        lines = _MEMINFO.read_text(encoding="utf-8").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        pass
    for folder in _groups("memory"):
        for limit_name, used_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit, used = _number(folder / limit_name), _number(folder / used_name)
            if limit is not None and used is not None:
                free = min(free, max(0, limit - used))
    return free


def _cpu_quota() -> float | None:
    """Return the CPUs of the lowest quota of the process's cgroup and those above it, or None without a quota."""
    quotas = []
    for folder in _groups("cpu"):
        try:
            quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
            if quota != "max":
                quotas.append(int(quota) / int(period))
        except (OSError, ValueError):
            pass
        quota_us, period_us = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        if quota_us is not None and quota_us > 0 and period_us:
            quotas.append(quota_us / period_us)
    return min(quotas, default=None)


def _groups(controller: str) -> list[Path]:
    """Return the folders of the process's cgroups: version 2 below the root, version 1 below the controller's."""
    folders = []
    try:
        lines = _CGROUP.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = _SYS / controller if controllers else _SYS
        group = root / path.lstrip("/")
        folders += [folder for folder in (group, *group.parents) if folder == root or root in folder.parents]
    return folders


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
