"""A trunk that the cloud has is run there: the text is what the device's answers would make it, to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sideplug.cloud.trunks import Trunks
from sideplug.contract.capabilities import TRUNK, TrunkOf, TrunkSettings
from sideplug.contract.errors import InputError, Untrusted
from sideplug.contract.frames import Tokens
from sideplug.contract.gate import Gate
from sideplug.contract.sampling import Sampling
from sideplug.contract.tap import Tap
from sideplug.contract.text import Prompt
from sideplug.device.guard import Asked, Guard
from sideplug.device.reply import DecodeOptions
from sideplug.device.responders import PluginResponder
from sideplug.plugins import Plugin
from sideplug.plugins.trunk import Trunk
from tests.conftest import Cloud, a_plugin, a_session
from tests.device.test_guard import BEGUN, PROMPT, guard, hear
from tests.device.test_terms import TERMS
from tests.plugins.toy_memory import ToyMemory

SAMPLED = Sampling(0.9, top_k=40, repetition_penalty=1.1, seed=7)
WIDTH = 64


def trunk_of(plugin: Plugin) -> Trunk:
    part = plugin.trained
    return Trunk("toy", 1, plugin.base, "tiny", part.kind_name, part.tap, part.params)


def begun(base: str, kind: str = "mlp", gate: Gate | None = None, **tap: Any) -> Plugin:
    """A plugin whose part is still the trunk that it began with."""
    plugin = a_plugin(base, kind, **tap)
    part = plugin.trained
    part.about = {"trunk": trunk_of(plugin).about}
    part.gate = gate or Gate("linear", np.random.default_rng(2).normal(0, 1, WIDTH).astype(np.float32), 0.1)
    return plugin


@pytest.fixture
def with_trunks(cloud: Cloud) -> Iterator[Any]:
    """Let the cloud have these trunks for a while."""
    shared = cloud.server.shared

    def have(*trunks: Trunk) -> None:
        cloud.server.shared = replace(shared, trunks=Trunks.of(trunks, WIDTH))

    yield have
    cloud.server.shared = shared


def reply(cloud: Cloud, plugin: Plugin, sampling: Sampling = SAMPLED, gate: Gate | None = None, **options: Any) -> Any:
    with a_session(cloud.url, plugin, gate) as session:
        prompt = Prompt(messages=({"role": "user", "content": "the miller and his dog"},))
        got = session.generate(prompt, 24, sampling, DecodeOptions(**options))
        return got.text, got.usage


@pytest.mark.parametrize("sampling", [Sampling(), SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("gate", [None, Gate("open")], ids=["gated", "open"])
@pytest.mark.parametrize("codec", ["int8", "fp16"])
def test_the_text_is_the_same(cloud: Cloud, with_trunks: Any, sampling: Sampling, gate: Any, codec: str) -> None:
    plugin = begun(cloud.base.fingerprint, codec=codec)
    asked, of_device = reply(cloud, plugin, sampling, gate)
    with_trunks(trunk_of(plugin))
    alone, of_cloud = reply(cloud, plugin, sampling, gate)
    assert alone == asked
    assert asked != reply(cloud, plugin, sampling, Gate("shut"))[0]
    assert (of_device.asked > 0, of_device.trunk) == (True, 0)
    assert (of_cloud.asked, of_cloud.round_trips) == (0, 0)
    assert of_cloud.trunk == of_cloud.plugin_tokens == of_device.plugin_tokens > 0


def test_parts_that_the_cloud_lacks_are_asked_with_all(cloud: Cloud, with_trunks: Any) -> None:
    """Of two parts of manner the cloud has one. Where only its gate opens, nobody is asked."""
    plugin = begun(cloud.base.fingerprint)
    own = a_plugin(cloud.base.fingerprint, "ladder", seed=5).trained
    own.name, own.gate = "own", Gate("linear", np.random.default_rng(4).normal(0, 1, WIDTH).astype(np.float32), 0.3)
    plugin = Plugin(plugin.base, plugin.base_name, [*plugin.parts, own])
    asked, of_device = reply(cloud, plugin)
    with_trunks(trunk_of(plugin_of(plugin, "manner")))
    some, of_cloud = reply(cloud, plugin)
    assert some == asked
    assert 0 < of_cloud.asked < of_device.asked
    assert of_cloud.trunk > 0


def plugin_of(plugin: Plugin, name: str) -> Plugin:
    return Plugin(plugin.base, plugin.base_name, [part for part in plugin.parts if part.name == name])


def test_a_memory_still_speaks(cloud: Cloud, with_trunks: Any) -> None:
    base = cloud.base.fingerprint
    plugin = begun(base)
    memory = ToyMemory("the miller and his dog", np.array([5, 9, 14, 9, 33], np.int32), plugin.tap)
    plugin = Plugin(base, "tiny", [memory, *plugin.parts])
    asked, of_device = reply(cloud, plugin, window=0)
    assert of_device.asked > 0
    with_trunks(trunk_of(plugin_of(plugin, "manner")))
    for window in (0, 8):
        said, of_cloud = reply(cloud, plugin, window=window)
        assert said == asked
        assert of_cloud.trunk == 0, "the memory's gate is open for the whole reply"


def test_a_tuned_part_is_asked(cloud: Cloud, with_trunks: Any) -> None:
    plugin = begun(cloud.base.fingerprint)
    with_trunks(trunk_of(plugin))
    plugin.trained.params["b_bias"] = plugin.trained.params["b_bias"] + 1
    assert reply(cloud, plugin)[1].trunk == 0


def test_the_device_s_head_is_asked(cloud: Cloud, with_trunks: Any) -> None:
    """With the head on the device the bias stays there, so the cloud can't choose."""
    plugin = begun(cloud.base.fingerprint)
    with_trunks(trunk_of(plugin))
    assert TRUNK.name in PluginResponder(plugin).opening.capabilities
    assert TRUNK.name not in PluginResponder(plugin, head="device").opening.capabilities


def test_which_trunks_a_cloud_may_run(cloud: Cloud) -> None:
    base = cloud.base.fingerprint
    looks_back, replaces = a_plugin(base, "attention"), a_plugin(base, "paper")
    fits = a_plugin(base, "mlp")
    trunks = Trunks.of(map(trunk_of, (looks_back, replaces, fits)), WIDTH)
    assert list(trunks.by_digest) == [fits.trained.digest]
    assert not Trunks.of([trunk_of(fits)], WIDTH + 1).by_digest


def test_a_trunk_of_another_tap_is_left_to_the_device(cloud: Cloud) -> None:
    plugin = a_plugin(cloud.base.fingerprint, "mlp")
    trunks = Trunks.of([trunk_of(plugin)], WIDTH)
    tap, granted = plugin.tap, {TRUNK.name: TrunkSettings([TrunkOf(0, plugin.trained.digest)])}
    assert list(trunks.of_session(granted, tap, 1)) == [0]
    for other in (Tap((0, 1), 16), Tap((0, 1, 2), 16, seed=1), Tap((0, 1, 2), 16, codec="fp16")):
        assert not trunks.of_session(granted, other, 1)
    twice = {TRUNK.name: TrunkSettings([TrunkOf(0, plugin.trained.digest)] * 2)}
    for wrong, parts in ((twice, 2), ({TRUNK.name: TrunkSettings([TrunkOf(1, plugin.trained.digest)])}, 1)):
        with pytest.raises(InputError, match="of one of the"):
            trunks.of_session(wrong, tap, parts)


def test_a_cloud_without_it_grants_nothing(cloud: Cloud) -> None:
    plugin = begun(cloud.base.fingerprint)
    with a_session(cloud.url, plugin) as session:
        assert TRUNK.name not in session.granted


def test_only_a_session_that_was_granted_it_hears_of_it() -> None:
    told = Tokens(1, PROMPT, [5], "x", "trunk")
    with pytest.raises(Untrusted, match="who can't have"):
        hear(guard(), BEGUN, told)
    granting = replace(TERMS, granted=(*TERMS.granted, TRUNK.name))
    granted = Guard(granting, Asked(8, 0))
    granted.prompted(granting)
    hear(granted, BEGUN, told)
