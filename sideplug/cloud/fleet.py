"""The settings of one replica of a fleet: typed, read from text or numbers, and checked before any replica starts.

It does not know Ray: ray_serve.py does. Test: pytest tests/cloud/test_fleet.py
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sideplug.cloud.cores import cores, memory_bytes
from sideplug.cloud.engines import Wanted, open_engine, read_prefix
from sideplug.cloud.host import Limits
from sideplug.cloud.service import Service
from sideplug.cloud.store import DEFAULT, find
from sideplug.contract.errors import InputError

SPARE = 64  # requests of a replica beside its sessions: refused ones, /health, /metrics
Say = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """The options of `sideplug serve`, each for one replica; every replica reads the files on its own machine.

    threads, kv_memory: 0 means every core and half of the free memory, for a replica that has its machine to itself.
    cpus: the CPUs that Ray reserves for it; 0: one for each thread. min_replicas, max_replicas: their number follows
    the sessions, about target_sessions each; max_replicas 0: it is always min_replicas. max_ongoing_requests: 0 means
    max_sessions, and SPARE more for other requests. Raises InputError for values that cannot be.
    """

    model: str = DEFAULT
    engine: str = "auto"
    bits: str = "auto"
    threads: int = 0
    kv_memory: float = 0.0
    keys: str = ""
    insecure: bool = False
    max_sessions: int = 1024
    queue: int = 64
    keep_seconds: float = 600.0
    shared_prefix: str = ""
    step_tokens: int = 512
    drain_seconds: float = 60.0
    log_level: str = "warning"
    cpus: float = 0.0
    min_replicas: int = 1
    max_replicas: int = 0
    target_sessions: float = 64.0
    max_ongoing_requests: int = 0

    def __post_init__(self) -> None:
        least = {"max_sessions": 1, "step_tokens": 3, "min_replicas": 1}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, bool | str) and not least.get(field.name, 0) <= value < math.inf:
                raise InputError(f"{field.name} must be {least.get(field.name, 0)} or more, got {value}")
        self.wanted  # noqa: B018  # says what is wrong with engine and bits
        if self.target_sessions <= 0:
            raise InputError(f"target_sessions must be above 0, got {self.target_sessions}")
        if self.most_replicas < self.min_replicas:
            fewest = self.min_replicas
            raise InputError(f"max_replicas must be min_replicas ({fewest}) or more, got {self.max_replicas}")
        if not self.keys and not self.insecure:
            raise InputError("a fleet asks for keys: give keys, a file that each of its machines has, or insecure=true")

    @classmethod
    def parse(cls, args: Mapping[str, Any]) -> Settings:
        """Settings from the arguments of `serve run` or the values of a config file. Raises InputError."""
        kinds = {field.name: type(field.default) for field in dataclasses.fields(cls)}
        strange = sorted(set(args) - set(kinds))
        if strange:
            raise InputError(f"there is no argument {strange[0]!r}; there are: {', '.join(kinds)}")
        return cls(**{name: _convert(name, kinds[name], value) for name, value in args.items()})

    @property
    def wanted(self) -> Wanted:
        """The engine to open. Raises InputError."""
        return Wanted(self.engine, self.bits, "cpu", self.threads, int(self.kv_memory * 2**30))

    @property
    def most_replicas(self) -> int:
        """The greatest number of replicas."""
        return self.max_replicas or self.min_replicas

    @property
    def ongoing(self) -> int:
        """Requests that a replica may have at once."""
        return self.max_ongoing_requests or self.max_sessions + SPARE

    def on_one_machine(self) -> Settings:
        """Settings for replicas that share this machine: equal parts of its cores and memory, where none were set."""
        threads = self.threads or max(1, cores()[0] // self.most_replicas)
        kv_memory = self.kv_memory or memory_bytes() / 2 / self.most_replicas / 2**30
        return dataclasses.replace(self, threads=threads, kv_memory=kv_memory)

    def service(self, say: Say = lambda line: None) -> Service:
        """The Service of a replica. Raises InputError, UnknownModel, NoNetwork, Stopped."""
        from sideplug.cloud.admission import AdmissionLimits
        from sideplug.cloud.keys import Keys

        keys = Keys(Path(self.keys)) if self.keys else None
        if keys and not keys.path.exists():
            raise InputError(f"there is no keys file {keys.path} on this machine: sideplug keys add makes one")
        prefix = read_prefix(Path(self.shared_prefix) if self.shared_prefix else None)
        base = find(self.model, say)
        admission = AdmissionLimits(self.queue, keep_s=self.keep_seconds)
        make = lambda: open_engine(base, self.wanted, self.step_tokens, admission, prefix, say)[1]  # noqa: E731
        return Service(base, make, Limits(sessions=self.max_sessions, drain_s=self.drain_seconds), keys)


def _convert(name: str, kind: type, value: Any) -> Any:
    """`value` as a `kind`. Raises InputError."""
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    found: Any = None
    try:
        if kind is bool:
            found = words[str(value).lower()]
        elif not isinstance(value, bool | list | dict) and value is not None:
            found = kind(value)
            if kind is int and isinstance(value, float) and value != found:
                found = None
    except (ValueError, KeyError, OverflowError):
        pass
    if found is None:
        named = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
        raise InputError(f"{name} must be {named[kind]}, got {value!r}")
    return found
