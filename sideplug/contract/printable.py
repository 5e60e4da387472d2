"""What of somebody else's text may reach a terminal: everything but what steers it.

A terminal obeys control characters: C0 and C1 (escape sequences begin with one), and the characters that turn the
direction of writing, which make a line look like another one. Newline and tab stay where a text may have them. It
does not know who wrote the text. Test: pytest tests/contract/test_printable.py
"""

from __future__ import annotations

import re

# As a range of a regular expression: C0 and C1, line separators, bidi overrides and isolates, halves of characters.
STEERING = r"\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_STEERING = re.compile(f"[{STEERING}]")
_BUT_LINES = re.compile(f"(?![\n\t])[{STEERING}]")


def escaped(text: str) -> str:
    """The text with control characters written out (\\x1b, \\u202e); newlines and tabs stay."""
    return _BUT_LINES.sub(_written_out, text)


def one_line(text: str) -> str:
    """The text on one line: white space as single spaces, control characters written out."""
    return _STEERING.sub(_written_out, " ".join(text.split()))


def _written_out(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
