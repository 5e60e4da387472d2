"""A trunk's file: what it keeps, what is refused, where it is looked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sideplug.contract.errors import InputError, PluginError
from sideplug.contract.gate import Gate
from sideplug.plugins import trunk as trunks
from sideplug.plugins.trunk import Trunk
from tests.conftest import a_plugin


def a_trunk(name: str = "prose", version: int = 1, seed: int = 3, base: str = "b" * 64) -> Trunk:
    part = a_plugin(base, "mlp", 0.1, seed).trained
    gate = Gate("linear", np.linspace(-1, 1, 64, dtype=np.float32), threshold=0.25)
    return Trunk(name, version, base, "tiny", "mlp", part.tap, part.params, {"licences": ["CC0"]}, gate=gate)


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SIDEPLUG_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "trunks").mkdir(parents=True)
    return tmp_path / "cache" / "trunks"


def test_a_file_keeps_it(tmp_path: Path) -> None:
    made = a_trunk()
    made.save(tmp_path / "x.trunk")
    kept = Trunk.load(tmp_path / "x.trunk")
    assert (kept.name, kept.version, kept.base, kept.kind, kept.tap, kept.card) == (
        made.name,
        made.version,
        made.base,
        made.kind,
        made.tap,
        made.card,
    )
    assert len(kept.sha256) == 64
    assert (kept.gate.kind, kept.gate.threshold) == ("linear", 0.25)
    np.testing.assert_array_equal(kept.gate.weight_D, made.gate.weight_D)
    for name, value in made.params.items():
        assert kept.params[name].dtype == np.float32
        np.testing.assert_allclose(kept.params[name], value, rtol=1e-3, atol=1e-4)


def test_what_is_no_trunk_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.trunk"
    a_trunk().save(path)
    whole = path.read_bytes()
    for broken in (
        b"",
        b"hello",
        whole[:200],
        whole[:-3],
        whole.replace(b'\\"kind\\": \\"mlp\\"', b'\\"kind\\": \\"nix\\"'),
    ):
        path.write_bytes(broken)
        with pytest.raises(PluginError):
            Trunk.load(path)
    for name, change in (("b_bias", np.nan), ("a", np.inf)):
        bad = a_trunk()
        bad.params[name] = bad.params[name] * np.float32(change)
        bad.save(path)
        with pytest.raises(PluginError, match="not finite"):
            Trunk.load(path)
    foreign = a_trunk()
    foreign.params["more"] = np.zeros(3, np.float32)
    foreign.save(path)
    with pytest.raises(PluginError, match="shapes"):
        Trunk.load(path)
    with pytest.raises(PluginError, match="can't be read"):
        Trunk.load(tmp_path / "none.trunk")


def test_the_newest_that_fits_is_found(shelf: Path) -> None:
    for number, trunk in enumerate([a_trunk(), a_trunk(version=2, seed=4), a_trunk("other", 9, 5, "c" * 64)]):
        trunk.save(shelf / f"{number}.trunk")
    (shelf / "broken.trunk").write_bytes(b"x")
    found = trunks.for_base("b" * 64)
    assert found is not None
    assert found.title == "prose 2"
    assert trunks.for_base("d" * 64) is None
    assert trunks.named("other").version == 9
    assert trunks.named("prose 1").version == 1
    assert trunks.named(str(shelf / "0.trunk")).version == 1
    with pytest.raises(PluginError, match="there is no trunk 'nobody'"):
        trunks.named("nobody")


def test_what_ships_is_whole_and_has_its_card() -> None:
    ours = [trunk for trunk in trunks.installed() if trunk.name == "prose"]
    assert ours
    assert ours[0].card["worth"]["trunk"] < ours[0].card["worth"]["base"]
    assert {text["licence"] for text in ours[0].card["texts"]} == {"public domain", "GPL-2+"}
    assert not any("Lincoln" in text["name"] for text in ours[0].card["texts"]), "the benchmark's people are not in it"


def test_only_https_is_fetched() -> None:
    with pytest.raises(InputError, match="https://"), trunks.fetched("http://example.org/x.trunk"):
        pass
