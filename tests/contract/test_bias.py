"""A bias: what it may be, how it goes up, and to what it is added."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sideplug.contract import bias
from sideplug.contract.bias import NONE, Bias
from sideplug.contract.capabilities import BIAS, MAX_BIASED, BiasOf, BiasSettings, grant, want
from sideplug.contract.errors import InputError, ProtocolError


def a_bias(*pairs: tuple[int, float]) -> Bias:
    return Bias(np.array([i for i, _ in pairs], np.int32), np.array([x for _, x in pairs], np.float16))


SOME = a_bias((2, 1.5), (7, -0.25), (9, 30.0))


def granted(*biases: Bias) -> dict[str, Any]:
    settings = bias.to_wire(biases)
    assert settings is not None
    return grant({BIAS.name: want(settings)})


def test_it_is_added_to_its_tokens_where_its_gate_is_open() -> None:
    logits = np.linspace(-1, 1, 12).astype(np.float32)
    added = SOME.add_to(logits)
    expected = logits.copy()
    expected[[2, 7, 9]] += [1.5, -0.25, 30.0]
    np.testing.assert_array_equal(added, expected)
    assert logits[2] < added[2]
    assert NONE.add_to(logits) is logits
    both = (a_bias((2, 1.0)), a_bias((3, 1.0)))
    for gates, moved in ((0, []), (1, [2]), (2, [3]), (3, [2, 3]), (-1, [2, 3])):
        assert np.flatnonzero(bias.add(both, gates, logits) != logits).tolist() == moved


def test_it_goes_up_and_is_the_same() -> None:
    first, second, third = bias.of_session(granted(NONE, SOME, NONE), 3, 50)
    assert not len(first)
    assert not len(third)
    np.testing.assert_array_equal(second.ids, SOME.ids)
    np.testing.assert_array_equal(second.values, SOME.values)
    assert bias.to_wire([NONE, NONE]) is None
    assert [len(each) for each in bias.of_session({}, 2, 50)] == [0, 0]


@pytest.mark.parametrize(
    ("ids", "values"),
    [
        (np.array([3, 2], np.int32), np.zeros(2, np.float16)),
        (np.array([2, 2], np.int32), np.zeros(2, np.float16)),
        (np.array([-1, 2], np.int32), np.zeros(2, np.float16)),
        (np.array([1], np.int32), np.array([31], np.float16)),
        (np.array([1], np.int32), np.array([np.nan], np.float16)),
        (np.array([1], np.int32), np.array([np.inf], np.float16)),
        (np.array([1], np.int32), np.zeros(2, np.float16)),
        (np.array([1], np.int64), np.zeros(1, np.float16)),
        (np.array([1], np.int32), np.zeros(1, np.float32)),
        (np.arange(MAX_BIASED + 1, dtype=np.int32), np.zeros(MAX_BIASED + 1, np.float16)),
    ],
)
def test_what_can_not_be_a_bias_is_refused(ids: np.ndarray, values: np.ndarray) -> None:
    with pytest.raises(InputError):
        Bias(ids, values)


def test_a_cloud_refuses_what_it_can_not_add() -> None:
    one, value = np.array([1], "<i4").tobytes(), np.array([1], "<f2").tobytes()
    for of in (
        [BiasOf(2, one, value)],  # of a part that there is not
        [BiasOf(0, one, value), BiasOf(0, one, value)],
        [BiasOf(0, one, value + value)],
        [BiasOf(0, np.array([50], "<i4").tobytes(), value)],  # past the vocabulary
        [BiasOf(0, one, np.array([np.nan], "<f2").tobytes())],
    ):
        with pytest.raises(InputError):
            bias.of_session(grant({BIAS.name: want(BiasSettings(of))}), 2, 50)
    half = np.arange(MAX_BIASED // 2 + 1, dtype="<i4")
    zeros = np.zeros(len(half), "<f2").tobytes()
    with pytest.raises((InputError, ProtocolError)):
        many = [BiasOf(0, half.tobytes(), zeros), BiasOf(1, half.tobytes(), zeros)]
        bias.of_session(grant({BIAS.name: want(BiasSettings(many))}), 2, 1 << 17)
