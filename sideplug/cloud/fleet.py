"""A replica of a fleet, from its settings: the service that it runs, and its part of a shared machine.

It does not know Ray: ray_serve.py does. Test: pytest tests/cloud/test_fleet.py
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from sideplug.cloud.config import ServeConfig
from sideplug.cloud.cores import cores, memory_bytes
from sideplug.cloud.keys import Keys
from sideplug.cloud.service import Service
from sideplug.cloud.start import Parts, Say
from sideplug.cloud.store import find
from sideplug.contract.errors import InputError


def replica(config: ServeConfig, say: Say = lambda line: None) -> Service:
    """The service of one replica, its model loaded. Raises InputError, UnknownModel, NoNetwork, Stopped."""
    config.check_fleet()
    keys = Keys(Path(config.keys)) if config.keys else None
    if keys and not keys.path.exists():
        raise InputError(f"there is no keys file {keys.path} on this machine: sideplug keys add makes one")
    parts = Parts.of(config)
    return parts.service(Service, find(config.model, say), keys, say)[0]


def share_machine(config: ServeConfig) -> ServeConfig:
    """The settings of replicas that all run on this machine: each has its part of the cores and of half the memory.

    Threads and memory that the config asks for stay as they are.
    """
    threads = config.threads or max(1, cores()[0] // config.most_replicas)
    kv_memory = config.kv_memory or memory_bytes() / 2 / config.most_replicas / 2**30
    return dataclasses.replace(config, threads=threads, kv_memory=kv_memory)


def with_full_paths(config: ServeConfig) -> ServeConfig:
    """The same settings, with full paths for the files and folders that exist: replicas run in other folders."""

    def full(given: str) -> str:
        path = Path(given).expanduser()
        return str(path.resolve()) if given and path.exists() else given

    model, keys, prefix = full(config.model), full(config.keys), full(config.shared_prefix)
    return dataclasses.replace(config, model=model, keys=keys, shared_prefix=prefix)
