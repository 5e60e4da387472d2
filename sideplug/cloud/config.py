"""The settings of a served model, written once: `ServeConfig`.

Each field carries its help, its range and who offers it. From that come the options of `sideplug serve` (cli/serve.py),
the arguments of a Ray application (`ServeConfig.parse`), and the tables of docs/FLEET.md and docs/CLI.md. It does not
know click, Ray or the engine. Test: pytest tests/cloud/test_config.py tests/cloud/test_fleet.py
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

from sideplug.contract.defaults import DEFAULT_MODEL, DEFAULT_PORT
from sideplug.contract.errors import InputError

ENGINES = ("auto", "onnx", "torch")
BITS = ("auto", "4", "8", "16")
LOG_LEVELS = ("debug", "info", "warning", "error")
SPARE_REQUESTS = 64  # of a replica beside its sessions: those that it refuses itself, /health, /metrics

T = TypeVar("T", bool, int, float, str)


class Carrier(Enum):
    """Who offers a setting: the command `sideplug serve`, a Ray application, or both."""

    COMMAND = "sideplug serve"
    RAY = "Ray Serve"
    BOTH = "both"

    def offers(self, other: Carrier) -> bool:
        """Whether a setting of this carrier is offered by `other` (COMMAND or RAY)."""
        return self in (other, Carrier.BOTH)


@dataclass(frozen=True)
class Setting:
    """What is known of a field of ServeConfig beside its name: its range, its help and its carrier.

    least and most: the range of a number, both included; above: a bound that is not included. metavar: what the help
    shows in place of a value. is_file: the text is a path on the machine that reads it.
    """

    name: str
    default: bool | int | float | str
    help: str
    carrier: Carrier
    least: float = 0
    most: float = math.inf
    above: float | None = None
    choices: tuple[str, ...] = ()
    metavar: str = ""
    is_file: bool = False

    @property
    def kind(self) -> type:
        """The type of the value: bool, int, float or str."""
        return type(self.default)

    @property
    def range(self) -> str:
        """The values that are allowed, in words for a table: "1 or more", "auto, 4, 8, 16"; "" for any."""
        if self.choices:
            return ", ".join(self.choices)
        if self.kind in (bool, str):
            return {bool: "true, false", str: ""}[self.kind]
        if self.above is not None:
            return f"above {self.above:g}"
        return f"{self.least:g} or more" if self.most == math.inf else f"{self.least:g} to {self.most:g}"

    def check(self, value: Any) -> None:
        """Raises InputError for a value outside of the range or choices."""
        if self.choices and value not in self.choices:
            raise InputError(f"{self.name} must be one of {', '.join(self.choices)}, got {value!r}")
        if self.kind in (bool, str):
            return
        inside = self.least <= value <= self.most and value < math.inf
        if not inside or (self.above is not None and value <= self.above):
            raise InputError(f"{self.name} must be {self.range}, got {value}")

    def convert(self, value: Any) -> Any:
        """The typed value of a text or a number, as `serve run` or a YAML file gives it. Raises InputError."""
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        typed: Any = None
        try:
            if self.kind is bool:
                typed = words[str(value).lower()]
            elif not isinstance(value, bool | list | dict) and value is not None:
                typed = self.kind(value)
                if self.kind is int and isinstance(value, float) and value != typed:
                    typed = None
        except (ValueError, KeyError, OverflowError):
            pass
        if typed is None:
            names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
            raise InputError(f"{self.name} must be {names[self.kind]}, got {value!r}")
        return typed


def setting(default: T, help: str, carrier: Carrier = Carrier.BOTH, **more: Any) -> T:
    """A dataclass field whose metadata is a Setting (see there for `more`)."""
    field: T = dataclasses.field(default=default, metadata={"help": help, "carrier": carrier, **more})
    return field


COMMAND, RAY = Carrier.COMMAND, Carrier.RAY


@dataclass(frozen=True)
class ServeConfig:
    """The settings of `sideplug serve`, and of a replica of a fleet. Raises InputError for values out of range.

    In a fleet each setting is one replica's, and each replica reads the files on its own machine.
    """

    model: str = setting(DEFAULT_MODEL, f"The base model: {DEFAULT_MODEL}, a hub id, a folder or a .gguf file.")
    engine: str = setting(
        "auto", "onnx is fast on a CPU; torch is for GPUs and for models that onnx does not know.", choices=ENGINES
    )
    bits: str = setting(
        "auto",
        "Bits of each weight (onnx). auto takes 8, or 4 where a GGUF file has 4; 16 does not quantise.",
        choices=BITS,
    )
    device: str = setting("cpu", "Where the model runs, in torch's words: cpu, cuda, cuda:1.", COMMAND)
    threads: int = setting(0, "CPU threads; 0 uses as many as the process may use.")
    kv_memory: float = setting(
        0.0,
        "Memory in GiB for the keys and values (KV caches) of all texts in work; 0 takes half of what is free at the "
        "start.",
    )
    host: str = setting("127.0.0.1", "The address to listen on.", COMMAND)
    port: int = setting(DEFAULT_PORT, "The port to listen on; 0 takes any free one.", COMMAND, most=65535)
    tls_cert: str = setting("", "The server's certificate (PEM); the cloud then serves wss.", COMMAND, is_file=True)
    tls_key: str = setting("", "The certificate's private key (PEM).", COMMAND, is_file=True)
    tls_self: bool = setting(False, "Make and sign a certificate, once; devices trust it by its --pin.", COMMAND)
    keys: str = setting(
        "",
        "The file of keys. Without it, sideplug serve takes SIDEPLUG_KEYS, or sideplug/keys.json in your configuration "
        "folder.",
        is_file=True,
        metavar="FILE",
    )
    allow_origin: str = setting(
        "",
        "The origin of web pages that may come in, like https://plugin.example; several with commas. Pages of other "
        "origins are refused.",
        metavar="ORIGIN",
    )
    insecure: bool = setting(False, "Do not ask for keys, and do not insist on TLS beyond this machine.")
    max_sessions: int = setting(1024, "The most connections at once.", least=1)
    queue: int = setting(64, "Texts that may wait for memory; further ones are refused.")
    keep_seconds: float = setting(
        600.0, "Seconds that a conversation's keys and values are kept for its next turn; 0 keeps none."
    )
    shared_prefix: str = setting(
        "",
        "A file with a system message that many users share: it is run once, for all of them. What one key's sessions "
        "share needs no file.",
        is_file=True,
        metavar="FILE",
    )
    step_tokens: int = setting(512, "The most tokens of one step.", least=3)
    drain_seconds: float = setting(60.0, "Seconds for finishing the replies under way when the cloud is stopped.")
    log_level: str = setting("warning", "The least severe level that is logged.", choices=LOG_LEVELS)
    log_json: bool = setting(False, "Write the log as JSON lines.", COMMAND)
    ray: bool = setting(
        False, "Serve a fleet by Ray Serve (docs/FLEET.md), on this machine or on the cluster of RAY_ADDRESS.", COMMAND
    )
    replicas: int = setting(0, "The number of replicas of a fleet; 0 starts one, or up to --max-replicas.", COMMAND)
    cpus: float = setting(
        0.0, "CPUs that Ray reserves for a replica; 0: as many as it has threads, or a whole machine.", RAY
    )
    min_replicas: int = setting(1, "The fewest replicas.", RAY, least=1)
    max_replicas: int = setting(
        0, "The most replicas, as the number of sessions grows and shrinks; 0 keeps the number fixed."
    )
    target_sessions: float = setting(
        64.0, "Sessions for each replica that a fleet of a changing size aims at.", above=0
    )
    max_ongoing_requests: int = setting(
        0, f"Ray's own limit of requests to a replica; 0: max_sessions and {SPARE_REQUESTS} more.", RAY
    )

    def __post_init__(self) -> None:
        for about in settings():
            about.check(getattr(self, about.name))

    @classmethod
    def parse(cls, args: Mapping[str, Any]) -> ServeConfig:
        """The settings of a replica, from the words of `serve run` or the values of a config. Raises InputError."""
        known = {about.name: about for about in settings(RAY)}
        unknown = sorted(set(args) - set(known))
        if unknown:
            raise InputError(f"there is no argument {unknown[0]!r}; there are: {', '.join(known)}")
        config = cls(**{name: known[name].convert(value) for name, value in args.items()})
        config.check_fleet()
        return config

    def check_fleet(self) -> None:
        """Raises InputError for what a fleet can't be: fewer replicas at most than at least, or without keys."""
        if self.most_replicas < self.min_replicas:
            fewest = self.min_replicas
            raise InputError(f"max_replicas must be min_replicas ({fewest}) or more, got {self.max_replicas}")
        if not self.keys and not self.insecure:
            raise InputError("a fleet asks for keys: give keys, a file that each of its machines has, or insecure=true")

    def ray_arguments(self) -> dict[str, Any]:
        """The settings that `parse` takes."""
        return {about.name: getattr(self, about.name) for about in settings(RAY)}

    @property
    def most_replicas(self) -> int:
        """The most replicas that there can be."""
        return self.max_replicas or self.min_replicas

    @property
    def ongoing_requests(self) -> int:
        """The most requests that Ray gives to a replica at once."""
        return self.max_ongoing_requests or self.max_sessions + SPARE_REQUESTS

    @property
    def kv_bytes(self) -> int:
        """`kv_memory` in bytes; 0: half of the free memory."""
        return int(self.kv_memory * 2**30)


def settings(carrier: Carrier | None = None) -> list[Setting]:
    """The settings that `carrier` (COMMAND or RAY) offers, or all of them, in the order of ServeConfig's fields."""
    every = []
    for field in dataclasses.fields(ServeConfig):
        default: Any = field.default
        every.append(Setting(field.name, default, **field.metadata))
    return [about for about in every if carrier is None or about.carrier.offers(carrier)]
