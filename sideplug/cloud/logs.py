"""Structured logs: an event's name and its fields, as text or as JSON lines. No field is ever anybody's text.

What is logged of a session: a random number, its key's name, sizes, counts, seconds, codes of errors. No
device's address. Test: pytest tests/cloud/test_logs.py
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any


def configure(level: str, as_json: bool) -> None:
    """Log to the error stream."""
    handler = logging.StreamHandler()
    handler.setFormatter(Formatter(as_json))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("sideplug").setLevel(level.upper())
    logging.getLogger("websockets").setLevel(logging.CRITICAL)  # a scanner's broken handshake is no event of ours


def event(log: logging.Logger, name: str, **fields: Any) -> None:
    """At level INFO; fields that are "" are left out."""
    log.info(name, extra={"fields": {key: value for key, value in fields.items() if value != ""}})


class Formatter(logging.Formatter):
    """A line an event: `as_json`, or `time LEVEL name key=value …`. A traceback follows it, or is a field."""

    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """One line of a record."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields = getattr(record, "fields", {})
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        if self._as_json:
            line = {"time": at, "level": record.levelname.lower(), "event": record.getMessage(), **fields}
            return json.dumps({**line, "traceback": trace} if trace else line, ensure_ascii=False)
        told = "".join(f" {key}={value}" for key, value in fields.items())
        return f"{at} {record.levelname} {record.getMessage()}{told}{chr(10) + trace if trace else ''}"
