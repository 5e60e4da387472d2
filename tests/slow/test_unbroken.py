"""Nothing is lost on the real model: a network that fails, a cloud that is killed in a reply, another turn of a talk.

Run: pytest -m slow tests/slow/test_unbroken.py
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import numpy as np
import pytest

from sideplug.contract.sampling import Sampling
from sideplug.contract.tap import Tap
from sideplug.contract.text import Prompt
from sideplug.device.address import Address
from sideplug.device.client import Client
from sideplug.device.session import Session
from sideplug.plugins import Plugin
from tests.conftest import free_port, serving
from tests.faults import faulty, seeded

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PROMPT = Prompt.user("Write a short letter to a friend about the sea.")
SAMPLED = Sampling(temperature=0.8, seed=3)
TOKENS = 60


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def plugin(port: int) -> Iterator[Plugin]:
    """Of the default shape; its corrections change some tokens. A cloud is there as long as it is."""
    with serving(port):
        model = Client.at(f"ws://127.0.0.1:{port}").model()
        made = Plugin.new(
            "ladder", model.fingerprint, model.name, Tap.spread(model.blocks, model.width), 128, model.width
        )
        rng = np.random.default_rng(1)
        params = made.trained.params
        for name, value in params.items():
            params[name] = (value + rng.normal(0, 0.02, value.shape)).astype(np.float32)
        yield made


def a_session(url: str, plugin: Plugin) -> Session:
    return Client(Address(url, retry_s=120.0)).connect(plugin)


def text(session: Session, prompt: Prompt = PROMPT) -> str:
    return session.generate(prompt, TOKENS, SAMPLED).text


@pytest.fixture(scope="module")
def want(port: int, plugin: Plugin) -> str:
    session = a_session(f"ws://127.0.0.1:{port}", plugin)
    found = text(session)
    assert session.usage.plugin_tokens > 10
    session.close()
    return found


@pytest.mark.parametrize("seed", range(6))
def test_through_a_network_that_fails(port: int, plugin: Plugin, want: str, seed: int) -> None:
    with faulty(f"ws://127.0.0.1:{port}", seeded(seed, connections=4, seconds=0.5)) as proxy:
        session = a_session(proxy.url, plugin)
        assert text(session) == want
        session.close()


def test_the_next_turn_is_the_same_whether_the_first_was_cached(port: int, plugin: Plugin, want: str) -> None:
    """And quick: only the new is run. A cloud that forgets at once gives the same text."""
    said = [
        *(PROMPT.messages or ()),
        {"role": "assistant", "content": want},
        {"role": "user", "content": "And the hills?"},
    ]
    prompt = Prompt(messages=tuple(said))
    session = a_session(f"ws://127.0.0.1:{port}", plugin)
    assert text(session) == want
    cached = text(session, prompt)
    assert session.usage.cached > 20
    session.close()
    other = free_port()
    with serving(other, "--keep-seconds", "0"):
        session = a_session(f"ws://127.0.0.1:{other}", plugin)
        assert text(session, prompt) == cached
        assert session.usage.cached == 0
        session.close()


@pytest.mark.parametrize(("number", "bits"), [(signal.SIGKILL, "8"), (signal.SIGTERM, "8"), (signal.SIGKILL, "4")])
def test_a_cloud_that_is_stopped_in_a_reply(plugin: Plugin, number: int, bits: str) -> None:
    """Killed at three places, and another takes its port: the text goes on there. SIGTERM lets it end where it is."""
    port = free_port()
    url = f"ws://127.0.0.1:{port}"
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(serving(port, "--bits", bits))
        session = a_session(url, plugin)
        want = text(session)
        for place in (1, 12, 30):
            pieces, found = session.generate(PROMPT, TOKENS, SAMPLED), ""
            for count, piece in enumerate(pieces):
                found += piece.text
                if count == place:
                    process.send_signal(number)
                    if number == signal.SIGKILL:
                        process.wait()
                        process = stack.enter_context(serving(port, "--bits", bits))
            assert found == want
            if number == signal.SIGTERM:
                assert session.usage.resumed == (place > 1)  # of the one before: the session comes back at its PROMPT
                assert process.wait(60) == 0
                process = stack.enter_context(serving(port, "--bits", bits))
            else:
                assert session.usage.resumed == 1
        session.close()
