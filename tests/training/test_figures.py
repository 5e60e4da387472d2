"""Each figure is of its own part of the held-out tape, by the gate that the plugin has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sideplug.contract.tap import Tap
from sideplug.contract.text import Prompt
from sideplug.readers import Example
from sideplug.training.figures import LEARNT, TEXT, TOLD, figures_of
from sideplug.training.fit import TrainConfig
from sideplug.training.head import fetch
from sideplug.training.recorder import record
from sideplug.training.tape import Tape
from sideplug.training.trainer import Trainer
from tests.conftest import Cloud, a_plugin, a_session

TAP = Tap((0, 1, 2), 16)
EXAMPLES = [Example(Prompt.user(f"number {i}"), f"It is {i}.", f"x:{i}") for i in range(6)]


@pytest.fixture
def trainer_and_tape(cloud: Cloud, tmp_path: Path) -> tuple[Trainer, Tape]:
    with a_session(cloud.url, tap=TAP) as session:
        tape = record(session, TAP, EXAMPLES, tmp_path / "t.tape")
        head = fetch(session, np.arange(session.model.vocab, dtype=np.int32))
    part = a_plugin(cloud.base.fingerprint).trained
    return Trainer(part, cloud.base.fingerprint, head, tape, tape, TrainConfig(), tmp_path), tape


def test_each_part_has_its_own(trainer_and_tape: tuple[Trainer, Tape]) -> None:
    trainer, tape = trainer_and_tape
    figures = figures_of(trainer, 2, tape)
    assert {name: figure.examples for name, figure in figures.items()} == {TOLD: 2, TEXT: 4}
    for name, numbers in ((TOLD, [0, 1]), (TEXT, [2, 3, 4, 5])):
        judged = trainer.judge(tape.part(numbers))
        assert figures[name].base == pytest.approx(-judged.base.mean(), abs=1e-4)
        assert figures[name].gated == pytest.approx(-judged.plugin.mean(), abs=1e-4), "its gate is open"


@pytest.mark.parametrize(("told", "names"), [(6, [TOLD]), (0, [TEXT])])
def test_what_there_is_none_of_has_no_figure(
    trainer_and_tape: tuple[Trainer, Tape], told: int, names: list[str]
) -> None:
    trainer, tape = trainer_and_tape
    assert list(figures_of(trainer, told, tape)) == names
    assert list(figures_of(trainer, 0, None)) == [LEARNT]
