"""A plugin: parts in their order, under one tap, one merge, one context slice; what it says of itself."""

from __future__ import annotations

import numpy as np
import pytest

from sideplug.contract.errors import InputError, PluginError, WrongBase
from sideplug.contract.frames import MAX_PARTS
from sideplug.contract.gate import Gate
from sideplug.contract.tap import ContextSlice, Tap
from sideplug.plugins import Plugin, TrainedPart, trained_kinds
from sideplug.plugins.base import Shape
from tests.conftest import a_plugin
from tests.plugins.toy_attention import ToyAttention
from tests.plugins.toy_memory import ToyMemory

BASE = "b" * 64


def a_ladder(name: str, tap: Tap, seed: int = 0) -> TrainedPart:
    kind = trained_kinds()["ladder"]
    params = kind.init(Shape(len(tap.layers), tap.rank, 8, 64), np.random.default_rng(seed))
    return TrainedPart(kind, tap, params, name=name)


def a_memory(layers: tuple[int, ...] = (1,)) -> ToyMemory:
    return ToyMemory("Where is the mill?", np.array([4, 5, 6], np.int32), Tap(layers, 16))


def an_attention(layers: tuple[int, ...]) -> TrainedPart:
    kind, tap = ToyAttention(), Tap(layers, 16)
    params = kind.init(Shape(len(layers), 16, 8, 64), np.random.default_rng(0))
    return TrainedPart(kind, tap, params, name="attention")


def test_memories_come_first_and_manner_keeps_its_order() -> None:
    parts = [a_ladder("z", Tap((0,), 16)), a_ladder("a", Tap((2,), 16)), a_memory()]
    plugin = Plugin(BASE, "base", parts)
    assert [part.name for part in plugin.parts] == ["memory", "z", "a"]
    assert [gate.kind for gate in plugin.gates] == ["shut", "open", "open"]
    assert plugin.trained.name == "a", "the last one that training makes"


def test_one_tap_for_all() -> None:
    plugin = Plugin(BASE, "base", [a_ladder("a", Tap((0, 2), 16)), a_memory((1,))])
    assert plugin.tap == Tap((0, 1, 2), 16)
    for other in (Tap((0,), 8), Tap((0,), 16, seed=1), Tap((0,), 16, codec="fp16")):
        with pytest.raises(InputError, match="one rank, seed and number format"):
            Plugin(BASE, "base", [*plugin.parts, a_ladder("b", other)])


def test_one_context_slice_for_all() -> None:
    ladder = a_ladder("a", Tap((0, 1, 2), 16))
    assert Plugin(BASE, "base", [ladder]).context is None
    needs = Plugin(BASE, "base", [ladder, an_attention((0, 2))]).context
    assert needs == ContextSlice(Tap((0, 1, 2), 16), (0, 2), 16)


def test_the_merge() -> None:
    assert a_plugin(BASE).merge == a_plugin(BASE, "paper-added").merge == "add"
    assert a_plugin(BASE, "paper").merge == "replace"


def test_what_it_says_of_the_trained_part() -> None:
    plugin = a_plugin(BASE)
    assert (plugin.about, len(plugin.phrases)) == ({}, 0)
    plugin.trained.about = {"examples": 3}
    plugin.trained.phrases = np.array([5, -1, 6], np.int32)
    both = Plugin(BASE, "base", [a_memory(), *plugin.parts])
    assert both.about == {"examples": 3}
    assert both.phrases.tolist() == [5, -1, 6]
    assert both.size == plugin.size + 3
    assert [part["name"] for part in both.config()["parts"]] == ["memory", "manner"]
    alone = Plugin(BASE, "base", [a_memory()])
    assert (alone.about, len(alone.phrases)) == ({}, 0)
    with pytest.raises(PluginError, match="has no trained part"):
        alone.trained  # noqa: B018


def test_a_gate_at_a_rate() -> None:
    plugin = a_plugin(BASE)
    assert [plugin.gate_at_rate(rate).kind for rate in (0.0, 1.0)] == ["shut", "open"]
    with pytest.raises(InputError, match="its rate can be 0 or 1"):
        plugin.gate_at_rate(0.5)
    with pytest.raises(InputError, match="must be 0 to 1"):
        plugin.gate_at_rate(1.5)
    plugin.trained.gate = Gate("linear", np.ones(64, np.float32), dial=(0.0, 1.0, 2.0))
    assert plugin.gate_at_rate(0.25).threshold == 1.5
    assert Plugin(BASE, "base", [a_memory()]).gate_at_rate(0).kind == "shut", "no trained part is needed"


def test_parts_that_cannot_be_together() -> None:
    plugin, paper = a_plugin("b"), a_plugin("b", "paper")
    for parts, sentence in (
        ([], "must have 1 to 8 parts"),
        ([*plugin.parts, *plugin.parts], "each with its own name"),
    ):
        with pytest.raises(PluginError, match=sentence):
            Plugin("b", "n", list(parts))
    paper.trained.name = "paper"
    with pytest.raises(PluginError, match="only part"):
        Plugin("b", "n", [*plugin.parts, *paper.parts])


def test_too_many_parts() -> None:
    parts = [a_ladder(f"p{number}", Tap((0,), 4)) for number in range(MAX_PARTS + 1)]
    assert len(Plugin(BASE, "base", parts[:-1]).parts) == MAX_PARTS
    with pytest.raises(PluginError, match=f"must have 1 to {MAX_PARTS} parts"):
        Plugin(BASE, "base", parts)


def test_made_for_another_base() -> None:
    with pytest.raises(WrongBase, match=r"made for the base model aaa.* serves bbb"):
        a_plugin("aaa").check_base("bbb", "other")
    a_plugin("aaa").check_base("aaa", "other")
