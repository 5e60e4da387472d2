"""The closed-form bias against its formula, on a tape of a tiny model; what it gains; where it is left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sideplug.contract.text import Prompt
from sideplug.device.client import Client
from sideplug.device.responders import Silent
from sideplug.plugins import Plugin
from sideplug.readers import Example
from sideplug.training import fit_bias, head, recorder
from sideplug.training.fit import judge
from sideplug.training.head import Head
from sideplug.training.tape import Tape
from tests.conftest import Cloud, a_plugin

TEXTS = ["The mill is by the river and the miller is old. ", "By the river the inn is open and the beer is old. "]


@pytest.fixture
def taped(cloud: Cloud, tmp_path: Path) -> tuple[Plugin, Head, Tape]:
    plugin = a_plugin(cloud.base.fingerprint, "mlp", 0.0)
    examples = [Example(Prompt(text=""), text * 3, f"{n}") for n, text in enumerate(TEXTS * 6)]
    with Client.at(cloud.url).connect(responder=Silent(plugin.tap)) as session:
        tape = recorder.record(session, plugin.tap, examples, tmp_path / "train.tape")
        return plugin, head.fetch(session, tape.candidates(400)), tape


def test_it_is_the_formula(taped: tuple[Plugin, Head, Tape]) -> None:
    plugin, rows, tape = taped
    fitted = fit_bias.fit(plugin.trained, rows, tape)
    counts = {int(i): 0.0 for i in fitted.bias.ids}
    expected = dict(counts)
    for number in range(len(tape)):
        example = tape[number]
        log_p = example.z_TD @ rows.rows_CD.T + rows.bias_C
        weight = rows.log_weight(example.z_TD, example.lse)
        log_p[:, len(rows.ids) :] += weight[:, None]
        p = np.exp(log_p - np.log(np.exp(log_p).sum(1, keepdims=True)))
        for token in counts:
            counts[token] += int((example.ids == token).sum())
            expected[token] += float(p[:, np.searchsorted(rows.ids, token)].sum())
    assert set(counts) == set(tape.targets().tolist())
    ratios = {k: [np.log((counts[t] + k) / (expected[t] + k)) for t in counts] for k in fit_bias.SHRINK}
    assert any(np.allclose(fitted.bias.values, each, atol=2e-2) for each in ratios.values())


def test_it_lowers_the_loss_of_text_like_it_and_only_a_tilted_head_has_it(taped: tuple[Plugin, Head, Tape]) -> None:
    plugin, rows, tape = taped
    part = plugin.trained
    fitted = fit_bias.fit(part, rows, tape)
    assert fitted.after < fitted.before - 0.1
    judged = judge(part, rows.tilted(fitted.bias), tape)
    assert -judged.plugin.mean() < -judged.base.mean() - 0.1
    plain = judge(part, rows, tape)
    np.testing.assert_allclose(plain.plugin, plain.base, atol=1e-5)
    np.testing.assert_allclose(judged.base, plain.base, atol=1e-6)
    assert rows.tilted(fitted.bias).base.tilt_S is None


def test_text_that_the_part_expects_needs_no_bias(
    taped: tuple[Plugin, Head, Tape], cloud: Cloud, tmp_path: Path
) -> None:
    """A few tokens that the tenths don't share lower no loss: nothing is kept."""
    plugin, rows, tape = taped
    fitted = fit_bias.fit(plugin.trained, rows, tape.part([0]))
    assert not len(fitted.bias)
    assert "no bias is kept" in fitted.line
