"""Structured logs: an event's name and its fields, as text or as JSON lines. No field holds text of a user.

A session is logged by a random number, its key's name, sizes, counts, seconds and error codes; a device's address is
not logged. It does not know what an event means. Test: pytest tests/cloud/test_logs.py
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any


def configure(level: str, as_json: bool) -> None:
    """Log to the error stream from this level on."""
    handler = logging.StreamHandler()
    handler.setFormatter(Formatter(as_json))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("sideplug").setLevel(level.upper())
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # nor is each answer to a device that has left
    logging.getLogger("websockets").setLevel(logging.CRITICAL)  # port scanners' broken handshakes are no events


def event(log: logging.Logger, name: str, **fields: Any) -> None:
    """Log an event at level INFO; fields that are "" are left out."""
    log.info(name, extra={"fields": {key: value for key, value in fields.items() if value != ""}})


class Formatter(logging.Formatter):
    """Formats an event as a line: JSON, or `time LEVEL name key=value …`. A traceback is a field, or follows it."""

    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record, with its traceback."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields = getattr(record, "fields", {})
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        if self._as_json:
            line = {"time": at, "level": record.levelname.lower(), "event": record.getMessage(), **fields}
            return json.dumps({**line, "traceback": trace} if trace else line, ensure_ascii=False)
        pairs = "".join(f" {key}={value}" for key, value in fields.items())
        return f"{at} {record.levelname} {record.getMessage()}{pairs}{chr(10) + trace if trace else ''}"
