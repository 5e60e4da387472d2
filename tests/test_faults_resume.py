"""Through a network that fails in every way, the text is that of an unbroken run: seed after seed."""

from __future__ import annotations

import random
from typing import Any

import pytest

from sideplug.contract.sampling import Sampling
from sideplug.contract.text import Prompt
from sideplug.device.reconnect import RetryPolicy
from sideplug.device.reply import DecodeOptions
from sideplug.device.session import Session
from tests.conftest import Cloud, a_link, a_plugin, a_session
from tests.faults import KINDS, Fault, Kind, faulty, once, seeded

PROMPT = Prompt.user("Is it far to the mill?")
SAMPLED = Sampling(temperature=1.2, seed=5)
TOKENS = 24


def unbroken(url: str, plugin: Any, sampling: Sampling = SAMPLED) -> str:
    with a_session(url, plugin) as session:
        return "".join(piece.text for piece in session.generate(PROMPT, TOKENS, sampling))


def through(url: str, plugin: Any, options: DecodeOptions = DecodeOptions()) -> tuple[str, Session]:
    connect = lambda: a_link(url)  # noqa: E731
    session = a_session(connect(), plugin, connect=connect, retry=RetryPolicy(30.0))
    try:
        return "".join(piece.text for piece in session.generate(PROMPT, TOKENS, SAMPLED, options)), session
    finally:
        session.link.close()


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_fault_in_the_middle_of_a_reply(cloud: Cloud, kind: Kind, direction: Any) -> None:
    plugin = a_plugin(cloud.base.fingerprint)
    want = unbroken(cloud.url, plugin)
    for message in (2, 5):
        with faulty(cloud.url, once(Fault(kind, direction, message, 0.1, message))) as proxy:
            text, session = through(proxy.url, plugin)
            struck = any(done.fault for done in proxy.log)
        assert text == want
        assert struck
        assert session.usage.reply_tokens == TOKENS
        # Nothing else passes unseen; behind an answer nothing goes up to be swapped with it.
        if kind != "delay" and (kind, direction) != ("reorder", "up"):
            assert session.usage.resumed == 1


@pytest.mark.parametrize("runs", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_seed_after_seed(cloud: Cloud, runs: int) -> None:
    """A fault on each of the first two connections, drawn by the run's number, with and without speculation."""
    plugin = a_plugin(cloud.base.fingerprint)
    want = unbroken(cloud.url, plugin)
    struck: dict[str, int] = dict.fromkeys(KINDS, 0)
    resumed = 0
    for seed in range(runs):
        with faulty(cloud.url, seeded(seed, connections=2, seconds=0.05)) as proxy:
            text, session = through(proxy.url, plugin, DecodeOptions(window=random.Random(seed).choice([0, 4, 24])))
            for done in proxy.log:
                if done.fault:
                    struck[done.fault.kind] += 1
        assert text == want, seed
        resumed += session.usage.resumed
    print(f"{runs} runs: {struck}, {resumed} times resumed")
    assert min(struck.values()) >= runs // 40, struck
    assert resumed > runs // 2
