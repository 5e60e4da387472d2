"""What the cloud can't read is known before the first example is recorded: all of it at once, and no more is asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sideplug.contract.errors import CloudError, DataError
from sideplug.contract.frames import ModelInfo
from sideplug.contract.tap import Tap
from sideplug.contract.text import Prompt
from sideplug.device.client import Client
from sideplug.readers import Example
from sideplug.training.preflight import readable, suspects
from tests.conftest import Cloud, Run

TAP = Tap((0, 1), 8, 1)
LONG = "Anna wrote " * 200


def example(asks: str, reply: str, number: int) -> Example:
    return Example(Prompt.user(asks), reply, f"a.jsonl:{number}")


GOOD = [example(f"What is number {i}?", f"It is {i}.", i) for i in range(1, 5)]
BAD = [example("Tell me everything.", LONG, 5), example(LONG, "Yes.", 6)]
MODEL = ModelInfo("m", "0" * 64, 4, 64, 1000, 8192, True)


def test_days_are_told_because_no_training_learns_them(cloud: Cloud) -> None:
    lines: list[str] = []
    dated = Example(Prompt.user("Where is the mill?"), "By the river.", "a.jsonl:1", date="2024-05-03")
    assert len(readable(Client.at(cloud.url), [dated, *GOOD], TAP, None, tell=lines.append)) == 5
    assert lines == ["not learnt: dates (1), which only a memory keeps: sideplug remember"]
    readable(Client.at(cloud.url), GOOD, TAP, None, tell=lines.append)
    assert len(lines) == 1


def test_nothing_is_asked_about_what_must_fit() -> None:
    examples = [example("q " * 1000, "r " * 1500, 1), Example(Prompt(text=""), "words " * 100, "a.txt:1")]
    assert suspects(examples[:1], MODEL, TAP, None) == {}
    assert suspects(examples[1:], MODEL, TAP, None) == {}
    assert suspects([example("q", "字" * 3000, 1)], MODEL, TAP, None) == {0: []}, "9,000 bytes may be 9,000 tokens"
    raw = Tap.raw(32, 4096)
    assert suspects([example("q", "r " * 300, 1)], MODEL, raw, None) == {0: []}, "with this tap 256 tokens fill a frame"


def test_a_text_of_one_token_is_asked_about() -> None:
    assert suspects([Example(Prompt(text=""), "Oak", "a.txt:1")], MODEL, TAP, None) == {0: []}


def test_one_of_each_order_of_roles_is_asked_about() -> None:
    def chat(roles: str) -> Example:
        names = {"s": "system", "u": "user", "a": "assistant"}
        return Example(Prompt(messages=tuple({"role": names[role], "content": "x"} for role in roles)), "y", "")

    orders = ["u", "uau", "su", "suau", "uu", "uau", "uu", "us"]
    assert suspects([chat(roles) for roles in orders], MODEL, TAP, None) == {0: [0, 1, 5], 2: [2, 3], 4: [4, 6], 7: [7]}
    assert suspects([chat(roles) for roles in ("u", "uau")], MODEL, TAP, None) == {}


def test_all_that_is_too_long_is_refused_at_once(cloud: Cloud) -> None:
    client = Client.at(cloud.url)
    assert readable(client, GOOD, TAP, None) == GOOD
    with pytest.raises(DataError) as caught:
        readable(client, [*GOOD, *BAD], TAP, None)
    text = str(caught.value)
    assert text.startswith("2 of 6 rows can't be learnt: a.jsonl:5: the example is too long: ")
    assert "; a.jsonl:6: the " in text
    assert text.endswith("(correct or remove them; --skip-bad leaves such rows out)")


def test_or_left_out_and_told(cloud: Cloud) -> None:
    told: list[str] = []
    left = readable(Client.at(cloud.url), [BAD[0], *GOOD, BAD[1]], TAP, None, True, told.append)
    assert left == GOOD
    assert len(told) == 1
    assert told[0].startswith("left out: 2 of 6 examples: a.jsonl:5: the example is too long: ")
    with pytest.raises(DataError, match="no example is left that the cloud can read"):
        readable(Client.at(cloud.url), BAD, TAP, None, True, told.append)


def test_a_suspicion_may_be_wrong(cloud: Cloud) -> None:
    """Many bytes, few tokens: the cloud says that it fits, and it stays."""
    fits = example("Is it far?", "the " * 60, 1)
    with_tap = suspects([fits], Client.at(cloud.url).model(), TAP, None)
    assert with_tap == {0: []}
    assert readable(Client.at(cloud.url), [fits], TAP, None) == [fits]


def test_a_text_that_is_one_token(cloud: Cloud) -> None:
    oak = Example(Prompt(text=""), "\n", "a.txt:1")  # which goes on, so no end is learnt either
    with pytest.raises(DataError, match=r"^a\.txt:1: the example has nothing to learn"):
        readable(Client.at(cloud.url), [oak, *GOOD], TAP, None)


def test_a_broken_connection_is_made_anew(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    from sideplug.device.session import Session

    receive, broken = Session.receive, []

    def once_broken(session: Session) -> object:
        if not broken:
            broken.append(session)
            session.link.close()
            raise CloudError("the connection is lost")
        return receive(session)

    monkeypatch.setattr(Session, "receive", once_broken)
    monkeypatch.setattr("sideplug.device.reconnect.RetryPolicy.is_retryable", lambda policy, lost: True, raising=False)
    told: list[str] = []
    assert readable(Client.at(cloud.url), [*GOOD, *BAD], TAP, None, True, told.append) == GOOD
    assert broken


def test_the_command_refuses_before_it_records_and_skips(cloud: Cloud, run: Run, tmp_path: Path) -> None:
    data = tmp_path / "a.jsonl"
    rows = [{"instruction": f"What is number {i}?", "output": f"It is {i}."} for i in range(6)]
    rows += [{"instruction": "Everything?", "output": LONG}, {"instruction": "Nothing?", "output": ""}]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    how = ["train", data, "--out", tmp_path / "p", "--cloud", cloud.url, "--epochs", "1", "--retain-weight", "0"]
    refused = run(*how)
    assert refused.returncode == 2
    assert "a.jsonl:8: output must not be empty" in refused.stderr
    assert not (tmp_path / "p").exists()
    done = run(*how, "--skip-bad")
    assert done.returncode == 0, done.stderr
    assert "left out: 1 of 8 rows: " in done.stderr
    assert "left out: 1 of 7 examples: " in done.stderr
    assert "a.jsonl:7: the example is too long: " in done.stderr
    updating = ["train", data, "--update", tmp_path / "p", "--cloud", cloud.url, "--epochs", "1"]
    more = run(*updating, "--skip-bad", "--force")
    assert more.returncode == 0, more.stderr
    assert "left out: 1 of 7 examples: " in more.stderr
    good_but_long = tmp_path / "b.jsonl"
    good_but_long.write_text("".join(json.dumps(row) + "\n" for row in rows[:7]))
    refused = run("train", good_but_long, "--out", tmp_path / "q", "--cloud", cloud.url, "--retain-weight", "0")
    assert refused.returncode == 2
    assert "b.jsonl:7: the example is too long: " in refused.stderr
    assert not (tmp_path / "q").exists(), "nothing is recorded"
