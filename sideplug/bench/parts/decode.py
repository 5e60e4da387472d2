"""Speed and memory of a served model: ours at 8 and 4 bits over the real wire, llama.cpp's server, transformers.

Every system runs in a process of its own and is asked for the same prompts; each round times all of them, one after
another, and ratios are taken round by round. The floor is the bytes of weights that a step reads over the measured read
bandwidth. Test: sideplug bench --part decode --quick
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from sideplug.bench.meters import machine, read_gb_s
from sideplug.bench.parts import Result, Save
from sideplug.bench.processes import child, served
from sideplug.bench.rivals import llama_server
from sideplug.bench.rivals.hf_generate import generating
from sideplug.bench.sessions import Stream, decode_rate, open_session, token_stream
from sideplug.bench.spreads import spread
from sideplug.cloud.cores import cores
from sideplug.cloud.store import find
from sideplug.contract.errors import InputError
from sideplug.terminal import say

PROMPT, LONG = 32, 512  # tokens of a prompt; of the one that times the prefill
SESSIONS = (1, 4, 8, 16)  # at once
SLOTS = 8  # of llama.cpp's second server
System = tuple[list[Stream], psutil.Process]


@dataclass(frozen=True)
class Settings:
    """rounds: times that every system is timed, after one that warms up; tokens: of a reply."""

    rounds: int = 7
    tokens: int = 64


QUICK = Settings(rounds=1, tokens=16)


@contextmanager
def ours(model: str, bits: int, sessions: int) -> Iterator[System]:
    """`sideplug serve` at these bits, and so many sessions with it."""
    with served(model, "--bits", bits) as (url, process), ExitStack() as stack:
        yield [token_stream(stack.enter_context(open_session(url))) for _ in range(sessions)], process


@contextmanager
def llama_cpp(gguf: Path, slots: int) -> Iterator[System]:
    """llama.cpp's server with so many slots, in a process of its own."""
    with child("-m", "sideplug.bench.rivals.llama_server", gguf, slots, cores()[0]) as server:

        def stream(ids: list[int], tokens: int) -> list[float]:
            url, settings = server.ready["url"], {"temperature": 0, "ignore_eos": True}
            return [time.perf_counter() for _ in llama_server.completion(url, ids, tokens, **settings)]

        yield [stream] * slots, server.process


def memory_mb(process: psutil.Process) -> dict[str, float]:
    """Return a process's resident and proportional memory."""
    info = process.memory_full_info()
    return {"rss_mb": round(info.rss / 1e6), "pss_mb": round(info.pss / 1e6)}


def run(model: str, settings: Settings, save: Save) -> Result:
    """Time all systems, round by round. Raises InputError where the model is no GGUF, which llama.cpp needs."""
    gguf = find(model).folder / "model.gguf"
    if not gguf.exists():
        raise InputError(f"{model} must be a GGUF file: llama.cpp is compared")
    rng = np.random.default_rng(0)
    rates: dict[str, list[float]] = {}
    memory: dict[str, dict[str, float]] = {}
    with ExitStack() as stack:
        bandwidth = read_gb_s(cores()[0])
        generate, generator = stack.enter_context(generating(model))
        systems: dict[str, System] = {
            "transformers fp32": ([generate], generator),
            "llama.cpp": stack.enter_context(llama_cpp(gguf, 1)),
            f"llama.cpp, {SLOTS} slots": stack.enter_context(llama_cpp(gguf, SLOTS)),
            "ours, 8 bits": stack.enter_context(ours(model, 8, max(SESSIONS))),
            "ours, 4 bits": stack.enter_context(ours(model, 4, max(SESSIONS))),
        }
        plan = [
            (name, count)
            for name, (streams, _) in systems.items()
            for count in ((SLOTS,) if name.endswith("slots") else SESSIONS)
            if count <= len(streams)
        ]
        for turn in range(settings.rounds + 1):  # the first warms up
            # Ordinary words' ids, so that nobody's reply ends early; others every time, so that nothing is cached.
            prompts = rng.integers(1000, 9000, (max(SESSIONS), PROMPT)).tolist()
            long = rng.integers(1000, 9000, LONG).tolist()
            for name, count in plan:
                rate = decode_rate(systems[name][0][:count], prompts[:count], settings.tokens)
                if turn:
                    rates.setdefault(f"{name}: {count} at once", []).append(rate)
            for name, (streams, process) in systems.items():
                start = time.perf_counter()
                first = streams[0](long, 1)[0]
                if turn:
                    rates.setdefault(f"{name}: prefill", []).append(LONG / (first - start))
                memory[name] = memory_mb(process)
            say(f"round {turn} of {settings.rounds}")
    return {
        "machine": machine(),
        "read_gb_s": round(bandwidth, 1),
        "tokens_per_s": {name: spread(values) for name, values in rates.items()},
        "ratios": ratios(rates),
        "memory": memory,
    }


def ratios(rates: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Return ours over the rivals', round by round."""
    pairs = []
    for bits in (8, 4):
        one, eight = f"ours, {bits} bits: 1 at once", f"ours, {bits} bits: 8 at once"
        pairs += [
            (one, "llama.cpp: 1 at once"),
            (eight, f"llama.cpp, {SLOTS} slots: {SLOTS} at once"),
            (eight, one),
            (f"ours, {bits} bits: prefill", "llama.cpp: prefill"),
            (one, "transformers fp32: 1 at once"),
            (eight, "transformers fp32: 1 at once"),
        ]
    return {
        f"{mine} against {other}": spread([a / max(b, 1e-9) for a, b in zip(rates[mine], rates[other], strict=True)])
        for mine, other in pairs
    }


def summary(result: dict[str, Any]) -> list[str]:
    """Return each rate, ratio and memory as a line."""
    lines = [
        f"{name:70} {value['median']:8.2f}  ({value['min']:.2f} to {value['max']:.2f})"
        for kind in ("tokens_per_s", "ratios")
        for name, value in result[kind].items()
    ]
    lines += [f"{name:70} {value['pss_mb']:8.0f} MB" for name, value in result["memory"].items()]
    return [*lines, f"{'memory is read at':70} {result['read_gb_s']:8.1f} GB/s"]
