"""Making a plugin against making a LoRA adapter: time, peak memory and held-out loss, on the same real text.

The text is the demo's: passages of Abraham Lincoln's annual messages but the last; tested on the last. LoRA is PEFT's,
r = 8 on q and v, in a process of its own, for as many epochs as our training ran. Its learning rate is the best on the
test of the rates below, so it is not the rival's settings that decide. Run:  python bench/lora.py [--passages 120]
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import machine, served, sideplug

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
RATES = (2e-4, 5e-4, 1e-3)
BATCH = 8


def lora(model: str, texts: Path, passages: int, epochs: int, rate: float, tested: int) -> dict[str, Any]:
    """Train and test one adapter, here; the child process's whole work."""
    import os

    import torch
    from peft import LoraConfig, get_peft_model

    from sideplug.cloud.store import find
    from sideplug.cloud.tokenizer import Tokenizer
    from sideplug.cloud.torch_model import load_lm
    from sideplug.learn import data

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    base = find(model)
    tokenizer = Tokenizer(base.folder)
    lm, _ = load_lm(base.folder, torch.float32)

    # The very examples that `sideplug train --limit` and `sideplug eval --limit` draw.
    training, _ = data.split(data.some(data.read(texts / "train"), passages), 0.1, 0)
    encoded = [tokenizer.encode_example(e.prompt, e.reply) for e in training]
    test = [tokenizer.encode_example(e.prompt, e.reply) for e in data.some(data.read(texts / "own.txt"), tested)]

    def loss_of(batch: list[tuple[list[int], list[int]]]) -> tuple[Any, int]:
        longest = max(len(p) + len(r) for p, r in batch)
        ids, mask = (
            torch.zeros(len(batch), longest, dtype=torch.long),
            torch.zeros(len(batch), longest, dtype=torch.long),
        )
        labels = torch.full((len(batch), longest), -100)
        for row, (p, r) in enumerate(batch):
            whole = torch.tensor(p + r)
            ids[row, : len(whole)], mask[row, : len(whole)] = whole, 1
            labels[row, len(p) : len(whole)] = whole[len(p) :]
        return adapted(ids, attention_mask=mask, labels=labels).loss, int((labels != -100).sum())

    settings = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    adapted = get_peft_model(lm, settings)
    parameters = [p for p in adapted.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=rate)
    start = time.perf_counter()
    steps = epochs * ((len(encoded) + BATCH - 1) // BATCH)
    step = 0
    adapted.train()
    for epoch in range(epochs):
        random.Random(epoch).shuffle(encoded)
        for at in range(0, len(encoded), BATCH):
            for group in optimiser.param_groups:
                group["lr"] = rate * min(1.0, (step + 1) / 10) * (1 - step / steps)
            loss, _ = loss_of(encoded[at : at + BATCH])
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            step += 1
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    adapted.eval()
    total = count = 0.0
    with torch.inference_mode():
        for example in test:
            loss, n = loss_of([example])
            total, count = total + loss.item() * n, count + n
    return {
        "train_s": round(seconds, 1),
        "peak_mb": round(peak),
        "loss": round(total / count, 4),
        "rate": rate,
        "parameters": sum(p.numel() for p in parameters),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--passages", type=int, default=120)
    parser.add_argument("--tested", type=int, default=20)
    parser.add_argument("--child", nargs=3, metavar=("TEXTS", "EPOCHS", "RATE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        texts, epochs, rate = arguments.child
        done = lora(arguments.model, Path(texts), arguments.passages, int(epochs), float(rate), arguments.tested)
        print(json.dumps(done))
        return
    from demo import fetch_texts

    texts = fetch_texts()
    with tempfile.TemporaryDirectory() as scratch, served(arguments.model) as (url, cloud):
        out = Path(scratch) / "plugin"
        start = time.perf_counter()
        # The person's text only, as LoRA has it: what a plugin spends on staying silent elsewhere is not compared here.
        alone = ["--general-weight", 0, "--batch-tokens", 256]
        how = ["--limit", arguments.passages, *alone, "--out", out, "--cloud", url]
        trained = sideplug("train", texts / "train", *how)
        wall = time.perf_counter() - start
        cloud_mb = cloud.memory_full_info().pss / 2**20
        tested = sideplug("eval", texts / "own.txt", "--limit", arguments.tested, "--plugin", out, "--cloud", url)
    epochs = trained["epochs"]
    rivals = []
    for rate in RATES:
        command = [sys.executable, __file__, "--model", arguments.model, "--passages", str(arguments.passages)]
        command += ["--tested", str(arguments.tested), "--child", str(texts), str(epochs), str(rate)]
        rivals.append(json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout))
        print(f"LoRA at {rate}: {rivals[-1]}", file=sys.stderr)
    best = min(rivals, key=lambda r: r["loss"])
    result = {
        "machine": machine(),
        "passages": arguments.passages,
        "epochs": epochs,
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
        "lora": {"best": best, "all": rivals},
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
