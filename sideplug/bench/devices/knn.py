"""kNN-LM (arXiv 1911.00172): the model by transformers, mixed with what followed in the person's text at alike states.

    p = (1 − share) · model + share · Σ softmax(cosine / heat) at the token that followed

Keys are the hidden states after the final norm, at every position of the person's replies. Nothing is trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sideplug.bench.devices.hf import Reading, Transformers
from sideplug.bench.prompts import Record
from sideplug.readers import Example, read


class Store:
    """What followed at which states. keys: of unit length; tokens: what followed."""

    def __init__(self, keys_TD: torch.Tensor, tokens_T: torch.Tensor) -> None:
        self.keys_TD, self.tokens_T = torch.nn.functional.normalize(keys_TD, dim=-1), tokens_T

    def mixed(self, states_TD: torch.Tensor, logits_TV: torch.Tensor, share: float, heat: float) -> torch.Tensor:
        """Return the log-probabilities of the model and the store together."""
        alike_TK = torch.nn.functional.normalize(states_TD, dim=-1) @ self.keys_TD.T
        followed_TV = torch.zeros_like(logits_TV)
        followed_TV.index_add_(1, self.tokens_T, (alike_TK / heat).softmax(-1))
        return torch.log((1 - share) * logits_TV.softmax(-1) + share * followed_TV)


class Mixed(Reading):
    """A reading whose logits are the log-probabilities of both."""

    needs_states = True

    def __init__(self, lm: Any, ids: list[int], store: Store, share: float, heat: float) -> None:
        self._store, self._share, self._heat = store, share, heat
        super().__init__(lm, ids)

    def _rows(self, out: Any) -> torch.Tensor:
        logits_TV = out.logits[0]
        return self._store.mixed(out.hidden_states[-1][0][-len(logits_TV) :], logits_TV, self._share, self._heat)


class Knn(Transformers):
    """The model with these examples' store."""

    def __init__(self, model: str, examples: list[Example], share: float, heat: float) -> None:
        super().__init__(model)
        self.store, self._share, self._heat = self.store_of(self, examples), share, heat

    @staticmethod
    def store_of(model: Transformers, examples: list[Example]) -> Store:
        """Return what followed in the examples' replies, and at which states of the model."""
        keys, tokens = list[torch.Tensor](), list[int]()
        with torch.inference_mode():
            for example in examples:
                prompt, reply = model.tokenizer.encode_example(example.prompt, example.reply)
                ids = torch.tensor([prompt + reply])
                states_TD = model.lm(input_ids=ids, output_hidden_states=True, logits_to_keep=1).hidden_states[-1][0]
                keys.append(states_TD[len(prompt) - 1 : -1])
                tokens += reply
        return Store(torch.cat(keys), torch.tensor(tokens))

    def reading(self, prompt: Record, ids: list[int]) -> Reading:
        """Return the reading that is mixed with the store."""
        return Mixed(self.lm, ids, self.store, self._share, self._heat)


def make(model: str, examples: str, share: float, heat: float) -> Knn:
    """Return the device with the examples of this file."""
    return Knn(model, read(Path(examples)), share, heat)
