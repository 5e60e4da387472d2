"""Where things are kept: what can be made again (models, arranged weights, the general tape), and plugins."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """`SIDEPLUG_CACHE`, or `sideplug` below XDG_CACHE_HOME (~/.cache)."""
    own = os.environ.get("SIDEPLUG_CACHE")
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(own or Path(root) / "sideplug").expanduser()


def plugins_dir() -> Path:
    """`SIDEPLUG_PLUGINS`, or `sideplug/plugins` below XDG_DATA_HOME (~/.local/share)."""
    own = os.environ.get("SIDEPLUG_PLUGINS")
    root = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(own or Path(root) / "sideplug" / "plugins").expanduser()
