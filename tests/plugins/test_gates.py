"""A gate in a part's file: what is written is read, and a file of an earlier training has no gate of its dial's own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sideplug.contract.gate import Gate
from sideplug.plugins.gates import gate_config, gate_of, gate_tensors

PLAIN = Gate("linear", np.array([1.0, 2.0], np.float32), 0.5, 1.5, 0.7, (0.0, 1.0, 2.0))
BY_GAIN = Gate("linear", np.array([3.0, -1.0], np.float32), 0.25, 0.0, 0.0, (-1.0, 1.0))


@pytest.mark.parametrize("gate", [Gate("open"), Gate("shut"), PLAIN, replace(PLAIN, by_gain=BY_GAIN, by_gain_rate=0.6)])
def test_what_is_written_is_read(gate: Gate) -> None:
    tensors = {**gate_tensors(gate), "other": np.zeros(1)}
    read = gate_of(gate_config(gate), tensors)
    assert list(tensors) == ["other"], "only a gate's own are taken"
    for one, other in ((gate, read), (gate.by_gain, read.by_gain)):
        assert (one is None) is (other is None)
        if one is not None and other is not None:
            assert (one.kind, one.bias, one.threshold, one.memory, one.dial) == (
                other.kind, other.bias, other.threshold, other.memory, other.dial,
            )  # fmt: skip
            np.testing.assert_array_equal(one.weight_D, other.weight_D)
    assert read.by_gain_rate == gate.by_gain_rate


def test_the_dial_turns_the_gate_by_gain_at_low_rates() -> None:
    gate = replace(PLAIN, by_gain=BY_GAIN, by_gain_rate=0.6)
    for rate, of in ((0.25, BY_GAIN), (0.6, BY_GAIN), (0.7, PLAIN), (0.95, PLAIN)):
        at = gate.at_rate(rate)
        np.testing.assert_array_equal(at.weight_D, of.weight_D)
        assert at.threshold == pytest.approx(np.interp(1 - rate, np.linspace(0, 1, len(of.dial)), of.dial))
    assert (gate.at_rate(0).kind, gate.at_rate(1).kind) == ("shut", "open")
    assert gate.threshold == PLAIN.threshold, "the default is as it was"
