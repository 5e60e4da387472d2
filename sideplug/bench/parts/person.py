"""What a plugin of the made-up person knows, and that it is silent elsewhere: facts, general prompts, hard negatives.

For each number of facts and each width a plugin of a kind is trained, without a memory, then asked over the wire,
greedy, at its calibrated gate. A fact is right when the reply holds it word for word.
Test: sideplug bench --part person --set facts=20 --set widths=64 --quick (--set kind=attention --set widths=192)
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sideplug.bench.meters import machine
from sideplug.bench.parts import Result, Save
from sideplug.bench.processes import command, served
from sideplug.bench.sessions import open_session
from sideplug.bench.tasks import PERSON, make_person
from sideplug.contract.gate import Gate
from sideplug.contract.text import Prompt
from sideplug.device.reply import Usage
from sideplug.device.session import Session
from sideplug.plugins import Plugin
from sideplug.readers import Example, read
from sideplug.terminal import say
from sideplug.training import data, gate, recorder

REPLY_TOKENS = 48
EPOCHS = {20: 24, 100: 24, 500: 6}  # an epoch of more facts has more steps
Replies = list[tuple[str, Usage]]


@dataclass(frozen=True)
class Settings:
    """facts, widths: of the persons and their plugins; questions: at most, drawn by seed; general: prompts, 0: all.

    epochs: of every training; 0: as many as so many facts need. kind: of every plugin.
    """

    facts: tuple[int, ...] = (20, 100, 500)
    widths: tuple[int, ...] = (64, 128, 256)
    questions: int = 200
    general: int = 0
    epochs: int = 0
    kind: str = "ladder"


QUICK = Settings(facts=(20,), widths=(64,), questions=8, general=4, epochs=1)


def run(model: str, settings: Settings, save: Save) -> Result:
    """Measure each person at each width; what there is so far is saved after each."""
    runs: list[dict[str, Any]] = []
    result = {"machine": machine(), "runs": runs}
    with tempfile.TemporaryDirectory() as scratch, served(model) as (url, _):
        for count in settings.facts:
            folder = Path(scratch) / f"person-{count}"
            make_person(count, folder)
            first = Path(scratch) / f"plugin-{count}-{settings.widths[0]}"
            for width in settings.widths:
                out = Path(scratch) / f"plugin-{count}-{width}"
                if out != first:  # the same texts and tap: the same tape
                    shutil.copytree(first / "tape", out / "tape")
                runs.append(measure(url, count, width, folder, out, settings))
                say(json.dumps(runs[-1], ensure_ascii=False))
                save(result)
    return result


def measure(url: str, count: int, width: int, folder: Path, out: Path, settings: Settings) -> dict[str, Any]:
    """Train a plugin of this width on the person in `folder`, and ask for facts, general prompts and hard negatives."""
    start = time.perf_counter()
    epochs = settings.epochs or EPOCHS.get(count, 24)
    options = ["--out", out, "--kind", settings.kind, "--width", width, "--cloud", url, "--epochs", epochs]
    training = command("train", folder / "train.jsonl", "--no-remember", *options)
    seconds = time.perf_counter() - start
    plugin = Plugin.load(out)
    test = data.sample(read(folder / "test.jsonl"), settings.questions)
    general = [example.prompt for example in data.retain_set(PERSON / "general-test.txt")][: settings.general or None]
    near = [example.prompt for example in data.retain_set(folder / "near-misses.txt")][: settings.general or None]
    values = [example.reply.split(" is ", 1)[1].split(".\n")[0] for example in test]
    known = set(values)
    with (
        open_session(url, plugin) as gated,
        open_session(url, plugin, Gate("shut")) as base,
        open_session(url, plugin, Gate("open")) as always,
    ):
        facts = replies(gated, [example.prompt for example in test])
        quiet, quiet_base, quiet_always = (replies(one, general) for one in (gated, base, always))
        misses, misses_base = replies(gated, near), replies(base, near)
        judged = recorder.score(gated, test)
        silent = losses(always, plugin, list(zip(general, texts(quiet_base), strict=True)))
    personal = gate.trade_off(plugin.trained.gate, judged)
    return {
        "facts": count,
        "kind": settings.kind,
        "width": width,
        "parameters": plugin.size,
        "training_s": round(training["seconds"], 1),
        "in_all_s": round(seconds, 1),
        "epochs": training["epochs"],
        "facts_right": share(value in text for value, text in zip(values, texts(facts), strict=True)),
        "facts_asked": plugin_share(facts),
        "personal_loss": personal,
        "gain_kept": round((personal["base"] - personal["gated"]) / (personal["base"] - personal["plugin"]), 4),
        "general_same": same(quiet, quiet_base),
        "general_same_always_on": same(quiet_always, quiet_base),
        "general_asked": plugin_share(quiet),
        "general_loss": silent,
        "near_misses_same": same(misses, misses_base),
        "near_misses_asked": plugin_share(misses),
        "near_misses_invented": share(any(value in text for value in known) for text in texts(misses)),
        "hard_negatives": [
            {"prompt": prompt.messages[-1]["content"], "plugin": text, "base": plain}
            for prompt, text, plain in zip(near, texts(misses), texts(misses_base), strict=True)
            if prompt.messages and text != plain
        ],
    }


def replies(session: Session, prompts: Iterable[Prompt]) -> Replies:
    """Return the greedy reply to each prompt, and what it took."""
    result = []
    for prompt in prompts:
        reply = session.generate(prompt, REPLY_TOKENS)
        result.append((reply.text, reply.usage))
    return result


def texts(replies: Replies) -> list[str]:
    """Return the replies' texts."""
    return [text for text, _ in replies]


def same(one: Replies, other: Replies) -> float:
    """Return the share of replies that are the same word for word."""
    return share(a == b for a, b in zip(texts(one), texts(other), strict=True))


def plugin_share(replies: Replies) -> float:
    """Return the share of the tokens that the plugin chose."""
    chosen = sum(usage.plugin_tokens for _, usage in replies)
    return float(round(chosen / max(1, sum(usage.reply_tokens for _, usage in replies)), 4))


def share(truths: Iterable[bool]) -> float:
    """Return how many of these are true, as a share."""
    return round(float(np.mean(list(truths))), 4)


def losses(session: Session, plugin: Plugin, replies: list[tuple[Prompt, str]]) -> dict[str, float]:
    """Return the loss of the base's own replies: by the base, with the plugin always, gated."""
    examples = [Example(prompt, text, "") for prompt, text in replies if text.strip()]
    return gate.trade_off(plugin.trained.gate, recorder.score(session, examples))


def summary(result: dict[str, Any]) -> list[str]:
    """Return a line for each person and width."""
    return [
        f"{run['facts']:4} facts, {run.get('kind', 'ladder')}, width {run['width']:3}: {run['facts_right']:.1%} right, "
        f"{run['general_same']:.1%} of general replies the base's, asked for {run['general_asked']:.2%} of their tokens"
        for run in result["runs"]
    ]
