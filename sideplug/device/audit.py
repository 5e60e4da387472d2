"""The audit reports what left this device and what came to it, from the messages that a session sent and received.

A transcript is the sequence of these messages as they were on the wire (docs/WIRE.md), with `>` before each that went
up and `<` before each that came down, and the number of its session before that where there are several. The report has
the bytes of each field by kind of message, whether fields explain all bytes, how much text the cloud saw, and, with the
plugin, whether what went up is what the plugin sends (replay). It does not know who sent the messages. Test: pytest
tests/device/test_audit.py
"""

from __future__ import annotations

import os
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from sideplug.contract.capabilities import BIAS, QUOTE, BiasSettings, Quote, extension_of
from sideplug.contract.errors import DataError, ProtocolError, Stopped
from sideplug.contract.frames import Answer, Frame, Open, PromptFrame, Read, Tokens, control_of, tensors_of
from sideplug.contract.wire import HEADER_BYTES, MAGIC, decode, frame_size
from sideplug.device.replay import GAPS, Found, Replay
from sideplug.plugins import Plugin
from sideplug.plugins.base import BIAS as BIAS_TENSORS

UP, DOWN = ">", "<"
_DIRECTION = re.compile(rb"[0-9]{0,12}[<>]")


class Recorder:
    """Appends messages to a file, which only its owner can read because it holds the person's words."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab", buffering=0)
        except OSError as error:
            raise Stopped(f"the transcript {path} can't be written: {error.strerror or error}") from error

    def __call__(self, direction: str, message: bytes) -> None:
        """Append one message. Raises Stopped."""
        try:
            self._file.write(direction.encode() + message)
        except OSError as error:
            raise Stopped(f"the transcript {self._path} can't be written: {error.strerror or error}") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Recent:
    """Keeps the newest messages in memory, at most `max_bytes` of them; `dropped` counts the older ones."""

    def __init__(self, max_bytes: int = 4 << 20) -> None:
        self._max_bytes = max_bytes
        self._messages: deque[tuple[str, bytes]] = deque()
        self._size = 0
        self.dropped = 0

    def __call__(self, direction: str, message: bytes) -> None:
        """Keep one more message."""
        self._messages.append((direction, message))
        self._size += len(message)
        while self._size > self._max_bytes and len(self._messages) > 1:
            self._size -= len(self._messages.popleft()[1])
            self.dropped += 1

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        """Return an iterator over the messages as they are now; others may be added meanwhile."""
        return iter(list(self._messages))


def read(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield a transcript's messages. Raises DataError for a file that is no transcript, is empty or is cut off."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"the transcript {path} can't be read: {error.strerror or error}") from error
    if not data:
        raise DataError(f"the transcript {path} is empty: no session has written a message to it")
    at = 0
    while at < len(data):
        found = _DIRECTION.match(data, at)
        header = data[found.end() : found.end() + HEADER_BYTES] if found else b""
        if not found or header[: len(MAGIC)] != MAGIC[: len(header)]:
            raise DataError(f"{path} is no transcript: byte {at} must begin a message (--transcript writes one)")
        if len(header) == HEADER_BYTES:
            try:
                end = found.end() + frame_size(header)
            except ProtocolError as error:
                raise DataError(f"{path}: byte {at} begins no message of this version: {error}") from error
            if end <= len(data):
                yield found[0].decode(), data[found.end() : end]
                at = end
                continue
        raise DataError(f"{path} is cut off in the message that begins at byte {at}")


@dataclass
class KindTotals:
    """All messages of one kind in one direction: their number, their bytes, and the bytes of each field and tensor."""

    frames: int = 0
    bytes: int = 0
    parts: Counter[str] = field(default_factory=Counter)

    @property
    def accounted(self) -> int:
        """Return the bytes that fields and tensors explain."""
        return self.parts.total()


@dataclass
class Report:
    """What was found in a sequence of messages. rows: totals by (direction, kind). text: how much of the person's words
    the cloud saw, in characters or token ids, by what it is."""

    rows: dict[tuple[str, str], KindTotals] = field(default_factory=dict)
    text: Counter[str] = field(default_factory=Counter)
    leaked: list[str] = field(default_factory=list)  # names of tensors of which a part went up; it must stay empty
    parameters: int = 0  # how many parameters were searched for; 0: no plugin was given
    replay: Found | None = None  # what was made again; None: no plugin was given, or the transcript is a part of one

    @property
    def up_bytes(self) -> int:
        """Return the bytes that left the device."""
        return sum(row.bytes for (direction, _), row in self.rows.items() if direction == UP)

    @property
    def unaccounted(self) -> int:
        """Return the bytes that no field explains."""
        return sum(row.bytes - row.accounted for row in self.rows.values())

    @property
    def clean(self) -> bool:
        """Return whether no parameter went up, fields explain all bytes, and what was made again is what went up."""
        wrong = self.replay is not None and (self.replay.wrong or self.replay.rounded)
        return not (self.leaked or self.unaccounted or wrong)

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values."""
        rows = [
            {"direction": "up" if direction == UP else "down", "kind": kind, "frames": row.frames, "bytes": row.bytes}
            | {"parts": dict(row.parts)}
            for (direction, kind), row in self.rows.items()
        ]
        text = {"text": dict(self.text), "found": self.leaked, "parameters_looked_for": self.parameters}
        made = self.replay
        again: dict[str, Any] = {}
        if made is not None:
            again = {"verified": dict(made.verified), "wrong": dict(made.wrong), "rounded": made.rounded}
            again |= {"unproven": dict(made.unproven)}
            again |= {"chosen": {name: sorted(values) for name, values in made.chosen.items()}}
        return {"rows": rows, **text, "replay": again, "unaccounted_bytes": self.unaccounted, "clean": self.clean}

    def lines(self) -> Iterator[str]:
        """Yield the lines of the report for a person."""
        for direction, title in ((UP, "What left this device"), (DOWN, "What came to it")):
            rows = {kind: row for (each, kind), row in self.rows.items() if each == direction}
            total, frames = (sum(getattr(row, name) for row in rows.values()) for name in ("bytes", "frames"))
            yield f"{title}: {total:,} bytes in {frames:,} messages"
            for kind, row in rows.items():
                parts = ", ".join(f"{name} {size:,}" for name, size in row.parts.most_common())
                yield f"  {kind:8} × {row.frames:<5} {row.bytes:>12,}   {parts}"
        yield "What of your words the cloud saw:"
        for name, size in self.text.items():
            yield f"  {size:>9,} {name}"
        if not self.text:
            yield "  nothing"
        yield (
            "Every byte is accounted for."
            if not self.unaccounted
            else f"NOT ACCOUNTED FOR: {self.unaccounted:,} bytes that no field explains."
        )
        yield from self._replayed()
        if self.leaked:
            yield f"PARAMETERS OF YOUR PLUGIN WENT UP: {', '.join(self.leaked)}."
        elif self.parameters:
            yield f"None of your plugin's {self.parameters:,} parameters was found in it. Its gate's weights go up."

    def _replayed(self) -> Iterator[str]:
        """Yield what was made again and found so, what was not, and what nobody can tell."""
        made = self.replay
        if made is None:
            why = "it is a part of a session" if self.parameters else "give --plugin"
            yield f"Nothing of it was verified ({why}): an answer could carry anything, a gradient too."
            return
        verified = ", ".join(f"{count:,} {what}" for what, count in made.verified.items()) or "nothing"
        yield f"Made again with your plugin and found the same, bit by bit: {verified}."
        for what, count in made.wrong.items():
            yield f"NOT WHAT YOUR PLUGIN SENDS: {what} ({count:,} times)."
        if made.rounded:
            yield (
                f"NOT QUITE WHAT YOUR PLUGIN SENDS: {made.rounded:,} answers differ in the last bits. Another "
                "processor does that, and so does a message that is hidden there: audit on the device that was there."
            )
        for what, count in made.unproven.items():
            yield f"Not verified: {count:,} {what}."
        for name, values in made.chosen.items():
            several = f" and {len(values) - 3:,} others" if len(values) > 3 else ""
            yield f"You, or your app, chose {name}: {', '.join(sorted(values)[:3])}{several}."
        yield (
            "Can't be ruled out: what the words of your prompts and examples themselves say, the numbers that you or "
            "your app chose, the moments at which messages were sent, and what a program sends past this transcript."
        )


def report(messages: Iterable[tuple[str, bytes]], plugin: Plugin | None = None, whole: bool = True) -> Report:
    """Return the report of these messages. With `plugin`, what went up is made again, and searched for its parameters.

    Messages that do not begin with OPEN are a part of a session, of which nothing can be made again; so are messages
    with gaps, unless they are said to be a `whole` transcript. Raises DataError.
    """
    result = Report(parameters=plugin.size if plugin else 0)
    search = Search(plugin) if plugin else None
    replay: Replay | None = None
    for number, (way, message) in enumerate(messages, 1):
        session, direction = way[:-1], way[-1]
        try:
            frame = decode(message)
        except ProtocolError as error:
            raise DataError(f"message {number} of the transcript is damaged: {error}") from error
        if number == 1 and plugin is not None and direction == UP and isinstance(frame, Open):
            replay = Replay(plugin)
            result.replay = replay.found
        if replay is not None:
            replay.hear(session, direction, frame, message)
        row = result.rows.setdefault((direction, frame.kind.name), KindTotals())
        row.frames += 1
        row.bytes += len(message)
        row.parts.update(_parts(frame, message))
        result.text.update(_text(direction, frame))
        if direction == UP and search:
            result.leaked += [name for name in search.in_message(message) if name not in result.leaked]
    if not whole and result.replay is not None and GAPS in result.replay.wrong:
        result.replay = None  # others' messages were left out of it
    return result


def _parts(frame: Frame, message: bytes) -> dict[str, int]:
    """Return a message's bytes by part: header, each control field with its name, each tensor. They sum to its size."""
    fields = {name: _size(name) + _size(value) for name, value in control_of(frame).items()}
    tensors = tensors_of(frame)
    listing = [[name, t.dtype.str[1:], list(t.shape)] for name, t in tensors.items()]
    shapes = _size("t") + _size(listing) if listing else 0
    fixed = message[HEADER_BYTES] >> 4 == 8  # else it is a map 16, whose prefix is two bytes longer
    envelope = HEADER_BYTES + (1 if fixed else 3)  # the header and the map's prefix
    sizes = {f"{name} (numbers)": tensor.nbytes for name, tensor in tensors.items()}
    return {**fields, **sizes, "shapes": shapes, "header": envelope}


def _size(value: object) -> int:
    return len(msgspec.msgpack.encode(value))


def _text(direction: str, frame: Frame) -> dict[str, int]:
    """Return how much of the person's words a frame contains, by what it is."""
    if direction == DOWN:
        return {"characters of replies (it wrote them)": len(frame.text)} if isinstance(frame, Tokens) else {}
    sizes: Counter[str] = Counter()
    if isinstance(frame, Open) and BIAS.name in frame.capabilities:
        settings = msgspec.msgpack.decode(frame.capabilities[BIAS.name].settings, type=BiasSettings)
        sizes["words of yours that a bias names, with how much likelier each is (parts of words, too)"] = sum(
            len(each.values) // 2 for each in settings.of
        )
    if isinstance(frame, (PromptFrame, Read)):
        whose = "prompts" if isinstance(frame, PromptFrame) else "training examples"
        words = sum(len(message.content) for message in frame.messages or ())
        reply = frame.reply if isinstance(frame, Read) else ""
        sizes[f"characters of {whose}"] = words + len(frame.text or "") + len(reply)
    if isinstance(frame, PromptFrame):
        sizes["token ids of prompts"] = len(frame.ids or ())
        sizes["token ids drafted for the beginning of a reply"] = len(frame.draft)
        quote = extension_of(frame, QUOTE, Quote)
        sizes["token ids that a memory said (quotes)"] = len(quote.ids) if quote else 0
    if isinstance(frame, Answer):
        sizes["token ids drafted from your phrases or the reply"] = int((frame.draft >= 0).sum())
        sizes["tokens that your plugin picked"] = 0 if frame.ids is None else len(frame.ids)
        sizes["token ids that a memory said (mixtures)"] = (
            0 if frame.mix_ids is None else int((frame.mix_ids >= 0).sum())
        )
    return {name: size for name, size in sizes.items() if size}


class Search:
    """Finds a plugin's parameters in a message: any two consecutive ones as float32, or any four as float16.

    Eight bytes are equal by chance once in 10^19. Runs of one value (zeros, for example) prove nothing and are skipped.
    """

    def __init__(self, plugin: Plugin) -> None:
        words: list[np.ndarray] = []
        names: list[np.ndarray] = []
        tensors = {
            f"{part.name}.{name}": tensor
            for part in plugin.parts
            for name, tensor in part.tensors().items()
            if name != "phrases" and not name.startswith(BIAS_TENSORS)  # both go up, and are counted
        }
        self._names = sorted(tensors)
        for number, name in enumerate(self._names):
            flat = tensors[name].astype("<f4").ravel()
            for values in (flat, np.clip(flat, -65504, 65504).astype("<f2")):
                window = 8 // values.itemsize
                for start in range(window):
                    part = values[start : start + (len(values) - start) // window * window]
                    rows = part.reshape(-1, window)
                    varied = rows[(rows != rows[:, :1]).any(axis=1)]
                    words.append(np.ascontiguousarray(varied).view("<u8").ravel())
                    names.append(np.full(len(words[-1]), number, np.int16))
        all_words, owners = np.concatenate(words), np.concatenate(names)
        order = np.argsort(all_words)
        self._words, self._owners = all_words[order], owners[order]  # ascending words, and the tensor of each

    def in_message(self, message: bytes) -> list[str]:
        """Return the names of the tensors of which a part is in the message."""
        hits: set[int] = set()
        for offset in range(8):
            size = (len(message) - offset) // 8 * 8
            if size <= 0 or not len(self._words):
                break
            seen = np.frombuffer(message, "<u8", size // 8, offset)
            at = np.minimum(np.searchsorted(self._words, seen), len(self._words) - 1)
            hits.update(self._owners[at[self._words[at] == seen]].tolist())
        return [self._names[number] for number in sorted(hits)]
