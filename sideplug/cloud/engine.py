"""The engine: schedule, run, postprocess. One homogeneous batch a step, because nobody's adapter is in the cloud.

Two kinds of work share the steps: a Reply is generated, a Reading is run through once for the device's tape or its
score. A Reply whose gate opens is parked with its z until the device's correction comes; the head then runs on the
corrected z. It does not know sockets (it hands frames to a `send` function) nor how plugins are made. All of it runs in
one thread. Test: pytest tests/cloud/test_engine.py
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from sideplug.cloud.model import Cache, Chunk, Forward, Model, NoCache
from sideplug.cloud.scheduler import Budget, Scheduler
from sideplug.cloud.tokenizer import TextStream, Tokenizer
from sideplug.contract.codec import pack, unpack
from sideplug.contract.errors import InputError, ProtocolError
from sideplug.contract.gate import Gate
from sideplug.contract.sampling import Sampling, choose
from sideplug.contract.tap import Tap
from sideplug.contract.wire import Frame, Kind, error_frame

TOP = 16  # best ids a tape keeps of each position: the candidates of training
HEAD_ROWS = 64  # rows of a head call for readings and scores: their logits stay small, and nobody waits long for them
MAX_CORRECTED = 1e6  # of any number in a corrected z: far past every model's, far below what overflows in the head

log = logging.getLogger("sideplug.cloud")
Send = Callable[[Frame], None]


@dataclass
class Plug:
    """What a device said in OPEN: how its plugin is asked and how its answer is used ("add" to z, or "replace" it)."""

    tap: Tap
    gate: Gate
    merge: str = "add"

    def __post_init__(self) -> None:
        if self.merge not in ("add", "replace"):
            raise InputError(f"merge must be add or replace, got {self.merge!r}")

    def correct(self, z_TD: np.ndarray, frame: Frame) -> np.ndarray:
        """z after the device's answer. Raises ProtocolError for an answer of another size or with no finite numbers."""
        codes, scales = frame.tensors["delta"], frame.tensors["scales"]
        int8 = codes.dtype == np.int8
        if codes.shape != z_TD.shape or codes.dtype not in (np.int8, np.float16):
            raise ProtocolError(f"a correction must be int8 or fp16 {z_TD.shape}, got {codes.dtype} {codes.shape}")
        if scales.dtype != np.float32 or scales.shape != ((len(z_TD),) if int8 else (0,)):
            raise ProtocolError(f"a correction's scales must be one float32 a vector for int8, got {scales.shape}")
        with np.errstate(all="ignore"):
            delta = unpack(codes, scales)
            corrected = z_TD + delta if self.merge == "add" else delta
        if not np.abs(corrected).max(initial=0) <= MAX_CORRECTED:  # also false for what is not a number
            raise ProtocolError(f"a correction must be finite and at most {MAX_CORRECTED:.0e}")
        return corrected


@dataclass(eq=False)
class Sequence:
    """Token ids, of which the cache has the first `cache.length`."""

    ids: list[int]
    send: Send
    cache: Cache
    alive: bool = field(default=True, kw_only=True)

    @property
    def pending(self) -> int:
        return len(self.ids) - self.cache.length

    @property
    def layers(self) -> tuple[int, ...]:
        """Those that may be tapped."""
        return ()

    def next_ids(self, count: int) -> list[int]:
        return self.ids[self.cache.length : self.cache.length + count]


@dataclass(eq=False)
class Reply(Sequence):
    """A reply in the making: `ids` is the prompt, then what was accepted."""

    turn: int
    plug: Plug
    sampling: Sampling
    max_tokens: int
    text: TextStream
    prompt_tokens: int = field(init=False)
    asked_z: np.ndarray | None = None  # (1, D) while parked: what the device was asked about

    def __post_init__(self) -> None:
        self.prompt_tokens = len(self.ids)

    @property
    def layers(self) -> tuple[int, ...]:
        return () if self.plug.gate.kind == "shut" else self.plug.tap.layers

    @property
    def reply_tokens(self) -> int:
        return len(self.ids) - self.prompt_tokens


@dataclass(eq=False)
class Reading(Sequence):
    """An example to be read once: for each reply token, what predicted it (the position before)."""

    number: int
    plug: Plug
    prompt_tokens: int
    score: bool
    # z (T, D) and log p of the targets (T,), while it may be scored
    result: tuple[np.ndarray, np.ndarray] | None = None
    # of each head call so far: z, codes, scales, log p, top, lse
    parts: list[tuple[np.ndarray, ...]] = field(default_factory=list)

    @property
    def layers(self) -> tuple[int, ...]:
        return self.plug.tap.layers

    @property
    def targets(self) -> np.ndarray:
        return np.asarray(self.ids[self.prompt_tokens :], np.int32)


@dataclass(eq=False)
class Scoring:
    """A read example under a device's corrections: one head call a step until all its rows are judged."""

    reading: Reading
    base: np.ndarray
    corrected_TD: np.ndarray
    done: list[np.ndarray] = field(default_factory=list)


class Engine:
    """`add` work, `answer` what was asked, and call `step` until it says that nothing is ready."""

    def __init__(self, model: Model, tokenizer: Tokenizer, budget: Budget | None = None) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.steps = 0
        self._scheduler = Scheduler(budget or Budget())
        self._works: list[Sequence] = []
        self._answers: list[tuple[Reply, np.ndarray]] = []
        self._scorings: list[Scoring] = []

    def add(self, work: Reply | Reading) -> None:
        self._works.append(work)

    def drop(self, *works: Sequence) -> None:
        """Forget these (their device is gone, or they are complete)."""
        for work in works:
            work.alive = False
            work.cache = NoCache()  # its memory is free at once, whoever still holds the work
            if work in self._works:
                self._works.remove(work)
            self._scorings = [scoring for scoring in self._scorings if scoring.reading is not work]

    def cancel(self, reply: Reply) -> None:
        if reply.alive:
            self._finish(reply, "cancelled")

    def answer(self, reply: Reply, frame: Frame) -> None:
        """The device's corrections. Raises ProtocolError when they answer something else than what was asked."""
        if not reply.alive:
            return  # it was cancelled while the answer was on its way
        position = len(reply.ids)
        if reply.asked_z is None or frame["turn"] != reply.turn or frame["at"] != [position]:
            raise ProtocolError(
                f"an answer must be for turn {reply.turn}, position {position}, asked once; got turn {frame['turn']}, "
                f"positions {str(frame['at'])[:60]}"
            )
        self._answers.append((reply, reply.plug.correct(reply.asked_z, frame)))
        reply.asked_z = None

    def step(self) -> bool:
        """Run everything that is ready once. False: nothing was."""
        answered = [(reply, z) for reply, z in self._answers if reply.alive]
        self._answers = []
        self._choose(answered, "plugin")
        scored = self._score_some()
        batch = self._scheduler.pick(self._works)
        if not batch:
            return bool(answered) or scored
        try:
            layers = {layer for work, _ in batch for layer in work.layers}
            out = self.model.forward([Chunk(ids, work.cache) for work, ids in batch], layers)
        except Exception as error:
            for work, _ in batch:
                self._fail(work, error)
            return True
        self.steps += 1
        self._postprocess(batch, out)
        return True

    def _fail(self, work: Sequence, error: Exception) -> None:
        """What goes wrong in one work ends that work and its session, and nobody else's."""
        log.error("a %s failed", type(work).__name__, exc_info=error)
        work.send(error_frame(error))
        self.drop(work)

    def _postprocess(self, batch: list[tuple[Sequence, list[int]]], out: Forward) -> None:
        shut: list[tuple[Reply, np.ndarray]] = []
        row = 0
        for work, ids in batch:
            try:
                if isinstance(work, Reading):
                    self._read(work, len(ids), row, out)
                elif isinstance(work, Reply) and not work.pending:
                    z_1D = out.z([row + len(ids) - 1])
                    if work.plug.gate.opens(z_1D)[0]:
                        self._ask(work, z_1D, out.tapped([row + len(ids) - 1], work.plug.tap.layers))
                    else:
                        shut.append((work, z_1D))
            except Exception as error:
                self._fail(work, error)
            row += len(ids)
        self._choose(shut, "cloud")

    def _ask(self, reply: Reply, z_1D: np.ndarray, hidden_1KD: np.ndarray) -> None:
        codes, scales = reply.plug.tap.encode(hidden_1KD)
        reply.asked_z = z_1D
        tensors = {"codes": codes, "scales": scales}
        reply.send(Frame(Kind.ASK, {"turn": reply.turn, "at": [len(reply.ids)]}, tensors))

    def _choose(self, rows: list[tuple[Reply, np.ndarray]], by: str) -> None:
        """One head call for all these z, then a token each."""
        if not rows:
            return
        try:
            logits = self.model.logits(np.concatenate([z for _, z in rows]))
        except Exception as error:
            for reply, _ in rows:
                self._fail(reply, error)
            return
        for (reply, _), logits_V in zip(rows, logits, strict=True):
            try:
                self._accept(reply, choose(logits_V, reply.sampling, len(reply.ids), reply.ids), by)
            except Exception as error:
                self._fail(reply, error)

    def _accept(self, reply: Reply, token: int, by: str) -> None:
        if token in self.tokenizer.stop_ids:
            self._finish(reply, "stop")
            return
        at = len(reply.ids)
        reply.ids.append(token)
        full = reply.reply_tokens >= reply.max_tokens or len(reply.ids) >= self.model.context
        text = reply.text.push([token], last=full)
        reply.send(Frame(Kind.TOKENS, {"turn": reply.turn, "at": at, "ids": [token], "text": text, "by": by}))
        if full:
            self._finish(reply, "length")

    def _finish(self, reply: Reply, why: str) -> None:
        rest = reply.text.push([], last=True)
        if rest:
            at = len(reply.ids)
            reply.send(Frame(Kind.TOKENS, {"turn": reply.turn, "at": at, "ids": [], "text": rest, "by": "cloud"}))
        counts = {"prompt": reply.prompt_tokens, "reply": reply.reply_tokens}
        reply.send(Frame(Kind.DONE, {"turn": reply.turn, "why": why, **counts}))
        self.drop(reply)

    def _read(self, reading: Reading, count: int, first_row: int, out: Forward) -> None:
        """Keep what this step's `count` rows tell of reply tokens; with the last of them, the example is complete."""
        stop = reading.cache.length
        start = stop - count
        # The position before a reply token predicts it.
        lo, hi = max(start, reading.prompt_tokens - 1), min(stop, len(reading.ids) - 1)
        for at in range(lo, hi, HEAD_ROWS):
            end = min(at + HEAD_ROWS, hi)
            rows = slice(first_row + at - start, first_row + end - start)
            z = out.z(rows)
            targets = np.asarray(reading.ids[at + 1 : end + 1], np.int32)
            hidden = out.tapped(rows, reading.plug.tap.layers)
            reading.parts.append((z, *reading.plug.tap.encode(hidden), *self.model.read(z, targets, TOP)))
        if reading.pending:
            return
        z, codes, scales, logp, top, lse = (np.concatenate(column) for column in zip(*reading.parts, strict=True))
        z_codes, z_scales = pack(z, int8=False)
        tensors = {"ids": reading.targets, "codes": codes, "scales": scales}
        tensors |= {"z": z_codes, "z_scales": z_scales, "top": top, "lse": lse}
        self.drop(reading)
        reading.parts = []  # only z stays, and only until it is scored
        reading.result = (z, logp) if reading.score else None
        reading.send(Frame(Kind.EXAMPLE, {"number": reading.number}, tensors))

    def score(self, reading: Reading, frame: Frame) -> None:
        """Judge a read example's targets under the device's corrections; SCORED follows. Raises ProtocolError."""
        if reading.result is None:
            raise ProtocolError(f"example {reading.number} must be read before it is scored, and scored once")
        z, logp = reading.result
        reading.result = None
        self._scorings.append(Scoring(reading, logp, reading.plug.correct(z, frame)))

    def _score_some(self) -> bool:
        """One head call for the score that has waited longest."""
        if not self._scorings:
            return False
        scoring = self._scorings[0]
        reading = scoring.reading
        at = sum(map(len, scoring.done))
        try:
            rows = slice(at, at + HEAD_ROWS)
            scoring.done.append(self.model.read(scoring.corrected_TD[rows], reading.targets[rows], 1)[0])
        except Exception as error:
            self._scorings.remove(scoring)
            self._fail(reading, error)
            return True
        if at + HEAD_ROWS >= len(scoring.corrected_TD):
            self._scorings.remove(scoring)
            tensors = {"base": scoring.base, "plugin": np.concatenate(scoring.done)}
            reading.send(Frame(Kind.SCORED, {"number": reading.number}, tensors))
        return True
