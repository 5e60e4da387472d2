"""The three equalities that hold the house up.

(a) the batched, cached engine  =  the plain Hugging Face forward, token for token
(b) cloud + wire + device       =  the same plugin in one process
(c) gate shut                   =  the plain base model; and so is an untrained plugin
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from sideplug.contract.gate import Gate
from sideplug.contract.sampling import Sampling
from sideplug.contract.tap import Tap
from sideplug.contract.text import Prompt
from sideplug.device.plugin import Plugin
from tests import naive
from tests.conftest import Cloud, a_cloud, a_plugin, a_session, make_folder

TOKENS = 24
SAMPLINGS = {"greedy": Sampling(), "sampled": Sampling(0.9, top_k=40, top_p=0.95, repetition_penalty=1.1, seed=7)}


@pytest.fixture(scope="module", params=["llama", "qwen3", "gemma3", "gemma2"])
def stage(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cloud, Any]]:
    """A running cloud and transformers' own copy of its model."""
    folder: Path = make_folder(tmp_path_factory.mktemp("stage") / request.param, request.param)
    lm = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with a_cloud(folder) as cloud:
        yield cloud, lm


def prompts(count: int) -> list[list[int]]:
    rng = np.random.default_rng(4)
    return [rng.integers(2, 300, int(rng.integers(3, 60))).tolist() for _ in range(count)]


def over_the_wire(
    cloud: Cloud, ids: list[int], sampling: Sampling, plugin: Plugin | None = None, gate: Gate | None = None
) -> list[int]:
    with a_session(cloud.url, plugin, gate=gate) as session:
        return [i for piece in session.generate(Prompt(ids=tuple(ids)), TOKENS, sampling) for i in piece.ids]


def all_at_once(calls: list[Any]) -> list[Any]:
    """Run the calls in threads of their own, so that their sessions share the engine's steps."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result(120) for future in [pool.submit(call) for call in calls]]


@pytest.mark.parametrize("how", SAMPLINGS)
def test_a_engine_equals_the_plain_forward(stage: tuple[Cloud, Any], how: str) -> None:
    cloud, lm = stage
    asked = prompts(6)
    steps = cloud.engine.steps
    got = all_at_once([lambda ids=ids: over_the_wire(cloud, ids, SAMPLINGS[how]) for ids in asked])
    stop = cloud.engine.tokenizer.stop_ids
    want = [naive.generate(lm, ids, TOKENS, SAMPLINGS[how], stop=stop) for ids in asked]
    assert got == want
    assert cloud.engine.steps - steps < sum(map(len, want)) + len(want), "sessions must share steps"


@pytest.mark.parametrize("how", SAMPLINGS)
@pytest.mark.parametrize("kind", ["ladder", "paper"])
def test_b_the_wire_equals_one_process(stage: tuple[Cloud, Any], kind: str, how: str) -> None:
    cloud, lm = stage
    scale = 0.5 if kind == "ladder" else 0.05
    plugins = [a_plugin(cloud.base.fingerprint, kind, scale, seed) for seed in range(4)]
    asked = prompts(4)
    stop = cloud.engine.tokenizer.stop_ids
    calls = [
        lambda ids=ids, plugin=plugin: over_the_wire(cloud, ids, SAMPLINGS[how], plugin)
        for ids, plugin in zip(asked, plugins, strict=True)
    ]
    want = [
        naive.generate(lm, ids, TOKENS, SAMPLINGS[how], plugin, stop)
        for ids, plugin in zip(asked, plugins, strict=True)
    ]
    assert all_at_once(calls) == want
    base = [naive.generate(lm, ids, TOKENS, SAMPLINGS[how], stop=stop) for ids in asked]
    assert want != base, "the plugins must change something, or this test shows nothing"


def test_c_gate_shut_and_untrained_are_the_base(stage: tuple[Cloud, Any]) -> None:
    cloud, lm = stage
    stop = cloud.engine.tokenizer.stop_ids
    untrained = Plugin.new("ladder", cloud.base.fingerprint, "tiny", Tap((0, 1, 2), 16), 24, 64)
    wild = a_plugin(cloud.base.fingerprint)
    for ids in prompts(2):
        for sampling in SAMPLINGS.values():
            want = naive.generate(lm, ids, TOKENS, sampling, stop=stop)
            assert over_the_wire(cloud, ids, sampling, wild, Gate("shut")) == want
            assert over_the_wire(cloud, ids, sampling, untrained) == want


def test_nobodys_correction_reaches_anothers_text(cloud: Cloud) -> None:
    """Sixteen people at once, each with a plugin of their own, twice: every text is the one they get alone."""
    plugins = [a_plugin(cloud.base.fingerprint, seed=seed) for seed in range(16)]
    asked = prompts(16)
    alone = [over_the_wire(cloud, ids, Sampling(), plugin) for ids, plugin in zip(asked, plugins, strict=True)]
    assert len({tuple(text) for text in alone}) > 8
    calls = [
        lambda ids=ids, plugin=plugin: over_the_wire(cloud, ids, Sampling(), plugin)
        for ids, plugin in zip(asked, plugins, strict=True)
    ]
    assert all_at_once(calls * 2) == alone * 2
