"""No training: the person's nearest examples (BM25) stand in the prompt of the base, as its user would put them."""

from __future__ import annotations

from pathlib import Path

import bm25s

from sideplug.bench.devices.ours import Device
from sideplug.bench.prompts import Record, prompt_of
from sideplug.contract.gate import Gate
from sideplug.contract.text import Prompt
from sideplug.device.reply import DecodeOptions
from sideplug.readers import Example, read


def words(example: Example) -> str:
    """Return the text that an example is found by: its prompt and its reply."""
    said = [message["content"] for message in example.prompt.messages or ()]
    return " ".join([*said, example.prompt.text or "", example.reply])


class Retrieval(Device):
    """The base alone, with so many of the nearest examples in each prompt."""

    def __init__(self, url: str, examples: list[Example], nearest: int) -> None:
        super().__init__(url, None, Gate("shut"), DecodeOptions(0))
        self._examples, self._nearest = examples, min(nearest, len(examples))
        self._index = bm25s.BM25()
        self._index.index(
            bm25s.tokenize([words(example) for example in examples], show_progress=False), show_progress=False
        )

    def prompt(self, record: Record) -> Prompt:
        """Return the prompt with the nearest examples, nearest last: as turns or text before its own."""
        question = prompt_of(record)
        text = question.text if question.messages is None else question.messages[-1]["content"]
        words = bm25s.tokenize(text, show_progress=False)
        nearest, _ = self._index.retrieve(words, k=self._nearest, show_progress=False)
        near = [self._examples[int(i)] for i in reversed(nearest[0])]
        if question.messages is None:
            return Prompt(text="".join(f"{example.reply}\n\n" for example in near) + (question.text or ""))
        turns: list[dict[str, str]] = []
        for example in near:
            turns += [*(example.prompt.messages or ())[-1:], {"role": "assistant", "content": example.reply}]
        system = [message for message in question.messages if message["role"] == "system"]
        return Prompt(messages=(*system, *turns, *question.messages[len(system) :]))


def make(url: str, examples: str, nearest: int) -> Retrieval:
    """Return the device with the examples of this file."""
    return Retrieval(url, read(Path(examples)), nearest)
