"""A tape: what the cloud's frozen model made of each example, on disk.

A tape file is a sequence of EXAMPLE frames, just as they came down. So it is appended to safely, a frame that was cut
off by a break or a crash is found and dropped, and recording continues from there. A .json file beside it says of which
base, tap and examples it is, and what each one tells (see mark), so that it can be forgotten (see forgetting). Epochs
read it from disk: they cost no network, no LLM and little memory.

How it is recorded is in recorder.py. It does not know plugins or losses. Test: pytest tests/training/test_tape.py
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sideplug.contract.codec import unpack
from sideplug.contract.errors import DataError, ProtocolError
from sideplug.contract.frames import Example as Frame
from sideplug.contract.tap import ContextSlice, Tap
from sideplug.contract.wire import HEADER_BYTES, decode, frame_size
from sideplug.readers import Example

DROPPED = "dropped"  # in the .json file: numbers of examples that are taken off, perhaps not yet
REMEDY = "delete it, and sideplug train records it anew"


@dataclass
class Recorded:
    """One example as the frozen model read it, T reply tokens and C rows before the first of them."""

    ids: np.ndarray  # (T,) int32, the reply's token ids: what each position should say
    code_TKR: np.ndarray  # float32, the tapped codes of the position before
    z_TD: np.ndarray  # float32 (float16 on the wire)
    top: np.ndarray  # (T, 16) int32, the base's best ids
    lse: np.ndarray  # (T,) float32, the log-sum-exp of the base's logits over the whole vocabulary
    context_CKR: np.ndarray | None  # float32, rows 0 … C − 1; None on a tape without context


@dataclass(frozen=True)
class Span:
    """Where one example stands."""

    path: Path
    at: int
    size: int


class Tape:
    """Recorded examples: `len`, and `tape[i]` reads one from disk. `whole` is a file, `a + b` both, `part` some.

    context: what rows without a question carry, where the tape has them.
    """

    def __init__(self, spans: list[Span], tap: Tap, context: ContextSlice | None = None) -> None:
        self.tap = tap
        self.context = context
        self._spans = spans
        counts: Counter[int] = Counter()  # of the base's best ids
        targets: Counter[int] = Counter()
        for i in range(len(self)):
            frame = self._frame(i)
            targets.update(frame.ids.tolist())
            counts.update(np.sort(frame.top, axis=None).tolist())  # sorted: equal counts keep a fixed order
        self.tokens = targets.total()
        self._targets = sorted(targets)
        self._others = [token for token, _ in counts.most_common() if token not in targets]

    @classmethod
    def whole(cls, path: Path, tap: Tap, context: ContextSlice | None = None) -> Tape:
        """All of a file. Raises DataError for one that is no tape, is damaged, or has not all of its examples."""
        spans, is_whole = good_spans(path, tap)
        if not is_whole:
            what = f"is damaged at its example {len(spans) + 1}" if spans else "is not a tape of this version"
            raise DataError(f"{path} {what}: {REMEDY}")
        about = read_identity(path.with_suffix(".json"))
        about = about if isinstance(about, dict) else {}
        wanted = about.get("count", len(spans))
        if len(spans) - wanted not in (0, len(about.get(DROPPED, ()))):
            raise DataError(f"{path} has {len(spans)} examples where there should be {wanted}: {REMEDY}")
        return cls(spans, tap, context)

    def __len__(self) -> int:
        return len(self._spans)

    def __add__(self, other: Tape) -> Tape:
        return Tape(self._spans + other._spans, self.tap, self.context)

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return sum(span.size for span in self._spans)

    def _frame(self, i: int) -> Frame:
        span = self._spans[i]
        with span.path.open("rb") as file:
            file.seek(span.at)
            try:
                frame = decode(file.read(span.size))
            except ProtocolError as error:
                raise DataError(f"{span.path} is damaged at its example {i + 1}: {REMEDY}") from error
        if not isinstance(frame, Frame):
            raise DataError(f"{span.path} is not a tape of this version: {REMEDY}")
        return frame

    def __getitem__(self, i: int) -> Recorded:
        frame = self._frame(i)
        rows = None
        if self.context is not None and frame.context is not None and frame.context_scales is not None:
            rows = self.context.decode(frame.context, frame.context_scales)
        z = unpack(frame.z, frame.z_scales)
        return Recorded(frame.ids, self.tap.decode(frame.codes, frame.scales), z, frame.top, frame.lse, rows)

    def candidates(self, limit: int) -> np.ndarray:
        """Token ids for the candidate softmax: every target, then the base's best, commonest first, up to `limit`."""
        others = self._others[: max(0, limit - len(self._targets))]
        return np.array(sorted([*self._targets, *others]), np.int32)

    def targets(self) -> np.ndarray:
        """Every target's token id, rising."""
        return np.array(self._targets, np.int32)

    def texts(self) -> np.ndarray:
        """Every reply's token ids in turn, -1 between two: int32."""
        parts = [np.append(self._frame(i).ids, -1) for i in range(len(self))]
        return np.concatenate(parts)[:-1].astype(np.int32) if parts else np.zeros(0, np.int32)

    def part(self, chosen: list[int]) -> Tape:
        """A tape of some of its examples, in this order, one perhaps several times."""
        return Tape([self._spans[i] for i in chosen], self.tap, self.context)


def digest(examples: Sequence[Example]) -> str:
    """The examples' identity: a changed file makes a new tape."""
    return hashlib.sha256(json.dumps([e.to_json() for e in examples]).encode()).hexdigest()


def mark(question: str, reply: str) -> str:
    """Return what tells a told thing on a tape, whose frames have no words of its question; spaces do not count."""
    told = json.dumps([" ".join(question.split()), " ".join(reply.split())])
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def marks_of(examples: Sequence[Example]) -> list[str]:
    """Return the mark of each example, a reworded one's as it was told; "" where the base writes the reply."""
    return ["" if each.greedy_tokens else mark(each.question, each.reply) for each in examples]


def read_identity(path: Path) -> Any:
    """What the .json file beside a tape says; None where there is none that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def good_spans(path: Path, tap: Tap) -> tuple[list[Span], bool]:
    """The examples from the first on that are whole, numbered in order and of this tap; whether no others follow them.

    One that is cut off at the end of the file, as a break leaves it, is none.
    """
    spans: list[Span] = []
    end = path.stat().st_size
    at = 0
    with path.open("rb") as file:
        while at + HEADER_BYTES <= end:
            file.seek(at)
            try:
                size = frame_size(file.read(HEADER_BYTES))
                if at + size > end:
                    break
                file.seek(at)
                frame = decode(file.read(size))
            except ProtocolError:
                return spans, False
            if not isinstance(frame, Frame) or frame.number != len(spans) or not _fits(frame, tap):
                return spans, False
            spans.append(Span(path, at, size))
            at += size
    return spans, True


def _fits(frame: Frame, tap: Tap) -> bool:
    """Whether a frame's arrays belong to each other and to this tap, and all of their numbers are finite."""
    rows = len(frame.ids)
    counts = {len(each) for each in (frame.codes, frame.scales, frame.z, frame.top, frame.lse)}
    numbers = (frame.scales, frame.z, frame.z_scales, frame.lse)
    return (
        counts == {rows}
        and frame.codes.shape[1] == len(tap.layers)
        and all(bool(np.isfinite(each).all()) for each in numbers)
    )
