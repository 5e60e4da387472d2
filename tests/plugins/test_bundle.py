"""A plugin with its tapes as one file: all of it arrives, nothing else may come with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sideplug.contract.errors import PluginError
from sideplug.device.plugin_store import import_to
from sideplug.plugins import Plugin, bundle
from tests.conftest import a_plugin

PLUGIN = a_plugin("f" * 64)
TAPES = {"train.tape": b"words", "train.json": b"{}", "held.tape": b"", "more-12.tape": b"more", "retain.tape": b"r"}


def test_all_arrives(tmp_path: Path) -> None:
    data = bundle.to_bytes(PLUGIN, TAPES)
    assert Plugin.from_bytes(data, "x").to_bytes() == PLUGIN.to_bytes(), "a version without bundles reads the plugin"
    import_to(tmp_path / "p", data, "x")
    assert bundle.tapes_of(tmp_path / "p") == TAPES
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "p" / "tape").iterdir())
    assert Plugin.load(tmp_path / "p").to_bytes() == PLUGIN.to_bytes()
    assert bundle.to_bytes(PLUGIN, {}) == PLUGIN.to_bytes()
    assert bundle.tapes_in(PLUGIN.to_bytes(), "x") == {}


@pytest.mark.parametrize(
    "name", ["../train.tape", "/etc/passwd", "train.tape/x", "evil.sh", "more-0.tape", "more-99999.tape", ".tape", ""]
)
def test_names_that_no_tape_has(tmp_path: Path, name: str) -> None:
    data = PLUGIN.to_bytes({f"tape:{name}": np.zeros(3, np.uint8)})
    with pytest.raises(PluginError, match="holds a tape that can't be one of a plugin's"):
        import_to(tmp_path / "a" / "p", data, "x")
    assert not (tmp_path / "a").exists()


def test_a_tape_is_bytes(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="a tape that can't be"):
        import_to(tmp_path / "p", PLUGIN.to_bytes({"tape:train.tape": np.zeros(3, np.float32)}), "x")
