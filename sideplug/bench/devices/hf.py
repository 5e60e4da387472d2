"""The model by Hugging Face transformers: alone on the device, or (hf_cloud) in a rival's cloud."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import transformers

from sideplug.bench.prompts import prompt_of
from sideplug.cloud.model.torch_model import load_lm
from sideplug.cloud.store import find
from sideplug.cloud.tokenizer import TextStream, Tokenizer

Receive = Callable[[str], None]


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

    def stream(self, prompt: dict[str, Any], max_tokens: int, temperature: float, seed: int, receive: Receive) -> None:
        """Write a reply, and call `receive(text)` for each token."""
        ids = self.tokenizer.encode(prompt_of(prompt))
        text = TextStream(self.tokenizer)
        noise = torch.Generator().manual_seed(seed)
        given, cache = torch.tensor([ids]), None
        with torch.inference_mode():
            for _ in range(max_tokens):
                out = self.lm(input_ids=given, past_key_values=cache, use_cache=True, logits_to_keep=1)
                cache, logits = out.past_key_values, out.logits[0, -1]
                if temperature:
                    token = int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=noise))
                else:
                    token = int(logits.argmax())
                if token in self.tokenizer.stop_ids:
                    break
                receive(text.push([token]))
                given = torch.tensor([[token]])

    def reply(self, prompt: dict[str, Any], max_tokens: int, temperature: float, seed: int) -> dict[str, Any]:
        """Return a reply and the seconds at which its tokens came (see ours.Reply)."""
        start = time.perf_counter()
        texts, times = [], []

        def receive(text: str) -> None:
            texts.append(text)
            times.append(time.perf_counter() - start)

        self.stream(prompt, max_tokens, temperature, seed, receive)
        return {"text": "".join(texts), "tokens": len(times), "round_trips": 0, "times_s": times}

    def losses(self, examples: list[dict[str, Any]]) -> list[list[float]]:
        """Return the nats of each token of each example's reply."""
        losses = []
        with torch.inference_mode():
            for example in examples:
                prompt, reply = self.tokenizer.encode_example(prompt_of(example["prompt"]), example["reply"])
                ids = torch.tensor([prompt + reply])
                logits = self.lm(input_ids=ids).logits[0, len(prompt) - 1 : -1]
                nats = torch.nn.functional.cross_entropy(logits, ids[0, len(prompt) :], reduction="none")
                losses.append(nats.tolist())
        return losses


def make(model: str, adapter: str = "") -> Transformers:
    """Return the device that runs this model, with the LoRA adapter of a folder or none."""
    return Transformers(model, adapter)
