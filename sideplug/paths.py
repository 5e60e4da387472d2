"""Where files are kept, and how a file is written so that it is always whole.

The cache holds what can be made again: models, prepacked weights, the retain set's tape. Other folders hold plugins,
and the keys and the certificate of a cloud. It does not know what is in a file. Test: pytest tests/cloud/test_keys.py
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from sideplug.contract.errors import InputError, Stopped

_ASIDE = re.compile(r"\..+-[a-z0-9_]{8}")  # the names that tempfile.mkstemp makes for write_aside


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


def config_file() -> Path:
    """Return the file of settings: `SIDEPLUG_CONFIG`, or `sideplug/config.toml` below XDG_CONFIG_HOME (~/.config)."""
    return _chosen("SIDEPLUG_CONFIG") or _config_dir() / "config.toml"


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


def sweep(folder: Path) -> list[Path]:
    """Delete what killed writes left below a folder (see write_aside), and return it. Raises Stopped."""
    left = [path for path in folder.rglob(".*") if _ASIDE.fullmatch(path.name) and path.is_file()]
    for path in left:
        with writing(path):
            path.unlink(missing_ok=True)
    return left


@contextlib.contextmanager
def writing(path: Path, what: str = "") -> Iterator[None]:
    """Raise Stopped, "<what> <path> could not be written: <reason>", where the block raises OSError."""
    try:
        yield
    except OSError as error:
        raise not_written(path, error, what) from error


def not_written(path: Path, error: OSError, what: str = "") -> Stopped:
    """Return the error for a file that could not be written; of our own folders it says which variable moves them."""
    failed = Path(error.filename) if isinstance(error.filename, str) else path
    moved = [name for folder, name in _MOVED if _is_of(folder, path) or _is_of(folder, failed)]
    remedy = f"; {moved[0]} names another place" if moved else ""
    return Stopped(f"{f'{what} {path}' if what else path} could not be written: {error.strerror or error}{remedy}")


def read_secret(path: Path, what: str) -> str:
    """Return the secret in a file, which only its owner may read. Raises InputError."""
    try:
        if os.name == "posix" and path.stat().st_mode & 0o077:
            raise InputError(f"{what} {path} can be read by other users of this machine: chmod 600 {path}")
        secret = path.read_text("ascii").strip()
    except OSError as error:
        raise InputError(f"{what} {path} can't be read: {error.strerror or error}") from error
    except UnicodeDecodeError:
        secret = ""
    if not secret or len(secret.split()) > 1:
        raise InputError(f"{what} {path} must hold one key, and nothing else")
    return secret


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of `path` during the block: other holders wait. Makes the file's folder. Raises OSError, and
    InputError on a system without file locks."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600), "wb") as file:
        _lock(file.fileno(), block=True)
        yield


@contextlib.contextmanager
def alone(path: Path, wait: Callable[[str], None] | None = None, shown: Path | None = None) -> Iterator[None]:
    """Hold `path` as the only writer during the block. A lock beside it names the process, and is gone afterwards.

    wait: called with who holds it, before this waits for that process; None: raises Stopped, with the same words.
    shown: what these words name, instead of `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    while True:
        with open(os.open(lock, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0) as file:
            if not _lock(file.fileno(), block=False):
                number = file.read(20).decode("ascii", "replace") or "unknown"
                owner = f"another training writes into {shown or path} (process {number})"
                if wait is None:
                    raise Stopped(owner)
                wait(owner)
                _lock(file.fileno(), block=True)
            if _is_file(lock, file.fileno()):  # else its holder has just deleted it
                file.truncate(0)
                file.write(str(os.getpid()).encode())
                try:
                    yield
                finally:
                    lock.unlink(missing_ok=True)
                return


def _is_file(path: Path, file: int) -> bool:
    """Whether an open file is the one at `path` now."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _lock(file: int, block: bool) -> bool:
    """Whether an open file is locked for this process now. Raises InputError on a system without file locks."""
    try:
        import fcntl
    except ImportError as error:  # Windows
        raise InputError(
            "this system has no file locks of the kind that sideplug needs: it runs on Linux, macOS and WSL 2"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX if block else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _chosen(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return _expanded(value, variable) if value else None


def _below(variable: str, otherwise: str) -> Path:
    return _expanded(os.environ.get(variable) or otherwise, variable) / "sideplug"


def _expanded(path: str, variable: str) -> Path:
    """The path with ~ as the home folder. Raises InputError where there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"there is no home folder here (HOME is not set): set HOME, or {variable}") from error


def _config_dir() -> Path:
    return _below("XDG_CONFIG_HOME", "~/.config")


# Our own folders, and the variables that move them.
_MOVED = (
    (cache_dir, "SIDEPLUG_CACHE (or XDG_CACHE_HOME)"),
    (plugins_dir, "SIDEPLUG_PLUGINS (or XDG_DATA_HOME)"),
    (_config_dir, "XDG_CONFIG_HOME (or SIDEPLUG_KEYS and SIDEPLUG_LOCAL_KEY)"),
)


def _is_of(folder: Callable[[], Path], path: Path) -> bool:
    """Whether a path is in one of our folders, or on the way to it."""
    try:
        own = folder()
    except InputError:  # there is no home folder
        return False
    return path == own or own in path.parents or (path in own.parents and path.is_absolute())
