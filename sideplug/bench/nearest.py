"""The person's nearest examples, by BM25, and a prompt that has them, as its user would put them there.

It does not know who asks for them. Test: pytest tests/bench/test_rivals.py
"""

from __future__ import annotations

import bm25s

from sideplug.contract.text import Prompt
from sideplug.readers import Example


def words(example: Example) -> str:
    """Return the text that an example is found by: its prompt and its reply."""
    said = [message["content"] for message in example.prompt.messages or ()]
    return " ".join([*said, example.prompt.text or "", example.reply])


class Nearest:
    """So many of these examples, those nearest to a prompt. A prompt without words gets the latest."""

    def __init__(self, examples: list[Example], count: int) -> None:
        self._examples, self._count = examples, min(count, len(examples))
        self._index = bm25s.BM25()
        self._index.index(
            bm25s.tokenize([words(example) for example in examples], show_progress=False), show_progress=False
        )

    def of(self, prompt: Prompt) -> list[Example]:
        """Return the examples, nearest last."""
        text = prompt.text if prompt.messages is None else prompt.messages[-1]["content"]
        found = bm25s.tokenize(text or "", show_progress=False, return_ids=False)
        if not found or not found[0]:
            return self._examples[-self._count :]
        nearest, _ = self._index.retrieve(found, k=self._count, show_progress=False)
        return [self._examples[int(i)] for i in reversed(nearest[0])]

    def before(self, prompt: Prompt) -> Prompt:
        """Return the prompt with the nearest examples, nearest last: as turns or text before its own."""
        near = self.of(prompt)
        if prompt.messages is None:
            return Prompt(text=as_text(near) + (prompt.text or ""))
        turns: list[dict[str, str]] = []
        for example in near:
            turns += [*(example.prompt.messages or ())[-1:], {"role": "assistant", "content": example.reply}]
        system = [message for message in prompt.messages if message["role"] == "system"]
        return Prompt(messages=(*system, *turns, *prompt.messages[len(system) :]))


def as_text(examples: list[Example]) -> str:
    """Return examples as the text that stands before a text."""
    return "".join(f"{example.reply}\n\n" for example in examples)
