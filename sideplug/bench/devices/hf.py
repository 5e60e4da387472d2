"""The model by Hugging Face transformers: alone on the device, or (hf_cloud) in a rival's cloud."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import transformers

from sideplug.bench.prompts import Record, prompt_of
from sideplug.cloud.model.torch_model import load_lm
from sideplug.cloud.store import find
from sideplug.cloud.tokenizer import TextStream, Tokenizer

Receive = Callable[[str], None]


class Reading:
    """A text that a model reads on, with its KV cache. `last_V`: the logits of the next token."""

    needs_states = False

    def __init__(self, lm: Any, ids: list[int]) -> None:
        self._lm, self._cache = lm, None
        self.last_V = self._run(ids, 1)[-1]

    def extend(self, ids: list[int]) -> torch.Tensor:
        """Read these tokens, and return of each the logits that it was expected with."""
        rows_TV = torch.cat([self.last_V[None], self._run(ids, 0)])
        self.last_V = rows_TV[-1]
        return rows_TV[:-1]

    def _run(self, ids: list[int], keep: int) -> torch.Tensor:
        """Return the logits behind these tokens, of the last `keep` or (0) of all."""
        given = {"input_ids": torch.tensor([ids]), "past_key_values": self._cache, "use_cache": True}
        out = self._lm(**given, logits_to_keep=keep, output_hidden_states=self.needs_states)
        self._cache = out.past_key_values
        return self._rows(out)

    def _rows(self, out: Any) -> torch.Tensor:
        """Return the logits of a forward pass, as they are for a plain model."""
        return out.logits[0]  # type: ignore[no-any-return]


class Transformers:
    """float32, with the KV cache; greedy, or sampled by torch's generator."""

    def __init__(self, model: str, adapter: str = "") -> None:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        # 5.x warns of names that its next releases will have, at each forward pass.
        warnings.simplefilter("ignore", FutureWarning)
        transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        base = find(model)
        self.tokenizer = Tokenizer(base.folder)
        self.lm, _ = load_lm(base.folder, torch.float32)
        if adapter:
            from peft import PeftModel

            self.lm = PeftModel.from_pretrained(self.lm, adapter)
        self.lm.eval()

    def reading(self, prompt: Record, ids: list[int]) -> Reading:
        """Return the reading of a prompt with these ids. A rival that reads otherwise has its own."""
        return Reading(self.lm, ids)

    def stream(
        self, prompt: Record, max_tokens: int, temperature: float, seed: int, receive: Receive, top_p: float = 1.0
    ) -> None:
        """Write a reply, and call `receive(text)` for each token."""
        ids = self.tokenizer.encode(prompt_of(prompt))
        text = TextStream(self.tokenizer)
        noise = torch.Generator().manual_seed(seed)
        with torch.inference_mode():
            reading = self.reading(prompt, ids)
            for _ in range(max_tokens):
                token = choose(reading.last_V, temperature, top_p, noise)
                if token in self.tokenizer.stop_ids:
                    break
                receive(text.push([token]))
                reading.extend([token])

    def reply(
        self, prompt: Record, max_tokens: int, temperature: float, seed: int, top_p: float = 1.0
    ) -> dict[str, Any]:
        """Return a reply and the seconds at which its tokens came (see ours.Reply)."""
        start = time.perf_counter()
        texts, times = [], []

        def receive(text: str) -> None:
            texts.append(text)
            times.append(time.perf_counter() - start)

        self.stream(prompt, max_tokens, temperature, seed, receive, top_p)
        return {"text": "".join(texts), "tokens": len(times), "round_trips": 0, "times_s": times}

    def losses(self, examples: list[Record]) -> list[list[float]]:
        """Return the nats of each token of each example's reply."""
        losses = []
        with torch.inference_mode():
            for example in examples:
                prompt, reply = self.tokenizer.encode_example(prompt_of(example["prompt"]), example["reply"])
                logits_TV = self.reading(example["prompt"], prompt).extend(reply)
                nats_T = torch.nn.functional.cross_entropy(logits_TV, torch.tensor(reply), reduction="none")
                losses.append(nats_T.tolist())
        return losses


def choose(logits_V: torch.Tensor, temperature: float, top_p: float, noise: torch.Generator) -> int:
    """Return a token: the likeliest at temperature 0, else drawn among the likeliest that have top_p together."""
    if not temperature:
        return int(logits_V.argmax())
    shares_V, order_V = (logits_V / temperature).softmax(-1).sort(descending=True)
    shares_V[shares_V.cumsum(-1) - shares_V >= top_p] = 0
    return int(order_V[torch.multinomial(shares_V, 1, generator=noise)])


def make(model: str, adapter: str = "") -> Transformers:
    """Return the device that runs this model, with the LoRA adapter of a folder or none."""
    return Transformers(model, adapter)
