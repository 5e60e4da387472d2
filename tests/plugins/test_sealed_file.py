"""A plugin as one file: what comes back, and a sentence of its own for each way in which it does not."""

from __future__ import annotations

import hashlib
import importlib.util
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sideplug.contract.errors import InputError, PluginError
from sideplug.plugins import sealed_file
from sideplug.plugins.sealed_file import (
    CHECK_BYTES,
    DIGEST_BYTES,
    HEAD,
    START,
    TAG_BYTES,
    WrongPassphrase,
    seal,
    unseal,
)

DATA = bytes(range(256)) * 3
KEY = "bees, nails and tea"


@pytest.fixture(scope="module")
def sealed() -> bytes:
    """One for all tests here: scrypt is slow on purpose."""
    return seal(DATA, KEY)


def flipped(file: bytes, at: int) -> bytes:
    return file[:at] + bytes([file[at] ^ 0x40]) + file[at + 1 :]


def whole_again(file: bytes) -> bytes:
    """With the checksum that fits: what somebody does who wants to be believed."""
    body = file[:-DIGEST_BYTES]
    return body + hashlib.sha256(body).digest()


@given(st.binary(max_size=300))
def test_plain_comes_back(data: bytes) -> None:
    file = seal(data)
    assert unseal(file) == data
    assert unseal(file, "needless") == data
    assert not sealed_file.is_sealed(file)
    assert len(file) == START + len(data) + DIGEST_BYTES


@pytest.mark.parametrize("data", [b"", DATA])
@pytest.mark.parametrize("passphrase", ["x", "пароль 🔑", os.fsdecode(b"\xff\xfe")])
def test_sealed_comes_back(data: bytes, passphrase: str) -> None:
    """The last one is what a variable holds whose bytes are no text."""
    file = seal(data, passphrase)
    assert unseal(file, passphrase) == data
    assert sealed_file.is_sealed(file)


def test_nothing_of_it_is_legible_and_no_two_are_alike(sealed: bytes) -> None:
    other = seal(DATA, KEY)
    assert DATA[:16] not in sealed
    salt_nonce_check = slice(HEAD.size - 28, START)
    assert other[salt_nonce_check] != sealed[salt_nonce_check]
    assert other[START:] != sealed[START:]


def test_the_wrong_passphrase(sealed: bytes) -> None:
    with pytest.raises(WrongPassphrase, match="^the passphrase is wrong$") as caught:
        unseal(sealed, KEY + " ")
    assert caught.value.exit_code == 2
    with pytest.raises(WrongPassphrase, match="this plugin is sealed: give its passphrase"):
        unseal(sealed)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 17, HEAD.size, START - 1, START, START + DIGEST_BYTES - 1])
@pytest.mark.parametrize("is_sealed", [False, True])
def test_cut_off_in_the_head(sealed: bytes, is_sealed: bool, length: int) -> None:
    file = sealed if is_sealed else seal(DATA)
    with pytest.raises(PluginError, match=f"the plugin file is cut off: it has {length} bytes"):
        unseal(file[:length], KEY)


@pytest.mark.parametrize("missing", [1, DIGEST_BYTES - 1, DIGEST_BYTES, DIGEST_BYTES + 1, DIGEST_BYTES + TAG_BYTES])
@pytest.mark.parametrize("is_sealed", [False, True])
def test_cut_off_behind_it(sealed: bytes, is_sealed: bool, missing: int) -> None:
    file = sealed if is_sealed else seal(DATA)
    with pytest.raises(PluginError, match=f"is cut off: it has {len(file) - missing} of {len(file)} bytes"):
        unseal(file[:-missing], KEY)


@pytest.mark.parametrize("foreign", [b"", b"S1DEPLUG" + bytes(200), b"PK\x03\x04" * 50, b"\x00", b"sideplug" * 20])
def test_another_kind_of_file(foreign: bytes) -> None:
    for ask in (unseal, sealed_file.is_sealed):
        with pytest.raises(PluginError, match="this is no plugin file of ours"):
            ask(foreign)


REGIONS = {
    "magic": (0, "no plugin file of ours"),
    "version": (8, "has version 65, this version of sideplug reads 1"),
    "kind": (9, "has version 1, this version"),
    "size, larger": (17, "is cut off"),
    "salt": (18, "damaged: its checksum"),
    "nonce": (34, "damaged: its checksum"),
    "check": (HEAD.size, "damaged: its checksum"),
    "body": (START, "damaged: its checksum"),
    "digest": (-1, "damaged: its checksum"),
}


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("is_sealed", [False, True])
def test_a_flipped_bit_is_found_without_the_passphrase(sealed: bytes, is_sealed: bool, region: str) -> None:
    at, says = REGIONS[region]
    file = sealed if is_sealed else seal(DATA)
    with pytest.raises(PluginError, match=says) as caught:
        sealed_file.is_sealed(flipped(file, at % len(file)))
    assert not isinstance(caught.value, WrongPassphrase)


@given(st.data())
def test_any_byte_that_is_another_is_found(data: st.DataObject) -> None:
    file = bytearray(seal(DATA))
    at = data.draw(st.integers(0, len(file) - 1))
    file[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(PluginError):
        unseal(bytes(file))


@pytest.mark.parametrize(
    ("at", "says"),
    [
        (18, "the passphrase is wrong"),  # another salt is another key
        (34, "the passphrase is wrong"),  # the check covers the head
        (HEAD.size, "the passphrase is wrong"),
        (HEAD.size + CHECK_BYTES - 1, "the passphrase is wrong"),
        (START, "altered by somebody"),
        (START + len(DATA) // 2, "altered by somebody"),
        (START + len(DATA), "altered by somebody"),  # the tag
        (-DIGEST_BYTES - 1, "altered by somebody"),
    ],
)
def test_what_was_altered_and_made_to_look_whole(sealed: bytes, at: int, says: str) -> None:
    """The checksum fits again: only the key tells."""
    file = whole_again(flipped(sealed, at % len(sealed)))
    assert sealed_file.is_sealed(file)
    with pytest.raises(PluginError, match=says):
        unseal(file, KEY)


def test_a_sealed_one_that_says_it_is_plain(sealed: bytes) -> None:
    """Then what comes out is the cipher's bytes: never the plugin."""
    file = whole_again(sealed[:9] + b"\x00" + sealed[10:])
    assert DATA not in unseal(file)


@pytest.mark.parametrize("is_sealed", [False, True])
def test_bytes_behind_the_end(sealed: bytes, is_sealed: bool) -> None:
    file = sealed if is_sealed else seal(DATA)
    for longer in (file + b"x", whole_again(file + b"x")):
        with pytest.raises(PluginError, match="damaged: its checksum"):
            unseal(longer, KEY)


def test_without_the_cipher(sealed: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is an extra: plain files need none, a sealed one says which is missing."""
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "cryptography" else there(name))
    assert unseal(seal(DATA)) == DATA
    for work in (lambda: seal(DATA, KEY), lambda: unseal(sealed, KEY)):
        with pytest.raises(InputError, match=r"needs the package cryptography: pip install 'sideplug\[seal\]'$"):
            work()
