"""sideplug: a frozen LLM in the cloud, a person's side plugin on the device.

The names below are the public API (docs/API.md). Importing this package does no work: a name is loaded when it is first
used, and none of them needs torch or a tokenizer.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sideplug.contract.version import __version__

if TYPE_CHECKING:
    from sideplug.api import forget, load, remember, train
    from sideplug.contract.capabilities import Grammar
    from sideplug.contract.errors import SideplugError
    from sideplug.contract.gate import Gate
    from sideplug.contract.sampling import Sampling
    from sideplug.contract.tap import Tap
    from sideplug.contract.text import Prompt
    from sideplug.device.address import Address
    from sideplug.device.client import Client, connect
    from sideplug.device.reply import DecodeOptions, Piece, Reply, Usage
    from sideplug.device.session import Session
    from sideplug.device.states import Listening, Step, listen
    from sideplug.plugins import Plugin, TrainedKind, register
    from sideplug.readers import Example, read

_MODULES = {
    "Address": "sideplug.device.address",
    "Client": "sideplug.device.client",
    "DecodeOptions": "sideplug.device.reply",
    "Example": "sideplug.readers",
    "Gate": "sideplug.contract.gate",
    "Grammar": "sideplug.contract.capabilities",
    "Listening": "sideplug.device.states",
    "Piece": "sideplug.device.reply",
    "Plugin": "sideplug.plugins",
    "Prompt": "sideplug.contract.text",
    "Reply": "sideplug.device.reply",
    "Sampling": "sideplug.contract.sampling",
    "Session": "sideplug.device.session",
    "SideplugError": "sideplug.contract.errors",
    "Step": "sideplug.device.states",
    "Tap": "sideplug.contract.tap",
    "TrainedKind": "sideplug.plugins",
    "Usage": "sideplug.device.reply",
    "connect": "sideplug.device.client",
    "forget": "sideplug.api",
    "listen": "sideplug.device.states",
    "load": "sideplug.api",
    "read": "sideplug.readers",
    "register": "sideplug.plugins",
    "remember": "sideplug.api",
    "train": "sideplug.api",
}
__all__ = [
    "__version__",
    "Address",
    "Client",
    "DecodeOptions",
    "Example",
    "Gate",
    "Grammar",
    "Listening",
    "Piece",
    "Plugin",
    "Prompt",
    "Reply",
    "Sampling",
    "Session",
    "SideplugError",
    "Step",
    "Tap",
    "TrainedKind",
    "Usage",
    "connect",
    "forget",
    "listen",
    "load",
    "read",
    "register",
    "remember",
    "train",
]


def __getattr__(name: str) -> Any:
    """A public name, loaded when it is first used (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module 'sideplug' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
