"""The layout of one run of a stage's graph: which rows are decode rows and which are chunks, and in which slots.

GroupQueryAttention takes decode rows (one token each) of neighbouring slots as one tensor, and a chunk (several tokens)
of one slot. A layout says how a step's chunks become that: its graph's variant, the slots of each group of rows, and
the small inputs. It does not know weights or ONNX Runtime. Test: pytest tests/cloud/test_ort_model.py
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sideplug.cloud.model.base import Chunk, Ints
from sideplug.cloud.model.ort.graph import Variant


@dataclass
class Layout:
    """One run: its graph, the slots of each group, its small inputs, and the slots that only take part.

    slots: of each group, the first slot and how many. idle: slots (I,) whose first token is written over, and has to be
    put back. rows: where the step's rows are in the run, when it runs more than these; company: it runs two rows.
    """

    variant: Variant
    slots: tuple[tuple[int, int], ...]
    small: dict[str, NDArray[np.int32] | NDArray[np.int64]]
    idle: NDArray[np.int64]
    rows: slice = field(default_factory=lambda: slice(None))
    company: bool = False


def is_decode(chunk: Chunk) -> bool:
    """Return whether a chunk is a decode row: one token behind others."""
    return len(chunk.ids) == 1 and chunk.cache.length > 0


def pad_to_two_rows(chunk: Chunk, lengths: Ints) -> Layout:
    """Lay out a single decode row with a text of one token beside it, in the neighbouring slot, which is put back.

    lengths: the tokens in every slot (slots,).
    """
    slot = chunk.cache.slot
    first, other = (slot, slot + 1) if slot + 1 < len(lengths) else (slot - 1, slot - 1)
    row = slot - first
    seen = np.zeros(2, np.int32)
    seen[row] = lengths[slot]
    small: dict[str, NDArray[np.int32] | NDArray[np.int64]] = {
        "seen_d": seen,
        "total_d": np.array([seen.max() + 1], np.int32),
    }
    idle = np.array([other][: int(lengths[other] > 0)], np.int64)
    return Layout(Variant(1, 0), ((first, 2),), small, idle, slice(row, row + 1), True)


def lay_out(decode: Sequence[Chunk], chunks: Sequence[Chunk], lengths: Ints) -> Layout:
    """Lay out decode rows (sorted by slot) and chunks as one run. lengths: the tokens in every slot (slots,)."""
    rows = [len(decode)] * bool(decode) + [len(chunk.ids) for chunk in chunks]
    after = {chunk.cache.slot: chunk.cache.length + len(chunk.ids) for chunk in chunks}
    small: dict[str, NDArray[np.int32] | NDArray[np.int64]] = {}
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
    return Layout(Variant(kind, len(chunks)), tuple(slots), small, idle)
