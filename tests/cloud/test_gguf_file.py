"""A GGUF file runs as it is: its blocks bit for bit, its tokenizer, its rotary order; both engines read it alike."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sideplug.cloud.engines import EngineOptions, open_model
from sideplug.cloud.gguf_file import unpack
from sideplug.cloud.model.base import Chunk
from sideplug.cloud.store import find
from sideplug.cloud.tokenizer import Tokenizer
from sideplug.cloud.weights import Gguf, Unfit, matrix, weights_of
from sideplug.contract.errors import UnknownModel
from tests.conftest import make_folder, twin, write_gguf

KINDS = ("F32", "F16", "Q8_0", "Q4_0", "Q4_1")
NAMES = ["model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight"]


def logits(folder: Path, **wanted: str) -> np.ndarray:
    model = open_model(find(str(folder)), EngineOptions(kv_bytes=1 << 30, **wanted)).model  # type: ignore[arg-type]
    return model.logits(model.forward([Chunk(list(range(5, 45)), model.new_cache(64))]).z(slice(0, 40)))


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_what_the_file_says(tiny: Path, tmp_path: Path, kind: str) -> None:
    """Against the gguf package's own dequantisation; to the bit where the file's blocks are taken as they are."""
    write_gguf(tmp_path / "m.gguf", tiny, kind)
    folder = tmp_path / "m"
    folder.mkdir()
    unpack(tmp_path / "m.gguf", folder)
    weights = weights_of(folder)
    want = np.concatenate([weights.array(name) for name in NAMES])
    own = {"Q8_0": 8, "Q4_0": 4, "Q4_1": 4}.get(kind)
    for bits in (0, 4, 8):
        blocks = matrix(weights, NAMES, bits)
        assert blocks.bits == (bits or own or 8)
        if own and bits in (0, own):
            np.testing.assert_allclose(blocks.rows(slice(None)), want, rtol=0, atol=1e-7)
        elif blocks.bits == 8:
            np.testing.assert_allclose(blocks.rows(slice(None)), want, atol=np.abs(want).max() / 250)


@pytest.mark.parametrize("kind", KINDS)
def test_it_gives_the_logits_of_its_dequantised_weights(tiny: Path, tmp_path: Path, kind: str) -> None:
    file = tmp_path / "m.gguf"
    write_gguf(file, tiny, kind)
    plain = logits(file, bits="16")
    if kind == "F32":
        np.testing.assert_allclose(plain, logits(tiny, bits="16"), atol=1e-5)
    for bits in ("auto", "4", "8") if kind.startswith("Q4") else ("auto", "8"):
        assert 0 < np.abs(logits(file, bits=bits) - plain).mean() / np.abs(plain).mean() < 0.08


@pytest.mark.twin
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_both_engines_read_it_alike(tmp_path: Path, family: str) -> None:
    twin("torch")
    folder, file = make_folder(tmp_path / "m", family), tmp_path / "m.gguf"
    write_gguf(file, folder, "Q4_1", family=family)
    np.testing.assert_allclose(logits(file, engine="torch"), logits(file, engine="onnx", bits="16"), atol=2e-4)
    write_gguf(file, folder, "F32", family=family)
    np.testing.assert_allclose(logits(file, engine="onnx", bits="16"), logits(folder, engine="torch"), atol=2e-5)


def test_its_tokenizer_is_the_models(tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    write_gguf(file, tiny)
    got, want = Tokenizer(find(str(file)).folder), Tokenizer(tiny)
    for text in (
        "Anna wrote to her brother.",
        " two  spaces\n\nand 2024",
        "<|im_start|>user\nHi<|im_end|>\n",
        "Æ 漢字 🐝",
    ):
        assert got.ids(text) == want.ids(text)
        assert got.decode(got.ids(text)) == want.decode(want.ids(text))
    assert got.has_chat
    assert got.stop_ids == {1}


@pytest.mark.parametrize(
    ("pre", "text", "parts"),
    [
        ("smollm", "in 2024", ["in", "Ġ", "2", "0", "2", "4"]),
        ("gpt-2", "in 2024", ["in", "Ġ2024"]),
        ("qwen2", "in 2024", ["in", "Ġ", "2", "0", "2", "4"]),
        ("llama-bpe", "in 20245", ["in", "Ġ", "202", "45"]),
    ],
)
def test_how_a_text_is_cut_before_the_merges(tiny: Path, tmp_path: Path, pre: str, text: str, parts: list[str]) -> None:
    from tokenizers import Tokenizer as Fast

    write_gguf(tmp_path / "m.gguf", tiny, pre=pre)
    unpack(tmp_path / "m.gguf", tmp_path)
    fast = Fast.from_file(str(tmp_path / "tokenizer.json"))
    assert [part for part, _ in fast.pre_tokenizer.pre_tokenize_str(text)] == parts


def test_what_is_not_known_is_said(tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    write_gguf(file, tiny, pre="a cut of its own")
    with pytest.raises(Unfit, match="pretokenizer is 'a cut of its own'"):
        unpack(file, tmp_path)
    file.write_bytes(b"GGUF and then nothing")
    with pytest.raises(UnknownModel, match=r"m\.gguf can't be read"):
        unpack(file, tmp_path)


def test_a_weight_that_is_missing_is_said(tiny: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", tiny)
    unpack(tmp_path / "m.gguf", tmp_path)
    weights = Gguf(tmp_path, "llama", 4, 2)
    del weights._index["blk.1.ffn_up.weight"]
    with pytest.raises(UnknownModel, match=r"lacks its weight model\.layers\.1\.mlp\.up_proj\.weight"):
        weights.array("model.layers.1.mlp.up_proj.weight")


def test_config_is_the_headers(tiny: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", tiny)
    unpack(tmp_path / "m.gguf", tmp_path)
    got, want = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, tiny))
    same = {name for name in want if name in got and name not in ("rms_norm_eps",)}
    assert {name: got[name] for name in same} == {name: want[name] for name in same}
    assert got["rms_norm_eps"] == pytest.approx(want["rms_norm_eps"])
    assert len(same) > 9
