"""Any Hugging Face decoder-only model, through torch: the general implementation of `sideplug.cloud.model`.

A step concatenates the tokens of all its sequences, without padding; each sequence attends to its own KV cache. The
architecture stays transformers': only the attention function is ours, through its AttentionInterface. At load the
packed forward is compared with the plain one, so an architecture that can't be packed is refused and never silently
wrong.

It does not know sessions, plugins or the wire. Test: pytest tests/cloud/test_torch_model.py
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from transformers import AttentionInterface, AttentionMaskInterface

from sideplug.cloud.cores import cores
from sideplug.cloud.model.base import Chunk
from sideplug.cloud.model.memory import KVMemory, Reservation
from sideplug.cloud.model.torch_cache import KVCache
from sideplug.cloud.weights import GGUF_WEIGHTS, weights_of
from sideplug.contract.errors import InputError, UnknownModel

_PACKED = "sideplug_packed"
_step = threading.local()  # the packed step that is running in this thread: read by every attention layer


class States:
    """What one packed step gave: see `model.Forward`."""

    def __init__(self, states: tuple[torch.Tensor, ...]) -> None:
        self._states = states  # N + 1 of (T, D); the last is z, after the final norm

    def z(self, rows: Sequence[int] | slice) -> np.ndarray:
        return _numpy(self._states[-1][_index(rows)])

    def tapped(self, rows: Sequence[int] | slice, layers: Sequence[int]) -> np.ndarray:
        index = _index(rows)
        return _numpy(torch.stack([self._states[layer][index] for layer in layers], dim=1))


class TorchModel:
    """A Hugging Face decoder-only model. Raises UnknownModel when it can't be loaded or packed."""

    def __init__(self, folder: Path, device: str = "cpu", threads: int = 0, kv_limit_bytes: int = 4 << 30) -> None:
        torch.set_num_threads(threads or cores()[0])
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        try:
            place = torch.device(device)
            torch.zeros(1, device=place)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"the device {device!r} can't be used: {_first_line(error)}") from error
        # On a CPU everything is computed in float32: half precision is slower there and costs quality.
        dtype = torch.float32 if place.type == "cpu" else "auto"
        try:
            lm, missing = load_lm(folder, dtype)
        except UnknownModel:
            raise
        except Exception as error:  # whatever transformers, safetensors or the model's config find wrong
            raise UnknownModel(f"the model in {folder} can't be loaded: {_first_line(error)}") from error
        if missing:  # transformers would leave them random
            raise UnknownModel(f"the model in {folder} lacks {len(missing)} of its weights: {min(missing)}, say")
        self._wrap(lm.to(place), kv_limit_bytes)

    @classmethod
    def of(cls, lm: Any) -> TorchModel:
        """Around a transformers model that is in memory already (tests)."""
        self = cls.__new__(cls)
        self._wrap(lm, 4 << 30)
        return self

    def _wrap(self, lm: Any, kv_limit_bytes: int) -> None:
        self._lm = lm.eval().requires_grad_(False)
        config = lm.config.get_text_config()
        _refuse_what_the_check_can_not_see(type(lm).__name__, config)
        self._sliding = [kind == "sliding_attention" for kind in getattr(config, "layer_types", None) or ()]
        self._body = lm.base_model
        self._head = lm.get_output_embeddings()
        if self._head is None:
            raise UnknownModel(f"{type(lm).__name__} has no output head: it is not a decoder-only language model")
        self.device = self._head.weight.device
        self.blocks: int = config.num_hidden_layers
        self.width: int = config.hidden_size
        self.vocab: int = self._head.weight.shape[0]
        self.context: int = getattr(config, "max_position_embeddings", 2048)
        # Some families bend the logits after the head: Gemma 2 by a soft cap, Cohere and Granite by a factor.
        self.softcap = float(getattr(config, "final_logit_softcapping", None) or 0.0)
        scale = float(getattr(config, "logit_scale", None) or 1.0)
        self.logit_scale = scale / float(getattr(config, "logits_scaling", None) or 1.0)
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or self.width // config.num_attention_heads
        self.bits = 8 * self._head.weight.element_size()
        token_bytes = 2 * self.blocks * heads * size * self._head.weight.element_size()
        self.memory = KVMemory(kv_limit_bytes, 2 * token_bytes)  # the buffers of a cache double
        self._project: Any = self._head
        self._make_packed()

    def _make_packed(self) -> None:
        """Switch to the packed forward, and to oneDNN's weights where they work; both are checked."""
        name = type(self._lm).__name__
        texts = [np.random.default_rng(n).integers(0, self.vocab, n).tolist() for n in (9, 6)]
        try:
            with torch.inference_mode():
                plain = [_numpy(self._lm(torch.tensor([ids], device=self.device)).logits[0]) for ids in texts]
            self._lm.set_attn_implementation(_PACKED)
            error = self._error_against(plain, texts)
        except Exception as fault:  # whatever an architecture does with what it does not know
            raise UnknownModel(f"{name} can't be run packed: {_first_line(fault)}") from fault
        loose = 1e-3 if self._head.weight.dtype == torch.float32 else 5e-2
        if not error < loose:
            raise UnknownModel(f"{name} can't be run packed: its logits would be off by {error:.2g}")
        if (
            self.device.type == "cpu"
            and self._head.weight.dtype == torch.float32
            and torch.backends.mkldnn.is_available()
        ):
            plain_layers = _prepack(self._body)
            self._project = _Prepacked(self._head)
            try:
                error = self._error_against(plain, texts)
            except Exception:
                error = float("inf")
            if not error < loose:  # an architecture that looks into its layers: leave them as they were
                self._project = self._head
                for (parent, child), layer in plain_layers.items():
                    setattr(parent, child, layer)

    def _error_against(self, plain: list[np.ndarray], texts: list[list[int]]) -> float:
        """Two short sequences in packed forwards of three parts: the largest error, relative to the largest logit."""
        caches = [KVCache() for _ in texts]
        got: list[list[np.ndarray]] = [[], []]
        for part in (slice(0, 4), slice(4, 5), slice(5, None)):
            out = self.forward([Chunk(ids[part], cache) for ids, cache in zip(texts, caches, strict=True)])
            first = len(texts[0][part])
            for i, rows in enumerate((slice(0, first), slice(first, None))):
                got[i].append(self.logits(out.z(rows)))
        return max(
            float(np.abs(np.concatenate(parts) - want).max() / max(1.0, np.abs(want).max()))
            for want, parts in zip(plain, got, strict=True)
        )

    def new_cache(self, tokens: int) -> KVCache:
        return self.cache_in(self.memory.promise(tokens))

    def cache_in(self, promise: Reservation) -> KVCache:
        return KVCache(promise)

    @torch.inference_mode()
    def forward(self, chunks: Sequence[Chunk], layers: Collection[int] = ()) -> States:
        ids = [token for chunk in chunks for token in chunk.ids]
        positions = [chunk.cache.length + i for chunk in chunks for i in range(len(chunk.ids))]
        _step.chunks, _step.sliding = chunks, self._sliding
        try:
            out = self._body(
                input_ids=torch.tensor([ids], device=self.device),
                position_ids=torch.tensor([positions], device=self.device),
                use_cache=False,
                output_hidden_states=True,
            )
        finally:
            _step.chunks = None
        for chunk in chunks:
            chunk.cache.advance(len(chunk.ids))
        return States(tuple(state[0] for state in out.hidden_states))

    @torch.inference_mode()
    def logits(self, z_TD: np.ndarray) -> np.ndarray:
        z = torch.from_numpy(np.ascontiguousarray(z_TD)).to(self.device, self._head.weight.dtype)
        raw = self._project(z)
        if self.logit_scale != 1.0:
            raw = raw * self.logit_scale
        if self.softcap:
            raw = torch.tanh(raw / self.softcap) * self.softcap
        return _numpy(raw)

    @torch.inference_mode()
    def read(self, z_TD: np.ndarray, targets: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        logits = torch.from_numpy(self.logits(z_TD))
        lse = torch.logsumexp(logits, -1)
        chosen = logits.gather(1, torch.from_numpy(targets.astype(np.int64))[:, None])[:, 0]
        best = torch.topk(logits, min(top, logits.shape[1])).indices
        return _numpy(chosen - lse), best.to(torch.int32).numpy(), _numpy(lse)

    def head_rows(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        index = torch.from_numpy(ids.astype(np.int64)).to(self.device)
        bias = getattr(self._head, "bias", None)
        rows = _numpy(self._head.weight[index])
        return rows, np.zeros(len(ids), np.float32) if bias is None else _numpy(bias[index])


def load_lm(folder: Path, dtype: Any) -> tuple[Any, set[str]]:
    """A model folder as transformers' model, and the weights that it lacks; a GGUF's blocks are dequantised."""
    if not (folder / GGUF_WEIGHTS).is_file():
        load: Any = transformers.AutoModelForCausalLM.from_pretrained
        how = {"dtype": dtype, "use_safetensors": True, "local_files_only": True, "output_loading_info": True}
        lm, found = load(str(folder), **how)
        return lm, set(found["missing_keys"])
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    build: Any = transformers.AutoModelForCausalLM.from_config
    lm = build(config, dtype=torch.float32 if dtype == "auto" else dtype)
    weights = weights_of(folder)
    names = set(lm.state_dict()) - ({"lm_head.weight"} if config.tie_word_embeddings else set())
    state = {name: torch.from_numpy(np.array(weights.array(name))) for name in names if weights.has(name)}
    lm.load_state_dict(state, strict=False)
    lm.tie_weights()
    return lm, names - set(state)


class _Prepacked(torch.nn.Module):
    """A frozen float32 Linear on a CPU, its weight in oneDNN's blocked layout: twice as fast at 1 to 16 rows."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), 8)
        self._bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")


def _prepack(module: torch.nn.Module) -> dict[tuple[torch.nn.Module, str], torch.nn.Linear]:
    """Replace every Linear below `module`; where each stood."""
    found = {
        (parent, name): child
        for parent in module.modules()
        for name, child in parent.named_children()
        if type(child) is torch.nn.Linear
    }
    for (parent, name), child in found.items():
        setattr(parent, name, _Prepacked(child))
    return found


def _refuse_what_the_check_can_not_see(name: str, config: Any) -> None:
    """What only long texts would show: positions that depend on the longest text of a batch, attention in chunks."""

    def rope_types(value: Any) -> set[str]:
        if not isinstance(value, dict):
            return set()
        return {str(value.get("rope_type") or value.get("type"))}.union(*map(rope_types, value.values()))

    found = rope_types(getattr(config, "rope_parameters", None)) & {"dynamic", "longrope"}
    if found:
        raise UnknownModel(
            f"{name} can't be run packed: its rotary positions ({found.pop()}) depend on the whole batch"
        )
    others = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if others:
        raise UnknownModel(f"{name} can't be run packed: it has layers of {', '.join(sorted(others))}")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()


def _index(rows: Sequence[int] | slice) -> Any:
    return rows if isinstance(rows, slice) else list(rows)


def _attend_packed(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a packed step: query (1, H, T, d), key and value (1, KV, T, d) → (1, T, H, d)."""
    if others.get("s_aux") is not None:
        raise ValueError("attention sinks are not supported")
    if _step.sliding and _step.sliding[module.layer_idx] and not sliding_window:
        raise ValueError("its sliding window is only in a mask")
    parts = []
    start = 0
    for chunk in _step.chunks:
        count = len(chunk.ids)
        rows = slice(start, start + count)
        keys, values = chunk.cache.append(module.layer_idx, key[0, :, rows], value[0, :, rows])
        parts.append(_attend(query[0, :, rows], keys, values, scaling, sliding_window, softcap))
        start += count
    joined = parts[0] if len(parts) == 1 else torch.cat(parts)
    return joined[None], None


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """The last T of S positions look back: query (H, T, d), keys and values (KV, S, d) → (T, H, d)."""
    heads, count, size = query.shape
    groups, seen = keys.shape[0], keys.shape[1]
    if window and seen - count + 1 > window:  # keys that even the first query no longer sees
        cut = seen - count + 1 - window
        keys, values, seen = keys[:, cut:], values[:, cut:], seen - cut
    if count == 1 and not softcap:
        # One query a head: the heads of a group become its queries, so grouped keys need no copy.
        grouped = query.reshape(1, groups, heads // groups, size)
        out = F.scaled_dot_product_attention(grouped, keys[None], values[None], scale=scaling)
        return out.reshape(1, heads, -1)
    look: Any = None
    if window or softcap or seen != count:
        where = torch.arange(seen - count, seen, device=query.device)[:, None]
        other = torch.arange(seen, device=query.device)[None]
        look = other <= where
        if window:
            look &= other > where - window
    if softcap:
        keys, values = (t.repeat_interleave(heads // groups, 0) for t in (keys, values))
        scores = (query @ keys.transpose(1, 2)) * (scaling or size**-0.5)
        scores = (torch.tanh(scores / softcap) * softcap).masked_fill(~look, float("-inf"))
        return (scores.softmax(-1, dtype=torch.float32).to(query.dtype) @ values).transpose(0, 1)
    out = F.scaled_dot_product_attention(
        query[None], keys[None], values[None], look, is_causal=look is None, scale=scaling, enable_gqa=heads != groups
    )
    return out[0].transpose(0, 1)


AttentionInterface.register(_PACKED, _attend_packed)
AttentionMaskInterface.register(_PACKED, lambda *args, **kwargs: None)
