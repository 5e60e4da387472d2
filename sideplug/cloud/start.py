"""It makes a service from a ServeConfig: the one place where a served model's parts are put together.

`sideplug serve` (cli/serve.py) and each replica of a fleet (fleet.py) start here. It does not know sockets.
Test: pytest tests/cloud/test_fleet.py tests/test_cli.py
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sideplug.cloud.access import checked_origins
from sideplug.cloud.admission import AdmissionLimits
from sideplug.cloud.config import ServeConfig
from sideplug.cloud.engine import Engine
from sideplug.cloud.engines import EngineOptions, Opened, open_engine, read_prefix
from sideplug.cloud.host import Limits
from sideplug.cloud.keys import Keys
from sideplug.cloud.service import Service
from sideplug.cloud.store import Base

Say = Callable[[str], None]
S = TypeVar("S", bound=Service)
# For so long a thread keeps the interpreter while another waits for it. Python's own 5 ms are two steps of a small
# model: while a frame of megabytes is decoded aside, each token would wait for them several times.
SWITCH_S = 0.0005


@dataclass(frozen=True)
class Parts:
    """What a service is made of, besides its model and its keys."""

    options: EngineOptions
    admission: AdmissionLimits
    limits: Limits
    step_tokens: int
    prefix: str  # a system message that many users share; "" for none
    origins: tuple[str, ...] = ()  # of web pages that may come in

    @classmethod
    def of(cls, config: ServeConfig) -> Parts:
        """Return the parts of these settings. Raises InputError if they contradict each other, or for the prefix."""
        return cls(
            EngineOptions(config.engine, config.bits, config.device, config.threads, config.kv_bytes),
            AdmissionLimits(config.queue, keep_s=config.keep_seconds),
            Limits(sessions=config.max_sessions, drain_s=config.drain_seconds),
            config.step_tokens,
            read_prefix(Path(config.shared_prefix) if config.shared_prefix else None),
            checked_origins(config.allow_origin),
        )

    def service(self, kind: type[S], base: Base, keys: Keys | None, say: Say) -> tuple[S, Opened]:
        """Return a service of the class `kind` that has loaded `base`, and the opened model.

        keys: those that are accepted; None: no key is needed. Raises UnknownModel, InputError, Stopped.
        """
        sys.setswitchinterval(SWITCH_S)
        opened: list[Opened] = []

        def make_engine() -> Engine:
            model, engine = open_engine(base, self.options, self.step_tokens, self.admission, self.prefix, say)
            opened.append(model)
            return engine

        service = kind(base, make_engine, self.limits, keys, self.origins)
        return service, opened[0]
