"""A cloud's metrics as a person reads them, from a real cloud that has worked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sideplug.cloud.top import Now, Sample
from sideplug.contract.errors import CloudError, Unauthorized, Unreachable
from sideplug.contract.text import Prompt
from sideplug.device.address import Address, get
from tests.conftest import Run, a_cloud, a_plugin, a_session, eventually
from tests.test_cli import sentence

TEXT = """sideplug_sessions 3
sideplug_tokens_total{of="reply"} %d
sideplug_tokens_total{of="prompt"} 7
sideplug_gate_total{what="asked"} %d
sideplug_answer_seconds_bucket{le="0.1"} %d
sideplug_answer_seconds_bucket{le="1.0"} %d
sideplug_answer_seconds_bucket{le="+Inf"} %d
"""


def test_what_happened_between_two_samples() -> None:
    old, new = Sample.read(TEXT % (10, 5, 1, 1, 1), 100.0), Sample.read(TEXT % (30, 10, 5, 10, 11), 102.0)
    now = Now(new, old)
    assert now.per_s("tokens_total", of="reply") == 10.0
    assert now.to_json()["gate_rate"] == 0.25
    assert [now.quantile("answer_seconds", share) for share in (0.4, 0.5, 0.9, 0.95)] == [0.1, 1.0, 1.0, float("inf")]
    assert Now(new).per_s("tokens_total", of="reply") == 0.0
    assert Now(new).since("tokens_total") == 37


@pytest.mark.parametrize("text", ["", "<html>", "sideplug_sessions x", "other 1\n", "\x00"])
def test_what_is_no_metrics(text: str) -> None:
    with pytest.raises(CloudError):
        Sample.read(text, 0.0)


def test_a_cloud_that_has_worked(tiny: Path, run: Run) -> None:
    with a_cloud(tiny) as cloud:
        with a_session(cloud.url, a_plugin(cloud.base.fingerprint)) as session:
            list(session.generate(Prompt.user("Is it far?"), 20))
            eventually(lambda: not cloud.engine.working)  # DONE leaves a moment before its text is put away
            now = Now(Sample.read(get(Address(cloud.url), "/metrics"), 0.0))
            shown = dict(now.rows())
            assert shown["sessions"] == "1 open, 0 texts in work, 0 waiting"
            assert shown["gate"].startswith("open for ")
            assert shown["refused"] == "nothing"
            told = json.loads(run("top", cloud.url, "--every", "0.1", "--json").stdout)
            assert (told["sessions"], told["cached_texts"], told["ready"]) == (1, 1, 1)
            drawn = run("top", cloud.url, "--every", "0.1", "--once")
            assert "1 open, 0 texts in work" in drawn.stdout
        url = cloud.url
    sentence(run("top", url, "--once"), 1, "no cloud answers at")


def test_a_door_that_is_shut(tiny: Path, tmp_path: Path, run: Run) -> None:
    from sideplug.cloud.keys import Keys

    keys = Keys(tmp_path / "keys.json")
    key = keys.add("anna", role="operator")
    with a_cloud(tiny, keys=keys) as cloud:
        assert "sideplug_sessions 0.0" in get(Address(cloud.url, key=key), "/metrics")
        with pytest.raises(Unauthorized, match="wants a key|does not know this key"):
            get(Address(cloud.url, key="sp-no"), "/metrics")
        with pytest.raises(CloudError, match="paths are"):
            get(Address(cloud.url, key=key), "/nothing")
        sentence(run("top", cloud.url, "--cloud-key", "sp-no"), 1, "does not know this key")
    with pytest.raises(Unreachable):
        get(Address("ws://127.0.0.1:9"), "/metrics")
