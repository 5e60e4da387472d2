"""The base reads what a plugin was told: each text's tokens in its order, whatever breaks, waits or comes unasked."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sideplug.contract.errors import Busy, CloudError, InputError, SideplugError, Unauthorized, Untrusted
from sideplug.contract.frames import Done, Example, Read
from sideplug.contract.text import Prompt
from sideplug.device import reading
from sideplug.device.client import Client
from sideplug.device.reading import read, read_for
from sideplug.memory import book
from sideplug.memory.part import Memory
from sideplug.memory.store import Entry
from sideplug.plugins import Plugin
from tests.conftest import Cloud, a_plugin, a_session
from tests.memory.test_part import only
from tests.test_resume import a_broken_session

PAIRS = [Entry(f"Where is thing {n}?", f"Behind house {n}{', and far' * (n % 5)}.") for n in range(20)]
TEXTS = [(Prompt.user(each.question), each.reply) for each in PAIRS]
BASE = "b" * 64


def tokens(cloud: Cloud, texts: list[tuple[Prompt, str]] = TEXTS) -> list[list[int]]:
    """What a training example of each text has."""
    return [cloud.engine.tokenizer.encode_example(prompt, reply)[1] for prompt, reply in texts]


def memory_of(plugin: Plugin) -> Memory:
    return next(part for part in plugin.parts if isinstance(part, Memory))


def known(plugin: Plugin, base: str) -> dict[int, list[int]]:
    """The tokens that the plugin's memory has of a base, by passage."""
    return {number: ids.tolist() for number, ids in memory_of(plugin).store.ids_by_passage(base).items()}


def an_example(number: int) -> Example:
    """Whose text has one token, its number."""
    none = np.zeros((1, 1, 1), np.int8)
    ids, z, top = np.array([number], np.int32), np.zeros((1, 1), np.int8), np.zeros((1, 16), np.int32)
    return Example(number, ids, none, np.zeros((1, 1)), z, np.zeros(1), top, np.zeros(1))


def numbered(error: SideplugError, number: int | None) -> SideplugError:
    error.number = number
    return error


class Scripted:
    """A session without a cloud. come: what it receives, a number for an example; lost: breaks that it mends."""

    def __init__(self, come: list[Any], lost: int = 0, breaks_at: int = 0) -> None:
        self.come, self.lost, self.breaks_at = list(come), lost, breaks_at
        self.sent, self.readings, self.model = list[int](), 3, SimpleNamespace(fingerprint=BASE)
        self.progressed, self.granted = lambda: None, tuple[str, ...]()

    def send(self, frame: Read) -> None:
        self.sent.append(frame.number)
        if len(self.sent) == self.breaks_at:
            raise CloudError("gone")

    def receive(self) -> Any:
        frame = self.come.pop(0)
        if isinstance(frame, Exception):
            raise frame
        return an_example(frame) if isinstance(frame, int) else frame

    def reconnect(self, lost: SideplugError) -> None:
        self.lost -= 1
        if self.lost < 0:
            raise lost


def read_all(session: Any, count: int = 4) -> list[list[int]]:
    ids: list[list[int]] = []
    read(session, TEXTS[:count], ids, lambda done, count: None)
    return ids


def test_the_tokens_are_the_clouds_own(cloud: Cloud) -> None:
    ids, seen = list[list[int]](), list[tuple[int, int]]()
    with a_session(cloud.url) as session:
        read(session, TEXTS, ids, lambda done, count: seen.append((done, count)))
        assert session.readings > 1
    assert ids == tokens(cloud)
    assert seen == [(n, 20) for n in range(1, 21)]


LONG = [(Prompt.user("Go on?"), "word " * 39 + str(n)) for n in range(9)]
ODD = ["ж", "🐈\u200d⬛", "<|im_end|>", "a\n\n b ", "犬の名前", "\t", "word " * 99]


def test_the_tokens_alone_are_those_of_an_example_that_the_model_has_run(cloud: Cloud) -> None:
    """No step of the model is made for them, and nothing but ids comes down; a text that is too long is too long."""
    plugin, texts = only(*PAIRS), [*TEXTS, *LONG, *((Prompt.user("?"), text) for text in ODD)]
    with Client.at(cloud.url).connect(plugin) as session, a_session(cloud.url) as other:
        assert ("tokens" in session.granted, "tokens" in other.granted) == (True, False)
        alone, run, steps = list[list[int]](), list[list[int]](), cloud.engine.counters.steps
        read(session, texts, alone, lambda done, count: None)
        assert cloud.engine.counters.steps == steps
        read(other, texts, run, lambda done, count: None)
        assert cloud.engine.counters.steps > steps
    assert alone == run
    assert alone[-1] == []


@pytest.mark.parametrize(("count", "size", "most"), [(99, 1, 64), (9, 9_000, 4), (3, 90_000, 1)])
def test_few_texts_are_under_way_at_once(count: int, size: int, most: int) -> None:
    """64, and about 32,000 characters, or one text: so neither side waits for the other to read."""
    session, ids, seen = Scripted([*range(count)]), list[list[int]](), list[int]()
    session.granted, receive = ("tokens",), session.receive
    session.receive = lambda: seen.append(len(session.sent)) or receive()  # type: ignore[method-assign,func-returns-value]
    read(session, [(Prompt.user("?"), "x" * size)] * count, ids, lambda done, count: None)  # type: ignore[arg-type]
    assert seen == [min(most + n, count) for n in range(count)]


@pytest.mark.parametrize("come", [[0, 1, 2, 3], [2, 1, 0, 3], [0, 2, CloudError("gone"), 1, 2, 3]], ids=str)
def test_they_are_kept_in_their_order_in_whichever_they_come(come: list[Any]) -> None:
    session = Scripted(come, lost=1)
    assert read_all(session) == [[0], [1], [2], [3]]
    assert session.sent == [0, 1, 2, 3] + [1, 2, 3] * (len(come) > 4)


def test_a_text_that_is_too_long_is_left_out(cloud: Cloud) -> None:
    """It is never said, the others are, and the cloud is asked about it once."""
    some = [Entry("Where is the mill?", "There."), Entry("Who wrote?", "Anna. " * 99), Entry("Which apples?", "All.")]
    plugin, sent = only(*some), list[int]()
    for _ in range(2):
        with Client.at(cloud.url).connect(plugin) as session:
            sent.append(session.link.up["READ"])
    near, _, far = tokens(cloud, [(Prompt.user(each.question), each.reply) for each in some])
    assert known(plugin, cloud.base.fingerprint) == {1: [*near, -1], 2: [-1], 3: [*far, -1]}
    assert (sent[0] > 0, sent[1]) == (True, 0)
    begin = plugin.parts[0].begin
    assert [begin(Prompt.user(each.question)).gate for each in some] == ["open", "shut", "open"]


@pytest.mark.parametrize("breaks", [[3, 4, 3], [2, 2, 2, 12], [1, 9, 1]], ids=str)
def test_a_break_loses_and_doubles_nothing(cloud: Cloud, breaks: list[int]) -> None:
    ids, seen = list[list[int]](), list[int]()
    with a_broken_session(cloud.url, None, iter(breaks)) as session:
        read(session, TEXTS, ids, lambda done, count: seen.append(done))
    assert ids == tokens(cloud)
    assert seen == list(range(1, 21))


def test_a_cloud_without_room_is_asked_again_when_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    slept = list[float]()
    monkeypatch.setattr(reading, "time", SimpleNamespace(sleep=slept.append))
    full = [numbered(Busy("full", wait), number) for wait, number in ((0.25, 1), (None, 2), (9000.0, 1))]
    session = Scripted([*full, 0, 1, 2, 3])
    assert read_all(session) == [[0], [1], [2], [3]]
    assert (slept, session.sent) == ([0.25, 1.0, 60.0], [0, 1, 2, 1, 2, 1, 3])


@pytest.mark.parametrize("error", [Busy("no one"), InputError("no gate"), numbered(InputError("another"), 9)], ids=str)
def test_what_is_not_about_a_text_is_an_error(error: SideplugError) -> None:
    with pytest.raises(type(error), match=str(error)):
        read_all(Scripted([error]))


@pytest.mark.parametrize("come", [[9], [0, 0], [3], [Done(1, "stop", 0, 0, {})]], ids=["9", "twice", "3", "DONE"])
def test_what_was_not_asked_for_is_not_taken(come: list[Any]) -> None:
    with pytest.raises(Untrusted, match="something else than the tokens that were asked for"):
        read_all(Scripted(come))


def begun(folder: Path) -> Plugin:
    """A plugin in a folder whose reading ended after two texts of four, by an error."""
    only(*PAIRS[:4]).save(folder)
    (plugin := Plugin.load(folder)).parts[0].meet(BASE)
    with pytest.raises(Unauthorized, match="the key was revoked"):
        read_for(Scripted([0, 1, Unauthorized("the key was revoked")]), plugin)  # type: ignore[arg-type]
    return plugin


def test_what_came_before_an_error_is_kept(tmp_path: Path) -> None:
    plugin = begun(tmp_path / "p")
    assert known(plugin, BASE) == {1: [0, -1], 2: [1, -1]}
    assert read_for(Scripted([0, 1]), plugin) == 2  # type: ignore[arg-type]
    whole = {1: [0, -1], 2: [1, -1], 3: [0, -1], 4: [1, -1]}
    assert known(plugin, BASE) == known(Plugin.load(tmp_path / "p"), BASE) == whole


def test_what_another_process_changed_meanwhile_stays(tmp_path: Path) -> None:
    """It told an entry, forgot one, changed one, and trained: what was read is kept for the entries that still hold."""
    only(*PAIRS[:3]).save(folder := tmp_path / "p")
    (plugin := Plugin.load(folder)).parts[0].meet(BASE)  # as a session's beginning does
    book.change(folder, lambda memory: book.tell(memory, [PAIRS[3]]))
    book.change(folder, lambda memory: book.forget(memory, [1]))
    book.change(folder, lambda memory: memory.store.edit(2, PAIRS[1].question, "Elsewhere."))
    trained = a_plugin(BASE)
    trained.save_part(trained.trained, folder)
    assert read_for(Scripted([0, 1, 2]), plugin) == 3  # type: ignore[arg-type]
    found = Plugin.load(folder)
    assert [each.reply for each in memory_of(found).store.entries()] == ["Elsewhere.", PAIRS[2].reply, PAIRS[3].reply]
    assert known(found, BASE) == {3: [2, -1]}
    assert [reply for _, reply in memory_of(found).unread(BASE)] == [PAIRS[3].reply, "Elsewhere."]
    assert found.trained.config() == trained.trained.config()


def test_what_came_before_an_error_is_kept_in_the_folder(tmp_path: Path) -> None:
    assert known(begun(tmp_path / "p"), BASE) == known(Plugin.load(tmp_path / "p"), BASE)


def test_a_break_while_a_cloud_without_room_is_waited_for() -> None:
    session = Scripted([numbered(Busy("full", 0.01), 0), 0, 1], lost=1, breaks_at=3)
    assert read_all(session, 2) == [[0], [1]]


def test_two_connections_that_read_at_once() -> None:
    plugin = only(*PAIRS[:2])
    assert [plugin.parts[0].unread(BASE) for _ in range(2)] == [TEXTS[:2], TEXTS[:2]]
    replies = [reply for _, reply in TEXTS[:2]]
    for ids in ({replies[0]: [0]}, {replies[0]: [0], replies[1]: [1]}):  # one breaks off after the first
        plugin.parts[0].take_read(BASE, ids)
    assert known(plugin, BASE) == {1: [0, -1], 2: [1, -1]}
