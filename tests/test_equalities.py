"""The three equalities that hold the house up.

(a) the batched, cached engine  =  the plain Hugging Face forward, token for token
(b) cloud + wire + device       =  the same plugin in one process
(c) gate shut                   =  the plain base model; and so is an untrained plugin

Each engine's unquantised model is held against transformers; quantised weights against the same model with nobody else
in it, to the bit.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sideplug.cloud.engines import EngineOptions
from sideplug.cloud.model.ort.stage import OrtStage
from sideplug.contract.gate import Gate
from sideplug.contract.sampling import Sampling
from sideplug.contract.tap import Tap
from sideplug.contract.text import Prompt
from sideplug.device.reply import DecodeOptions, Usage
from sideplug.device.responders import PluginAnswering
from sideplug.plugins import Plugin
from tests import naive
from tests.conftest import EIGHT_BITS, UNQUANTISED, Cloud, a_cloud, a_plugin, a_session, make_folder, twin

TOKENS = 24
SAMPLINGS = {
    "greedy": Sampling(),
    "sampled": Sampling(0.9, top_k=40, top_p=0.95, repetition_penalty=1.1, seed=7, min_p=0.02),
}


STAGES = [
    pytest.param(("", EIGHT_BITS), id="eight-bits"),
    *(
        pytest.param((architecture, wanted), id=f"{wanted.engine}-{architecture}", marks=pytest.mark.twin)
        for wanted in (UNQUANTISED, EngineOptions(engine="torch"))
        for architecture in ("llama", "qwen3", "gemma3", "gemma2")
    ),
]
Stage = tuple[Cloud, Callable[[], Any]]


@pytest.fixture(scope="module", params=STAGES)
def stage(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A running cloud, and what makes a naive twin of its model."""
    architecture, wanted = request.param
    folder: Path = make_folder(tmp_path_factory.mktemp("stage") / "model", architecture)
    with a_cloud(folder, wanted) as cloud:
        if not architecture:
            yield cloud, lambda: naive.Alone(cloud.engine.model)
            return
        load = twin("transformers").AutoModelForCausalLM.from_pretrained
        lm = load(folder, attn_implementation="eager").eval()
        yield cloud, lambda: naive.Plain(lm)


def prompts(count: int) -> list[list[int]]:
    rng = np.random.default_rng(4)
    return [rng.integers(2, 300, int(rng.integers(3, 60))).tolist() for _ in range(count)]


def over_the_wire(
    cloud: Cloud,
    ids: list[int],
    sampling: Sampling,
    plugin: Plugin | None = None,
    gate: Gate | None = None,
    pace: DecodeOptions = DecodeOptions(),
    used: list[Usage] | None = None,
) -> list[int]:
    with a_session(cloud.url, plugin, gate=gate) as session:
        said = [i for piece in session.generate(Prompt(ids=tuple(ids)), TOKENS, sampling, pace) for i in piece.ids]
        if used is not None:
            used.append(session.usage)
        return said


def all_at_once(calls: list[Any]) -> list[Any]:
    """Run the calls in threads of their own, so that their sessions share the engine's steps."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result(120) for future in [pool.submit(call) for call in calls]]


@pytest.mark.parametrize("how", SAMPLINGS)
def test_a_engine_equals_the_plain_forward(stage: Stage, how: str) -> None:
    cloud, alone = stage
    asked = prompts(6)
    steps = cloud.engine.counters.steps
    got = all_at_once([lambda ids=ids: over_the_wire(cloud, ids, SAMPLINGS[how]) for ids in asked])
    stop = cloud.engine.tokenizer.stop_ids
    want = [naive.generate(alone(), ids, TOKENS, SAMPLINGS[how], stop=stop) for ids in asked]
    assert got == want
    assert len(set(map(tuple, want))) > 1, "texts that are all the same show nothing"
    assert cloud.engine.counters.steps - steps < sum(map(len, want)) + len(want), "sessions must share steps"


@pytest.mark.parametrize("how", SAMPLINGS)
@pytest.mark.parametrize("kind", ["ladder", "mlp", "paper", "paper-added"])
def test_b_the_wire_equals_one_process(stage: Stage, kind: str, how: str) -> None:
    cloud, plain = stage
    model = cloud.engine.model
    # A code at the edge of rounding makes much of the last bit, and torch's differ from ours: the same engine, then.
    alone = (lambda: naive.Alone(model)) if isinstance(model.stages[0], OrtStage) else plain
    scale = {"ladder": 0.5, "mlp": 0.2, "paper": 0.05, "paper-added": 0.2}[kind]
    plugins = [a_plugin(cloud.base.fingerprint, kind, scale, seed) for seed in range(4)]
    asked = prompts(4)
    stop = cloud.engine.tokenizer.stop_ids
    calls = [
        lambda ids=ids, plugin=plugin: over_the_wire(cloud, ids, SAMPLINGS[how], plugin)
        for ids, plugin in zip(asked, plugins, strict=True)
    ]
    want = [
        naive.generate(alone(), ids, TOKENS, SAMPLINGS[how], plugin, stop)
        for ids, plugin in zip(asked, plugins, strict=True)
    ]
    assert all_at_once(calls) == want
    base = [naive.generate(alone(), ids, TOKENS, SAMPLINGS[how], stop=stop) for ids in asked]
    assert want != base, "the plugins must change something, or this test shows nothing"


def test_c_gate_shut_and_untrained_are_the_base(stage: Stage) -> None:
    cloud, alone = stage
    stop = cloud.engine.tokenizer.stop_ids
    untrained = Plugin.new("ladder", cloud.base.fingerprint, "tiny", Tap((0, 1, 2), 16), 24, 64)
    wild = a_plugin(cloud.base.fingerprint)
    for ids in prompts(2):
        for sampling in SAMPLINGS.values():
            want = naive.generate(alone(), ids, TOKENS, sampling, stop=stop)
            assert over_the_wire(cloud, ids, sampling, wild, Gate("shut")) == want
            assert over_the_wire(cloud, ids, sampling, untrained) == want


def with_phrases(plugin: Plugin, phrases: np.ndarray) -> Plugin:
    """The same plugin with other phrases for its drafts."""
    part = dataclasses.replace(plugin.trained, phrases=phrases)
    return dataclasses.replace(plugin, parts=[part])


PACES = {
    "plain": DecodeOptions(0),
    "run-ahead": DecodeOptions(6, drafts=False),
    "lookahead": DecodeOptions(24),
    "one ahead": DecodeOptions(1),
}


@pytest.mark.parametrize("how", SAMPLINGS)
@pytest.mark.parametrize("gated", [False, True], ids=["open", "gated"])
def test_d_every_path_gives_the_same_text(stage: Stage, how: str, gated: bool) -> None:
    """Waiting, running ahead, with drafts that are right and drafts that are nonsense, all packed together."""
    cloud, _ = stage
    alone = lambda: naive.Alone(cloud.engine.model)  # noqa: E731
    stop = cloud.engine.tokenizer.stop_ids
    weight = np.random.default_rng(1).normal(size=64).astype(np.float32)
    gate = Gate("linear", weight, 0.1, memory=0.4) if gated else Gate("open")
    mild, wild = (a_plugin(cloud.base.fingerprint, scale=scale) for scale in (0.12, 0.5))
    asked = prompts(3)
    want, calls = [], []
    used: list[Usage] = []
    for plugin in (mild, wild):
        for ids in asked:
            text = naive.generate(alone(), ids, TOKENS, SAMPLINGS[how], plugin, stop, gate)
            nonsense = np.random.default_rng(5).permutation(np.array(text, np.int32))
            for phrases in (np.array(text, np.int32), np.concatenate([nonsense, [-1], nonsense[::-1]])):
                told = with_phrases(plugin, phrases.astype(np.int32))
                for pace in PACES.values():
                    want.append(text)
                    calls.append(
                        lambda ids=ids, told=told, pace=pace: over_the_wire(
                            cloud, ids, SAMPLINGS[how], told, gate, pace, used
                        )
                    )
    got = [text for at in range(0, len(calls), 6) for text in all_at_once(calls[at : at + 6])]
    assert got == want
    for name in ("confirmed", "rolled_back", "accepted"):
        assert sum(getattr(usage, name) for usage in used), f"nothing was {name}: this test shows nothing"


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


class Positions:
    """A gate for the naive twin that opens where a list says so: its score is the position in the reply."""

    def __init__(self, opens: list[bool]) -> None:
        self._opens = opens

    def score(self, z_D: np.ndarray, before: float | None) -> float:
        return 0.0 if before is None else before + 1

    def opens(self, score: float) -> bool:
        return self._opens[int(score)] if score < len(self._opens) else True


@pytest.mark.parametrize("window", [0, 6])
def test_e_a_late_device_is_not_waited_for(cloud: Cloud, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens that fell back are the base's, the others the plugin's; a late answer reaches no other position.

    The device is late by waiting for the deadline itself, however fast the machine is.
    """
    plugin = a_plugin(cloud.base.fingerprint, scale=0.3)
    quick, expire, calls = PluginAnswering.corrections, cloud.engine.expire, 0
    expired, passed = set[tuple[int, int]](), threading.Condition()  # positions whose deadline has passed

    def now_and_then_late(answering: PluginAnswering, ask: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls % 12 == 8:
            with passed:
                late = passed.wait_for(lambda: all((ask.run, at) in expired for at in ask.at), 60)
            assert late, "the deadline must pass"
        return quick(answering, ask)

    def noted(reply: Any, run: int, at: int) -> None:
        expire(reply, run, at)
        with passed:
            expired.add((run, at))
            passed.notify_all()

    monkeypatch.setattr(PluginAnswering, "corrections", now_and_then_late)
    monkeypatch.setattr(cloud.engine, "expire", noted)
    ids = prompts(1)[0]
    with a_session(cloud.url, plugin) as session:
        pieces = list(session.generate(Prompt(ids=tuple(ids)), 60, Sampling(), DecodeOptions(window, False, 150)))
        usage = session.usage
        again = [
            i for p in session.generate(Prompt(ids=tuple(ids)), 1, Sampling(), DecodeOptions(window)) for i in p.ids
        ]
    by = [piece.by for piece in pieces for _ in piece.ids]
    said = [token for piece in pieces for token in piece.ids]
    assert usage.fallback == by.count("fallback") > 0
    assert "plugin" in by
    monkeypatch.undo()
    gate = Positions([who == "plugin" for who in by])
    stop = cloud.engine.tokenizer.stop_ids
    assert said == naive.generate(naive.Alone(cloud.engine.model), ids, len(by), Sampling(), plugin, stop, gate)
    assert len(again) == 1
