"""No text of somebody else's steers a terminal."""

from __future__ import annotations

import json

import msgspec
import pytest

from sideplug.contract.errors import Busy, from_wire
from sideplug.contract.frames import ModelInfo, Name, Word
from sideplug.contract.printable import escaped, one_line
from sideplug.terminal import as_json, say, tell

STEERS = {
    "OSC, a title": ("\x1b]0;owned\x07", r"\x1b]0;owned\x07"),
    "OSC 52, the clipboard": ("\x1b]52;c;ZXZpbA==\x1b\\", r"\x1b]52;c;ZXZpbA==\x1b" + "\\"),
    "OSC 8, a link": ("\x1b]8;;http://x\x1b\\y", r"\x1b]8;;http://x\x1b" + "\\y"),
    "CSI, clears": ("\x1b[2J", r"\x1b[2J"),
    "CSI as C1": ("\x9b2J", r"\x9b2J"),
    "OSC as C1": ("\x9d0;x\x9c", r"\x9d0;x\x9c"),
    "DCS": ("\x90q\x9c", r"\x90q\x9c"),
    "carriage return": ("paid\rfree", r"paid\x0dfree"),
    "backspace": ("a\x08b", r"a\x08b"),
    "bell": ("\x07", r"\x07"),
    "delete": ("\x7f", r"\x7f"),
    "null": ("\x00", r"\x00"),
    "shift out": ("\x0e", r"\x0e"),
    "vertical tab, form feed": ("\x0b\x0c", r"\x0b\x0c"),
    "bidi override": ("\u202etxt.exe", r"\u202etxt.exe"),
    "bidi isolate": ("\u2066a\u2069", r"\u2066a\u2069"),
    "bidi embedding": ("\u202aa\u202c", r"\u202aa\u202c"),
    "a line separator": ("a\u2028b\u2029", r"a\u2028b\u2029"),
    "half a character": ("\ud800", r"\ud800"),
}
STAYS = ["line\nbreak\tand tab", "Grüße, Ö", "日本語。", "العربية", "👩‍👩‍👧 🏴󠁧󠁢󠁥󠁮󠁧󠁿", "\\x1b written out"]


@pytest.mark.parametrize("name", STEERS)
def test_what_steers_is_written_out(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text, shown = STEERS[name]
    assert escaped(text) == shown
    say(f"sideplug: {text}")
    tell(text, end="")
    heard = capsys.readouterr()
    assert (heard.out, heard.err) == (shown, f"sideplug: {shown}\n")


@pytest.mark.parametrize("text", STAYS)
def test_other_text_stays(text: str) -> None:
    assert escaped(text) == text
    assert json.loads(as_json(text)) == text


@pytest.mark.parametrize("name", STEERS)
def test_json_says_the_same_without_it(name: str) -> None:
    text = STEERS[name][0]
    assert escaped(as_json({"text": text})) == as_json({"text": text}), "nothing in it steers"
    assert json.loads(as_json({"text": text})) == {"text": text}


def test_on_one_line() -> None:
    assert one_line(" a\n\n b\t\x1b[1m\r\n") == r"a b \x1b[1m"


@pytest.mark.parametrize("name", [name for name in STEERS if name != "half a character"])
def test_a_cloud_s_names_and_sentences(name: str) -> None:
    """A name with it is refused, a sentence is shown with it written out."""
    text = STEERS[name][0]
    for kind in (Name, Word):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(text, kind)
    assert str(from_wire("busy", f"later {text}")) == one_line(f"later {text}")
    assert isinstance(from_wire("busy", text), Busy)


@pytest.mark.parametrize(
    "fingerprint", ["", "../../../etc/passwd", "/etc/passwd", "f" * 63, "F" * 64, "f" * 64 + "\n", "f" * 65]
)
def test_a_fingerprint_is_64_digits(fingerprint: str) -> None:
    told = {"name": "m", "blocks": 1, "width": 2, "vocab": 3, "context": 4, "chat": True}
    assert msgspec.convert({**told, "fingerprint": "f" * 64}, ModelInfo).fingerprint == "f" * 64
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({**told, "fingerprint": fingerprint}, ModelInfo)
