"""The recipe of a new plugin: every default of `train`, of the page and of `sideplug.train` stands here, once.

It does not know files or tapes. Test: pytest tests/training/test_recipe.py
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sideplug.contract.frames import ModelInfo
from sideplug.contract.tap import Tap
from sideplug.plugins import Plugin
from sideplug.plugins.base import trained_kind
from sideplug.training.fit import TrainConfig

LEAST_STEPS = 400  # of a training whose epochs nobody chose: a few examples are read more often …
MOST_EPOCHS = 60  # … but no more often than this
PATIENT_STEPS = 60  # without a better held-out loss, at least: an epoch of a few examples has a few steps


@dataclass(frozen=True)
class Recipe:
    """What kind of plugin, on which tap (by name, raw, or so many layers of this rank), and how it is trained.

    width 0: the kind's own. candidates: rows of the candidate softmax, at least. held_out: the share of examples to
    stop by; 0 holds out nothing. reword: ask told questions in other words too. raw: without
    the base's chat template. least_steps: of a training, which has
    more epochs for it.
    """

    kind: str = "ladder"
    taps: int = 9
    rank: int = 64
    tap: str = ""
    width: int = 0
    candidates: int = 4096
    training: TrainConfig = TrainConfig()
    held_out: float = 0.1
    reword: bool = True
    raw: bool = False
    least_steps: int = LEAST_STEPS

    def with_epochs(self, epochs: int) -> Recipe:
        """This recipe with at most so many epochs; 0 leaves their number to the number of examples."""
        if not epochs:
            return self
        return replace(self, training=replace(self.training, epochs=epochs), least_steps=0)

    def options(self) -> dict[str, Any]:
        """What was chosen, by the names of the command's options."""
        training = self.training
        values = {name: value for name, value in vars(self).items() if name not in ("training", "least_steps")}
        values |= {name: getattr(training, name) for name in ("learning_rate", "batch_tokens", "retain_weight", "seed")}
        values["epochs"] = "as needed" if self.least_steps else training.epochs
        return {"--" + name.replace("_", "-"): value for name, value in values.items()}

    def schedule(self, batches: int) -> TrainConfig:
        """The settings of a training that has so many steps an epoch."""
        config = self.training
        epochs = max(config.epochs, min(MOST_EPOCHS, -(-self.least_steps // batches)))
        patience = max(config.patience, -(-PATIENT_STEPS // batches)) if self.least_steps else config.patience
        return replace(config, epochs=epochs, patience=patience)

    def choose_tap(self, model: ModelInfo) -> Tap:
        """The tap of this recipe. Raises InputError for a name that is none, PluginError for an unknown kind."""
        if self.tap == "raw":
            return Tap.raw(model.blocks, model.width)
        if self.tap:
            return Tap.parse(self.tap)
        return trained_kind(self.kind).tap(model.blocks, model.width, self.taps, self.rank)

    def new_plugin(self, model: ModelInfo) -> Plugin:
        """An untrained plugin. Raises PluginError for a tap that the kind can't read."""
        width = self.width or trained_kind(self.kind).default_width
        tap, seed = self.choose_tap(model), self.training.seed
        return Plugin.new(self.kind, model.fingerprint, model.name, tap, width, model.width, seed)
