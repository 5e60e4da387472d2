"""A model that is cut into stages gives what the whole gives, to the bit: z, tapped states and logits."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from sideplug.cloud.model.base import Chunk, JointCache, Pipeline, ranges
from sideplug.cloud.model.memory import MIN_TOKENS, JointMemory, KVMemory, divide
from sideplug.cloud.model.ort import blueprint
from sideplug.cloud.model.ort.model import load, load_stage
from sideplug.cloud.model.ort.stage import CHUNKS, OrtStage
from sideplug.cloud.store import find
from sideplug.contract.errors import Busy, InputError, UnknownModel
from tests.conftest import SHAPE, make_folder, make_lm, twin

BLOCKS = 6  # so that Gemma 3 has a block of full attention: its last one
LAYERS = range(BLOCKS + 1)
CUTS = {"1": (), "2": (3,), "3": (1, 4)}  # before which block, by the number of stages
KV = 64 << 20  # bytes


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Llama of six blocks."""
    with patch.dict(SHAPE, num_hidden_layers=BLOCKS):
        return make_folder(tmp_path_factory.mktemp("models") / "six")


def ort(folder: Path, bits: int, cuts: tuple[int, ...], root: Path, kv: int = KV) -> Pipeline[Any]:
    base = find(str(folder))
    return load(base, blueprint.read(base.folder), bits, 2, root, kv, lambda line: None, cuts)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prepared")


def story(model: Any) -> Iterator[np.ndarray]:
    """All that a step may hold, one after the other: z, tapped states and logits of every row of every step."""
    rng = np.random.default_rng(1)

    def some(count: int) -> list[int]:
        return rng.integers(2, 90, count).tolist()

    def step(chunks: list[Chunk], layers: Any = LAYERS) -> Iterator[np.ndarray]:
        out = model.forward(chunks, layers)
        rows = slice(0, sum(len(chunk.ids) for chunk in chunks))
        yield out.z(rows)
        yield out.z([rows.stop - 1])
        yield out.tapped(rows, list(layers))
        yield model.logits(out.z(rows))

    caches = [model.new_cache(64) for _ in range(5)]
    yield from step([Chunk(some(9), caches[0])])  # a prompt alone
    yield from step([Chunk(some(1), caches[0])])  # a decode row alone
    yield from step([Chunk(some(n), cache) for n, cache in zip((1, 7, 2, 12), caches[1:], strict=True)])
    yield from step([Chunk(some(1), cache) for cache in caches])  # decode rows of neighbours
    yield from step([Chunk(some(1), caches[i]) for i in (4, 0, 2)])  # with gaps, and in another order
    yield from step([Chunk(some(3), caches[3]), Chunk(some(1), caches[1]), Chunk(some(5), caches[0])])  # mixed
    yield from step([Chunk(some(2), cache) for cache in caches], (1, 4))  # more groups than fit into one run
    assert len(caches) > CHUNKS
    for cache, length in zip(caches, (3, 1, 20, 8, 0), strict=True):
        cache.trim(length)
    yield from step([Chunk(some(1 + 3 * (not cache.length)), cache) for cache in caches], (0, BLOCKS))
    kept = caches[3].read(6)
    caches[1] = model.new_cache(64)  # its old slot goes back
    caches[1].write(kept, 6)
    assert (caches[1].length, caches[3].length) == (6, 9)
    yield from step([Chunk(some(1), caches[1]), Chunk(some(4), caches[3])], (2,))
    yield from step([Chunk(some(1), caches[1])], (3,))


def same(model: Any, want: list[np.ndarray]) -> None:
    got = list(story(model))
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("company", [False, True], ids=["", "with company"])
@pytest.mark.parametrize("bits", [8, 16])
def test_stages_of_onnx_give_the_whole_to_the_bit(six: Path, root: Path, bits: int, company: bool) -> None:
    """Also where a single decode row is never run alone, as on a CPU whose kernels sum it otherwise."""
    want = None
    for number, cuts in CUTS.items():
        model = ort(six, bits, cuts, root)
        assert len(model.stages) == int(number)
        for stage in model.stages:
            assert isinstance(stage, OrtStage)
            stage._company = stage._company or company
        if want is None:
            want = list(story(model))
            assert np.abs(want[2][:, 1:] - want[2][:, :-1]).max() > 0.1, "every block must do something"
        same(model, want)


@pytest.mark.twin
@pytest.mark.parametrize("architecture", ["gemma2", "qwen3"])
def test_stages_of_onnx_of_other_families(architecture: str, tmp_path: Path) -> None:
    """Norms after the blocks' parts, norms of heads, windows in some blocks, a scaled embedding."""
    with patch.dict(SHAPE, num_hidden_layers=BLOCKS):
        folder = make_folder(tmp_path / "m", architecture)
    whole, cut = (ort(folder, 8, cuts, tmp_path / "prepared") for cuts in ((), (1, 4)))
    same(cut, list(story(whole)))


@pytest.mark.twin
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "qwen3", "gemma2", "mistral"])
def test_stages_of_torch_give_the_whole_to_the_bit(architecture: str) -> None:
    twin("torch")
    from sideplug.cloud.model.torch_model import pipeline

    want = None
    for cuts in CUTS.values():
        with patch.dict(SHAPE, num_hidden_layers=BLOCKS):
            model = pipeline(make_lm(architecture, 90), KV, cuts)
        want = want or list(story(model))
        same(model, want)


@pytest.mark.twin
def test_a_body_with_other_parts_is_cut_by_nobody() -> None:
    twin("torch")
    transformers = twin("transformers")
    from sideplug.cloud.model.torch_model import pipeline

    def gpt2() -> Any:
        config = transformers.GPT2Config(vocab_size=90, n_embd=64, n_layer=3, n_head=4, n_positions=64)
        return transformers.GPT2LMHeadModel(config)

    def granite() -> Any:  # each stage would multiply its input by the embedding's factor
        shape = {**SHAPE, "num_hidden_layers": 3, "embedding_multiplier": 12.0}
        return transformers.GraniteForCausalLM(transformers.GraniteConfig(vocab_size=90, **shape))

    with pytest.raises(UnknownModel, match="GPT2LMHeadModel can't be cut into stages: GPT2Model has other parts than"):
        pipeline(gpt2(), KV, (1,))
    with pytest.raises(UnknownModel, match="GraniteForCausalLM can't be cut into stages: its logits would be off by"):
        pipeline(granite(), KV, (1,))
    for make in (gpt2, granite):
        assert len(pipeline(make(), KV).stages) == 1


def test_a_stage_of_onnx_alone_has_its_own_weights_only(six: Path, tmp_path: Path) -> None:
    base = find(str(six))
    shape = blueprint.read(base.folder)
    blocks = (2, 4)
    stage = load_stage(base, shape, blocks, 8, 2, tmp_path / "alone", KV, lambda line: None)
    (folder,) = (tmp_path / "alone" / "graphs").iterdir()
    assert folder.name.endswith("-blocks-2-4")
    assert {path.name for path in folder.glob("*.bin")} == {"body.bin"}
    stored = {tensor.name for tensor in stage._prepared.tensors.values() if tensor.external_data}
    assert {name.split(".")[0] for name in stored} == {"2", "3", "cos0", "sin0"}

    model = ort(six, 8, (2, 4), tmp_path / "cut")
    ort(six, 8, (), tmp_path / "cut")
    bodies = (tmp_path / "cut" / "graphs").glob("*/body.bin")
    sizes = {path.parent.name.partition("-blocks-")[2]: path.stat().st_size for path in bodies}
    tables = 2 * (shape.context + 1) * shape.head_size // 2 * 4
    assert (folder / "body.bin").stat().st_size == sizes["2-4"]
    assert sizes["2-4"] - tables < 1.05 * (sizes[""] - tables) * 2 / BLOCKS
    assert stage.memory.token_bytes == shape.kv_bytes_per_token(2)

    ids = list(range(3, 12))
    cache = model.new_cache(16)
    out = model.forward([Chunk(ids, cache)], (2, 3, 4))
    x, want = (out.tapped(slice(0, 9), [layer])[:, 0] for layer in (2, 4))
    given, tapped = stage.run(x, [Chunk(ids, stage.cache_in(stage.memory.reserve(16)))], (3,))
    np.testing.assert_array_equal(given, want)
    assert list(tapped) == [3]
    np.testing.assert_array_equal(tapped[3], out.tapped(slice(0, 9), [3])[:, 0])


@pytest.mark.twin
def test_a_stage_of_torch_alone_has_its_own_weights_only(six: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = twin("torch")
    from sideplug.cloud.model import torch_model

    monkeypatch.setattr(torch_model, "has_mkldnn", lambda: False)  # its weights are not parameters any more
    stage = torch_model.load_stage(six, (2, 4), kv_limit_bytes=KV)
    gc.collect()
    held = [module for module in gc.get_objects() if type(module).__name__ == "LlamaDecoderLayer"]
    assert len(held) == 2
    width, hidden, kv = SHAPE["hidden_size"], SHAPE["intermediate_size"], 2 * SHAPE["head_dim"]
    block = 2 * width * width + 2 * width * kv + 3 * width * hidden + 2 * width
    assert sum(p.nbytes for p in stage._body.parameters()) == 2 * block * 4

    model = torch_model.load(six, kv_limit_bytes=KV)
    ids = list(range(3, 12))
    out = model.forward([Chunk(ids, model.new_cache(16))], (2, 3, 4))
    x, want = (torch.from_numpy(out.tapped(slice(0, 9), [layer])[:, 0]) for layer in (2, 4))
    given, tapped = stage.run(x, [Chunk(ids, stage.cache_in(stage.memory.reserve(16)))], (3,))
    np.testing.assert_array_equal(given, want)
    np.testing.assert_array_equal(tapped[3], out.tapped(slice(0, 9), [3])[:, 0])


def test_a_stage_whose_slots_are_other_ones(six: Path, root: Path) -> None:
    """Another machine gives its slots as it likes: rows are moved to their places, and back."""
    cut, whole = ort(six, 8, (3,), root), ort(six, 8, (), root)
    first, second = cut.stages
    hold = [second.cache_in(second.memory.reserve(64)) for _ in range(3)]
    caches = []
    for _ in range(3):  # the slots of the second stage: 2, 1, 0
        del hold[-1]
        gc.collect()
        reserved = cut.memory.reserve(64)
        caches.append(JointCache([first.cache_in(reserved), second.cache_in(reserved)]))
    assert [[part.slot for part in cache.parts] for cache in caches] == [[0, 2], [1, 1], [2, 0]]
    plain = [whole.new_cache(64) for _ in range(3)]
    for sizes in ((5, 3, 4), (1, 1, 1), (1, 2, 1), (1, 0, 1), (1, 1, 6)):
        ids = [list(range(2, 2 + size)) for size in sizes]
        got, want = (
            model.forward([Chunk(i, cache) for i, cache in zip(ids, having, strict=True) if i], LAYERS)
            for model, having in ((cut, caches), (whole, plain))
        )
        rows = slice(0, sum(sizes))
        np.testing.assert_array_equal(got.tapped(rows, LAYERS), want.tapped(rows, LAYERS))


def test_a_step_that_failed_in_one_stage_can_be_run_again(
    six: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut, whole = ort(six, 8, (3,), root), ort(six, 8, (), root)
    ids = list(range(2, 20))
    caches = {model: model.new_cache(64) for model in (cut, whole)}
    for model, cache in caches.items():
        model.forward([Chunk(ids, cache)])
    with monkeypatch.context() as broken:
        broken.setattr(cut.stages[1], "run", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            cut.forward([Chunk([7, 8], caches[cut])])
    assert [part.length for part in caches[cut].parts] == [18, 18]
    a, b = (model.forward([Chunk([7, 8], cache)]).z(slice(0, 2)) for model, cache in caches.items())
    np.testing.assert_array_equal(a, b)


def test_a_layer_that_was_not_asked_for_is_not_there(six: Path, root: Path) -> None:
    model = ort(six, 8, (3,), root)
    out = model.forward([Chunk([3, 4, 5], model.new_cache(8))], (1, 4))
    assert out.tapped([0, 2], [4, 1]).shape == (2, 2, model.width)
    with pytest.raises(KeyError):
        out.tapped([0], [2])


def test_memory_is_counted_in_every_stage(six: Path, root: Path) -> None:
    bytes_of = 2 * 2 * 16 * 4  # of a token, in one block
    models = {number: ort(six, 8, cuts, root, 100 * BLOCKS * bytes_of) for number, cuts in CUTS.items()}
    for number, model in models.items():
        assert (model.memory.tokens, model.memory.limit_bytes) == (100, 100 * BLOCKS * bytes_of)
        cache = model.new_cache(60)
        assert model.memory.reserved_bytes == 60 * BLOCKS * bytes_of, number
        with pytest.raises(Busy, match="try later"):
            model.new_cache(60)
        assert model.memory.reserved_bytes == 60 * BLOCKS * bytes_of
        del cache
        gc.collect()
        assert model.memory.reserved_bytes == 0
    by_stage = [stage.memory.limit_bytes for stage in models["3"].stages]
    assert by_stage == [100 * blocks * bytes_of for blocks in (1, 3, 2)]


def test_a_reservation_is_in_every_memory_or_in_none() -> None:
    roomy, tight = KVMemory(1000, 10), KVMemory(MIN_TOKENS * 5, 5)
    joint = JointMemory([roomy, tight])
    assert joint.tokens == MIN_TOKENS
    reservation = joint.reserve(40)
    assert (roomy.reserved_bytes, tight.reserved_bytes, joint.reserved_bytes) == (400, 200, 600)
    with pytest.raises(Busy):
        joint.reserve(40)
    assert joint.reserved_bytes == 600
    reservation.release()
    reservation.release()
    assert joint.reserved_bytes == 0
    assert divide(1000, [10]) == [1000]
    assert divide(1009, [4, 6]) == [400, 600]
    with pytest.raises(InputError, match=r"must be at least .* \(64 tokens\)"):
        divide(639, [4, 6])


def test_stages_that_do_not_make_a_model_are_refused(six: Path, root: Path) -> None:
    assert ranges(6, ()) == [(0, 6)]
    assert ranges(6, (1, 4)) == [(0, 1), (1, 4), (4, 6)]
    wrong: tuple[tuple[int, ...], ...] = ((0,), (6,), (4, 2), (3, 3))
    for cuts in wrong:
        with pytest.raises(InputError, match="a model of 6 blocks must be cut before blocks that rise, 1 to 5, got"):
            ranges(6, cuts)
    model = ort(six, 8, (1, 4), root)
    a, b, c = model.stages
    build: Callable[..., Any] = lambda *stages: Pipeline(model.embedding, stages, model.head)  # noqa: E731
    for stages in ((), (a,), (a, b), (b, c), (a, c), (a, b, b, c)):
        with pytest.raises(InputError, match="must be all blocks of one model, one behind the other, got"):
            build(*stages)
    assert build(a, b, c).blocks == BLOCKS


def test_a_blueprint_counts_the_bytes_of_its_blocks(six: Path) -> None:
    shape = blueprint.read(six)
    assert shape.kv_bytes_per_token(6) == 6 * shape.kv_bytes_per_token(1) == 6 * 2 * 2 * 16 * 4
    assert dataclasses.replace(shape, kv_heads=1).kv_bytes_per_token(1) == 2 * 16 * 4
