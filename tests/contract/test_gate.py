"""The gate: what opens it, its dial, and what is no gate."""

import dataclasses

import numpy as np
import pytest

from sideplug.contract.errors import InputError
from sideplug.contract.frames import GateSpec
from sideplug.contract.gate import Gate, pack_gates, unpack_gates

RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=8).astype(np.float32)
Z = RNG.normal(size=(1000, 8)).astype(np.float32)


STARTS = np.arange(0, 1000, 50)


def a_gate(memory: float = 0.0) -> Gate:
    gate = Gate("linear", WEIGHT, 0.5, memory=memory)
    dial = np.quantile(gate.scores(Z, STARTS), np.linspace(0, 1, 101))
    return dataclasses.replace(gate, dial=tuple(dial.tolist()))


def opened(gate: Gate) -> np.ndarray:
    return gate.opens(gate.scores(Z, STARTS))


def test_open_and_shut() -> None:
    assert opened(Gate("open")).all()
    assert not opened(Gate("shut")).any()
    assert Gate("open").opens(0.0)
    assert not Gate("shut").opens(0.0)


def test_without_a_memory_it_is_its_formula() -> None:
    np.testing.assert_array_equal(opened(a_gate()), Z.astype(np.float64) @ WEIGHT + 0.5 > 0)


def test_a_memory_ends_with_its_reply() -> None:
    gate = a_gate(0.5)
    alone = [gate.scores(Z[at : at + 50], np.array([0])) for at in STARTS]
    np.testing.assert_array_equal(gate.scores(Z, STARTS), np.concatenate(alone))
    first, second = (float(z @ WEIGHT) + 0.5 for z in Z[:2])
    assert gate.scores(Z, STARTS)[:2].tolist() == [first, 0.5 * first + 0.5 * second]


@pytest.mark.parametrize("memory", [0.0, 0.7])
@pytest.mark.parametrize("rate", [0.05, 0.1, 0.3, 0.5, 0.99])
def test_the_dial_gives_its_rate(rate: float, memory: float) -> None:
    assert opened(a_gate(memory).at_rate(rate)).mean() == pytest.approx(rate, abs=0.01)


def test_the_dials_ends_are_exact() -> None:
    assert a_gate().at_rate(0).kind == "shut"
    assert a_gate().at_rate(1).kind == "open"


def test_what_is_no_gate() -> None:
    for rate in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="rate must be 0 to 1"):
            a_gate().at_rate(rate)
    with pytest.raises(InputError, match="its rate can be 0 or 1"):
        Gate("open").at_rate(0.5)
    with pytest.raises(InputError, match="open, shut, linear"):
        Gate.from_wire(GateSpec("ajar"))
    for wrong in (GateSpec("x"), GateSpec("linear", memory=1.0), GateSpec("linear", bias=float("nan"))):
        with pytest.raises(InputError):
            Gate.from_wire(wrong)
    with pytest.raises(InputError, match="8 weights, z has 9"):
        a_gate().check(9)


def test_over_the_wire_it_opens_alike() -> None:
    gate = a_gate(0.7).at_rate(0.3)
    back = Gate.from_wire(gate.to_wire(), gate.weight_D)
    assert back.dial == ()
    np.testing.assert_array_equal(opened(back), opened(gate))


def test_a_session_has_a_gate_for_each_part() -> None:
    gates = [Gate("open"), a_gate(0.7), Gate("shut"), a_gate()]
    specs, weights_GD = pack_gates(gates, 8)
    assert weights_GD.shape == (2, 8)
    back = unpack_gates(specs, weights_GD, 8)
    assert [gate.kind for gate in back] == ["open", "linear", "shut", "linear"]
    for old, new in zip(gates, back, strict=True):
        np.testing.assert_array_equal(opened(new), opened(old))
    for specs, weights in (([GateSpec("linear")], weights_GD), ([GateSpec("linear")] * 2, weights_GD[:, :7])):
        with pytest.raises(InputError, match="must have weights"):
            unpack_gates(specs, weights, 8)
