"""The naive twin of everything: one person, one process, token by token. No batch, no wire.

Its model is either transformers' own, which has no cache of ours either, or an engine's that nobody else uses.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sideplug.cloud.model.base import Chunk, Model
from sideplug.contract.codec import pack, unpack
from sideplug.contract.sampling import Sampling, choose


class Plain:
    """transformers: a whole forward for each token."""

    def __init__(self, lm: Any) -> None:
        self._lm = lm
        self._ids: list[int] = []

    def feed(self, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """These ids go behind the ones before: z (1, D) and all states (1, N+1, D) of the last."""
        import torch

        self._ids += ids
        with torch.inference_mode():
            out = self._lm(torch.tensor([self._ids]), output_hidden_states=True)
        hidden = torch.stack([h[0, -1] for h in out.hidden_states])[None].float().numpy()
        return hidden[:, -1], hidden

    def logits(self, z_1D: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            logits = self._lm.lm_head(torch.from_numpy(z_1D))
            cap = getattr(self._lm.config, "final_logit_softcapping", None)
            return (torch.tanh(logits / cap) * cap if cap else logits).numpy()


class Alone:
    """An engine's model with one text in it: the prompt at once, then a token at a time."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._cache = model.new_cache(model.context)

    def feed(self, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
        layers = range(self._model.blocks + 1)
        out = self._model.forward([Chunk(ids, self._cache)], layers)
        return out.z([len(ids) - 1]), out.tapped([len(ids) - 1], layers)

    def logits(self, z_1D: np.ndarray) -> np.ndarray:
        return self._model.logits(z_1D)


def generate(
    twin: Plain | Alone,
    ids: list[int],
    max_tokens: int,
    sampling: Sampling = Sampling(),
    plugin: Any = None,
    stop: frozenset[int] = frozenset(),
    gate: Any = None,
) -> list[int]:
    """The reply's ids."""
    ids = list(ids)
    start = len(ids)
    new = ids
    score = None
    while len(ids) - start < max_tokens:
        z, hidden = twin.feed(new)
        score = gate.score(z[0], score) if gate else None
        is_open = plugin is not None and (gate is None or gate.opens(score))
        if is_open:
            delta = plugin.trained.correct(plugin.tap.decode(*plugin.tap.encode(hidden[:, list(plugin.tap.layers)])))
            delta = unpack(*pack(delta, int8=plugin.tap.codec == "int8"))
            z = z + delta if plugin.merge == "add" else delta
        logits_V = np.array(twin.logits(z)[0])
        if is_open:
            logits_V[plugin.trained.bias.ids] += plugin.trained.bias.values.astype(np.float32)
        token = choose(logits_V, sampling, len(ids), ids)
        if token in stop:
            break
        ids = [*ids, token]
        new = [token]
    return ids[start:]
