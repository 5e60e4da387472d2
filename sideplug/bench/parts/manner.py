"""What a plugin of a person's text learns of their manner: with the trunk that ships, without one, and as a ladder.

The task is authors': each president's messages but the last to learn from, the last one judged behind its opening
words, exactly, over the wire. Each plugin is made as `sideplug train` makes it. General prompts must get the base's own
replies, word for word, greedy. What a LoRA learns of the same passages is in the whole run (sideplug bench).
Test: pytest tests/bench/test_parts.py
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sideplug.bench.meters import machine
from sideplug.bench.parts import Result, Save
from sideplug.bench.processes import command, served
from sideplug.bench.spreads import bootstrap
from sideplug.bench.tasks import PERSON, User, authors
from sideplug.contract.sampling import Sampling
from sideplug.device.client import Client
from sideplug.plugins import Plugin
from sideplug.terminal import say
from sideplug.training import data, recorder

WAYS: dict[str, list[str]] = {
    "ours": [],
    "without a trunk": ["--trunk", "none"],
    "ladder": ["--kind", "ladder"],
}


@dataclass(frozen=True)
class Settings:
    """presidents; passages of each to learn from, and tested; general: prompts; tokens: of their replies."""

    presidents: int = 10
    passages: int = 40
    tested: int = 8
    general: int = 25
    tokens: int = 40


QUICK = Settings(presidents=1, passages=8, tested=2, general=2, tokens=4)


def run(model: str, settings: Settings, save: Save) -> Result:
    """Make and judge a plugin of each way for each president."""
    result: Result = {"machine": machine(), "settings": vars(settings), "ways": {}}
    prompts = [each.prompt for each in data.retain_set(PERSON / "general-test.txt")][: settings.general]
    with tempfile.TemporaryDirectory() as scratch, served(model) as (url, _):
        task = authors(settings.presidents, settings.passages, settings.tested, Path(scratch))
        client = Client.at(url)
        with client.connect() as base:
            said = [base.generate(prompt, settings.tokens, Sampling()).text for prompt in prompts]
        general = list(zip(prompts, said, strict=True))
        rows: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        for user in task.users:
            out = Path(scratch) / user.file.stem  # of all ways: what the base made of the text is recorded once
            for way, options in WAYS.items():
                rows[way].append(_judged(client, url, user, options, out, settings, general))
                say(f"{way}, {user.name}: {rows[way][-1]['gated']:+.4f} nats a token")
            result["ways"] = {way: {"people": of, **_all(of)} for way, of in rows.items()}
            save(result)
    return result


def _judged(
    client: Client, url: str, user: User, options: list[str], out: Path, s: Settings, general: list[Any]
) -> dict[str, Any]:
    """A plugin made in one way of a person's passages: its gain by passage, and how many general replies stay."""
    began = time.perf_counter()
    made = command("train", user.file, *options, "--out", out, "--cloud", url, "--force", "--no-remember")
    seconds = time.perf_counter() - began
    plugin = Plugin.load(out)
    with client.connect(plugin) as session:
        judged = recorder.score(session, user.test)
    opens = plugin.trained.gate.opens(plugin.trained.gate.scores(judged.z_TD, judged.starts))
    gained = np.where(opens, judged.gain, 0.0)
    ends = [*judged.starts[1:].tolist(), len(gained)]
    passages = [[round(-float(gained[a:b].sum()), 3), b - a] for a, b in zip(judged.starts.tolist(), ends, strict=True)]
    with client.connect(plugin) as session:
        same = sum(session.generate(prompt, s.tokens, Sampling()).text == text for prompt, text in general)
    return {
        "name": user.name,
        "base": round(-float(judged.base.mean()), 4),
        "gated": round(-float(gained.mean()), 4),
        "passages": passages,
        "general_same": same,
        "rate": round(float(opens.mean()), 3),
        "bias": len(plugin.trained.bias),
        "epochs": made["epochs"],
        "recording_s": made["recording_s"],
        "wall_s": round(seconds, 1),
        "peak_rss_mb": made["peak_rss_mb"],
    }


def _all(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The gain over all passages with its interval, and the general replies that stay."""
    passages = [each for row in rows for each in row["passages"]]
    return {"gain": bootstrap(passages), "general_same": sum(row["general_same"] for row in rows)}


def summary(result: Result) -> list[str]:
    """Return each way as a line."""
    asked = result["settings"]["general"]
    lines = []
    for way, of in result["ways"].items():
        gain, count = of["gain"], asked * len(of["people"])
        spread = f"{gain['mean']:+.4f} ({gain['low']:+.3f} to {gain['high']:+.3f}) nats a token"
        lines.append(f"{way:16} {spread}; {of['general_same']} of {count} general replies are the base's")
    return lines
