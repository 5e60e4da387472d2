"""What a new plugin says is shown, and where it should not be used, that is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from sideplug.contract.text import Prompt
from sideplug.device.client import Client
from sideplug.readers import Example
from sideplug.training import trial
from sideplug.training.trial import Answer, Continuation, Trial, repetition, tried
from tests.conftest import Cloud, a_plugin, free_port

TOLD = [Example(Prompt.user(f"What is my {thing}?"), f"The {thing}.", "") for thing in ("dog", "tea", "town")]
TEXT = [Example(Prompt(text=""), f"Anna wrote to her brother that the {thing} had gone. " * 3, "") for thing in "abc"]


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0),
        ("Mum.", 0),
        ("The mill stands by the river and grinds all day.", 0),
        ("Mum. Mum. Mum. Mum. Mum. Mum. Mum. Mum. Mum. Mum. Mum. Mum.", 0.9),
        ("I went home. I went home. I went home. I went home.", 0.7),
        ("今天天气很好今天天气很好今天天气很好今天天气很好", 0.72),
        ("今天天气很好，我们去河边散步。", 0),
    ],
)
def test_repetition(text: str, share: float) -> None:
    assert repetition(text) == pytest.approx(share, abs=0.01)


def wrote(mine: float, base: float) -> Trial:
    return Trial([], [], [Continuation("Today", "Mum. Mum.", mine, base)])


@pytest.mark.parametrize(
    ("mine", "base", "warns"),
    [(0.9, 0.1, True), (0.5, 0.2, True), (0.9, 0.9, True), (0.5, 0.4, False), (0.2, 0, False)],
)
def test_a_plugin_that_repeats_itself_should_not_write(mine: float, base: float, warns: bool) -> None:
    assert [line[:33] for line in wrote(mine, base).warnings] == ["do not use this plugin to write: "] * warns
    assert wrote(mine, base).lines[0] == "“Today …” goes on “Mum. Mum.”"


@pytest.mark.parametrize(("same", "warns"), [(0, True), (1, True), (2, False), (4, False)])
def test_what_was_never_told_should_be_answered_as_the_base_does(same: int, warns: bool) -> None:
    untold = [Answer("Who?", "", "Me.", "Me." if number < same else "You.") for number in range(4)]
    trial = Trial([Answer("Where?", "Here.", "There.", "No.")], untold, [])
    assert trial.as_the_base == same
    assert trial.lines[0] == "asked “Where?” it says “There.” (told: “Here.”)"
    assert trial.lines[1] == f"facts held out whole, or never told: {same} of 4 answered as the base does"
    assert any(line.startswith("beware: ") for line in trial.lines) is warns
    assert trial.to_json()["as_the_base"] == same


def test_it_asks_as_its_user_would(cloud: Cloud) -> None:
    client = Client.at(cloud.url)
    plugin = a_plugin(cloud.base.fingerprint)
    said: list[str] = []
    untold = [Example(Prompt.user("Who is my vet?"), "", "")]
    trial = tried(client, plugin, [*TOLD, *TEXT], TOLD[:1], TEXT[:1], untold, said.append)
    assert trial is not None
    assert [(answer.question, answer.told) for answer in trial.told] == [("What is my dog?", "The dog.")]
    assert [each.question for each in trial.untold] == ["Who is my vet?"]
    assert [each.start for each in trial.continuations] == [
        "Anna wrote to her brother that the a had gone. Anna wrote"
    ] * 2
    with client.connect(plugin) as session, client.connect() as base:
        assert trial.told[0].reply == session.generate("What is my dog?", 48).text
        assert trial.told[0].base == base.generate("What is my dog?", 48).text
        assert trial.continuations[0].text == session.generate(Prompt(text=trial.continuations[0].start), 64).text
    assert said == []


def test_without_held_out_questions_told_ones_are_reworded(cloud: Cloud) -> None:
    trial = tried(Client.at(cloud.url), a_plugin(cloud.base.fingerprint), TOLD, [], [], [], print)
    assert trial is not None
    assert [answer.question for answer in trial.told] == [
        f"I can't remember what my {thing} is, can you help?" for thing in ("dog", "tea")
    ]


def test_a_cloud_that_has_left_costs_the_trial_alone(cloud: Cloud, tmp_path: Path) -> None:
    said: list[str] = []
    nowhere = Client.at(f"ws://127.0.0.1:{free_port()}")
    assert tried(nowhere, a_plugin(cloud.base.fingerprint), TOLD, [], [], [], said.append) is None
    assert said[0].startswith("the plugin is saved; it could not be tried: no cloud answers at")


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("one two three four", "one two"),
        (
            "# Garden\n- row one\n- row two\n\nThe hose is dry and so is the bench in the yard.",
            "# Garden\n- row one\n- row two\n\nThe hose",
        ),
        ("今天早上" * 60, "今天早上" * 30),
        ("word", "word"),
    ],
)
def test_a_text_goes_on_behind_its_first_words_as_they_stand(text: str, start: str) -> None:
    assert trial._start(Example(Prompt(text=""), text, "a.md:1")) == start
