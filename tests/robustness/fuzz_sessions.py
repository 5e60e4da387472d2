"""A cloud in a process of its own, fuzzed: sessions with frames that are well-formed but wrong.

Each input is a session. The cloud must say why in an ERROR, and nothing of a session may stay; after each batch an
ordinary session must get its text. "internal" is a bug, and so is silence. Test: pytest -m slow tests/robustness
"""

from __future__ import annotations

import itertools
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sideplug.bench.sessions import open_session
from sideplug.contract.gate import Gate
from sideplug.contract.text import Prompt
from sideplug.plugins import Plugin
from sideplug.terminal import say
from tests.robustness.inputs import answers, mixtures, openings, prompts, readings
from tests.robustness.raw_session import Input, Outcome, play
from tests.robustness.sequences import at_random, hostile, orders
from tests.robustness.tiny_cloud import Cloud, a_cloud, a_plugin, make_model

TOGETHER = 6  # sessions at once
BATCH = 48  # inputs between two ordinary sessions


@dataclass
class Pulse(threading.Thread):
    """Asks /health again and again: how long others wait while this goes on."""

    cloud: Cloud
    name_of: Callable[[], list[str]]
    slow: list[tuple[float, list[str]]] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    def run(self) -> None:
        """Ask until `stopped`; `slow` keeps the five longest waits and what was played meanwhile."""
        while not self.stopped.wait(0.1):
            started = time.monotonic()
            with suppress(OSError):
                self.cloud.metrics()
            self.slow.append((time.monotonic() - started, self.name_of()))
            self.slow = sorted(self.slow, key=lambda one: -one[0])[:5]

    __hash__ = threading.Thread.__hash__


class Run:
    """Inputs played in batches, and what came of them."""

    def __init__(self, cloud: Cloud, seed: int) -> None:
        self._cloud, self._seed = cloud, seed
        self._plugin = a_plugin(cloud.fingerprint, 0, "linear")
        self._expected = ordinary(cloud, self._plugin)
        self._stuck = 0
        self.playing: dict[int, str] = {}  # by thread
        self.outcomes: Counter[str] = Counter()
        self.codes: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self.bugs: list[dict[str, Any]] = []
        self.failures: list[str] = []

    def batch(self, inputs: list[Input], pool: ThreadPoolExecutor) -> bool:
        """Play these sessions, then an ordinary one; False: the cloud is of no use any more."""
        outcomes = list(pool.map(self._one, inputs))
        self.playing.clear()
        for outcome in outcomes:
            self._count(outcome)
        names = sorted({one.name for one in inputs})
        if not self._cloud.process.is_running() or self._cloud.process.status() == "zombie":
            self.failures.append(f"the cloud died: {self._cloud.complaints[-1:]}")
            return False
        try:
            if ordinary(self._cloud, self._plugin) != self._expected:
                self.failures.append(f"an ordinary session got another text after {names}")
        except Exception as error:
            self.failures.append(f"an ordinary session failed ({error}) after {names}")
            return False
        self._nothing_stays(outcomes)
        return True

    def _one(self, case: Input) -> Outcome:
        self.playing[threading.get_ident()] = case.name
        return play(self._cloud, case, self._seed)

    def _count(self, outcome: Outcome) -> None:
        last = outcome.errors[-1] if outcome.errors else outcome.end
        self.outcomes[f"{outcome.name.split(' ')[0]}: {last}"] += 1
        self.codes.update(outcome.errors or ["none"])
        self.ends[outcome.end] += 1
        if outcome.bug:
            self.bugs.append({"bug": outcome.bug, **vars(outcome)})
            say(f"BUG: {outcome.bug}: {outcome.name}: {outcome.sent}")

    def _nothing_stays(self, outcomes: list[Outcome]) -> None:
        names = ["sideplug_sessions", "sideplug_working", "sideplug_waiting"]
        left = self._cloud.settled(10, *names)
        if (now := int(sum(left[name] for name in names))) > self._stuck:
            self._stuck = now
            which = {name: left[name] for name in names}
            self.bugs.append({"bug": f"something stays: {which}", "batch": [(o.name, o.sent) for o in outcomes]})
            say(f"BUG: something stays: {which}")


def fuzz_sessions(count: int, seed: int) -> tuple[dict[str, Any], list[str]]:
    """Play so many sessions, those of `hostile`, `inputs` and `orders` first, then random ones: (figures, faults)."""
    systematic = [*openings(), *prompts(), *answers(), *mixtures(), *readings(), *orders()]
    random.Random(seed).shuffle(systematic)  # so that a short run has some of all
    systematic = [*hostile(), *systematic]  # and each of these, few as they are
    say(f"{min(count, len(systematic))} of {len(systematic)} sessions one by one, then at random")
    supply = itertools.islice(itertools.chain(systematic, at_random(seed)), count)
    played = 0
    with (
        tempfile.TemporaryDirectory(prefix="sideplug-fuzz-") as scratch,
        a_cloud(make_model(Path(scratch) / "tiny"), "--kv-memory", "0.01", "--drain-seconds", "5") as cloud,
        ThreadPoolExecutor(TOGETHER) as pool,
    ):
        run = Run(cloud, seed)
        before = resources(cloud)
        pulse = Pulse(cloud, lambda: list(run.playing.values()))
        pulse.start()
        while batch := list(itertools.islice(supply, BATCH)):
            played += len(batch)
            if not run.batch(batch, pool):
                break
        pulse.stopped.set()
        pulse.join()
        complaints = cloud.complaints
        after = resources(cloud) if not run.failures else {}
    if complaints:
        run.failures.append(f"the cloud's log has faults: {complaints[:3]}")
    figures = {
        "inputs": played,
        "one_by_one": min(played, len(systematic)),
        "of": len(systematic),
        "error_codes": dict(run.codes),
        "ends": dict(run.ends),
        "outcomes": dict(sorted(run.outcomes.items())),
        "start": before,
        "end": after,
        "others_waited_s_at_most": [{"s": round(s, 3), "while": names} for s, names in pulse.slow],
        "bugs": run.bugs[:50],
        "complaints": complaints[:20],
    }
    return figures, run.failures + [f"{bug['bug']} ({bug.get('name', 'a batch')})" for bug in run.bugs]


def resources(cloud: Cloud) -> dict[str, float]:
    """Return the cloud's memory and file descriptors."""
    rss = round(cloud.process.memory_info().rss / 2**20, 1)
    return {"rss_mb": rss, "file_descriptors": cloud.process.num_fds()}


def ordinary(cloud: Cloud, plugin: Plugin) -> str:
    """Return what a session gets that does nothing wrong, with a plugin and without."""
    texts = []
    for who, gate in ((plugin, None), (None, Gate("shut"))):
        with open_session(cloud.address(), who, gate) as opened:
            texts.append(opened.generate(Prompt.user("Is it far?"), 24).text)
    return "\n".join(texts)
