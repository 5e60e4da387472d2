"""The model on the device, by llama.cpp: the very GGUF that our cloud serves."""

from __future__ import annotations

import os
import time
from typing import Any

from sideplug.bench.prompts import prompt_of
from sideplug.bench.rivals import llama_server
from sideplug.cloud.store import find
from sideplug.cloud.tokenizer import Tokenizer

CONTEXT = 4096
PLAIN = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}  # nothing but the temperature


class LlamaCpp:
    """llama.cpp's server in this process, with all cores."""

    def __init__(self, model: str) -> None:
        folder = find(model).folder
        self._server = llama_server.start(folder / "model.gguf", 1, CONTEXT, len(os.sched_getaffinity(0)))
        self._tokenizer = Tokenizer(folder)

    def reply(
        self, prompt: dict[str, Any], max_tokens: int, temperature: float, seed: int, top_p: float = 1.0
    ) -> dict[str, Any]:
        """Return a reply and the seconds at which its tokens came (see ours.Reply)."""
        start = time.perf_counter()
        ids = self._tokenizer.encode(prompt_of(prompt))
        sampling = {**PLAIN, "temperature": temperature, "seed": seed, "top_p": top_p}
        texts: list[str] = []
        times: list[float] = []
        for text in llama_server.completion(self._server.listening_address, ids, max_tokens, **sampling):
            texts.append(text)
            times.append(time.perf_counter() - start)
        return {"text": "".join(texts), "tokens": len(times), "round_trips": 0, "times_s": times}


def make(model: str) -> LlamaCpp:
    """Return the device that runs this model."""
    return LlamaCpp(model)
