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
from sideplug.device.head import DeviceHead, LogitTransform
from sideplug.device.reply import WINDOW, DecodeOptions
from sideplug.device.responders import AnswerFields, Answering, PluginResponder, ReplyOptions, Responder
from sideplug.device.session import Session
from tests.conftest import Cloud, a_link, a_plugin, a_session

SAMPLINGS = [Sampling(), Sampling(0.9, top_k=40, top_p=0.95, repetition_penalty=1.3, seed=7)]


def fetched(session: Session, folder: Path) -> DeviceHead:
    return DeviceHead.fetch(session.link, folder, session.model.fingerprint, session.model.vocab)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled"])
@pytest.mark.parametrize("kind", ["ladder", "paper"])
@pytest.mark.parametrize("window", [0, 6])
def test_the_device_picks_what_the_cloud_would(
    cloud: Cloud, tmp_path: Path, kind: str, sampling: Sampling, window: int
) -> None:
    plugin = a_plugin(cloud.base.fingerprint, kind, 0.3 if kind == "ladder" else 0.05)
    weight = np.random.default_rng(1).normal(size=64).astype(np.float32)
    for gate in (Gate("open"), Gate("linear", weight, 0.1, memory=0.4)):
        with a_session(cloud.url, plugin, gate=gate) as session:
            head = fetched(session, tmp_path)
            for first in (5, 60, 200):
                prompt = Prompt(ids=(first, 9, 40, 77))
                said = []
                for options in (DecodeOptions(0), DecodeOptions(window, head=head)):
                    said.append([i for p in session.generate(prompt, 24, sampling, options) for i in p.ids])
                assert said[0] == said[1]
                assert session.usage.plugin_tokens > 0


def test_only_tokens_go_up(cloud: Cloud, tmp_path: Path) -> None:
    plugin = a_plugin(cloud.base.fingerprint)
    with a_session(cloud.url, plugin) as session:
        head = fetched(session, tmp_path)
        up = []
        for options in (DecodeOptions(0), DecodeOptions(0, head=head)):
            before = session.link.up["ANSWER"]
            list(session.generate(Prompt(ids=(5, 6)), 12, Sampling(), options))
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
        path = next(path for path in tmp_path.iterdir() if not path.suffix)
        path.write_bytes(path.read_bytes()[:-4])
        assert fetched(session, tmp_path).rows_VD.shape == head.rows_VD.shape
        assert session.link.down["HEAD"] == 2 * down, "a cut one is"


def test_bent_logits() -> None:
    raw = np.array([1.0, -60.0], np.float32)
    np.testing.assert_allclose(LogitTransform(0.5, 30.0)(raw), 30 * np.tanh(raw / 60), rtol=1e-6)


class Picks:
    """A plugin's responder that says these token ids, whatever it is asked."""

    def __init__(self, inner: Responder, tokens: list[int]) -> None:
        self.opening, self.check_base, self.score = inner.opening, inner.check_base, inner.score
        self._inner, self._tokens = inner, tokens

    def begin(self, prompt: Prompt, sampling: Sampling, options: ReplyOptions) -> Answering:
        answering = self._inner.begin(prompt, sampling, options)
        answering.answer = lambda asks: AnswerFields(ids=np.array(self._tokens, np.int32))  # type: ignore[method-assign]
        return answering


def picking(cloud: Cloud, tokens: list[int]) -> Session:
    return Session(a_link(cloud.url), Picks(PluginResponder(a_plugin(cloud.base.fingerprint)), tokens))


def test_an_answer_of_the_other_kind_is_refused(cloud: Cloud) -> None:
    """Token ids, where the cloud picks."""
    with picking(cloud, [3]) as session, pytest.raises(ProtocolError, match="must have corrections and draft only"):
        list(session.generate(Prompt(ids=(5, 6)), 4))


@pytest.mark.parametrize("tokens", [[-1], [1 << 20], [3, 3]])
def test_a_token_that_does_not_exist_is_refused(cloud: Cloud, tmp_path: Path, tokens: list[int]) -> None:
    """Or one more than was asked for."""
    with picking(cloud, tokens) as session:
        head = fetched(session, tmp_path)
        with pytest.raises(ProtocolError, match="ids must be int32, 0 to"):
            list(session.generate(Prompt(ids=(5, 6)), 4, Sampling(), DecodeOptions(0, head=head)))


def test_the_command_lines_default_is_the_session_s() -> None:
    assert next(p for p in generate.params if p.name == "window").default == WINDOW == DecodeOptions().window
