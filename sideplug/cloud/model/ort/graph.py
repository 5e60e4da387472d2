"""The ONNX graph of some neighbouring blocks of a blueprint: packed rows through the matrices, and for each session
its keys and values through the attention.

A step's rows are some *decode* rows (one token of each of several sessions, whose slots are neighbours in memory) and
some *chunks* (several tokens of one session each): the two shapes that GroupQueryAttention takes on a CPU. So there is
a graph for each Variant, and all of them share one file of weights. It does not run anything.
Test: pytest tests/cloud/test_ort_model.py tests/cloud/test_stages.py

    inputs    x (R, D); and for each group of rows g: seen_g (B,) = tokens in the cache afterwards - 1, total_g (1,)
              the largest of them + 1, k{i}_g and v{i}_g (B, kv_heads, slot rows, head size), written in place
              split (groups,) rows of each group; where decode rows have gaps between them: spread and gather
    outputs   h{i} (R, D), the residual stream after block i - 1; z (R, D), after the final norm, of the last blocks
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from sideplug.cloud.model.ort.blueprint import Blueprint
from sideplug.cloud.weights import BLOCK, Blocks, Weights, matrix

MS = "com.microsoft"
OPSETS = [helper.make_opsetid("", 20), helper.make_opsetid(MS, 1)]
IR_VERSION = 9
ALIGN = 64  # bytes, of every tensor in the file of weights


@dataclass(frozen=True)
class Variant:
    """Which groups of rows a graph takes.

    decode: 0 no decode rows, 1 rows of neighbouring slots, 2 rows with gaps; chunks: how many groups of several tokens.
    """

    decode: int
    chunks: int

    @property
    def name(self) -> str:
        """The name of its graph's file."""
        return "-d"[self.decode > 0] + ("g" if self.decode == 2 else "") + str(self.chunks)

    @property
    def groups(self) -> list[str]:
        """The names of its groups of rows: d for the decode rows, c0, c1, … for the chunks."""
        return (["d"] if self.decode else []) + [f"c{i}" for i in range(self.chunks)]

    def shape(self, rows: int | str) -> list[int | str]:
        """Return the shape of `rows` rows without their width: with one group (R, 1) or (1, R), as the attention
        wants them, else (R,)."""
        if len(self.groups) > 1 or self.decode == 2:
            return [rows]
        return [rows, 1] if self.decode else [1, rows]


class Store:
    """The file of weights while it is written, and the tensors that refer to it: a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors: dict[str, TensorProto] = {}
        self._file = path.open("wb")

    def add(self, name: str, value: NDArray[Any]) -> None:
        """Write a tensor to the file, and add its reference to `tensors`."""
        value = np.ascontiguousarray(value)
        self._file.write(b"\0" * (-self._file.tell() % ALIGN))
        tensor = TensorProto(name=name, dims=value.shape, data_type=helper.np_dtype_to_tensor_dtype(value.dtype))
        tensor.data_location = TensorProto.EXTERNAL
        for key, entry in (("location", self.path.name), ("offset", self._file.tell()), ("length", value.nbytes)):
            tensor.external_data.add(key=key, value=str(entry))
        value.tofile(self._file)
        self.tensors[name] = tensor

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def matrices(first: int, last: int) -> dict[str, list[str]]:
    """Return our name of each matrix of the blocks `first` … `last` - 1, and the model's tensors that it stacks."""
    stacked: dict[str, list[str]] = {}
    for i in range(first, last):
        layer = f"model.layers.{i}"
        stacked[f"{i}.qkv"] = [f"{layer}.self_attn.{kind}_proj.weight" for kind in "qkv"]
        stacked[f"{i}.o"] = [f"{layer}.self_attn.o_proj.weight"]
        stacked[f"{i}.gate_up"] = [f"{layer}.mlp.{kind}_proj.weight" for kind in ("gate", "up")]
        stacked[f"{i}.down"] = [f"{layer}.mlp.down_proj.weight"]
    return stacked


def store_weights(b: Blueprint, weights: Weights, bits: int, store: Store, first: int, last: int) -> None:
    """Write what `build` refers to for the blocks `first` … `last` - 1, and nothing of the others.

    bits: 16 as they are, in float32; 8; 4; 0 as the file has them. Raises UnknownModel for a missing weight, Unfit for
    a type that can't be read.
    """
    for name, parts in matrices(first, last).items():
        store_matrix(name, parts, weights, bits, store)
    norms = ["input_layernorm", "post_attention_layernorm"]
    norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"] if b.post_norms else []
    norms += ["self_attn.q_norm", "self_attn.k_norm"] if b.qk_norm else []
    for i in range(first, last):
        for norm in norms:
            store.add(f"{i}.{norm}", weights.array(f"model.layers.{i}.{norm}.weight") + b.norm_offset)
    if last == b.blocks:
        store.add("norm", weights.array("model.norm.weight") + np.float32(b.norm_offset))
    for n, frequencies in enumerate(b.rotaries):
        if frequencies not in b.rope[first:last]:
            continue
        angles = np.arange(b.context + 1)[:, None] * np.array(frequencies)  # one more: see `Slots.rows`
        store.add(f"cos{n}", np.cos(angles).astype(np.float32))
        store.add(f"sin{n}", np.sin(angles).astype(np.float32))


def store_matrix(name: str, parts: list[str], weights: Weights, bits: int, store: Store) -> None:
    """Write one matrix, the model's tensors `parts` stacked, and its biases: what `Builder.linear` takes.

    bits: as in `store_weights`.
    """
    if bits == 16:
        store.add(name + ".weight", np.concatenate([weights.array(part) for part in parts]).T)
    else:
        blocks = matrix(weights, parts, bits)
        store.add(name + ".codes", blocks.codes)
        store.add(name + ".scales", blocks.scales)
        if blocks.offsets is not None:
            store.add(name + ".offsets", blocks.offsets.T)
    biases = [part.removesuffix("weight") + "bias" for part in parts]
    if any(weights.has(bias) for bias in biases):
        store.add(name + ".bias", np.concatenate([weights.array(bias) for bias in biases]))


class Builder:
    """The nodes of one graph, and of the stored tensors those that they use. Methods return their output's name."""

    def __init__(self, tensors: dict[str, TensorProto]) -> None:
        self.tensors = tensors
        self.nodes: list[Any] = []
        self.used: dict[str, TensorProto] = {}
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []

    def input(self, name: str, kind: int, shape: list[Any]) -> str:
        """Add an input of the graph; `kind`: a TensorProto's data type."""
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, name: str, shape: list[Any]) -> None:
        """Make a node's output a float32 output of the graph."""
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def weight(self, name: str) -> str:
        """Use a stored tensor."""
        self.used[name] = self.tensors[name]
        return name

    def constant(self, name: str, values: list[int]) -> str:
        """Add a constant (n,) int64."""
        self.used[name] = numpy_helper.from_array(np.array(values, np.int64), name)
        return name

    def number(self, name: str, value: float) -> str:
        """Add a constant () float32."""
        self.used[name] = numpy_helper.from_array(np.array(value, np.float32), name)
        return name

    def node(self, op: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Any) -> str:
        """Add a node; return its first output."""
        self.nodes.append(helper.make_node(op, inputs, outputs, domain=domain, **attributes))
        return outputs[0]

    def linear(self, x: str, name: str) -> str:
        """Multiply x (R, K) by a matrix, in whichever form it was stored, and add its bias: (R, N)."""
        if name + ".weight" in self.tensors:
            out = self.node("MatMul", [x, self.weight(name + ".weight")], [name])
            return self.node("Add", [out, self.weight(name + ".bias")], [name + "+"]) if self._biased(name) else out
        rows, parts, size = self.tensors[name + ".codes"].dims
        inputs = [x, self.weight(name + ".codes"), self.weight(name + ".scales")]
        if self._biased(name):
            inputs += ["", "", self.weight(name + ".bias")]
        attributes = {
            "K": parts * BLOCK,
            "N": rows,
            "bits": size * 8 // BLOCK,
            "block_size": BLOCK,
            "accuracy_level": 4,
        }
        out = self.node("MatMulNBits", inputs, [name], MS, **attributes)
        if name + ".offsets" not in self.tensors:
            return out
        more = self.node("MatMul", [self._block_sums(x, parts), self.weight(name + ".offsets")], [name + ".more"])
        return self.node("Add", [out, more], [name + "+"])

    def _biased(self, name: str) -> bool:
        return name + ".bias" in self.tensors

    def _block_sums(self, x: str, parts: int) -> str:
        """Return the sum of each block's inputs, (…, K) → (…, K/32): a block's offset counts once for each input."""
        name = f"sums{parts}"
        self.used[name] = numpy_helper.from_array(np.repeat(np.eye(parts, dtype=np.float32), BLOCK, 0), name)
        return self.node("MatMul", [x, name], [x + ".sums"])

    def norm(self, x: str, weight: str, out: str, eps: float) -> str:
        """Return RMS norm (arXiv 1910.07467) of x with this weight, named `out`."""
        inputs = [x, self.weight(weight)]
        return self.node("SimplifiedLayerNormalization", inputs, [out], axis=-1, epsilon=eps, stash_type=1)

    def add_norm(self, x: str, y: str, weight: str, out: str, total: str, eps: float) -> str:
        """Return norm(x + y), RMS norm with this weight, named `out`; x + y is named `total`, unless that is ""."""
        inputs = [x, y, self.weight(weight)]
        outputs = [out, "", "", total] if total else [out]
        return self.node("SkipSimplifiedLayerNormalization", inputs, outputs, MS, epsilon=eps)

    def model(self) -> ModelProto:
        """Return the graph as a model."""
        graph = helper.make_graph(self.nodes, "sideplug", self.inputs, self.outputs, list(self.used.values()))
        return helper.make_model(graph, opset_imports=OPSETS, ir_version=IR_VERSION)


def build(b: Blueprint, variant: Variant, tensors: dict[str, TensorProto], first: int, last: int) -> ModelProto:
    """Return the graph of one variant of the blocks `first` … `last` - 1, over these stored tensors.

    Where the blocks are all of the model's, or its last ones, the graph ends with the final norm and gives z; else it
    gives h{last}, which is the x of the next stage.
    """
    g = Builder(tensors)
    shape = [*variant.shape("R"), b.width]
    x = g.input("x", TensorProto.FLOAT, shape)
    for group in variant.groups:
        g.input(f"seen_{group}", TensorProto.INT32, ["B" if group == "d" else 1])
        g.input(f"total_{group}", TensorProto.INT32, [1])
    if len(variant.groups) > 1:
        g.input("split", TensorProto.INT64, [len(variant.groups)])
    if variant.decode == 2:
        g.input("spread", TensorProto.INT64, ["B"])
        g.input("gather", TensorProto.INT64, ["d"])
    if first:
        # In the whole graph this norm is a sum's: that operator rounds otherwise than the norm alone, so it stays.
        nothing = g.node("Sub", [x, x], ["nothing"])
        h = g.add_norm(x, nothing, f"{first}.input_layernorm", f"{first}.h", "", b.eps)
    else:
        h = g.norm(x, "0.input_layernorm", "0.h", b.eps)
    for i in range(first, last):
        o = g.linear(_attention(g, b, variant, i, h), f"{i}.o")
        if b.post_norms:
            o = g.norm(o, f"{i}.post_attention_layernorm", f"{i}.o'", b.eps)
        second = "pre_feedforward_layernorm" if b.post_norms else "post_attention_layernorm"
        h = g.add_norm(x, o, f"{i}.{second}", f"{i}.h'", f"{i}.x'", b.eps)
        d = g.linear(_feed_forward(g, b, i, h), f"{i}.down")
        if b.post_norms:
            d = g.norm(d, f"{i}.post_feedforward_layernorm", f"{i}.d'", b.eps)
        x_before, x = f"{i}.x'", f"h{i + 1}"
        if i + 1 == b.blocks:
            g.add_norm(x_before, d, "norm", "z", x, b.eps)
        elif i + 1 == last:
            g.node("Add", [x_before, d], [x])
        else:
            h = g.add_norm(x_before, d, f"{i + 1}.input_layernorm", f"{i + 1}.h", x, b.eps)
        g.output("z" if i + 1 == b.blocks else x, shape)
    return g.model()


def _feed_forward(g: Builder, b: Blueprint, i: int, h: str) -> str:
    """Return down's input: act(gate(h)) · up(h), (R, D) → (R, hidden)."""
    both = g.linear(h, f"{i}.gate_up")
    g.node("Split", [both], [f"{i}.gate", f"{i}.up"], axis=-1, num_outputs=2)
    if b.activation == "silu":
        gate = g.node("QuickGelu", [f"{i}.gate"], [f"{i}.act"], MS, alpha=1.0)
    else:
        form = "tanh" if b.activation == "gelu" else "none"
        gate = g.node("Gelu", [f"{i}.gate"], [f"{i}.act"], approximate=form)
    return g.node("Mul", [gate, f"{i}.up"], [f"{i}.m"])


def _attention(g: Builder, b: Blueprint, variant: Variant, i: int, h: str) -> str:
    """Return the attention of block i, each group of rows with its own caches: (R, D) → (R, heads · head size)."""
    qkv = g.linear(h, f"{i}.qkv")
    groups = variant.groups
    if len(variant.shape("R")) == 2:
        return _attend(g, b, i, groups[0], qkv, shaped=True)
    parts = [qkv] if len(groups) == 1 else [f"{i}.qkv_{group}" for group in groups]
    if len(groups) > 1:
        g.node("Split", [qkv, "split"], parts, axis=0)
    outs = []
    for group, part in zip(groups, parts, strict=True):
        decode = group == "d"
        gaps = decode and variant.decode == 2
        if gaps:
            part = g.node("Gather", [part, "spread"], [part + "s"], axis=0)
        out = _attend(g, b, i, group, part, shaped=False)
        wide = b.heads * b.head_size
        flat = g.node("Reshape", [out, g.constant(f"flat{wide}", [-1, wide])], [f"{i}.a_{group}"])
        outs.append(g.node("Gather", [flat, "gather"], [flat + "g"], axis=0) if gaps else flat)
    return outs[0] if len(outs) == 1 else g.node("Concat", outs, [f"{i}.a"], axis=0)


def _attend(g: Builder, b: Blueprint, i: int, group: str, qkv: str, shaped: bool) -> str:
    """Return one group's attention: qkv (R, w), or `shaped` already, → (B, 1, heads · head size) or (1, T, …)."""
    decode = group == "d"
    kv_shape = ["B" if decode else 1, b.kv_heads, "slot", b.head_size]
    past = []
    for kind in "kv":
        past.append(g.input(f"{kind}{i}_{group}", TensorProto.FLOAT, kv_shape))
        g.output(f"new_{kind}{i}_{group}", kv_shape)

    def shape(part: str, wide: int) -> str:  # (R, w) → (B, 1, w) or (1, T, w)
        target = g.constant(f"{'d' if decode else 'c'}{wide}", [-1, 1, wide] if decode else [1, -1, wide])
        return g.node("Reshape", [part, target], [part + ".3"])

    sizes = [b.heads * b.head_size, b.kv_heads * b.head_size, b.kv_heads * b.head_size]
    if b.qk_norm:
        names = [f"{qkv}.{kind}" for kind in "qkv"]
        g.node("Split", [qkv, g.constant("qkv", sizes)], names, axis=-1)
        for n, kind in enumerate("qk"):
            heads = g.constant(f"heads{b.head_size}", [-1, b.head_size])
            cut = g.node("Reshape", [names[n], heads], [names[n] + ".cut"])
            normed = g.norm(cut, f"{i}.self_attn.{kind}_norm", names[n] + ".n", b.eps)
            names[n] = normed
        if not shaped:
            names[2] = shape(names[2], sizes[2])
        inputs = [shape(names[0], sizes[0]), shape(names[1], sizes[1]), names[2]]
    else:
        inputs = [qkv if shaped else shape(qkv, sum(sizes)), "", ""]
    inputs += [*past, f"seen_{group}", f"total_{group}"]
    rotary = b.rope[i]
    if rotary:
        n = b.rotaries.index(rotary)
        inputs += [g.weight(f"cos{n}"), g.weight(f"sin{n}")]
    attributes: dict[str, Any] = {"num_heads": b.heads, "kv_num_heads": b.kv_heads, "scale": b.attention_scale}
    attributes |= {"do_rotary": int(bool(rotary)), "softcap": b.attention_softcap}
    if b.windows[i]:
        attributes["local_window_size"] = b.windows[i]
    outputs = [f"{i}.y_{group}", f"new_k{i}_{group}", f"new_v{i}_{group}"]
    return g.node("GroupQueryAttention", inputs, outputs, MS, **attributes)


def build_head(b: Blueprint, tensors: dict[str, TensorProto], reads: bool = False) -> ModelProto:
    """Return the head's graph: z (R, D) → logits (R, V).

    Where it `reads`: z, targets (R, 1) and top (1,) → logp (R, 1), lse (R, 1) and best (R, top), for `Model.read`.
    """
    g = Builder(tensors)
    logits = g.linear(g.input("z", TensorProto.FLOAT, ["R", b.width]), "head")
    if b.softcap:
        cap = g.number("softcap", b.softcap)
        bent = g.node("Tanh", [g.node("Div", [logits, cap], ["bent"])], ["tanh"])
        logits = g.node("Mul", [bent, cap], ["capped"])
    if not reads:
        g.output(logits, ["R", b.vocab])
        return g.model()
    targets, top = g.input("targets", TensorProto.INT64, ["R", 1]), g.input("top", TensorProto.INT64, [1])
    # log of the sum of exp, by hand: the operator of that name takes four times as long.
    axis = g.constant("axis", [1])
    most = g.node("ReduceMax", [logits, axis], ["most"], keepdims=1)
    exp = g.node("Exp", [g.node("Sub", [logits, most], ["below"])], ["exp"])
    log = g.node("Log", [g.node("ReduceSum", [exp, axis], ["sum"], keepdims=1)], ["log"])
    lse = g.node("Add", [log, most], ["lse"])
    g.node("Sub", [g.node("GatherElements", [logits, targets], ["chosen"], axis=1), lse], ["logp"])
    g.node("TopK", [logits, top], ["values", "best"], axis=1)
    g.output("logp", ["R", 1])
    g.output("lse", ["R", 1])
    g.outputs.append(helper.make_tensor_value_info("best", TensorProto.INT64, ["R", "K"]))
    return g.model()


def mapped(tensor: TensorProto, folder: Path) -> NDArray[Any]:
    """Return a stored tensor, mapped from its file in `folder`."""
    where = {entry.key: entry.value for entry in tensor.external_data}
    if not where:
        return numpy_helper.to_array(tensor)
    kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return np.memmap(folder / where["location"], kind, "r", int(where["offset"]), tuple(tensor.dims))


def mapped_matrix(tensors: dict[str, TensorProto], name: str, folder: Path) -> Blocks | NDArray[Any]:
    """Return a stored matrix (N, K), mapped from its file in `folder`: rows of the embedding are read from it."""
    if name + ".weight" in tensors:
        return mapped(tensors[name + ".weight"], folder).T
    codes, scales = (mapped(tensors[f"{name}.{part}"], folder) for part in ("codes", "scales"))
    offsets = mapped(tensors[f"{name}.offsets"], folder).T if f"{name}.offsets" in tensors else None
    return Blocks(codes.shape[2] * 8 // BLOCK, codes, scales.reshape(codes.shape[:2]), offsets)
