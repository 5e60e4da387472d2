"""The naive twin of everything: plain transformers and a plugin, token by token. No cache, no batch, no wire."""

from __future__ import annotations

from typing import Any

import torch

from sideplug.contract.codec import pack, unpack
from sideplug.contract.sampling import Sampling, choose


def generate(
    lm: Any,
    ids: list[int],
    max_tokens: int,
    sampling: Sampling = Sampling(),
    plugin: Any = None,
    stop: frozenset[int] = frozenset(),
) -> list[int]:
    """The reply's ids, each from a whole forward of transformers' own model."""
    ids = list(ids)
    start = len(ids)
    while len(ids) - start < max_tokens:
        with torch.inference_mode():
            out = lm(torch.tensor([ids]), output_hidden_states=True)
            logits = out.logits[0, -1]
            if plugin is not None:
                hidden = torch.stack([out.hidden_states[layer][0, -1] for layer in plugin.tap.layers])[None].numpy()
                delta = plugin.correct(plugin.tap.decode(*plugin.tap.encode(hidden)))
                delta = torch.from_numpy(unpack(*pack(delta, int8=plugin.tap.codec == "int8")))
                z = out.hidden_states[-1][0, -1] + delta[0] if plugin.merge == "add" else delta[0]
                logits = lm.lm_head(z)
                cap = getattr(lm.config, "final_logit_softcapping", None)
                logits = torch.tanh(logits / cap) * cap if cap else logits
        token = choose(logits.numpy(), sampling, len(ids), ids)
        if token in stop:
            break
        ids.append(token)
    return ids[start:]
