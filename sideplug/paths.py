"""Where things are kept that can be made again: models, arranged weights, the general tape."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """`SIDEPLUG_CACHE`, or `sideplug` below XDG_CACHE_HOME (~/.cache)."""
    own = os.environ.get("SIDEPLUG_CACHE")
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(own or Path(root) / "sideplug").expanduser()
