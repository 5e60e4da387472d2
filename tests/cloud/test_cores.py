"""What the process may use: a container's limits count, wherever they are set."""

from pathlib import Path

import pytest

from sideplug.cloud import cores

GIB = 1 << 30


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 8 cores and 16 GiB without limits: `cgroup` and `meminfo` beside the folder `sys`."""
    monkeypatch.setattr(cores.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    for name, file in (("_CGROUP", "cgroup"), ("_SYS", "sys"), ("_MEMINFO", "meminfo")):
        monkeypatch.setattr(cores, name, tmp_path / file)
    (tmp_path / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {16 << 20} kB\n")
    return tmp_path


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_without_limits(system: Path) -> None:
    assert cores.cores() == (8, "the machine's cores")
    assert cores.memory_bytes() == 16 * GIB


def test_affinity(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda pid: {1, 5, 6})
    assert cores.cores() == (3, "the process's CPU affinity")


def test_cgroup_2_its_own_and_those_above(system: Path) -> None:
    put(system / "cgroup", "0::/a/b\n")
    put(system / "sys/a/b/cpu.max", "max 100000")
    put(system / "sys/a/cpu.max", "250000 100000")
    put(system / "sys/a/b/memory.max", str(3 * GIB))
    put(system / "sys/a/b/memory.current", str(GIB))
    put(system / "sys/a/memory.max", "max")
    assert cores.cores() == (2, "a cgroup quota of 2.5 CPUs")
    assert cores.memory_bytes() == 2 * GIB


def test_cgroup_1(system: Path) -> None:
    put(system / "cgroup", "4:memory:/x\n1:cpu,cpuacct:/x\n")
    put(system / "sys/cpu/x/cpu.cfs_quota_us", "50000")
    put(system / "sys/cpu/x/cpu.cfs_period_us", "100000")
    put(system / "sys/memory/x/memory.limit_in_bytes", str(GIB))
    put(system / "sys/memory/x/memory.usage_in_bytes", str(2 * GIB))
    assert cores.cores() == (1, "a cgroup quota of 0.5 CPUs")
    assert cores.memory_bytes() == 0
