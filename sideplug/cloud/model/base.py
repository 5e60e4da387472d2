"""The seam between the engine and whatever runs the model: packed token ids and caches in, z and tapped states out.

Everything that crosses it is NumPy, so an engine needs no tensor library. `ort` is the CPU's implementation,
`torch_model` the general one and its twin in the tests; `engines` chooses.
Letters: T tokens of all sequences together, K tapped layers, N blocks, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from sideplug.cloud.model.memory import KVMemory, Reservation


class Cache(Protocol):
    """The KV cache of one sequence: `length` tokens are in it."""

    @property
    def length(self) -> int: ...

    def advance(self, count: int) -> None:
        """`count` more tokens are in it now: said once a step, when every block has written them."""
        ...

    def trim(self, length: int) -> None:
        """Forget everything from position `length` on."""
        ...

    def read(self, length: int) -> Any:
        """A copy of the keys and values of the first `length` tokens, for `write`."""
        ...

    def write(self, states: Any, length: int) -> None:
        """Begin with the first `length` tokens of what `read` gave: an empty cache only."""
        ...


class NoCache:
    """What a work has that has not begun, or is over."""

    length = 0

    def advance(self, count: int) -> None: ...

    def trim(self, length: int) -> None: ...

    def read(self, length: int) -> Any: ...

    def write(self, states: Any, length: int) -> None: ...


@dataclass
class Chunk:
    """Some tokens of one sequence: `ids` go behind the `cache.length` tokens that its cache has."""

    ids: list[int]
    cache: Any  # a Cache of the model that runs it


class Forward(Protocol):
    """What one packed step gave: rows are numbered through all chunks, in order."""

    def z(self, rows: Sequence[int] | slice) -> np.ndarray:
        """z, the state after the final norm, of these rows: (rows, D) float32."""
        ...

    def tapped(self, rows: Sequence[int] | slice, layers: Sequence[int]) -> np.ndarray:
        """Hidden states of these rows at these layers (0 the embedding, N is z): (rows, K, D) float32."""
        ...


class Model(Protocol):
    """A frozen decoder-only model."""

    blocks: int
    width: int
    vocab: int
    context: int  # tokens at most
    logit_scale: float  # what bends the head's logits (1: nothing) …
    softcap: float  # … and caps them (0: nothing)
    memory: KVMemory  # of all caches together

    def new_cache(self, tokens: int) -> Cache:
        """A KV cache for `tokens` tokens at most, whose memory is promised until it is let go. Raises Busy."""
        ...

    def cache_in(self, promise: Reservation) -> Cache:
        """A KV cache in memory that is promised already. Raises Busy when there are too many."""
        ...

    def forward(self, chunks: Sequence[Chunk], layers: Collection[int] = ()) -> Forward:
        """One packed step; every chunk's cache grows by its ids. `layers`: those that may be tapped."""
        ...

    def logits(self, z_TD: np.ndarray) -> np.ndarray:
        """The head: z (T, D), corrected or not, → (T, V) float32."""
        ...

    def read(self, z_TD: np.ndarray, targets: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Over the whole vocabulary, each row's: log p of its target, `top` best ids (T, top), log-sum-exp (T,)."""
        ...

    def head_rows(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The head's weight rows (n, D) and biases (n,) of these token ids, float32."""
        ...
