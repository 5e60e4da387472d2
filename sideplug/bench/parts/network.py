"""Speed over networks: what the gate, the window and drafts save, beside the plain loop and the cloud alone.

Two plugins are trained as a user would: the made-up person of examples/person (short replies to unseen phrasings,
greedy) and the demo's president (prose, continued at temperature 0.7). The device, the network (shaper) and the cloud
are processes of this machine and share its cores, which costs the window most. Speeds are reply tokens behind the
first over the time behind the first. Texts must equal those of the plain loop with the same gate.
Test: sideplug bench --part network --quick
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sideplug.bench.meters import machine
from sideplug.bench.parts import Result, Save
from sideplug.bench.processes import command, served
from sideplug.bench.sessions import open_session
from sideplug.bench.shaper import Network, shaped
from sideplug.bench.sotu import LINCOLN, messages
from sideplug.bench.spreads import spread
from sideplug.bench.tasks import PERSON
from sideplug.contract.errors import Stopped
from sideplug.contract.gate import Gate
from sideplug.contract.sampling import Sampling
from sideplug.contract.text import Prompt
from sideplug.device.head import DeviceHead
from sideplug.device.reply import DecodeOptions
from sideplug.paths import cache_dir
from sideplug.plugins import Plugin
from sideplug.readers import read
from sideplug.terminal import say

HEAD = "head on the device"
SYSTEMS = {
    "cloud only": (Gate("shut"), DecodeOptions(0)),
    "plain loop": (Gate("open"), DecodeOptions(0)),
    "+ gate": (None, DecodeOptions(0)),
    "+ run-ahead": (None, DecodeOptions(drafts=False)),
    "+ lookahead": (None, DecodeOptions()),
    HEAD: (None, DecodeOptions()),
}
SUMMED = [
    "reply_tokens",
    "total_s",
    "first_token_s",
    "round_trips",
    "asked",
    "rolled_back",
    "wasted",
    "drafted",
    "accepted",
    "bytes_down",
    "bytes_up",
]  # of each reply's usage


@dataclass(frozen=True)
class Settings:
    """rtt_ms: of each network; up_mbit: of the way up, 0: as the way down; passages, epochs: of the trainings."""

    rtt_ms: tuple[float, ...] = (0, 20, 50, 100)
    mbit: float = 10
    up_mbit: float = 0
    jitter_ms: float = 1
    rounds: int = 3
    passages: int = 120
    epochs: int = 24


QUICK = Settings(rtt_ms=(50,), rounds=1, passages=8, epochs=1)


@dataclass
class Task:
    """A plugin, and what is written with it."""

    plugin: Plugin
    prompts: list[tuple[Prompt, Sampling]]
    tokens: int


def run(model: str, settings: Settings, save: Save) -> Result:
    """Train both plugins, then time every system on both tasks over each network."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch, served(model) as (url, _):
        for name, task in tasks(url, Path(scratch), settings).items():
            for rtt in settings.rtt_ms:
                jitter = settings.jitter_ms if rtt else 0
                with shaped(url, Network(rtt, jitter, settings.mbit, settings.up_mbit)) as far:
                    rows += [{"task": name, "rtt_ms": rtt, **row} for row in measure(far.url, task, settings.rounds)]
                for row in rows[-len(SYSTEMS) :]:
                    say(line(row))
    network = {"mbit": settings.mbit, "up_mbit": settings.up_mbit or settings.mbit, "jitter_ms": settings.jitter_ms}
    return {"machine": machine(), **network, "rows": rows}


def tasks(url: str, scratch: Path, settings: Settings) -> dict[str, Task]:
    """Train the person's and the president's plugin."""
    president = messages(LINCOLN)[LINCOLN]
    cloud = ["--cloud", url, "--out"]
    command("train", PERSON / "train.jsonl", "--epochs", settings.epochs, "--width", 256, *cloud, scratch / "person")
    command("train", president / "train", "--limit", settings.passages, *cloud, scratch / "author")
    questions = [example.prompt for example in read(PERSON / "test.jsonl")][::4]
    words = (president / "last.txt").read_text(encoding="utf-8").split()
    openings = [" ".join(words[at : at + 40]) for at in (0, 2000, 4000)]
    return {
        "person": Task(Plugin.load(scratch / "person"), [(prompt, Sampling()) for prompt in questions], 40),
        "prose": Task(
            Plugin.load(scratch / "author"),
            [(Prompt(text=text), Sampling(0.7, seed=seed)) for seed, text in enumerate(openings)],
            80,
        ),
    }


def measure(url: str, task: Task, rounds: int) -> list[dict[str, Any]]:
    """Time the systems in turn, round by round, so that a slow minute of the machine is everybody's.

    Raises Stopped where a system gives another text than it must.
    """
    speeds: dict[str, list[float]] = {name: [] for name in SYSTEMS}
    rows: dict[str, dict[str, Any]] = {}
    texts: dict[str, list[list[int]]] = {}
    for _ in range(rounds):
        for name in SYSTEMS:
            texts[name], sums = write(url, name, task)
            tokens = sums["reply_tokens"]
            speeds[name].append((tokens - len(task.prompts)) / (sums["total_s"] - sums["first_token_s"]))
            rows[name] = {
                "system": name,
                "first_token_ms": round(1000 * sums["first_token_s"] / len(task.prompts), 1),
                "asked": round(sums["asked"] / tokens, 3),
                "tokens_a_round_trip": round(tokens / sums["round_trips"], 2) if sums["round_trips"] else None,
                **{f"{key}_a_token": round(sums[key] / tokens, 3) for key in ("round_trips", "wasted", "drafted")},
                **{f"{key}_a_token": round(sums[key] / tokens, 1) for key in ("bytes_down", "bytes_up")},
                "accepted_drafts": round(sums["accepted"] / sums["drafted"], 3) if sums["drafted"] else None,
            }
    for name in ("+ run-ahead", "+ lookahead"):
        if texts[name] != texts["+ gate"]:
            raise Stopped(f"{name} gives another text than the plain loop with the same gate")
    # Near ties may fall the other way where the device rounds otherwise: from there on it is another text.
    same = [common_start(*pair) for pair in zip(texts[HEAD], texts["+ gate"], strict=True)]
    rows[HEAD]["tokens_like_the_clouds"] = round(sum(same) / sum(map(len, texts["+ gate"])), 3)
    for name, row in rows.items():
        row["tokens_s"] = spread(speeds[name])
        for rival in ("cloud only", "plain loop"):
            ratios = [ours / theirs for ours, theirs in zip(speeds[name], speeds[rival], strict=True)]
            row[f"times_{rival.replace(' ', '_')}"] = round(statistics.median(ratios), 2)
    return list(rows.values())


def write(url: str, name: str, task: Task) -> tuple[list[list[int]], dict[str, float]]:
    """Return the ids of each of the task's replies by this system, and the sums of what they took."""
    gate, options = SYSTEMS[name]
    sums = dict.fromkeys(SUMMED, 0.0)
    texts = []
    with open_session(url, task.plugin, gate) as opened:
        if name == HEAD:
            model = opened.model
            head = DeviceHead.fetch(opened.link, cache_dir() / "heads", model.fingerprint, model.vocab)
            options = replace(options, head=head)
        for prompt, sampling in task.prompts:
            pieces = opened.generate(prompt, task.tokens, sampling, options)
            texts.append([token for piece in pieces for token in piece.ids])
            for key in sums:
                sums[key] += getattr(pieces.usage, key)
    return texts, sums


def common_start(one: list[int], other: list[int]) -> int:
    """Return how many tokens two texts begin with in common."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def line(row: dict[str, Any]) -> str:
    """Return a row as a line of text."""
    return (
        f"{row['task']:7} {row['rtt_ms']:4.0f} ms  {row['system']:18} {row['tokens_s']['median']:6.1f} tokens/s  "
        f"{row['times_cloud_only']:5.2f} of cloud only  {row['times_plain_loop']:5.2f} of plain   "
        f"{row['tokens_a_round_trip'] or 0:5.1f} tokens a round trip  asked {row['asked']:.0%}"
    )


def summary(result: dict[str, Any]) -> list[str]:
    """Return a line for each system on each task over each network."""
    return [line(row) for row in result["rows"]]
