"""ONNX Runtime behind the seam of `sideplug.cloud.model`: the CPU's engine. No torch.

It lays out a step for the graph (decode rows over neighbouring slots, chunks of one session each), binds the slots'
memory, and runs. It does not know sessions, plugins or the wire. Test: pytest tests/cloud/test_ort_model.py
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sideplug.cloud.model.base import Chunk
from sideplug.cloud.model.memory import KVMemory, Reservation
from sideplug.cloud.model.ort.blueprint import Blueprint
from sideplug.cloud.model.ort.graph import Variant
from sideplug.cloud.model.ort.prepack import start_pool
from sideplug.cloud.model.ort.prepare import Prepared, prepare
from sideplug.cloud.model.ort.slots import SlotCache, Slots
from sideplug.cloud.store import Base
from sideplug.cloud.weights import Blocks

CHUNKS = 4  # groups of several tokens in one run: more of them go into further runs
KEPT_BINDINGS = 128  # of slots to a graph: each step of the same sessions finds its own again


class States:
    """What one packed step gave: see `model.Forward`. `order`: where each row of the step's chunks was run."""

    def __init__(self, blocks: int, found: dict[int, np.ndarray], order: np.ndarray) -> None:
        self._blocks = blocks
        self._found = found
        self._order = order

    def z(self, rows: Sequence[int] | slice) -> np.ndarray:
        return self._found[self._blocks][self._order[rows]]

    def tapped(self, rows: Sequence[int] | slice, layers: Sequence[int]) -> np.ndarray:
        index = self._order[rows]
        return np.stack([self._found[layer][index] for layer in layers], axis=1)


@dataclass
class Layout:
    """One run: its graph, the slots of each group, its small inputs, and who sits it out; `ids` as its rows are."""

    variant: Variant
    slots: tuple[tuple[int, int], ...]  # of each group: first, count
    ids: list[int]
    small: dict[str, np.ndarray]
    idle: np.ndarray  # slots whose first token is written over
    rows: slice = field(default_factory=lambda: slice(None))  # without the company


def pad_to_two_rows(chunk: Chunk, lengths: np.ndarray) -> Layout:
    """A single decode row and, as company, a text of one token in the neighbouring slot, which is put back."""
    slot = chunk.cache.slot
    first, other = (slot, slot + 1) if slot + 1 < len(lengths) else (slot - 1, slot - 1)
    row = slot - first
    seen, ids = np.zeros(2, np.int32), [0, 0]
    seen[row], ids[row] = lengths[slot], chunk.ids[0]
    small = {"seen_d": seen, "total_d": np.array([seen.max() + 1], np.int32)}
    idle = np.array([other][: int(lengths[other] > 0)], np.int64)
    return Layout(Variant(1, 0), ((first, 2),), ids, small, idle, slice(row, row + 1))


def lay_out(decode: Sequence[Chunk], chunks: Sequence[Chunk], lengths: np.ndarray) -> Layout:
    """Decode rows (sorted by slot) and chunks as one run. `lengths`: tokens in every slot."""
    ids = [token for chunk in (*decode, *chunks) for token in chunk.ids]
    rows = [len(decode)] * bool(decode) + [len(chunk.ids) for chunk in chunks]
    after = {chunk.cache.slot: chunk.cache.length + len(chunk.ids) for chunk in chunks}
    small: dict[str, np.ndarray] = {}
    slots: list[tuple[int, int]] = []
    idle = np.zeros(0, np.int64)
    kind = 0
    if decode:
        first, last = decode[0].cache.slot, decode[-1].cache.slot
        # A slot between them whose session sits this step out takes part as a text of one token, which is put back
        # afterwards: to look at all that it has would cost as much as to run it. One that has a chunk of its own in
        # this run writes behind that instead.
        seen = np.zeros(last + 1 - first, np.int32)
        ready = np.array([chunk.cache.slot for chunk in decode])
        seen[ready - first] = lengths[ready]
        for slot, length in after.items():
            if first <= slot <= last:
                seen[slot - first] = length
        others = np.setdiff1d(np.arange(first, last + 1), [*ready, *after])
        idle = others[lengths[others] > 0]
        slots.append((first, len(seen)))
        small |= {"seen_d": seen, "total_d": np.array([seen.max() + 1], np.int32)}
        kind = 1
        if len(seen) > len(decode):
            kind = 2
            gather = (ready - first).astype(np.int64)
            spread = np.zeros(len(seen), np.int64)
            spread[gather] = np.arange(len(decode))
            small |= {"spread": spread, "gather": gather}
    for n, chunk in enumerate(chunks):
        slots.append((chunk.cache.slot, 1))
        total = chunk.cache.length + len(chunk.ids)
        small |= {f"seen_c{n}": np.array([total - 1], np.int32), f"total_c{n}": np.array([total], np.int32)}
    if len(rows) > 1:
        small["split"] = np.array(rows, np.int64)
    return Layout(Variant(kind, len(chunks)), tuple(slots), ids, small, idle)


class OrtModel:
    """A prepared model, as `model.Model` wants it."""

    def __init__(self, prepared: Prepared, kv_limit_bytes: int) -> None:
        b = prepared.blueprint
        self.blocks, self.width, self.vocab, self.context = b.blocks, b.width, b.vocab, b.context
        self.logit_scale, self.softcap = 1.0, b.softcap
        self._prepared = prepared
        self._blueprint = b
        self._head, self._reader = prepared.head(), prepared.reader()
        self._head_matrix, self._head_bias = prepared.head_matrix()
        self._embedding = prepared.embedding()
        self.memory = KVMemory(kv_limit_bytes, b.kv_bytes_per_token)
        self._slots = Slots(b.blocks, b.kv_heads, b.head_size, b.context)
        self.bits = prepared.bits
        self._sessions: dict[Variant, Any] = {}
        # What is bound stays bound, so a binding is of one set of outputs: another's memory would be written to.
        self._bindings: OrderedDict[tuple[Variant, tuple[tuple[int, int], ...], tuple[int, ...]], Any] = OrderedDict()
        self._company = False
        self._warm_up()
        self._company = self._slots.count > 1 and not self._alone_as_beside_others()

    @classmethod
    def load(
        cls,
        base: Base,
        blueprint: Blueprint,
        bits: int,
        threads: int,
        root: Path,
        kv_limit_bytes: int,
        say: Callable[[str], None],
    ) -> OrtModel:
        """The model of a folder, prepared below `root`: see `prepare`."""
        start_pool(threads)
        return cls(prepare(base.folder, blueprint, base.fingerprint, bits, root, say), kv_limit_bytes)

    def _warm_up(self) -> None:
        """Open the usual graphs, so that nobody's first token waits for them."""
        caches = [self.new_cache(4) for _ in range(2)]
        self.forward([Chunk([0, 0], caches[0])])
        self.forward([Chunk([0], caches[0]), Chunk([0, 0], caches[1])])
        self.logits(self.forward([Chunk([0], cache) for cache in caches]).z(slice(0, 2)))

    def _alone_as_beside_others(self) -> bool:
        """Does a row get the same bits alone and beside another? Not from every CPU's kernels (AVX2 and 4 bits, say).

        Where it does not, a single row gets company: nobody's text may depend on who else is served.
        """
        caches = [self.new_cache(8) for _ in range(2)]
        for cache in caches:
            self.forward([Chunk([1, 2, 3], cache)])
        for token in range(4, 8):
            rows = [Chunk([token % self.vocab], cache) for cache in caches]
            beside = self.forward(rows).z([0])
            caches[0].trim(caches[0].length - 1)
            if not np.array_equal(beside, self.forward(rows[:1]).z([0])):
                return False
        return True

    def new_cache(self, tokens: int) -> SlotCache:
        return self.cache_in(self.memory.promise(tokens))

    def cache_in(self, promise: Reservation) -> SlotCache:
        return self._slots.take(promise)

    def forward(self, chunks: Sequence[Chunk], layers: Collection[int] = ()) -> States:
        several = [i for i, chunk in enumerate(chunks) if len(chunk.ids) > 1 or not chunk.cache.length]
        single = sorted(set(range(len(chunks))) - set(several), key=lambda i: chunks[i].cache.slot)
        starts = np.cumsum([0, *(len(chunk.ids) for chunk in chunks)])
        order = np.empty(starts[-1], np.int64)
        parts = []
        row = 0
        for at in range(0, max(1, len(several)), CHUNKS):
            now = several[at : at + CHUNKS]
            decode = [] if at else single
            parts.append(self._run([chunks[i] for i in decode], [chunks[i] for i in now], layers))
            for i in (*decode, *now):
                count = len(chunks[i].ids)
                order[starts[i] : starts[i + 1]] = np.arange(row, row + count)
                row += count
        found = parts[0] if len(parts) == 1 else {key: np.concatenate([p[key] for p in parts]) for key in parts[0]}
        return States(self.blocks, found, order)

    def _run(self, decode: Sequence[Chunk], chunks: Sequence[Chunk], layers: Collection[int]) -> dict[int, np.ndarray]:
        if self._company and len(decode) == 1 and not chunks:
            layout = pad_to_two_rows(decode[0], self._slots.lengths)
        else:
            layout = lay_out(decode, chunks, self._slots.lengths)
        x = self._embed(layout.ids)
        wanted = tuple(sorted({*layers, self.blocks} - {0}))
        session, binding = self._bound(layout, wanted)
        shape: Any = (*layout.variant.shape(len(x)), self.width)
        # By its place, and not as `small`: a binding would hold a whole prompt's rows until its slots are run again.
        binding.bind_input("x", "cpu", 0, np.float32, shape, x.ctypes.data)
        for name, value in layout.small.items():
            binding.bind_cpu_input(name, value)
        found = {0: x}
        for layer in wanted:
            found[layer] = np.empty_like(x)
            name = "z" if layer == self.blocks else f"h{layer}"
            binding.bind_output(name, "cpu", 0, np.float32, shape, found[layer].ctypes.data)
        kept = self._slots.first_rows(layout.idle)
        try:
            session.run_with_iobinding(binding)
        finally:
            self._slots.put_first_rows(layout.idle, kept)
        for chunk in (*decode, *chunks):
            chunk.cache.advance(len(chunk.ids))
        return {layer: states[layout.rows] for layer, states in found.items()}

    def _bound(self, layout: Layout, wanted: tuple[int, ...]) -> tuple[Any, Any]:
        """The graph of a layout, and a binding of its slots' memory for these outputs."""
        session = self._sessions.get(layout.variant)
        if session is None:
            session = self._sessions[layout.variant] = self._prepared.session(layout.variant)
        key = (layout.variant, layout.slots, wanted)
        binding = self._bindings.pop(key, None)
        if binding is None:
            binding = session.io_binding()
            for group, (first, count) in zip(layout.variant.groups, layout.slots, strict=True):
                shape = (count, *self._slots.shape)
                for i in range(self.blocks):
                    for n, kind in enumerate("kv"):
                        place = self._slots.pointer(2 * i + n, first)
                        binding.bind_input(f"{kind}{i}_{group}", "cpu", 0, np.float32, shape, place)
                        binding.bind_output(f"new_{kind}{i}_{group}", "cpu", 0, np.float32, shape, place)
            if len(self._bindings) >= KEPT_BINDINGS:
                self._bindings.popitem(last=False)
        self._bindings[key] = binding
        return session, binding

    def _embed(self, ids: list[int]) -> np.ndarray:
        index = np.asarray(ids, np.int64)
        if isinstance(self._embedding, Blocks):
            x = self._embedding.rows(index)
        else:
            x = np.asarray(self._embedding[index], np.float32)
        return np.ascontiguousarray(x * np.float32(self._blueprint.embedding_scale))

    def logits(self, z_TD: np.ndarray) -> np.ndarray:
        (logits,) = self._head.run(None, {"z": np.ascontiguousarray(z_TD, np.float32)})
        return logits

    def read(self, z_TD: np.ndarray, targets: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        feed = {"z": np.ascontiguousarray(z_TD, np.float32), "targets": targets.astype(np.int64)[:, None]}
        feed["top"] = np.array([min(top, self.vocab)], np.int64)
        logp, best, lse = self._reader.run(["logp", "best", "lse"], feed)
        return logp[:, 0], best.astype(np.int32), lse[:, 0]

    def head_rows(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        index = ids.astype(np.int64)
        head = self._head_matrix
        rows = head.rows(index) if isinstance(head, Blocks) else np.asarray(head[index], np.float32)
        bias = self._head_bias
        return rows, np.zeros(len(ids), np.float32) if bias is None else np.asarray(bias[index])
