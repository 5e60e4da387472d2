"""Speed and memory of a served model: ours at 8 and 4 bits over the real wire, llama.cpp's server, transformers.

Every system runs in a process of its own and is asked for the same prompts; each round times all of them, one after
another, and ratios are taken round by round. The floor is the bytes of weights that a step reads over the measured read
bandwidth. Run:  make setup-twins && .venv/bin/python bench/decode.py [--rounds 7] [--tokens 64] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from sideplug.cloud.cores import cores
from sideplug.cloud.store import DEFAULT, find
from sideplug.contract.text import Prompt
from sideplug.device.link import WebSocketLink
from sideplug.device.runtime import Session
from sideplug_bench.meters import machine, read_gb_s
from sideplug_bench.processes import served
from sideplug_bench.spreads import spread

PROMPT, LONG = 32, 512  # tokens of a prompt; of the one that times the prefill
Ask = Callable[[list[int], int], list[float]]  # prompt ids, tokens at most → when each token came


@contextmanager
def ours(model: str, bits: str, sessions: int) -> Iterator[tuple[list[Ask], psutil.Process]]:
    with served(model, "--bits", bits) as (url, process), ExitStack() as stack:
        opened = []
        for _ in range(sessions):
            link = WebSocketLink.connect(url)
            stack.callback(link.close)
            opened.append(Session.open(link))

        def ask(session: Session) -> Ask:
            def stream(ids: list[int], tokens: int) -> list[float]:
                pieces = session.generate(Prompt(ids=tuple(ids)), tokens)
                return [time.perf_counter() for piece in pieces for _ in piece.ids]

            return stream

        yield [ask(session) for session in opened], process


@contextmanager
def llama_cpp(gguf: Path, slots: int) -> Iterator[tuple[list[Ask], psutil.Process]]:
    command = [sys.executable, str(Path(__file__).parent / "llama_cpp.py"), str(gguf), str(slots), str(cores()[0])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    url = json.loads(process.stdout.readline())["url"]

    def ask(ids: list[int], tokens: int) -> list[float]:
        body = {"prompt": ids, "n_predict": tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        request = urllib.request.Request(f"{url}/completion", json.dumps(body | {"stream": True}).encode())
        times = []
        with urllib.request.urlopen(request, timeout=600) as reply:
            for line in reply:
                if line.startswith(b"data:") and json.loads(line[5:]).get("tokens"):
                    times.append(time.perf_counter())
        return times

    try:
        yield [ask] * slots, psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


@contextmanager
def transformers_generate(model: str) -> Iterator[tuple[list[Ask], psutil.Process]]:
    """In a child that reads [ids, tokens] lines."""
    command = [sys.executable, __file__, "--as-transformers", "--model", model]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.readline()

    def ask(ids: list[int], tokens: int) -> list[float]:
        print(json.dumps([ids, tokens]), file=process.stdin, flush=True)
        times = []
        for _ in range(tokens):
            process.stdout.readline()
            times.append(time.perf_counter())
        return times

    try:
        yield [ask], psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


def serve_transformers(model: str) -> None:
    import torch

    from sideplug.cloud.model.torch_model import load_lm

    torch.set_num_threads(cores()[0])
    lm, _ = load_lm(find(model).folder, torch.float32)
    lm.eval()
    print("ready", flush=True)

    class Tell:
        """generate puts the prompt first, then each token."""

        def __init__(self) -> None:
            self.heard = 0

        def put(self, ids: Any) -> None:
            self.heard += 1
            if self.heard > 1:
                print("token", flush=True)

        def end(self) -> None: ...

    for line in sys.stdin:
        ids, tokens = json.loads(line)
        how = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
        with torch.inference_mode():
            lm.generate(torch.tensor([ids]), streamer=Tell(), **how)


def decode_per_s(asks: list[Ask], prompts: list[list[int]], tokens: int) -> float:
    """Tokens a second of all together, while all of them decode: prefill and stragglers are left out."""
    with ThreadPoolExecutor(len(asks)) as pool:
        times = list(pool.map(lambda ask, ids: ask(ids, tokens), asks, prompts))
    start, end = max(each[0] for each in times), min(each[-1] for each in times)
    return sum(sum(start < at <= end for at in each) for each in times) / (end - start)


def memory_mb(process: psutil.Process) -> dict[str, float]:
    info = process.memory_full_info()
    return {"rss_mb": round(info.rss / 1e6), "pss_mb": round(info.pss / 1e6)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT, help="a GGUF, or the default")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--as-transformers", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.as_transformers:
        return serve_transformers(arguments.model)
    gguf = find(arguments.model).folder / "model.gguf"
    rng = np.random.default_rng(0)
    rates: dict[str, list[float]] = {}
    memory: dict[str, dict[str, float]] = {}
    with ExitStack() as stack:
        bandwidth = read_gb_s(cores()[0])
        systems = {
            "transformers fp32": stack.enter_context(transformers_generate(arguments.model)),
            "llama.cpp": stack.enter_context(llama_cpp(gguf, 1)),
            "llama.cpp, 8 slots": stack.enter_context(llama_cpp(gguf, 8)),
            "ours, 8 bits": stack.enter_context(ours(arguments.model, "8", 16)),
            "ours, 4 bits": stack.enter_context(ours(arguments.model, "4", 16)),
        }
        plan = [
            (name, count)
            for name, (asks, _) in systems.items()
            for count in ((8,) if name.endswith("slots") else (1, 4, 8, 16))
            if count <= len(asks)
        ]
        for turn in range(arguments.rounds + 1):  # the first warms up
            # Ordinary words' ids, so that nobody's reply ends early; others every time, so that nothing is cached.
            prompts = rng.integers(1000, 9000, (16, PROMPT)).tolist()
            long = rng.integers(1000, 9000, LONG).tolist()
            for name, count in plan:
                asks = systems[name][0][:count]
                rate = decode_per_s(asks, prompts, arguments.tokens)
                if turn:
                    rates.setdefault(f"{name}: {count} at once", []).append(rate)
            for name, (asks, process) in systems.items():
                start = time.perf_counter()
                first = asks[0](long, 1)[0]
                if turn:
                    rates.setdefault(f"{name}: prefill", []).append(LONG / (first - start))
                memory[name] = memory_mb(process)
            print(f"round {turn} of {arguments.rounds}", file=sys.stderr)

    def ratio(ours: str, theirs: str) -> dict[str, float]:
        return spread([a / b for a, b in zip(rates[ours], rates[theirs], strict=True)])

    best = "llama.cpp, 8 slots: 8 at once"
    result = {
        "machine": machine(),
        "read_gb_s": round(bandwidth, 1),
        "tokens_per_s": {name: spread(values) for name, values in rates.items()},
        "ratios": {
            f"{mine} against {other}": ratio(mine, other)
            for bits in ("8", "4")
            for mine, other in (
                (f"ours, {bits} bits: 1 at once", "llama.cpp: 1 at once"),
                (f"ours, {bits} bits: 8 at once", best),
                (f"ours, {bits} bits: 8 at once", f"ours, {bits} bits: 1 at once"),
                (f"ours, {bits} bits: prefill", "llama.cpp: prefill"),
                (f"ours, {bits} bits: 1 at once", "transformers fp32: 1 at once"),
                (f"ours, {bits} bits: 8 at once", "transformers fp32: 1 at once"),
            )
        },
        "memory": memory,
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    for part in ("tokens_per_s", "ratios"):
        for name, value in result[part].items():
            print(f"{name:70} {value['median']:8.2f}  ({value['min']:.2f} to {value['max']:.2f})")
    for name, value in memory.items():
        print(f"{name:70} {value['pss_mb']:8.0f} MB")
    print(f"{'memory is read at':70} {bandwidth:8.1f} GB/s")


if __name__ == "__main__":
    main()
