"""A tiny model in a folder: a Llama of 2 layers, 64 wide, random, made with NumPy, with a tokenizer of its own.

The tests and the load test serve it, without a download or torch. Its texts are nonsense, and always the same nonsense.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

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


def make_llama(folder: Path, seed: int = 0, context: int = SHAPE["max_position_embeddings"]) -> Path:
    """A model folder as the store wants it."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab = make_tokenizer(folder)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": vocab, **SHAPE}
    config |= {"max_position_embeddings": context, "tie_word_embeddings": True, "rms_norm_eps": 1e-6}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(llama_weights(vocab, seed), folder / "model.safetensors", {"format": "pt"})
    return folder


def make_tokenizer(folder: Path) -> int:
    """A byte-level BPE tokenizer with ChatML, trained on TEXT; its vocabulary's size."""
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


def llama_weights(vocab: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights of a Llama of SHAPE; wide enough that its logits differ enough to be a test."""
    rng = np.random.default_rng(seed)
    width, hidden, head = SHAPE["hidden_size"], SHAPE["intermediate_size"], SHAPE["head_dim"]
    queries, keys = SHAPE["num_attention_heads"] * head, SHAPE["num_key_value_heads"] * head
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, width), "model.norm.weight": (width,)}
    for i in range(SHAPE["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        shapes |= {
            f"{layer}.self_attn.{kind}_proj.weight": (rows, width)
            for kind, rows in zip("qkv", (queries, keys, keys), strict=True)
        }
        shapes[f"{layer}.self_attn.o_proj.weight"] = (width, queries)
        shapes |= {f"{layer}.mlp.{kind}_proj.weight": (hidden, width) for kind in ("gate", "up")}
        shapes[f"{layer}.mlp.down_proj.weight"] = (width, hidden)
        shapes |= {f"{layer}.{norm}_layernorm.weight": (width,) for norm in ("input", "post_attention")}
    weights = {name: rng.normal(0, 0.2, shape) for name, shape in shapes.items()}
    return {name: (value + (value.ndim == 1)).astype(np.float32) for name, value in weights.items()}
