"""int8 a vector, projections, names."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sideplug.contract.codec import dequant8, pack, quant8, unpack
from sideplug.contract.errors import InputError
from sideplug.contract.tap import ContextSlice, Tap, _projection


def test_int8_error_is_half_a_step_at_most() -> None:
    x = np.random.default_rng(0).normal(0, 3, (50, 7, 64)).astype(np.float32)
    x[0] *= 22500  # the first token's activations
    codes, scales = quant8(x)
    assert codes.dtype == np.int8
    assert scales.shape == (50, 7)
    error = np.abs(dequant8(codes, scales) - x)
    assert (error <= scales[..., None] * 0.501).all()


def test_zero_is_exact_and_what_is_not_finite_becomes_zero() -> None:
    x = np.array([[0, 0], [np.nan, 1], [np.inf, 1], [1e-30, 0]], np.float32)
    codes, scales = quant8(x)
    back = dequant8(codes, scales)
    assert (back[:3] == 0).all()
    assert np.isfinite(back).all()


def test_fp16_round_trip_and_clipping() -> None:
    x = np.array([[1.5, 1e9]], np.float32)
    codes, scales = pack(x, int8=False)
    assert (codes.dtype, scales.shape) == (np.float16, (0,))
    np.testing.assert_array_equal(unpack(codes, scales), [[1.5, 65504]])


def test_projection_is_orthonormal_and_seeded() -> None:
    p = _projection((0, 1, 2), 40, 16, 5)
    for k in range(3):
        np.testing.assert_allclose(p[k].T @ p[k], np.eye(16), atol=1e-5)
    assert np.abs(p[0] - p[1]).max() > 0.1
    # A number that must not change with versions: plugins depend on it.
    np.testing.assert_allclose(p[0, 0, :3], [-0.137690, -0.249967, -0.039957], atol=1e-5)


@pytest.mark.parametrize("codec", ["int8", "fp16", "raw"])
def test_encode_decode(codec: str) -> None:
    hidden = np.random.default_rng(1).normal(0, 4, (5, 3, 64)).astype(np.float32)
    tap = Tap((0, 1, 2), 64 if codec == "raw" else 16, 0, codec)
    codes, scales = tap.encode(hidden)
    assert codes.shape == (5, 3, tap.rank)
    assert codes.nbytes + scales.nbytes == 5 * tap.bytes_per_token
    back = tap.decode(codes, scales)
    if codec == "raw":
        np.testing.assert_allclose(back, hidden, rtol=1e-3, atol=1e-3)
    else:
        normed = (hidden - hidden.mean(-1, keepdims=True)) / hidden.std(-1, keepdims=True)
        want = np.einsum("tkd,kdr->tkr", normed, _projection((0, 1, 2), 64, 16, 0))
        np.testing.assert_allclose(back, want, atol=0.03)


def test_one_token_encodes_as_it_does_among_others() -> None:
    """The cloud encodes a decode step alone and a tape in bulk: the codes must be the same."""
    hidden = np.random.default_rng(1).normal(0, 4, (9, 3, 64)).astype(np.float32)
    tap = Tap((0, 1, 2), 16)
    bulk = tap.decode(*tap.encode(hidden))
    for t in range(9):
        np.testing.assert_allclose(tap.decode(*tap.encode(hidden[t : t + 1]))[0], bulk[t], atol=0.03)


@given(
    st.lists(st.integers(0, 99), min_size=1, max_size=9, unique=True),
    st.integers(1, 999),
    st.integers(0, 99),
    st.sampled_from(["int8", "fp16", "raw"]),
)
def test_names(layers: list[int], rank: int, seed: int, codec: str) -> None:
    tap = Tap(tuple(sorted(layers)), rank, seed, codec)
    assert Tap.parse(tap.name) == tap


@pytest.mark.parametrize(
    "name", ["", "l0-r64", "l1.0-r64-s0-int8", "l0-r0-s0-int8", "l0-r64-s0-int4", "l0-r64-s0-int8x"]
)
def test_bad_names(name: str) -> None:
    with pytest.raises(InputError):
        Tap.parse(name)


def test_default_spans_the_model_and_checks_against_it() -> None:
    assert Tap.spread(30, 576).layers == (0, 4, 8, 11, 15, 19, 22, 26, 30)
    assert Tap.spread(2, 32).name == "l0.1.2-r32-s0-int8"
    with pytest.raises(InputError, match="0 to 2"):
        Tap((0, 3), 16).check(2, 64)
    with pytest.raises(InputError, match="width 64"):
        Tap((0,), 65).check(2, 64)
    with pytest.raises(InputError, match="width 64"):
        Tap((0,), 32, 0, "raw").check(2, 64)


def test_a_layers_code_does_not_depend_on_the_others() -> None:
    """So the parts of a plugin share one tap, to the bit."""
    hidden = np.random.default_rng(1).normal(0, 4, (1, 6, 64)).astype(np.float32)
    one, other = Tap((0, 3), 16), Tap((1, 3, 5), 16)
    union = Tap.union([one, other])
    assert union == Tap((0, 1, 3, 5), 16)
    codes, scales = union.encode(hidden[:, list(union.layers)])
    for tap in (one, other):
        own_codes, own_scales = tap.encode(hidden[:, list(tap.layers)])
        np.testing.assert_array_equal(codes[:, union.rows_of(tap)], own_codes)
        np.testing.assert_array_equal(scales[:, union.rows_of(tap)], own_scales)
    with pytest.raises(InputError, match="one rank, seed and number format"):
        Tap.union([one, Tap((1,), 8)])


@pytest.mark.parametrize("codec", ["int8", "fp16"])
def test_a_context_slice_is_part_of_the_codes(codec: str) -> None:
    hidden = np.random.default_rng(1).normal(0, 4, (4, 3, 64)).astype(np.float32)
    tap = Tap((0, 2, 5), 16, 0, codec)
    part = ContextSlice(tap, (0, 5), 6)
    codes, scales = tap.encode(hidden)
    cut = part.cut(codes, scales)
    assert sum(each.nbytes for each in cut) == 4 * part.bytes_per_token
    whole, back = tap.decode(codes, scales), part.decode(*cut)
    np.testing.assert_array_equal(back[:, [0, 2], :6], whole[:, [0, 2], :6])
    assert (back[:, 1] == 0).all()
    assert (back[:, :, 6:] == 0).all()
    for layers, rank in (((1,), 6), ((), 6), ((0,), 0), ((0,), 17), ((5, 0), 3)):
        with pytest.raises(InputError):
            ContextSlice(tap, layers, rank)
