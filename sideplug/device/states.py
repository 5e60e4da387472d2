"""The hidden states of a frozen model, token by token, from a cloud: for whoever studies them. docs/STATES.md

    with taps.connect("ws://127.0.0.1:8765", layers=[0, 15, 30]) as stream:
        for step in stream.generate("Is it far to the mill?", max_tokens=20):
            print(step.text, step.states.shape)

`generate` streams them as the model writes; `read` has them of a text that is given. It is the wire of plugins with a
gate that is always open and corrections of zero, so nothing in the cloud is there for this alone.
Test: pytest tests/device/test_states.py
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np

from sideplug.contract.codec import pack
from sideplug.contract.errors import InputError, ProtocolError
from sideplug.contract.gate import Gate
from sideplug.contract.sampling import Sampling
from sideplug.contract.tap import Tap
from sideplug.contract.text import Prompt
from sideplug.contract.wire import Frame, Kind
from sideplug.device.address import DEFAULT_URL, Address
from sideplug.device.link import WebSocketLink
from sideplug.device.reconnect import RetryPolicy
from sideplug.device.runtime import Model, Session


@dataclass(frozen=True)
class Step:
    """A token of a reply, and what the model had in its layers when it chose it.

    position: of the token, from the prompt's first one, 0. states (K, D) or projected (K, R) float32: of the position
    before it, one row a tapped layer. text: "" where it is the first part of a character.
    """

    position: int
    token: int
    text: str
    states: np.ndarray


@dataclass(frozen=True)
class Read:
    """A given text: ids (T,) of its reply, states (T, K, D) or (T, K, R) of the positions before them, z (T, D) too."""

    ids: np.ndarray
    states: np.ndarray
    z: np.ndarray


class Listening(Session):
    """A session whose device listens, and corrects nothing."""

    tap: Tap
    heard: dict[int, np.ndarray]  # position → states

    def corrections(self, asked: Frame) -> dict[str, np.ndarray]:
        states = self.tap.decode(asked.tensors["codes"], asked.tensors["scales"])
        self.heard.update(zip(asked["at"], states, strict=True))
        codes, scales = pack(np.zeros((len(states), self.model.width), np.float32), int8=self.tap.codec == "int8")
        return {"delta": codes, "scales": scales}


@dataclass
class Stream:
    """Hidden states from one cloud. `model` says its shape, `layers` which are tapped (0 the embedding, N is z)."""

    _session: Listening

    @property
    def model(self) -> Model:
        return self._session.model

    @property
    def layers(self) -> tuple[int, ...]:
        return self._session.tap.layers

    def generate(self, prompt: str | Prompt, max_tokens: int = 64, sampling: Sampling = Sampling()) -> Iterator[Step]:
        """The reply to a prompt (a string is a user's message), greedy unless `sampling` says otherwise."""
        session = self._session
        session.heard = {}
        for piece in session.generate(_prompt(prompt), max_tokens, sampling):
            for n, token in enumerate(piece.ids):
                at = session.usage.prompt_tokens + len(session.done) - len(piece.ids) + n
                last = n == len(piece.ids) - 1
                yield Step(at, token, piece.text if last else "", session.heard.pop(at))

    def read(self, prompt: str | Prompt, reply: str) -> Read:
        """A reply that is given, run through the model once."""
        link = self._session.link
        link.send(Frame(Kind.READ, {"number": 0, **_prompt(prompt).to_wire(), "reply": reply, "score": False}))
        frame = link.receive()
        if frame.kind is not Kind.EXAMPLE:
            raise ProtocolError(f"the cloud must answer READ by EXAMPLE, got {frame.kind.name}")
        t = frame.tensors
        return Read(t["ids"], self._session.tap.decode(t["codes"], t["scales"]), t["z"].astype(np.float32))


@contextmanager
def connect(
    cloud: str | Address = DEFAULT_URL,
    layers: Sequence[int] | None = None,
    rank: int = 0,
    seed: int = 0,
    codec: str = "",
) -> Iterator[Stream]:
    """`cloud`: its URL, or an Address with a key or a pin. `layers`: any of 0 to N; None: all.

    rank 0: raw (D numbers a layer, float16 on the wire); else layernormed and projected to so many by a seeded
    orthonormal matrix, int8 on the wire unless `codec` is "fp16".
    Raises InputError, Unreachable and the other errors of a session.
    """
    address = Address(cloud) if isinstance(cloud, str) else cloud
    opening = partial(WebSocketLink.open, address)
    asking = Session.open(opening())
    model = asking.model
    asking.link.close()
    if not rank and codec not in ("", "raw"):
        raise InputError(f"codec {codec} is of projected states: give a rank")
    chosen = tuple(range(model.blocks + 1)) if layers is None else tuple(sorted(set(layers)))
    tap = Tap(chosen, rank or model.width, seed if rank else 0, (codec or "int8") if rank else "raw")
    tap.check(model.blocks, model.width)
    session = Listening.open(opening(), tap=tap, gate=Gate("open"), connect=opening, again=RetryPolicy(address.retry_s))
    assert isinstance(session, Listening)
    session.tap, session.heard = tap, {}
    try:
        yield Stream(session)
    finally:
        session.link.close()


def _prompt(prompt: str | Prompt) -> Prompt:
    return Prompt.user(prompt) if isinstance(prompt, str) else prompt
