"""A plugin as one file, plain or sealed with a passphrase, for the person's other device or for a shared disk.

    0   8  b"SIDEPLUG"
    8   1  version, 1
    9   1  0 plain, 1 sealed
    10  8  n, the number of bytes of the body, little-endian
    18  16 salt    of scrypt (zeros if plain)
    34  12 nonce   of AES-GCM (zeros if plain)
    46  32 check   HMAC-SHA256 of bytes 0 to 45 with the second half of the key; it shows a wrong passphrase
    78  n  body    the bytes, or AES-256-GCM of them with bytes 0 to 77 as associated data
    78+n 32        SHA-256 of all bytes before it; it shows a damaged file

scrypt makes the key from the passphrase (N = 2^15, r = 8, p = 3: OWASP's setting for 32 MB of memory). It takes about
half a second, on purpose. The module does not know what the bytes mean. Test: pytest tests/plugins/test_sealed_file.py
"""

from __future__ import annotations

import hashlib
import hmac
import importlib.util
import os
import struct
from typing import Any

from sideplug.contract.errors import InputError, PluginError

MAGIC = b"SIDEPLUG"
HEAD = struct.Struct("<8sBBQ16s12s")
CHECK_BYTES, DIGEST_BYTES, TAG_BYTES = 32, 32, 16
START = HEAD.size + CHECK_BYTES


class WrongPassphrase(PluginError):
    """The passphrase does not open the file."""

    code = "wrong-passphrase"


def seal(data: bytes, passphrase: str = "") -> bytes:
    """Return a file's bytes for `data`, sealed if there is a passphrase. Raises InputError (a missing package)."""
    if not passphrase:
        body, head, check = data, HEAD.pack(MAGIC, 1, 0, len(data), bytes(16), bytes(12)), bytes(CHECK_BYTES)
    else:
        cipher = _cipher()
        salt, nonce = os.urandom(16), os.urandom(12)
        head = HEAD.pack(MAGIC, 1, 1, len(data) + TAG_BYTES, salt, nonce)
        key, check_key = _keys(passphrase, salt)
        check = hmac.digest(check_key, head, "sha256")
        body = cipher(key).encrypt(nonce, data, head + check)
    whole = head + check + body
    return whole + hashlib.sha256(whole).digest()


def is_sealed(file: bytes) -> bool:
    """Return whether a file needs a passphrase. Raises PluginError for another kind of file, or a damaged one."""
    return _parse(file)[0] == 1


def unseal(file: bytes, passphrase: str = "") -> bytes:
    """Return the data of a file. Raises PluginError with one sentence for each of: another kind of file, cut off,
    damaged, wrong passphrase (WrongPassphrase), altered by somebody who also changed its checksum."""
    kind, salt, nonce, body = _parse(file)
    if kind == 0:
        return body
    if not passphrase:
        raise WrongPassphrase("this plugin is sealed: give its passphrase (SIDEPLUG_PASSPHRASE, or type it)")
    cipher = _cipher()
    key, check_key = _keys(passphrase, salt)
    if not hmac.compare_digest(hmac.digest(check_key, file[: HEAD.size], "sha256"), file[HEAD.size : START]):
        raise WrongPassphrase("the passphrase is wrong")
    try:
        data: bytes = cipher(key).decrypt(nonce, body, file[:START])
    except Exception as error:  # InvalidTag
        raise PluginError("the sealed plugin was altered by somebody: it is not what was sealed") from error
    return data


def _parse(file: bytes) -> tuple[int, bytes, bytes, bytes]:
    """Return (kind, salt, nonce, body) of a whole file. Raises PluginError for any other."""
    if file[: len(MAGIC)] != MAGIC[: len(file)] or not file:
        raise PluginError("this is no plugin file of ours: it must begin with SIDEPLUG")
    if len(file) < START + DIGEST_BYTES:
        raise PluginError(f"the plugin file is cut off: it has {len(file)} bytes")
    _, version, kind, size, salt, nonce = HEAD.unpack(file[: HEAD.size])
    if version != 1 or kind not in (0, 1):
        raise PluginError(f"the plugin file has version {version}, this version of sideplug reads 1")
    end = START + size
    if len(file) < end + DIGEST_BYTES:
        raise PluginError(f"the plugin file is cut off: it has {len(file)} of {end + DIGEST_BYTES} bytes")
    if not hmac.compare_digest(hashlib.sha256(file[:end]).digest(), file[end:]):
        raise PluginError("the plugin file is damaged: its checksum does not fit")
    return kind, salt, nonce, file[START:end]


def _keys(passphrase: str, salt: bytes) -> tuple[bytes, bytes]:
    """Return the key of the cipher and the key of the check."""
    secret = passphrase.encode("utf-8", "surrogateescape")  # an environment variable may be no valid text
    key = hashlib.scrypt(secret, salt=salt, n=1 << 15, r=8, p=3, maxmem=64 << 20, dklen=64)
    return key[:32], key[32:]


def _cipher() -> Any:
    if importlib.util.find_spec("cryptography") is None:
        raise InputError("a passphrase needs the package cryptography: pip install 'sideplug[seal]'")
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM
