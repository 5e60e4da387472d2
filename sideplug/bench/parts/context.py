"""What context rows cost: bytes a token, prefill, and the time to the first token over a network.

A kind that looks back over the text needs the codes of positions that it is not asked about. Here it is a kind that
does nothing with them, so that only their way is measured: whole codes as an ASK has them, and a slice of 3 layers with
16 numbers each. Beside them stand the cloud alone and a plugin that needs no context. Each prompt is new to the cloud.
Test: sideplug bench --part context --quick
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

import numpy as np

from sideplug.bench.meters import machine
from sideplug.bench.parts import Result, Save
from sideplug.bench.processes import served
from sideplug.bench.sessions import open_session
from sideplug.bench.shaper import Network, shaped
from sideplug.bench.spreads import spread
from sideplug.contract.frames import ModelInfo
from sideplug.contract.gate import Gate
from sideplug.contract.tap import ContextSlice, Tap
from sideplug.contract.text import Prompt
from sideplug.plugins import Plugin, TrainedKind, TrainedPart
from sideplug.plugins.base import Params, Past, Saved, Shape
from sideplug.terminal import say

SYSTEMS = ("cloud only", "no context", "whole rows", "sliced rows")


class Counted:
    """A past that counts its rows."""

    length = 0

    def trim(self, length: int) -> None:
        """Forget the rows from `length` on."""
        self.length = length


class Idle(TrainedKind):
    """A kind that corrects nothing. layers, rank: of its context rows; rank 0: it needs no context."""

    name = "idle"

    def __init__(self, model_width: int, layers: tuple[int, ...] = (), rank: int = 0) -> None:
        self._model_width, self._layers, self._rank = model_width, layers, rank
        if rank:
            self.context = "all"  # type: ignore[misc]

    def init(self, shape: Shape, rng: np.random.Generator) -> Params:
        """No parameters."""
        return {}

    def context_slice(self, tap: Tap) -> ContextSlice:
        """See TrainedKind."""
        return ContextSlice(tap, self._layers, self._rank)

    def new_past(self, params: Params) -> Past | None:
        """See TrainedKind."""
        return Counted() if self._rank else None

    def forward(
        self, params: Params, code_TKR: np.ndarray, starts_B: np.ndarray, past: Past | None = None
    ) -> tuple[np.ndarray, Saved]:
        """Δ = 0."""
        if isinstance(past, Counted):
            past.length += len(code_TKR)
        return np.zeros((len(code_TKR), self._model_width), np.float32), None

    def backward(self, params: Params, saved: Saved, d_delta_TD: np.ndarray) -> Params:
        """No gradients."""
        return {}


@dataclass(frozen=True)
class Settings:
    """prompt_tokens: of each prompt; rtt_ms, mbit: of the network beside none."""

    prompt_tokens: tuple[int, ...] = (64, 256, 1024)
    rtt_ms: float = 50
    mbit: float = 10
    rounds: int = 5


QUICK = Settings(prompt_tokens=(64,), rounds=2)


def plugin_of(system: str, model: ModelInfo) -> Plugin | None:
    """The plugin of a system, None for the cloud alone."""
    tap = Tap.spread(model.blocks, model.width)
    kinds = {
        "no context": Idle(model.width),
        "whole rows": Idle(model.width, tap.layers, tap.rank),
        "sliced rows": Idle(model.width, tap.layers[:: max(1, len(tap.layers) // 2)], 16),
    }
    if system not in kinds:
        return None
    return Plugin(model.fingerprint, model.name, [TrainedPart(kinds[system], tap, {}, Gate("open"))])


def run(model: str, settings: Settings, save: Save) -> Result:
    """Time every system with each prompt length, with no network and over it, in turn."""
    rows: list[dict[str, Any]] = []
    rng = np.random.default_rng(0)
    with served(model) as (url, _), shaped(url, Network(settings.rtt_ms, 0, settings.mbit)) as far:
        for rtt, place in ((0.0, url), (settings.rtt_ms, far.url)):
            for tokens in settings.prompt_tokens:
                taken: dict[str, list[tuple[float, float, int]]] = {name: [] for name in SYSTEMS}
                for _ in range(settings.rounds):
                    for name in SYSTEMS:
                        taken[name].append(first_token(place, name, rng.integers(1000, 9000, tokens).tolist()))
                for name in SYSTEMS:
                    rows.append({"rtt_ms": rtt, "prompt_tokens": tokens, **row(name, taken[name], taken["cloud only"])})
                    say(line(rows[-1]))
                save({"machine": machine(), "mbit": settings.mbit, "rows": rows})
    return {"machine": machine(), "mbit": settings.mbit, "rows": rows}


def first_token(url: str, system: str, ids: list[int]) -> tuple[float, float, int]:
    """(seconds to the first token, seconds of the plugin's own work, bytes of CONTEXT) of one prompt."""
    with open_session(url) as opened:
        model = opened.model
    with open_session(url, plugin_of(system, model)) as opened:
        reply = opened.generate(Prompt(ids=tuple(ids)), 2)
        for _ in reply:
            pass
        return reply.usage.first_token_s, reply.usage.plugin_s, opened.link.down["CONTEXT"]


def row(name: str, taken: list[tuple[float, float, int]], base: list[tuple[float, float, int]]) -> dict[str, Any]:
    """A system's figures; the added time is against the cloud alone of the same round."""
    added = [1000 * (ours[0] - theirs[0]) for ours, theirs in zip(taken, base, strict=True)]
    return {
        "system": name,
        "first_token_ms": spread([1000 * each[0] for each in taken]),
        "added_ms": round(statistics.median(added), 1),
        "device_ms": round(1000 * statistics.median(each[1] for each in taken), 1),
        "context_bytes": int(statistics.median(each[2] for each in taken)),
    }


def line(row: dict[str, Any]) -> str:
    """A row as a line of text."""
    a_token = row["context_bytes"] / row["prompt_tokens"]
    return (
        f"{row['rtt_ms']:4.0f} ms  {row['prompt_tokens']:5} tokens  {row['system']:12} first token "
        f"{row['first_token_ms']['median']:7.1f} ms ({row['added_ms']:+7.1f})  {a_token:6.0f} bytes a prompt token"
    )


def summary(result: Result) -> list[str]:
    """A line for each system with each prompt over each network."""
    return [line(row) for row in result["rows"]]
