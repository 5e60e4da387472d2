"""Who may come in: a file of keys, of which it holds only hashes, and what each key may do at once.

A key is `sp-<id>-<secret>`. The secret is 32 random bytes, so there is nothing to guess, and a plain SHA-256 is enough:
slow hashes are for what people think up. The file is read again when it has changed, so adding and revoking need no
restart. It does not know the network, nor what a session does. Test: pytest tests/cloud/test_keys.py
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

from sideplug.contract.errors import InputError, Stopped
from sideplug.paths import locked, write_aside

FORMAT = "sideplug-keys-1"
LOCAL = "local"  # the key that serve makes for devices on its own machine
NAME = re.compile(r"[\w.@+-]{1,64}")
NOBODY = hashlib.sha256(b"").hexdigest()  # compared with where the id is unknown, so that both take as long
log = logging.getLogger("sideplug.cloud")


@dataclass(frozen=True)
class KeyLimits:
    """sessions: at once. tokens_per_minute: that its prompts and replies may have. 0: as many as the cloud has."""

    sessions: int = 8
    tokens_per_minute: int = 0

    def __post_init__(self) -> None:
        for what, value in (("sessions", self.sessions), ("tokens a minute", self.tokens_per_minute)):
            if type(value) is not int or value < 0:
                raise InputError(f"a key's {what} must be 0 (no limit) or more, got {value!r}")


@dataclass(frozen=True)
class Holder:
    """Whose session it is: what a key that came in stands for."""

    name: str
    id: str
    limits: KeyLimits


@dataclass(frozen=True)
class Key:
    """A line of the file. created, revoked: UTC, ISO 8601; revoked is "" for one that is in force."""

    name: str
    id: str
    sha256: str = field(repr=False)
    created: str
    limits: KeyLimits
    revoked: str = ""

    def to_json(self) -> dict[str, Any]:
        """The fields by name, as the file has them."""
        return {**vars(self), "limits": vars(self.limits)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Key:
        """Raises ValueError, TypeError, KeyError or InputError for anything else than what `to_json` gave."""
        key = cls(**{**value, "limits": KeyLimits(**value["limits"])})
        if not all(isinstance(text, str) for text in (key.name, key.id, key.sha256, key.created, key.revoked)):
            raise TypeError("names, hashes and times are text")
        if not re.fullmatch("[0-9a-f]{64}", key.sha256):
            raise ValueError("sha256 has 64 hex digits")
        return key


class Keys:
    """The keys of one file; one that is not there yet holds none. Raises InputError for a file that is not ours."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._keys: dict[str, Key] = {}  # by id
        self._stamp: tuple[int, int, int] | None = None
        self._complaint = ""
        self._read()

    def add(self, name: str, sessions: int = 8, tokens_per_minute: int = 0) -> str:
        """The new key's text, which is kept nowhere. Raises InputError (a name that is taken), Stopped (the disk)."""
        if not NAME.fullmatch(name):
            raise InputError(f"a key's name must have 1 to 64 letters, digits or . _ - + @, got {name[:80]!r}")
        if name == LOCAL:
            raise InputError(f"{LOCAL!r} is the key that sideplug serve makes for this machine: give another name")
        with self._changing() as keys:
            if any(key.name == name and not key.revoked for key in keys.values()):
                raise InputError(f"there is a key named {name} already: revoke it first, or give another name")
            return _new(keys, name, KeyLimits(sessions, tokens_per_minute))

    def revoke(self, name: str) -> None:
        """Raises InputError where no key of this name is in force, Stopped (the disk)."""
        with self._changing() as keys:
            if not _revoke(keys, name):
                names = ", ".join(sorted(key.name for key in keys.values() if not key.revoked))
                raise InputError(f"there is no key named {name[:80]!r} in {self.path}; there are: {names or 'none'}")

    def listed(self) -> list[Key]:
        """Every key, the oldest first, the revoked ones too."""
        self._read()
        return list(self._keys.values())

    def check(self, text: str) -> Holder | None:
        """Whose key this is; None for whatever else is given. Takes as long for an id that nobody has."""
        self._refresh()
        kind, _, rest = text.partition("-")
        number, _, secret = rest.partition("-")
        key = self._keys.get(number)
        digest = hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
        is_it = hmac.compare_digest(digest, key.sha256 if key else NOBODY)
        if key is None or not is_it or kind != "sp" or key.revoked:
            return None
        return Holder(key.name, key.id, key.limits)

    def is_valid(self, holder: Holder) -> bool:
        """Is the key that came in still in force?"""
        self._refresh()
        key = self._keys.get(holder.id)
        return key is not None and not key.revoked

    def keep_local(self, file: Path) -> None:
        """Have this machine's own key in `file`, for its devices: made anew where it is lost or revoked.

        It has no limits of its own. Raises Stopped (the disk).
        """
        if self._is_local(file):
            return
        with self._changing() as keys:
            if self._is_local(file):  # another cloud of this machine made it meanwhile
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
        """The keys to change, while nobody else changes them; written afterwards."""
        try:
            with locked(self.path):
                self._read()
                keys = dict(self._keys)
                yield keys
                if keys != self._keys:
                    about = {"format": FORMAT, "keys": [key.to_json() for key in keys.values()]}
                    write_aside(self.path, json.dumps(about, indent=2).encode() + b"\n")
                    self._read()
        except OSError as error:
            raise Stopped(f"{error.filename or self.path} could not be written: {error.strerror or error}") from error

    def _refresh(self) -> None:
        """Read what has changed. A file that somebody is breaking by hand changes nothing: what was read stays."""
        try:
            self._read()
            self._complaint = ""
        except InputError as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                log.error("%s; the keys that were read before stay in force", error)

    def _read(self) -> None:
        try:
            now = self.path.stat()
            stamp = (now.st_mtime_ns, now.st_size, now.st_ino)
            if stamp != self._stamp:
                self._keys, self._stamp = _parse(self.path.read_bytes()), stamp
        except FileNotFoundError:
            self._keys, self._stamp = {}, None
        except OSError as error:
            raise InputError(f"the keys file {self.path} can't be read: {error.strerror or error}") from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, InputError) as error:
            raise InputError(f"{self.path} is damaged, or no keys file (sideplug keys add makes one)") from error


def _parse(data: bytes) -> dict[str, Key]:
    about = json.loads(data)
    if about["format"] != FORMAT:
        raise ValueError("another format")
    return {key.id: key for key in map(Key.from_json, about["keys"])}


def _new(keys: dict[str, Key], name: str, limits: KeyLimits) -> str:
    """Add a key; its text."""
    number, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    keys[number] = Key(name, number, hashlib.sha256(secret.encode()).hexdigest(), _now(), limits)
    return f"sp-{number}-{secret}"


def _revoke(keys: dict[str, Key], name: str) -> bool:
    """Was there such a key in force?"""
    found = [key for key in keys.values() if key.name == name and not key.revoked]
    for key in found:
        keys[key.id] = replace(key, revoked=_now())
    return bool(found)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
