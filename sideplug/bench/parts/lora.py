"""Making a plugin against making a LoRA adapter: time, peak memory and held-out loss, on the same real text.

The text is the demo's: passages of Abraham Lincoln's annual messages but the last; tested on the last. LoRA is PEFT's
(rivals/lora_training: r = 8 on q and v), for as many epochs as our training ran. Its learning rate is the best on the
test of RATES, so it is not the rival's settings that decide. Test: sideplug bench --part lora --quick
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sideplug.bench.meters import machine
from sideplug.bench.parts import Result, Save
from sideplug.bench.processes import child, command, served
from sideplug.bench.prompts import example_record
from sideplug.bench.sotu import LINCOLN, messages
from sideplug.bench.systems import device
from sideplug.bench.texts import totals
from sideplug.readers import Example, read
from sideplug.terminal import say
from sideplug.training import data

RATES = (2e-4, 5e-4, 1e-3)


@dataclass(frozen=True)
class Settings:
    """passages: to learn from; tested: held-out passages; rates: LoRA's learning rates; epochs: at most, 0: any."""

    passages: int = 120
    tested: int = 20
    rates: tuple[float, ...] = RATES
    epochs: int = 0


QUICK = Settings(passages=8, tested=3, rates=(5e-4,), epochs=1)


def train_lora(model: str, examples: Path, test: list[Example], epochs: int, rate: float, out: Path) -> dict[str, Any]:
    """Train one adapter: what that took, and its loss on the test."""
    options = ["--epochs", epochs, "--rate", rate]
    with child("-m", "sideplug.bench.rivals.lora_training", model, examples, out, *options) as training:
        costs = training.ready
    with device("hf", {"model": model, "adapter": str(out)}) as adapted:
        losses = totals(adapted.ask("losses", examples=[example_record(example) for example in test]))
    return {**costs, "rate": rate, "loss": round(sum(n for n, _ in losses) / sum(n for _, n in losses), 4)}


def run(model: str, settings: Settings, save: Save) -> Result:
    """Train and test our plugin, then an adapter at each rate."""
    texts = messages(LINCOLN)[LINCOLN]
    # The very examples that `sideplug train --limit` and `sideplug eval --limit` draw.
    chosen = data.sample(read(texts / "train"), settings.passages)
    test = data.sample(read(texts / "last.txt"), settings.tested)
    with tempfile.TemporaryDirectory() as scratch, served(model) as (url, cloud):
        out = Path(scratch) / "plugin"
        start = time.perf_counter()
        # The person's text only, as LoRA has it: what a plugin spends on staying silent elsewhere is not compared here.
        options = ["--limit", settings.passages, "--retain-weight", 0, "--batch-tokens", 256]
        options += ["--epochs", settings.epochs] if settings.epochs else []
        trained = command("train", texts / "train", *options, "--out", out, "--cloud", url)
        wall = time.perf_counter() - start
        cloud_mb = cloud.memory_full_info().pss / 2**20
        tested = command("eval", texts / "last.txt", "--limit", settings.tested, "--plugin", out, "--cloud", url)
    adapters = []
    with tempfile.TemporaryDirectory() as scratch:
        examples = Path(scratch) / "examples.jsonl"
        examples.write_text("".join(json.dumps({"text": example.reply}) + "\n" for example in chosen), encoding="utf-8")
        for rate in settings.rates:
            adapter = Path(scratch) / f"lora-{rate}"
            adapters.append(train_lora(model, examples, test, trained["epochs"], rate, adapter))
            say(f"LoRA at {rate}: {adapters[-1]}")
    return {
        "machine": machine(),
        "passages": settings.passages,
        "epochs": trained["epochs"],
        "base_loss": tested["base_loss"],
        "sideplug": {
            "tape_s": trained["recording_s"],
            "train_s": round(trained["seconds"], 1),
            "wall_s": round(wall, 1),
            "device_peak_mb": trained["peak_rss_mb"],
            "cloud_pss_mb": round(cloud_mb),
            "loss": tested["plugin_loss"],
            "parameters": trained["parameters"],
        },
        "lora": {"best": min(adapters, key=lambda adapter: float(adapter["loss"])), "all": adapters},
    }


def summary(result: dict[str, Any]) -> list[str]:
    """Return the base, ours and the best adapter as a line each."""
    ours, best = result["sideplug"], result["lora"]["best"]
    return [
        f"base      loss {result['base_loss']:.4f}",
        f"sideplug  loss {ours['loss']:.4f}  {ours['wall_s']:6.0f} s  {ours['device_peak_mb']:8,.0f} MB on the device",
        f"LoRA      loss {best['loss']:.4f}  {best['seconds']:6.0f} s  {best['peak_rss_mb']:8,.0f} MB",
    ]
