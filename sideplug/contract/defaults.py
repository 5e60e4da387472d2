"""What both sides take where nothing else is said: the base model, and the address of a cloud on this machine."""

from __future__ import annotations

DEFAULT_MODEL = "smollm2-135m"
DEFAULT_PORT = 8765
DEFAULT_URL = f"ws://127.0.0.1:{DEFAULT_PORT}"
