"""Nothing is lost: a reply whose connection breaks, or whose cloud ends, goes on exactly where it stopped."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sideplug.cloud.engines import EngineOptions
from sideplug.contract.errors import CloudError, InputError, ProtocolError, WrongBase
from sideplug.contract.frames import Begun, Frame, PromptFrame, Tokens
from sideplug.contract.sampling import Sampling
from sideplug.contract.text import Prompt
from sideplug.device.address import Address
from sideplug.device.link import WebSocketLink
from sideplug.device.reconnect import RetryPolicy
from sideplug.device.reply import DecodeOptions
from sideplug.device.session import Session
from sideplug.readers import Example
from sideplug.training.recorder import record, score
from tests.conftest import Cloud, a_cloud, a_link, a_plugin, a_session

PROMPT = Prompt.user("Is it far to the mill?")
SAMPLED = Sampling(temperature=1.2, seed=5)


class Breaking(WebSocketLink):
    """A link that breaks when so many messages have come down."""

    left = 10**9

    def _receive(self, timeout_s: float) -> Frame:
        if self.left <= 0:
            self.close()
        found = super()._receive(timeout_s)
        self.left -= 1
        return found


def breaking(url: str, left: int = 10**9) -> Breaking:
    link = Breaking.open(Address(url))
    assert isinstance(link, Breaking)
    link.left = left
    return link


@contextlib.contextmanager
def a_broken_session(url: str, plugin: Any, breaks: Iterator[int], **more: Any) -> Iterator[Session]:
    """Its links break after so many messages, then no more."""
    links: list[WebSocketLink] = []

    def connect() -> WebSocketLink:
        links.append(breaking(url, next(breaks, 10**9)))
        return links[-1]

    session = a_session(connect(), plugin, connect=connect, retry=RetryPolicy(20.0), **more)
    try:
        yield session
    finally:
        session.link.close()
        assert all(link.closed for link in links)


def text(
    session: Session, options: DecodeOptions = DecodeOptions(), sampling: Sampling = SAMPLED, tokens: int = 24
) -> str:
    return "".join(piece.text for piece in session.generate(PROMPT, tokens, sampling, options))


@pytest.mark.parametrize("options", [DecodeOptions(), DecodeOptions(window=0)], ids=["speculative", "in step"])
@pytest.mark.parametrize(
    "sampling",
    [
        SAMPLED,
        pytest.param(Sampling(), marks=pytest.mark.slow),
        pytest.param(Sampling(0.8, repetition_penalty=1.3, seed=2), marks=pytest.mark.slow),
    ],
)
def test_a_break_after_any_message_changes_nothing(cloud: Cloud, options: DecodeOptions, sampling: Sampling) -> None:
    plugin = a_plugin(cloud.base.fingerprint)
    with a_broken_session(cloud.url, plugin, iter(())) as session:
        want = text(session, options, sampling)
        whole, prompt = session.usage.reply_tokens, session.usage.prompt_tokens
        assert session.usage.resumed == 0
    resumed = 0
    for after in range(1, 40, 3):
        with a_broken_session(cloud.url, plugin, iter([after])) as session:
            assert text(session, options, sampling) == want
            usage = session.usage
            assert (usage.reply_tokens, usage.prompt_tokens) == (whole, prompt)
            resumed += usage.resumed
            assert text(session, options, sampling) == want  # the session is as good as new
    assert resumed > 5


def test_break_upon_break(cloud: Cloud) -> None:
    """Each link lasts a few messages; what each brings is kept."""
    plugin = a_plugin(cloud.base.fingerprint)
    with a_broken_session(cloud.url, plugin, iter(())) as session:
        want = text(session)
    for seed in range(5):
        rng = random.Random(seed)
        with a_broken_session(cloud.url, plugin, (rng.randint(3, 12) for _ in range(100))) as session:
            assert text(session) == want
            assert session.usage.resumed > 1


def test_it_is_said_once_a_break_and_given_up_in_the_end(tiny: Path) -> None:
    said: list[str] = []
    with a_cloud(tiny) as cloud:
        session = a_session(
            breaking(cloud.url),
            a_plugin(cloud.base.fingerprint),
            connect=lambda: breaking(cloud.url),
            retry=RetryPolicy(0.4, said.append),
        )
        session.link.left = 4
        assert text(session)
        assert len(said) == 1
        assert said[0].endswith("closed the connection: trying again for up to 0 s")
    with pytest.raises(CloudError, match="the cloud is going down, and was not back within 0 s"):
        text(session)
    assert len(said) == 2


def test_without_a_way_back_a_break_is_an_error(cloud: Cloud) -> None:
    session = a_session(breaking(cloud.url, 6), a_plugin(cloud.base.fingerprint))
    with pytest.raises(CloudError, match="closed the connection"):
        text(session)


def test_a_cloud_that_breaks_every_time_is_given_up(cloud: Cloud) -> None:
    with (
        a_broken_session(cloud.url, a_plugin(cloud.base.fingerprint), iter([1] * 100)) as session,
        pytest.raises(CloudError, match="closed the connection"),
    ):
        text(session)


def test_another_cloud_takes_over(tiny: Path) -> None:
    """The first is gone with all that it kept: the prompt and what is done of the reply are run again."""
    with a_cloud(tiny) as first, a_cloud(tiny) as second:
        plugin = a_plugin(first.base.fingerprint)
        with a_broken_session(second.url, plugin, iter(())) as session:
            want = text(session)
        urls = iter([first.url])
        session = a_session(
            a_link(next(urls)),
            plugin,
            connect=lambda: a_link(next(urls, second.url)),
            retry=RetryPolicy(20.0),
        )
        pieces = []
        for piece in session.generate(PROMPT, 24, SAMPLED):
            pieces.append(piece.text)
            if len(pieces) == 4:
                first.close_at_once()
        assert "".join(pieces) == want
        assert session.usage.resumed == 1
        assert second.engine.counters.resumed == 1
        session.link.close()


def test_a_cloud_with_another_base_does_not(tiny: Path, other: Path) -> None:
    with a_cloud(tiny) as first, a_cloud(other) as second:
        urls = iter([first.url])
        for plugin in (a_plugin(first.base.fingerprint), None):
            urls = iter([first.url])
            connect = lambda: a_link(next(urls, second.url))  # noqa: B023, E731
            session = a_session(breaking(next(urls), 4), plugin, connect=connect, retry=RetryPolicy(20.0))
            with pytest.raises(WrongBase):
                text(session)
            session.link.close()


@pytest.mark.parametrize(
    "changed",
    [{"done": [5, 6], "hash": "0" * 16}, {"done": [5, 6]}, {"done": [10**6]}, {"done": [5] * 9}],
)
def test_a_text_that_is_not_the_clouds_is_not_gone_on_with(cloud: Cloud, changed: dict[str, Any]) -> None:
    """The hash must be of its reading of the prompt and of what is done."""
    link = a_link(cloud.url)
    a_session(link)
    prompt = PromptFrame(1, 8, Sampling().to_wire(), **PROMPT.to_wire())
    link.send(replace(prompt, **changed))
    with pytest.raises(InputError, match=r"reads the prompt otherwise|must be at most max_tokens"):
        link.receive()
    link.send(prompt)  # the session goes on
    assert isinstance(link.receive(), Begun)
    link.close()


def test_a_tape_goes_on_too(cloud: Cloud, tmp_path: Path) -> None:
    examples = [
        Example(Prompt.user(f"Is it far to the {n}. mill?"), "As far as your feet are tired.", f"x:{n}")
        for n in range(20)
    ]
    plugin = a_plugin(cloud.base.fingerprint)
    with a_broken_session(cloud.url, None, iter(()), tap=plugin.tap) as session:
        record(session, plugin.tap, examples, tmp_path / "whole.tape")
    with a_broken_session(cloud.url, None, iter([6, 3, 9]), tap=plugin.tap) as session:
        record(session, plugin.tap, examples, tmp_path / "broken.tape")
    assert (tmp_path / "whole.tape").read_bytes() == (tmp_path / "broken.tape").read_bytes()


def test_a_score_goes_on_too(cloud: Cloud) -> None:
    examples = [Example(Prompt.user(f"Is it {n} miles?"), "As far as your feet are tired.", "x:1") for n in range(12)]
    plugin = a_plugin(cloud.base.fingerprint)
    with a_broken_session(cloud.url, plugin, iter(())) as session:
        want = score(session, examples)
    with a_broken_session(cloud.url, plugin, iter([6, 9, 4])) as session:
        found = score(session, examples)
    np.testing.assert_array_equal(found.plugin, want.plugin)
    np.testing.assert_array_equal(found.base, want.base)


def test_a_cloud_without_room_is_asked_again(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of eight examples that are asked for at once, one fits into its memory, and one may wait."""
    from sideplug.cloud import admission

    monkeypatch.setattr(admission, "QUEUE_RETRY_S", 0.01)
    token = 2 * 2 * 2 * 16 * 4
    examples = [Example(Prompt.user(f"Is it {n} miles?"), "As far as your feet are tired.", "x:1") for n in range(20)]
    tap = a_plugin("").tap
    with a_cloud(tiny, EngineOptions("onnx", "16", kv_bytes=64 * token)) as cloud:
        cloud.engine.admission.limits = admission.AdmissionLimits(queue=1)
        with a_broken_session(cloud.url, None, iter(()), tap=tap) as session:
            assert len(record(session, tap, examples, tmp_path / "x.tape")) == 20
            assert len(score_with(cloud, examples).base)
        assert cloud.engine.counters.refused["busy"] > 0


def score_with(cloud: Cloud, examples: list[Example]) -> Any:
    with a_broken_session(cloud.url, a_plugin(cloud.base.fingerprint), iter(())) as session:
        return score(session, examples)


def test_a_reader_who_stops_after_a_break_is_no_fault(cloud: Cloud) -> None:
    with a_broken_session(cloud.url, a_plugin(cloud.base.fingerprint), iter([6])) as session:
        pieces = session.generate(PROMPT, 24, SAMPLED)
        next(pieces)
        session.link.close()
        pieces.close()
        assert text(session)


class Twisted(WebSocketLink):
    """A link on which all TOKENS stand one position before their own."""

    def _receive(self, timeout_s: float) -> Frame:
        found = super()._receive(timeout_s)
        return replace(found, at=found.at - 1) if isinstance(found, Tokens) else found


def test_a_gap_or_a_twist_in_what_comes_is_seen(cloud: Cloud) -> None:
    """The device takes tokens at the position where it stands, and at no other."""
    with (
        a_session(Twisted.open(Address(cloud.url))) as session,
        pytest.raises(ProtocolError, match="must go on with the ids from position 3, got 2"),
    ):
        list(session.generate(Prompt(ids=(5, 6, 7)), 4))
