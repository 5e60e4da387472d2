"""The hidden states of a frozen model, token by token, from a cloud: for researchers. docs/STATES.md

    with states.listen("ws://127.0.0.1:8765", layers=[0, 15, 30]) as listening:
        for step in listening.generate("Is it far to the mill?", max_tokens=20):
            print(step.text, step.states.shape)

`generate` streams the states while the model writes; `read` gives those of a text. It is the wire of plugins with a
gate that is always open and corrections of zero, so nothing in the cloud exists for this alone.
Test: pytest tests/device/test_states.py
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sideplug.contract.defaults import DEFAULT_URL
from sideplug.contract.errors import InputError, ProtocolError
from sideplug.contract.frames import Example, ModelInfo, Read
from sideplug.contract.sampling import Sampling
from sideplug.contract.tap import Tap
from sideplug.contract.text import Prompt
from sideplug.device.address import Address
from sideplug.device.client import Client
from sideplug.device.responders import Listener
from sideplug.device.session import Session


@dataclass(frozen=True)
class Step:
    """A token of a reply, and the states that predicted it.

    position: of the token, from the prompt's first one, 0. states (K, D) or projected (K, R) float32: of the position
    before it, one row a tapped layer. text: "" where it is the first part of a character.
    """

    position: int
    token: int
    text: str
    states: np.ndarray


@dataclass(frozen=True)
class Reading:
    """A given text: ids (T,) of its reply, states (T, K, D) or (T, K, R) of the positions before them, z (T, D) too."""

    ids: np.ndarray
    states: np.ndarray
    z: np.ndarray


class Listening:
    """Hidden states from one cloud. model: its shape. layers: those that are tapped (0 the embedding, N is z)."""

    def __init__(self, session: Session, listener: Listener, tap: Tap) -> None:
        self._session, self._listener, self._tap = session, listener, tap

    @property
    def model(self) -> ModelInfo:
        """The base model."""
        return self._session.model

    @property
    def layers(self) -> tuple[int, ...]:
        """The tapped layers."""
        return self._tap.layers

    def __enter__(self) -> Listening:
        return self

    def __exit__(self, *error: object) -> None:
        self._session.close()

    def generate(self, prompt: str | Prompt, max_tokens: int = 64, sampling: Sampling = Sampling()) -> Iterator[Step]:
        """The reply to a prompt (a string is a user's message), greedy unless `sampling` says otherwise."""
        reply = self._session.generate(prompt, max_tokens, sampling)
        for piece in reply:
            first = reply.usage.prompt_tokens + len(reply.ids) - len(piece.ids)
            for n, token in enumerate(piece.ids):
                last = n == len(piece.ids) - 1
                yield Step(first + n, token, piece.text if last else "", self._listener.heard.pop(first + n))

    def read(self, prompt: str | Prompt, reply: str) -> Reading:
        """The states of a reply that is given, run through the model once. Raises CloudError, InputError."""
        asked = Prompt.user(prompt) if isinstance(prompt, str) else prompt
        self._session.send(Read(0, reply, False, **asked.to_read()))
        frame = self._session.receive()
        if not isinstance(frame, Example):
            raise ProtocolError(f"the cloud must answer READ by EXAMPLE, got {frame.kind.name}")
        return Reading(frame.ids, self._tap.decode(frame.codes, frame.scales), frame.z.astype(np.float32))


def listen(
    cloud: str | Address = DEFAULT_URL,
    layers: Sequence[int] | None = None,
    rank: int = 0,
    seed: int = 0,
    codec: str = "",
) -> Listening:
    """A listener, for a `with` statement. cloud: its URL, or an Address with a key or a pin. layers: any of 0 to N.

    layers None: all. rank 0: raw (D numbers a layer, float16 on the wire); else layernormed and projected to so many by
    a seeded orthonormal matrix, int8 on the wire unless `codec` is "fp16".
    Raises InputError, Unreachable and the other errors of a session.

    >>> with sideplug.listen(cloud, layers=[0, 2]) as listening:
    ...     steps = list(listening.generate("Is it far to the mill?", max_tokens=3))
    >>> steps[0].states.shape == (2, listening.model.width)
    True
    """
    client = Client.at(cloud)
    model = client.model()
    if not rank and codec not in ("", "raw"):
        raise InputError(f"{codec} is the format of projected states: give a rank")
    chosen = tuple(range(model.blocks + 1)) if layers is None else tuple(sorted(set(layers)))
    tap = Tap(chosen, rank or model.width, seed if rank else 0, (codec or "int8") if rank else "raw")
    tap.check(model.blocks, model.width)
    listener = Listener(tap, model.width)
    return Listening(client.connect(responder=listener), listener, tap)
