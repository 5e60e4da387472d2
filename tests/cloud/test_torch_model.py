"""Packed = plain, for every architecture: the first of the three equalities, at the model's seam."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sideplug.cloud.model.base import Chunk
from sideplug.cloud.store import find
from sideplug.contract.errors import UnknownModel
from tests.conftest import ARCHITECTURES, make_lm, twin, write_gguf

torch = twin("torch")
pytestmark = pytest.mark.twin

from sideplug.cloud.model.torch_cache import KVCache  # noqa: E402
from sideplug.cloud.model.torch_model import load, pipeline  # noqa: E402

TOLERANCE = 2e-5  # of logits and states of order 1, float32


def plain(lm: Any, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """logits (T, V) and states (T, N+1, D) of transformers' own forward."""
    with torch.inference_mode():
        out = lm(torch.tensor([ids]), output_hidden_states=True)
    return out.logits[0].numpy(), torch.stack([h[0] for h in out.hidden_states], 1).numpy()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_chunks_equal_the_plain_forward(architecture: str) -> None:
    rng = np.random.default_rng(0)
    lengths = (23, 14, 1, 9)
    texts = [rng.integers(0, 90, n).tolist() for n in lengths]
    want = [plain(make_lm(architecture, 90), ids) for ids in texts]
    model = pipeline(make_lm(architecture, 90))
    caches = [KVCache() for _ in texts]
    got: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in texts]
    # Prefill and decode rows mixed in one step, in pieces of random sizes.
    while any(cache.length < len(ids) for cache, ids in zip(caches, texts, strict=True)):
        chunks, owners = [], []
        for i, (cache, ids) in enumerate(zip(caches, texts, strict=True)):
            part = ids[cache.length : cache.length + int(rng.choice([1, 1, 2, 5]))]
            if part:
                chunks.append(Chunk(part, cache))
                owners.append(i)
        out = model.forward(chunks, range(3))
        row = 0
        for i, chunk in zip(owners, chunks, strict=True):
            rows = slice(row, row + len(chunk.ids))
            got[i].append((model.logits(out.z(rows)), out.tapped(rows, range(3))))
            row = rows.stop
    for (logits, states), parts in zip(want, got, strict=True):
        np.testing.assert_allclose(np.concatenate([p[0] for p in parts]), logits, atol=TOLERANCE, rtol=TOLERANCE)
        np.testing.assert_allclose(np.concatenate([p[1] for p in parts]), states, atol=2e-4, rtol=TOLERANCE)


def test_a_trimmed_cache_goes_on_as_if_it_had_never_been_longer() -> None:
    model = pipeline(make_lm("llama", 90))
    ids = list(range(3, 33))
    straight = KVCache()
    want = model.forward([Chunk(ids, straight)]).z([-1])
    cache = KVCache()
    model.forward([Chunk(ids[:20] + [7, 8, 9], cache)])
    cache.trim(20)
    np.testing.assert_allclose(model.forward([Chunk(ids[20:], cache)]).z([-1]), want, atol=TOLERANCE)


def test_a_cache_grows_past_its_first_block() -> None:
    lm = make_lm("llama", 90)
    ids = np.random.default_rng(1).integers(0, 90, KVCache.FIRST + 40).tolist()
    want, _ = plain(make_lm("llama", 90), ids)
    model = pipeline(lm)
    cache = KVCache()
    model.forward([Chunk(ids[:-30], cache)])
    for token in ids[-30:-1]:
        model.forward([Chunk([token], cache)])
    got = model.logits(model.forward([Chunk(ids[-1:], cache)]).z([0]))[0]
    np.testing.assert_allclose(got, want[-1], atol=TOLERANCE)
    assert cache.nbytes == 2 * 2 * 256 * 2 * 16 * 4  # blocks, k and v, capacity, kv heads, head size, float32


def test_read_is_the_softmax_over_the_whole_vocabulary() -> None:
    model = pipeline(make_lm("gemma2", 90))
    z = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)
    targets = np.array([1, 2, 3, 4, 89], np.int32)
    logp, top, lse = model.read(z, targets, 4)
    logits = model.logits(z).astype(np.float64)
    assert np.abs(logits).max() <= 30  # Gemma 2's soft cap
    want = np.log(np.exp(logits).sum(1))
    np.testing.assert_allclose(lse, want, rtol=1e-5)
    np.testing.assert_allclose(logp, logits[np.arange(5), targets] - want, rtol=1e-4)
    np.testing.assert_array_equal(top, np.argsort(-logits, 1)[:, :4])


def test_rotary_positions_that_depend_on_the_batch_are_refused() -> None:
    transformers = twin("transformers")

    config = transformers.LlamaConfig(
        vocab_size=90,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
    )
    with pytest.raises(UnknownModel, match="rotary positions"):
        pipeline(transformers.LlamaForCausalLM(config))


def test_an_architecture_that_ignores_our_attention_is_refused() -> None:
    transformers = twin("transformers")

    config = transformers.MambaConfig(
        vocab_size=90, hidden_size=32, num_hidden_layers=2, state_size=4, intermediate_size=64, time_step_rank=2
    )
    with pytest.raises(UnknownModel, match="can't be run packed"):
        pipeline(transformers.MambaForCausalLM(config))


def test_weights_that_are_missing_are_not_made_up(tiny: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    weights = load_file(tiny / "model.safetensors")
    del weights["model.norm.weight"]
    shutil.copytree(tiny, tmp_path / "m")
    save_file(weights, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnknownModel, match=r"lacks 1 of its weights: model\.norm\.weight"):
        load(tmp_path / "m")
    write_gguf(tmp_path / "m.gguf", tmp_path / "m")
    with pytest.raises(UnknownModel, match=r"lacks 1 of its weights: model\.norm\.weight"):
        load(find(str(tmp_path / "m.gguf")).folder)
