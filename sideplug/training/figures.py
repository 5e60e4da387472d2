"""What a plugin is worth on text that it has not learnt: a figure each for told facts in other words, and for text.

It does not know how the text was held out (split.py). Test: pytest tests/training/test_figures.py
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sideplug.training import gate
from sideplug.training.tape import Tape

if TYPE_CHECKING:
    from sideplug.training.trainer import Trainer

TOLD, TEXT, LEARNT = "told facts in other words", "held-out text", "what it learnt (nothing was held out)"


@dataclass(frozen=True)
class Figure:
    """Losses in nats a token of some examples: the base, the plugin at every token, and behind its gate."""

    examples: int
    base: float
    plugin: float
    gated: float

    @property
    def gain(self) -> float:
        """By how much the gated plugin lowers the loss."""
        return self.base - self.gated

    @property
    def line(self) -> str:
        """For a person to read."""
        return f"{self.base:.3f} → {self.gated:.3f} nats a token ({-self.gain:+.3f})"

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


def figures_of(trainer: Trainer, told: int, held: Tape | None) -> dict[str, Figure]:
    """The figures by name. told: how many of the held-out examples, from the first on, ask for told facts."""
    if held is None:
        return {LEARNT: _figure(trainer, trainer.learnt)}
    parts = {TOLD: range(told), TEXT: range(told, len(held))}
    return {name: _figure(trainer, held.part(list(numbers))) for name, numbers in parts.items() if len(numbers)}


def _figure(trainer: Trainer, tape: Tape) -> Figure:
    traded = gate.trade_off(trainer.part.gate, trainer.judge(tape, gate.MAX_TOKENS))
    return Figure(len(tape), traded["base"], traded["plugin"], traded["gated"])
