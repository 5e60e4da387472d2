"""The kind that reads the text: its arithmetic, its window, and that rows one by one are the whole text's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sideplug.contract.errors import PluginError, ProtocolError
from sideplug.contract.gate import Gate
from sideplug.contract.tap import Tap
from sideplug.plugins import TrainedPart, attention
from sideplug.plugins.attention import Attention, LastRows
from sideplug.plugins.base import ONE_TEXT, PARAMS, Params, Shape
from tests.conftest import twin

TAP = Tap((0, 1, 2), 16)
WIDTH, MODEL_WIDTH, HEADS = 24, 64, 4
KIND = Attention()


def random_params(window: int, scale: float = 0.2, seed: int = 0, blocks: int = 2) -> Params:
    """Parameters, all random, of a part that looks back over so many rows."""
    rng = np.random.default_rng(seed)
    shapes = attention.sizes(len(TAP.layers) * TAP.rank, WIDTH, MODEL_WIDTH, (blocks, HEADS, window))
    return {name: rng.normal(0, scale, shape).astype(np.float32) for name, shape in shapes.items()}


def codes(rows: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, 3, 16)).astype(np.float32)


def one_by_one(params: Params, code_TKR: np.ndarray, past: LastRows) -> np.ndarray:
    return np.concatenate([KIND.forward(params, row[None], ONE_TEXT, past)[0] for row in code_TKR])


def torch_attention(p: dict[str, Any], code: Any, starts: list[int]) -> Any:
    """The same by torch's own attention, with a mask over all rows at once."""
    torch = twin("torch")
    nn = torch.nn.functional
    rows, (blocks, count, window) = len(code), p["near"].shape
    text = torch.searchsorted(torch.tensor(starts), torch.arange(rows), right=True)
    distance = torch.arange(rows)[:, None] - torch.arange(rows)[None]
    seen = (text[:, None] == text[None]) & (distance >= 0) & (distance < window)

    def norm(x: Any, gain: Any, bias: Any) -> Any:
        return nn.layer_norm(x, x.shape[1:], gain + 1, bias)

    def split(x: Any) -> Any:
        return x.reshape(rows, count, -1).transpose(0, 1)

    x = code.reshape(rows, -1) @ p["in"] + p["in_bias"]
    for n in range(blocks):
        y = norm(x, p["attend_gain"][n], p["attend_bias"][n])
        k, v = (y @ p["kv"][n] + p["kv_bias"][n]).chunk(2, 1)
        near = p["near"][n][:, distance.clamp(0, window - 1)].masked_fill(~seen, -torch.inf)
        out = nn.scaled_dot_product_attention(split(y @ p["q"][n] + p["q_bias"][n]), split(k), split(v), attn_mask=near)
        x = x + out.transpose(0, 1).reshape(rows, -1) @ p["o"][n] + p["o_bias"][n]
        inner = norm(x, p["mix_gain"][n], p["mix_bias"][n]) @ p["up"][n] + p["up_bias"][n]
        x = x + nn.gelu(inner, approximate="tanh") @ p["down"][n] + p["down_bias"][n]
    return nn.gelu(norm(x, p["norm_gain"], p["norm_bias"]), approximate="tanh") @ p["c"] + p["c_bias"]


@pytest.mark.twin
@pytest.mark.parametrize("window", [1, 4, 64])
def test_forward_and_gradients_equal_torch(window: int) -> None:
    """Several texts, shorter and longer than the window; the attention by other code."""
    torch = twin("torch")
    params, code, starts = random_params(window), codes(23), [0, 3, 4]
    out, saved = KIND.forward(params, code, np.array(starts))
    d_out = np.random.default_rng(2).normal(size=out.shape).astype(np.float32)
    gradients = KIND.backward(params, saved, d_out)
    tensors = {name: torch.tensor(value, requires_grad=True) for name, value in params.items()}
    want = torch_attention(tensors, torch.from_numpy(code), starts)
    want.backward(torch.from_numpy(d_out))
    np.testing.assert_allclose(out, want.detach().numpy(), rtol=1e-4, atol=1e-4)
    assert gradients.keys() == tensors.keys()
    for name, value in tensors.items():
        scale = max(1.0, value.grad.abs().max().item())
        np.testing.assert_allclose(gradients[name] / scale, value.grad.numpy() / scale, atol=2e-5, err_msg=name)
        assert value.grad.abs().max() > 0 or window == 1, name  # one row is all that is seen: nothing to weigh


@pytest.mark.parametrize("window", [4, 64])
def test_gradients_against_differences(window: int) -> None:
    """In float64, of each parameter, along random directions: without torch."""
    params = {name: value.astype(np.float64) for name, value in random_params(window).items()}
    code, starts = codes(14).astype(np.float64), np.array([0, 9])
    rng = np.random.default_rng(2)
    d_out = rng.normal(size=(14, MODEL_WIDTH))
    gradients = KIND.backward(params, KIND.forward(params, code, starts)[1], d_out)
    for name, value in params.items():
        direction = rng.normal(size=value.shape)
        sides = [
            float((KIND.forward({**params, name: value + step * direction}, code, starts)[0] * d_out).sum())
            for step in (1e-5, -1e-5)
        ]
        slope = (sides[0] - sides[1]) / 2e-5
        assert float((gradients[name] * direction).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-5), name
        assert abs(slope) > 1e-3, name


def test_untrained_is_exactly_nothing() -> None:
    params = KIND.init(Shape(3, 16, WIDTH, MODEL_WIDTH), np.random.default_rng(0))
    assert params["near"].shape == (2, 4, 256), "two blocks of four heads, 256 rows"
    assert (KIND.forward(params, codes(9), ONE_TEXT)[0] == 0).all()
    usual = KIND.init(Shape(9, 64, KIND.default_width, 576), np.random.default_rng(0))
    assert sum(value.size for value in usual.values()) == 818_432


@pytest.mark.parametrize("window", [1, 5, 64])
def test_rows_one_by_one_are_the_whole_text(window: int) -> None:
    params, code = random_params(window), codes(40)
    whole = KIND.forward(params, code, ONE_TEXT)[0]
    np.testing.assert_allclose(one_by_one(params, code, LastRows(params)), whole, atol=2e-5)
    past = LastRows(params)
    parts = [KIND.forward(params, code[low:high], ONE_TEXT, past)[0] for low, high in ((0, 7), (7, 8), (8, 40))]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=2e-5)
    assert past.length == 40


def test_texts_beside_each_other_do_not_see_each_other() -> None:
    params, code = random_params(6), codes(30)
    together = KIND.forward(params, code, np.array([0, 11, 12]))[0]
    for low, high in ((0, 11), (11, 12), (12, 30)):
        alone = KIND.forward(params, code[low:high], ONE_TEXT)[0]
        np.testing.assert_allclose(together[low:high], alone, atol=2e-5)


def test_it_looks_back_over_its_window_and_no_further() -> None:
    """Two blocks of 5 rows see 9 positions: the last row does not know the one before these, and knows the first of
    them."""
    params, code = random_params(5), codes(30)
    last = KIND.forward(params, code, ONE_TEXT)[0][-1]
    for row, is_seen in ((29, True), (21, True), (20, False), (0, False)):
        other = code.copy()
        other[row] += 1
        changed = KIND.forward(params, other, ONE_TEXT)[0][-1]
        assert (not np.array_equal(changed, last)) == is_seen, row


def test_a_text_means_the_same_wherever_it_stands() -> None:
    params, code = random_params(5), codes(30)
    far = np.concatenate([codes(100, 7), code])
    want = KIND.forward(params, code, ONE_TEXT)[0][8:]
    np.testing.assert_allclose(KIND.forward(params, far, ONE_TEXT)[0][108:], want, atol=2e-5)


@pytest.fixture
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are dropped soon."""
    monkeypatch.setattr(attention, "ROLL_BACK", 8)


def test_a_long_text_takes_bounded_memory(few_rows: None) -> None:
    params, code = random_params(5), codes(200)
    past = LastRows(params)
    size = past._kv.nbytes
    said = one_by_one(params, code, past)
    np.testing.assert_allclose(said, KIND.forward(params, code, ONE_TEXT)[0], atol=2e-5)
    assert past._kv.nbytes == size == 2 * (5 + 16) * 2 * WIDTH * 4
    assert (past.length, past.kept <= 21) == (200, True)


@pytest.mark.parametrize("back", range(1, 9))
def test_a_text_that_goes_back_is_as_if_it_had_not(few_rows: None, back: int) -> None:
    """To the bit, from wherever it goes back, and whether a row was asked about or came without a question."""
    params, code = random_params(5), codes(90)
    want = one_by_one(params, code, LastRows(params))
    for end in (10, 26, 45, 78):
        past = LastRows(params)
        for row in code[: end - back]:
            KIND.extend(params, row[None], past)
        one_by_one(params, codes(back, 9), past)
        past.trim(end - back)
        assert past.length == end - back
        np.testing.assert_array_equal(one_by_one(params, code[end - back :], past), want[end - back :])


def test_going_back_further_than_rows_are_kept_is_refused(few_rows: None) -> None:
    params = random_params(5)
    past = LastRows(params)
    one_by_one(params, codes(90), past)
    with pytest.raises(ProtocolError, match="go back by at most 8 tokens"):
        past.trim(60)
    short = LastRows(params)
    one_by_one(params, codes(12), short)
    short.trim(0)
    np.testing.assert_array_equal(one_by_one(params, codes(3), short), one_by_one(params, codes(3), LastRows(params)))


# A file ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def loaded(params: Params) -> TrainedPart:
    tensors = {PARAMS + name: value for name, value in params.items()}
    part = KIND.load({}, tensors, TAP, Gate("open"), {})
    assert isinstance(part, TrainedPart)
    return part


def test_a_file_may_have_other_sizes() -> None:
    """Blocks, heads and window stand in the shape of one tensor, so a part of another version's sizes is read."""
    params = random_params(7, blocks=3)
    part = loaded(params)
    assert part.size == sum(value.size for value in params.values())
    np.testing.assert_array_equal(part.correct(codes(9)), KIND.forward(params, codes(9), ONE_TEXT)[0])


ODD = {
    "no window": lambda p: {**p, "near": np.zeros((2, 4, 0), np.float32)},
    "a window beyond all": lambda p: {**p, "near": np.zeros((2, 4, 4097), np.float32)},
    "no heads": lambda p: {**p, "near": np.zeros((2, 0, 5), np.float32)},
    "heads that do not share the width": lambda p: {**p, "near": np.zeros((2, 5, 5), np.float32)},
    "a block more": lambda p: {**p, "near": np.zeros((3, 4, 5), np.float32)},
    "no blocks": lambda p: {**p, "near": np.zeros((0, 4, 5), np.float32)},
    "a norm of one number": lambda p: {**p, "norm_gain": np.zeros(1, np.float32)},
    "another width of codes": lambda p: {**p, "in": p["in"][:-1]},
    "one value less": lambda p: {**p, "kv": p["kv"][:, :, :-1]},
    "float64": lambda p: {**p, "q": p["q"].astype(np.float64)},
    "one more": lambda p: {**p, "more": np.zeros(1, np.float32)},
}


@pytest.mark.parametrize("how", ODD)
def test_an_odd_file_is_refused(how: str) -> None:
    with pytest.raises(PluginError) as caught:
        loaded(ODD[how](random_params(5)))
    assert str(caught.value).count("\n") == 0


def test_a_width_that_heads_cannot_share_is_refused() -> None:
    with pytest.raises(PluginError, match="must be a multiple of 4, got 30"):
        KIND.init(Shape(3, 16, 30, MODEL_WIDTH), np.random.default_rng(0))
