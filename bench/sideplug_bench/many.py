"""One base model, many people: throughput with a plugin each, with one for all, and PEFT with a LoRA each in one batch.

Nobody's adapter is in our cloud, so its steps should not notice whose plugin corrects whom: the first two curves must
coincide. PEFT has one LoRA (r=8, q and v) a person, all in one batch (`adapter_names`), and beside it the same batch
without any. Then the memory that a further person costs the cloud, and what TLS, keys and /metrics cost a token.

    make setup-twins && .venv/bin/python -m sideplug_bench.many [--sessions 1 2 4 8 16 32] [--rounds 5] [--out FILE]

Every round times every system at every count (PEFT in the first rounds); ratios are taken round by round. The devices
are threads of one process on the same cores as the cloud, for our curves alike. Results: bench/results/many.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sideplug.cloud.cores import cores
from sideplug.cloud.store import DEFAULT, find
from sideplug.contract.gate import Gate
from sideplug.contract.sampling import Sampling
from sideplug.contract.tap import Tap
from sideplug.contract.text import Prompt
from sideplug.contract.wire import Frame, Kind
from sideplug.device import states
from sideplug.device.address import Address, get
from sideplug.device.link import WebSocketLink
from sideplug.device.plugin import Plugin
from sideplug.device.runtime import Session
from sideplug_bench.meters import machine
from sideplug_bench.processes import served
from sideplug_bench.spreads import spread

PROMPT = 32  # tokens
EACH, SHARED, SHUT = "ours, a plugin each", "ours, one for all", "ours, gates shut"
LORA, NO_LORA = "PEFT, a LoRA each", "PEFT's base, no LoRA"
GATE_RATE = 0.25  # of the tokens that a device is asked about


def a_plugin(session: Session, seed: int) -> Plugin:
    """Of the default shape, with corrections small enough that most tokens stay: the work is that of a trained one."""
    model = session.model
    tap = Tap.spread(model.blocks, model.width)
    plugin = Plugin.new("ladder", model.fingerprint, model.name, tap, 128, model.width)
    rng = np.random.default_rng(seed)
    for name, value in plugin.params.items():
        plugin.params[name] = (value + rng.normal(0, 0.01, value.shape)).astype(np.float32)
    return plugin


def a_gate(url: str, prompts: list[list[int]]) -> Gate:
    """A random direction of z that is open for GATE_RATE of what the model writes."""
    scores = []
    with states.connect(url) as stream:
        weight_D = np.random.default_rng(9).normal(0, 1, stream.model.width).astype(np.float32)
        for ids in prompts:
            scores += [float(step.states[-1] @ weight_D) for step in stream.generate(Prompt(ids=tuple(ids)), 48)]
    return Gate("linear", weight_D, 0.0, threshold=float(np.quantile(scores, 1 - GATE_RATE)), memory=0.0)


class Ours:
    """Sessions with a served cloud, each with a plugin of its own or all with the first's, or a shut gate."""

    def __init__(self, url: str, most: int, prompts: list[list[int]], stack: ExitStack) -> None:
        opened = lambda *a, **k: self._opened(stack, url, *a, **k)  # noqa: E731
        plain = opened(None)
        gate = a_gate(url, prompts[:4])
        plugins = [a_plugin(plain, seed) for seed in range(most)]
        self.systems = {
            EACH: [opened(plugin, gate=gate) for plugin in plugins],
            SHARED: [opened(plugins[0], gate=gate) for _ in plugins],
            SHUT: [opened(None) for _ in plugins],
        }
        self.asked = 0
        self.tokens = 0

    def _opened(self, stack: ExitStack, url: str, plugin: Plugin | None, **more: Any) -> Session:
        link = WebSocketLink.connect(url)
        stack.callback(link.close)
        return Session.open(link, plugin, **more)

    def rate(self, name: str, prompts: list[list[int]], tokens: int) -> float:
        sessions = self.systems[name][: len(prompts)]

        rate = decode_per_s(lambda session, ids: when_they_came(session, ids, tokens), sessions, prompts)
        if name == EACH:
            self.asked += sum(session.usage.plugin_tokens for session in sessions)
            self.tokens += sum(session.usage.reply_tokens for session in sessions)
        return rate


def when_they_came(session: Session, ids: list[int], tokens: int) -> list[float]:
    return [time.perf_counter() for piece in session.generate(Prompt(ids=tuple(ids)), tokens) for _ in piece.ids]


def decode_per_s(ask: Callable[[Any, list[int]], list[float]], whom: list[Any], prompts: list[list[int]]) -> float:
    """Tokens a second of all together while all of them decode: prefill and stragglers are left out.

    0 where there was no such time: one's reply had ended before another's began.
    """
    with ThreadPoolExecutor(len(prompts)) as pool:
        times = list(pool.map(ask, whom, prompts))
    start, end = max(each[0] for each in times), min(each[-1] for each in times)
    if end <= start:
        return 0.0
    return sum(sum(start < at <= end for at in each) for each in times) / (end - start)


@contextmanager
def peft(model: str, most: int) -> Iterator[Callable[[list[list[int]], int, bool], float]]:
    """In a child that reads [prompts, tokens, with adapters?] lines: tokens a second of the batch, without prefill."""
    command = [sys.executable, "-m", "sideplug_bench.many", "--as-peft", str(most), "--model", model]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.readline()

    def rate(prompts: list[list[int]], tokens: int, adapters: bool) -> float:
        print(json.dumps([prompts, tokens, adapters]), file=process.stdin, flush=True)
        assert process.stdout is not None
        return float(json.loads(process.stdout.readline()))

    try:
        yield rate
    finally:
        process.kill()
        process.wait()


def serve_peft(model: str, most: int) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    from sideplug.cloud.model.torch_model import load_lm

    torch.set_num_threads(cores()[0])
    lm, _ = load_lm(find(model).folder, torch.float32)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    lm = get_peft_model(lm, config, adapter_name="user0")
    for number in range(1, most):
        lm.add_adapter(f"user{number}", config)
    lm.eval()
    print("ready", flush=True)
    for line in sys.stdin:
        prompts, tokens, adapters = json.loads(line)
        ids = torch.tensor(prompts)
        how: dict[str, Any] = {"do_sample": False, "attention_mask": torch.ones_like(ids)}
        names = {"adapter_names": [f"user{n}" for n in range(len(prompts))]} if adapters else {}

        def timed(count: int) -> float:
            start = time.perf_counter()
            with torch.inference_mode():
                lm.generate(input_ids=ids, max_new_tokens=count, min_new_tokens=count, **how, **names)  # noqa: B023
            return time.perf_counter() - start

        with ExitStack() as stack:
            if not adapters:
                stack.enter_context(lm.disable_adapter())
            first, whole = timed(2), timed(tokens)
        print(json.dumps(len(prompts) * (tokens - 2) / (whole - first)), flush=True)


def memory(model: str, most: int) -> dict[str, float]:
    """What `most` further sessions cost the cloud: open and idle, then with a text in work, in bytes each."""
    with served(model) as (url, process), ExitStack() as stack:
        first = WebSocketLink.connect(url)
        stack.callback(first.close)
        warm = Session.open(first)
        list(warm.generate(Prompt(ids=tuple(range(1000, 1032))), 8))
        tap = Tap.spread(warm.model.blocks, warm.model.width)
        info = lambda: process.memory_full_info().uss  # noqa: E731
        before = info()
        sessions = []
        for _ in range(most):
            link = WebSocketLink.connect(url)
            stack.callback(link.close)
            sessions.append(Session.open(link, tap=tap, gate=Gate("open")))
        time.sleep(1)
        idle = info()
        texts = np.random.default_rng(1).integers(1000, 9000, (most, 256)).tolist()
        half = 0
        for number, (session, ids) in enumerate(zip(sessions, texts, strict=True)):
            # Its prompt is run, and it waits at its first ask. What a step needs is there after the first half.
            half = info() if number == most // 2 else half
            control = {"turn": 1, "ids": ids, "max_tokens": 256, "sampling": Sampling().to_wire(), "ahead": 0}
            session.link.send(Frame(Kind.PROMPT, control))
            while session.link.receive().kind is not Kind.ASK:
                pass
        time.sleep(1)
        working = info()
        told = get(Address(url), "/metrics").splitlines()
        promised = float(next(line for line in told if line.startswith("sideplug_kv_promised")).split()[1])
    return {
        "sessions": most,
        "idle_bytes_each": round((idle - before) / most),
        "working_bytes_each": round((working - half) / (most - most // 2)),
        "kv_bytes_of_its_text": 256 * 2 * 30 * 3 * 64 * 4,
        "kv_promised_bytes_each": round(promised / most),
    }


def overhead(model: str, rounds: int, tokens: int) -> dict[str, Any]:
    """Microseconds a token that TLS, keys and a /metrics read every second add, with the gate always open."""
    rates: dict[str, list[float]] = {"plain": [], "guarded": []}
    with ExitStack() as stack:
        plain_url, _ = stack.enter_context(served(model, "--insecure"))
        # `served` shows no pin: the certificate's own fingerprint is asked of the command's line.
        command = [sys.executable, "-m", "sideplug", "serve", model, "--port", "0", "--json", "--tls-self"]
        process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        stack.callback(process.terminate)
        assert process.stdout is not None
        about = json.loads(process.stdout.readline())
        guarded = Address(about["url"], pin=about["pin"])
        stop = threading.Event()

        def scrape() -> None:
            while not stop.wait(1.0):
                get(guarded, "/metrics")

        for turn in range(rounds + 1):
            for name, address in (("plain", Address(plain_url)), ("guarded", guarded)):
                stop.clear()
                scraping = threading.Thread(target=scrape)
                if name == "guarded":
                    scraping.start()
                asking = Session.open(WebSocketLink.open(address))
                session = Session.open(WebSocketLink.open(address), a_plugin(asking, 0), gate=Gate("open"))
                ids = np.random.default_rng(turn).integers(1000, 9000, PROMPT).tolist()
                rate = decode_per_s(lambda s, i: when_they_came(s, i, tokens), [session], [ids])
                session.link.close()
                asking.link.close()
                stop.set()
                if scraping.ident:
                    scraping.join()
                if turn:
                    rates[name].append(rate)
    added = [1e6 / g - 1e6 / p for p, g in zip(rates["plain"], rates["guarded"], strict=True)]
    return {"tokens_per_s": {name: spread(found) for name, found in rates.items()}, "added_us_a_token": spread(added)}


def measure(model: str, counts: list[int], rounds: int, tokens: int, peft_rounds: int = 3) -> dict[str, Any]:
    """Tokens a second of all together for each number of sessions, ours and PEFT's, and ratios taken round by round."""
    rates: dict[str, dict[int, list[float]]] = {}
    rng = np.random.default_rng(0)
    most = max(counts)
    with ExitStack() as stack:
        url, _ = stack.enter_context(served(model, "--insecure"))
        with states.connect(url) as stream:  # ordinary words' ids, so that nobody's reply ends early
            words = (min(1000, stream.model.vocab // 2), min(9000, stream.model.vocab))
        ours = Ours(url, most, rng.integers(*words, (4, PROMPT)).tolist(), stack)
        theirs = stack.enter_context(peft(model, most)) if peft_rounds else None
        for turn in range(rounds + 1):  # the first warms up
            for count in counts:
                prompts = rng.integers(*words, (count, PROMPT)).tolist()
                # In another order each round: what was run before leaves a machine warm, or its caches cold.
                order = [*ours.systems][turn % 3 :] + [*ours.systems][: turn % 3]
                found = {name: ours.rate(name, prompts, tokens) for name in order}
                if theirs and turn <= peft_rounds:
                    found[LORA] = theirs(prompts, tokens, True)
                    found[NO_LORA] = theirs(prompts, tokens, False)
                for name, rate in found.items():
                    if turn:
                        rates.setdefault(name, {}).setdefault(count, []).append(rate)
                print(turn, count, {name: round(rate, 1) for name, rate in found.items()}, file=sys.stderr, flush=True)
        asked = ours.asked / max(1, ours.tokens)
    ratios = {"each_over_shared": (EACH, SHARED), "each_over_shut": (EACH, SHUT)}
    if theirs:
        ratios |= {"each_over_peft": (EACH, LORA), "peft_over_its_base": (LORA, NO_LORA)}
    over = lambda a, b, n: spread([x / max(y, 1e-9) for x, y in zip(rates[a][n], rates[b][n], strict=False)])  # noqa: E731
    return {
        "prompt_tokens": PROMPT,
        "reply_tokens": tokens,
        "asked_share": round(asked, 3),
        "tokens_per_s": {name: {n: spread(found) for n, found in by.items()} for name, by in rates.items()},
        "step_ms": {n: round(1000 * n / max(1e-9, spread(found)["median"]), 2) for n, found in rates[SHUT].items()},
        **{name: {n: over(a, b, n) for n in counts} for name, (a, b) in ratios.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT)
    parser.add_argument("--sessions", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peft-rounds", type=int, default=3, help="PEFT is slow: fewer will do; 0: without it")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("bench/results/many.json"))
    parser.add_argument("--as-peft", type=int, default=0, help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.as_peft:
        return serve_peft(o.model, o.as_peft)
    results = {
        "machine": machine(),
        "model": find(o.model).name,
        **measure(o.model, o.sessions, o.rounds, o.tokens, o.peft_rounds),
        "memory": memory(o.model, max(o.sessions)),
        "overhead": overhead(o.model, o.rounds, 96),
    }
    o.out.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps({k: v for k, v in results.items() if k.startswith("each") or k in ("memory", "overhead")}))


if __name__ == "__main__":
    main()
