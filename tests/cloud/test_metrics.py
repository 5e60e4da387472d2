"""What /metrics says of a cloud that has worked, and that it says nothing else."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sideplug.cloud.counters import Histogram
from sideplug.contract.errors import WrongBase
from sideplug.contract.text import Prompt
from sideplug.contract.wire import Kind
from sideplug.readers import Example
from sideplug.training.recorder import score
from tests.conftest import a_cloud, a_plugin, a_session

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def read(url: str) -> Samples:
    with urllib.request.urlopen(url.replace("ws://", "http://") + "/metrics") as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        families = text_string_to_metric_families(answer.read().decode())
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[f"sideplug_{name}", frozenset(labels.items())]


def test_a_histogram() -> None:
    found = Histogram((1.0, 2.0))
    for number in (0.5, 1.0, 1.5, 3.0):
        found.add(number)
    assert found.cumulative == [("1.0", 2), ("2.0", 3), ("+Inf", 4)]
    assert found.sum == 6.0


def test_what_was_done_is_counted(tiny: Path) -> None:
    with a_cloud(tiny) as cloud:
        plugin = a_plugin(cloud.base.fingerprint)
        with a_session(cloud.url, plugin) as session:
            text = "".join(piece.text for piece in session.generate(Prompt.user("Is it far to the mill?"), 20))
            usage = session.usage
            score(session, [Example(Prompt.user("Is it far?"), "As far as your feet are tired.", "x:1")])
            samples = read(cloud.url)
            up, down = session.link.up.total(), session.link.down.total()
        assert value(samples, "sessions") == 1
        assert value(samples, "ready") == 1
        assert value(samples, "tokens_total", of="reply") == usage.reply_tokens == 20
        assert value(samples, "tokens_total", of="prompt") >= usage.prompt_tokens
        assert value(samples, "gate_total", what="asked") == usage.asked > 0
        assert value(samples, "gate_total", what="accepted") == usage.accepted
        assert value(samples, "replies_total", why=usage.why) == 1
        assert value(samples, "examples_total") == 1
        assert value(samples, "answer_seconds_count") >= usage.plugin_tokens
        assert value(samples, "first_token_seconds_count") == 1
        assert value(samples, "cached_texts") == 1
        by_direction = {"up": 0.0, "down": 0.0}
        for (name, labels), bytes_ in samples.items():
            if name == "sideplug_bytes_total":
                by_direction[dict(labels)["direction"]] += bytes_
        assert by_direction == {"up": up, "down": down}
        assert value(samples, "frames_total", direction="up", kind="prompt") == 1
        assert (
            value(samples, "bytes_total", direction="up", kind="answer", codec="int8")
            == session.link.up[Kind.ANSWER.name]
        )
        with urllib.request.urlopen(cloud.url.replace("ws://", "http://") + "/metrics") as answer:
            shown = answer.read().decode()
        assert text not in shown
        assert "mill" not in shown


def test_what_was_refused_is_counted(tiny: Path) -> None:
    with a_cloud(tiny) as cloud:
        with pytest.raises(WrongBase), a_session(cloud.url, a_plugin("f" * 64)):
            pass
        assert cloud.server.counters.refused["wrong-base"] == 1
