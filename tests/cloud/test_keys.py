"""The file of keys: what is kept, who comes in, and that nothing else does, whatever it looks like."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sideplug.cloud.keys import LOCAL, Holder, KeyLimits, Keys
from sideplug.contract.errors import InputError, Stopped


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config" / "keys.json"


def test_a_key_from_start_to_end(path: Path) -> None:
    keys = Keys(path)
    assert keys.listed() == []
    text = keys.add("ada", sessions=3, tokens_per_minute=600)
    assert re.fullmatch(r"sp-[0-9a-f]{12}-[\w-]{43}", text)
    number, secret = text.split("-", 2)[1:]
    assert keys.check(text) == Holder("ada", number, KeyLimits(3, 600))
    assert keys.add("bert") != text
    assert [(key.name, key.limits) for key in keys.listed()] == [("ada", KeyLimits(3, 600)), ("bert", KeyLimits(8, 0))]
    kept = path.read_text(encoding="utf-8")
    assert secret not in kept
    assert hashlib.sha256(secret.encode()).hexdigest() in kept
    assert secret not in repr(keys.listed())
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    keys.revoke("ada")
    assert keys.check(text) is None
    assert [bool(key.revoked) for key in keys.listed()] == [True, False]


def test_a_name_is_free_again_when_its_key_was_revoked(path: Path) -> None:
    keys = Keys(path)
    first = keys.add("ada")
    with pytest.raises(InputError, match="there is a key named ada already: revoke it first"):
        keys.add("ada")
    keys.revoke("ada")
    second = keys.add("ada")
    assert (keys.check(first), keys.check(second)) == (None, Holder("ada", second.split("-")[1], KeyLimits()))
    with pytest.raises(InputError, match="there is no key named 'bert' in .*keys.json; there are: ada"):
        keys.revoke("bert")


@pytest.mark.parametrize("name", ["", " ", "a b", "a\n", "a/b", "x" * 65, "\ud800", LOCAL])
def test_bad_names(path: Path, name: str) -> None:
    with pytest.raises(InputError, match="key's name must have|is the key that sideplug serve makes"):
        Keys(path).add(name)
    assert not path.exists()


def test_bad_limits(path: Path) -> None:
    for limits in ((-1, 0), (8, -1), (1.5, 0), (True, 0)):
        with pytest.raises(InputError, match="must be 0"):
            Keys(path).add("ada", *limits)  # type: ignore[arg-type]


def test_what_another_process_changes_is_seen_at_once(path: Path) -> None:
    serving, operator = Keys(path), Keys(path)
    ada = operator.add("ada")
    holder = serving.check(ada)
    assert holder is not None
    assert serving.is_valid(holder)
    operator.add("bert")
    assert serving.is_valid(holder)
    operator.revoke("ada")
    assert not serving.is_valid(holder)
    assert serving.check(ada) is None
    bert = operator.add("bert-2")
    assert serving.check(bert) is not None
    path.unlink()
    assert serving.check(bert) is None


def test_a_key_of_another_file(path: Path, tmp_path: Path) -> None:
    ada = Keys(tmp_path / "other.json").add("ada")
    mine = Keys(path)
    own = mine.add("ada")
    assert mine.check(ada) is None
    number, secret = ada.split("-", 2)[1:]
    swapped = f"sp-{own.split('-')[1]}-{secret}"
    assert mine.check(swapped) is None
    assert not mine.is_valid(Holder("ada", number, KeyLimits()))


def test_changes_at_once_lose_nothing(path: Path) -> None:
    threads = [threading.Thread(target=lambda n=n: Keys(path).add(f"key-{n}")) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {key.name for key in Keys(path).listed()} == {f"key-{n}" for n in range(12)}
    assert sorted(p.name for p in path.parent.iterdir()) == [".keys.json.lock", "keys.json"]


GOOD = {"name": "ada", "id": "0" * 12, "sha256": "0" * 64, "created": "", "revoked": "", "limits": {"sessions": 8}}
DAMAGED: list[Any] = [
    b"",
    b"{",
    b"\xff\xfe",
    b"[" * 100_000,
    b"[]",
    b"{}",
    b"null",
    b'"sideplug"',
    {"format": "other", "keys": []},
    {"format": "sideplug-keys-1"},
    {"format": "sideplug-keys-1", "keys": {"a": 1}},
    {"format": "sideplug-keys-1", "keys": [1]},
    *(
        {"format": "sideplug-keys-1", "keys": [{**GOOD, name: value}]}
        for name, value in (
            ("id", 7),
            ("id", []),
            ("sha256", "0" * 63),
            ("sha256", "Ä" * 64),
            ("revoked", None),
            ("limits", {"sessions": "many"}),
            ("limits", 8),
            ("limits", {"pages": 8}),
            ("more", 1),
        )
    ),
]


@pytest.mark.parametrize("content", DAMAGED, ids=lambda c: repr(c)[:60])
def test_a_file_that_is_not_ours(path: Path, content: Any) -> None:
    path.parent.mkdir()
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    before = path.read_bytes()
    with pytest.raises(InputError, match="keys.json is damaged, or no keys file") as caught:
        Keys(path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


def test_a_good_line_is_read(path: Path) -> None:
    path.parent.mkdir()
    path.write_text(json.dumps({"format": "sideplug-keys-1", "keys": [GOOD]}), encoding="utf-8")
    assert [key.name for key in Keys(path).listed()] == ["ada"]


def test_a_file_that_breaks_while_serving(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever was in stays in, it is said once, and the repaired file counts again."""
    keys = Keys(path)
    ada = keys.add("ada")
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    with caplog.at_level(logging.ERROR):
        assert [keys.check(ada) is not None for _ in range(3)] == [True] * 3
    assert len(caplog.records) == 1
    assert "is damaged" in caplog.text
    with pytest.raises(InputError, match="is damaged"):
        keys.add("bert")
    path.write_bytes(whole)
    keys.revoke("ada")
    assert keys.check(ada) is None


def test_folders_that_can_not_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't be read"):
        Keys(tmp_path / "file" / "keys.json")
    with pytest.raises(InputError, match="can't be read"):
        Keys(tmp_path)
    keys = Keys(tmp_path / "later" / "keys.json")
    (tmp_path / "later").write_text("")
    with pytest.raises((Stopped, InputError), match="could not be written|can't be read"):
        keys.add("ada")


def test_the_local_key(path: Path, tmp_path: Path) -> None:
    keys, file = Keys(path), tmp_path / "config" / "local-key"
    keys.keep_local(file)
    first = file.read_text().strip()
    assert file.stat().st_mode & 0o777 == 0o600
    assert keys.check(first) == Holder(LOCAL, first.split("-")[1], KeyLimits(0, 0), is_operator=True)
    keys.add("ada")
    before = (path.read_bytes(), file.read_bytes())
    Keys(path).keep_local(file)
    assert (path.read_bytes(), file.read_bytes()) == before
    for spoil in (
        lambda: keys.revoke(LOCAL),
        lambda: file.unlink(),
        lambda: file.write_text("garbage"),
        lambda: file.write_bytes(b"\xff"),
        lambda: file.write_text(keys.add(f"key-{os.urandom(4).hex()}")),  # somebody else's
        lambda: path.unlink(),
    ):
        old = file.read_text().strip()
        spoil()
        keys.keep_local(file)
        new = file.read_text().strip()
        assert new != old
        assert keys.check(old) is None
        assert keys.check(new) is not None
        assert [key.name for key in keys.listed() if not key.revoked].count(LOCAL) == 1


TEXT = st.text() | st.text(st.characters()) | st.from_regex(r"sp-[0-9a-f]{0,12}-[\w-]{0,60}")


@given(TEXT)
def test_garbage_never_comes_in(garbage: str) -> None:
    assert KEYS.check(garbage) is None
    assert KEYS.check(f"sp-{NUMBER}-{garbage}") is None
    assert KEYS.check(ADA + garbage) is None or not garbage
    assert KEYS.check(garbage + ADA) is None or not garbage


@given(st.integers(0, 58), st.characters(codec="ascii"))
def test_one_other_letter_is_another_key(at: int, letter: str) -> None:
    changed = ADA[:at] + letter + ADA[at + 1 :]
    assert (KEYS.check(changed) is not None) is (changed == ADA)


@pytest.fixture(autouse=True, scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> None:
    global KEYS, ADA, NUMBER
    KEYS = Keys(tmp_path_factory.mktemp("keys") / "keys.json")
    ADA = KEYS.add("ada")
    NUMBER = ADA.split("-")[1]


KEYS: Keys
ADA: str
NUMBER: str
