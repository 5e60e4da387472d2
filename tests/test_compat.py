"""Files and a conversation that earlier versions wrote: read to the same values, or refused with the way out.

tests/compat/VERSION/ holds them; tests/compat/make.py made them. CHANGELOG.md says what is promised.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sideplug
from sideplug.cloud import requests, store
from sideplug.cloud.keys import FORMAT as KEYS_FORMAT
from sideplug.cloud.keys import Keys
from sideplug.cloud.model.ort.prepare import FORMAT as GRAPH_FORMAT
from sideplug.contract.errors import CloudError, DataError, PluginError, ProtocolError
from sideplug.contract.frames import Answer, Frame, Open, Opened, PromptFrame, control_of, tensors_of
from sideplug.contract.text import Prompt
from sideplug.contract.wire import HEADER_BYTES, VERSION, decode, encode
from sideplug.device import audit, lock
from sideplug.device.plugin_store import PluginStore
from sideplug.device.reply import DecodeOptions
from sideplug.device.responders import PluginResponder
from sideplug.device.session import Session
from sideplug.plugins import Plugin, sealed_file
from sideplug.plugins.validate import FORMAT as PLUGIN_FORMAT
from sideplug.readers import Example
from sideplug.training.recorder import record, score
from sideplug.training.tape import Tape
from tests.compat.make import DIAL, EXAMPLES, PASSPHRASE, QUESTION, codes, tensor_digests
from tests.conftest import Cloud

ROOT = Path(__file__).parent.parent
COMPAT = ROOT / "tests" / "compat"
VERSIONS = sorted(folder.name for folder in COMPAT.iterdir() if (folder / "expected.json").is_file())
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()


@pytest.fixture(params=VERSIONS)
def kept(request: pytest.FixtureRequest) -> Path:
    """The folder of a version whose files every later one reads."""
    return COMPAT / str(request.param)


@pytest.fixture
def expected(kept: Path) -> dict[str, Any]:
    """What its files hold."""
    values: dict[str, Any] = json.loads((kept / "expected.json").read_text())
    return values


def check(plugin: Plugin, expected: dict[str, Any]) -> None:
    part = plugin.trained
    assert (plugin.base, plugin.base_name) == (expected["base"], "tiny")
    assert (part.kind_name, part.name, part.merge, part.tap.name) == ("ladder", "manner", "add", "l0.1.2-r16-s0-int8")
    assert tensor_digests(part.tensors()) == expected["tensors"]
    assert tensor_digests({"gate": part.gate.weight_D}) == {"gate": expected["gate"]}
    gate = part.gate
    assert (gate.kind, gate.bias, gate.threshold, gate.memory, gate.dial) == ("linear", 0.5, -20.0, 0.5, DIAL)
    assert part.about == {"examples": 2, "best_loss": 1.25}
    np.testing.assert_allclose(part.correct(codes()), expected["delta"], atol=1e-3)


def test_a_plugin_is_read(kept: Path, expected: dict[str, Any]) -> None:
    check(Plugin.load(kept / "plugin"), expected)


def test_an_export_and_a_sealed_one_are_imported(kept: Path, expected: dict[str, Any], tmp_path: Path) -> None:
    plugins = PluginStore(tmp_path)
    check(plugins.import_("plain", (kept / "plugin.sideplug").read_bytes()), expected)
    check(plugins.import_("sealed", (kept / "sealed.sideplug").read_bytes(), PASSPHRASE), expected)
    with pytest.raises(sealed_file.WrongPassphrase, match="the passphrase is wrong"):
        plugins.import_("other", (kept / "sealed.sideplug").read_bytes(), "another")


def test_a_locked_plugin_is_opened(kept: Path, expected: dict[str, Any], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(kept / "locked", tmp_path / "p"))
    check(Plugin.load(folder, lambda: PASSPHRASE), expected)
    lock.unlock(folder, PASSPHRASE)
    check(Plugin.load(folder), expected)


def test_a_keys_file_is_read(kept: Path, expected: dict[str, Any]) -> None:
    holder = Keys(kept / "keys.json").check(expected["key"])
    assert holder is not None
    assert (holder.name, holder.limits.sessions, holder.limits.tokens_per_minute) == ("ada", 3, 600)


def test_a_tape_is_read(kept: Path, expected: dict[str, Any]) -> None:
    check_tape(Tape.whole(kept / "train.tape", Plugin.load(kept / "plugin").tap), expected)


def check_tape(tape: Tape, expected: dict[str, Any]) -> None:
    assert [tape[i].ids.tolist() for i in range(len(tape))] == expected["tape"]
    assert sum(tape[i].z_TD.sum() for i in range(len(tape))) == pytest.approx(expected["tape_z_sum"], abs=1e-2)


def test_a_transcript_is_audited(kept: Path) -> None:
    report = audit.report(audit.read(kept / "wire3.sp"), Plugin.load(kept / "plugin"))
    assert (report.leaked, report.unaccounted) == ([], 0)
    assert report.replay is not None
    # Before drafts went behind settled text only, others were sent; and another processor may round otherwise.
    assert set(report.replay.wrong) <= {"drafts that are not those of your phrases"}
    assert report.replay.verified["answers"] + report.replay.rounded == report.rows[">", "ANSWER"].frames
    assert report.rows["<", "ASK"].frames > 12  # or it would show little
    assert {kind for _, kind in report.rows} >= {"OPEN", "PROMPT", "ANSWER", "READ", "SCORE", "EXAMPLE", "DONE"}


class Replay:
    """A link whose cloud is a transcript: it says what a cloud said then, and keeps what the device sends now."""

    def __init__(self, path: Path) -> None:
        self.down: Counter[str] = Counter()
        self.up: Counter[str] = Counter()
        self.sent: list[Frame] = []
        self.then = [decode(message) for direction, message in audit.read(path) if direction == audit.UP]
        self._frames: Iterator[Frame] = iter(
            [decode(message) for direction, message in audit.read(path) if direction == audit.DOWN]
        )

    def send(self, frame: Frame) -> None:
        """Keep it as the wire would carry it."""
        self.sent.append(decode(encode(frame, len(self.sent))))

    def receive(self, timeout_s: float = 0) -> Frame:
        """The next frame of the transcript."""
        frame = next(self._frames, None)
        if frame is None:
            raise CloudError("the transcript is over")
        return frame

    def arrived(self) -> Frame | None:
        """Nothing comes before it is waited for."""
        return None

    def close(self) -> None:
        """Nothing to do."""


def test_a_cloud_of_that_version_is_understood(kept: Path, expected: dict[str, Any], tmp_path: Path) -> None:
    link = Replay(kept / "wire3.sp")
    with Session(link, PluginResponder(Plugin.load(kept / "plugin"))) as session:
        waiting = session.generate(QUESTION, 12, options=DecodeOptions(window=0))
        assert waiting.text == expected["replies"][0]
        one_by_one = len(link.sent)
        ahead = session.generate(Prompt(text="Anna wrote"), 12, options=DecodeOptions(top=2))
        assert ahead.text == expected["replies"][1]
        assert (waiting.usage.why, ahead.usage.asked > 5) == ("length", True)
        examples = [Example(Prompt.user(ask), say, "kept:1") for ask, say in EXAMPLES]
        check_tape(record(session, session.responder.opening.tap, examples, tmp_path / "t.tape"), expected)  # type: ignore[arg-type]
        np.testing.assert_allclose(score(session, examples).plugin, expected["scores"], atol=1e-3)
    # Where one answer followed one question, the device says today what it said then.
    for now, then in zip(link.sent[1:one_by_one], link.then[1:one_by_one], strict=True):
        assert control_of(now) == control_of(then)
        if isinstance(now, Answer) and isinstance(then, Answer):
            tensors = tensors_of(then)
            for name, tensor in tensors_of(now).items():
                np.testing.assert_allclose(tensor.astype(float), tensors[name].astype(float), rtol=1e-3, atol=1.01)


def test_a_device_of_that_version_is_understood(kept: Path, cloud: Cloud) -> None:
    frames = [decode(message) for _, message in audit.read(kept / "wire3.sp")]
    opened = next(frame for frame in frames if isinstance(frame, Opened))
    first = next(frame for frame in frames if isinstance(frame, Open))
    base = store.Base("tiny", kept, first.base)
    spec = requests.read_open(first, base, opened.model)
    assert (spec.tap.name, spec.merge, len(spec.gates)) == ("l0.1.2-r16-s0-int8", "add", 1)
    terms = requests.Terms(spec, opened.model, cloud.engine.tokenizer)
    replies = [requests.read_prompt(f, terms, lambda frame: None) for f in frames if isinstance(f, PromptFrame)]
    assert [(reply.turn, reply.window, reply.top) for reply in replies] == [(1, 0, 0), (2, 24, 2)]


def test_a_plugin_of_0_1_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"holds a plugin of sideplug 0\.1 \(format 2\): train it anew"):
        Plugin.load(COMPAT / "0.1.0" / "plugin")
    with pytest.raises(PluginError, match="has format 2, this version reads 3: train the plugin anew"):
        PluginStore(tmp_path).import_("old", (COMPAT / "0.1.0" / "plugin.sideplug").read_bytes())
    assert not any(tmp_path.iterdir())


def test_another_wire_is_refused_in_words(kept: Path, tmp_path: Path) -> None:
    data = bytearray((kept / "wire3.sp").read_bytes())
    assert data[3] == VERSION  # behind the direction and the magic
    data[3] = 2
    (tmp_path / "old.sp").write_bytes(data)
    with pytest.raises(DataError, match=r"begins no message of this version: the wire's version must be 3, got 2"):
        list(audit.read(tmp_path / "old.sp"))
    tape = bytearray((kept / "train.tape").read_bytes())
    tape[2] = 2
    (tmp_path / "old.tape").write_bytes(tape)
    with pytest.raises(DataError, match="not a tape of this version: delete it, and sideplug train records it anew"):
        Tape.whole(tmp_path / "old.tape", Plugin.load(kept / "plugin").tap)
    with pytest.raises(ProtocolError, match="the wire's version must be 3, got 2"):
        decode(bytes(tape[:HEADER_BYTES]) + b"")


def test_the_kept_files_are_small() -> None:
    assert sum(path.stat().st_size for path in COMPAT.rglob("*") if path.is_file()) < 300_000


def test_the_newest_version_of_the_changelog_is_this_one() -> None:
    versions = re.findall(r"^## (\d+\.\d+\.\d+) \((\d{4}-\d\d-\d\d)\)$", CHANGELOG, re.M)
    assert versions[0][0] == sideplug.__version__
    assert [date for _, date in versions] == sorted((date for _, date in versions), reverse=True)
    assert all(f"### {heading}" in CHANGELOG for heading in ("Added", "Changed", "Fixed"))


def test_the_changelog_tells_the_formats() -> None:
    told = dict(re.findall(r"^\| ([^|]+?) \| ([^|]+?) \|", CHANGELOG, re.M))
    assert (told["wire"], told["plugin"], told["keys file"]) == (str(VERSION), str(PLUGIN_FORMAT), f"`{KEYS_FORMAT}`")
    assert (told["GGUF cache"], told["graph cache"]) == (str(store.GGUF_FORMAT), str(GRAPH_FORMAT))
    assert told["sealed file"] == str(sealed_file.seal(b"")[8])
