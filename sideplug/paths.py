"""Where files are kept, and how a file is written so that it is always whole.

The cache holds what can be made again: models, prepacked weights, the retain set's tape. Other folders hold plugins,
and the keys and the certificate of a cloud. It does not know what is in a file. Test: pytest tests/cloud/test_keys.py
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sideplug.contract.errors import Stopped


def cache_dir() -> Path:
    """Return the cache folder: `SIDEPLUG_CACHE`, or `sideplug` below XDG_CACHE_HOME (~/.cache)."""
    return _chosen("SIDEPLUG_CACHE") or _below("XDG_CACHE_HOME", "~/.cache")


def plugins_dir() -> Path:
    """Return the folder of plugins: `SIDEPLUG_PLUGINS`, or `sideplug/plugins` below XDG_DATA_HOME (~/.local/share)."""
    return _chosen("SIDEPLUG_PLUGINS") or _below("XDG_DATA_HOME", "~/.local/share") / "plugins"


def keys_file() -> Path:
    """Return a cloud's file of keys: `SIDEPLUG_KEYS`, or `sideplug/keys.json` below XDG_CONFIG_HOME (~/.config)."""
    return _chosen("SIDEPLUG_KEYS") or _config_dir() / "keys.json"


def local_key_file() -> Path:
    """Return the key file of a cloud on this machine: `SIDEPLUG_LOCAL_KEY`, or `local-key` beside keys.json."""
    return _chosen("SIDEPLUG_LOCAL_KEY") or _config_dir() / "local-key"


def own_certificate_file() -> Path:
    """Return the PEM file of serve --tls-self, beside keys.json: its private key and its certificate."""
    return _config_dir() / "tls-self.pem"


def write_aside(path: Path, data: bytes) -> None:
    """Write `data` to a new file and rename it to `path`: a reader sees the old file or the new one, never a part.

    Only the file's owner may read it. Raises OSError; then the old file stays.
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
def writing(path: Path, what: str = "") -> Iterator[None]:
    """Raise Stopped, "<what> <path> could not be written: <reason>", where the block raises OSError."""
    try:
        yield
    except OSError as error:
        name = f"{what} {path}" if what else path
        raise Stopped(f"{name} could not be written: {error.strerror or error}") from error


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of `path` during the block: other holders wait. Makes the file's folder. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600), "wb") as file:
        with contextlib.suppress(ImportError):  # Windows has no flock: one of two changes at once may be lost
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
