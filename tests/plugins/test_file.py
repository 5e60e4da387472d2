"""A plugin's files: whole or in one sentence refused, atomic, only their owner's; parts beside each other; format 3."""

import json
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from sideplug.contract.errors import PluginError, Stopped
from sideplug.contract.gate import Gate
from sideplug.contract.tap import Tap
from sideplug.paths import write_aside
from sideplug.plugins import Plugin, TrainedPart, trained_kinds
from sideplug.plugins.base import Shape
from sideplug.plugins.file import CONFIG, MANNER, PLUGIN, WEIGHTS, is_plugin, is_sealed
from tests.conftest import a_plugin


@pytest.mark.parametrize("kind", ["ladder", "attention", "paper", "paper-added"])
def test_saved_and_loaded_is_the_same(tmp_path: Path, kind: str) -> None:
    plugin = a_plugin("fingerprint", kind)
    part = plugin.trained
    part.about = {"loss": 1.5}
    if kind in ("ladder", "attention"):
        weight = np.random.default_rng(0).normal(size=64).astype(np.float32)
        part.gate = Gate("linear", weight, 0.5, -1.25, 0.7, (-3.0, 0.0, 2.0))
        part.phrases = np.array([5, 6, -1, 7], np.int32)
    plugin.save(tmp_path / "p")
    for back in (Plugin.load(tmp_path / "p"), Plugin.from_bytes(plugin.to_bytes(), "the file")):
        assert back.config() == plugin.config()
        gate = back.trained.gate
        assert (gate.dial, gate.threshold) == (part.gate.dial, part.gate.threshold)
        np.testing.assert_array_equal(gate.weight_D, part.gate.weight_D)
        np.testing.assert_array_equal(back.phrases, plugin.phrases)
        for name, value in part.params.items():
            np.testing.assert_array_equal(back.trained.params[name], value)
    assert json.loads((tmp_path / "p" / MANNER / CONFIG).read_text())["peft_type"] == "SIDEPLUG"
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
    part = plugin.trained
    config = plugin.config()["parts"][0]
    whole = {**part.tensors(), "gate": np.zeros(0, np.float32)}
    missing = {name: value for name, value in whole.items() if name != "params.a"}
    wrong = {**whole, "params.a": np.zeros((3, 5, 24), np.float32)}
    for params, changed in (
        (missing, {}),
        (wrong, {}),
        ({**whole, "b": np.zeros(3, np.float32)}, {}),
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
        (folder / WEIGHTS).write_bytes(safetensors.numpy.save(part.params, header))
        with pytest.raises(PluginError):
            Plugin.load(folder)


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
    left = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert left == [f"{MANNER}/{CONFIG}", WEIGHTS, PLUGIN], "nothing half-written is left behind"
    Plugin.load(folder)


def test_write_aside_cleans_up(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        write_aside(tmp_path / "missing" / "f", b"x")
    with pytest.raises(Stopped):
        (tmp_path / "file").write_text("")
        a_plugin("b").save(tmp_path / "file")


def test_several_parts(tmp_path: Path) -> None:
    """Each in a folder of its own; one tap for all; a corrected z is their sum."""
    plugin = a_plugin("b" * 64, seed=1)
    ladder = trained_kinds()["ladder"]
    params = ladder.init(Shape(2, 16, 8, 64), np.random.default_rng(0))
    params["c"] += 0.1
    both = Plugin(
        plugin.base, plugin.base_name, [*plugin.parts, TrainedPart(ladder, Tap((0, 2), 16), params, name="rest")]
    )
    assert both.tap == Tap((0, 1, 2), 16)
    both.save(tmp_path)
    assert is_plugin(tmp_path)
    assert not is_sealed(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manner", "plugin.json", "rest"]
    for back in (Plugin.load(tmp_path), Plugin.from_bytes(both.to_bytes(), "x")):
        assert [part.name for part in back.parts] == ["manner", "rest"]
        assert back.to_bytes() == both.to_bytes()
    (tmp_path / "rest" / "adapter_model.safetensors").unlink()
    with pytest.raises(PluginError, match="lacks its part rest"):
        Plugin.load(tmp_path)


def test_a_plugin_of_the_first_version_is_named(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(PluginError, match=r"sideplug 0\.1 \(format 2\): train it anew"):
        Plugin.load(tmp_path)


def test_a_kind_of_a_later_version(tmp_path: Path) -> None:
    a_plugin("b").save(tmp_path)
    about = json.loads((tmp_path / PLUGIN).read_text())
    (tmp_path / PLUGIN).write_text(json.dumps({**about, "format": 4}))
    with pytest.raises(PluginError, match="has format 4, this version reads 3"):
        Plugin.load(tmp_path)
