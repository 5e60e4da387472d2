"""A tiny model (2 layers, 64 wide, random, made with NumPy), plugins for it, and a cloud that serves it: all that the
load test and the fuzzer need, without a download or torch. Its texts are nonsense, and always the same nonsense.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from safetensors.numpy import save_file

from sideplug.contract.gate import Gate
from sideplug.contract.tap import Tap
from sideplug.device.address import Address
from sideplug.device.plugin import Plugin

WIDTH, BLOCKS, CONTEXT = 64, 2, 1024
KV_TOKEN_BYTES = BLOCKS * 2 * 2 * 16 * 4  # keys and values of two heads of 16 float32
TEXT = """The river was high that spring and the mill stood still. Anna wrote to her brother that the bridge had gone.
He answered in a week: the bees are well, the roof is not, bring nails. She laughed, and packed nails, honey and tea.
"Is it far?" asked the child. "It is as far as your feet are tired," said the old man, and gave him an apple. 0123456789
"""
WORDS = TEXT.replace('"', "").split()
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHAPE: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 96,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "head_dim": 16,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-6,
}


def make_model(folder: Path, seed: int = 0) -> Path:
    """A model folder as `sideplug serve` takes it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder.mkdir(parents=True, exist_ok=True)
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
    about = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "chat_template": CHAT}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    vocab = tokenizer.get_vocab_size()
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": vocab, **SHAPE}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(_weights(vocab, seed), folder / "model.safetensors", {"format": "pt"})
    return folder


def _weights(vocab: int, seed: int) -> dict[str, np.ndarray]:
    """Random; wide enough that its logits differ enough to be a test."""
    rng = np.random.default_rng(seed)
    hidden, head = SHAPE["intermediate_size"], SHAPE["head_dim"]
    queries, keys = SHAPE["num_attention_heads"] * head, SHAPE["num_key_value_heads"] * head
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, WIDTH), "model.norm.weight": (WIDTH,)}
    for i in range(BLOCKS):
        layer = f"model.layers.{i}"
        for kind, rows in zip("qkv", (queries, keys, keys), strict=True):
            shapes[f"{layer}.self_attn.{kind}_proj.weight"] = (rows, WIDTH)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (WIDTH, queries)
        shapes |= {f"{layer}.mlp.{kind}_proj.weight": (hidden, WIDTH) for kind in ("gate", "up")}
        shapes[f"{layer}.mlp.down_proj.weight"] = (WIDTH, hidden)
        shapes |= {f"{layer}.{norm}_layernorm.weight": (WIDTH,) for norm in ("input", "post_attention")}
    weights = {name: rng.normal(0, 0.2, shape) for name, shape in shapes.items()}
    return {name: (value + (value.ndim == 1)).astype(np.float32) for name, value in weights.items()}


def a_plugin(base: str, seed: int, gate: str = "open", codec: str = "int8", kind: str = "ladder") -> Plugin:
    """Every parameter random: its corrections change tokens. A `linear` gate opens for about half of them."""
    rng = np.random.default_rng([seed, 77])
    tap = Tap.raw(BLOCKS, WIDTH) if kind == "paper" else Tap(tuple(range(BLOCKS + 1)), 16, 0, codec)
    plugin = Plugin.new(kind, base, "tiny", tap, 24, WIDTH, seed)
    for name, value in plugin.params.items():
        plugin.params[name] = (value + rng.normal(0, 0.5, value.shape)).astype(np.float32)
    if gate == "linear":
        weight_D = rng.normal(0, WIDTH**-0.5, WIDTH).astype(np.float32)
        plugin.gate = Gate("linear", weight_D, memory=float(rng.choice([0.0, 0.5])))
    else:
        plugin.gate = Gate(gate)
    return plugin


@dataclass
class Cloud:
    """A served model in its own process."""

    url: str
    pin: str
    fingerprint: str
    key: str  # one that any request may bear; "" where none is asked for
    process: psutil.Process
    log: Path  # what it says on its error stream

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def address(self, key: str = "") -> Address:
        return Address(self.url, key=key or self.key, pin=self.pin)

    def metrics(self) -> dict[str, float]:
        """What /metrics says, by the names and labels there."""
        address = self.address()
        url = f"{'https' if self.pin else 'http'}://127.0.0.1:{self.port}/metrics"
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.urlopen(request, timeout=30, context=address.tls()) as answer:
            lines = answer.read().decode().splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[:1] != "#")}

    def settled(self, seconds: float, *names: str) -> dict[str, float]:
        """/metrics as soon as all of these are 0, or as they are after so many seconds."""
        last = time.monotonic() + seconds
        while True:
            found = self.metrics()
            if time.monotonic() > last or not any(found[name] for name in names):
                return found
            time.sleep(0.2)

    @property
    def complaints(self) -> list[str]:
        """Lines of its log that are errors, and the last line of each traceback."""
        found, inside = [], False
        for line in self.log.read_text(errors="replace").splitlines():
            if " ERROR " in line:
                found.append(line.split(" ", 1)[1])
            if line.startswith("Traceback"):
                inside = True
            elif inside and line[:1] not in ("", " "):
                found.append(line)
                inside = False
        return found


@contextmanager
def a_cloud(folder: Path, *options: str, keys: Path | None = None, key: str = "") -> Iterator[Cloud]:
    """`sideplug serve` of a model folder as a user starts it, with nothing of the user's: the certificate, graphs and
    log go beside the folder. With `keys` it has TLS too. Exits where it does not start."""
    scratch = folder.parent
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SIDEPLUG_")}
    environment |= {"XDG_CONFIG_HOME": str(scratch / "config"), "SIDEPLUG_CACHE": str(scratch / "cache")}
    door = ["--tls-self", "--keys", str(keys)] if keys else ["--insecure"]
    command = [sys.executable, "-m", "sideplug", "serve", str(folder), "--bits", "16", "--port", "0", "--json"]
    log = scratch / "serve.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*command, *door, *options], stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        sys.exit(f"the cloud did not start: {log.read_text().strip()}")
    about = json.loads(line)
    try:
        yield Cloud(about["url"], about.get("pin", ""), about["fingerprint"], key, psutil.Process(process.pid), log)
    finally:
        process.terminate()
        try:
            process.wait(90)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Watch(threading.Thread):
    """Samples a process's memory each second, from `start` to `stop`."""

    def __init__(self, process: psutil.Process) -> None:
        super().__init__(name="watch", daemon=True)
        self._process = process
        self._stopped = threading.Event()
        self.rss_mb: list[float] = []

    def run(self) -> None:
        while not self._stopped.is_set():
            try:
                self.rss_mb.append(self._process.memory_info().rss / 2**20)
            except psutil.Error:
                return
            self._stopped.wait(1)

    def stop(self) -> None:
        self._stopped.set()
        self.join()
