"""Decode throughput of our cloud, over its real wire, against transformers' own generate on the same weights.

Each round times transformers (in this process, the server idle) and then our server with 1, 4 and 8 sessions (gate
shut); ratios are taken round by round. Run:  python bench/decode.py [--model smollm2-135m] [--rounds 5] [--tokens 48]
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import transformers
from common import machine, served, spread

from sideplug.cloud.store import find
from sideplug.contract.text import Prompt
from sideplug.device.link import WebSocketLink
from sideplug.device.runtime import Session

SESSIONS = (1, 4, 8)
PROMPT_TOKENS = 32


def theirs(lm: Any, ids: list[int], tokens: int) -> float:
    start = time.perf_counter()
    with torch.inference_mode():
        lm.generate(torch.tensor([ids]), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
    return tokens / (time.perf_counter() - start)


def ours(sessions: list[Session], prompts: list[tuple[int, ...]], tokens: int) -> float:
    def one(session: Session, prompt: tuple[int, ...]) -> int:
        return sum(len(piece.ids) for piece in session.generate(Prompt(ids=prompt), tokens))

    start = time.perf_counter()
    with ThreadPoolExecutor(len(sessions)) as pool:
        count = sum(pool.map(one, sessions, prompts[: len(sessions)]))
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    base = find(arguments.model)
    torch.set_num_threads(machine()["cores"])
    lm = transformers.AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    # Ordinary words' ids, so that nobody's reply ends early.
    drawn = torch.randint(1000, 9000, (max(SESSIONS), PROMPT_TOKENS), generator=generator)
    prompts = [tuple(row.tolist()) for row in drawn]
    rates: dict[str, list[float]] = {"transformers": [], **{f"{n} sessions": [] for n in SESSIONS}}
    with served(arguments.model) as (url, _):
        links = [WebSocketLink.connect(url) for _ in range(max(SESSIONS))]
        sessions = [Session.open(link) for link in links]
        theirs(lm, list(prompts[0]), 8)
        ours(sessions, prompts, 8)
        for _ in range(arguments.rounds):
            rates["transformers"].append(theirs(lm, list(prompts[0]), arguments.tokens))
            for n in SESSIONS:
                rates[f"{n} sessions"].append(ours(sessions[:n], prompts, arguments.tokens))
        for link in links:
            link.close()
    result = {
        "machine": machine(),
        "tokens_per_s": {name: spread(values) for name, values in rates.items()},
        "ratio_to_transformers": {
            name: spread([a / b for a, b in zip(values, rates["transformers"], strict=True)])
            for name, values in rates.items()
        },
    }
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    for name in rates:
        rate, ratio = result["tokens_per_s"][name], result["ratio_to_transformers"][name]
        print(
            f"{name:14} {rate['median']:7.1f} tokens/s ({rate['min']:.1f} to {rate['max']:.1f})   "
            f"{ratio['median']:.2f}× ({ratio['min']:.2f} to {ratio['max']:.2f})"
        )


if __name__ == "__main__":
    main()
