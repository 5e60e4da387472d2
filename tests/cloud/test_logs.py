"""What a cloud logs of sessions, replies and refusals: fields, and nobody's text."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from sideplug.cloud.keys import Keys
from sideplug.cloud.logs import Formatter, event
from sideplug.contract.errors import Busy, ProtocolError
from sideplug.contract.text import Prompt
from tests.cloud.test_server import Malformed, exchange, opening
from tests.conftest import a_cloud, a_link, a_plugin, a_session

log = logging.getLogger("sideplug.test")


def lines(caplog: pytest.LogCaptureFixture, as_json: bool = True) -> list[str]:
    return [Formatter(as_json).format(record) for record in caplog.records]


def test_both_forms(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    event(log, "reply", session="ab", key="", tokens=3)
    try:
        raise ValueError("x")
    except ValueError:
        log.exception("a reply failed")
    first, second = map(json.loads, lines(caplog))
    assert first.pop("time").endswith("+00:00")
    assert first == {"level": "info", "event": "reply", "session": "ab", "tokens": 3}
    assert second["traceback"].startswith("Traceback")
    assert lines(caplog, False)[0].endswith("+00:00 INFO reply session=ab tokens=3")


def test_a_session_is_told_without_a_word_of_it(tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sideplug")
    keys = Keys(tmp_path / "keys.json")
    key = keys.add("anna", tokens_per_minute=100)
    with a_cloud(tiny, keys=keys) as cloud:
        link = a_link(cloud.url, key=key)
        session = a_session(link, a_plugin(cloud.base.fingerprint))
        text = "".join(piece.text for piece in session.generate(Prompt.user("Is it far to the mill?"), 20))
        with pytest.raises(Busy, match=r"has used its 100 tokens a minute: try again in \d+ s") as caught:
            list(session.generate(Prompt.user("nails " * 60), 20))
        assert caught.value.retry_s
        assert caught.value.retry_s > 0
        link.close()
    told = {line["event"]: line for line in map(json.loads, lines(caplog))}
    assert set(told) == {"session opened", "reply", "refused", "session ended"}
    assert {line["key"] for line in told.values()} == {"anna"}
    assert len({line["session"] for line in told.values()}) == 1
    reply = told["reply"]
    usage = (26, 20, "length")
    assert (reply["prompt"], reply["reply"], reply["why"]) == usage
    assert told["refused"]["code"] == "busy"
    assert told["session ended"]["up"] > 0
    everything = "\n".join(lines(caplog))
    for word in ("mill", "nails", text[:8], key, key.split("-")[2]):
        assert word not in everything


def test_what_a_device_calls_itself_can_forge_no_line(tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sideplug")
    with a_cloud(tiny) as cloud:
        error = exchange(cloud, Malformed(opening(), {"client": "x\n2026 ERROR forged " + "y" * 200}))
    assert type(error) is ProtocolError, error
    assert '"refused"' in "".join(lines(caplog)), "or this test shows nothing"
    assert "forged" not in "".join(lines(caplog))
