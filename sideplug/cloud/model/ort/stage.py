"""A stage of a model on a CPU, through ONNX Runtime: some neighbouring blocks, and the slots of their keys and values.

It lays out a step for the graph, binds the slots' memory and the rows' memory, and runs; nothing is copied on the way
when the rows come in the order that it says. It does not know token ids, the embedding or the head.
Test: pytest tests/cloud/test_stages.py
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

from sideplug.cloud.model.base import Chunk, Floats, row_order
from sideplug.cloud.model.memory import KVMemory, Reservation
from sideplug.cloud.model.ort.graph import Variant
from sideplug.cloud.model.ort.layout import Layout, is_decode, lay_out, pad_to_two_rows
from sideplug.cloud.model.ort.prepare import PreparedBody
from sideplug.cloud.model.ort.slots import SlotCache, Slots

CHUNKS = 4  # groups of several tokens in one run: more of them go into further runs
KEPT_BINDINGS = 128  # of slots to a graph: each step of the same sessions finds its own again

Key = tuple[Variant, tuple[tuple[int, int], ...], tuple[int, ...]]


class OrtStage:
    """Prepared blocks, as `model.Stage` wants them. `kv_limit_bytes`: for the keys and values of its own blocks.

    Raises InputError when that is too little for one text, Stopped when the system gives no address space.
    """

    def __init__(self, prepared: PreparedBody, kv_limit_bytes: int) -> None:
        b = prepared.blueprint
        self.first, self.last, self.of, self.context = prepared.first, prepared.last, b.blocks, b.context
        self.bits = prepared.bits
        self.memory = KVMemory(kv_limit_bytes, b.kv_bytes_per_token(self.last - self.first))
        self._width = b.width
        self._prepared = prepared
        self._slots = Slots(self.last - self.first, b.kv_heads, b.head_size, b.context)
        self._sessions: dict[Variant, Any] = {}
        # What is bound stays bound, so a binding is of one set of outputs: another's memory would be written to.
        self._bindings: OrderedDict[Key, Any] = OrderedDict()
        self._company = False
        self._warm_up()
        self._company = self._slots.count > 1 and not self._is_alone_as_beside_others()

    def _warm_up(self) -> None:
        """Open the usual graphs, so that nobody's first token waits for them."""
        one, two = (self.cache_in(self.memory.reserve(4)) for _ in range(2))
        x = np.zeros((3, self._width), np.float32)
        for chunks in (
            [Chunk([0, 0], one)],
            [Chunk([0], one), Chunk([0, 0], two)],
            [Chunk([0], one), Chunk([0], two)],
        ):
            self._run_and_advance(x[: sum(len(chunk.ids) for chunk in chunks)], chunks)

    def _is_alone_as_beside_others(self) -> bool:
        """Does a row get the same bits alone and beside another? Not from every CPU's kernels (AVX2 and 4 bits, say).

        Where it does not, a single row gets company: nobody's text may depend on who else is served.
        """
        rng = np.random.default_rng(0)
        caches = [self.cache_in(self.memory.reserve(8)) for _ in range(2)]
        prompt = rng.normal(size=(3, self._width)).astype(np.float32)
        for cache in caches:
            self._run_and_advance(prompt, [Chunk([0, 0, 0], cache)])
        for _ in range(4):
            x = np.repeat(rng.normal(size=(1, self._width)).astype(np.float32), 2, 0)
            rows = [Chunk([0], cache) for cache in caches]
            alone, _ = self.run(x[:1], rows[:1], ())
            if not np.array_equal(self._run_and_advance(x, rows)[:1], alone):
                return False
        return True

    def _run_and_advance(self, x_TD: Floats, chunks: Sequence[Chunk]) -> Floats:
        out, _ = self.run(x_TD, chunks, ())
        for chunk in chunks:
            chunk.cache.advance(len(chunk.ids))
        return out

    def cache_in(self, reservation: Reservation) -> SlotCache:
        """Take the lowest free slot, for as long as the cache is held. Raises Busy when all are taken."""
        return self._slots.take(reservation)

    def order(self, chunks: Sequence[Chunk]) -> list[int]:
        """Return the order in which no rows have to be moved: decode rows by their slot, then the others as given."""
        decode = [i for i, chunk in enumerate(chunks) if is_decode(chunk)]
        others = [i for i, chunk in enumerate(chunks) if not is_decode(chunk)]
        return sorted(decode, key=lambda i: int(chunks[i].cache.slot)) + others

    def run(self, x_TD: Floats, chunks: Sequence[Chunk], layers: Collection[int]) -> tuple[Floats, dict[int, Floats]]:
        """Run its blocks over the rows x (T, D) float32 of these chunks: see `model.Stage`."""
        places = self.order(chunks)
        if places == list(range(len(chunks))):
            return self._run_ordered(x_TD, chunks, layers)
        order = row_order(chunks, places)  # another stage's slots are other ones
        out, tapped = self._run_ordered(x_TD[np.argsort(order)], [chunks[place] for place in places], layers)
        return out[order], {layer: states[order] for layer, states in tapped.items()}

    def _run_ordered(
        self, x_TD: Floats, chunks: Sequence[Chunk], layers: Collection[int]
    ) -> tuple[Floats, dict[int, Floats]]:
        """As `run`, with the chunks in the stage's own order: CHUNKS groups of several tokens in each run."""
        x = np.ascontiguousarray(x_TD, np.float32)
        outputs = tuple(sorted({*layers, self.last} - {0}))
        decode = [chunk for chunk in chunks if is_decode(chunk)]
        several = chunks[len(decode) :]
        if self._company and len(chunks) == len(decode) == 1:
            states = self._run_with_company(x, decode[0], outputs)
        else:
            states = {layer: np.empty_like(x) for layer in outputs}
            row = 0
            for at in range(0, max(1, len(several)), CHUNKS):
                now = several[at : at + CHUNKS]
                beside = [] if at else decode
                end = row + len(beside) + sum(len(chunk.ids) for chunk in now)
                self._bind_and_run(
                    lay_out(beside, now, self._slots.lengths),
                    x[row:end],
                    {layer: out[row:end] for layer, out in states.items()},
                )
                row = end
        tapped = {layer: states[layer] if layer else x for layer in layers}
        return states[self.last], tapped

    def _run_with_company(self, x_1D: Floats, chunk: Chunk, outputs: Iterable[int]) -> dict[int, Floats]:
        layout = pad_to_two_rows(chunk, self._slots.lengths)
        x = np.repeat(x_1D, 2, 0)
        states = {layer: np.empty_like(x) for layer in outputs}
        self._bind_and_run(layout, x, states)
        return {layer: out[layout.rows] for layer, out in states.items()}

    def _bind_and_run(self, layout: Layout, x: Floats, states: dict[int, Floats]) -> None:
        """Run one layout: x (R, D) and states (R, D), both contiguous; the states are written in place."""
        session, binding = self._bound(layout, tuple(states))
        shape: Any = (*layout.variant.shape(len(x)), self._width)
        # By its place, and not as `small`: a binding would hold a whole prompt's rows until its slots are run again.
        binding.bind_input("x", "cpu", 0, np.float32, shape, x.ctypes.data)
        for name, value in layout.small.items():
            binding.bind_cpu_input(name, value)
        for layer, out in states.items():
            name = "z" if layer == self.of else f"h{layer}"
            binding.bind_output(name, "cpu", 0, np.float32, shape, out.ctypes.data)
        kept = self._slots.first_rows(layout.idle)
        try:
            session.run_with_iobinding(binding)
        finally:
            self._slots.put_first_rows(layout.idle, kept)

    def _bound(self, layout: Layout, outputs: tuple[int, ...]) -> tuple[Any, Any]:
        """Return the graph of a layout, and a binding of its slots' memory for these outputs."""
        session = self._sessions.get(layout.variant)
        if session is None:
            session = self._sessions[layout.variant] = self._prepared.session(layout.variant)
        key = (layout.variant, layout.slots, outputs)
        binding = self._bindings.pop(key, None)
        if binding is None:
            binding = session.io_binding()
            for group, (first, count) in zip(layout.variant.groups, layout.slots, strict=True):
                shape = (count, *self._slots.shape)
                for i in range(self.first, self.last):
                    for n, kind in enumerate("kv"):
                        place = self._slots.pointer(2 * (i - self.first) + n, first)
                        binding.bind_input(f"{kind}{i}_{group}", "cpu", 0, np.float32, shape, place)
                        binding.bind_output(f"new_{kind}{i}_{group}", "cpu", 0, np.float32, shape, place)
            if len(self._bindings) >= KEPT_BINDINGS:
                self._bindings.popitem(last=False)
        self._bindings[key] = binding
        return session, binding
