"""The onnx engine: transformers' equal where nothing is quantised, and its own to the bit, however a step is cut."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sideplug.cloud import kept
from sideplug.cloud.engines import open_model
from sideplug.cloud.model.base import Chunk, Model
from sideplug.cloud.model.ort import blueprint, prepack, prepare, q4_offsets
from sideplug.cloud.model.ort.model import pipeline
from sideplug.cloud.model.ort.stage import CHUNKS
from sideplug.cloud.store import find
from sideplug.cloud.weights import quantise
from sideplug.contract.errors import Busy, InputError, UnknownModel
from tests.conftest import ARCHITECTURES, EIGHT_BITS, UNQUANTISED, EngineOptions, make_folder, make_lm, twin

TOLERANCE = 2e-5  # of logits and states of order 1, float32
LAYERS = range(3)


def texts(*lengths: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 90, n).tolist() for n in lengths]


def in_pieces(model: Any, asked: list[list[int]], sizes: tuple[int, ...], seed: int = 0) -> list[Any]:
    """(logits, states) of every text, run together in pieces of random sizes; 0: it sits a step out."""
    rng = np.random.default_rng(seed)
    caches = [model.new_cache(64) for _ in asked]
    got: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in asked]
    while any(cache.length < len(ids) for cache, ids in zip(caches, asked, strict=True)):
        chunks, owners = [], []
        for i, (cache, ids) in enumerate(zip(caches, asked, strict=True)):
            left = len(ids) - cache.length
            count = min(left, int(rng.choice(sizes)))
            if count:
                chunks.append(Chunk(ids[cache.length : cache.length + count], cache))
                owners.append(i)
        if not chunks:
            continue
        out = model.forward(chunks, LAYERS)
        row = 0
        for i, chunk in zip(owners, chunks, strict=True):
            rows = slice(row, row + len(chunk.ids))
            got[i].append((model.logits(out.z(rows)), out.tapped(rows, LAYERS)))
            row = rows.stop
    return [tuple(np.concatenate(part) for part in zip(*parts, strict=True)) for parts in got]


@pytest.fixture(scope="module")
def eight(tiny: Path) -> Any:
    return open_model(find(str(tiny)), EIGHT_BITS).model


@pytest.mark.twin
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "qwen2", "smollm3", "gemma", "llama3-rope", "untied"])
def test_it_equals_transformers(architecture: str, tmp_path: Path) -> None:
    torch = twin("torch")
    folder = make_folder(tmp_path / "m", architecture)
    asked = texts(23, 14, 1, 9, 40)
    model = open_model(find(str(folder)), EngineOptions(engine="onnx", bits="16", kv_bytes=1 << 30)).model
    lm = make_lm(architecture, model.vocab)
    for ids, (logits, states) in zip(asked, in_pieces(model, asked, (0, 1, 1, 2, 5)), strict=True):
        with torch.inference_mode():
            out = lm(torch.tensor([ids]), output_hidden_states=True)
        np.testing.assert_allclose(logits, out.logits[0].numpy(), atol=TOLERANCE, rtol=TOLERANCE)
        want = torch.stack([h[0] for h in out.hidden_states], 1).numpy()
        np.testing.assert_allclose(states, want, atol=2e-4, rtol=TOLERANCE)


@pytest.mark.parametrize("kind", ["several", "one by one"])
def test_how_a_step_is_cut_changes_no_bit(eight: Model, kind: str) -> None:
    """Chunks of two or more, of whatever sizes beside whomever, sum alike; so do single tokens. (The two differ.)"""
    asked = texts(*([30] * (CHUNKS + 2)))
    if kind == "several":
        alone = [in_pieces(eight, [ids], (30,))[0] for ids in asked]
        ways = [in_pieces(eight, asked, sizes, seed) for seed, sizes in enumerate(((2,), (0, 2, 4), (6, 10, 0)))]
    else:
        alone = [in_pieces(eight, [ids], (1,))[0] for ids in asked]
        ways = [in_pieces(eight, asked, (0, 1), seed) for seed in range(3)]
    for way in ways:
        for (logits, states), (want_logits, want_states) in zip(way, alone, strict=True):
            np.testing.assert_array_equal(states, want_states)
            np.testing.assert_array_equal(logits, want_logits)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_is_the_dequantised_model_to_within_its_activations(tiny: Path, tmp_path: Path, bits: int) -> None:
    """The same rounded weights, once in blocks and once in float32: only the inputs' rounding to 8 bits is between."""
    folder = tmp_path / "m"
    shutil.copytree(tiny, folder)
    weights = load_file(folder / "model.safetensors")
    for name, value in weights.items():
        if value.ndim == 2:
            weights[name] = quantise(value, 8 if "embed" in name else bits).rows(slice(None))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    asked = texts(60)
    rounded, plain = (
        in_pieces(open_model(find(str(path)), EngineOptions(bits=b, kv_bytes=1 << 30)).model, asked, (60,))[0][0]
        for path, b in ((tiny, str(bits)), (folder, "16"))
    )
    assert 0 < np.abs(rounded - plain).mean() / np.abs(plain).mean() < 0.08


@pytest.mark.parametrize("softcap", [0.0, 3.0])
def test_read_is_the_softmax_over_the_whole_vocabulary(tmp_path: Path, softcap: float) -> None:
    folder = make_folder(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "final_logit_softcapping": softcap}))
    model = open_model(find(str(folder)), UNQUANTISED).model
    z = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)
    targets = np.array([1, 2, 3, 4, 89], np.int32)
    logp, top, lse = model.read(z, targets, 4)
    logits = model.logits(z).astype(np.float64)
    rows = model.head_rows(np.arange(model.vocab))[0].astype(np.float64)
    plain = z.astype(np.float64) @ rows.T
    np.testing.assert_allclose(logits, np.tanh(plain / softcap) * softcap if softcap else plain, atol=1e-4)
    want = np.log(np.exp(logits).sum(1))
    np.testing.assert_allclose(lse, want, rtol=1e-5)
    np.testing.assert_allclose(logp, logits[np.arange(5), targets] - want, rtol=1e-4)
    np.testing.assert_array_equal(top, np.argsort(-logits, 1)[:, :4])


def test_a_trimmed_cache_goes_on_as_if_it_had_never_been_longer(eight: Model) -> None:
    (ids,) = texts(30)
    straight, cache = eight.new_cache(64), eight.new_cache(64)
    want = eight.forward([Chunk(ids, straight)]).z([-1])
    eight.forward([Chunk(ids[:20] + [7, 8, 9], cache)])
    cache.trim(20)
    np.testing.assert_array_equal(eight.forward([Chunk(ids[20:], cache)]).z([-1]), want)


def test_layers_that_were_not_asked_for_are_never_written(eight: Model) -> None:
    """The same sessions, with and without taps, in turn: a binding of one must not write into the other's memory."""
    (ids,) = texts(40)
    cache = eight.new_cache(64)
    kept = []
    for i, token in enumerate(ids):
        out = eight.forward([Chunk([token], cache)], LAYERS if i % 2 else ())
        kept.append((out, out.z([0]).copy()))
    for out, z in kept:
        np.testing.assert_array_equal(out.z([0]), z)


def test_memory_is_promised_and_given_back(tiny: Path) -> None:
    model: Any = open_model(find(str(tiny)), EngineOptions(kv_bytes=100 * 2 * 2 * 2 * 16 * 4)).model  # of 100 tokens
    first = model.new_cache(60)
    with pytest.raises(Busy, match="try later"):
        model.new_cache(60)
    second = model.new_cache(40)
    assert (first.slot, second.slot) == (0, 1)
    model.forward([Chunk([1, 2, 3], first)])
    del first
    third = model.new_cache(60)
    assert (third.slot, third.length) == (0, 0)
    np.testing.assert_array_equal(
        model.forward([Chunk([1, 2, 3], third)]).z([2]), model.forward([Chunk([1, 2, 3], second)]).z([2])
    )


def test_memory_for_next_to_nothing_is_refused(tiny: Path) -> None:
    with pytest.raises(InputError, match=r"must be at least .* \(64 tokens\), got 0\.0"):
        open_model(find(str(tiny)), EngineOptions(kv_bytes=1000))


def test_the_last_position_of_the_context(eight: Model) -> None:
    """A text that a chunk fills to the brim, between sessions that decode beside it."""
    ids = np.random.default_rng(5).integers(2, 300, 256).tolist()
    want = eight.forward([Chunk(ids, eight.new_cache(256))]).z(slice(250, 256))
    caches = [eight.new_cache(256) for _ in range(3)]
    eight.forward([Chunk(ids[:5], caches[0]), Chunk(ids[:250], caches[1]), Chunk(ids[:7], caches[2])])
    out = eight.forward([Chunk([9], caches[0]), Chunk(ids[250:], caches[1]), Chunk([9], caches[2])])
    np.testing.assert_array_equal(out.z(slice(1, 7)), want)
    assert np.isfinite(out.z([0, 7])).all()


def test_the_second_start_maps_what_the_first_has_made(tiny: Path, tmp_path: Path) -> None:
    base, said = find(str(tiny)), []
    shape = blueprint.read(tiny)
    prepack.start_pool(2)
    _, first = prepare.prepare(tiny, shape, base.fingerprint, 8, tmp_path, said.append)
    assert len(said) == 1
    files = {path: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    assert {path.name for path in files} == {"body.onnx", "body.bin", "head.onnx", "head.bin", kept.SUMS}
    _, again = prepare.prepare(tiny, shape, base.fingerprint, 8, tmp_path, said.append)
    assert len(said) == 1
    assert {path: path.stat().st_mtime_ns for path in again.folder.iterdir()} == files


def test_a_weight_that_is_missing_is_said(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnknownModel, match=r"lacks its weight model\.layers\.1\.mlp\.up_proj\.weight"):
        open_model(find(str(folder)), UNQUANTISED)


def test_offsets_cost_no_nodes_and_change_nothing(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """4 bits with a minimum a block: added by the kernel where its sums are found, else, the naive twin, by nodes."""
    base, shape = find(str(tiny)), blueprint.read(tiny)
    prepack.start_pool(2)
    if q4_offsets.places(4, 64, 64) is None:
        pytest.skip("the blocks of this CPU, or of this ONNX Runtime, take no offsets")
    fast = prepare.prepare(tiny, shape, base.fingerprint, 4, tmp_path / "fast", lambda line: None)
    monkeypatch.setattr(q4_offsets, "available", lambda: False)
    slow = prepare.prepare(tiny, shape, base.fingerprint, 4, tmp_path / "slow", lambda line: None)
    assert not [name for name in fast[0][0].tensors if name.endswith(".offsets")]
    assert len([name for name in slow[0][0].tensors if name.endswith(".offsets")]) == 8
    asked = texts(30)
    (a, _), (b, _) = (in_pieces(pipeline(*made, 1 << 30), asked, (30,))[0] for made in (fast, slow))
    assert np.abs(a - b).mean() / np.abs(b).mean() < 0.05, "they differ by how a block's sum of inputs is rounded"


def test_offsets_where_the_library_refuses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise RuntimeError("Serialized pre-packed weights do not match")

    prepack.start_pool(2)
    monkeypatch.setattr(q4_offsets, "open_session", refuse)
    assert q4_offsets.places(4, 64, 64) is None


def test_onnx_runtime_phones_nobody(tiny: Path, tmp_path: Path) -> None:
    """Its telemetry keeps a database below the home folder and a connection: neither is there."""
    code = f"""
import os, sys
from pathlib import Path
from sideplug.cloud.engines import EngineOptions, open_model
from sideplug.cloud.store import find
model = open_model(find({str(tiny)!r}), EngineOptions(kv_bytes=1 << 20)).model
open_files = [os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.exists()]
print([name for name in open_files if "onnxruntime.db" in name or name.startswith("socket:")])
"""
    env = {
        **os.environ,
        "HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path / "x"),
        "SIDEPLUG_CACHE": str(tmp_path / "s"),
    }
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout == "[]\n"
    assert not list(tmp_path.rglob("onnxruntime.db"))
