"""A trunk: the parameters that a person's part begins with. Public, the same for everybody, learnt from many writers.

A file holds its tensors in float16, and in its header what base, kind and tap it is for, with a *card*: from which
texts it was learnt, under which licences, and what it does to loss. How one is made and found is in the room trunk.
Test: pytest tests/plugins/test_trunk.py
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from sideplug.contract.errors import InputError, NoNetwork, PluginError
from sideplug.contract.gate import Gate
from sideplug.contract.tap import Tap
from sideplug.paths import cache_dir, write_aside, writing
from sideplug.plugins.base import ONE_TEXT, Params, check_params, digest, trained_kind
from sideplug.plugins.gates import gate_config, gate_of, gate_tensors

SUFFIX = ".trunk"
FORMAT = 1
MAX_BYTES = 256 << 20
HEADER = "sideplug.trunk"


@dataclass(frozen=True, eq=False)
class Trunk:
    """A trunk. name, version: what it is known by. base: the base model's fingerprint. params: float32.

    card: what people should know of it, plain values. sha256: of its file; "" before it has one. gate: tells text of
    people, such as it has read, from general text; for a person with too little text for a gate of their own.
    """

    name: str
    version: int
    base: str
    base_name: str
    kind: str
    tap: Tap
    params: Params
    card: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""
    gate: Gate = Gate("open")

    @property
    def title(self) -> str:
        """Its name and version, as people read them."""
        return f"{self.name} {self.version}"

    @property
    def about(self) -> dict[str, str]:
        """What a part that begins with it notes of it."""
        return {"title": self.title, "sha256": self.sha256, "digest": self.digest.hex()}

    @property
    def size(self) -> int:
        """Parameters."""
        return sum(value.size for value in self.params.values())

    @property
    def digest(self) -> bytes:
        """See plugins.base.digest."""
        return digest(self.kind, self.tap, self.params)

    def save(self, path: Path) -> None:
        """Write it to a file. Raises Stopped."""
        told = {name: getattr(self, name) for name in ("name", "version", "base", "base_name", "kind", "card")}
        about = {"format": FORMAT, "tap": self.tap.name, **gate_config(self.gate), **told}
        header = {HEADER: json.dumps(about, ensure_ascii=False)}
        halves = {name: value.astype(np.float16) for name, value in self.params.items()}
        with writing(path, "the trunk"):
            write_aside(path, safetensors.numpy.save({**halves, **gate_tensors(self.gate)}, header))

    @staticmethod
    def install(source: Path, target: Path) -> None:
        """Copy a trunk's file, as it is, to a shelf. Raises Stopped."""
        with writing(target, "the trunk"):
            write_aside(target, source.read_bytes())

    @classmethod
    def load(cls, path: Path) -> Trunk:
        """The trunk of a file. Raises PluginError for a file that is none, is damaged, or is of another version."""
        try:
            if path.stat().st_size > MAX_BYTES:
                raise PluginError(f"{path} is no trunk: it has more than {MAX_BYTES >> 20} MB")
            data = path.read_bytes()
            length = int.from_bytes(data[:8], "little")
            header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][HEADER])
            halves = safetensors.numpy.load(data)
        except OSError as error:
            raise PluginError(f"{path} can't be read: {error.strerror or error}") from error
        except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise PluginError(f"{path} is no trunk, or is damaged") from error
        if header.get("format") != FORMAT:
            raise PluginError(f"{path} is a trunk of another version of sideplug")
        try:
            texts = {name: str(header[name])[:200] for name in ("name", "base", "base_name", "kind")}
            tap, card, version = Tap.parse(header["tap"]), dict(header["card"]), int(header["version"])
            gate = gate_of(header, halves)
            params = {name: value.astype(np.float32) for name, value in halves.items()}
            kind = trained_kind(texts["kind"])
            kind.check_tap(tap)
            check_params(params, kind.shapes(tap, params))
        except PluginError:
            raise
        except (ValueError, KeyError, TypeError, InputError) as error:
            raise PluginError(f"{path} is no trunk, or is damaged") from error
        if not all(np.isfinite(value).all() for value in params.values()):
            raise PluginError(f"{path} is no trunk, or is damaged: a number in it is not finite")
        none = np.zeros((1, len(tap.layers), tap.rank), np.float32)
        try:
            gate.check(kind.forward(params, none, ONE_TEXT)[0].shape[1])
        except InputError as error:
            raise PluginError(f"{path} is no trunk, or is damaged: {error}") from error
        sha256 = hashlib.sha256(data).hexdigest()
        return cls(**texts, version=version, tap=tap, params=params, card=card, sha256=sha256, gate=gate)


@contextlib.contextmanager
def fetched(source: str) -> Iterator[Path]:
    """A file, or what a URL (https, or http of this machine) gives, as a file. Raises InputError, NoNetwork."""
    if "://" not in source:
        yield Path(source)
        return
    url = urllib.parse.urlsplit(source)
    if url.scheme != "https" and not (url.scheme == "http" and url.hostname in ("localhost", "127.0.0.1", "::1")):
        raise InputError(f"a trunk's address must begin with https://, got {source[:64]!r}")
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / ("fetched" + SUFFIX)
        try:
            with urllib.request.urlopen(source, timeout=30) as response:
                data = response.read(MAX_BYTES + 1)
        except (OSError, ValueError) as error:
            raise NoNetwork(f"{source} could not be fetched: {error}") from error
        path.write_bytes(data)
        yield path


def shelves() -> list[Path]:
    """The folders where trunks are looked for: the person's own, then the package's."""
    return [cache_dir() / "trunks", Path(__file__).parent / "trunks"]


def installed() -> list[Trunk]:
    """All trunks that are installed and whole, each once, the newest of a name first."""
    found: dict[str, Trunk] = {}
    for path in (path for shelf in shelves() for path in sorted(shelf.glob("*" + SUFFIX))):
        with contextlib.suppress(PluginError):
            trunk = Trunk.load(path)
            found.setdefault(trunk.sha256, trunk)
    return sorted(found.values(), key=lambda trunk: (trunk.base_name, trunk.name, -trunk.version))


def for_base(fingerprint: str) -> Trunk | None:
    """The trunk that a new part on this base begins with: the person's own before the package's, the newest first."""
    fit = [trunk for trunk in installed() if trunk.base == fingerprint]
    return max(fit, key=lambda trunk: trunk.version, default=None)


def named(name: str) -> Trunk:
    """The trunk of a file, of a name, or of a title ("prose 2"). Raises PluginError."""
    if Path(name).is_file():
        return Trunk.load(Path(name))
    there = installed()
    fit = [trunk for trunk in there if name in (trunk.name, trunk.title, trunk.sha256[: max(8, len(name))])]
    if not fit:
        titles = ", ".join(trunk.title for trunk in there) or "none is installed"
        raise PluginError(f"there is no trunk {name[:64]!r}, as a file or by its name ({titles})")
    return max(fit, key=lambda trunk: trunk.version)
