"""Our own device: a session with a cloud, with a plugin or without."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sideplug.bench.prompts import Record, prompt_of
from sideplug.bench.sessions import open_session
from sideplug.contract.gate import Gate
from sideplug.contract.sampling import Sampling
from sideplug.contract.text import Prompt
from sideplug.device.reply import DecodeOptions
from sideplug.device.session import Session
from sideplug.plugins import Plugin
from sideplug.readers import Example
from sideplug.training import recorder
from sideplug.training.recipe import FACTS, Recipe


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

    def prompt(self, record: Record) -> Prompt:
        """Return what the cloud is asked, for what the user asks."""
        return prompt_of(record)

    def reply(
        self, prompt: Record, max_tokens: int, temperature: float, seed: int, top_p: float = 1.0
    ) -> dict[str, Any]:
        """Return a Reply as a dict."""
        told = Reply()
        start = time.perf_counter()
        sampling = Sampling(temperature, top_p=top_p, seed=seed)
        pieces = self._session.generate(self.prompt(prompt), max_tokens, sampling, self._options)
        for piece in pieces:
            told.text += piece.text
            told.times_s += [time.perf_counter() - start] * len(piece.ids)
        told.tokens, told.round_trips = len(told.times_s), pieces.usage.round_trips
        return asdict(told)

    def losses(self, examples: list[Record]) -> list[list[float]]:
        """Return the nats of each token of each example's reply, as the gate decides token by token."""
        texts = [Example(self.prompt(example["prompt"]), example["reply"], "") for example in examples]
        with self._session_for_reading() if self._plugin is None else nullcontext(self._session) as session:
            judged = recorder.score(session, texts)
        opens = self._gate.opens(self._gate.scores(judged.z_TD, judged.starts))
        nats = [-float(p if o else b) for p, b, o in zip(judged.plugin, judged.base, opens, strict=True)]
        ends = [*judged.starts[1:], len(nats)]
        return [nats[a:b] for a, b in zip(judged.starts, ends, strict=True)]

    def _session_for_reading(self) -> Session:
        """Texts are scored for a plugin: a small untrained one, which leaves the base as it is."""
        plugin = Recipe(FACTS, taps=1, rank=8, width=8).new_plugin(self._session.model)
        return open_session(self._url, plugin, self._gate)


def make(url: str, plugin: str = "", gate: str = "", window: int = 0, drafts: bool = False) -> Device:
    """Return the device with the plugin of this folder; gate: shut, open, or the plugin's own ("")."""
    loaded = Plugin.load(Path(plugin)) if plugin else None
    chosen = Gate(gate) if gate or loaded is None else loaded.trained.gate
    return Device(url, loaded, chosen, DecodeOptions(window, drafts))
