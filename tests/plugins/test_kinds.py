"""The plugin's arithmetic against torch's autograd, and its file against every way to be wrong."""

import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from sideplug.contract.errors import PluginError, Stopped, WrongBase
from sideplug.contract.gate import Gate
from sideplug.contract.tap import Tap
from sideplug.device.plugin import CONFIG, KINDS, WEIGHTS, Plugin, write_aside
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


@pytest.mark.twin
@pytest.mark.parametrize(("kind", "forward"), [("ladder", torch_ladder), ("paper", torch_paper)])
def test_forward_and_gradients_equal_torch(kind: str, forward: Any) -> None:
    plugin = a_plugin("b", kind, 0.1)
    rng = np.random.default_rng(0)
    code = rng.normal(size=(11, len(plugin.tap.layers), plugin.tap.rank)).astype(np.float32)
    d_out = rng.normal(size=(11, 64)).astype(np.float32)
    out, saved = KINDS[kind].forward(plugin.params, code, train=True)
    gradients = KINDS[kind].backward(plugin.params, code, saved, d_out)
    torch = twin("torch")
    params = {name: torch.tensor(value, requires_grad=True) for name, value in plugin.params.items()}
    want = forward(params, torch.from_numpy(code))
    want.backward(torch.from_numpy(d_out))
    np.testing.assert_allclose(out, want.detach().numpy(), rtol=2e-4, atol=2e-4)
    for name, value in params.items():
        scale = max(1.0, value.grad.abs().max().item())
        np.testing.assert_allclose(gradients[name] / scale, value.grad.numpy() / scale, atol=2e-5, err_msg=name)


def test_untrained_is_exactly_nothing() -> None:
    plugin = Plugin.new("ladder", "b", "tiny", Tap((0, 1, 2), 16), 24, 64)
    code = np.random.default_rng(0).normal(size=(5, 3, 16)).astype(np.float32)
    assert (plugin.correct(code) == 0).all()


@pytest.mark.parametrize("kind", ["ladder", "paper", "paper-added"])
def test_saved_and_loaded_is_the_same(tmp_path: Path, kind: str) -> None:
    plugin = a_plugin("fingerprint", kind)
    plugin.about = {"loss": 1.5}
    if kind == "ladder":
        weight = np.random.default_rng(0).normal(size=64).astype(np.float32)
        plugin.gate = Gate("linear", weight, 0.5, -1.25, 0.7, (-3.0, 0.0, 2.0))
        plugin.phrases = np.array([5, 6, -1, 7], np.int32)
    plugin.save(tmp_path / "p")
    back = Plugin.load(tmp_path / "p")
    assert back.config() == plugin.config()
    assert (back.gate.dial, back.gate.threshold) == (plugin.gate.dial, plugin.gate.threshold)
    np.testing.assert_array_equal(back.gate.weight_D, plugin.gate.weight_D)
    np.testing.assert_array_equal(back.phrases, plugin.phrases)
    for name, value in plugin.params.items():
        np.testing.assert_array_equal(back.params[name], value)
    assert json.loads((tmp_path / "p" / CONFIG).read_text())["peft_type"] == "SIDEPLUG"
    assert stat.S_IMODE((tmp_path / "p" / WEIGHTS).stat().st_mode) == 0o600


def test_ways_to_be_no_plugin(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    with pytest.raises(PluginError, match="there is no plugin"):
        Plugin.load(folder)
    plugin = a_plugin("b")
    plugin.save(folder)
    whole = (folder / WEIGHTS).read_bytes()
    for size in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        (folder / WEIGHTS).write_bytes(whole[:size])
        with pytest.raises(PluginError, match="truncated or damaged"):
            Plugin.load(folder)
    (folder / WEIGHTS).write_bytes(safetensors.numpy.save({"lora_A": np.zeros(3, np.float32)}))
    with pytest.raises(PluginError, match="another kind of adapter"):
        Plugin.load(folder)
    config = plugin.config()
    whole = {**plugin.params, "gate": np.zeros(0, np.float32), "phrases": plugin.phrases}
    missing = {name: value for name, value in whole.items() if name != "a"}
    wrong = {**whole, "a": np.zeros((3, 5, 24), np.float32)}
    for params, changed in (
        (missing, {}),
        (wrong, {}),
        (whole, {"format": 99}),
        (whole, {"kind": "x"}),
        (whole, {"tap": "x"}),
        (whole, {"gate": {}}),
        ({**whole, "gate": np.zeros(64, np.float32)}, {}),
        (whole, {"gate": {"kind": "linear", "bias": 0.0, "threshold": 0.0, "dial": []}}),
    ):
        header = {"sideplug": json.dumps({**config, **changed})}
        (folder / WEIGHTS).write_bytes(safetensors.numpy.save(params, header))
        with pytest.raises(PluginError) as caught:
            Plugin.load(folder)
        assert "\n" not in str(caught.value)
    for header in ({}, {"sideplug": "no json"}, {"sideplug": "{}"}):
        (folder / WEIGHTS).write_bytes(safetensors.numpy.save(plugin.params, header))
        with pytest.raises(PluginError):
            Plugin.load(folder)


def test_made_for_another_base() -> None:
    with pytest.raises(WrongBase, match=r"made for the base model aaa.* serves bbb"):
        a_plugin("aaa").check_base("bbb", "other")


def test_kinds_and_their_taps() -> None:
    with pytest.raises(PluginError, match="one of ladder, paper, paper-added"):
        Plugin.new("x", "b", "n", Tap((0,), 4), 8, 64)
    with pytest.raises(PluginError, match="raw tap"):
        Plugin.new("paper", "b", "n", Tap((0,), 4), 8, 64)


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from tests.conftest import a_plugin, twin
from sideplug.contract.errors import Stopped
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))  # the kernel refuses every byte past it, as a full disk does
try:
    a_plugin("b", seed=9).save(Path(sys.argv[1]))
except Stopped as error:
    print(error)
"""


def test_a_full_disk_leaves_the_old_plugin_whole(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    a_plugin("b", seed=1).save(folder)
    before = (folder / WEIGHTS).read_bytes()
    done = subprocess.run([sys.executable, "-c", FULL_DISK, folder], capture_output=True, text=True, check=False)
    assert "could not be written" in done.stdout, done.stderr
    assert (folder / WEIGHTS).read_bytes() == before
    assert sorted(f.name for f in folder.iterdir()) == [CONFIG, WEIGHTS], "nothing half-written is left behind"
    Plugin.load(folder)


def test_write_aside_cleans_up(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        write_aside(tmp_path / "missing" / "f", b"x")
    with pytest.raises(Stopped):
        (tmp_path / "file").write_text("")
        a_plugin("b").save(tmp_path / "file")
