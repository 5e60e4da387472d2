"""The kinds' arithmetic against torch's autograd, their registry, and their taps."""

from typing import Any

import numpy as np
import pytest

from sideplug.contract.errors import PluginError
from sideplug.contract.tap import Tap
from sideplug.plugins import Plugin, register, trained_kinds
from sideplug.plugins.base import ONE_TEXT
from sideplug.plugins.ladder import Ladder
from tests.conftest import a_plugin, twin


def torch_ladder(p: dict[str, Any], code: Any) -> Any:
    torch = twin("torch")
    s = torch.zeros(code.shape[0], p["a"].shape[2])
    gelu = lambda x: torch.nn.functional.gelu(x, approximate="tanh")  # noqa: E731
    for k in range(p["a"].shape[0]):
        s = s + code[:, k] @ p["a"][k] + p["a_bias"][k]
        s = s + gelu(s @ p["up"][k] + p["up_bias"][k]) @ p["down"][k] + p["down_bias"][k]
    return gelu(s) @ p["c"] + p["c_bias"]


def torch_paper(p: dict[str, Any], code: Any) -> Any:
    torch = twin("torch")
    """The released code's forward, from its description: relu, rung + h + up-down, relu, out."""
    h = code[:, 1] @ p["in"] + p["in_bias"]
    for i in range(code.shape[1] - 2):
        h = torch.relu(h)
        adapted = torch.relu(h @ p["up"][i] + p["up_bias"][i]) @ p["down"][i] + p["down_bias"][i]
        h = code[:, i + 2] @ p["rung"][i] + p["rung_bias"][i] + h + adapted
    return torch.relu(h) @ p["out"] + p["out_bias"]


def torch_mlp(p: dict[str, Any], code: Any) -> Any:
    gelu = twin("torch").nn.functional.gelu
    return gelu(code.flatten(1) @ p["a"] + p["a_bias"], approximate="tanh") @ p["b"] + p["b_bias"]


@pytest.mark.twin
@pytest.mark.parametrize(("kind", "forward"), [("ladder", torch_ladder), ("mlp", torch_mlp), ("paper", torch_paper)])
def test_forward_and_gradients_equal_torch(kind: str, forward: Any) -> None:
    plugin = a_plugin("b", kind, 0.1)
    rng = np.random.default_rng(0)
    code = rng.normal(size=(11, len(plugin.tap.layers), plugin.tap.rank)).astype(np.float32)
    d_out = rng.normal(size=(11, 64)).astype(np.float32)
    part = plugin.trained
    out, saved = part.kind.forward(part.params, code, ONE_TEXT)
    gradients = part.kind.backward(part.params, saved, d_out)
    torch = twin("torch")
    params = {name: torch.tensor(value, requires_grad=True) for name, value in part.params.items()}
    want = forward(params, torch.from_numpy(code))
    want.backward(torch.from_numpy(d_out))
    np.testing.assert_allclose(out, want.detach().numpy(), rtol=2e-4, atol=2e-4)
    for name, value in params.items():
        scale = max(1.0, value.grad.abs().max().item())
        np.testing.assert_allclose(gradients[name] / scale, value.grad.numpy() / scale, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("kind", ["ladder", "mlp", "attention", "paper-added"])
def test_untrained_is_exactly_nothing(kind: str) -> None:
    tap = Tap.raw(2, 64) if kind == "paper-added" else Tap((0, 1, 2), 16)
    plugin = Plugin.new(kind, "b", "tiny", tap, 24, 64)
    code = np.random.default_rng(0).normal(size=(5, 3, tap.rank)).astype(np.float32)
    assert (plugin.trained.correct(code) == 0).all()


def test_kinds_and_their_taps() -> None:
    assert list(trained_kinds())[:5] == ["ladder", "mlp", "attention", "paper", "paper-added"]
    with pytest.raises(PluginError, match="one of ladder, mlp, attention, paper, paper-added"):
        Plugin.new("x", "b", "n", Tap((0,), 4), 8, 64)
    with pytest.raises(PluginError, match="raw tap"):
        Plugin.new("paper", "b", "n", Tap((0,), 4), 8, 64)
    for kind in ("ladder", "mlp", "attention"):
        assert trained_kinds()[kind].tap(30, 576) == Tap.spread(30, 576)
    assert trained_kinds()["paper"].tap(30, 576) == Tap.raw(30, 576)


def test_dropout_is_of_training_alone() -> None:
    """A step's mlp drops numbers by its seed alone, and its gradients are those of what it computed."""
    part = a_plugin("b", "mlp", 0.1).trained
    code = np.random.default_rng(0).normal(size=(9, len(part.tap.layers), part.tap.rank)).astype(np.float32)
    whole = part.correct(code)
    np.testing.assert_array_equal(part.correct(code), whole)

    def stepped(params: dict[str, np.ndarray]) -> np.ndarray:
        return part.kind.dropped(0.5, np.random.default_rng(5)).forward(params, code, ONE_TEXT)[0]

    np.testing.assert_array_equal(stepped(part.params), stepped(part.params))
    assert np.abs(stepped(part.params) - whole).max() > 0.1
    kind = part.kind.dropped(0.5, np.random.default_rng(5))
    out, saved = kind.forward(part.params, code, ONE_TEXT)
    gradients = kind.backward(part.params, saved, out)  # of ½ Σ out²
    for name, at in (("a", (3, 2)), ("a_bias", (1,)), ("b", (2, 5)), ("b_bias", (4,))):
        moved = {key: value.astype(np.float64) for key, value in part.params.items()}
        ends = []
        for step in (1e-4, -1e-4):
            moved[name] = part.params[name].astype(np.float64)
            moved[name][at] += step
            ends.append(0.5 * (stepped(moved) ** 2).sum())
        slope = (ends[0] - ends[1]) / 2e-4
        assert gradients[name][at] == pytest.approx(slope, rel=0.02, abs=1e-3)


def test_a_name_is_taken_once() -> None:
    class Other(Ladder):
        pass

    with pytest.raises(ValueError, match="there is a kind 'ladder' already"):
        register(Other())
