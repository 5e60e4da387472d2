"""Who is compared: every kind of plugin that can be trained, also one that nobody has described here."""

from __future__ import annotations

import pytest

pytest.importorskip("psutil", reason="pip install 'sideplug[bench]'")
pytestmark = pytest.mark.twin

from sideplug.bench.systems import BY_NAME, DESCRIBED, LORA_OTHERS, OURS, SYSTEMS, Place, further  # noqa: E402
from sideplug.plugins import trained_kinds  # noqa: E402
from sideplug.training.recipe import MANNER  # noqa: E402


def test_every_kind_that_can_be_trained_is_compared() -> None:
    trains = {system.trains for system in SYSTEMS}
    assert set(trained_kinds()) - {MANNER} <= trains
    assert OURS in trains, "what train makes of a text is of the kind of manner"
    assert trains <= {*trained_kinds(), OURS, "lora", LORA_OTHERS, ""}


def test_a_new_kind_is_a_system_without_another_line() -> None:
    *_, system = further([*trained_kinds(), "of-tomorrow"], DESCRIBED)
    assert (system.name, system.trains, system.retain, system.kept) == (
        "of-tomorrow",
        "of-tomorrow",
        True,
        "of-tomorrow",
    )
    kind, settings = system.device(Place("m", "ws://x", "made"))
    assert (kind, settings["plugin"], settings["gate"]) == ("ours", "made", "")


def test_a_system_says_which_tasks_it_belongs_to() -> None:
    assert all(BY_NAME[name].belongs("facts") for name in ("gated", "retrieval", "cloud LoRA"))
    for name in ("cloud LoRA, others first", "kNN-LM", "steering", "retrieval and ours"):
        assert BY_NAME[name].belongs("mails")
        assert not BY_NAME[name].belongs("facts")
        assert not BY_NAME[name].quick
        assert BY_NAME[name].personal


def test_what_a_device_keeps() -> None:
    kept = {
        name: BY_NAME[name].kept for name in ("retrieval", "retrieval and ours", "kNN-LM", "cloud LoRA, others first")
    }
    assert kept == {
        "retrieval": "examples",
        "retrieval and ours": BY_NAME["gated"].trains,
        "kNN-LM": "model",
        "cloud LoRA, others first": "",
    }
