"""Making a plugin against making a LoRA adapter: time, peak memory and held-out loss, on the same real text.

The text is the demo's: passages of Abraham Lincoln's annual messages but the last; tested on the last. LoRA is PEFT's
(sideplug_bench/lora.py: r = 8 on q and v), for as many epochs as our training ran. Its learning rate is the best on the
test of the rates below, so it is not the rival's settings that decide. Run:  python bench/lora.py [--passages 120]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sideplug.cloud.store import DEFAULT
from sideplug.training import data
from sideplug_bench.meters import machine
from sideplug_bench.processes import child, command, served
from sideplug_bench.run import wire
from sideplug_bench.sotu import messages
from sideplug_bench.systems import device

RATES = (2e-4, 5e-4, 1e-3)


def lora(model: str, examples: Path, test: list[data.Example], epochs: int, rate: float, out: Path) -> dict[str, Any]:
    """Train one adapter, then its loss on the test."""
    how = ["--epochs", epochs, "--rate", rate]
    with child("-m", "sideplug_bench.lora", model, examples, out, *how) as (told, _):
        pass
    with device("transformers", {"model": model, "adapter": str(out)}) as asked:
        found = asked.ask("losses", examples=[wire(example) for example in test])
    return {**told, "rate": rate, "loss": round(sum(n for n, _ in found) / sum(n for _, n in found), 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT)
    parser.add_argument("--passages", type=int, default=120)
    parser.add_argument("--tested", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("bench/results/lora.json"))
    o = parser.parse_args()
    texts = messages("Abraham Lincoln")["Abraham Lincoln"]
    # The very examples that `sideplug train --limit` and `sideplug eval --limit` draw.
    chosen = data.some(data.read(texts / "train"), o.passages)
    test = data.some(data.read(texts / "last.txt"), o.tested)
    with tempfile.TemporaryDirectory() as scratch, served(o.model) as (url, cloud):
        out = Path(scratch) / "plugin"
        start = time.perf_counter()
        # The person's text only, as LoRA has it: what a plugin spends on staying silent elsewhere is not compared here.
        alone = ["--retain-weight", 0, "--batch-tokens", 256]
        trained = command("train", texts / "train", "--limit", o.passages, *alone, "--out", out, "--cloud", url)
        wall = time.perf_counter() - start
        cloud_mb = cloud.memory_full_info().pss / 2**20
        how = ["--limit", o.tested, "--plugin", out, "--cloud", url]
        tested = command("eval", texts / "last.txt", *how)
    rivals = []
    with tempfile.TemporaryDirectory() as scratch:
        examples = Path(scratch) / "examples.jsonl"
        examples.write_text("".join(json.dumps({"text": example.reply}) + "\n" for example in chosen))
        for rate in RATES:
            rivals.append(lora(o.model, examples, test, trained["epochs"], rate, Path(scratch) / f"lora-{rate}"))
            print(f"LoRA at {rate}: {rivals[-1]}", file=sys.stderr)
    result = {
        "machine": machine(),
        "passages": o.passages,
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
        "lora": {"best": min(rivals, key=lambda r: r["loss"]), "all": rivals},
    }
    o.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
