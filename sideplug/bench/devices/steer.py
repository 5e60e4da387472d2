"""A small model on the device steers the cloud's (CoSteer's pattern, arXiv 2507.04756, without its search).

    logits = cloud + weight · (device, with the person's nearest examples in its prompt − device, without)

Both models are the same base here, so one process has them, and the device's second term is what the cloud computes:
it shows the quality of the pattern, not its speed, nor its traffic, which is a row of logits a token.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from sideplug.bench.devices.hf import Reading, Transformers
from sideplug.bench.nearest import Nearest, as_text
from sideplug.bench.prompts import Record, prompt_of
from sideplug.contract.text import Prompt
from sideplug.readers import Example, read


class Steered(Reading):
    """The plain reading, and beside it the one that has the examples."""

    def __init__(self, plain: Reading, informed: Reading, weight: float) -> None:
        self._both, self._weight = (plain, informed), weight
        self.last_V = self._together(*(one.last_V for one in self._both))

    def extend(self, ids: list[int]) -> torch.Tensor:
        """See Reading."""
        rows_TV = self._together(*(one.extend(ids) for one in self._both))
        self.last_V = self._together(*(one.last_V for one in self._both))
        return rows_TV

    def _together(self, plain: torch.Tensor, informed: torch.Tensor) -> torch.Tensor:
        return steered(plain, informed, self._weight)


def steered(plain: torch.Tensor, informed: torch.Tensor, weight: float) -> torch.Tensor:
    """Return the log-probabilities of the plain model, steered by those of the informed one."""
    plain, informed = plain.log_softmax(-1), informed.log_softmax(-1)
    return plain + weight * (informed - plain)


class Steer(Transformers):
    """The model beside itself with the nearest of these examples."""

    def __init__(self, model: str, examples: list[Example], nearest: int, weight: float) -> None:
        super().__init__(model)
        self._informed, self._weight = self.beside(self, examples, nearest), weight

    @staticmethod
    def beside(model: Transformers, examples: list[Example], nearest: int) -> Callable[[Record, list[int]], list[int]]:
        """Return the function that makes of a prompt and its ids those of the prompt with its nearest examples."""
        near, tokenizer = Nearest(examples, nearest), model.tokenizer

        def informed(prompt: Record, ids: list[int]) -> list[int]:
            asked = prompt_of(prompt)
            if asked.messages is not None:
                return tokenizer.encode(near.before(asked))
            start = tokenizer.encode(Prompt(text=""))  # the very tokens, behind the examples
            return tokenizer.encode(Prompt(text=as_text(near.of(asked)))) + ids[len(start) :]

        return informed

    def reading(self, prompt: Record, ids: list[int]) -> Reading:
        """Return the steered reading of a prompt."""
        informed = Reading(self.lm, self._informed(prompt, ids))
        return Steered(Reading(self.lm, ids), informed, self._weight)


def make(model: str, examples: str, nearest: int, weight: float) -> Steer:
    """Return the device with the examples of this file."""
    return Steer(model, read(Path(examples)), nearest, weight)
