"""The KV caches of many sequences in one reserved stretch of memory: for each block its keys and values, slot by slot.

ONNX Runtime writes a step's keys and values into them in place, and takes the slots of a decode step as one tensor.
Only what is written is ever backed by memory, page by page, and a slot that is let go gives its pages back. A stage has
slots of its own blocks. It does not know attention. Test: pytest tests/cloud/test_ort_model.py
"""

from __future__ import annotations

import mmap
import threading
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

from sideplug.cloud.model.base import Floats
from sideplug.cloud.model.memory import Reservation
from sideplug.contract.errors import Busy, Stopped

RESERVE = 1 << 44  # bytes of address space at most: reserving costs nothing
PAGE = 4096


class Slots:
    """Room for `count` sequences of `rows` tokens: (kv_heads, rows, head_size) float32 for keys, values and block.

    `rows` is at least `context` + 1. Raises Stopped when the system gives no address space.
    """

    def __init__(self, blocks: int, kv_heads: int, head_size: int, context: int) -> None:
        row = kv_heads * head_size * 4
        step = max(1, PAGE // row)
        while step * row % PAGE:
            step += 1
        self.rows = -(-(context + 1) // step) * step  # one more: see `lay_out`: a slot with a chunk of its own
        self.shape = (kv_heads, self.rows, head_size)
        self.slot_bytes = row * self.rows
        self._tensors = 2 * blocks
        count = max(1, min(4096, RESERVE // (self._tensors * self.slot_bytes)))
        while True:
            try:
                flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
                self._pages = mmap.mmap(-1, self._tensors * count * self.slot_bytes, flags=flags)
                break
            except (OSError, ValueError) as error:  # a limit on address space
                if count == 1:
                    raise Stopped("there is no address space for one KV cache") from error
                count //= 2
        if hasattr(mmap, "MADV_NOHUGEPAGE"):  # a huge page would be filled by a few tokens of one head
            self._pages.madvise(mmap.MADV_NOHUGEPAGE)
        self.count = count
        self._tokens: Floats = np.frombuffer(self._pages, np.float32).reshape(self._tensors, count, *self.shape)
        self._base = self._tokens.ctypes.data
        self.lengths = np.zeros(count, np.int32)  # tokens in each slot
        self._free = list(range(count))
        self._lock = threading.RLock()  # caches are made by whoever takes a request and freed by whoever held them last

    def pointer(self, tensor: int, slot: int) -> int:
        """Return the address of the keys (tensor 2i) or values (2i + 1) of a slot; i counts these blocks from 0."""
        return self._base + (tensor * self.count + slot) * self.slot_bytes

    def first_rows(self, slots: NDArray[np.int64]) -> Floats:
        """Return a copy of what every block keeps of the first token of these slots (n,)."""
        return self._tokens[:, slots, :, 0]

    def read(self, slot: int, length: int) -> Floats:
        """Return a copy of a slot's first `length` tokens: (tensors, kv_heads, length, head_size)."""
        return self._tokens[:, slot, :, :length].copy()

    def write(self, slot: int, rows: Floats) -> None:
        """Write a slot's first tokens: what `read` gave."""
        self._tokens[:, slot, :, : rows.shape[2]] = rows

    def put_first_rows(self, slots: NDArray[np.int64], rows: Floats) -> None:
        """Write back what `first_rows` gave."""
        self._tokens[:, slots, :, 0] = rows

    def take(self, reservation: Reservation) -> SlotCache:
        """Take the lowest free slot. Raises Busy when all are taken."""
        with self._lock:
            if not self._free:
                raise Busy(f"the cloud has {self.count} texts in work: try later")
            return SlotCache(self, heappop(self._free), reservation)

    def give_back(self, slot: int) -> None:
        """Free a slot, and give its memory back to the system."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for tensor in range(self._tensors):
                start = (tensor * self.count + slot) * self.slot_bytes
                self._pages.madvise(mmap.MADV_DONTNEED, start, self.slot_bytes)
        with self._lock:
            self.lengths[slot] = 0
            heappush(self._free, slot)


class SlotCache:
    """The KV cache of one sequence: its slot is given back when nobody holds the cache any more."""

    def __init__(self, slots: Slots, slot: int, reservation: Reservation) -> None:
        self.slot = slot
        self._slots = slots
        self._reservation = reservation  # of memory, kept as long as the cache is

    @property
    def length(self) -> int:
        """The number of tokens that it holds."""
        return int(self._slots.lengths[self.slot])

    def advance(self, count: int) -> None:
        """Count `count` more tokens, which a run has written."""
        self._slots.lengths[self.slot] += count

    def trim(self, length: int) -> None:
        """Forget everything from position `length` on."""
        self._slots.lengths[self.slot] = min(self.length, length)

    def read(self, length: int) -> Floats:
        """Return a copy of the first `length` tokens' keys and values: (tensors, kv_heads, length, head_size)."""
        return self._slots.read(self.slot, length)

    def write(self, states: Floats, length: int) -> None:
        """Begin with the first `length` tokens of what `read` gave. The cache must be empty."""
        self._slots.write(self.slot, states[:, :, :length])
        self._slots.lengths[self.slot] = length

    def __del__(self) -> None:
        self._slots.give_back(self.slot)
