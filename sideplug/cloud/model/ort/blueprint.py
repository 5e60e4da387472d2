"""What a model's config.json says about its graph: sizes, norms, rotary positions, windows.

Llama, Mistral, SmolLM2 and 3, Qwen2 and 2.5, Qwen3, Gemma, Gemma 2 and Gemma 3 have blocks of one shape. A model of
another shape raises Unfit with the reason, and the torch engine takes it. It does not read weights.
Test: pytest tests/cloud/test_ort_model.py
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sideplug.cloud.model_files import Unfit, read_json, reading


@dataclass(frozen=True)
class Blueprint:
    """The sizes and variations of one decoder-only model. `rope` and `windows` have one entry a block."""

    family: str
    blocks: int
    width: int
    hidden: int  # of the feed-forward part
    heads: int
    kv_heads: int
    head_size: int
    vocab: int
    context: int
    eps: float
    activation: str  # silu, gelu (tanh) or gelu_exact
    tied: bool  # the head's weights are the embedding's
    rope: tuple[tuple[float, ...], ...]  # inverse frequencies (head_size / 2), or () for no positions
    windows: tuple[int, ...]  # keys that a query sees, itself included; 0: all
    attention_scale: float
    attention_softcap: float = 0.0
    qk_norm: bool = False
    norm_offset: float = 0.0  # Gemma's norms multiply by 1 + weight
    post_norms: bool = False  # Gemma 2 and 3 also norm what attention and feed-forward give
    embedding_scale: float = 1.0
    softcap: float = 0.0  # of the logits

    @property
    def rotaries(self) -> list[tuple[float, ...]]:
        """The different inverse frequencies of its blocks."""
        return sorted(set(self.rope) - {()})

    def kv_bytes_per_token(self, blocks: int) -> int:
        """Return the bytes that the keys and values of one token take in this many blocks, in float32."""
        return 2 * blocks * self.kv_heads * self.head_size * 4


_FAMILIES = ("llama", "mistral", "smollm3", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu", "gelu": "gelu_exact"}


def read(folder: Path) -> Blueprint:
    """Return the blueprint of a model folder, from its config.json. Raises Unfit, UnknownModel."""
    config = read_json(folder / "config.json")
    with reading(folder / "config.json"):
        return _blueprint(config)


def _blueprint(config: dict[str, Any]) -> Blueprint:
    """Return the blueprint of a config, whose sizes are checked. Raises Unfit."""
    family = config.get("model_type")
    if family not in _FAMILIES:
        raise Unfit(f"its architecture is {family}; the graph knows {', '.join(_FAMILIES)}")
    gemma = family.startswith("gemma")
    if config.get("quantization_config"):
        raise Unfit("its safetensors are quantised already")
    activation = config.get("hidden_activation") or config.get("hidden_act") or "silu"
    if gemma and activation == "gelu":  # the first Gemma's config says so and means the other
        activation = "gelu_pytorch_tanh"
    if activation not in _ACTIVATIONS:
        raise Unfit(f"its activation is {activation}")
    if float(config.get("partial_rotary_factor") or 1.0) != 1.0:
        raise Unfit("only a part of each head has rotary positions")
    try:
        blocks, heads = config["num_hidden_layers"], config["num_attention_heads"]
        width = config["hidden_size"]
        head_size = config.get("head_dim") or (256 if gemma else width // heads)
        scale = config.get("query_pre_attn_scalar", 256) if family in ("gemma2", "gemma3_text") else head_size
        kinds = _layer_kinds(config, family, blocks)
        window = config.get("sliding_window") or 0
        blueprint = Blueprint(
            family=family,
            blocks=blocks,
            width=width,
            hidden=config["intermediate_size"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_size=head_size,
            vocab=config["vocab_size"],
            context=config.get("max_position_embeddings", 2048),
            eps=config.get("rms_norm_eps", 1e-6),
            activation=_ACTIVATIONS[activation],
            tied=config.get("tie_word_embeddings", gemma or family == "smollm3"),
            rope=_rope(config, family, kinds, head_size),
            windows=tuple(window if kind == "sliding_attention" else 0 for kind in kinds),
            attention_scale=scale**-0.5,
            attention_softcap=_number(config, "attn_logit_softcapping", 50.0 if family == "gemma2" else 0.0),
            qk_norm=family in ("qwen3", "gemma3_text"),
            norm_offset=1.0 if gemma else 0.0,
            post_norms=family in ("gemma2", "gemma3_text"),
            embedding_scale=math.sqrt(width) if gemma else 1.0,
            softcap=_number(config, "final_logit_softcapping", 30.0 if family == "gemma2" else 0.0),
        )
    except KeyError as error:
        raise Unfit(f"its config.json lacks {error}") from error
    if blueprint.width % 32 or blueprint.hidden % 32 or (blueprint.heads * blueprint.head_size) % 32:
        raise Unfit("its widths are no multiples of 32, the block of the weights")
    if blueprint.head_size % 8:
        raise Unfit(f"its heads are {blueprint.head_size} wide, not a multiple of 8")
    return blueprint


def _number(config: dict[str, Any], name: str, default: float) -> float:
    """Return a number of a config; null means 0."""
    return float(config.get(name, default) or 0.0)


def _layer_kinds(config: dict[str, Any], family: str, blocks: int) -> list[str]:
    """Return full_attention or sliding_attention for each block, as said, or as the family's older configs mean it."""
    said = config.get("layer_types")
    full, sliding = "full_attention", "sliding_attention"
    if family == "mistral":
        return [sliding if config.get("sliding_window") else full] * blocks
    if family in ("qwen2", "qwen3", "smollm3") and not config.get("use_sliding_window"):
        return [full] * blocks
    if said:
        if set(said) - {full, sliding}:
            raise Unfit(f"it has layers of {', '.join(sorted(set(said) - {full, sliding}))}")
        return list(said)
    if family == "gemma2":
        return [sliding if i % 2 == 0 else full for i in range(blocks)]
    if family == "gemma3_text":
        pattern = config.get("sliding_window_pattern") or 6
        return [full if (i + 1) % pattern == 0 else sliding for i in range(blocks)]
    if family.startswith("qwen"):
        return [sliding if i >= config.get("max_window_layers", 28) else full for i in range(blocks)]
    return [full] * blocks


def _rope(config: dict[str, Any], family: str, kinds: Sequence[str], head_size: int) -> tuple[tuple[float, ...], ...]:
    """Return the inverse frequencies of each block; () for a block without positions."""
    parameters = config.get("rope_parameters") or {}
    old = {**(config.get("rope_scaling") or {}), "rope_theta": config.get("rope_theta")}

    def of(kind: str) -> tuple[float, ...]:
        default = 1e6 if family == "gemma3_text" and kind == "full_attention" else 10000.0
        chosen = parameters.get(kind, parameters) or old
        if not parameters and family == "gemma3_text" and kind == "sliding_attention":
            chosen = {"rope_theta": config.get("rope_local_base_freq", 10000.0)}
        return _inverse_frequencies(chosen, chosen.get("rope_theta") or default, head_size)

    frequencies = {kind: of(kind) for kind in set(kinds)}
    has = config.get("no_rope_layers")
    if family == "smollm3" and has is None:
        every = config.get("no_rope_layer_interval", 4)
        has = [int((i + 1) % every != 0) for i in range(len(kinds))]
    has = has if family == "smollm3" and has else [1] * len(kinds)
    return tuple(frequencies[kind] if on else () for kind, on in zip(kinds, has, strict=True))


def _inverse_frequencies(parameters: dict[str, Any], theta: float, head_size: int) -> tuple[float, ...]:
    """Return RoPE's inverse frequencies (arXiv 2104.09864), theta^(-2i/d), as changed by its variants."""
    plain = theta ** -(np.arange(0, head_size, 2, dtype=np.float64) / head_size)
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if kind == "default":
        return tuple(plain)
    if kind == "linear":
        return tuple(plain / parameters["factor"])
    if kind == "llama3":  # long waves are stretched, short ones stay, between them a ramp
        factor, low, high = parameters["factor"], parameters["low_freq_factor"], parameters["high_freq_factor"]
        turns = parameters["original_max_position_embeddings"] * plain / (2 * np.pi)
        ramp = np.clip((turns - low) / (high - low), 0, 1)
        return tuple(plain * (ramp + (1 - ramp) / factor))
    raise Unfit(f"its rotary positions are of the kind {kind}")
