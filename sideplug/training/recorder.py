"""Has a cloud read examples: for a tape, or to score a plugin on them. It speaks READ, EXAMPLE, SCORE and SCORED.

It does not know training. Test: pytest tests/training/test_tape.py
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sideplug.contract.codec import unpack
from sideplug.contract.errors import Busy, CloudError, InputError, ProtocolError, Untrusted
from sideplug.contract.frames import Example as ExampleFrame
from sideplug.contract.frames import Frame, Read, Score, Scored
from sideplug.contract.tap import ContextSlice, Tap
from sideplug.contract.wire import VERSION, encode
from sideplug.device.session import Session
from sideplug.paths import alone, write_aside, writing
from sideplug.readers import Example
from sideplug.training.judged import Judged
from sideplug.training.tape import Tape, digest, good_spans, marks_of, read_identity

LONGEST_WAIT_S = 60.0  # for a cloud that has no room


def record(
    session: Session,
    tap: Tap,
    examples: Sequence[Example],
    path: Path,
    progress: Callable[[int], None] = lambda n: None,
    context: ContextSlice | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Tape:
    """Have the cloud read each example once, and keep what it says in `path`. `progress` receives the number done.

    A tape of the same base, tap and examples is continued after its last good example; another one in its place is
    replaced. Raises CloudError when the connection breaks (what came is kept), InputError for an example that the cloud
    can't read, Stopped: disk full. Another process that records it is waited for.
    """
    identity: dict[str, Any] = {"base": session.model.fingerprint, "tap": tap.name, "examples": digest(examples)}
    identity |= {"wire": VERSION, "context": [list(context.layers), context.rank] if context else None}
    about = path.with_suffix(".json")
    with writing(path, "the tape"), alone(path, say):
        if not (path.is_file() and _of_these(about, identity)):
            path.unlink(missing_ok=True)
        write_aside(about, json.dumps({**identity, "count": len(examples), "told": marks_of(examples)}).encode())
        spans = good_spans(path, tap)[0] if path.exists() else []
        path.touch(mode=0o600)  # it holds the person's words, as token ids
        with path.open("ab") as file:
            file.truncate(sum(span.size for span in spans))
            file.seek(0, 2)
            done = len(spans)
            while done < len(examples):
                try:
                    for frame in _read_in_order(session, examples, done, context is not None):
                        file.write(encode(frame))
                        done += 1
                        session.progressed()
                        progress(done)
                except (CloudError, ProtocolError) as error:
                    session.reconnect(error)
    return Tape.whole(path, tap, context)


def _of_these(about: Path, identity: dict[str, Any]) -> bool:
    """Whether the tape beside this file is of the same base, tap and examples."""
    there = read_identity(about)
    return isinstance(there, dict) and {name: there.get(name) for name in identity} == identity


def _read_in_order(session: Session, examples: Sequence[Example], start: int, context: bool) -> Iterator[ExampleFrame]:
    """EXAMPLE frames from number `start` on, in order; as many READs at once as the cloud allows."""
    waiting: dict[int, ExampleFrame] = {}
    asked = done = start
    reads = Reads(session, examples, score=False, context=context)
    while done < len(examples):
        while asked < len(examples) and asked - done < session.readings:
            reads.ask(asked)
            asked += 1
        frame = reads.receive()
        if not isinstance(frame, ExampleFrame):
            raise ProtocolError(f"the cloud must answer READ by EXAMPLE, got {frame.kind.name}")
        waiting[frame.number] = frame
        while done in waiting:
            yield waiting.pop(done)
            done += 1


class Reads:
    """READs of some examples on a session, and what comes back."""

    def __init__(self, session: Session, examples: Sequence[Example], score: bool, context: bool) -> None:
        self._session, self._examples = session, examples
        self._score, self._context = score, context
        self._under_way: set[int] = set()  # numbers of READs whose EXAMPLE did not come yet

    def ask(self, number: int) -> None:
        """Send the READ of an example. Raises CloudError."""
        example = self._examples[number]
        self._under_way.add(number)
        read = Read(number, example.reply, self._score, **example.prompt.to_read())
        self._session.send(replace(read, greedy_tokens=example.greedy_tokens, context=self._context))

    def receive(self) -> Frame:
        """The next frame. What the cloud says against an example is raised with its file and line.

        An example that the cloud has no room for is asked for again, when it says. Raises Untrusted for an EXAMPLE that
        was not asked for, or asked for otherwise.
        """
        while True:
            try:
                frame = self._session.receive()
                if isinstance(frame, ExampleFrame):
                    self._check(frame)
                return frame
            except (InputError, Busy) as error:
                if error.number is None or error.number not in self._under_way:
                    raise
                if isinstance(error, InputError):
                    where = self._examples[error.number].where or "a general prompt"
                    raise type(error)(f"{where}: {error}") from error
                time.sleep(min(error.retry_s or 1.0, LONGEST_WAIT_S))
                self.ask(error.number)

    def _check(self, frame: ExampleFrame) -> None:
        if frame.number not in self._under_way:
            raise Untrusted(f"the cloud sends example {frame.number}, which was not asked for")
        self._under_way.remove(frame.number)
        most = self._examples[frame.number].greedy_tokens
        if (
            len(frame.codes) != len(frame.ids)
            or (most and len(frame.ids) > most)
            or (frame.context is not None) != self._context
        ):
            raise Untrusted(f"the cloud sends example {frame.number} otherwise than it was asked for")

    def forget(self) -> None:
        """The connection broke: what was asked for and did not come will not come."""
        self._under_way.clear()


def score(session: Session, examples: Sequence[Example], progress: Callable[[int], None] = lambda n: None) -> Judged:
    """Exact log-probabilities of every target token, over the whole vocabulary: base, and with the session's responder.

    The examples are read as for a tape; the corrections of every position go up; the cloud's own head judges.
    """
    results: dict[int, Scored] = {}
    states: dict[int, np.ndarray] = {}
    ids: dict[int, np.ndarray] = {}
    waiting, under_way = deque(range(len(examples))), set[int]()
    context = "context" in session.responder.opening.capabilities
    reads = Reads(session, examples, score=True, context=context)
    while len(results) < len(examples):
        try:
            while waiting and len(under_way) < session.readings:
                number = waiting.popleft()
                under_way.add(number)
                reads.ask(number)
            frame = reads.receive()
            if isinstance(frame, ExampleFrame):
                states[frame.number] = unpack(frame.z, frame.z_scales)
                ids[frame.number] = frame.ids
                session.send(Score(frame.number, **session.responder.score(frame)))
            elif isinstance(frame, Scored):
                rows = len(states.get(frame.number, ()))
                if frame.number not in under_way or not len(frame.base) == len(frame.plugin) == rows > 0:
                    raise Untrusted(f"the cloud judges example {frame.number}, which it was not sent")
                results[frame.number] = frame
                under_way.discard(frame.number)
                session.progressed()
                progress(len(results))
            else:
                raise ProtocolError(f"the cloud must answer READ and SCORE, got {frame.kind.name}")
        except (CloudError, ProtocolError) as error:
            session.reconnect(error)
            waiting.extendleft(sorted(under_way, reverse=True))
            under_way.clear()
            reads.forget()
    numbers = sorted(results)
    return Judged.of([(results[n].base, results[n].plugin, states[n]) for n in numbers], [ids[n] for n in numbers])
