"""The recipe's defaults are one: the command, the page and the API take them from it."""

from __future__ import annotations

import inspect

import click
import pytest

import sideplug
from sideplug.cli.train import train as command
from sideplug.training.fit import TrainConfig
from sideplug.training.recipe import LEAST_STEPS, MOST_EPOCHS, Recipe
from sideplug.training.update import update

ASKED = ("--epochs", "--tap", "--kind", "--trunk")  # what nobody chose is chosen by the examples, or by what there is


def test_everybody_takes_them_from_it() -> None:
    recipe = Recipe()
    context = click.Context(command)
    options = {parameter.opts[0]: parameter.get_default(context) for parameter in command.params}
    chosen = {name: value for name, value in recipe.options().items() if name not in ASKED}
    assert {name: options[name] for name in chosen} == chosen
    assert options["--epochs"] == 0
    api = {name: each.default for name, each in inspect.signature(sideplug.train).parameters.items()}
    for name in ("kind", "width", "held_out", "reword"):
        assert api[name] == getattr(recipe, name), name
    for name in ("seed", "retain_weight"):
        assert api[name] == getattr(recipe.training, name), name
    assert api["epochs"] == 0
    assert inspect.signature(update).parameters["epochs"].default == recipe.training.epochs


@pytest.mark.parametrize(
    ("batches", "epochs"), [(1, MOST_EPOCHS), (10, LEAST_STEPS // 10), (100, 6), (1000, 6)], ids=str
)
def test_few_examples_are_read_more_often(batches: int, epochs: int) -> None:
    assert Recipe().schedule(batches).epochs == epochs
    assert Recipe().schedule(batches).patience * batches >= 60
    assert Recipe().with_epochs(3).schedule(batches) == TrainConfig(3)
    assert Recipe().with_epochs(0) == Recipe()


def test_options_are_told_by_their_names() -> None:
    assert Recipe().options()["--epochs"] == "as needed"
    told = Recipe(training=TrainConfig(seed=4)).with_epochs(9).options()
    assert (told["--epochs"], told["--seed"], told["--held-out"]) == (9, 4, 0.1)
