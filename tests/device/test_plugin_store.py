"""The plugins of a device by name: what is there, what a name may be, what only a passphrase opens."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from sideplug.contract.errors import InputError, PluginError, Stopped, UnknownModel
from sideplug.device import lock as locking
from sideplug.device.lock import lock, unlock
from sideplug.device.plugin_store import PluginStore
from sideplug.plugins import Plugin, sealed_file
from sideplug.plugins.file import CONFIG, MANNER, PLUGIN, SUFFIX, WEIGHTS
from sideplug.plugins.sealed_file import WrongPassphrase
from tests.conftest import a_plugin

BASE = "f" * 64
KEY = "bees, nails and tea"


@pytest.fixture(autouse=True)
def quick_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real ones are slow on purpose (test_sealed_file has them)."""

    def scrypt(words: bytes, *, salt: bytes, dklen: int, **cost: int) -> bytes:
        return hashlib.pbkdf2_hmac("sha256", words, salt, 1, dklen)

    monkeypatch.setattr(hashlib, "scrypt", scrypt)


def put(root: Path, name: str, seed: int = 3) -> Plugin:
    plugin: Plugin = a_plugin(BASE, seed=seed)
    plugin.save(root / name)
    return plugin


def same(a: Plugin, b: Plugin) -> bool:
    mine, theirs = a.trained.params, b.trained.params
    return a.config() == b.config() and all(np.array_equal(mine[name], theirs[name]) for name in mine)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def shelf(tmp_path: Path) -> PluginStore:
    """With two plugins."""
    root = tmp_path / "shelf"
    put(root, "anna", 1)
    put(root, "mill", 2)
    return PluginStore(root)


def names(shelf: PluginStore) -> list[str]:
    return [entry.name for entry in shelf.entries()]


def test_what_is_there(shelf: PluginStore, tmp_path: Path) -> None:
    assert names(PluginStore(tmp_path / "nothing yet")) == []
    assert names(shelf) == ["anna", "mill"]
    (shelf.root / "empty").mkdir()
    (shelf.root / "a file").write_text("x")
    put(shelf.root, ".hidden")
    put(shelf.root, "two words")
    assert names(shelf) == ["anna", "mill"]
    put(shelf.root, "brücke")
    assert names(shelf) == ["anna", "brücke", "mill"]
    assert same(shelf.load("mill"), a_plugin(BASE, seed=2))
    assert not same(shelf.load("anna"), a_plugin(BASE, seed=2))


def test_a_name_that_is_not_there(shelf: PluginStore) -> None:
    for work in (shelf.load, shelf.find, shelf.delete, shelf.export, shelf.is_own, lambda n: shelf.rename(n, "x")):
        with pytest.raises(UnknownModel, match="there is no plugin 'nobody' here; there are: anna, mill"):
            work("nobody")
    with pytest.raises(UnknownModel, match="there are: none"):
        PluginStore(shelf.root / "none").load("nobody")


@pytest.mark.parametrize(
    "name", ["", "../x", "..", ".", "a/b", "a\\b", "/etc", ".x", "-x", "a b", "a\n", "x" * 65, "a\0"]
)
def test_names_that_can_not_be(shelf: PluginStore, name: str) -> None:
    """Nothing outside the store is ever named."""
    before = contents(shelf.root.parent)
    file = shelf.export("anna")
    for work in (shelf.new_folder, lambda n: shelf.rename("anna", n), lambda n: shelf.import_(n, file)):
        with pytest.raises(InputError, match="a plugin's name must be 1 to 64 letters") as caught:
            work(name)
        assert "\n" not in str(caught.value)
    for refuse in (shelf.load, shelf.delete, shelf.export):
        with pytest.raises(UnknownModel):
            refuse(name)
    assert contents(shelf.root.parent) == before


def test_names_that_are_taken(shelf: PluginStore) -> None:
    before, file = contents(shelf.root), shelf.export("anna")
    for work in (shelf.new_folder, lambda n: shelf.rename("anna", n), lambda n: shelf.import_(n, file)):
        with pytest.raises(InputError, match="there is a plugin 'mill' already"):
            work("mill")
    assert contents(shelf.root) == before


def test_a_plugin_gets_another_name(shelf: PluginStore) -> None:
    (shelf.root / "anna" / "tape").mkdir()
    (shelf.root / "anna" / "tape" / "train.tape").write_bytes(b"words")
    shelf.rename("anna", "Anna.2_b-c")
    assert names(shelf) == ["Anna.2_b-c", "mill"]
    assert (shelf.root / "Anna.2_b-c" / "tape" / "train.tape").read_bytes() == b"words"
    assert same(shelf.load("Anna.2_b-c"), a_plugin(BASE, seed=1))
    (shelf.root / "old").mkdir()
    (shelf.root / "old" / "notes").write_text("somebody's")  # no plugin, but not nothing
    with pytest.raises(Stopped, match="mill could not be renamed"):
        shelf.rename("mill", "old")
    assert same(shelf.load("mill"), a_plugin(BASE, seed=2))


def test_a_deleted_one_is_gone_for_the_next(shelf: PluginStore) -> None:
    """Who has it goes on with it."""
    kept = shelf.load("anna")
    assert shelf.load("anna") is kept
    shelf.delete("anna")
    assert not (shelf.root / "anna").exists()
    with pytest.raises(UnknownModel):
        shelf.load("anna")
    assert kept.trained.correct(np.ones((1, 3, 16), np.float32)).any()
    put(shelf.root, "anna", 5)
    assert same(shelf.load("anna"), a_plugin(BASE, seed=5))


def test_a_changed_file_is_loaded_anew(shelf: PluginStore) -> None:
    """Of the same size, and as soon after as one likes: the clock of the file system does not decide."""
    for seed in range(10, 16):
        put(shelf.root, "anna", seed)
        assert same(shelf.load("anna"), a_plugin(BASE, seed=seed))
        assert shelf.load("anna") is shelf.load("anna")


def test_a_damaged_one_says_so(shelf: PluginStore) -> None:
    shelf.load("anna")
    path = shelf.root / "anna" / WEIGHTS
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(PluginError, match="truncated or damaged"):
        shelf.load("anna")
    assert names(shelf) == ["anna", "mill"]


def test_plugins_from_elsewhere(shelf: PluginStore, tmp_path: Path) -> None:
    put(tmp_path / "far", "guest", 7)
    both = PluginStore(shelf.root, [tmp_path / "far" / "guest"])
    assert names(both) == ["anna", "guest", "mill"]
    assert same(both.load("guest"), a_plugin(BASE, seed=7))
    assert (both.is_own("anna"), both.is_own("guest")) == (True, False)
    before = contents(tmp_path)
    for work in (both.delete, lambda name: both.rename(name, "mine")):
        with pytest.raises(InputError, match="guest lies outside the plugin store, in .*: change it there"):
            work("guest")
    with pytest.raises(InputError, match="there is a plugin 'guest' already"):
        both.new_folder("guest")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("passphrase", ["", KEY])
def test_to_another_device(shelf: PluginStore, tmp_path: Path, passphrase: str) -> None:
    """All of the plugin, and nothing beside it."""
    (shelf.root / "anna" / "tape").mkdir()
    (shelf.root / "anna" / "tape" / "train.tape").write_bytes(b"the person's words")
    file = shelf.export("anna", passphrase)
    assert b"the person's words" not in file
    other = PluginStore(tmp_path / "other")
    brought = other.import_("guest", file, passphrase)
    assert same(brought, shelf.load("anna"))
    assert same(other.load("guest"), shelf.load("anna"))
    assert sorted(contents(other.root)) == [f"guest/{MANNER}/{CONFIG}", f"guest/{WEIGHTS}", f"guest/{PLUGIN}"]


def test_what_can_not_be_brought_in(shelf: PluginStore) -> None:
    file, before = shelf.export("anna", KEY), contents(shelf.root)
    for bad, error in (
        (file, WrongPassphrase),
        (file[:-1], PluginError),
        (b"foreign", PluginError),
        (sealed_file.seal(b"no plugin at all"), PluginError),
    ):
        with pytest.raises(error) as caught:
            shelf.import_("guest", bad, "wrong")
        assert "\n" not in str(caught.value)
    assert contents(shelf.root) == before


# ── under lock ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """A plugin's folder with all that may lie in one."""
    put(tmp_path, "full")
    folder = tmp_path / "full"
    (folder / "tape").mkdir()
    (folder / "versions").mkdir()
    (folder / "tape" / "train.tape").write_bytes(b"the person's words")
    (folder / "tape" / "train.json").write_text("{}")
    (folder / "versions" / "000001.safetensors").write_bytes(a_plugin(BASE, seed=9).to_bytes())
    return folder


def test_lock_and_unlock(full: Path) -> None:
    before = contents(full)
    lock(full, KEY)
    found = contents(full)
    assert sorted(found) == sorted(
        [
            *(f"{MANNER}/{CONFIG}", WEIGHTS + SUFFIX, PLUGIN),
            *("tape/train.json", "tape/train.tape.sealed", "versions/000001.safetensors.sealed"),
        ]
    )
    everything = b"".join(found.values())
    assert b"the person's words" not in everything
    assert a_plugin(BASE).trained.params["c"].tobytes()[:64] not in everything
    with pytest.raises(WrongPassphrase, match="is sealed"):
        Plugin.load(full)
    assert same(Plugin.load(full, lambda: KEY), a_plugin(BASE))
    with pytest.raises(PluginError, match="there is no open plugin in .* that could be sealed"):
        lock(full, KEY)
    with pytest.raises(WrongPassphrase):
        unlock(full, KEY + "!")
    assert contents(full) == found
    unlock(full, KEY)
    assert contents(full) == before
    with pytest.raises(PluginError, match="there is no sealed plugin"):
        unlock(full, KEY)


@pytest.mark.parametrize(
    ("passphrase", "says"),
    [
        ("", "a passphrase must not be empty"),
        ("tea", "a passphrase must have 8 characters or more, this one has 3"),
        ("бчёлы и", "a passphrase must have 8 characters or more, this one has 7"),
    ],
)
def test_a_short_passphrase_locks_nothing(full: Path, passphrase: str, says: str) -> None:
    before = contents(full)
    with pytest.raises(InputError, match=says):
        lock(full, passphrase)
    assert contents(full) == before
    lock(full, "eight it")


def test_what_a_short_passphrase_locked_earlier_still_opens(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what it locked half way is locked whole with it."""
    before = contents(full)
    with monkeypatch.context() as earlier:
        earlier.setattr(locking, "SHORTEST", 1)
        lock(full, "tea")
    assert same(Plugin.load(full, lambda: "tea"), a_plugin(BASE))
    part = next(path for path in full.rglob("*" + SUFFIX) if path.name.startswith("train"))
    whole, opened = part.read_bytes(), part.with_name(part.name.removesuffix(SUFFIX))
    opened.write_bytes(before["tape/train.tape"])
    lock(full, "tea")
    assert (part.read_bytes(), opened.exists()) == (whole, False)
    unlock(full, "tea")
    assert contents(full) == before


@pytest.mark.parametrize(("passphrase", "refused"), [("tea", True), ("eight it", False), ("", False)])
def test_an_export_has_no_short_passphrase(shelf: PluginStore, passphrase: str, refused: bool) -> None:
    if refused:
        with pytest.raises(InputError, match="must have 8 characters or more"):
            shelf.export("anna", passphrase)
    else:
        assert shelf.export("anna", passphrase)


def test_one_damaged_file_and_nothing_is_unlocked(full: Path) -> None:
    lock(full, KEY)
    path = full / "versions" / "000001.safetensors.sealed"
    path.write_bytes(path.read_bytes()[:-5])
    found = contents(full)
    with pytest.raises(PluginError, match="cut off"):
        unlock(full, KEY)
    assert contents(full) == found


@pytest.mark.parametrize("files", [1, 2])
def test_a_disk_that_is_full_half_way(full: Path, files: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is lost, and the same command ends what it began: the plugin itself is last, both ways."""
    before, left = contents(full), [files]
    write = locking.write_aside

    def little_room(path: Path, data: bytes) -> None:
        if not left[0]:
            raise OSError(28, "No space left on device")
        left[0] -= 1
        write(path, data)

    monkeypatch.setattr(locking, "write_aside", little_room)
    with pytest.raises(Stopped, match="could not be written: No space left"):
        lock(full, KEY)
    assert same(Plugin.load(full), a_plugin(BASE))
    with pytest.raises(WrongPassphrase):
        lock(full, "another one")  # there must not be two
    left[0] = 9
    lock(full, KEY)
    assert not [path for path in full.rglob("*") if path.suffix in (".safetensors", ".tape")]
    left[0] = files
    with pytest.raises(Stopped):
        unlock(full, KEY)
    left[0] = 9
    unlock(full, KEY)
    assert contents(full) == before


def test_a_sealed_one_on_the_shelf(shelf: PluginStore) -> None:
    asked: list[str] = []

    def passphrase(name: str) -> str:
        asked.append(name)
        return KEY

    knows = PluginStore(shelf.root, passphrase=passphrase)
    knows.load("anna")
    lock(shelf.root / "anna", KEY)
    assert [(e.name, e.sealed) for e in knows.entries()] == [("anna", True), ("mill", False)]
    with pytest.raises(WrongPassphrase):
        shelf.load("anna")
    assert same(knows.load("anna"), a_plugin(BASE, seed=1))
    knows.load("anna")
    knows.load("mill")
    assert asked == ["anna"], "once, and only for what is sealed"
    assert Plugin.from_bytes(sealed_file.unseal(knows.export("anna")), "x").size == a_plugin(BASE).size


# ── what a kill leaves, and what somebody puts beside it ──────────────────────────────────────────────────────────────

LEFT = {
    "of the plugin": f"{MANNER}/.adapter_model.safetensors-a1b2c3_d",
    "of a tape": "tape/.train.tape-abcdefgh",
    "of a checkpoint": ".checkpoint.safetensors-00000000",
    "of a version": "versions/.000001.safetensors-zzzzzzzz",
}


@pytest.mark.parametrize("what", LEFT)
@pytest.mark.parametrize("locked_before", [False, True])
def test_what_a_killed_save_left_is_not_open_beside_what_is_sealed(full: Path, what: str, locked_before: bool) -> None:
    if locked_before:
        lock(full, KEY)
    (full / LEFT[what]).write_bytes(b"the person's words")
    lock(full, KEY)
    assert b"the person's words" not in b"".join(contents(full).values())
    assert same(Plugin.load(full, lambda: KEY), a_plugin(BASE))


@pytest.mark.parametrize("name", [WEIGHTS, "tape/train.tape", "versions/000001.safetensors"])
def test_an_open_file_beside_a_sealed_one(full: Path, name: str) -> None:
    """It is never taken silently: the same one is what a kill left, another one is somebody's."""
    before = contents(full)
    lock(full, KEY)
    sealed = contents(full)
    (full / name).write_bytes(before[name])
    if name == WEIGHTS:
        with pytest.raises(PluginError, match="lies open beside its sealed form"):
            Plugin.load(full, lambda: KEY)
    lock(full, KEY)
    assert contents(full) == sealed
    (full / name).write_bytes(a_plugin(BASE, seed=77).to_bytes())
    found = contents(full)
    for work in (lock, unlock):
        with pytest.raises(PluginError, match="is not what is sealed beside it: delete the one of the two"):
            work(full, KEY)
        assert contents(full) == found
    (full / name).unlink()
    unlock(full, KEY)
    assert contents(full) == before


def test_an_unlock_that_was_killed_can_be_undone_and_ended(full: Path) -> None:
    before = contents(full)
    lock(full, KEY)
    tape = full / "tape" / "train.tape"
    tape.write_bytes(before["tape/train.tape"])
    tape.with_name("train.tape.sealed").unlink()
    lock(full, KEY)
    assert not tape.exists()
    (full / WEIGHTS).write_bytes(before[WEIGHTS])
    unlock(full, KEY)
    assert contents(full) == before


def test_nothing_open_is_written_beside_what_is_sealed(full: Path) -> None:
    lock(full, KEY)
    with pytest.raises(PluginError, match="holds a sealed plugin: unlock it first"):
        a_plugin(BASE).save(full)
