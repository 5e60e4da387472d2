"""The rival's training: a LoRA adapter by PEFT, back-propagating through the LLM, in a process of its own.

    python -m sideplug.bench.rivals.lora_training MODEL EXAMPLES OUT [--epochs 4] [--rate 1e-3] [--start ADAPTER]

The adapter of the epoch that is best on the examples held out (a tenth, as `sideplug train` holds them out) is kept.
--start: the adapter that it goes on from, made of other people's text by one epoch of this program; it is kept where no
epoch is better. A line of JSON says what it took; `backward_bytes_a_token` are those that autograd keeps of one step
for its backward pass.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from sideplug.bench.systems import LORA_RANK
from sideplug.cloud.model.torch_model import load_lm
from sideplug.cloud.store import find
from sideplug.cloud.tokenizer import Tokenizer
from sideplug.readers import read
from sideplug.training.split import split

BATCH = 8
Encoded = list[tuple[list[int], list[int]]]


def loss_of(model: Any, batch: Encoded) -> tuple[torch.Tensor, int]:
    """Return the mean loss of the replies' tokens, and how many these are."""
    longest = max(len(p) + len(r) for p, r in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, -100)
    for row, (p, r) in enumerate(batch):
        whole = torch.tensor(p + r)
        ids[row, : len(whole)], mask[row, : len(whole)] = whole, 1
        labels[row, len(p) : len(whole)] = whole[len(p) :]
    return model(ids, attention_mask=mask, labels=labels).loss, int((labels != -100).sum())


def mean_loss(model: Any, examples: Encoded) -> float:
    """Return the mean loss over all the examples\' tokens."""
    model.eval()
    with torch.inference_mode():
        losses = [loss_of(model, [example]) for example in examples]
    model.train()
    return sum(float(loss) * n for loss, n in losses) / sum(n for _, n in losses)


def kept_bytes(model: Any, batch: Encoded) -> int:
    """Return the bytes a token of the tensors that autograd keeps of one step, weights not counted."""
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss_of(model, batch)[0].backward()  # type: ignore[no-untyped-call]
    return sum(kept.values()) // sum(len(p) + len(r) for p, r in batch)


def adapter_on(lm: Any, start: Path | None) -> Any:
    """Return the model with a new adapter, or with that of a folder, to be trained."""
    if start:
        return PeftModel.from_pretrained(lm, str(start), is_trainable=True)
    targets = ["q_proj", "v_proj"]
    return get_peft_model(lm, LoraConfig(r=LORA_RANK, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM"))


def train(model: str, examples: Path, out: Path, epochs: int, rate: float, start_from: Path | None) -> dict[str, Any]:
    """Train an adapter into `out`, and return what it took."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    base = find(model)
    tokenizer = Tokenizer(base.folder)
    lm, _ = load_lm(base.folder, torch.float32)
    parts = split(read(examples), 0.1, 0)  # the examples that our plugin trains on and stops by
    training, held = parts.training, [*parts.told, *parts.text]
    encoded, held_out = ([tokenizer.encode_example(e.prompt, e.reply) for e in part] for part in (training, held))
    adapted = adapter_on(lm, start_from)
    parameters = [p for p in adapted.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=rate)
    adapted.train()
    backward = kept_bytes(adapted, encoded[:BATCH])
    start = time.perf_counter()
    steps = epochs * ((len(encoded) + BATCH - 1) // BATCH)
    best, best_epoch, step = float("inf"), 0, 0
    if start_from:
        best = mean_loss(adapted, held_out)
        adapted.save_pretrained(str(out))
    for epoch in range(epochs):
        random.Random(epoch).shuffle(encoded)
        for at in range(0, len(encoded), BATCH):
            for group in optimiser.param_groups:
                group["lr"] = rate * min(1.0, (step + 1) / 10) * (1 - step / steps)
            optimiser.zero_grad()
            loss_of(adapted, encoded[at : at + BATCH])[0].backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            step += 1
        loss = mean_loss(adapted, held_out)
        print(f"epoch {epoch + 1} of {epochs}: held-out loss {loss:.3f}", file=sys.stderr)
        if loss < best:
            best, best_epoch = loss, epoch + 1
            adapted.save_pretrained(str(out))
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "parameters": sum(p.numel() for p in parameters),
        "backward_bytes_a_token": backward,
        "epochs": best_epoch,
    }


def main() -> None:
    """Train one adapter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("examples", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--start", type=Path, metavar="ADAPTER")
    options = parser.parse_args()
    print(json.dumps(train(options.model, options.examples, options.out, options.epochs, options.rate, options.start)))


if __name__ == "__main__":
    main()
