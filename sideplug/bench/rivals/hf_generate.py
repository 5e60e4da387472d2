"""transformers' `generate` in a process of its own, which says when each token came.

    python -m sideplug.bench.rivals.hf_generate MODEL

It prints a line when it is ready, then reads lines [ids, tokens] and prints a line for each token of the reply, which
always has so many tokens. Test: sideplug bench --part decode --quick
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil

from sideplug.bench.processes import child
from sideplug.bench.sessions import Stream
from sideplug.cloud.cores import cores
from sideplug.cloud.store import find


class Streamer:
    """Prints a line for each token. `generate` puts the prompt first, which is not one."""

    def __init__(self) -> None:
        self._heard = 0

    def put(self, ids: Any) -> None:
        """Take the prompt's or the next token's ids."""
        self._heard += 1
        if self._heard > 1:
            print('"token"', flush=True)

    def end(self) -> None:
        """Take the end of the reply."""


def serve(model: str) -> None:
    """Answer the lines of standard input until it ends."""
    import torch

    from sideplug.cloud.model.torch_model import load_lm

    torch.set_num_threads(cores()[0])
    lm, _ = load_lm(find(model).folder, torch.float32)
    lm.eval()
    print('"ready"', flush=True)
    for line in sys.stdin:
        ids, tokens = json.loads(line)
        length = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
        with torch.inference_mode():
            lm.generate(torch.tensor([ids]), streamer=Streamer(), **length)


@contextmanager
def generating(model: str) -> Iterator[tuple[Stream, psutil.Process]]:
    """`serve` in a child: (its stream, its process)."""
    with child("-m", "sideplug.bench.rivals.hf_generate", model) as process:

        def stream(ids: list[int], tokens: int) -> list[float]:
            process.write([ids, tokens])
            times = []
            for _ in range(tokens):
                process.read()
                times.append(time.perf_counter())
            return times

        yield stream, process.process


if __name__ == "__main__":
    serve(sys.argv[1])
