"""The line at the end of training has a figure for each kind of held-out text, by its name."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from sideplug.training.figures import LEARNT, TEXT, TOLD, Figure
from sideplug.training.pipeline import Made
from sideplug.training.report import line, reached
from sideplug.training.trainer import Result
from tests.conftest import a_plugin

GATED = {"personal": {"rate": 0.9}, "general": {"rate": 0.02, "base": 0.75, "gated": 0.751}}


def made(**figures: Figure) -> Made:
    names = {"told": TOLD, "text": TEXT, "learnt": LEARNT}
    of = {names[name]: figure for name, figure in figures.items()}
    return Made(a_plugin("f"), Result(4.0, 0.5, 0.0, 12, 3.4, 5678), GATED, of, None)


@pytest.mark.parametrize(
    ("figures", "says"),
    [
        ({"told": Figure(8, 4.0, 0.25, 0.5)}, "told facts in other words: 4.000 → 0.500 nats a token (-3.500)"),
        (
            {"told": Figure(8, 4.0, 0.25, 0.5), "text": Figure(2, 3.5, 3.25, 3.25)},
            "told facts in other words: 4.000 → 0.500 nats a token (-3.500), held-out text: 3.500 → 3.250 nats a token "
            "(-0.250)",
        ),
        (
            {"learnt": Figure(9, 4.0, 1.0, 1.0)},
            "what it learnt (nothing was held out): 4.000 → 1.000 nats a token (-3.000)",
        ),
        (
            {"text": Figure(2, 3.5, 3.6, 3.5)},
            "nothing that helps (held-out text: loss 3.500): the plugin leaves the base as it is",
        ),
    ],
    ids=["facts", "facts and text", "nothing held out", "nothing that helps"],
)  # fmt: skip
def test_each_figure_has_its_name(figures: dict[str, Figure], says: str) -> None:
    assert reached(made(**figures)) == says
    whole = line(made(**figures), Path("p"))
    assert whole.startswith(
        f"learnt from 5,678 tokens in 12 epochs, 3 s. {says}; the gate opens for 90% of your tokens"
    )
    assert whole.endswith(" M parameters in p")


def test_a_figure_as_json() -> None:
    figure = Figure(8, 4.0, 0.25, 0.5)
    assert figure.to_json() == dataclasses.asdict(figure)
    assert figure.gain == 3.5
