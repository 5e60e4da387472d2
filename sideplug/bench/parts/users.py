"""One base model, many people: throughput with a plugin each, with one for all, and PEFT with a LoRA each in one batch.

Nobody's adapter is in our cloud, so its steps should not notice whose plugin corrects whom: the first two curves must
coincide. PEFT has one LoRA (r=8, q and v) a person, all in one batch, and beside it the same batch without any. Then
the memory that a further person costs the cloud, and what TLS, keys and /metrics cost a token.

Every round times every system at every count (PEFT in the first rounds); ratios are taken round by round. The devices
are threads of one process on the same cores as the cloud, for our curves alike.
Test: sideplug bench --part users --quick
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from sideplug.bench.meters import machine
from sideplug.bench.parts import Result, Save
from sideplug.bench.processes import child, served
from sideplug.bench.rivals.peft_batch import BatchRate, batching
from sideplug.bench.sessions import decode_rate, open_session, token_stream
from sideplug.bench.spreads import spread
from sideplug.cloud.store import find
from sideplug.contract.frames import Ask, PromptFrame, SamplingSpec
from sideplug.contract.gate import Gate
from sideplug.contract.tap import Tap
from sideplug.contract.text import Prompt
from sideplug.device import states
from sideplug.device.address import Address, get
from sideplug.device.responders import Listener
from sideplug.device.session import Session
from sideplug.plugins import Plugin
from sideplug.terminal import say
from sideplug.training.recipe import FACTS, Recipe

PROMPT = 32  # tokens
EACH, SHARED, SHUT = "ours, a plugin each", "ours, one for all", "ours, gates shut"
LORA, NO_LORA = "PEFT, a LoRA each", "PEFT's base, no LoRA"
GATE_RATE = 0.25  # of the tokens that a device is asked about
KV_BYTES = 2 * 30 * 3 * 64 * 4  # a token's keys and values in the 135M model: 30 layers, 3 heads of 64 float32


@dataclass(frozen=True)
class Settings:
    """sessions: at once; tokens: of a reply; peft_rounds: PEFT is slow, fewer will do, 0: without it."""

    sessions: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    rounds: int = 5
    tokens: int = 32
    peft_rounds: int = 3


QUICK = Settings(sessions=(1, 2), rounds=1, tokens=12, peft_rounds=1)


def run(model: str, settings: Settings, save: Save) -> Result:
    """Measure throughput, memory and the overhead of a guarded cloud."""
    s = settings
    return {
        "machine": machine(),
        "model": find(model).name,
        **measure(model, s.sessions, s.rounds, s.tokens, s.peft_rounds),
        "memory": memory(model, max(s.sessions)),
        "overhead": overhead(model, s.rounds, 3 * s.tokens),
    }


def small_plugin(opened: Session, seed: int) -> Plugin:
    """Return a random plugin of the default shape, whose corrections leave most tokens: its work is a trained one's."""
    plugin = Recipe(FACTS).new_plugin(opened.model)
    params = plugin.trained.params
    rng = np.random.default_rng(seed)
    for name, value in params.items():
        params[name] = (value + rng.normal(0, 0.01, value.shape)).astype(np.float32)
    return plugin


def random_gate(url: str, prompts: list[list[int]]) -> Gate:
    """Return a gate with a random direction of z, open for GATE_RATE of what the model writes."""
    scores = []
    with states.listen(url) as stream:
        weight_D = np.random.default_rng(9).normal(0, 1, stream.model.width).astype(np.float32)
        for ids in prompts:
            scores += [float(step.states[-1] @ weight_D) for step in stream.generate(Prompt(ids=tuple(ids)), 48)]
    return Gate("linear", weight_D, 0.0, threshold=float(np.quantile(scores, 1 - GATE_RATE)), memory=0.0)


class Ours:
    """Sessions with a served cloud, each with a plugin of its own or all with the first's, or a shut gate."""

    def __init__(self, url: str, most: int, prompts: list[list[int]], stack: ExitStack) -> None:
        def opened(plugin: Plugin | None = None, gate: Gate | None = None) -> Session:
            return stack.enter_context(open_session(url, plugin, gate))

        plain = opened()
        gate = random_gate(url, prompts[:4])
        plugins = [small_plugin(plain, seed) for seed in range(most)]
        self.systems = {
            EACH: [opened(plugin, gate) for plugin in plugins],
            SHARED: [opened(plugins[0], gate) for _ in plugins],
            SHUT: [opened() for _ in plugins],
        }
        self.plugin_tokens = 0
        self.tokens = 0

    def rate(self, name: str, prompts: list[list[int]], tokens: int) -> float:
        """Return the tokens a second of the first sessions of this system, one a prompt."""
        sessions = self.systems[name][: len(prompts)]
        rate = decode_rate([token_stream(one) for one in sessions], prompts, tokens)
        if name == EACH:
            self.plugin_tokens += sum(one.usage.plugin_tokens for one in sessions)
            self.tokens += sum(one.usage.reply_tokens for one in sessions)
        return rate


def measure(model: str, counts: tuple[int, ...], rounds: int, tokens: int, peft_rounds: int = 3) -> dict[str, Any]:
    """Return the tokens a second of all together for each count, ours and PEFT's, and ratios taken round by round."""
    rates: dict[str, dict[int, list[float]]] = {}
    rng = np.random.default_rng(0)
    most = max(counts)
    with ExitStack() as stack:
        url, _ = stack.enter_context(served(model, "--insecure"))
        with states.listen(url) as stream:  # ordinary words' ids, so that nobody's reply ends early
            words = (min(1000, stream.model.vocab // 2), min(9000, stream.model.vocab))
        ours = Ours(url, most, rng.integers(*words, (4, PROMPT)).tolist(), stack)
        peft = stack.enter_context(batching(model, most)) if peft_rounds else None
        for turn in range(rounds + 1):  # the first warms up
            for count in counts:
                prompts = rng.integers(*words, (count, PROMPT)).tolist()
                timed = one_round(ours, peft if turn <= peft_rounds else None, prompts, tokens, turn)
                for name, rate in timed.items():
                    if turn:
                        rates.setdefault(name, {}).setdefault(count, []).append(rate)
                say(f"{turn} {count} { {name: round(rate, 1) for name, rate in timed.items()} }")
        plugin_share = ours.plugin_tokens / max(1, ours.tokens)
    pairs = {"each_over_shared": (EACH, SHARED), "each_over_shut": (EACH, SHUT)}
    if peft_rounds:
        pairs |= {"each_over_peft": (EACH, LORA), "peft_over_its_base": (LORA, NO_LORA)}

    def over(one: str, other: str, count: int) -> dict[str, float]:
        return spread([a / max(b, 1e-9) for a, b in zip(rates[one][count], rates[other][count], strict=False)])

    return {
        "prompt_tokens": PROMPT,
        "reply_tokens": tokens,
        "asked_share": round(plugin_share, 3),
        "tokens_per_s": {name: {n: spread(values) for n, values in by.items()} for name, by in rates.items()},
        "step_ms": {n: round(1000 * n / max(1e-9, spread(values)["median"]), 2) for n, values in rates[SHUT].items()},
        **{name: {n: over(a, b, n) for n in counts} for name, (a, b) in pairs.items()},
    }


def one_round(ours: Ours, peft: BatchRate | None, prompts: list[list[int]], tokens: int, turn: int) -> dict[str, float]:
    """Return each system's tokens a second on these prompts.

    In another order each round: what was run before leaves a machine warm, or its caches cold.
    """
    names = list(ours.systems)
    timed = {name: ours.rate(name, prompts, tokens) for name in names[turn % 3 :] + names[: turn % 3]}
    if peft:
        timed |= {LORA: peft(prompts, tokens, True), NO_LORA: peft(prompts, tokens, False)}
    return timed


def memory(model: str, most: int) -> dict[str, float]:
    """Return what `most` further sessions cost the cloud, in bytes each: open and idle, then with a text in work."""
    with served(model) as (url, process), ExitStack() as stack:
        warm = stack.enter_context(open_session(url))
        list(warm.generate(Prompt(ids=tuple(range(1000, 1032))), 8))
        tap = Tap.spread(warm.model.blocks, warm.model.width)

        def used() -> int:
            return int(process.memory_full_info().uss)

        before = used()
        sessions = [
            stack.enter_context(open_session(url, responder=Listener(tap, warm.model.width))) for _ in range(most)
        ]
        time.sleep(1)
        idle = used()
        texts = np.random.default_rng(1).integers(1000, 9000, (most, 256)).tolist()
        half = 0
        for number, (opened, ids) in enumerate(zip(sessions, texts, strict=True)):
            # Its prompt is run, and it waits at its first ask. What a step needs is there after the first half.
            half = used() if number == most // 2 else half
            opened.send(PromptFrame(1, 256, SamplingSpec(), ids=ids))
            while not isinstance(opened.receive(), Ask):
                pass
        time.sleep(1)
        working = used()
        metrics = get(Address(url), "/metrics").splitlines()
        gauge = next(line for line in metrics if line.startswith("sideplug_kv_reserved_bytes"))
        reserved = float(gauge.split()[1])
    return {
        "sessions": most,
        "idle_bytes_each": round((idle - before) / most),
        "working_bytes_each": round((working - half) / (most - most // 2)),
        "kv_bytes_of_its_text": 256 * KV_BYTES,
        "kv_reserved_bytes_each": round(reserved / most),
    }


@contextmanager
def scraped(address: Address) -> Iterator[None]:
    """/metrics is read every second meanwhile."""
    stop = threading.Event()

    def scrape() -> None:
        while not stop.wait(1.0):
            get(address, "/metrics")

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def overhead(model: str, rounds: int, tokens: int) -> dict[str, Any]:
    """Return the microseconds a token that TLS, keys and a /metrics read every second add, the gate always open."""
    rates: dict[str, list[float]] = {"plain": [], "guarded": []}
    with ExitStack() as stack:
        plain_url, _ = stack.enter_context(served(model, "--insecure"))
        guarded = stack.enter_context(child("-m", "sideplug", "serve", model, "--port", 0, "--json", "--tls-self"))
        addresses = {
            "plain": Address(plain_url),
            "guarded": Address(guarded.ready["url"], pin=guarded.ready["pin"]),
        }
        for turn in range(rounds + 1):
            for name, address in addresses.items():
                ids = np.random.default_rng(turn).integers(1000, 9000, PROMPT).tolist()
                with ExitStack() as busy:
                    if name == "guarded":
                        busy.enter_context(scraped(address))
                    plugin = small_plugin(busy.enter_context(open_session(address)), 0)
                    opened = busy.enter_context(open_session(address, plugin, Gate("open")))
                    rate = decode_rate([token_stream(opened)], [ids], tokens)
                if turn:
                    rates[name].append(rate)
    added = [1e6 / g - 1e6 / p for p, g in zip(rates["plain"], rates["guarded"], strict=True)]
    return {"tokens_per_s": {name: spread(values) for name, values in rates.items()}, "added_us_a_token": spread(added)}


def summary(result: dict[str, Any]) -> list[str]:
    """Return tokens a second by system and sessions, the ratios, memory and overhead as lines."""
    lines = [
        f"{name:24} {count:>3} at once {value['median']:8.1f} tokens/s  ({value['min']:.1f} to {value['max']:.1f})"
        for name, by in result["tokens_per_s"].items()
        for count, value in by.items()
    ]
    lines += [
        f"{name:24} {count:>3} at once {value['median']:8.2f}  ({value['min']:.2f} to {value['max']:.2f})"
        for name in ("each_over_shared", "each_over_shut", "each_over_peft", "peft_over_its_base")
        for count, value in result.get(name, {}).items()
    ]
    lines += [f"memory: {name} {value:,.0f}" for name, value in result["memory"].items()]
    return [*lines, f"TLS, keys and /metrics: {result['overhead']['added_us_a_token']['median']:.0f} µs a token"]
