"""The person's nearest examples (BM25) stand in the prompt, as its user would put them: of the base, or of a plugin."""

from __future__ import annotations

from pathlib import Path

from sideplug.bench.devices.ours import Device
from sideplug.bench.nearest import Nearest
from sideplug.bench.prompts import Record, prompt_of
from sideplug.contract.gate import Gate
from sideplug.contract.text import Prompt
from sideplug.device.reply import DecodeOptions
from sideplug.plugins import Plugin
from sideplug.readers import read


class Retrieval(Device):
    """The base with the plugin of a folder or none, and with nearest examples in each prompt."""

    def __init__(self, url: str, nearest: Nearest, plugin: Plugin | None) -> None:
        gate = plugin.trained.gate if plugin else Gate("shut")
        super().__init__(url, plugin, gate, DecodeOptions(0))
        self._nearest = nearest

    def prompt(self, record: Record) -> Prompt:
        """Return the prompt with the nearest examples before its own words."""
        return self._nearest.before(prompt_of(record))


def make(url: str, examples: str, nearest: int, plugin: str = "") -> Retrieval:
    """Return the device with the examples of this file, and the plugin of a folder at its own gate."""
    loaded = Plugin.load(Path(plugin)) if plugin else None
    return Retrieval(url, Nearest(read(Path(examples)), nearest), loaded)
