"""A small sentence encoder on the device: all-MiniLM-L6-v2 (Apache-2.0) in NumPy, its weights kept as int8.

It turns texts into unit vectors, and, with the low-rank change of a `Verifier` (see verifier.py), reads two texts side
by side. Equations: BERT (Devlin et al., 2019); mean of the last layer's rows (Reimers and Gurevych, 2019). A row of a
weight is kept as int8 and one scale, and is turned to float32 while it is used, so 23 MB stay in memory, not 90.

Letters: B texts, T tokens, E the vectors' width (384). It does not know what a memory is. Test: pytest
tests/memory/test_encoder.py
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from sideplug.contract.errors import PluginError

WIDTH, HEADS, LAYERS = 384, 12, 6
MAX_TOKENS = 128  # of a text, or of two texts side by side
MOST_PIECES, LATIN = 1.5, 0.8  # for a word on average, and the least share of letters: of a text that it reads
UNKNOWN, FIRST, LAST = 100, 101, 102  # [UNK], [CLS], [SEP]
_WORD = re.compile(r"[^\W_]+|[^\w\s]|_")
_CHUNK = 16  # texts that are run together
LINEAR = tuple(
    f"encoder.layer.{layer}.{name}"
    for layer in range(LAYERS)
    for name in (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    )
)
_EMBEDDINGS = "embeddings.word_embeddings"
LowRank = Mapping[str, tuple[np.ndarray, np.ndarray]]  # weight → (A (r, in), B (out, r)): W + B A


def quantize(weights: Mapping[str, np.ndarray], vocabulary: str) -> bytes:
    """Return the encoder's file: matrices as int8 with a scale for each row, the rest as float32.

    weights: all-MiniLM-L6-v2's tensors by their names. vocabulary: its word pieces, one a line.
    """
    kept: dict[str, np.ndarray] = {"vocabulary": np.frombuffer(vocabulary.encode(), np.uint8)}
    for name, value in weights.items():
        if value.dtype.kind != "f" or name.startswith("pooler"):
            continue
        if name.removesuffix(".weight") in {*LINEAR, _EMBEDDINGS}:
            scale = np.maximum(np.abs(value).max(1, keepdims=True) / 127, 1e-12).astype(np.float32)
            kept[name] = np.rint(value / scale).astype(np.int8)
            kept[name + ".scale"] = scale
        else:
            kept[name] = value.astype(np.float32)
    return safetensors.numpy.save(kept)


@dataclass
class Encoder:
    """The encoder. Its methods may be called from several threads."""

    weights: dict[str, np.ndarray]
    _pieces: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self._pieces:
            lines = self.weights.pop("vocabulary").tobytes().decode().split("\n")
            self._pieces.update((piece, number) for number, piece in enumerate(lines))

    @classmethod
    def load(cls, path: Path) -> Encoder:
        """Return the encoder of a file that `quantize` made. Raises PluginError."""
        try:
            return cls(dict(safetensors.numpy.load_file(path)))
        except (OSError, safetensors.SafetensorError, KeyError, UnicodeDecodeError) as error:
            raise PluginError(f"the sentence encoder {path} is damaged: remove it, it is fetched anew") from error

    # Tokens

    def tokens(self, text: str) -> list[int]:
        """Return the word pieces of a text, without [CLS] and [SEP]."""
        return [piece for word in _words(text) for piece in self._word(word)]

    def reads(self, text: str) -> bool:
        """Return whether a text is in its language, English: in Latin letters, most words being one piece.

        Of a person's questions in English 4 % have more pieces than that, in German 10 % have fewer, in Spanish 38 %.
        """
        words = [word for word in _words(text) if any(char.isalpha() for char in word)]
        letters = [char for char in text if char.isalpha()]
        latin = sum(unicodedata.name(char, "").startswith("LATIN") for char in letters)
        few = sum(len(self._word(word)) for word in words) <= MOST_PIECES * len(words)
        return few and latin >= LATIN * len(letters)

    def _word(self, word: str) -> list[int]:
        found, start = [], 0
        while start < len(word):
            end = min(len(word), start + 32)
            before = "##" if start else ""
            while end > start and before + word[start:end] not in self._pieces:
                end -= 1
            if end == start or len(word) > 100:
                return [UNKNOWN]
            found.append(self._pieces[before + word[start:end]])
            start = end
        return found

    # Vectors

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """Return unit vectors (B, E) float32 of texts; the first 128 tokens of each count."""
        found = np.zeros((len(texts), WIDTH), np.float32)
        rows = [[FIRST, *self.tokens(text)[: MAX_TOKENS - 2], LAST] for text in texts]
        for start, ids_BT, mask_BT in _batches(rows):
            hidden_BTE = self.run(ids_BT, mask_BT)
            mean_BE = (hidden_BTE * mask_BT[..., None]).sum(1) / mask_BT.sum(1, keepdims=True)
            found[start : start + len(mean_BE)] = mean_BE / np.linalg.norm(mean_BE, axis=1, keepdims=True)
        return found

    def run(
        self, ids_BT: np.ndarray, mask_BT: np.ndarray, change: LowRank | None = None, add_BTE: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the last layer's rows (B, T, E).

        mask_BT: 1.0 for a token, 0.0 for padding. change: added to the weights. add_BTE: added to the embeddings.
        """
        w = self.weights
        rows = w[f"{_EMBEDDINGS}.weight"][ids_BT] * w[f"{_EMBEDDINGS}.weight.scale"][ids_BT]
        positions = w["embeddings.position_embeddings.weight"][: ids_BT.shape[1]]
        rows = rows + positions + w["embeddings.token_type_embeddings.weight"][0]
        x = self._norm(rows if add_BTE is None else rows + add_BTE, "embeddings.LayerNorm")
        batch, length, _ = x.shape
        blocked = (1.0 - mask_BT)[:, None, None, :] * np.float32(-1e9)
        for layer in range(LAYERS):
            name = f"encoder.layer.{layer}."

            def heads(value: np.ndarray) -> np.ndarray:
                return value.reshape(batch, length, HEADS, WIDTH // HEADS).transpose(0, 2, 1, 3)

            query, key, value = (
                heads(self._linear(x, f"{name}attention.self.{each}", change)) for each in ("query", "key", "value")
            )
            scores = query @ key.transpose(0, 1, 3, 2) / np.float32(math.sqrt(WIDTH // HEADS)) + blocked
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            mixed = (scores / scores.sum(-1, keepdims=True)) @ value
            mixed = mixed.transpose(0, 2, 1, 3).reshape(batch, length, WIDTH)
            x = self._norm(
                x + self._linear(mixed, name + "attention.output.dense", change), name + "attention.output.LayerNorm"
            )
            inner = gelu(self._linear(x, name + "intermediate.dense", change))
            x = self._norm(x + self._linear(inner, name + "output.dense", change), name + "output.LayerNorm")
        return x

    def _linear(self, x: np.ndarray, name: str, change: LowRank | None) -> np.ndarray:
        w = self.weights
        flat = x.reshape(-1, x.shape[-1])
        out = (flat @ w[f"{name}.weight"].astype(np.float32).T) * w[f"{name}.weight.scale"][:, 0] + w[f"{name}.bias"]
        if change is not None and name in change:
            a, b = change[name]
            out += (flat @ a.T) @ b.T
        return np.asarray(out.reshape(*x.shape[:-1], -1))

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        spread = np.sqrt((centred * centred).mean(-1, keepdims=True) + 1e-12)
        return np.asarray(centred / spread * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"])


def gelu(x: np.ndarray) -> np.ndarray:
    """Return x Φ(x), with Abramowitz and Stegun's 7.1.26 for the error function (error below 2e-7)."""
    scaled = np.abs(x) * np.float32(math.sqrt(0.5))
    t = 1 / (1 + np.float32(0.3275911) * scaled)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    error = np.sign(x) * (1 - series * np.exp(-scaled * scaled))
    return np.asarray(0.5 * x * (1 + error), np.float32)


def _words(text: str) -> list[str]:
    """The words and signs of a text, as BERT's tokenizer has them."""
    letters = unicodedata.normalize("NFD", text.lower())
    return _WORD.findall(_spaced("".join(char for char in letters if unicodedata.category(char) != "Mn")))


def _spaced(text: str) -> str:
    """Return the text with a space around each CJK character, as BERT's tokenizer has it."""
    return "".join(
        f" {char} " if "\u3400" <= char <= "\u9fff" or "\uf900" <= char <= "\ufaff" else char for char in text
    )


def _batches(rows: Sequence[list[int]]) -> Any:
    """Yield (first, ids (B, T), mask (B, T)) of rows that are run together."""
    for start in range(0, len(rows), _CHUNK):
        part = rows[start : start + _CHUNK]
        length = max(map(len, part))
        ids = np.zeros((len(part), length), np.int64)
        mask = np.zeros((len(part), length), np.float32)
        for number, row in enumerate(part):
            ids[number, : len(row)] = row
            mask[number, : len(row)] = 1
        yield start, ids, mask
