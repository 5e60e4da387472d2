"""The KV cache of one sequence: per block of the model two growing buffers, appended to in place.

It grows by doubling, so appending is O(1) and a view of what is there is free. It does not know attention.
Test: pytest tests/cloud/test_torch_model.py
"""

from __future__ import annotations

import torch

from sideplug.cloud.model.memory import Reservation


class KVCache:
    """The keys and values of `length` tokens; buffers are (kv_heads, capacity, head_dim) a block.

    A stage's cache has the buffers of its own blocks, by their numbers in the whole model.
    """

    FIRST = 128  # tokens

    def __init__(self, reservation: Reservation | None = None) -> None:
        self.length = 0
        self._reservation = reservation  # of memory, kept as long as the cache is
        self._keys: dict[int, torch.Tensor] = {}
        self._values: dict[int, torch.Tensor] = {}

    def append(self, block: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (kv_heads, T, head_dim) behind `length`; return views (kv_heads, length + T, head_dim) of everything.

        `length` itself moves once a step, when every block has appended: `advance`.
        """
        end = self.length + key.shape[1]
        have = self._keys.get(block)
        if have is None or have.shape[1] < end:
            room = max(self.FIRST, 1 << (end - 1).bit_length())
            self._keys[block] = self._grow(have, key, room)
            self._values[block] = self._grow(self._values.get(block), value, room)
        self._keys[block][:, self.length : end] = key
        self._values[block][:, self.length : end] = value
        return self._keys[block][:, :end], self._values[block][:, :end]

    def _grow(self, old: torch.Tensor | None, like: torch.Tensor, room: int) -> torch.Tensor:
        new = like.new_empty(like.shape[0], room, like.shape[2])
        if old is not None:
            new[:, : old.shape[1]] = old
        return new

    def advance(self, count: int) -> None:
        """Count `count` more tokens, which every block has appended."""
        self.length += count

    def trim(self, length: int) -> None:
        """Forget everything from position `length` on."""
        self.length = min(self.length, length)

    def read(self, length: int) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        """Return copies of the first `length` tokens' keys and values by block, in the machine's own memory."""
        return {
            block: (keys[:, :length].to("cpu", copy=True), self._values[block][:, :length].to("cpu", copy=True))
            for block, keys in self._keys.items()
        }

    def write(self, states: dict[int, tuple[torch.Tensor, torch.Tensor]], length: int) -> None:
        """Begin with the first `length` tokens of what `read` gave. The cache must be empty."""
        room = max(self.FIRST, 1 << max(0, length - 1).bit_length())
        for block, (keys, values) in states.items():
            self._keys[block] = self._grow(keys[:, :length], keys, room)
            self._values[block] = self._grow(values[:, :length], values, room)
        self.length = length

    @property
    def nbytes(self) -> int:
        """The bytes of its buffers."""
        return sum(t.nbytes for group in (self._keys, self._values) for t in group.values())
