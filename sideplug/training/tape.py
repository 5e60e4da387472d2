"""The tape: what the cloud's frozen model made of each example, recorded once over the wire, then read from disk.

A tape file is a row of EXAMPLE frames, just as they came down. So it is appended to safely, a frame that was cut off by
a drop or a crash is found and forgotten, and recording goes on where it stopped. `tape.json` beside it says of which
base, tap and examples it is. Epochs read it from disk: they cost no network, no LLM and little memory.

It does not know plugins or losses. Test: pytest tests/training/test_tape.py
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sideplug.contract.codec import unpack
from sideplug.contract.errors import Busy, CloudError, DataError, InputError, ProtocolError, Stopped
from sideplug.contract.tap import Tap
from sideplug.contract.wire import HEADER_BYTES, VERSION, Frame, Kind, decode, encode, frame_size
from sideplug.device.plugin import write_aside
from sideplug.device.runtime import Session
from sideplug.training.data import Example

LONGEST_WAIT_S = 60.0  # for a cloud that has no room


@dataclass
class Reading:
    """One example as the cloud read it, T reply tokens: see `Tape.__getitem__`."""

    ids: np.ndarray  # (T,) int32, the reply's token ids: what each position should say
    code_TKR: np.ndarray  # float32, the tapped codes of the position before
    z_TD: np.ndarray  # float32 (float16 on the wire)
    top: np.ndarray  # (T, 16) int32, the base's best ids
    lse: np.ndarray  # (T,) float32, the log-sum-exp of the base's logits over the whole vocabulary


@dataclass(frozen=True)
class Span:
    """Where one example stands."""

    path: Path
    at: int
    size: int


class Tape:
    """Recorded examples: `len`, and `tape[i]` reads one from disk. `whole` is a file, `a + b` both, `part` some."""

    def __init__(self, spans: list[Span], tap: Tap) -> None:
        self.tap = tap
        self._spans = spans
        counts: Counter[int] = Counter()  # of the base's best ids
        targets: Counter[int] = Counter()
        for i in range(len(self)):
            t = self._frame(i).tensors
            targets.update(t["ids"].tolist())
            counts.update(np.sort(t["top"], axis=None).tolist())  # sorted: equal counts keep a fixed order
        self.tokens = targets.total()
        self._targets = sorted(targets)
        self._others = [token for token, _ in counts.most_common() if token not in targets]

    @classmethod
    def whole(cls, path: Path, tap: Tap) -> Tape:
        """All of a file."""
        return cls([Span(path, at, size) for at, size in _frames(path)], tap)

    def __len__(self) -> int:
        return len(self._spans)

    def __add__(self, other: Tape) -> Tape:
        return Tape(self._spans + other._spans, self.tap)

    @property
    def nbytes(self) -> int:
        return sum(span.size for span in self._spans)

    def _frame(self, i: int) -> Frame:
        span = self._spans[i]
        with span.path.open("rb") as file:
            file.seek(span.at)
            return decode(file.read(span.size))

    def __getitem__(self, i: int) -> Reading:
        t = self._frame(i).tensors
        z = unpack(t["z"], t["z_scales"])
        return Reading(t["ids"], self.tap.decode(t["codes"], t["scales"]), z, t["top"], t["lse"])

    def candidates(self, limit: int) -> np.ndarray:
        """Token ids for the candidate softmax: every target, then the base's best, commonest first, up to `limit`."""
        others = self._others[: max(0, limit - len(self._targets))]
        return np.array(sorted([*self._targets, *others]), np.int32)

    def targets(self) -> np.ndarray:
        """Every target's token id, rising."""
        return np.array(self._targets, np.int32)

    def texts(self) -> np.ndarray:
        """Every reply's token ids in turn, -1 between two: int32."""
        parts = [np.append(self._frame(i).tensors["ids"], -1) for i in range(len(self))]
        return np.concatenate(parts)[:-1].astype(np.int32) if parts else np.zeros(0, np.int32)

    def part(self, chosen: list[int]) -> Tape:
        """A tape of some of its examples, in this order, one perhaps several times."""
        return Tape([self._spans[i] for i in chosen], self.tap)


def digest(examples: list[Example]) -> str:
    """The examples' identity: a changed file makes a new tape."""
    return hashlib.sha256(json.dumps([e.to_wire() for e in examples]).encode()).hexdigest()


def record(
    session: Session, tap: Tap, examples: list[Example], path: Path, progress: Callable[[int], None] = lambda n: None
) -> Tape:
    """Have the cloud read each example, once, and keep what it says in `path`. `progress` hears the number done.

    A tape of the same base, tap and examples is gone on with; another one in its place is replaced. Raises CloudError
    when the connection drops (what came is kept), InputError for an example that the cloud can't read, Stopped: disk
    full.
    """
    identity: dict[str, Any] = {"base": session.model.fingerprint, "tap": tap.name, "examples": digest(examples)}
    identity["wire"] = VERSION
    about = path.with_suffix(".json")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not (path.is_file() and _read_json(about) == identity):
            path.unlink(missing_ok=True)
            write_aside(about, json.dumps(identity).encode())
        spans = list(_frames(path)) if path.exists() else []
        path.touch(mode=0o600)  # it holds the person's words, as token ids
        with path.open("ab") as file:
            file.truncate(sum(size for _, size in spans))
            file.seek(0, 2)
            done = len(spans)
            while done < len(examples):
                try:
                    for frame in _read_in_order(session, examples, done):
                        file.write(encode(frame))
                        done += 1
                        session.again.breaks = 0
                        progress(done)
                except (CloudError, ProtocolError) as error:
                    session.reconnect(error)
    except OSError as error:
        raise Stopped(f"the tape {path} could not be written: {error.strerror or error}") from error
    return Tape.whole(path, tap)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _read_in_order(session: Session, examples: list[Example], start: int) -> Iterator[Frame]:
    """EXAMPLE frames from number `start` on, in order; as many READs under way as the cloud allows."""
    waiting: dict[int, Frame] = {}
    asked = done = start
    while done < len(examples):
        while asked < len(examples) and asked - done < session.readings:
            _ask(session, examples, asked, score=False)
            asked += 1
        frame = _receive(session, examples, score=False)
        if frame.kind is not Kind.EXAMPLE or not done <= frame["number"] < asked:
            raise ProtocolError(f"the cloud must answer READ by EXAMPLE, got {frame.kind.name}")
        waiting[frame["number"]] = frame
        while done in waiting:
            yield waiting.pop(done)
            done += 1


def _ask(session: Session, examples: list[Example], number: int, score: bool) -> None:
    session.link.send(Frame(Kind.READ, {"number": number, "score": score, **examples[number].to_wire()}))


def _receive(session: Session, examples: list[Example], score: bool) -> Frame:
    """The next frame; what the cloud says against an example is said with its file and line.

    An example that it has no room for now is asked for again, when it says.
    """
    while True:
        try:
            return session.link.receive()
        except (InputError, Busy) as error:
            if error.number is None or not 0 <= error.number < len(examples):
                raise
            if isinstance(error, InputError):
                raise type(error)(f"{examples[error.number].where}: {error}") from error
            time.sleep(min(error.retry_s or 1.0, LONGEST_WAIT_S))
            _ask(session, examples, error.number, score)


def _frames(path: Path) -> Iterator[tuple[int, int]]:
    """(offset, size) of each whole frame; stops at one that is cut off."""
    end = path.stat().st_size
    at = 0
    with path.open("rb") as file:
        while at + HEADER_BYTES <= end:
            file.seek(at)
            try:
                size = frame_size(file.read(HEADER_BYTES))
            except ProtocolError as error:
                raise DataError(f"{path} is not a tape of this version: delete it, and it is recorded anew") from error
            if at + size > end:
                return
            yield at, size
            at += size


@dataclass
class Judged:
    """Of T target tokens: log-probabilities by the base and by the corrected base, and z (T, D).

    `starts`: the rows where a reply begins.
    """

    base: np.ndarray
    plugin: np.ndarray
    z_TD: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, replies: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Judged:
        """From the base, plugin and z of each reply."""
        base, plugin, z_TD = (np.concatenate(column) for column in zip(*replies, strict=True))
        return cls(base, plugin, z_TD, np.cumsum([0] + [len(reply[0]) for reply in replies[:-1]]))

    @property
    def gain(self) -> np.ndarray:
        """(T,) nats that the plugin makes each better by."""
        return self.plugin - self.base


def score(session: Session, examples: list[Example], progress: Callable[[int], None] = lambda n: None) -> Judged:
    """Exact log-probabilities of every target token, over the whole vocabulary: base, and with the session's plugin.

    The examples are read as for a tape; the plugin's corrections of every position go up; the cloud's own head judges.
    """
    results: dict[int, Frame] = {}
    states: dict[int, np.ndarray] = {}
    waiting, under_way = deque(range(len(examples))), set[int]()
    while len(results) < len(examples):
        try:
            while waiting and len(under_way) < session.readings:
                number = waiting.popleft()
                under_way.add(number)
                _ask(session, examples, number, score=True)
            frame = _receive(session, examples, score=True)
            if frame.kind is Kind.EXAMPLE:
                states[frame["number"]] = unpack(frame.tensors["z"], frame.tensors["z_scales"])
                session.link.send(Frame(Kind.SCORE, {"number": frame["number"]}, session.corrections(frame)))
            elif frame.kind is Kind.SCORED:
                results[frame["number"]] = frame
                under_way.discard(frame["number"])
                session.again.breaks = 0
                progress(len(results))
            else:
                raise ProtocolError(f"the cloud must answer READ and SCORE, got {frame.kind.name}")
        except (CloudError, ProtocolError) as error:
            session.reconnect(error)
            waiting.extendleft(sorted(under_way, reverse=True))
            under_way.clear()
    tensors = {number: results[number].tensors for number in sorted(results)}
    return Judged.of([(t["base"], t["plugin"], states[number]) for number, t in tensors.items()])
