"""The base's head on the device: the same texts as with the cloud's, and a file that is whole or not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sideplug.cli.talk import generate
from sideplug.contract.errors import ProtocolError
from sideplug.contract.gate import Gate
from sideplug.contract.sampling import Sampling
from sideplug.contract.text import Prompt
from sideplug.device.head import Bend, DeviceHead
from sideplug.device.reply import WINDOW, DecodeOptions
from sideplug.device.session import Session
from tests.conftest import Cloud, a_plugin, a_session

SAMPLINGS = [Sampling(), Sampling(0.9, top_k=40, top_p=0.95, repetition_penalty=1.3, seed=7)]


def fetched(session: Session, folder: Path) -> DeviceHead:
    return DeviceHead.fetch(session.link, folder, session.model.fingerprint, session.model.vocab)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled"])
@pytest.mark.parametrize("kind", ["ladder", "paper"])
@pytest.mark.parametrize("ahead", [0, 6])
def test_the_device_picks_what_the_cloud_would(
    cloud: Cloud, tmp_path: Path, kind: str, sampling: Sampling, ahead: int
) -> None:
    plugin = a_plugin(cloud.base.fingerprint, kind, 0.3 if kind == "ladder" else 0.05)
    weight = np.random.default_rng(1).normal(size=64).astype(np.float32)
    for gate in (Gate("open"), Gate("linear", weight, 0.1, memory=0.4)):
        with a_session(cloud.url, plugin, gate=gate) as session:
            head = fetched(session, tmp_path)
            for first in (5, 60, 200):
                prompt = Prompt(ids=(first, 9, 40, 77))
                said = []
                for pace in (DecodeOptions(0), DecodeOptions(ahead, head=head)):
                    said.append([i for p in session.generate(prompt, 24, sampling, pace) for i in p.ids])
                assert said[0] == said[1]
                assert session.usage.plugin_tokens > 0


def test_only_tokens_go_up(cloud: Cloud, tmp_path: Path) -> None:
    plugin = a_plugin(cloud.base.fingerprint)
    with a_session(cloud.url, plugin) as session:
        head = fetched(session, tmp_path)
        up = []
        for pace in (DecodeOptions(0), DecodeOptions(0, head=head)):
            before = session.link.up["ANSWER"]
            list(session.generate(Prompt(ids=(5, 6)), 12, Sampling(), pace))
            up.append((session.link.up["ANSWER"] - before) / session.usage.asked)
        assert up[1] < up[0] - plugin.tap.rank  # 64 int8 and a scale less, and the ids' 4 bytes


def test_the_file_is_kept_once_and_whole(cloud: Cloud, tmp_path: Path) -> None:
    model = cloud.engine.model
    with a_session(cloud.url) as session:
        head = fetched(session, tmp_path)
        rows, bias = model.head_rows(np.arange(model.vocab))
        np.testing.assert_array_equal(head.rows_VD, rows.astype(np.float16))
        np.testing.assert_array_equal(head.bias_V, bias)
        down = session.link.down["HEAD"]
        assert fetched(session, tmp_path).rows_VD.shape == head.rows_VD.shape
        assert session.link.down["HEAD"] == down, "a kept head is not fetched again"
        path = tmp_path / session.model.fingerprint
        path.write_bytes(path.read_bytes()[:-4])
        assert fetched(session, tmp_path).rows_VD.shape == head.rows_VD.shape
        assert session.link.down["HEAD"] == 2 * down, "a cut one is"


def test_bent_logits() -> None:
    raw = np.array([1.0, -60.0], np.float32)
    np.testing.assert_allclose(Bend(0.5, 30.0)(raw), 30 * np.tanh(raw / 60), rtol=1e-6)


def test_an_answer_of_the_other_kind_is_refused(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = a_plugin(cloud.base.fingerprint)
    with a_session(cloud.url, plugin) as session:
        monkeypatch.setattr(session, "corrections", lambda ask: {"ids": np.array([3], np.int32)})
        with pytest.raises(ProtocolError, match="must have delta, scales and draft"):
            list(session.generate(Prompt(ids=(5, 6)), 4))


@pytest.mark.parametrize("token", [-1, 1 << 20])
def test_a_token_that_does_not_exist_is_refused(
    cloud: Cloud, tmp_path: Path, token: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = a_plugin(cloud.base.fingerprint)
    with a_session(cloud.url, plugin) as session:
        head = fetched(session, tmp_path)
        monkeypatch.setattr(session, "_pick", lambda ask: {"ids": np.array([token], np.int32)})
        with pytest.raises(ProtocolError, match="ids must be int32, 0 to"):
            list(session.generate(Prompt(ids=(5, 6)), 4, Sampling(), DecodeOptions(0, head=head)))


def test_the_command_lines_default_is_the_runtimes() -> None:
    assert next(p for p in generate.params if p.name == "window").default == WINDOW == DecodeOptions().ahead
