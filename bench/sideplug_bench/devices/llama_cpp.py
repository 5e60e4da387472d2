"""The model on the device, by llama.cpp: the very GGUF that our cloud serves."""

from __future__ import annotations

import json
import os
import time
import urllib.request
from typing import Any

import xllamacpp

from sideplug.cloud.store import find
from sideplug.cloud.tokenizer import Tokenizer
from sideplug.contract.text import Prompt


class LlamaCpp:
    def __init__(self, model: str) -> None:
        folder = find(model).folder
        params = xllamacpp.CommonParams()
        params.model.path = str(folder / "model.gguf")
        params.n_parallel, params.n_ctx, params.port = 1, 4096, 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = len(os.sched_getaffinity(0))
        self._server = xllamacpp.Server(params)
        self._tokenizer = Tokenizer(folder)

    def reply(self, prompt: dict[str, Any], max_tokens: int, temperature: float, seed: int) -> dict[str, Any]:
        start = time.perf_counter()
        ids = self._tokenizer.encode(Prompt.from_wire(prompt))
        body = {"prompt": ids, "n_predict": max_tokens, "temperature": temperature, "seed": seed, "stream": True}
        body |= {"cache_prompt": False, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
        request = urllib.request.Request(f"{self._server.listening_address}/completion", json.dumps(body).encode())
        texts: list[str] = []
        times: list[float] = []
        with urllib.request.urlopen(request, timeout=600) as answer:
            for line in answer:
                if line.startswith(b"data:") and (told := json.loads(line[5:])).get("tokens"):
                    texts.append(told["content"])
                    times.append(time.perf_counter() - start)
        return {"text": "".join(texts), "tokens": len(times), "round_trips": 0, "times_s": times}


def make(model: str) -> LlamaCpp:
    return LlamaCpp(model)
