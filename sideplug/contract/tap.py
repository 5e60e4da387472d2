"""The tap: which hidden states go down to the device, and in what form. Public, untrained, the same for every user.

    code_k = codec(P_k · layernorm(h_{l_k}))        k = 1…K tapped layers, P_k a seeded orthonormal (R, D) matrix

A tap is named by (layers, R, seed, codec) and the name is part of a plugin's fingerprint: "l0.4.8-r64-s0-int8".
Codecs: `int8` (one scale a vector), `fp16`, and `raw` (R = D, no layernorm, no projection, fp16: the paper's wire).

Letters: T tokens, K tapped layers, N blocks, D width, R code width. Layer l is Hugging Face's `hidden_states[l]`, so 0
is the embedding and N is z, the state after the final norm. It does not know where hidden states come from.
"""

from __future__ import annotations

import re
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
            raise InputError(f"a tap's codec must be one of {', '.join(CODECS)}, got {self.codec!r}")

    @property
    def name(self) -> str:
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

    def prepare(self, width: int) -> None:
        """Make the projection now, so that no step has to wait for it."""
        if self.codec != "raw":
            _projection(len(self.layers), width, self.rank, self.seed)

    @property
    def bytes_per_token(self) -> int:
        """Payload bytes of one token's codes and scales."""
        count = len(self.layers)
        return count * self.rank + 4 * count if self.codec == "int8" else 2 * count * self.rank

    def encode(self, hidden_TKD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Hidden states (T, K, D) float → codes (T, K, R) and scales (T, K) float32 (empty (T, 0) but for int8)."""
        if self.codec == "raw":
            return pack(hidden_TKD, int8=False)
        projection_KDR = _projection(len(self.layers), hidden_TKD.shape[2], self.rank, self.seed)
        normed_KTD = _layernorm(np.asarray(hidden_TKD, np.float32)).transpose(1, 0, 2)
        code_TKR = (normed_KTD @ projection_KDR).transpose(1, 0, 2)
        return pack(code_TKR, int8=self.codec == "int8")

    def decode(self, codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
        """What `encode` gave → (T, K, R) float32."""
        return unpack(codes, scales)


def _layernorm(x: np.ndarray, eps: float = 1e-5) -> np.ndarray:
    x = x - x.mean(axis=-1, keepdims=True)
    scaled: np.ndarray = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)
    return scaled


@lru_cache(maxsize=8)
def _projection(count: int, width: int, rank: int, seed: int) -> np.ndarray:
    """(K, D, R) float32, orthonormal columns: the same numbers wherever NumPy runs (QR's signs are fixed)."""
    out = np.empty((count, width, rank), np.float32)
    for k in range(count):
        gaussian = np.random.Generator(np.random.PCG64([seed, k])).standard_normal((width, rank))
        q, r = np.linalg.qr(gaussian)
        # Orthonormal columns give each code a variance of 1 for a layernormed state, as a Gaussian/sqrt(D) would.
        out[k] = q * np.sign(np.diag(r))
    return out
