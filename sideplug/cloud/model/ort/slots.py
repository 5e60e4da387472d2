"""The KV caches of many sequences in one reserved stretch of memory: for each block its keys and values, slot by slot.

ONNX Runtime writes a step's keys and values into them in place, and takes the slots of a decode step as one tensor.
Only what is written is ever backed by memory, page by page, and a slot that is let go gives its pages back. It does not
know attention.
"""

from __future__ import annotations

import mmap
import threading
from heapq import heappop, heappush

import numpy as np

from sideplug.cloud.model.memory import Reservation
from sideplug.contract.errors import Busy, Stopped

RESERVE = 1 << 44  # bytes of address space at most: reserving costs nothing
PAGE = 4096


class Slots:
    """Room for `count` sequences of `rows` tokens: (kv_heads, rows, head_size) float32 for keys, values and block."""

    def __init__(self, blocks: int, kv_heads: int, head_size: int, context: int) -> None:
        row = kv_heads * head_size * 4
        step = max(1, PAGE // row)
        while step * row % PAGE:
            step += 1
        self.rows = -(-(context + 1) // step) * step  # one more: see `lay_out`, who has a chunk
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
        self._tokens = np.frombuffer(self._pages, np.float32).reshape(self._tensors, count, *self.shape)
        self._base = self._tokens.ctypes.data
        self.lengths = np.zeros(count, np.int32)  # tokens in each slot
        self._free = list(range(count))
        self._lock = threading.RLock()  # caches are made by whoever takes a request and freed by whoever held them last

    def pointer(self, tensor: int, slot: int) -> int:
        """Where the keys (tensor 2i) or values (2i + 1) of block i of a slot are."""
        return self._base + (tensor * self.count + slot) * self.slot_bytes

    def first_rows(self, slots: np.ndarray) -> np.ndarray:
        """A copy of what every block keeps of the first token of these slots."""
        return self._tokens[:, slots, :, 0]

    def read(self, slot: int, length: int) -> np.ndarray:
        """A copy of the first `length` rows: (tensors, kv_heads, length, head_size)."""
        return self._tokens[:, slot, :, :length].copy()

    def write(self, slot: int, rows: np.ndarray) -> None:
        self._tokens[:, slot, :, : rows.shape[2]] = rows

    def put_first_rows(self, slots: np.ndarray, rows: np.ndarray) -> None:
        self._tokens[:, slots, :, 0] = rows

    def take(self, promise: Reservation) -> SlotCache:
        """The lowest free slot. Raises Busy."""
        with self._lock:
            if not self._free:
                raise Busy(f"the cloud has {self.count} texts in work: try later")
            return SlotCache(self, heappop(self._free), promise)

    def give_back(self, slot: int) -> None:
        """The slot is free again, and its memory the system's."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for tensor in range(self._tensors):
                start = (tensor * self.count + slot) * self.slot_bytes
                self._pages.madvise(mmap.MADV_DONTNEED, start, self.slot_bytes)
        with self._lock:
            self.lengths[slot] = 0
            heappush(self._free, slot)


class SlotCache:
    """The KV cache of one sequence: its slot is given back when nobody holds it any more."""

    def __init__(self, slots: Slots, slot: int, promise: Reservation) -> None:
        self.slot = slot
        self._slots = slots
        self._promise = promise

    @property
    def length(self) -> int:
        return int(self._slots.lengths[self.slot])

    def advance(self, count: int) -> None:
        self._slots.lengths[self.slot] += count

    def trim(self, length: int) -> None:
        """Forget everything from position `length` on."""
        self._slots.lengths[self.slot] = min(self.length, length)

    def read(self, length: int) -> np.ndarray:
        """A copy of the keys and values of the first `length` tokens: (tensors, kv_heads, length, head_size)."""
        return self._slots.read(self.slot, length)

    def write(self, states: np.ndarray, length: int) -> None:
        """Begin with the first `length` tokens of what `read` gave: an empty cache only."""
        self._slots.write(self.slot, states[:, :, :length])
        self._slots.lengths[self.slot] = length

    def __del__(self) -> None:
        self._slots.give_back(self.slot)
