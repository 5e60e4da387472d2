"""The sentence encoder, with random weights: its tokens, its padding, its low-rank change, and transformers' BERT."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sideplug.contract.errors import PluginError
from sideplug.memory.encoder import LAYERS, LINEAR, UNKNOWN, WIDTH, Encoder, gelu, quantize
from tests.conftest import twin

PIECES = ["[PAD]", *(f"[{n}]" for n in range(1, 100)), "[UNK]", "[CLS]", "[SEP]"]
PIECES += ["where", "is", "the", "mill", "##er", "##s", "?", "'", "s", "cafe", "14", "水", "a"]
INNER = 4 * WIDTH
TEXTS = ["Where is the mill?", "the miller's café", "", "水 " * 200]


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)

    def matrix(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.05, shape).astype(np.float32)

    found = {"embeddings.word_embeddings.weight": matrix(len(PIECES), WIDTH)}
    found |= {"embeddings.position_embeddings.weight": matrix(512, WIDTH)}
    found |= {"embeddings.token_type_embeddings.weight": matrix(2, WIDTH)}
    norms = ["embeddings.LayerNorm"]
    for layer in range(LAYERS):
        norms += [f"encoder.layer.{layer}.{name}" for name in ("attention.output.LayerNorm", "output.LayerNorm")]
    for name in norms:
        found |= {f"{name}.weight": 1 + matrix(WIDTH), f"{name}.bias": matrix(WIDTH)}
    for name in LINEAR:
        out = INNER if "intermediate" in name else WIDTH
        within = INNER if name.endswith("output.dense") and "attention" not in name else WIDTH
        found |= {f"{name}.weight": matrix(out, within), f"{name}.bias": matrix(out)}
    return found | {"pooler.dense.weight": matrix(WIDTH, WIDTH), "embeddings.position_ids": np.arange(512)}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    path = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    path.write_bytes(quantize(weights(), "\n".join(PIECES)))
    assert path.stat().st_size < 12 << 20  # a byte a weight
    return Encoder.load(path)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("Where is the mill?", ["where", "is", "the", "mill", "?"]),
        ("the miller's CAFÉ", ["the", "mill", "##er", "'", "s", "cafe"]),
        ("水a水", ["水", "a", "水"]),
        ("14 zebras", ["14", "[UNK]"]),
        ("a" * 101, ["[UNK]"]),
        ("", []),
    ],
)
def test_word_pieces(encoder: Encoder, text: str, pieces: list[str]) -> None:
    assert [PIECES[each] for each in encoder.tokens(text)] == pieces
    assert PIECES[UNKNOWN] == "[UNK]"


def test_a_text_has_the_same_vector_alone_and_beside_others(encoder: Encoder) -> None:
    together = encoder.vectors(TEXTS)
    assert together.shape == (len(TEXTS), WIDTH)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-5)
    for text, vector in zip(TEXTS, together, strict=True):
        np.testing.assert_allclose(encoder.vectors([text])[0], vector, atol=2e-5)


def test_a_low_rank_change_is_that_of_the_weight(encoder: Encoder) -> None:
    rng = np.random.default_rng(1)
    name = LINEAR[0]
    a, b = (rng.normal(0, 0.1, shape).astype(np.float32) for shape in ((4, WIDTH), (WIDTH, 4)))
    ids, mask = np.array([[101, 103, 104, 102]]), np.ones((1, 4), np.float32)
    changed = Encoder(dict(encoder.weights), {"": 0})
    whole = encoder.weights[f"{name}.weight"] * encoder.weights[f"{name}.weight.scale"] + b @ a
    changed.weights |= {f"{name}.weight": whole, f"{name}.weight.scale": np.ones((WIDTH, 1), np.float32)}
    np.testing.assert_allclose(encoder.run(ids, mask, {name: (a, b)}), changed.run(ids, mask), atol=1e-4)
    assert np.abs(encoder.run(ids, mask, {name: (a, b)}) - encoder.run(ids, mask)).max() > 1e-2


def test_gelu() -> None:
    x = np.linspace(-6, 6, 301, dtype=np.float32)
    exact = [value * 0.5 * (1 + math.erf(value / math.sqrt(2))) for value in x]
    np.testing.assert_allclose(gelu(x), exact, atol=2e-6)


@pytest.mark.parametrize("data", [b"", b"no tensors at all"])
def test_a_damaged_file(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "e").write_bytes(data)
    with pytest.raises(PluginError, match="the sentence encoder .* is damaged: remove it, it is fetched anew"):
        Encoder.load(tmp_path / "e")


@pytest.mark.twin
def test_it_is_berts(encoder: Encoder) -> None:
    torch, transformers = twin("torch"), twin("transformers")
    sizes = {"vocab_size": len(PIECES), "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "intermediate_size": INNER}
    bert: Any = transformers.BertModel(
        transformers.BertConfig(**sizes, num_attention_heads=12), add_pooling_layer=False
    )
    w = encoder.weights
    state = {
        name: w[name] * w[f"{name}.scale"] if f"{name}.scale" in w else w[name] for name in w if "scale" not in name
    }
    missing = bert.eval().load_state_dict({name: torch.tensor(each) for name, each in state.items()}, strict=False)
    assert not missing.unexpected_keys
    ids = np.array([[101, 103, 104, 105, 106, 109, 102], [101, 103, 102, 0, 0, 0, 0]])
    mask = (ids > 0).astype(np.float32)
    with torch.no_grad():
        wanted = bert(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask)).last_hidden_state.numpy()
    got = encoder.run(ids, mask)
    np.testing.assert_allclose(got[mask > 0], wanted[mask > 0], atol=2e-4)
