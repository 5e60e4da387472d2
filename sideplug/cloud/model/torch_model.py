"""Any Hugging Face decoder-only model, through torch: the general implementation of `sideplug.cloud.model`.

A step concatenates the tokens of all its sequences, without padding; each sequence attends to its own KV cache. The
architecture stays transformers': only the attention function is ours, through its AttentionInterface. At load the
packed forward, in as many stages as it is cut into, is compared with the plain one, so an architecture that can't be
packed or cut is refused and never silently wrong.

It does not know sessions, plugins or the wire. Test: pytest tests/cloud/test_torch_model.py
"""

from __future__ import annotations

import copy
import tempfile
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
from sideplug.cloud.model.base import Chunk, Floats, Ints, Pipeline, ranges
from sideplug.cloud.model.memory import KVMemory, Reservation, divide
from sideplug.cloud.model.torch_cache import KVCache
from sideplug.cloud.model_files import weight_files
from sideplug.cloud.weights import GGUF_WEIGHTS, weights_of
from sideplug.contract.errors import InputError, UnknownModel

KV_LIMIT_BYTES = 4 << 30  # of the caches, where nobody says otherwise

_PACKED = "sideplug_packed"
_step = threading.local()  # the packed step that is running in this thread: every attention layer and `_Block` reads it


class TorchEmbedding:
    """Token ids → x, as transformers' own embedding gives it, with its scale: see `model.Embedding`."""

    def __init__(self, module: Any, width: int) -> None:
        self.width = width
        self._module = module

    @torch.inference_mode()
    def embed(self, ids: Sequence[int]) -> torch.Tensor:
        """Return x (T, D), what the first block gets, of T token ids."""
        x: torch.Tensor = self._module(torch.tensor([ids], device=self._module.weight.device))
        return x[0]


class TorchStage:
    """Some neighbouring blocks of a transformers model, run over packed rows: see `model.Stage`.

    body: transformers' model without its head. For all blocks it is used as it is. For some of them a copy of it is
    made that holds only these blocks (the others pass their input on) and, unless it is the last one, no final norm:
    what surrounds the blocks (rotary positions, kinds of layers) stays transformers'. Its caches take `token_bytes` a
    token and block, out of `kv_limit_bytes`.
    """

    def __init__(self, body: Any, blocks: tuple[int, int], token_bytes: int, kv_limit_bytes: int) -> None:
        config = body.config.get_text_config()
        self.first, self.last = blocks
        self.of: int = config.num_hidden_layers
        self.context: int = getattr(config, "max_position_embeddings", 2048)
        parameter = body.get_input_embeddings().weight
        self.bits = 8 * parameter.element_size()
        self.memory = KVMemory(kv_limit_bytes, token_bytes * (self.last - self.first))
        self._device = parameter.device
        self._sliding = [kind == "sliding_attention" for kind in getattr(config, "layer_types", None) or ()]
        self._whole = blocks == (0, self.of)
        self._body = body if self._whole else _slice(body, self.first, self.last)

    def cache_in(self, reservation: Reservation) -> KVCache:
        """Make a cache of this stage's blocks in reserved memory."""
        return KVCache(reservation)

    def order(self, chunks: Sequence[Chunk]) -> None:
        """Return None: every order is as good as another."""

    @torch.inference_mode()
    def run(
        self, x_TD: torch.Tensor, chunks: Sequence[Chunk], layers: Collection[int]
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """Run its blocks over the rows x (T, D) of these chunks: see `model.Stage`."""
        positions = [chunk.cache.length + i for chunk in chunks for i in range(len(chunk.ids))]
        seen: dict[int, torch.Tensor] = {0: x_TD[None]}
        _step.chunks, _step.sliding, _step.seen = chunks, self._sliding, seen
        try:
            out = self._body(
                inputs_embeds=x_TD[None],
                position_ids=torch.tensor([positions], device=self._device),
                use_cache=False,
                output_hidden_states=self._whole,
            )
        finally:
            _step.chunks = _step.seen = None
        if self._whole:
            seen = dict(enumerate(out.hidden_states))
        if self.last == self.of:
            seen[self.of] = out.last_hidden_state
        return seen[self.last][0], {layer: seen[layer][0] for layer in layers}


class TorchHead:
    """z → logits, with what the family makes of them afterwards: see `model.Head`."""

    def __init__(self, module: Any, config: Any) -> None:
        self.vocab: int = module.weight.shape[0]
        # Some families bend the logits after the head: Gemma 2 by a soft cap, Cohere and Granite by a factor.
        self.softcap = float(getattr(config, "final_logit_softcapping", None) or 0.0)
        scale = float(getattr(config, "logit_scale", None) or 1.0)
        self.logit_scale = scale / float(getattr(config, "logits_scaling", None) or 1.0)
        self.project: Any = module  # or the same weights in another layout
        self._module = module
        self._weight: torch.Tensor = module.weight

    def gather(self, states: Sequence[torch.Tensor], rows: Any) -> Floats:
        """Return these rows of K states (T, D), in the machine's own memory: (rows, K, D)."""
        if len(states) == 1:
            return _numpy(states[0][rows])[:, None]
        return _numpy(torch.stack([state[rows] for state in states], dim=1))

    @torch.inference_mode()
    def logits(self, z_TD: Floats) -> Floats:
        """Return the logits (T, V) float32 of z (T, D)."""
        z = torch.from_numpy(np.ascontiguousarray(z_TD)).to(self._weight.device, self._weight.dtype)
        raw: torch.Tensor = self.project(z)
        if self.logit_scale != 1.0:
            raw = raw * self.logit_scale
        if self.softcap:
            raw = torch.tanh(raw / self.softcap) * self.softcap
        return _numpy(raw)

    @torch.inference_mode()
    def read(self, z_TD: Floats, targets: Ints, top: int) -> tuple[Floats, Ints, Floats]:
        """As `model.Model.read`."""
        logits = torch.from_numpy(self.logits(z_TD))
        lse = torch.logsumexp(logits, -1)
        chosen = logits.gather(1, torch.from_numpy(targets.astype(np.int64))[:, None])[:, 0]
        best = torch.topk(logits, min(top, logits.shape[1])).indices
        return _numpy(chosen - lse), best.to(torch.int32).numpy(), _numpy(lse)

    def head_rows(self, ids: Ints) -> tuple[Floats, Floats]:
        """Return the head's weight rows (n, D) and biases (n,) float32 of these token ids."""
        index = torch.from_numpy(ids.astype(np.int64)).to(self._weight.device)
        bias = getattr(self._module, "bias", None)
        rows = _numpy(self._weight[index])
        return rows, np.zeros(len(ids), np.float32) if bias is None else _numpy(bias[index])


def load(
    folder: Path,
    device: str = "cpu",
    threads: int = 0,
    kv_limit_bytes: int = KV_LIMIT_BYTES,
    cuts: Sequence[int] = (),
) -> Pipeline[torch.Tensor]:
    """Load a model folder: as one stage, or cut into several before the blocks `cuts`.

    threads: of torch, 0 for every core that we may use. Raises UnknownModel when it can't be loaded, run packed or cut,
    InputError when the device can't be used or the memory is too small.
    """
    return pipeline(_load_whole(folder, device, threads), kv_limit_bytes, cuts)


def load_stage(
    folder: Path,
    blocks: tuple[int, int],
    device: str = "cpu",
    threads: int = 0,
    kv_limit_bytes: int = KV_LIMIT_BYTES,
) -> TorchStage:
    """Load one stage alone, the blocks `blocks[0]` … `blocks[1]` - 1; kv_limit_bytes: for its own keys and values.

    The whole model is read and checked on the way, and all but the stage's own weights are let go. Raises as `load`.
    """
    lm = _load_whole(folder, device, threads)
    first, last = blocks
    of = lm.config.get_text_config().num_hidden_layers
    cut = pipeline(lm, KV_LIMIT_BYTES, [at for at in (first, last) if 0 < at < of])
    stage = next(stage for stage in cut.stages if (stage.first, stage.last) == blocks)
    assert isinstance(stage, TorchStage)
    stage.memory = KVMemory(kv_limit_bytes, stage.memory.token_bytes)
    return stage


def _load_whole(folder: Path, device: str, threads: int) -> Any:
    """Return a model folder as transformers' model on the device, with every weight there. Raises as `load`."""
    torch.set_num_threads(threads or cores()[0])
    logging: Any = transformers.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
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
    return lm.to(place)


def pipeline(lm: Any, kv_limit_bytes: int = KV_LIMIT_BYTES, cuts: Sequence[int] = ()) -> Pipeline[torch.Tensor]:
    """Make the pipeline of a transformers model that is in memory, cut into stages before the blocks `cuts`.

    The model itself is changed: its attention becomes the packed one. Raises UnknownModel when packed, or cut, it would
    not give what it gives by itself, InputError when the memory is too small.
    """
    lm = lm.eval().requires_grad_(False)
    config = lm.config.get_text_config()
    name = type(lm).__name__
    _refuse_what_the_check_can_not_see(name, config)
    output = lm.get_output_embeddings()
    if output is None:
        raise UnknownModel(f"{name} has no output head: it is not a decoder-only language model")
    head = TorchHead(output, config)
    width: int = config.hidden_size
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or width // config.num_attention_heads
    token_bytes = 2 * 2 * heads * size * output.weight.element_size()  # the buffers of a cache double
    texts = [np.random.default_rng(n).integers(0, head.vocab, n).tolist() for n in (9, 6)]
    tolerance = 1e-3 if output.weight.dtype == torch.float32 else 5e-2
    refusal = f"{name} can't be cut into stages" if cuts else f"{name} can't be run packed"
    parts = ranges(config.num_hidden_layers, cuts)
    limits = divide(kv_limit_bytes, [token_bytes * (last - first) for first, last in parts])
    try:
        with torch.inference_mode():
            plain = [_numpy(lm(torch.tensor([ids], device=output.weight.device)).logits[0]) for ids in texts]
        lm.set_attn_implementation(_PACKED)
        body = lm.base_model
        stages = [TorchStage(body, part, token_bytes, limit) for part, limit in zip(parts, limits, strict=True)]
        model: Pipeline[torch.Tensor] = Pipeline(TorchEmbedding(body.get_input_embeddings(), width), stages, head)
        error = _error_against(model, plain, texts)
    except InputError:
        raise
    except Exception as fault:  # whatever an architecture does with what it does not know
        raise UnknownModel(f"{refusal}: {_first_line(fault)}") from fault
    if not error < tolerance:
        raise UnknownModel(f"{refusal}: its logits would be off by {error:.2g}")
    if output.weight.device.type == "cpu" and output.weight.dtype == torch.float32 and has_mkldnn():
        plain_layers = _prepack(body)
        head.project = _Prepacked(output)
        try:
            error = _error_against(model, plain, texts)
        except Exception:
            error = float("inf")
        if not error < tolerance:  # an architecture that looks into its layers: leave them as they were
            head.project = output
            for (parent, child), layer in plain_layers.items():
                setattr(parent, child, layer)
    return model


def has_mkldnn() -> bool:
    """Return whether this torch has oneDNN, whose weights in blocks are faster on a CPU."""
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def _error_against(model: Pipeline[torch.Tensor], plain: list[Floats], texts: list[list[int]]) -> float:
    """Run two short sequences in packed steps of three parts: the largest error, relative to the largest logit."""
    caches = [model.new_cache(len(ids)) for ids in texts]
    got: list[list[Floats]] = [[], []]
    for part in (slice(0, 4), slice(4, 5), slice(5, None)):
        out = model.forward([Chunk(ids[part], cache) for ids, cache in zip(texts, caches, strict=True)])
        first = len(texts[0][part])
        for i, rows in enumerate((slice(0, first), slice(first, None))):
            got[i].append(model.logits(out.z(rows)))
    return max(
        float(np.abs(np.concatenate(parts) - want).max() / max(1.0, np.abs(want).max()))
        for want, parts in zip(plain, got, strict=True)
    )


class _Block(torch.nn.Module):
    """A layer of a body that is cut: it notes what it gives; without a layer it passes its input on."""

    def __init__(self, number: int, layer: torch.nn.Module, own: bool) -> None:
        super().__init__()
        self.number = number
        self.layer = layer if own else None
        self.attention_type = getattr(layer, "attention_type", None)  # some bodies ask their layers

    def forward(self, x: torch.Tensor, *args: Any, **others: Any) -> torch.Tensor:
        if self.layer is None:
            return x
        out: torch.Tensor = self.layer(x, *args, **others)
        _step.seen[self.number] = out
        return out


def _slice(body: Any, first: int, last: int) -> Any:
    """Return a copy of a body that holds only the layers `first` … `last` - 1, no embedding, and, unless these are the
    last ones, no final norm. The layers are the body's own. Raises ValueError where the body has other parts."""
    config = body.config.get_text_config()
    layers = list(getattr(body, "layers", None) or ())
    parts = {name for name, module in body.named_children() if next(module.parameters(), None) is not None}
    if parts != {"embed_tokens", "layers", "norm"} or len(layers) != config.num_hidden_layers:
        raise ValueError(f"{type(body).__name__} has other parts than an embedding, layers and a norm")
    part = copy.copy(body)
    part._modules = dict(body._modules)
    part.embed_tokens = torch.nn.Identity()
    part.layers = torch.nn.ModuleList(_Block(i + 1, layer, first <= i < last) for i, layer in enumerate(layers))
    if last < config.num_hidden_layers:
        part.norm = torch.nn.Identity()
    return part


def load_lm(folder: Path, dtype: Any) -> tuple[Any, set[str]]:
    """Return a model folder as transformers' model, and the names of the weights that it lacks.

    The blocks of a GGUF file are dequantised. dtype: torch's, or "auto" for the file's own. Raises whatever
    transformers, safetensors or the model's config find wrong.
    """
    if not (folder / GGUF_WEIGHTS).is_file():
        load: Any = transformers.AutoModelForCausalLM.from_pretrained
        options = {"dtype": dtype, "use_safetensors": True, "local_files_only": True, "output_loading_info": True}
        with tempfile.TemporaryDirectory(prefix="sideplug-") as counted:  # transformers would choose other weights
            for file in [path for path in folder.iterdir() if path.suffix != ".safetensors"] + [*weight_files(folder)]:
                (Path(counted) / file.name).symlink_to(file.resolve())
            lm, report = load(counted, **options, trust_remote_code=False)
        return lm, set(report["missing_keys"])
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    build: Any = transformers.AutoModelForCausalLM.from_config
    lm = build(config, dtype=torch.float32 if dtype == "auto" else dtype, trust_remote_code=False)
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
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")
        return out


def _prepack(module: torch.nn.Module) -> dict[tuple[torch.nn.Module, str], torch.nn.Linear]:
    """Replace every Linear below `module`; return where each stood."""
    replaced = {
        (parent, name): child
        for parent in module.modules()
        for name, child in parent.named_children()
        if type(child) is torch.nn.Linear
    }
    for (parent, name), child in replaced.items():
        setattr(parent, name, _Prepacked(child))
    return replaced


def _refuse_what_the_check_can_not_see(name: str, config: Any) -> None:
    """Raise UnknownModel for what only long texts would show: positions that depend on the longest text of a batch,
    attention in chunks."""

    def rope_types(value: Any) -> set[str]:
        if not isinstance(value, dict):
            return set()
        return {str(value.get("rope_type") or value.get("type"))}.union(*map(rope_types, value.values()))

    dependent = rope_types(getattr(config, "rope_parameters", None)) & {"dynamic", "longrope"}
    if dependent:
        raise UnknownModel(
            f"{name} can't be run packed: its rotary positions ({dependent.pop()}) depend on the whole batch"
        )
    others = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if others:
        raise UnknownModel(f"{name} can't be run packed: it has layers of {', '.join(sorted(others))}")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _numpy(tensor: torch.Tensor) -> Floats:
    return np.asarray(tensor.detach().float().cpu().numpy())


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
    """Return the attention of a packed step: query (1, H, T, d), key and value (1, KV, T, d) → (1, T, H, d)."""
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
    """Return the attention of the last T of S positions: query (H, T, d), keys and values (KV, S, d) → (T, H, d)."""
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
    look: torch.Tensor | None = None
    if window or softcap or seen != count:
        where = torch.arange(seen - count, seen, device=query.device)[:, None]
        other = torch.arange(seen, device=query.device)[None]
        look = other <= where
        if window:
            look &= other > where - window
    if softcap:
        assert look is not None  # see above
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
