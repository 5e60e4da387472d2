"""The load test: many devices, keys, TLS, little memory, and people and lines that misbehave, for ten minutes.

    python -m tests.robustness.load                  64 sessions, 10 minutes (one before, for the expected texts)
    python -m tests.robustness.load --quick          16 sessions, half a minute
    python -m tests.robustness.load --minutes 30

`sideplug serve` runs a tiny model (tiny_cloud) in a process of its own, with memory for 30 % of what all sessions would
need. Each session is a person (people) with a key (of 8), a plugin and conversations of their own; what each reply must
be is found beforehand, alone on the same cloud. Then all talk at once, with random paces and pauses, while lines are
cut in the middle of replies, devices read or answer late or cancel, and strangers never answer or read, or send junk.

It fails (exit code 1, one sentence) where a text is wrong, a session gets an error other than "busy", something is left
of a session that is gone (sessions, texts, their memory, file descriptors), or the cloud's memory grows.
Results: bench/results/load.json (with --quick only where --out says). Test: pytest -m slow tests/robustness
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from sideplug.bench.meters import machine
from sideplug.bench.sessions import open_session
from sideplug.cloud.keys import Keys
from sideplug.plugins import Plugin
from sideplug.terminal import say
from tests.robustness.people import Person, Script, scripts_of
from tests.robustness.strangers import Strangers
from tests.robustness.tiny_cloud import (
    CONTEXT,
    KV_TOKEN_BYTES,
    WORDS,
    Cloud,
    Watch,
    a_cloud,
    a_plugin,
    make_model,
    with_memory,
)

RESULT = Path("bench/results/load.json")
KEYS = 8
KINDS = {"ladder": 7, "toy-attention": 2, "paper": 1}  # of ten people; toy-attention needs context rows
MEMORY = 0.3  # of what all texts would need at once
KEEP_S = 15  # short, so that kept texts expire in the middle too
WARM_UP = 0.2  # of the run: what memory is compared with afterwards
GROWTH, SHORT_GROWTH = 0.10, 0.25  # of the cloud's memory since then, that is allowed; in less than five minutes
PATIENCE_S = 90.0  # for a busy cloud, and for one that was lost
GAUGES = ("sessions", "working", "waiting", "cached_texts", "kv_reserved_bytes")  # 0 when all are gone
logging.getLogger("websockets").setLevel(logging.CRITICAL)  # lines that we cut ourselves


@dataclass(frozen=True)
class Settings:
    """conversations: of each session, said again and again."""

    minutes: float = 10
    sessions: int = 64
    conversations: int = 2
    seed: int = 0


def main() -> None:
    """Run the test, and write what it found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--sessions", type=int, default=64)
    parser.add_argument("--conversations", type=int, default=2, help="of each session, said again and again")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="16 sessions, half a minute, one conversation each")
    parser.add_argument("--out", type=Path, help="the results' file")
    options = parser.parse_args()
    settings = Settings(options.minutes, options.sessions, options.conversations, options.seed)
    if options.quick:
        settings = Settings(0.5, 16, 1, options.seed)
    out = options.out or (None if options.quick else RESULT)
    with tempfile.TemporaryDirectory(prefix="sideplug-load-") as scratch:
        result, failures = run(settings, Path(scratch))
    if out:
        out.write_text(json.dumps(result, indent=2) + "\n")
    else:
        print(json.dumps(result, indent=2))
    if failures:
        print("; ".join(failures))
        sys.exit(1)
    rss = result["server_rss_mb"]
    print(
        f"{result['replies']} replies, {result['tokens_s']} tokens/s, no wrong text, nothing leaked: "
        f"{result['cuts']} lines cut, {result['busy']} times busy, first token p50 {result['first_token_s']['p50']} s, "
        f"memory {rss['at_20']} → {rss['at_100']} MB"
    )


def run(settings: Settings, scratch: Path) -> tuple[dict[str, Any], list[str]]:
    """Let all of them talk: (figures, failures)."""
    rng = random.Random(settings.seed)
    folder = make_model(scratch / "tiny")
    systems = [" ".join(rng.choices(WORDS, k=60)) for _ in range(2)]
    plans = [scripts_of(rng, settings.conversations, systems) for _ in range(settings.sessions)]
    keys = Keys(scratch / "keys.json")
    # More than a key's sessions: those that were cut off may still be there for a moment, and strangers have one too.
    texts = [keys.add(f"person-{n}", sessions=2 * (settings.sessions // KEYS + 1) + 8) for n in range(KEYS)]
    stranger = keys.add("stranger", sessions=200)
    operator = keys.add("operator", sessions=4, role="operator")
    need = sum(max(map(_tokens_of(folder), plan)) for plan in plans)
    memory_bytes = max(int(MEMORY * need), CONTEXT) * KV_TOKEN_BYTES
    say(f"all texts would need {need} tokens at once; there is memory for {memory_bytes // KV_TOKEN_BYTES}")
    queue = max(4, settings.sessions // 2)  # so that some are sent away
    flags = ["--queue", str(queue), "--kv-memory", str(memory_bytes / 2**30)]
    flags += ["--keep-seconds", str(KEEP_S), "--drain-seconds", "10"]
    with a_cloud(folder, *flags, keys=keys.path, key=operator) as cloud:
        people = [
            Person(n, settings.seed, cloud, texts[n % KEYS], _plugin(rng, cloud, n, plan), plan)
            for n, plan in enumerate(plans)
        ]
        began = time.monotonic()
        for person in people:
            person.learn()
            if person.number % 8 == 7:
                say(f"alone: {person.number + 1} of {len(people)} sessions ({time.monotonic() - began:.0f} s)")
        known = people[0].scripts[0].turns[0].prompt
        with open_session(cloud.address()) as alone:
            base_text = alone.generate(known, 48).text
        cloud.settled(10, "sideplug_sessions", "sideplug_working")
        descriptors = cloud.process.num_fds()
        start = cloud.metrics()
        watch = Watch(cloud.process)
        watch.start()
        began, end = time.monotonic(), time.monotonic() + 60 * settings.minutes
        strangers = Strangers(cloud, stranger, known, base_text, settings.seed, end)
        for person in people:
            person.start(end)
        strangers.start()
        peak = _until(end, cloud, people, watch)
        for person in people:
            person.thread.join(PATIENCE_S)
        seconds = time.monotonic() - began
        watch.stop()
        outcomes = strangers.gone()
        stuck = sum(person.thread.is_alive() for person in people)
        if not cloud.process.is_running() or cloud.process.status() == "zombie":
            sys.exit(f"the cloud died: {cloud.complaints[-1:] or 'without a word'}")
        final = cloud.settled(KEEP_S + 20, *(f"sideplug_{name}" for name in GAUGES))
        after = cloud.process.num_fds()
        complaints = cloud.complaints
    result = {
        "machine": machine(),
        "minutes": settings.minutes,
        "sessions": settings.sessions,
        "keys": KEYS,
        "memory_tokens": memory_bytes // KV_TOKEN_BYTES,
        "tokens_all_would_need": need,
        **_of_people(people, strangers.wrong, seconds),
        "at_most": dict(peak),
        "server_rss_mb": memory(watch.rss_mb),
        "file_descriptors": {"start": descriptors, "end": after},
        "left": {f"sideplug_{name}": final[f"sideplug_{name}"] for name in GAUGES},
        "strangers": outcomes,
        "complaints": complaints[:20],
        "cloud": _counted(start, final),
    }
    failures = failures_of(result)
    return result, failures + ([f"{stuck} sessions hang"] if stuck else [])


def _until(end: float, cloud: Cloud, people: list[Person], watch: Watch) -> Counter[str]:
    """Wait for the end, and say how it goes; the most that was in the cloud at once."""
    peak: Counter[str] = Counter()
    began = time.monotonic()
    while time.monotonic() < end and cloud.process.is_running():
        for _ in range(10):
            time.sleep(max(0.0, min(1.0, end - time.monotonic())))
            with suppress(OSError):
                seen = cloud.metrics()
                peak |= Counter({name: int(seen[f"sideplug_{name}"]) for name in ("sessions", "working", "waiting")})
        replies, wrong = sum(len(p.answered) for p in people), sum(len(p.wrong) for p in people)
        say(f"{time.monotonic() - began:4.0f} s: {replies} replies, {wrong} wrong, {watch.rss_mb[-1]:.0f} MB")
    return peak


def _of_people(people: list[Person], wrong_of_strangers: list[str], seconds: float) -> dict[str, Any]:
    """Return what people saw, in figures."""
    wrong = [line for person in people for line in person.wrong] + wrong_of_strangers
    errors: Counter[str] = sum((person.errors for person in people), Counter())
    busy = {name: count for name, count in errors.items() if name.startswith("busy")}
    answered = [reply for person in people for reply in person.answered]
    return {
        "replies": len(answered),
        "tokens": sum(reply.tokens for reply in answered),
        "tokens_s": round(sum(reply.tokens for reply in answered) / seconds, 1),
        "wrong_texts": len(wrong),
        "wrong": wrong[:20],
        "busy": sum(busy.values()),
        "busy_by_kind": busy,
        "busy_wait_s": round(sum(wait for person in people for wait in person.waits), 1),
        "errors": {name: count for name, count in errors.items() if name not in busy},
        "troubles": dict(Counter(reply.trouble or "none" for reply in answered)),
        "cuts": sum(person.cuts for person in people),
        "cancelled": sum(person.cancelled for person in people),
        "resumed": sum(reply.resumed for reply in answered),
        "cached_share_of_replies": round(sum(reply.cached > 0 for reply in answered) / max(1, len(answered)), 3),
        "context_rows": sum(reply.context_rows for reply in answered),
        "first_token_s": percentiles([r.first_s for r in answered if not r.trouble]),
        "fairness": fairness(people),
    }


def failures_of(result: dict[str, Any]) -> list[str]:
    """Return what of a run's figures must not be, a sentence each."""
    failures = []
    rss, descriptors = result["server_rss_mb"], result["file_descriptors"]
    if result["wrong_texts"]:
        failures.append(f"{result['wrong_texts']} texts are wrong, the first: {result['wrong'][0][:300]}")
    if any(result["left"].values()):
        failures.append(f"something is left of sessions that are gone: {result['left']}")
    if descriptors["end"] > descriptors["start"] + 2:
        failures.append(f"file descriptors leak: {descriptors['start']} at the start, {descriptors['end']} at the end")
    if rss["grown"] > (GROWTH if result["minutes"] >= 5 else SHORT_GROWTH):
        failures.append(f"the cloud's memory grew by {rss['grown']:.1%} after the warm-up ({rss})")
    if result["errors"]:
        failures.append(f"sessions met errors: {result['errors']}")
    if result["complaints"]:
        failures.append(f"the cloud met faults of its own: {result['complaints'][:3]}")
    if "LET IN" in result["strangers"]["wrong key"]:
        failures.append("a wrong key was let in")
    return failures


def _counted(start: dict[str, float], final: dict[str, float]) -> dict[str, float]:
    """Return what the cloud's own counters counted."""
    skipped = ("_bucket", "_created", "_bytes", "_frames", "_info")
    names = [n for n in sorted(final) if n.startswith("sideplug_") and not any(part in n for part in skipped)]
    counted = {name: round(final[name] - start.get(name, 0), 3) for name in names}
    return {name: value for name, value in counted.items() if value}


def _tokens_of(folder: Path) -> Callable[[Script], int]:
    """What a conversation comes to at most, with its replies and the template's tokens."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def count(script: Script) -> int:
        return len(tokenizer.encode(script.words).ids) + sum(script.max_tokens) + 24 * len(script.said)

    return count


def _plugin(rng: random.Random, cloud: Cloud, number: int, plan: list[Script]) -> Plugin:
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    gate = rng.choices(["open", "linear"], [1, 2])[0]
    plugin = a_plugin(cloud.fingerprint, number, gate, rng.choice(["int8", "int8", "fp16"]), kind)
    if kind == "paper" or rng.random() > 0.2:
        return plugin
    return with_memory(plugin, plan[0].said[0], number)  # of the first thing that it is asked


def percentiles(values: list[float]) -> dict[str, float]:
    """Return the 50th, 95th and 99th percentile."""
    values = values or [0.0]
    return {f"p{q}": round(float(np.percentile(values, q)), 3) for q in (50, 95, 99)}


def fairness(people: list[Person]) -> dict[str, float]:
    """The slowest session beside the median one: in replies, and in how long it waits for a first token (of replies
    without trouble, in the median; a text's speed depends on how long it is)."""
    replies = [len(person.answered) for person in people]
    calm = [[reply.first_s for reply in person.answered if not reply.trouble] for person in people]
    waits = [statistics.median(one) for one in calm if one] or [0.0]
    return {
        "replies_median": statistics.median(replies),
        "replies_slowest": min(replies),
        "replies_slowest_to_median": round(min(replies) / max(1, statistics.median(replies)), 3),
        "first_token_s_median": round(statistics.median(waits), 3),
        "first_token_s_slowest": round(max(waits), 3),
    }


def memory(rss_mb: list[float]) -> dict[str, float]:
    """At some points of the run (medians of a tenth of it), and how it grew after the warm-up."""

    def at(share: float) -> float:
        tenth = max(1, len(rss_mb) // 10)
        first = min(int(share * len(rss_mb)), len(rss_mb) - tenth)
        return round(statistics.median(rss_mb[max(0, first) : first + tenth]), 1)

    after = rss_mb[int(WARM_UP * len(rss_mb)) :]
    slope = float(np.polyfit(np.arange(len(after)), after, 1)[0]) * 60 if len(after) > 2 else 0.0
    points = {f"at_{int(100 * share)}": at(share) for share in (0, 0.1, WARM_UP, 0.5, 1)}
    grown = round(points["at_100"] / points[f"at_{int(100 * WARM_UP)}"] - 1, 4)
    return {**points, "peak": round(max(rss_mb), 1), "mb_a_minute": round(slope, 3), "grown": grown}


if __name__ == "__main__":
    main()
