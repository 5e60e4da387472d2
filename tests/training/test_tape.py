"""The tape: what is on it, that it resumes, and that a score over the wire is the exact one."""

import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sideplug.cloud.model.base import Chunk
from sideplug.contract.codec import pack, unpack
from sideplug.contract.errors import CloudError, DataError, TooLong
from sideplug.contract.frames import Example as ExampleFrame
from sideplug.contract.tap import Tap
from sideplug.contract.text import Prompt
from sideplug.contract.wire import decode, encode
from sideplug.readers import Example
from sideplug.training.recorder import record, score
from sideplug.training.tape import Tape, good_spans
from tests.conftest import Cloud, a_plugin, a_session

TAP = Tap((0, 1, 2), 16)
EXAMPLES = [
    Example(Prompt.user("Is it far?"), "As far as your feet are tired.", "x:1"),
    Example(Prompt(text=""), "Anna wrote to her brother that the bridge had gone. " * 4, "x:2"),
    Example(Prompt(messages=({"role": "system", "content": "s"}, {"role": "user", "content": "u"})), "nails", "x:3"),
    *[Example(Prompt.user(f"number {i}"), f"It is {i}.", f"x:{4 + i}") for i in range(20)],
]


def plain(cloud: Cloud, example: Example) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Target ids, and the model's logits and hidden states of the positions that predict them, in one go, no wire."""
    prompt, reply = cloud.engine.tokenizer.encode_example(example.prompt, example.reply)
    model = cloud.engine.model
    out = model.forward([Chunk(prompt + reply, model.new_cache(256))], range(3))
    rows = slice(len(prompt) - 1, len(prompt + reply) - 1)
    return np.array(reply), model.logits(out.z(rows)), out.tapped(rows, range(3))


def test_what_is_on_it(cloud: Cloud, tmp_path: Path) -> None:
    with a_session(cloud.url, tap=TAP) as session:
        heard: list[int] = []
        tape = record(session, TAP, EXAMPLES, tmp_path / "t.tape", heard.append)
    assert heard == list(range(1, len(EXAMPLES) + 1))
    assert len(tape) == len(EXAMPLES)
    assert (tmp_path / "t.tape").stat().st_mode & 0o077 == 0, "a person's words are for that person"
    for i in (0, 1, 2, 9):
        ids, logits, hidden = plain(cloud, EXAMPLES[i])
        recorded = tape[i]
        np.testing.assert_array_equal(recorded.ids, ids)
        np.testing.assert_allclose(recorded.z_TD, hidden[:, 2], atol=5e-3)
        np.testing.assert_allclose(recorded.code_TKR, TAP.decode(*TAP.encode(hidden)), atol=0.06)
        np.testing.assert_allclose(recorded.lse, np.log(np.exp(logits.astype(np.float64)).sum(1)), atol=1e-3)
        assert (recorded.top[:, 0] == logits.argmax(1)).all()
    assert tape.tokens == sum(len(tape[i].ids) for i in range(len(tape)))
    targets = set(np.concatenate([tape[i].ids for i in range(len(tape))]).tolist())
    assert targets == set(tape.targets().tolist())
    assert targets <= set(tape.candidates(10).tolist())
    assert (np.diff(tape.candidates(100)) > 0).all()


def test_it_goes_on_where_it_stopped(cloud: Cloud, tmp_path: Path) -> None:
    path = tmp_path / "t.tape"
    with a_session(cloud.url, tap=TAP) as session:
        record(session, TAP, EXAMPLES, tmp_path / "whole.tape")
    whole = (tmp_path / "whole.tape").read_bytes()

    class Dropped(Exception):
        pass

    def drop(done: int) -> None:
        if done == 7:
            raise Dropped

    with a_session(cloud.url, tap=TAP) as session, pytest.raises(Dropped):
        record(session, TAP, EXAMPLES, path, drop)
    with path.open("ab") as file:
        file.write(whole[:50])  # a frame that was cut off
    with a_session(cloud.url, tap=TAP) as session:
        heard: list[int] = []
        record(session, TAP, EXAMPLES, path, heard.append)
        assert heard[0] == 8
        assert same(Tape.whole(path, TAP), Tape.whole(tmp_path / "whole.tape", TAP))
        heard.clear()
        record(session, TAP, EXAMPLES, path, heard.append)  # all there: nothing is asked
        assert heard == []
        record(session, TAP, EXAMPLES[:3], path, heard.append)  # other examples: a new tape
        assert heard == [1, 2, 3]


def same(a: Tape, b: Tape) -> bool:
    """Equal up to what the order of a sum does to the last bit (batches differ between runs)."""
    return len(a) == len(b) and all(
        np.array_equal(a[i].ids, b[i].ids) and np.allclose(a[i].z_TD, b[i].z_TD, atol=5e-3) for i in range(len(a))
    )


def test_a_lost_connection_keeps_what_came(cloud: Cloud, tmp_path: Path) -> None:
    path = tmp_path / "t.tape"
    with a_session(cloud.url, tap=TAP) as session:

        def cut(done: int) -> None:
            if done == 5:
                session.link._connection.socket.shutdown(2)

        with pytest.raises(CloudError):
            record(session, TAP, EXAMPLES, path, cut)
    assert len(good_spans(path, TAP)[0]) >= 5
    with pytest.raises(DataError, match=r"t.tape has \d+ examples where there should be 23: delete it"):
        Tape.whole(path, TAP)


def test_what_is_no_tape(tmp_path: Path, cloud: Cloud) -> None:
    path = tmp_path / "t.tape"
    path.write_bytes(b"something else entirely")
    with pytest.raises(DataError, match="is not a tape"):
        Tape.whole(path, TAP)
    path.with_suffix(".json").write_text("{damaged")
    with a_session(cloud.url, tap=TAP) as session:
        assert len(record(session, TAP, EXAMPLES[:2], path)) == 2


def test_an_example_past_the_context_is_refused_with_its_number(cloud: Cloud, tmp_path: Path) -> None:
    long = Example(Prompt.user("x"), "Anna wrote " * 200, "x:1")
    with a_session(cloud.url, tap=TAP) as session, pytest.raises(TooLong, match="x:1: the example is too long"):
        record(session, TAP, [EXAMPLES[0], long], tmp_path / "t.tape")


@pytest.mark.parametrize("kind", ["ladder", "paper", "paper-added"])
def test_score_is_exact(cloud: Cloud, kind: str) -> None:
    plugin = a_plugin(cloud.base.fingerprint, kind, 0.2 if kind == "ladder" else 0.05)
    with a_session(cloud.url, plugin) as session:
        judged = score(session, EXAMPLES[:4])
        base, ours = judged.base, judged.plugin
    want_base, want_ours = [], []
    for example in EXAMPLES[:4]:
        ids, logits, hidden = plain(cloud, example)
        tapped = hidden[:, list(plugin.tap.layers)]
        delta = plugin.trained.correct(plugin.tap.decode(*plugin.tap.encode(tapped)))
        delta = unpack(*pack(delta, int8=plugin.tap.codec == "int8"))
        z = hidden[:, 2] + delta if plugin.merge == "add" else delta
        for logits_TV, want in ((logits, want_base), (cloud.engine.model.logits(z.astype(np.float32)), want_ours)):
            want.append((logits_TV - np.logaddexp.reduce(logits_TV, 1, keepdims=True))[np.arange(len(ids)), ids])
    np.testing.assert_allclose(base, np.concatenate(want_base), atol=1e-3)
    # One code may round the other way; a random plugin makes much of it.
    np.testing.assert_allclose(ours.mean(), np.concatenate(want_ours).mean(), rtol=0.02)


def spoilt(path: Path, how: str) -> None:
    """Do to a tape what another writer, a bad disk or another tap would."""
    spans, _ = good_spans(path, TAP)
    data = path.read_bytes()
    frames = [data[span.at : span.at + span.size] for span in spans]
    if how == "two writers":
        frames[3:3] = frames[1:2]
    elif how == "an example is missing":
        del frames[3]
    elif how == "a flipped bit":
        frames[3] = frames[3][:40] + bytes([frames[3][40] ^ 1]) + frames[3][41:]
    elif how == "another tap":
        frame = decode(frames[3])
        assert isinstance(frame, ExampleFrame)
        frames[3] = encode(replace(frame, codes=frame.codes[:, :2], scales=frame.scales[:, :2]))
    elif how == "not finite":
        frame = decode(frames[3])
        assert isinstance(frame, ExampleFrame)
        frames[3] = encode(replace(frame, lse=frame.lse * np.float32(np.nan)))
    elif how == "cut off":
        del frames[-1]
    path.write_bytes(b"".join(frames))


@pytest.mark.parametrize(
    "how", ["two writers", "an example is missing", "a flipped bit", "another tap", "not finite", "cut off"]
)
def test_a_spoilt_tape_is_seen_and_recorded_anew_from_there(cloud: Cloud, tmp_path: Path, how: str) -> None:
    path = tmp_path / "t.tape"
    with a_session(cloud.url, tap=TAP) as session:
        record(session, TAP, EXAMPLES[:8], path)
        whole = path.read_bytes()
        spoilt(path, how)
        says = "has 7 examples where there should be 8" if how == "cut off" else "is damaged at its example 4"
        with pytest.raises(DataError, match=rf"t.tape {says}: delete it, and sideplug train records it anew"):
            Tape.whole(path, TAP)
        heard: list[int] = []
        tape = record(session, TAP, EXAMPLES[:8], path, heard.append)
    assert heard == ([8] if how == "cut off" else [4, 5, 6, 7, 8])
    assert len(tape) == 8
    (tmp_path / "whole.tape").write_bytes(whole)
    assert same(tape, Tape.whole(tmp_path / "whole.tape", TAP))


def test_two_who_record_one_tape_do_it_in_turn(cloud: Cloud, tmp_path: Path) -> None:
    """The retain set's tape serves all trainings: who comes second waits, says for whom, and finds it whole."""
    path, told = tmp_path / "t.tape", []
    reached, go_on = threading.Event(), threading.Event()

    def first() -> None:
        def progress(done: int) -> None:
            reached.set()
            assert go_on.wait(30)

        with a_session(cloud.url, tap=TAP) as session:
            record(session, TAP, EXAMPLES, path, progress)

    def waits(line: str) -> None:
        told.append(line)
        go_on.set()

    thread = threading.Thread(target=first)
    thread.start()
    assert reached.wait(30)
    heard: list[int] = []
    with a_session(cloud.url, tap=TAP) as session:
        tape = record(session, TAP, EXAMPLES, path, heard.append, say=waits)
    thread.join(30)
    assert told == [f"another training writes into {path} (process {os.getpid()})"]
    assert (len(tape), heard) == (len(EXAMPLES), [])
