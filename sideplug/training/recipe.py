"""The recipe of a new plugin: every default of `train`, of the page and of `sideplug.train` stands here, once.

It does not know files or tapes. Test: pytest tests/training/test_recipe.py
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sideplug.contract.errors import InputError
from sideplug.contract.frames import ModelInfo
from sideplug.contract.tap import Tap
from sideplug.plugins import Plugin
from sideplug.plugins.base import TrainedPart, trained_kind
from sideplug.plugins.trunk import Trunk, for_base, named
from sideplug.readers import Example
from sideplug.training.facts import is_question
from sideplug.training.fit import TrainConfig

LEAST_STEPS = 400  # of a training whose epochs nobody chose: a few examples are read more often …
MOST_EPOCHS = 60  # … but no more often than this
NO_TRUNK = "none"
FACTS, MANNER = "ladder", "mlp"  # the kinds for told facts, and for all else
PATIENT_STEPS = 60  # without a better held-out loss, at least: an epoch of a few examples has a few steps


@dataclass(frozen=True)
class Recipe:
    """What kind of plugin, on which tap (by name, raw, or so many layers of this rank), and how it is trained.

    kind "": the one that suits the examples. trunk: what the part begins with. width 0: the kind's own. candidates:
    rows of the candidate softmax, at least. held_out: the share of examples to stop by, 0 for none. reword: ask
    told questions in other words too. raw: without the base's chat template. bias: fit one to the person's words.
    least_steps: of a training, which has more epochs for it.
    """

    kind: str = ""
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
    trunk: Trunk | None = None
    bias: bool = True

    def with_epochs(self, epochs: int) -> Recipe:
        """This recipe with at most so many epochs; 0 leaves their number to the number of examples."""
        if not epochs:
            return self
        return replace(self, training=replace(self.training, epochs=epochs), least_steps=0)

    def options(self) -> dict[str, Any]:
        """What was chosen, by the names of the command's options."""
        training = self.training
        values = {name: value for name, value in vars(self).items() if name not in ("training", "least_steps")}
        values["trunk"] = self.trunk.sha256 if self.trunk else "none"
        values |= {name: getattr(training, name) for name in ("learning_rate", "batch_tokens", "retain_weight", "seed")}
        values["epochs"] = "as needed" if self.least_steps else training.epochs
        return {"--" + name.replace("_", "-"): value for name, value in values.items()}

    def schedule(self, batches: int) -> TrainConfig:
        """The settings of a training that has so many steps an epoch."""
        config = self.training
        epochs = max(config.epochs, min(MOST_EPOCHS, -(-self.least_steps // batches)))
        patience = max(config.patience, -(-PATIENT_STEPS // batches)) if self.least_steps else config.patience
        return replace(config, epochs=epochs, patience=patience)

    def suited_to(self, examples: Sequence[Example]) -> Recipe:
        """This recipe with the kind that suits these examples, where none was chosen: a ladder tells facts apart, an
        mlp has manner."""
        facts = sum(map(is_question, examples))
        return self if self.kind else replace(self, kind=FACTS if 2 * facts > len(examples) else MANNER)

    def begun_with(self, name: str, base: str) -> Recipe:
        """This recipe with the trunk of this name (see trunk.named); "": the newest that fits the base with this
        fingerprint and the rest of the recipe, if there is one; "none": without one. Raises PluginError, InputError."""
        if name == NO_TRUNK:
            return self
        chosen = bool(self.width or self.tap) or (self.taps, self.rank) != (Recipe.taps, Recipe.rank)
        if not name:
            trunk = for_base(base)
            return self if trunk is None or chosen or trunk.kind != self.kind else replace(self, trunk=trunk)
        trunk = named(name)
        if chosen or trunk.kind != self.kind:
            raise InputError(
                f"the trunk {trunk.title} is of kind {trunk.kind}, with its own width and tap: give --kind "
                f"{trunk.kind}, and no other option of a plugin's form"
            )
        if trunk.base != base:
            raise InputError(
                f"the trunk {trunk.title} is for the base {trunk.base[:12]} ({trunk.base_name}), but the cloud serves "
                f"{base[:12]}: give another one, or --trunk none"
            )
        return replace(self, trunk=trunk)

    def choose_tap(self, model: ModelInfo) -> Tap:
        """The tap of this recipe. Raises InputError for a name that is none, PluginError for an unknown kind."""
        if self.tap == "raw":
            return Tap.raw(model.blocks, model.width)
        if self.tap:
            return Tap.parse(self.tap)
        return trained_kind(self.kind).tap(model.blocks, model.width, self.taps, self.rank)

    def new_plugin(self, model: ModelInfo) -> Plugin:
        """An untrained plugin, or the trunk as a plugin. Raises PluginError for a tap that the kind can't read."""
        if self.trunk is not None:
            trunk = self.trunk
            params = {name: value.copy() for name, value in trunk.params.items()}
            part = TrainedPart(trained_kind(trunk.kind), trunk.tap, params, trunk.gate)
            plugin = Plugin(trunk.base, trunk.base_name, [part])
            plugin.check_base(model.fingerprint, model.name)
            return plugin
        width = self.width or trained_kind(self.kind).default_width
        tap, seed = self.choose_tap(model), self.training.seed
        return Plugin.new(self.kind, model.fingerprint, model.name, tap, width, model.width, seed)
