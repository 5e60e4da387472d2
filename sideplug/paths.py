"""Where things are kept, and how a file is written so that it is always whole.

Kept are: what can be made again (models, arranged weights, the general tape), plugins, and who may come in (keys, the
certificate of serve --tls-self). It does not know what is in a file. Test: pytest tests/cloud/test_keys.py
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


def cache_dir() -> Path:
    """`SIDEPLUG_CACHE`, or `sideplug` below XDG_CACHE_HOME (~/.cache)."""
    return _chosen("SIDEPLUG_CACHE") or _below("XDG_CACHE_HOME", "~/.cache")


def plugins_dir() -> Path:
    """`SIDEPLUG_PLUGINS`, or `sideplug/plugins` below XDG_DATA_HOME (~/.local/share)."""
    return _chosen("SIDEPLUG_PLUGINS") or _below("XDG_DATA_HOME", "~/.local/share") / "plugins"


def keys_file() -> Path:
    """The keys that a cloud knows: `SIDEPLUG_KEYS`, or `sideplug/keys.json` below XDG_CONFIG_HOME (~/.config)."""
    return _chosen("SIDEPLUG_KEYS") or _config_dir() / "keys.json"


def local_key_file() -> Path:
    """The key for a cloud on this very machine: `SIDEPLUG_LOCAL_KEY`, or `local-key` beside keys.json."""
    return _chosen("SIDEPLUG_LOCAL_KEY") or _config_dir() / "local-key"


def own_certificate_file() -> Path:
    """What serve --tls-self made: the private key and the certificate, in one PEM file beside keys.json."""
    return _config_dir() / "tls-self.pem"


def write_aside(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, whole, and only its owner may read it.

    Raises OSError; the old one then stays.
    """
    number, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(number, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Nobody else who asks for this lock changes `path` meanwhile. Its folder is made. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600), "wb") as file:
        with contextlib.suppress(ImportError):  # Windows has no flock: there two at once may lose one's change
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _chosen(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value).expanduser() if value else None


def _below(variable: str, otherwise: str) -> Path:
    return Path(os.environ.get(variable) or otherwise).expanduser() / "sideplug"


def _config_dir() -> Path:
    return _below("XDG_CONFIG_HOME", "~/.config")
