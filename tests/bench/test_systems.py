"""Who is compared: every kind of plugin that can be trained, also one that nobody has described here."""

from __future__ import annotations

import pytest

pytest.importorskip("psutil", reason="pip install 'sideplug[bench]'")
pytestmark = pytest.mark.twin

from sideplug.bench.systems import DESCRIBED, SYSTEMS, Place, further  # noqa: E402
from sideplug.plugins import trained_kinds  # noqa: E402


def test_every_kind_that_can_be_trained_is_compared() -> None:
    assert set(trained_kinds()) <= {system.trains for system in SYSTEMS}
    assert {system.trains for system in SYSTEMS} <= {*trained_kinds(), "lora", ""}


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
