"""A model's sizes, as its config.json or its GGUF header says them: checked before anything is made by them.

It knows no engine. Test: pytest tests/cloud/test_model_files.py
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sideplug.contract.errors import UnknownModel

# The most that is taken for a size. Far past every model; what is made by a size fits into memory before that.
MOST = {
    "hidden_size": 1 << 17,
    "n_embd": 1 << 17,
    "intermediate_size": 1 << 22,
    "n_inner": 1 << 22,
    "num_hidden_layers": 1 << 12,
    "n_layer": 1 << 12,
    "num_attention_heads": 1 << 14,
    "n_head": 1 << 14,
    "num_key_value_heads": 1 << 14,
    "head_dim": 1 << 14,
    "vocab_size": 1 << 24,
    "max_position_embeddings": 1 << 22,
    "n_positions": 1 << 22,
}
_OPTIONAL = ("n_inner", "num_key_value_heads", "head_dim")  # may be null
_POSITIVE = ("rms_norm_eps", "rope_theta")
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blk|blocks)\.(\d+)\.")


def check_sizes(config: Mapping[str, Any], where: object) -> None:
    """Raise UnknownModel for a size that is no whole number, is none or absurd, or does not fit another."""
    for part in (config, config.get("text_config")):
        if isinstance(part, Mapping):
            _check_part(part, where)


def _check_part(config: Mapping[str, Any], where: object) -> None:
    for name, most in MOST.items():
        value = config.get(name)
        if name not in config or (value is None and name in _OPTIONAL):
            continue
        if type(value) is not int or not 1 <= value <= most:
            raise UnknownModel(f"{where}: {name} must be a whole number from 1 to {most:,}, got {str(value)[:40]}")
    for name in _POSITIVE:
        value = config.get(name)
        if value is not None and not (type(value) in (int, float) and 0 < value < float("inf")):
            raise UnknownModel(f"{where}: {name} must be a number above 0, got {str(value)[:40]}")
    heads, kv_heads = config.get("num_attention_heads"), config.get("num_key_value_heads")
    if heads and kv_heads and heads % kv_heads:
        raise UnknownModel(f"{where}: num_key_value_heads must divide {heads} heads, got {kv_heads}")
    width = config.get("hidden_size")
    if heads and width and not config.get("head_dim") and width % heads and config.get("model_type") in _PLAIN:
        raise UnknownModel(f"{where}: num_attention_heads must divide the hidden_size {width}, got {heads}")


_PLAIN = ("llama", "mistral", "smollm3", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")


def check_shapes(config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], where: object) -> None:
    """Raise UnknownModel where the sizes are not those of the weights, which have Hugging Face's names."""
    inner = config.get("text_config")
    sizes = inner if isinstance(inner, Mapping) else config
    layers = sizes.get("num_hidden_layers")
    found = [int(match[1]) + 1 for match in map(_LAYER.search, shapes) if match]
    if isinstance(layers, int) and found and layers > max(found):
        raise UnknownModel(f"{where}: num_hidden_layers is {layers}, but the weights have {max(found)} layers")
    if config.get("model_type") not in _PLAIN or config.get("quantization_config"):
        return
    try:
        width, hidden, heads = (config[n] for n in ("hidden_size", "intermediate_size", "num_attention_heads"))
    except KeyError as error:
        raise UnknownModel(f"{where} lacks {error}") from error
    vocab, kv_heads = config.get("vocab_size"), config.get("num_key_value_heads") or heads
    head = config.get("head_dim") or (256 if config["model_type"].startswith("gemma") else width // heads)
    layer = "model.layers.0."
    wanted = {
        "model.embed_tokens.weight": (vocab or 0, width),
        "model.norm.weight": (width,),
        layer + "self_attn.q_proj.weight": (heads * head, width),
        layer + "self_attn.k_proj.weight": (kv_heads * head, width),
        layer + "self_attn.v_proj.weight": (kv_heads * head, width),
        layer + "self_attn.o_proj.weight": (width, heads * head),
        layer + "mlp.gate_proj.weight": (hidden, width),
        layer + "mlp.down_proj.weight": (width, hidden),
    }
    for name, want in wanted.items():
        got = tuple(shapes.get(name, want))
        if got != want and not (name.startswith("model.embed") and not vocab):
            raise UnknownModel(
                f"{where}: by its sizes {name} would be {' × '.join(map(str, want))}, "
                f"but it is {' × '.join(map(str, got))}"
            )
