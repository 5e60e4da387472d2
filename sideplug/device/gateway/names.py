"""The names of models as callers write them: the base, or the base with a plugin ("base+plugin"), in full or short.

A short name is the plugin's alone, or the last part of the base's (SmolLM2 for owner/SmolLM2). Accented letters may be
written as one character or as two. Test: pytest tests/device/test_gateway.py
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sideplug.contract.errors import UnknownModel
from sideplug.device.plugin_store import normal


@dataclass(frozen=True)
class ModelNames:
    """The models that there are: the base, and the base with each of these plugins."""

    base: str
    plugins: Sequence[str]

    def full(self, plugin: str) -> str:
        """Return the name of the base with a plugin; of the base itself where `plugin` is ""."""
        return f"{self.base}+{plugin}" if plugin else self.base

    def listed(self) -> list[str]:
        """Return all models' full names, the base first."""
        return [self.full(plugin) for plugin in ("", *self.plugins)]

    def plugin(self, name: str) -> str:
        """Return the plugin that a model's name means, "" for the base. Raises UnknownModel."""
        name = normal(name)
        short = self.base.rpartition("/")[2]
        if name in ("", self.base, short):
            return ""
        for plugin in self.plugins:
            if name in (plugin, f"{self.base}+{plugin}", f"{short}+{plugin}"):
                return plugin
        raise UnknownModel(f"there is no model {name[:80]!r} here; there are: {', '.join(self.listed())}")
