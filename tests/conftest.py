"""Tiny real models (2 layers, 64 wide, random) in real folders, and a real cloud on a loopback socket around them."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from safetensors.numpy import load_file

from sideplug.cloud.engines import EngineOptions
from tests.prepared import Prepared
from tests.tiny_model import CHAT, SHAPE, make_llama, make_tokenizer

# No clock decides a test: a slow machine draws its inputs slowly.
settings.register_profile("quiet", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("quiet")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
for name in [name for name in os.environ if name.startswith("SIDEPLUG_")]:
    del os.environ[name]  # a developer's own settings must not steer the tests
os.environ["SIDEPLUG_NO_ENCODER"] = "1"  # tests that need the sentence encoder fetch it: -m slow
OWN_CACHE = tempfile.TemporaryDirectory(prefix="sideplug-tests-")

ARCHITECTURES = ("llama", "qwen3", "gemma3", "mistral", "gemma2")


def twin(package: str) -> Any:
    """A package that only twins need; without it their tests are skipped, and said to be."""
    return pytest.importorskip(package, reason=f"the twin needs {package}: make test-twins")


def make_lm(architecture: str, vocab: int, seed: int = 0) -> Any:
    torch, t = twin("torch"), twin("transformers")
    torch.manual_seed(seed)
    config: Any
    if architecture == "llama":
        config = t.LlamaConfig(vocab_size=vocab, tie_word_embeddings=True, **SHAPE)
    elif architecture == "untied":
        config = t.LlamaConfig(vocab_size=vocab, tie_word_embeddings=False, attention_bias=True, mlp_bias=True, **SHAPE)
    elif architecture == "llama3-rope":
        rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0}
        rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
        config = t.LlamaConfig(vocab_size=vocab, rope_parameters=rope, **SHAPE)
    elif architecture == "qwen2":
        config = t.Qwen2Config(vocab_size=vocab, **SHAPE)
    elif architecture == "smollm3":
        config = t.SmolLM3Config(vocab_size=vocab, no_rope_layers=[1, 0], **SHAPE)
    elif architecture == "gemma":
        config = t.GemmaConfig(vocab_size=vocab, **SHAPE)
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


def make_folder(folder: Path, architecture: str = "", seed: int = 0) -> Path:
    """A model folder as the store wants it: a tiny Llama made with NumPy, or an architecture of transformers'."""
    if not architecture:
        return make_llama(folder, seed)
    folder.mkdir(parents=True, exist_ok=True)
    make_lm(architecture, make_tokenizer(folder), seed).save_pretrained(folder)
    return folder


def write_gguf(
    path: Path,
    folder: Path,
    kind: str = "F32",
    pre: str = "gpt-2",
    family: str = "llama",
    change: Callable[[Any], None] = lambda writer: None,
) -> None:
    """A model folder as llama.cpp's converter writes it: other names, q and k in its rotary order, in blocks.

    change: what it does to the gguf.GGUFWriter before the tensors are added.
    """
    import gguf

    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(path, family)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if i < 2 else 1 for i in range(len(tokens))])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    for name, number in (("bos", 0), ("eos", 1), ("unk", 0), ("pad", 1)):
        getattr(writer, f"add_{name}_token_id")(number)
    writer.add_chat_template(CHAT)
    change(writer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.upper()], config["num_hidden_layers"])
    for name, value in load_file(folder / "model.safetensors").items():
        for part, heads in (("q_proj", 4), ("k_proj", 2)):
            if part in name and family == "llama":
                value = value.reshape(heads, 2, -1, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
        kind_of = gguf.GGMLQuantizationType[kind if value.ndim == 2 else "F32"]
        data = gguf.quants.quantize(np.ascontiguousarray(value, np.float32), kind_of)
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), data, raw_dtype=kind_of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Llama."""
    return make_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another base model: same shape, other weights."""
    return make_folder(tmp_path_factory.mktemp("models") / "other", seed=1)


def eventually(true: Callable[[], Any], within_s: float = 10.0) -> None:
    """Wait for what another thread or process does."""
    last = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < last, "it did not come true"
        time.sleep(0.01)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@contextmanager
def serving(port: int, *arguments: Any) -> Iterator[subprocess.Popen[str]]:
    """`sideplug serve` in a process of its own, killed at the end."""
    command = [sys.executable, "-m", "sideplug", "serve", *map(str, arguments), "--port", str(port), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["url"] == f"ws://127.0.0.1:{port}"
        yield process
    finally:
        process.kill()
        process.communicate()


UNQUANTISED = EngineOptions("onnx", "16", kv_bytes=1 << 30)  # so that a twin in float32 gives the same text
EIGHT_BITS = EngineOptions(kv_bytes=1 << 30)


@pytest.fixture(scope="session", autouse=True)
def own_cache(request: pytest.FixtureRequest) -> Iterator[None]:
    """The graphs of tiny models go where they vanish; the slow tests use the user's own cache, for its model."""
    slow = "slow" in request.config.option.markexpr and "not slow" not in request.config.option.markexpr
    if not slow:
        os.environ["SIDEPLUG_CACHE"] = OWN_CACHE.name
    yield
    OWN_CACHE.cleanup()


@pytest.fixture(scope="module", autouse=True)
def own_config(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keys and certificates go where they vanish; a cloud of another file leaves no key of this machine here."""
    os.environ["XDG_CONFIG_HOME"] = str(tmp_path_factory.mktemp("config"))
    os.environ["XDG_DATA_HOME"] = str(tmp_path_factory.mktemp("data"))


class Cloud:
    """A real server in a thread: `url`, and the engine behind it for tests that look inside."""

    def __init__(
        self,
        folder: Path,
        wanted: EngineOptions = UNQUANTISED,
        keys: Any = None,
        tls: Any = None,
        origins: Any = (),
        **limits: Any,
    ) -> None:
        from sideplug.cloud.engine import Engine
        from sideplug.cloud.engines import open_model
        from sideplug.cloud.host import Limits
        from sideplug.cloud.server import CloudServer
        from sideplug.cloud.store import find
        from sideplug.cloud.tokenizer import Tokenizer
        from sideplug.sockets import bind

        self.base = find(str(folder))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

        def make() -> Engine:
            return Engine(open_model(self.base, wanted).model, Tokenizer(folder))

        self.server = CloudServer(self.base, make, Limits(**limits), keys, origins)
        self.engine = self.server.thread.engine
        self.url = self._call(self.server.start(bind("127.0.0.1", 0), tls))

    def _call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    def close_at_once(self) -> None:
        """As if its machine were gone: connections are reset, and nobody listens any more."""

        async def reset() -> None:
            assert self.server._server is not None
            self.server._server.close(close_connections=False)
            for session in self.server.sessions:
                session._connection.abort()

        self._call(reset())

    def drop_sessions(self) -> None:
        """Reset all connections; new ones may come."""

        async def reset() -> None:
            for session in list(self.server.sessions):
                session._connection.abort()

        self._call(reset())

    def close(self) -> None:
        self._call(self.server.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@contextmanager
def a_cloud(folder: Path, wanted: EngineOptions = UNQUANTISED, **limits: Any) -> Iterator[Cloud]:
    cloud = Cloud(folder, wanted, **limits)
    try:
        yield cloud
    finally:
        cloud.close()


@pytest.fixture(scope="session")
def cloud(tiny: Path) -> Iterator[Cloud]:
    with a_cloud(tiny) as running:
        yield running


def a_link(url: str, ca: Any = None, record: Any = None, key: str = "", pin: str = "") -> Any:
    """A connection without a session."""
    from sideplug.device.address import Address
    from sideplug.device.link import WebSocketLink

    return WebSocketLink.open(Address(url, ca, key, pin), record)


def a_session(
    link: Any, plugin: Any = None, gate: Any = None, tap: Any = None, connect: Any = None, retry: Any = None
) -> Any:
    """A session over a link, or at a URL, that does not connect again unless it is told how."""
    from sideplug.device.responders import PluginResponder, Silent
    from sideplug.device.session import Session

    responder = PluginResponder(plugin, gate) if plugin else Silent(tap)
    return Session(a_link(link) if isinstance(link, str) else link, responder, connect, retry)


def a_plugin(base: str, kind: str = "ladder", scale: float = 0.5, seed: int = 3, **tap: Any) -> Any:
    """A plugin for the tiny models whose every parameter is random: its corrections change tokens."""
    from sideplug.contract.bias import Bias
    from sideplug.contract.tap import Tap
    from sideplug.plugins import Plugin

    chosen = Tap.raw(2, 64) if kind.startswith("paper") else Tap(**{"layers": (0, 1, 2), "rank": 16, **tap})
    plugin = Plugin.new(kind, base, "tiny", chosen, 24, 64)
    rng = np.random.default_rng(seed)
    params = plugin.trained.params
    for name, value in params.items():
        params[name] = (value + rng.normal(0, scale, value.shape)).astype(np.float32)
    if plugin.trained.kind.biased:
        ids = np.sort(rng.choice(300, 60, replace=False)).astype(np.int32)
        plugin.trained.own_bias = Bias(ids, rng.normal(0, 2, 60).astype(np.float16))
    return plugin


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def prepared() -> Iterator[Prepared]:
    made = Prepared()
    yield made
    made.close()


@pytest.fixture
def run(tmp_path: Path, prepared: Prepared) -> Run:
    """Run the real command in a process of its own: run("train", "x", cloud=url) → stdout, stderr, returncode.

    Its retain set is a few prompts: our own list would take a tiny model seconds in every test.
    """
    retain = tmp_path / "retain.txt"
    retain.write_text("".join(f"Tell me about {thing}.\n" for thing in ("rain", "tea", "bees", "nails", "roofs")))

    def call(*args: str, stdin: str = "", env: dict[str, str] | None = None, **more: Any) -> Any:
        environment = {**os.environ, "SIDEPLUG_CACHE": str(tmp_path / "cache"), "SIDEPLUG_RETAIN": str(retain)}
        environment |= env or {}
        if more.keys() <= {"cwd"} and not any(name.startswith(("PYTHON", "LC_", "OMP_")) for name in env or {}):
            return prepared.run([*map(str, args)], environment, stdin, **more)
        command = [sys.executable, "-m", "sideplug", *map(str, args)]
        return subprocess.run(
            command, input=stdin, capture_output=True, text=True, env=environment, timeout=120, **more
        )

    return call
