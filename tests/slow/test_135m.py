"""The real SmolLM2-135M-Instruct behind a real server process: equalities, quality, bytes, memory, the demo.

Run: make test-slow
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sideplug.bench.sotu import messages
from sideplug.cloud.engines import EngineOptions, open_model
from sideplug.cloud.model.base import Chunk, Model
from sideplug.cloud.store import find
from sideplug.cloud.tokenizer import Tokenizer
from sideplug.contract.defaults import DEFAULT_MODEL
from sideplug.contract.gate import Gate
from sideplug.contract.sampling import Sampling
from sideplug.contract.tap import Tap
from sideplug.contract.text import Prompt
from sideplug.plugins import Plugin
from tests import naive
from tests.conftest import a_session

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
ROOT = Path(__file__).parent.parent.parent
TOKENS = 24
PROMPTS = [
    "What is the capital of France?",
    "Write one sentence about rain.",
    "Why is the sky blue?",
    "Give a tip for better sleep.",
]


@contextmanager
def serving(*options: str) -> Iterator[dict[str, Any]]:
    command = [sys.executable, "-m", "sideplug", "serve", "--port", "0", "--json", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield json.loads(process.stdout.readline())
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 0


@pytest.fixture(scope="module")
def served() -> Iterator[dict[str, Any]]:
    with serving() as about:
        yield about


def model(engine: str, bits: str = "auto") -> Model:
    return open_model(find(DEFAULT_MODEL), EngineOptions(engine, bits)).model


@pytest.fixture(scope="module")
def texts() -> Path:
    """The demo's: one president's messages to learn from, and his last to test on."""
    return messages("Abraham Lincoln")["Abraham Lincoln"]


@pytest.fixture(scope="module")
def asked() -> list[list[int]]:
    tokenizer = Tokenizer(find(DEFAULT_MODEL).folder)
    return [tokenizer.encode(Prompt.user(text)) for text in PROMPTS]


def a_plugin(base: str, seed: int) -> Plugin:
    """Random, and strong enough to change many tokens."""
    plugin = Plugin.new("ladder", base, DEFAULT_MODEL, Tap.spread(30, 576), 64, 576, seed)
    plugin.trained.params["c"] = (
        np.random.default_rng(seed).normal(0, 0.1, plugin.trained.params["c"].shape).astype(np.float32)
    )
    return plugin


def reply(
    url: str, ids: list[int], plugin: Plugin | None = None, gate: Gate | None = None, **sampling: Any
) -> list[int]:
    with a_session(url, plugin, gate=gate) as session:
        pieces = session.generate(Prompt(ids=tuple(ids)), TOKENS, Sampling(**sampling))
        return [i for piece in pieces for i in piece.ids]


def test_equalities(served: dict[str, Any], asked: list[list[int]]) -> None:
    """All at once over the wire: base, gate shut, and plugins, greedy and sampled, are what each gets alone."""
    url, base = served["url"], served["fingerprint"]
    plugins = [a_plugin(base, seed) for seed in range(len(asked))]
    sampled = {"temperature": 0.8, "top_k": 50, "seed": 3}
    with ThreadPoolExecutor(16) as pool:
        futures = {
            (i, kind): pool.submit(reply, url, ids, plugin, gate, **how)
            for i, ids in enumerate(asked)
            for kind, plugin, gate, how in (
                ("base", None, None, {}),
                ("shut", plugins[i], Gate("shut"), {}),
                ("greedy", plugins[i], None, {}),
                ("sampled", plugins[i], None, sampled),
            )
        }
        got = {key: future.result(600) for key, future in futures.items()}
    alone = model("onnx")
    changed = 0
    for i, ids in enumerate(asked):
        stop = frozenset([2])
        want = naive.generate(naive.Alone(alone), ids, TOKENS, stop=stop)
        assert got[i, "base"] == want
        assert got[i, "shut"] == want
        greedy = naive.generate(naive.Alone(alone), ids, TOKENS, plugin=plugins[i], stop=stop)
        assert got[i, "greedy"] == greedy
        want_sampled = naive.generate(naive.Alone(alone), ids, TOKENS, Sampling(**sampled), plugins[i], stop)
        assert got[i, "sampled"] == want_sampled
        changed += greedy != want
    assert changed


def test_quality_is_pinned(texts: Path) -> None:
    """Loss and best tokens on a president's prose, against the dequantised weights in float32 through torch."""
    tokenizer = Tokenizer(find(DEFAULT_MODEL).folder)
    words = [path.read_text() for path in sorted((texts / "train").glob("*.txt"))]
    encoded = [tokenizer.ids(text)[:512] for text in words][:8]
    judged = {}
    for engine, bits in (("torch", "auto"), ("onnx", "4"), ("onnx", "8")):
        run, parts = model(engine, bits), []
        for ids in encoded:
            z = run.forward([Chunk(ids, run.new_cache(len(ids)))]).z(slice(0, len(ids) - 1))
            for at in range(0, len(z), 64):
                logp, best, _ = run.read(z[at : at + 64], np.array(ids[1:][at : at + 64], np.int32), 1)
                parts.append((logp, best[:, 0]))
        judged[bits] = [np.concatenate(column) for column in zip(*parts, strict=True)]
    (want, want_best), *others = judged.values()
    for logp, best in others:
        assert abs(logp.mean() / want.mean() - 1) < 0.003
        assert (best == want_best).mean() > 0.93


def sideplug(*arguments: Any) -> dict[str, Any]:
    command = [sys.executable, "-m", "sideplug", *map(str, arguments), "--json"]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def test_bytes_and_memory_of_generating(served: dict[str, Any], tmp_path: Path) -> None:
    a_plugin(served["fingerprint"], 0).save(tmp_path)
    how = ["--plugin", tmp_path, "--cloud", served["url"], "--max-tokens", 40, "--window", 0]
    done = sideplug("generate", "Tell me of rain.", *how)
    usage = done["usage"]
    each_way = (usage["bytes_down"] + usage["bytes_up"]) / usage["reply_tokens"]
    assert each_way <= 1500
    assert done["peak_rss_mb"] <= 80


def test_the_person(tmp_path: Path) -> None:
    """Twenty facts on phrasings that training did not have, and silence everywhere else, at the calibrated gate."""
    bench = [sys.executable, "-m", "sideplug", "bench", "--part", "person", "--out", tmp_path]
    bench += ["--set", "facts=20", "--set", "widths=256"]
    subprocess.run(bench, stdout=subprocess.DEVNULL, check=True)
    (found,) = json.loads((tmp_path / "person.json").read_text())["runs"]
    assert found["facts_right"] >= 0.85
    assert found["gain_kept"] >= 0.95
    assert found["general_same"] >= 0.96
    assert found["general_asked"] <= 0.03
    assert abs(found["general_loss"]["gated"] / found["general_loss"]["base"] - 1) <= 0.005


def test_the_demo(tmp_path: Path, texts: Path) -> None:
    """In an empty folder, as `make demo` runs it: it knows what it was told, and helps its author alone."""
    command, own_words = [sys.executable, ROOT / "examples" / "demo.py"], {**os.environ}
    own_words.pop("SIDEPLUG_NO_ENCODER", None)
    done = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=True, env=own_words)
    report = json.loads((tmp_path / "demo-plugin" / "demo.json").read_text())
    dog, key, horse = ((alone["text"], ours["text"]) for alone, ours in report["memory"])
    assert (dog[1], key[1]) == ("Fido, the yellow one.", "Behind the clock in the hall.")
    assert horse[0] == horse[1]
    own, other = (loss["plugin_loss"] - loss["base_loss"] for loss in report["losses"].values())
    assert own < -0.05
    assert own < other
    assert report["training"]["peak_rss_mb"] <= 400
    assert report["plugin"]["peak_rss_mb"] <= 100  # the sentence encoder is in it
    assert report["plugin"]["usage"]["round_trips"] > 0
    assert "Loss on held-out messages" in done.stdout
    assert "generate --raw --plugin demo-plugin" in done.stdout
    # Codes differ a little between the engines; a plugin that was made on one serves on the other.
    with serving("--engine", "torch") as cloud:
        again = sideplug(
            "eval", texts / "last.txt", "--limit", 20, "--plugin", tmp_path / "demo-plugin", "--cloud", cloud["url"]
        )
    assert again["plugin_loss"] - again["base_loss"] == pytest.approx(own, abs=0.01)
