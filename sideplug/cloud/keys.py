"""The keys of a cloud: a file with a hash of each key and the limits of its holder.

A key is `sp-<id>-<secret>`. The secret is 32 random bytes, so it can't be found by trying, and a plain SHA-256 is
enough: slow hashes are for passwords that people choose. The file is read again when it has changed, so adding and
revoking a key need no restart. It does not know the network, nor what a session does.
Test: pytest tests/cloud/test_keys.py
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import logging
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sideplug.contract.errors import InputError
from sideplug.paths import locked, not_written, write_aside

FORMAT = "sideplug-keys-1"  # of a file in which every key is a user's, as every version since 0.1.0 reads it
FORMAT_ROLES = "sideplug-keys-2"  # of a file with an operator's key
USER, OPERATOR = ROLES = ("user", "operator")
LOCAL = "local"  # the name of the key that `sideplug serve` makes for devices on its own machine
NAME = re.compile(r"[\w.@+-]{1,64}")
UNKNOWN_SHA256 = hashlib.sha256(b"").hexdigest()  # an unknown id is compared with it, so that it takes the same time
log = logging.getLogger("sideplug.cloud")


@dataclass(frozen=True)
class KeyLimits:
    """sessions: how many at once. tokens_per_minute: in prompts and replies together. 0 means no limit."""

    sessions: int = 8
    tokens_per_minute: int = 0

    def __post_init__(self) -> None:
        for what, value in (("sessions", self.sessions), ("tokens a minute", self.tokens_per_minute)):
            if type(value) is not int or value < 0:
                raise InputError(f"a key's {what} must be 0 (no limit) or more, got {value!r}")


@dataclass(frozen=True)
class Holder:
    """The holder of a key: whose session it is, and with what limits.

    is_operator: it may see what concerns all users: /metrics, and the sizes in /health.
    """

    name: str
    id: str
    limits: KeyLimits
    is_operator: bool = False


@dataclass(frozen=True)
class Key:
    """An entry of the file. created, revoked: UTC, ISO 8601; revoked is "" for a valid key. role: one of ROLES."""

    name: str
    id: str
    sha256: str = field(repr=False)
    created: str
    limits: KeyLimits
    revoked: str = ""
    role: str = USER

    @property
    def is_operator(self) -> bool:
        """Whether it is an operator's. The key of this machine is: who can read it runs the cloud."""
        return self.role == OPERATOR or self.name == LOCAL

    @property
    def shown_role(self) -> str:
        """Its role, as it is shown: "user" or "operator"."""
        return OPERATOR if self.is_operator else USER

    def to_json(self) -> dict[str, Any]:
        """Return the fields by name, as the file has them: the role only where it is not a user's."""
        fields = {**vars(self), "limits": vars(self.limits)}
        if self.role == USER:
            del fields["role"]
        return fields

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Key:
        """Return the key of `to_json`. Raises ValueError, TypeError, KeyError or InputError for any other value."""
        key = cls(**{**value, "limits": KeyLimits(**value["limits"])})
        if not all(isinstance(text, str) for text in (key.name, key.id, key.sha256, key.created, key.revoked)):
            raise TypeError("names, hashes and times are text")
        if not re.fullmatch("[0-9a-f]{64}", key.sha256):
            raise ValueError("sha256 has 64 hex digits")
        if key.role not in ROLES:
            raise ValueError("there is no such role")
        return key


class Keys:
    """The keys of one file; a file that does not exist has no keys. Raises InputError for a damaged or foreign file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._keys: dict[str, Key] = {}  # by id
        self._version: tuple[int, int, int] | None = None  # time, size and inode of the file that was read
        self._last_error = ""
        self._read()

    def add(self, name: str, sessions: int = 8, tokens_per_minute: int = 0, role: str = USER) -> str:
        """Make a key; return its text, which is not stored. Raises InputError (a taken name), Stopped (the disk)."""
        if role not in ROLES:
            raise InputError(f"a key's role must be {' or '.join(ROLES)}, got {role[:80]!r}")
        if not NAME.fullmatch(name):
            raise InputError(f"a key's name must have 1 to 64 letters, digits or . _ - + @, got {name[:80]!r}")
        if name == LOCAL:
            raise InputError(f"{LOCAL!r} is the key that sideplug serve makes for this machine: give another name")
        with self._changing() as keys:
            if any(key.name == name and not key.revoked for key in keys.values()):
                raise InputError(f"there is a key named {name} already: revoke it first, or give another name")
            return _new(keys, name, KeyLimits(sessions, tokens_per_minute), role)

    def revoke(self, name: str) -> None:
        """Revoke the key of this name. Raises InputError if there is no valid one, Stopped (the disk)."""
        with self._changing() as keys:
            if not _revoke(keys, name):
                names = ", ".join(sorted(key.name for key in keys.values() if not key.revoked))
                raise InputError(f"there is no key named {name[:80]!r} in {self.path}; there are: {names or 'none'}")

    def listed(self) -> list[Key]:
        """Return all keys, oldest first, with the revoked ones."""
        self._read()
        return list(self._keys.values())

    def check(self, text: str) -> Holder | None:
        """Return the holder of this key, or None for any other text. An unknown id takes as long as a known one."""
        self._refresh()
        kind, _, rest = text.partition("-")
        key_id, _, secret = rest.partition("-")
        key = self._keys.get(key_id)
        digest = hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
        is_equal = hmac.compare_digest(digest, key.sha256 if key else UNKNOWN_SHA256)
        if key is None or not is_equal or kind != "sp" or key.revoked:
            return None
        return Holder(key.name, key.id, key.limits, key.is_operator)

    def is_valid(self, holder: Holder) -> bool:
        """Return whether the holder's key is still valid."""
        self._refresh()
        key = self._keys.get(holder.id)
        return key is not None and not key.revoked

    def keep_local(self, file: Path) -> None:
        """Keep a valid key in `file` for this machine's devices: make a new one if it is lost or revoked.

        This key has no limits. Raises Stopped (the disk).
        """
        if self._is_local(file):
            return
        with self._changing() as keys:
            if self._is_local(file):  # another cloud on this machine has made it meanwhile
                return
            _revoke(keys, LOCAL)
            text = _new(keys, LOCAL, KeyLimits(0, 0))
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_aside(file, text.encode() + b"\n")

    def _is_local(self, file: Path) -> bool:
        try:
            holder = self.check(file.read_text("ascii").strip())
        except (OSError, ValueError):
            return False
        return holder is not None and holder.name == LOCAL

    @contextlib.contextmanager
    def _changing(self) -> Iterator[dict[str, Key]]:
        """Yield the keys, to be changed under the file's lock; then write them. Raises Stopped."""
        try:
            with locked(self.path):
                self._read()
                keys = dict(self._keys)
                yield keys
                if keys != self._keys:
                    has_roles = any(key.role != USER for key in keys.values())
                    listed = [key.to_json() for key in keys.values()]
                    content = {"format": FORMAT_ROLES if has_roles else FORMAT, "keys": listed}
                    write_aside(self.path, json.dumps(content, indent=2).encode() + b"\n")
                    self._read()
        except OSError as error:
            raise not_written(Path(error.filename or self.path), error) from error

    def _refresh(self) -> None:
        """Read the file if it has changed. A damaged file is logged, and the keys that were read before stay valid."""
        try:
            self._read()
            self._last_error = ""
        except InputError as error:
            if str(error) != self._last_error:
                self._last_error = str(error)
                log.error("%s; the keys that were read before stay valid", error)

    def _read(self) -> None:
        try:
            status = self.path.stat()
            version = (status.st_mtime_ns, status.st_size, status.st_ino)
            if version != self._version:
                self._keys, self._version = _parse(self.path.read_bytes()), version
        except FileNotFoundError:
            self._keys, self._version = {}, None
        except OSError as error:
            raise InputError(f"the keys file {self.path} can't be read: {error.strerror or error}") from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, InputError) as error:
            raise InputError(f"{self.path} is damaged, or no keys file (sideplug keys add makes one)") from error


def _parse(data: bytes) -> dict[str, Key]:
    content = json.loads(data)
    if content["format"] not in (FORMAT, FORMAT_ROLES):
        raise ValueError("another format")
    return {key.id: key for key in map(Key.from_json, content["keys"])}


def _new(keys: dict[str, Key], name: str, limits: KeyLimits, role: str = USER) -> str:
    """Add a new key to `keys`; return its text."""
    key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    keys[key_id] = Key(name, key_id, hashlib.sha256(secret.encode()).hexdigest(), _now(), limits, role=role)
    return f"sp-{key_id}-{secret}"


def _revoke(keys: dict[str, Key], name: str) -> bool:
    """Revoke the valid keys of this name; return whether there was one."""
    valid = [key for key in keys.values() if key.name == name and not key.revoked]
    for key in valid:
        keys[key.id] = replace(key, revoked=_now())
    return bool(valid)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
