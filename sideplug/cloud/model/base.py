"""The seam between the engine and whatever runs the model: token ids and caches go in, z and tapped states come out.

A model is a `Pipeline` of an Embedding (ids → x), Stages (each runs a range of blocks over x, with its own part of
every KV cache) and a Head (z → logits). Each stage taps its own layers, and returns only those that were asked for, so
that a stage can live on another machine. `ort` implements the parts for CPUs, `torch_model` in general; `engines`
chooses. What the engine sees is NumPy, so it needs no tensor library; between its parts a pipeline hands on whatever
array X its engine computes with, and never looks into it.

Letters: T tokens of all sequences together, K tapped layers, N blocks, D width, V vocabulary.
Layers: 0 is what the first block gets, i is what block i - 1 gives, and N is z, the last one after the final norm.
It does not know sessions, plugins or the wire. Test: pytest tests/cloud/test_stages.py
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from sideplug.cloud.model.memory import JointMemory, Memory, Reservation
from sideplug.contract.errors import InputError

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Rows = Sequence[int] | slice  # rows of a step, numbered through all its chunks in order
# The arrays (T, D) that an engine computes with: NumPy's for ort, torch's tensors for torch.
X = TypeVar("X")
X_co = TypeVar("X_co", covariant=True)  # of a part that only gives them …
X_contra = TypeVar("X_contra", contravariant=True)  # … and of one that only takes them


class Cache(Protocol):
    """The KV cache of one sequence: the keys and values of `length` tokens are in it."""

    @property
    def length(self) -> int:
        """The number of tokens that it holds."""
        ...

    def advance(self, count: int) -> None:
        """Count `count` more tokens: once a step, when every block of every stage has written them."""
        ...

    def trim(self, length: int) -> None:
        """Forget everything from position `length` on."""
        ...

    def read(self, length: int) -> Any:
        """Return a copy of the keys and values of the first `length` tokens, in a form that `write` takes."""
        ...

    def write(self, states: Any, length: int) -> None:
        """Begin with the first `length` tokens of what `read` gave. The cache must be empty."""
        ...


class NoCache:
    """The cache of a work that has not begun yet, or has ended: it holds nothing."""

    length = 0

    def advance(self, count: int) -> None:
        """Do nothing."""

    def trim(self, length: int) -> None:
        """Do nothing."""

    def read(self, length: int) -> Any:
        """Return None: there is nothing to read."""

    def write(self, states: Any, length: int) -> None:
        """Do nothing."""


class JointCache:
    """The cache of one sequence in a pipeline of several stages: one part a stage, always of the same length."""

    def __init__(self, parts: Sequence[Cache]) -> None:
        self.parts = parts

    @property
    def length(self) -> int:
        """The number of tokens that every part holds."""
        return self.parts[0].length

    def advance(self, count: int) -> None:
        """Count `count` more tokens in every part."""
        for part in self.parts:
            part.advance(count)

    def trim(self, length: int) -> None:
        """Forget everything from position `length` on, in every part."""
        for part in self.parts:
            part.trim(length)

    def read(self, length: int) -> list[Any]:
        """Return a copy of the keys and values of the first `length` tokens: a list with an entry a stage."""
        return [part.read(length) for part in self.parts]

    def write(self, states: list[Any], length: int) -> None:
        """Begin with the first `length` tokens of what `read` gave. The cache must be empty."""
        for part, state in zip(self.parts, states, strict=True):
            part.write(state, length)


@dataclass
class Chunk:
    """Some tokens of one sequence: `ids` go behind the `cache.length` tokens that its cache has."""

    ids: list[int]
    cache: Any  # a Cache of the model, or of the stage, that runs it


class Forward(Protocol):
    """What one packed step gave: rows are numbered through all chunks, in order."""

    def z(self, rows: Rows) -> Floats:
        """Return z, the state after the final norm, of these rows: (rows, D) float32."""
        ...

    def tapped(self, rows: Rows, layers: Sequence[int]) -> Floats:
        """Return the states of these rows at these layers, in this order: (rows, K, D) float32."""
        ...


class Sizes(Protocol):
    """A model's sizes: what a request is checked against."""

    @property
    def blocks(self) -> int:
        """N, the number of blocks: layers are 0 … N."""
        ...

    @property
    def width(self) -> int:
        """D, the width of z and of every layer."""
        ...

    @property
    def vocab(self) -> int:
        """V, the number of token ids."""
        ...

    @property
    def context(self) -> int:
        """The most tokens that one text may have."""
        ...


class Model(Sizes, Protocol):
    """A frozen decoder-only model, as the engine sees it."""

    @property
    def logit_scale(self) -> float:
        """The factor of the head's logits (1: none)."""
        ...

    @property
    def softcap(self) -> float:
        """The soft cap of the logits, which are softcap · tanh(logits / softcap); 0: none."""
        ...

    @property
    def bits(self) -> int:
        """The bits of a weight: 4 or 8 where they are quantised, else 16 or 32."""
        ...

    @property
    def memory(self) -> Memory:
        """The memory of all caches together."""
        ...

    def new_cache(self, tokens: int) -> Cache:
        """Make a KV cache for at most `tokens` tokens; its memory is reserved until it is let go. Raises Busy."""
        ...

    def cache_in(self, reservation: Reservation) -> Cache:
        """Make a KV cache in memory that is reserved already. Raises Busy when there are too many caches."""
        ...

    def forward(self, chunks: Sequence[Chunk], layers: Collection[int] = ()) -> Forward:
        """Run one packed step. Every chunk's cache grows by its ids. Only `layers` can be tapped afterwards."""
        ...

    def logits(self, z_TD: Floats) -> np.ndarray:
        """Return the logits (T, V) float32 of z (T, D), corrected or not."""
        ...

    def read(self, z_TD: Floats, targets: Ints, top: int) -> tuple[Floats, Ints, Floats]:
        """Over the whole vocabulary, return for each row of z (T, D): log p of its target (T,), the `top` best ids
        (T, top), and the log of the sum of exp of its logits (T,)."""
        ...

    def head_rows(self, ids: Ints) -> tuple[Floats, Floats]:
        """Return the head's weight rows (n, D) and biases (n,) of these token ids."""
        ...


class Embedding(Protocol[X_co]):
    """The first part of a pipeline."""

    @property
    def width(self) -> int:
        """D, the width of x."""
        ...

    def embed(self, ids: Sequence[int]) -> X_co:
        """Return x (T, D), what the first block gets, of T token ids."""
        ...


class Stage(Protocol[X]):
    """Some neighbouring blocks of a model, `first` … `last` - 1 of `of`, and the keys and values of these blocks.

    A stage is complete in itself: it holds only its own blocks' weights and counts its own memory. A stage that runs on
    another machine can be driven by what `run` takes: rows of x, for each chunk how many rows it has and which position
    they begin at (its cache's length), and the layers wanted.
    """

    @property
    def first(self) -> int:
        """Its first block."""
        ...

    @property
    def last(self) -> int:
        """The block behind its last one."""
        ...

    @property
    def of(self) -> int:
        """N, the number of blocks of the whole model: where `last` is that, the stage applies the final norm."""
        ...

    @property
    def context(self) -> int:
        """The most tokens that a sequence may have."""
        ...

    @property
    def bits(self) -> int:
        """The bits of a weight: 4 or 8 where they are quantised, else 16 or 32."""
        ...

    @property
    def memory(self) -> Memory:
        """The memory of its caches."""
        ...

    def cache_in(self, reservation: Reservation) -> Cache:
        """Make a cache of this stage's blocks in reserved memory. Raises Busy when there are too many caches."""
        ...

    def order(self, chunks: Sequence[Chunk]) -> list[int] | None:
        """Return the order of these chunks in which `run` has to move no rows; None: it never has to."""
        ...

    def run(self, x_TD: X, chunks: Sequence[Chunk], layers: Collection[int]) -> tuple[X, dict[int, X]]:
        """Run the blocks over the rows x (T, D) of these chunks, each chunk with its cache of this stage.

        Returns the outgoing rows (T, D), which are z where the stage is the last one, and the states (T, D) of those
        `layers` that are its own: `first` + 1 … `last`, and 0 where it is the first stage. Keys and values are written
        behind each cache's `length`, which does not move: the caller calls `advance` when all stages have run, so a
        step that failed somewhere can be run again.
        """
        ...


class Head(Protocol[X_contra]):
    """The last part of a pipeline: it takes z back from the engine, corrected or not."""

    @property
    def vocab(self) -> int:
        """V, the number of token ids."""
        ...

    @property
    def logit_scale(self) -> float:
        """The factor of the logits (1: none)."""
        ...

    @property
    def softcap(self) -> float:
        """The soft cap of the logits (0: none)."""
        ...

    def gather(self, states: Sequence[X_contra], rows: Any) -> Floats:
        """Return these rows of K states (T, D) as NumPy: (rows, K, D) float32. `rows`: what indexes such a state."""
        ...

    def logits(self, z_TD: Floats) -> Floats:
        """Return the logits (T, V) of z (T, D)."""
        ...

    def read(self, z_TD: Floats, targets: Ints, top: int) -> tuple[Floats, Ints, Floats]:
        """As `Model.read`."""
        ...

    def head_rows(self, ids: Ints) -> tuple[Floats, Floats]:
        """As `Model.head_rows`."""
        ...


class ForwardStates(Generic[X]):
    """What one packed step of a pipeline gave: see `Forward`.

    order: where each row of the step's chunks was run, (T,); None: rows were run in their own order.
    """

    def __init__(self, head: Head[X], z: X, tapped: Mapping[int, X], order: NDArray[np.int64] | None) -> None:
        self._head = head
        self._z = z
        self._tapped = tapped
        self._order = order

    def z(self, rows: Rows) -> Floats:
        """Return z, the state after the final norm, of these rows: (rows, D) float32."""
        return self._head.gather([self._z], self._index(rows))[:, 0]

    def tapped(self, rows: Rows, layers: Sequence[int]) -> Floats:
        """Return the states of these rows at these layers, in this order: (rows, K, D) float32.

        Raises KeyError for a layer that the step was not asked for.
        """
        return self._head.gather([self._tapped[layer] for layer in layers], self._index(rows))

    def _index(self, rows: Rows) -> Any:
        if self._order is not None:
            return self._order[rows]
        return rows if isinstance(rows, slice) else list(rows)


class Pipeline(Generic[X]):
    """A model made of its parts: an embedding, stages that follow each other through all blocks, and a head.

    A pipeline of one stage uses that stage's caches and memory themselves, so it costs nothing beside the stage.
    Raises InputError when the stages are not blocks 0 … N of one model, one behind the other.
    """

    def __init__(self, embedding: Embedding[X], stages: Sequence[Stage[X]], head: Head[X]) -> None:
        self.embedding = embedding
        self.stages = list(stages)
        self.head = head
        cuts = [0, *(stage.last for stage in stages)]
        if [stage.first for stage in stages] != cuts[:-1] or {stage.of for stage in stages} != {cuts[-1]}:
            got = ", ".join(f"{stage.first} to {stage.last} of {stage.of}" for stage in stages) or "none"
            raise InputError(f"the stages must be all blocks of one model, one behind the other, got {got}")
        self.blocks = cuts[-1]
        self.width = embedding.width
        self.vocab = head.vocab
        self.context = min(stage.context for stage in stages)
        self.logit_scale = head.logit_scale
        self.softcap = head.softcap
        self.bits = stages[0].bits
        self.memory: Memory = stages[0].memory if len(stages) == 1 else JointMemory([s.memory for s in stages])

    def new_cache(self, tokens: int) -> Cache:
        """Make a KV cache for at most `tokens` tokens; its memory is reserved until it is let go. Raises Busy."""
        return self.cache_in(self.memory.reserve(tokens))

    def cache_in(self, reservation: Reservation) -> Cache:
        """Make a KV cache in memory that is reserved already. Raises Busy when there are too many caches."""
        parts = [stage.cache_in(reservation) for stage in self.stages]
        return parts[0] if len(parts) == 1 else JointCache(parts)

    def forward(self, chunks: Sequence[Chunk], layers: Collection[int] = ()) -> ForwardStates[X]:
        """Run one packed step. Every chunk's cache grows by its ids. Only `layers` can be tapped afterwards."""
        places = self.stages[0].order([self._part(chunk, 0) for chunk in chunks])
        ordered = chunks if places is None else [chunks[place] for place in places]
        x = self.embedding.embed([token for chunk in ordered for token in chunk.ids])
        tapped: dict[int, X] = {}
        for n, stage in enumerate(self.stages):
            own = [layer for layer in layers if stage.first < layer <= stage.last or layer == n == 0]
            x, states = stage.run(x, [self._part(chunk, n) for chunk in ordered], own)
            tapped |= states
        for chunk in chunks:
            chunk.cache.advance(len(chunk.ids))
        return ForwardStates(self.head, x, tapped, None if places is None else row_order(chunks, places))

    def _part(self, chunk: Chunk, stage: int) -> Chunk:
        """The chunk as the stage of this number takes it: with its own part of the cache."""
        return chunk if len(self.stages) == 1 else Chunk(chunk.ids, chunk.cache.parts[stage])

    def logits(self, z_TD: Floats) -> Floats:
        """Return the logits (T, V) float32 of z (T, D), corrected or not."""
        return self.head.logits(z_TD)

    def read(self, z_TD: Floats, targets: Ints, top: int) -> tuple[Floats, Ints, Floats]:
        """As `Model.read`."""
        return self.head.read(z_TD, targets, top)

    def head_rows(self, ids: Ints) -> tuple[Floats, Floats]:
        """Return the head's weight rows (n, D) and biases (n,) of these token ids."""
        return self.head.head_rows(ids)


def row_order(chunks: Sequence[Chunk], places: Sequence[int]) -> NDArray[np.int64]:
    """Return where each row of `chunks` is among the rows of the chunks in the order `places`: (T,)."""
    starts = np.cumsum([0, *(len(chunk.ids) for chunk in chunks)])
    order = np.empty(starts[-1], np.int64)
    row = 0
    for place in places:
        count = len(chunks[place].ids)
        order[starts[place] : starts[place + 1]] = np.arange(row, row + count)
        row += count
    return order


def ranges(blocks: int, cuts: Sequence[int]) -> list[tuple[int, int]]:
    """Return the blocks (first, last + 1) of each stage of a model of `blocks` blocks that is cut before `cuts`.

    Raises InputError unless the cuts rise from 1 to `blocks` - 1.
    """
    ends = [0, *cuts, blocks]
    if any(a >= b for a, b in pairwise(ends)):
        raise InputError(
            f"a model of {blocks} blocks must be cut before blocks that rise, 1 to {blocks - 1}, got {cuts}"
        )
    return list(pairwise(ends))
