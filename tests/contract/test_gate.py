"""The gate: what opens it, its dial, and what is no gate."""

import numpy as np
import pytest

from sideplug.contract.errors import InputError
from sideplug.contract.gate import Gate

RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=8).astype(np.float32)
Z = RNG.normal(size=(1000, 8)).astype(np.float32)


def a_gate() -> Gate:
    gate = Gate("linear", WEIGHT, 0.5)
    dial = np.quantile(gate.scores(Z), np.linspace(0, 1, 101))
    return Gate("linear", WEIGHT, 0.5, 0.0, tuple(dial.tolist()))


def test_open_and_shut() -> None:
    assert Gate("open").opens(Z).all()
    assert not Gate("shut").opens(Z).any()


def test_linear_is_its_formula_and_the_same_for_any_batch() -> None:
    gate = a_gate()
    np.testing.assert_array_equal(gate.opens(Z), Z.astype(np.float64) @ WEIGHT + 0.5 > 0)
    np.testing.assert_array_equal(gate.opens(Z), np.concatenate([gate.opens(z[None]) for z in Z]))


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.3, 0.5, 0.99])
def test_the_dial_gives_its_rate(rate: float) -> None:
    assert a_gate().at_rate(rate).opens(Z).mean() == pytest.approx(rate, abs=0.01)


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
        Gate.from_wire({"kind": "ajar"})
    for wrong in ({"kind": "x"}, {}, {"kind": "linear", "bias": "1"}, {"kind": "linear", "threshold": True}):
        with pytest.raises(InputError):
            Gate.from_wire(wrong)
    with pytest.raises(InputError, match="8 weights, z has 9"):
        a_gate().check(9)


def test_over_the_wire_it_opens_alike() -> None:
    gate = a_gate().at_rate(0.3)
    back = Gate.from_wire(gate.to_wire(), gate.weight_D)
    assert back.dial == ()
    np.testing.assert_array_equal(back.opens(Z), gate.opens(Z))
