"""The tap: which hidden states go down to the device, and in what form. Public, untrained, the same for every user.

    code_l = codec(P_l · layernorm(h_l))        for each tapped layer l; P_l an orthonormal (R, D) matrix of (seed, l)

A tap is named by (layers, R, seed, codec) and the name is part of a plugin: "l0.4.8-r64-s0-int8". A layer's code does
not depend on which other layers are tapped, so several parts of a plugin share one tap: `union`. A *context slice* is
some layers of a tap and the first numbers of each code: what a row carries that no answer is asked for.
Codecs: `int8` (one scale a vector), `fp16`, and `raw` (R = D, no layernorm, no projection, fp16: the paper's wire).

Letters: T tokens, K tapped layers, N blocks, D width, R code width. Layer l is Hugging Face's `hidden_states[l]`, so 0
is the embedding and N is z, the state after the final norm. It does not know where hidden states come from.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from sideplug.contract.codec import pack, unpack
from sideplug.contract.errors import InputError

CODECS = ("int8", "fp16", "raw")
MAX_LAYERS = 256
MAX_RANK = 16384
MAX_PROJECTED_RANK = 256
MAX_PROJECTION = 1 << 24  # numbers, 64 MiB: what a tap may make the cloud hold
_NAME = re.compile(r"l(\d{1,3}(?:\.\d{1,3})*)-r(\d{1,5})-s(\d{1,9})-(int8|fp16|raw)")


@dataclass(frozen=True)
class Tap:
    """K layers, code width R, the projection's seed, and the codec."""

    layers: tuple[int, ...]
    rank: int
    seed: int = 0
    codec: str = "int8"

    def __post_init__(self) -> None:
        ordered = tuple(sorted(set(self.layers)))
        if not self.layers or self.layers != ordered or len(ordered) > MAX_LAYERS or ordered[0] < 0:
            raise InputError(f"a tap's layers must be 1 to {MAX_LAYERS} rising numbers, got {list(self.layers)}")
        if not 1 <= self.rank <= MAX_RANK:
            raise InputError(f"a tap's rank must be 1 to {MAX_RANK}, got {self.rank}")
        if self.codec not in CODECS:
            raise InputError(f"a tap's number format must be one of {', '.join(CODECS)}, got {self.codec!r}")

    @property
    def name(self) -> str:
        """Its name, as a plugin and OPEN carry it."""
        return f"l{'.'.join(map(str, self.layers))}-r{self.rank}-s{self.seed}-{self.codec}"

    @classmethod
    def parse(cls, name: str) -> Tap:
        """The tap of a name. Raises InputError."""
        match = _NAME.fullmatch(name)
        if not match:
            raise InputError(f"a tap's name must look like l0.4.8-r64-s0-int8, got {name[:80]!r}")
        layers, rank, seed, codec = match.groups()
        return cls(tuple(map(int, layers.split("."))), int(rank), int(seed), codec)

    @classmethod
    def spread(cls, blocks: int, width: int, count: int = 9, rank: int = 64, codec: str = "int8") -> Tap:
        """The default: `count` layers spread evenly from the embedding (0) to z (N), at most the model's width wide."""
        layers = sorted({round(i * blocks / max(1, count - 1)) for i in range(count)})
        return cls(tuple(layers), min(rank, width), 0, codec)

    @classmethod
    def raw(cls, blocks: int, width: int) -> Tap:
        """Every hidden state, unprojected, fp16: what the paper sends."""
        return cls(tuple(range(blocks + 1)), width, 0, "raw")

    def check(self, blocks: int, width: int) -> None:
        """Raises InputError when a model of N blocks and width D can't be tapped so."""
        if self.layers[-1] > blocks:
            raise InputError(f"a tap's layers must be 0 to {blocks} for this model, got {self.layers[-1]}")
        if self.rank > width or (self.codec == "raw" and self.rank != width):
            raise InputError(f"a tap's rank must be at most the model's width {width} (raw: equal), got {self.rank}")
        size = len(self.layers) * width * self.rank
        if self.codec != "raw" and (self.rank > MAX_PROJECTED_RANK or size > MAX_PROJECTION):
            raise InputError(
                f"a projected tap must have a rank of at most {MAX_PROJECTED_RANK} and layers · width · rank of at "
                f"most {MAX_PROJECTION}, got rank {self.rank} and {size}"
            )

    @classmethod
    def union(cls, taps: Sequence[Tap]) -> Tap:
        """The tap of all layers of these, which must agree in rank, seed and codec. Raises InputError."""
        first = taps[0]
        if any((tap.rank, tap.seed, tap.codec) != (first.rank, first.seed, first.codec) for tap in taps):
            names = ", ".join(tap.name for tap in taps)
            raise InputError(f"the parts of a plugin must tap with one rank, seed and number format, got {names}")
        return cls(tuple(sorted({layer for tap in taps for layer in tap.layers})), first.rank, first.seed, first.codec)

    def rows_of(self, other: Tap) -> list[int]:
        """Where the layers of `other` stand among this tap's."""
        return [self.layers.index(layer) for layer in other.layers]

    def projection_bytes(self, width: int) -> int:
        """The bytes that its projection takes for a model of this width."""
        return 0 if self.codec == "raw" else 4 * len(self.layers) * width * self.rank

    def encoder(self, width: int) -> Encoder:
        """Its encoder for a model of this width. This makes the projection, which may take a while."""
        return Encoder(self, None if self.codec == "raw" else _projection(self.layers, width, self.rank, self.seed))

    @property
    def bytes_per_token(self) -> int:
        """Payload bytes of one token's codes and scales."""
        count = len(self.layers)
        return count * self.rank + 4 * count if self.codec == "int8" else 2 * count * self.rank

    def encode(self, hidden_TKD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Hidden states (T, K, D) float → codes (T, K, R) and scales (T, K) float32 (empty (T, 0) but for int8).

        The last two projections are remembered; who has more taps at once keeps an `encoder` of each.
        """
        return _encoder(self, hidden_TKD.shape[2]).encode(hidden_TKD)

    def decode(self, codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
        """What `encode` gave → (T, K, R) float32."""
        return unpack(codes, scales)


def _layernorm(x: np.ndarray, eps: float = 1e-5) -> np.ndarray:
    x = x - x.mean(axis=-1, keepdims=True)
    scaled: np.ndarray = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)
    return scaled


def _projection(layers: tuple[int, ...], width: int, rank: int, seed: int) -> np.ndarray:
    """(K, D, R) float32, orthonormal columns: the same numbers wherever NumPy runs (QR's signs are fixed)."""
    out = np.empty((len(layers), width, rank), np.float32)
    for k, layer in enumerate(layers):
        gaussian = np.random.Generator(np.random.PCG64([seed, layer])).standard_normal((width, rank))
        q, r = np.linalg.qr(gaussian)
        # Orthonormal columns give each code a variance of 1 for a layernormed state, as a Gaussian/sqrt(D) would.
        out[k] = q * np.sign(np.diag(r))
    return out


@dataclass(frozen=True, eq=False)
class Encoder:
    """A tap with its projection (K, D, R) float32, which lives as long as this; None for the codec raw."""

    tap: Tap
    projection_KDR: np.ndarray | None

    def encode(self, hidden_TKD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Hidden states (T, K, D) float → codes (T, K, R) and scales (T, K) float32 (empty (T, 0) but for int8)."""
        if self.projection_KDR is None:
            return pack(hidden_TKD, int8=False)
        normed_KTD = _layernorm(np.asarray(hidden_TKD, np.float32)).transpose(1, 0, 2)
        code_TKR = (normed_KTD @ self.projection_KDR).transpose(1, 0, 2)
        return pack(code_TKR, int8=self.tap.codec == "int8")


@lru_cache(maxsize=2)
def _encoder(tap: Tap, width: int) -> Encoder:
    return tap.encoder(width)


@dataclass(frozen=True)
class ContextSlice:
    """What a context row carries of a tap: the codes of `layers`, the first `rank` numbers of each, their scales.

    Raises InputError where the tap does not have them.
    """

    tap: Tap
    layers: tuple[int, ...]
    rank: int

    def __post_init__(self) -> None:
        if not self.layers or self.layers != tuple(sorted(set(self.layers) & set(self.tap.layers))):
            raise InputError(f"a context's layers must be among the tap's {list(self.tap.layers)}")
        if not 1 <= self.rank <= self.tap.rank:
            raise InputError(f"a context's rank must be 1 to {self.tap.rank}, got {self.rank}")

    @property
    def bytes_per_token(self) -> int:
        """Payload bytes of one row."""
        count = len(self.layers)
        return count * self.rank + 4 * count if self.tap.codec == "int8" else 2 * count * self.rank

    def cut(self, codes: np.ndarray, scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The tap's codes (T, K, R) and scales (T, K) → this slice's (T, K', R') and (T, K')."""
        index = [self.tap.layers.index(layer) for layer in self.layers]
        return codes[:, index, : self.rank], scales[:, index] if scales.shape[1] else scales

    def decode(self, codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
        """What `cut` gave → (T, K, R) float32 as the tap has it, with zeros in what the slice leaves out."""
        out = np.zeros((len(codes), len(self.tap.layers), self.tap.rank), np.float32)
        index = [self.tap.layers.index(layer) for layer in self.layers]
        out[:, index, : self.rank] = unpack(codes, scales)
        return out
