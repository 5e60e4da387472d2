"""The audit: every byte of a real session has a name, and a parameter that went up is found wherever it hides."""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sideplug.contract.errors import DataError, InputError, Stopped
from sideplug.contract.frames import Answer, GateSpec, Kind, Message, Open, PromptFrame, Read, SamplingSpec, Tokens
from sideplug.contract.text import Prompt
from sideplug.contract.wire import HEADER_BYTES, encode, join
from sideplug.device import audit
from sideplug.device.audit import Recent, Recorder, Search, report
from sideplug.device.head import DeviceHead
from sideplug.device.reply import DecodeOptions
from sideplug.plugins.file import CONFIG, MANNER
from sideplug.readers import Example
from sideplug.training.recorder import record, score
from tests.conftest import Cloud, Run, a_link, a_plugin, a_session
from tests.test_cli import sentence
from tests.test_parts import an_attention

EXAMPLES = [Example(Prompt.user("Is it far?"), "As far as your feet are tired.", "x:1")]
PLUGIN = a_plugin("f" * 64)
PARAMS = PLUGIN.trained.params
SEARCH = Search(PLUGIN)
Heard = tuple[str, bytes]


def all_there_is(cloud: Cloud, folder: Path) -> list[Heard]:
    """The messages of sessions that do everything that a device can do."""
    plugin = a_plugin(cloud.base.fingerprint)
    plugin.trained.phrases = np.array(cloud.engine.tokenizer.ids("the bridge had gone, the bees are well"), np.int32)
    heard: list[Heard] = []
    hear = lambda direction, message: heard.append((direction, message))  # noqa: E731
    link = a_link(cloud.url, record=hear)
    try:
        session = a_session(link, plugin)
        list(session.generate(Prompt.user("Is it far?"), 12))
        head = DeviceHead.fetch(link, folder / "heads", session.model.fingerprint, session.model.vocab)
        list(session.generate(Prompt(text="Anna wrote"), 6, options=DecodeOptions(head=head)))
        given_up = session.generate(Prompt(ids=(5, 6)), 200, options=DecodeOptions(top=2))
        next(given_up)
        given_up.close()
        with pytest.raises(InputError):
            list(session.generate(Prompt(text="nails " * 300), 6))
        record(session, plugin.tap, EXAMPLES, folder / "x.tape")
        score(session, EXAMPLES)
        looking_back = a_session(a_link(cloud.url, record=hear), an_attention(cloud.base.fingerprint))
        list(looking_back.generate(Prompt(ids=(7, 8)), 4))
        looking_back.close()
    finally:
        link.close()
    links = (link, looking_back.link)
    assert sum(len(message) for _, message in heard) == sum((one.up + one.down).total() for one in links)
    return heard


@pytest.fixture(scope="module")
def heard(cloud: Cloud, tmp_path_factory: pytest.TempPathFactory) -> list[Heard]:
    return all_there_is(cloud, tmp_path_factory.mktemp("heard"))


def test_every_byte_of_every_kind_has_a_name(cloud: Cloud, heard: list[Heard]) -> None:
    plugin = a_plugin(cloud.base.fingerprint)
    found = report(heard, plugin)
    assert {kind for _, kind in found.rows} == {kind.name for kind in Kind}
    for (direction, kind), row in found.rows.items():
        assert row.accounted == row.bytes, kind
        whole = sum(len(m) for way, m in heard if (way, kind) == (direction, Kind(m[3]).name))
        assert row.bytes == whole
    assert found.up_bytes == sum(len(message) for direction, message in heard if direction == ">")
    assert (found.unaccounted, found.leaked) == (0, [])
    assert found.parameters == plugin.size
    answer = found.rows[">", "ANSWER"]
    assert {"delta (numbers)", "scales (numbers)", "ids (numbers)", "draft (numbers)"} < set(answer.parts)
    assert answer.parts["header"] == answer.frames * (HEADER_BYTES + 1)


def test_the_words_that_the_cloud_saw(heard: list[Heard]) -> None:
    """Each counted once: characters, or ids where ids went up."""
    found = report(heard).text
    assert found["characters of prompts"] == len("Is it far?" + "Anna wrote" + "nails " * 300)
    assert found["token ids of prompts"] == 4
    twice = len("Is it far?" + "As far as your feet are tired.") * 2  # for the tape, and to be scored
    assert found["characters of training examples"] == twice
    frames = [(way, audit.decode(message)) for way, message in heard]
    answers = [frame for way, frame in frames if way == ">" and isinstance(frame, Answer)]
    picked = sum(len(answer.ids) for answer in answers if answer.ids is not None)
    assert found["tokens that your plugin picked"] == picked > 0
    drafted = sum(int((answer.draft != -1).sum()) for answer in answers)
    assert found["token ids drafted from your phrases or the reply"] == drafted > 0
    came = [frame.text for way, frame in frames if way == "<" and isinstance(frame, Tokens)]
    assert found["characters of replies (it wrote them)"] == len("".join(came))
    system = [Message("system", "be brief"), Message("user", "hi")]
    message = encode(PromptFrame(1, 1, SamplingSpec(), messages=system))
    assert report([(">", message)]).text == Counter({"characters of prompts": len("be brief" + "hi")})


def test_for_a_person_to_read(heard: list[Heard]) -> None:
    plain, looked = list(report(heard).lines()), list(report(heard, PLUGIN).lines())
    assert plain[0].startswith(f"What left this device: {report(heard).up_bytes:,} bytes in ")
    assert "Every byte is accounted for." in plain
    assert plain[-1].startswith("Nothing of it was verified (give --plugin)")
    assert looked[-1].startswith(f"None of your plugin's {PLUGIN.size:,} parameters was found in it")
    assert "  nothing" in list(report([]).lines())
    assert json.loads(json.dumps(report(heard, PLUGIN).to_json()))["clean"] is False, "it is another plugin's session"


# ── what must be found ────────────────────────────────────────────────────────────────────────────────────────────────


def answer(delta: np.ndarray) -> bytes:
    return encode(Answer(1, 0, [4], np.zeros((1, 0), np.int32), delta=delta, scales=np.zeros(0, np.float32)))


def in_words(name: str) -> bytes:
    """Four neighbours of a tensor whose float16 bytes are ASCII, in the middle of an example's words."""
    halves = PARAMS[name].astype("<f2").ravel()
    quads = (halves[i : i + 4].tobytes() for i in range(len(halves) - 3))
    words = next(quad for quad in quads if max(quad) < 128).decode("ascii")
    return encode(Read(0, f"tea {words} bees", False, text="x"))


PLANTED: dict[str, Callable[[], bytes]] = {
    "float16 as corrections": lambda: answer(PARAMS["up"][1][:1].astype(np.float16)),
    "float32 as corrections": lambda: answer(PARAMS["up"][1][:1]),
    "two numbers of it": lambda: answer(PARAMS["up"][1][:1, 7:9]),
    "in an example's words": lambda: in_words("up"),
    "as bytes of int8": lambda: answer(np.frombuffer(PARAMS["up"][1][:1].tobytes(), np.int8)[None]),
    "as a gate": lambda: encode(Open("", "", "add", [GateSpec("linear")], "x", PARAMS["up"][0, :1])),
}


@pytest.mark.parametrize("how", PLANTED)
def test_a_parameter_that_went_up_is_found(heard: list[Heard], how: str) -> None:
    """Among all the others, and only where it went up."""
    message = PLANTED[how]()
    found = report([*heard, (">", message), *heard], PLUGIN)
    assert found.leaked == ["manner.params.up"]
    assert not found.clean
    assert found.unaccounted == 0
    assert list(found.lines())[-1] == "PARAMETERS OF YOUR PLUGIN WENT UP: manner.params.up."
    assert report([*heard, ("<", message)], PLUGIN).leaked == []
    assert report([(">", message)], a_plugin("f" * 64, seed=4)).leaked == [], "another plugin's are not ours"
    assert report([(">", message)]).leaked == []


@given(st.data())
def test_wherever_it_stands(data: st.DataObject) -> None:
    """Any two neighbours as float32, any four as float16, at any byte."""
    name = data.draw(st.sampled_from(sorted(PARAMS)))
    half = data.draw(st.booleans())
    flat = PARAMS[name].astype("<f2" if half else "<f4").ravel()
    count = 4 if half else 2
    at = data.draw(st.integers(0, len(flat) - count))
    before, behind = data.draw(st.binary(max_size=40)), data.draw(st.binary(max_size=40))
    assert f"manner.params.{name}" in SEARCH.in_message(before + flat[at : at + count].tobytes() + behind)


@given(st.binary(max_size=200))
def test_what_is_none_is_not_found(message: bytes) -> None:
    assert SEARCH.in_message(message) == []
    assert SEARCH.in_message(bytes(100) + message) == []


def test_runs_of_one_value_tell_nothing() -> None:
    """An untrained plugin's zeros are in every message."""
    from sideplug.contract.tap import Tap
    from sideplug.plugins import Plugin

    plugin = Plugin.new("ladder", "f" * 64, "tiny", Tap((0, 1, 2), 16), 24, 64)
    assert not plugin.trained.params["c"].any()
    assert Search(plugin).in_message(bytes(1000)) == []
    for value in plugin.trained.params.values():
        value[:] = 0
    assert Search(plugin).in_message(bytes(1000)) == []


def test_bytes_that_no_field_explains(heard: list[Heard]) -> None:
    """A number in more bytes than it needs could carry something: it is counted, and not clean."""
    control = msgspec.msgpack.encode({"turn": 1}).replace(b"\x01", b"\xcf" + struct.pack(">Q", 1))
    message = join(Kind.CANCEL, control)
    found = report([*heard, (">", message)], PLUGIN)
    assert (found.unaccounted, found.clean) == (8, False)
    assert "NOT ACCOUNTED FOR: 8 bytes that no field explains." in list(found.lines())
    assert found.to_json()["unaccounted_bytes"] == 8


# ── on disk ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def written(path: Path, messages: list[Heard]) -> Path:
    recorder = Recorder(path)
    for direction, message in messages:
        recorder(direction, message)
    recorder.close()
    return path


def test_a_transcript_is_the_messages(heard: list[Heard], tmp_path: Path) -> None:
    path = written(tmp_path / "t.sp", heard)
    assert list(audit.read(path)) == heard
    assert path.stat().st_mode & 0o777 == 0o600
    written(path, heard[:2])  # a second session goes on behind the first
    assert list(audit.read(path)) == heard + heard[:2]
    with pytest.raises(DataError, match="is empty"):
        list(audit.read(written(tmp_path / "none.sp", [])))


def test_a_transcript_that_is_cut_off(heard: list[Heard], tmp_path: Path) -> None:
    path = written(tmp_path / "t.sp", heard[:2])
    whole, second = path.read_bytes(), 1 + len(heard[0][1])
    for end in (1, 3, HEADER_BYTES, HEADER_BYTES + 1, second - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(DataError, match="is cut off in the message that begins at byte 0"):
            list(audit.read(path))
    path.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=f"is cut off in the message that begins at byte {second}"):
        list(audit.read(path))
    path.write_bytes(whole[:second])
    assert list(audit.read(path)) == heard[:1]


@pytest.mark.parametrize("content", [b"hello", b"<html>", b">XP" + bytes(20), b"SP" + bytes(20), b"\x89PNG" * 9])
def test_a_file_that_is_no_transcript(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(DataError, match="is no transcript: byte 0 must begin a message"):
        list(audit.read(tmp_path / "x"))


def test_an_empty_file_is_no_transcript(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.sp").touch()
    sentence(run("audit", tmp_path / "x.sp"), 2, "x.sp is empty: no session has written a message to it")


def test_a_transcript_that_can_not_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="can't be read: No such file"):
        list(audit.read(tmp_path / "missing"))
    with pytest.raises(Stopped, match="can't be written: No such file"):
        Recorder(tmp_path / "no" / "folder")


@pytest.mark.parametrize(
    "control",
    [
        {"turn": 1, "max_tokens": 1},
        {"turn": 1, "max_tokens": 1, "sampling": {}, "more": 1},
        {"turn": "1", "max_tokens": 1, "sampling": {}},
    ],
)
def test_a_message_that_is_none(heard: list[Heard], control: dict[str, Any]) -> None:
    packed = msgspec.msgpack.encode(control)
    message = join(Kind.PROMPT, packed)
    with pytest.raises(DataError, match="message 3 of the transcript is damaged: PROMPT"):
        report([*heard[:2], (">", message)])


@pytest.mark.parametrize(
    "strange", [[5], [None], [{"role": "user"}], [{"role": "user", "content": 7}], [["x"]]], ids=str
)
def test_words_of_a_strange_shape_are_named(strange: Any) -> None:
    """What others wrote there is no message: it is said, and breaks nothing."""
    control = {"turn": 1, "messages": strange, "max_tokens": 1, "sampling": {}}
    with pytest.raises(DataError, match="message 1 of the transcript is damaged: PROMPT"):
        report([(">", join(Kind.PROMPT, msgspec.msgpack.encode(control)))])


def test_the_last_messages_in_memory() -> None:
    recent = Recent(10)
    for message in (b"aaaa", b"bbbb", b"cc"):
        recent(">", message)
    assert [message for _, message in recent] == [b"aaaa", b"bbbb", b"cc"]
    recent("<", b"d")
    assert (list(recent), recent.dropped) == ([(">", b"bbbb"), (">", b"cc"), ("<", b"d")], 1)
    recent(">", b"e" * 99)  # one that is larger than all the room is kept all the same
    assert (list(recent), recent.dropped) == ([(">", b"e" * 99)], 4)


# ── on the command line ───────────────────────────────────────────────────────────────────────────────────────────────


def test_by_hand(cloud: Cloud, run: Run, tmp_path: Path) -> None:
    plugin, path = tmp_path / "p", tmp_path / "t.sp"
    a_plugin(cloud.base.fingerprint).save(plugin)
    asked = [
        "generate",
        "Is it far?",
        "--plugin",
        plugin,
        "--cloud",
        cloud.url,
        "--max-tokens",
        6,
        "--transcript",
        path,
    ]
    whole = json.loads(run(*asked, "--json").stdout)
    assert path.stat().st_mode & 0o777 == 0o600
    done = run("audit", path, "--plugin", plugin, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["clean"], found["found"], found["unaccounted_bytes"]) == (True, [], 0)
    assert found["parameters_looked_for"] == a_plugin("x").size
    up = {row["kind"]: row["bytes"] for row in found["rows"] if row["direction"] == "up"}
    assert set(up) == {"OPEN", "PROMPT", "ANSWER"}
    assert up["PROMPT"] + up["ANSWER"] == whole["usage"]["bytes_up"]
    assert found["text"]["characters of prompts"] == len("Is it far?")
    read = run("audit", path)
    assert read.returncode == 0
    assert "Every byte is accounted for." in read.stdout
    assert "give --plugin" in read.stdout
    written(path, [(">", answer(a_plugin("x").trained.params["down"][0][:1]))])  # somebody sends a row of it
    caught = run("audit", path, "--plugin", plugin, "--json")
    sentence(caught, 1, "the transcript has what must not be in it")
    assert json.loads(caught.stdout)["found"] == ["manner.params.down"]
    path.write_bytes(path.read_bytes()[:-1])
    sentence(run("audit", path), 2, "t.sp is cut off in the message that begins at byte")
    sentence(run("audit", plugin / MANNER / CONFIG), 2, "is no transcript: byte 0 must begin a message")
    sentence(run("audit", tmp_path / "missing"), 2, "missing can't be read")
    sentence(run(*asked[:-1], tmp_path / "no" / "folder"), 1, "the transcript", "can't be written")
