"""PEFT with a LoRA a person, all in one batch (`adapter_names`), in a process of its own.

    python -m sideplug.bench.rivals.peft_batch MODEL ADAPTERS

It prints a line when it is ready, then reads lines [prompts, tokens, with adapters?] and answers each with the tokens a
second of the whole batch, prefill left out. Test: sideplug bench --part users --quick
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from sideplug.bench.processes import child
from sideplug.cloud.cores import cores
from sideplug.cloud.store import find

BatchRate = Callable[[list[list[int]], int, bool], float]  # prompts, tokens of a reply, with adapters? → tokens/s


def serve(model: str, adapters: int) -> None:
    """Answer the lines of standard input until it ends."""
    import torch
    from peft import LoraConfig, get_peft_model

    from sideplug.cloud.model.torch_model import load_lm

    torch.set_num_threads(cores()[0])
    lm, _ = load_lm(find(model).folder, torch.float32)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    lm = get_peft_model(lm, config, adapter_name="user0")
    for number in range(1, adapters):
        lm.add_adapter(f"user{number}", config)
    lm.eval()

    def seconds(ids: Any, tokens: int, names: dict[str, list[str]]) -> float:
        length = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
        start = time.perf_counter()
        with torch.inference_mode():
            lm.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **length, **names)  # type: ignore[no-untyped-call]
        return time.perf_counter() - start

    print('"ready"', flush=True)
    for line in sys.stdin:
        prompts, tokens, with_adapters = json.loads(line)
        ids = torch.tensor(prompts)
        names = {"adapter_names": [f"user{n}" for n in range(len(prompts))]} if with_adapters else {}
        with ExitStack() as stack:
            if not with_adapters:
                stack.enter_context(lm.disable_adapter())
            first, whole = seconds(ids, 2, names), seconds(ids, tokens, names)
        print(json.dumps(len(prompts) * (tokens - 2) / (whole - first)), flush=True)


@contextmanager
def batching(model: str, adapters: int) -> Iterator[BatchRate]:
    """`serve` in a child, asked for one batch at a time."""
    with child("-m", "sideplug.bench.rivals.peft_batch", model, adapters) as process:

        def rate(prompts: list[list[int]], tokens: int, with_adapters: bool) -> float:
            process.write([prompts, tokens, with_adapters])
            return float(process.read())

        yield rate


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
