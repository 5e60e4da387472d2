"""Our own device: a session with a cloud, with a plugin or without."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sideplug.bench.sessions import open_session
from sideplug.contract.gate import Gate
from sideplug.contract.sampling import Sampling
from sideplug.contract.tap import Tap
from sideplug.contract.text import Prompt
from sideplug.device.plugin import Plugin
from sideplug.device.runtime import DecodeOptions, Session
from sideplug.training import tape
from sideplug.training.data import Example


@dataclass
class Reply:
    """A reply, and when its tokens came, in seconds since it was asked for. Bytes are counted on the line itself.

    round_trips: how many times the text waited for the device.
    """

    text: str = ""
    tokens: int = 0
    round_trips: int = 0
    times_s: list[float] = field(default_factory=list)


class Device:
    """A session with this cloud; `plugin` None: the base alone."""

    def __init__(self, url: str, plugin: Plugin | None, gate: Gate, options: DecodeOptions) -> None:
        self._url, self._plugin, self._gate, self._options = url, plugin, gate, options
        self._session = open_session(url, plugin, gate)

    def prompt(self, wire: dict[str, Any]) -> Prompt:
        """Return what the cloud is asked, for what the user asks."""
        return Prompt.from_wire(wire)

    def reply(self, prompt: dict[str, Any], max_tokens: int, temperature: float, seed: int) -> dict[str, Any]:
        """Return a Reply as a dict."""
        reply = Reply()
        start = time.perf_counter()
        sampling = Sampling(temperature, seed=seed)
        for piece in self._session.generate(self.prompt(prompt), max_tokens, sampling, self._options):
            reply.text += piece.text
            reply.times_s += [time.perf_counter() - start] * len(piece.ids)
        reply.tokens, reply.round_trips = len(reply.times_s), self._session.usage.round_trips
        return asdict(reply)

    def losses(self, examples: list[dict[str, Any]]) -> list[list[float]]:
        """Return [nats, tokens] of each example's reply, as the gate decides token by token."""
        texts = [Example(self.prompt(example["prompt"]), example["reply"], "") for example in examples]
        session = self._session if self._plugin else self._session_for_reading()
        judged = tape.score(session, texts)
        opens = self._gate.opens(self._gate.scores(judged.z_TD, judged.starts))
        nats = [-float(p if o else b) for p, b, o in zip(judged.plugin, judged.base, opens, strict=True)]
        ends = [*judged.starts[1:], len(nats)]
        return [[sum(nats[a:b]), int(b - a)] for a, b in zip(judged.starts, ends, strict=True)]

    def _session_for_reading(self) -> Session:
        """Texts are read for a plugin: an untrained one of a single layer."""
        model = self._session.model
        tap = Tap.spread(model.blocks, model.width, 1, 8)
        plugin = Plugin.new("ladder", model.fingerprint, model.name, tap, 8, model.width)
        return open_session(self._url, plugin, self._gate)


def make(url: str, plugin: str = "", gate: str = "", ahead: int = 0, lookahead: bool = False) -> Device:
    """Return the device with the plugin of this folder; gate: shut, open, or the plugin's own ("")."""
    loaded = Plugin.load(Path(plugin)) if plugin else None
    chosen = Gate(gate) if gate or loaded is None else loaded.gate
    return Device(url, loaded, chosen, DecodeOptions(ahead, lookahead=lookahead))
