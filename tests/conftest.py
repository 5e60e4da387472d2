"""Tiny real models (2 layers, 64 wide, random) in real folders, and a real cloud on a loopback socket around them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# No clock decides a test: a slow machine draws its inputs slowly.
settings.register_profile("quiet", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("quiet")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
for name in [name for name in os.environ if name.startswith("SIDEPLUG_")]:
    del os.environ[name]  # a developer's own settings must not steer the tests

TEXT = """The river was high that spring and the mill stood still. Anna wrote to her brother that the bridge had gone.
He answered in a week: the bees are well, the roof is not, bring nails. She laughed, and packed nails, honey and tea.
"Is it far?" asked the child. "It is as far as your feet are tired," said the old man, and gave him an apple. 0123456789
"""
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "head_dim": 16,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
ARCHITECTURES = ("llama", "qwen3", "gemma3", "mistral", "gemma2")


def make_tokenizer(folder: Path) -> int:
    """A byte-level BPE tokenizer with ChatML, trained on TEXT; its vocabulary's size."""
    import json

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "chat_template": CHAT}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer.get_vocab_size()


def make_lm(architecture: str, vocab: int, seed: int = 0) -> Any:
    import torch
    import transformers as t

    torch.manual_seed(seed)
    config: Any
    if architecture == "llama":
        config = t.LlamaConfig(vocab_size=vocab, tie_word_embeddings=True, **SHAPE)
    elif architecture == "qwen3":
        config = t.Qwen3Config(vocab_size=vocab, **SHAPE)
    elif architecture == "gemma3":
        config = t.Gemma3TextConfig(vocab_size=vocab, sliding_window=8, **SHAPE)
    elif architecture == "gemma2":  # soft caps on attention and on the logits
        config = t.Gemma2Config(vocab_size=vocab, sliding_window=8, attn_implementation="eager", **SHAPE)
    else:
        config = t.MistralConfig(vocab_size=vocab, sliding_window=8, **SHAPE)
    # Wider than the usual 0.02, so that the logits of a random model differ enough to be a test.
    config.initializer_range = 0.2
    lm = t.AutoModelForCausalLM.from_config(config).eval()
    return lm.float()


def make_folder(folder: Path, architecture: str = "llama", seed: int = 0) -> Path:
    """A model folder as the store wants it."""
    folder.mkdir(parents=True, exist_ok=True)
    make_lm(architecture, make_tokenizer(folder), seed).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Llama."""
    return make_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another base model: same shape, other weights."""
    return make_folder(tmp_path_factory.mktemp("models") / "other", seed=1)


class Cloud:
    """A real server in a thread: `url`, and the engine behind it for tests that look inside."""

    def __init__(self, folder: Path, **limits: Any) -> None:
        from sideplug.cloud.engine import Engine
        from sideplug.cloud.server import CloudServer, Limits, bind
        from sideplug.cloud.store import find
        from sideplug.cloud.tokenizer import Tokenizer
        from sideplug.cloud.torch_model import TorchModel

        self.base = find(str(folder))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.server = CloudServer(self.base, lambda: Engine(TorchModel(folder), Tokenizer(folder)), Limits(**limits))
        self.engine = self.server.thread.engine
        self.url = self._call(self.server.start(bind("127.0.0.1", 0)))

    def _call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    def close(self) -> None:
        self._call(self.server.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@contextmanager
def a_cloud(folder: Path, **limits: Any) -> Iterator[Cloud]:
    cloud = Cloud(folder, **limits)
    try:
        yield cloud
    finally:
        cloud.close()


@pytest.fixture(scope="session")
def cloud(tiny: Path) -> Iterator[Cloud]:
    with a_cloud(tiny) as running:
        yield running


@contextmanager
def a_session(url: str, plugin: Any = None, **settings: Any) -> Iterator[Any]:
    from sideplug.device.link import WebSocketLink
    from sideplug.device.runtime import Session

    link = WebSocketLink.connect(url)
    try:
        yield Session.open(link, plugin, **settings)
    finally:
        link.close()


def a_plugin(base: str, kind: str = "ladder", scale: float = 0.5, seed: int = 3, **tap: Any) -> Any:
    """A plugin for the tiny models whose every parameter is random: its corrections change tokens."""
    import numpy as np

    from sideplug.contract.tap import Tap
    from sideplug.device.plugin import Plugin

    chosen = Tap.raw(2, 64) if kind == "paper" else Tap(**{"layers": (0, 1, 2), "rank": 16, **tap})
    plugin = Plugin.new(kind, base, "tiny", chosen, 24, 64)
    rng = np.random.default_rng(seed)
    for name, value in plugin.params.items():
        plugin.params[name] = (value + rng.normal(0, scale, value.shape)).astype(np.float32)
    return plugin


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run the real command in a real process: run("train", "x", cloud=url) → stdout, stderr, returncode."""

    def call(*args: str, stdin: str = "", env: dict[str, str] | None = None, **more: Any) -> Any:
        environment = {**os.environ, "SIDEPLUG_CACHE": str(tmp_path / "cache"), **(env or {})}
        command = [sys.executable, "-m", "sideplug", *map(str, args)]
        return subprocess.run(
            command, input=stdin, capture_output=True, text=True, env=environment, timeout=120, **more
        )

    return call
