"""OpenAI's embeddings, of the base's own states: the mean of z over a text's tokens, with length 1.

A base that was trained to write is no model of sentences: texts about the same thing are nearer to each other than
others, and a model that was trained for that is better. Each text passes through the cloud, which keeps none of it.
Test: pytest tests/device/test_newer_apis.py
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sideplug.contract.errors import InputError, ProtocolError
from sideplug.contract.frames import Example, ModelInfo, Read
from sideplug.contract.text import Prompt
from sideplug.device.gateway.json_fields import JsonObject, json_object, shown, typed, whole
from sideplug.device.session import Session

MOST_TEXTS = 256


@dataclass(frozen=True)
class EmbeddingsRequest:
    """texts: to be embedded. dimensions: the first so many numbers; 0: all. as_base64: float32, little-endian."""

    model: str
    texts: tuple[str, ...]
    dimensions: int
    as_base64: bool


def parse(body: bytes) -> EmbeddingsRequest:
    """The request of a body. Raises InputError, in one sentence."""
    fields = json_object(body)
    given = fields.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not 1 <= len(texts) <= MOST_TEXTS:
        raise InputError(f"input must be a text, or a list of 1 to {MOST_TEXTS} texts, got {shown(given)}")
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise InputError("input must have texts only, none of them empty (token ids can't be embedded here)")
    form = typed(fields, "encoding_format", str, "float")
    if form not in ("float", "base64"):
        raise InputError(f"encoding_format must be float or base64, got {shown(form)}")
    return EmbeddingsRequest(
        typed(fields, "model", str, ""), tuple(texts), whole(fields, "dimensions", 0), form == "base64"
    )


def check_dimensions(request: EmbeddingsRequest, model: ModelInfo) -> None:
    """Raises InputError for more dimensions than the base has."""
    if not 0 <= request.dimensions <= model.width:
        raise InputError(f"dimensions must be 1 to {model.width} for this base, got {request.dimensions}")


def embed(session: Session, texts: Sequence[str]) -> tuple[np.ndarray, int]:
    """Unit vectors (B, D) float32 of texts, and how many tokens they have. Raises CloudError, InputError."""
    vectors, tokens = np.zeros((len(texts), session.model.width), np.float32), 0
    for number, text in enumerate(texts):
        session.send(Read(number, text, False, **Prompt(text="").to_read()))
        frame = session.receive()
        if not isinstance(frame, Example) or frame.number != number:
            raise ProtocolError(f"the cloud must answer READ by its EXAMPLE, got {frame.kind.name}")
        vectors[number] = unit(frame.z.astype(np.float32).mean(0))
        tokens += len(frame.ids)
    return vectors, tokens


def unit(vector_D: np.ndarray) -> np.ndarray:
    """A vector with length 1; zeros stay zeros."""
    length = float(np.linalg.norm(vector_D))
    return vector_D / np.float32(length) if length else vector_D


def answer(request: EmbeddingsRequest, model: str, vectors_BD: np.ndarray, tokens: int) -> JsonObject:
    """The response's body."""
    if request.dimensions:
        vectors_BD = np.stack([unit(vector_D[: request.dimensions]) for vector_D in vectors_BD])
    data = [
        {"object": "embedding", "index": number, "embedding": _written(vector_D, request.as_base64)}
        for number, vector_D in enumerate(vectors_BD)
    ]
    return {"object": "list", "data": data, "model": model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}


def _written(vector_D: np.ndarray, as_base64: bool) -> str | list[float]:
    if as_base64:
        return base64.b64encode(vector_D.astype("<f4").tobytes()).decode()
    return [round(float(number), 7) for number in vector_D]
