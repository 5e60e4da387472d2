"""The engine: schedule, run, postprocess. One homogeneous batch a step, because nobody's adapter is in the cloud.

Two kinds of work share the steps: a Reply is generated, a Reading is run through once for the device's tape or its
score. Work waits until there is memory for its longest end, and a reply begins with what is kept of its text. Where a
Reply's gate opens the device is asked, and the text goes on with a guess or waits (see reply); every step has one head
call for all choices: of shut gates, of guesses, of the corrected z that came. It does not know sockets (it hands frames
to a `send` function) nor how plugins are made. All of it runs in one thread.
Test: pytest tests/cloud/test_engine.py
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from sideplug.cloud import correction_predictor
from sideplug.cloud.counters import Counters
from sideplug.cloud.model.base import Cache, Chunk, Forward, Model, NoCache
from sideplug.cloud.prefix_cache import LEAST, Entry, Kept, Text
from sideplug.cloud.reply import Answer, Ask, Reply, Sequence, SessionSpec, Top
from sideplug.cloud.scheduler import Budget, Scheduler
from sideplug.cloud.tokenizer import Tokenizer
from sideplug.contract.codec import pack
from sideplug.contract.errors import Busy, ProtocolError, TooLong
from sideplug.contract.sampling import choose
from sideplug.contract.wire import Frame, Kind, error_frame

TOP = 16  # best ids a tape keeps of each position: the candidates of training
HEAD_ROWS = 64  # rows of a head call for readings and scores: their logits stay small, and nobody waits long for them
RETRY_S = 5.0  # what a device that was sent away is told to wait
BUSY = 16  # sequences of a step: from there on nobody's guesses run, whatever they are worth

_NONE = np.zeros(0, np.float32)  # logits that nobody needs

log = logging.getLogger("sideplug.cloud")


@dataclass(eq=False)
class Reading(Sequence):
    """An example to be read once: for each reply token, what predicted it (the position before).

    With `write`, the reply is the base's own: that many tokens at most, greedy, written as they are read.
    """

    number: int
    plug: SessionSpec
    prompt_tokens: int
    score: bool
    write: int = 0  # tokens that the base writes at most
    # z (T, D) and log p of the targets (T,), while it may be scored
    result: tuple[np.ndarray, np.ndarray] | None = None
    # of each head call so far: z, codes, scales, log p, top, lse
    parts: list[tuple[np.ndarray, ...]] = field(default_factory=list)

    @property
    def layers(self) -> tuple[int, ...]:
        return self.plug.tap.layers

    @property
    def longest(self) -> int:
        return len(self.ids) + self.write

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


@dataclass
class Row:
    """One choice of the next head call: the token of `at` from z (1, D). It is void when its run was taken back."""

    work: Reply
    at: int
    z_1D: np.ndarray
    answer: Answer | None = None  # the device's; or …
    guess: Ask | None = None  # … what to go on with before it comes; or neither: the gate is shut
    run: int = field(init=False)

    def __post_init__(self) -> None:
        self.run = self.work.run

    @property
    def picked(self) -> int | None:
        """The token, where the device has the head."""
        return self.answer.token if self.answer else None


def _text(reply: Reply, mark: bytes | None = None) -> Text:
    return Text(reply.scope, np.asarray(reply.ids), reply.prompt_tokens, reply.plug.mark if mark is None else mark)


def _begun(reply: Reply, kept: int) -> Frame:
    control = {"turn": reply.turn, "prompt": reply.prompt_tokens, "kept": kept, "hash": reply.prompt_hash}
    return Frame(Kind.BEGUN, control)


@dataclass(frozen=True)
class Room:
    """What may wait, and what is kept: works in the queue, seconds that one waits there, and seconds that the keys and
    values of a text are kept when nobody works on it (0: not at all)."""

    queue: int = 64
    queue_s: float = 30.0
    keep_s: float = 600.0


class Engine:
    """`add` work, `answer` what was asked, and call `step` until it says that nothing is ready."""

    def __init__(
        self, model: Model, tokenizer: Tokenizer, budget: Budget | None = None, room: Room | None = None
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.room = room or Room()
        self.kept = Kept(model.memory, self.room.keep_s)
        self.meters = Counters()
        self.heard_s = time.monotonic()  # when it last listened: an engine that hangs does not
        self._waiting: list[Reply | Reading] = []
        self._scheduler = Scheduler(budget or Budget())
        self._works: list[Sequence] = []
        self._rows: list[Row] = []  # of the last forward: not yet through the head
        self._answered: list[Reply] = []
        self._busy = 0  # sequences in the last step
        self._step_s = 0.01  # running mean, of steps without prefill
        self._scorings: list[Scoring] = []

    def add(self, work: Reply | Reading) -> None:
        """Run it when there is memory for it. Raises TooLong where there never is, Busy where too many wait already."""
        if work.longest > self.model.memory.tokens:
            raise TooLong(
                f"the text may come to {work.longest} tokens with its reply, the cloud's memory holds "
                f"{self.model.memory.tokens}: ask for fewer tokens"
            )
        if isinstance(work, Reply) and work.over:  # its device had it all, but for the last word
            work.send(_begun(work, 0))
            self._settle(work)
            return
        if len(self._waiting) >= self.room.queue:
            raise Busy(f"{len(self._waiting)} texts wait for the cloud already: try later", RETRY_S)
        self._waiting.append(work)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def working(self) -> int:
        return len(self._works)

    def tick(self) -> None:
        """Once a second or so: who has waited too long is told, and what was kept long enough is let go."""
        last = time.monotonic() - self.room.queue_s
        for work in [work for work in self._waiting if work.since_s < last]:
            busy = Busy(f"the cloud had no room for {self.room.queue_s:.0f} s: try later", RETRY_S)
            work.send(error_frame(busy, work.number if isinstance(work, Reading) else None))
            self.drop(work)
        self.kept.expire()
        self.heard_s = time.monotonic()

    def declare(self, ids: list[int]) -> None:
        """A beginning that everybody's prompts may share: run once, and kept for good. Raises Busy."""
        cache = self.model.new_cache(len(ids))
        self.model.forward([Chunk(ids, cache)])
        self.kept.declare(Text(None, np.asarray(ids), len(ids)), cache.read(len(ids)))

    def _admit(self) -> None:
        """Begin what there is memory for: of the users with the least in work first, then in the order of coming."""
        if not self._waiting:
            return
        users = Counter(work.user for work in self._works)
        waiting = list(self._waiting)
        while waiting:
            work = min(waiting, key=lambda work: users[work.user])
            waiting.remove(work)
            if isinstance(work, Reply) and self._follows(work):
                continue
            try:
                if not self._begin(work):
                    return
            except Exception as error:
                self._fail(work, error)
                continue
            self.meters.queue_s.add(time.monotonic() - work.since_s)
            users[work.user] += 1
            self._waiting.remove(work)
            self._works.append(work)

    def _follows(self, reply: Reply) -> bool:
        """Is another's prompt being run that begins alike? Then its keys and values are waited for, not run twice."""
        if reply.behind:
            other, shared = reply.behind
            if other.alive and other.cache.length < shared:
                return True
        reply.behind = None
        running = [w for w in self._works if isinstance(w, Reply) and w.cache.length < w.prompt_tokens]
        if not running:
            return False
        wanted = _text(reply)
        _, have = self.kept.best(wanted)
        for work in running:
            shared = _text(work, b"").shared(wanted)
            if shared > max(have, work.cache.length, LEAST - 1):
                reply.behind = (work, shared)
                return True
        return False

    def _begin(self, work: Reply | Reading) -> bool:
        """Give it memory, and what is kept of its text. False: there is no room yet."""
        if not isinstance(work, Reply):
            cache = self._new_cache(work)
            if cache is not None:
                work.cache = cache
            return cache is not None
        text = _text(work)
        entry, length = self.kept.best(text)
        donor: Reply | None = None
        for other in self._works:
            if isinstance(other, Reply) and other.cache.length > length:
                shared = min(_text(other, b"").shared(text), other.cache.length)
                if shared > max(length, LEAST - 1):
                    entry, donor, length = None, other, shared
        cache = self._new_cache(work, entry)
        if cache is None:
            return False
        if entry:
            cache.write(entry.states, length)
            self.kept.use(entry, text)
        elif donor:
            cache.write(donor.cache.read(length), length)
        work.begin(cache, entry.text if entry else None, length)
        self.meters.tokens["kept"] += length
        self.meters.resumed += bool(work.done)
        work.send(_begun(work, length))
        return True

    def _new_cache(self, work: Reply | Reading, spare: Entry | None = None) -> Cache | None:
        """For its longest end, for which kept texts are let go, but not `spare`; None: there is no room."""
        promise = self.kept.reserve(work.longest, spare)
        if promise is None:
            return None
        try:
            return self.model.cache_in(promise)
        except Busy:
            return None

    def leave(self, reply: Reply) -> None:
        """Its device is gone, perhaps to come back: what is settled of the text is kept for a while."""
        self.drop(reply, keep=True)

    def hold(self, reply: Reply, held: bool) -> None:
        """Run no more of it while its device does not read what it was sent."""
        reply.held = held

    def drop(self, *works: Sequence, keep: bool = False) -> None:
        """Forget these (their device is gone, or they are complete), but for what may be kept of a reply's text."""
        for work in works:
            if keep and work.alive and isinstance(work, Reply):
                text = work.kept
                if len(text.ids) >= LEAST:
                    self.kept.put(text, work.cache.read(len(text.ids)))
            work.alive = False
            if work in self._waiting:
                self._waiting.remove(work)  # type: ignore[arg-type]
            work.cache = NoCache()  # its memory is free at once, whoever still holds the work
            if work in self._works:
                self._works.remove(work)
            self._scorings = [scoring for scoring in self._scorings if scoring.reading is not work]

    def cancel(self, reply: Reply) -> None:
        if reply.alive:
            self._finish(reply, "cancelled")

    def answer(self, reply: Reply, frame: Frame) -> None:
        """The device's corrections. Raises ProtocolError when they answer something else than what was asked."""
        if reply.alive:  # else it was cancelled while the answer was on its way
            for seconds in reply.hear(frame, self.model.vocab, time.monotonic()):
                self.meters.answer_s.add(seconds)
            self._note(reply)

    def expire(self, reply: Reply, run: int, at: int) -> None:
        """The deadline of an ask has passed: unless it was answered, the base's token is used."""
        if reply.expire(run, at):
            self._note(reply)

    def _note(self, reply: Reply) -> None:
        if reply.answers and reply not in self._answered:
            self._answered.append(reply)

    def step(self) -> bool:
        """Run everything that is ready once. False: nothing was."""
        started = time.monotonic()
        self._admit()
        chosen = self._choose()
        scored = self._score_some()
        batch = self._scheduler.pick(self._works)
        self._busy = len(batch)
        if not batch:
            return chosen or scored
        try:
            layers = {layer for work, _ in batch for layer in work.layers}
            out = self.model.forward([Chunk(ids, work.cache) for work, ids in batch], layers)
        except Exception as error:
            for work, _ in batch:
                self._fail(work, error)
            return True
        meters = self.meters
        meters.steps += 1
        meters.batch.add(len(batch))
        meters.tokens["prompt"] += sum(len(ids) for _, ids in batch if len(ids) > 1)
        self._postprocess(batch, out)
        meters.step_s.add(time.monotonic() - started)
        if all(len(ids) == 1 for _, ids in batch):
            self._step_s += 0.1 * (time.monotonic() - started - self._step_s)
        return True

    def _fail(self, work: Sequence, error: Exception) -> None:
        """What goes wrong in one work ends that work and its session, and nobody else's."""
        self.meters.refused["internal"] += 1
        log.error("a %s failed", type(work).__name__, exc_info=error)
        work.send(error_frame(error))
        self.drop(work)

    def _postprocess(self, batch: list[tuple[Sequence, list[int]]], out: Forward) -> None:
        writing: list[tuple[Reading, np.ndarray, np.ndarray]] = []
        row = 0
        for work, ids in batch:
            last = row + len(ids) - 1
            try:
                if isinstance(work, Reading) and work.write:
                    if not work.pending:
                        writing.append((work, out.z([last]), out.tapped([last], work.layers)))
                elif isinstance(work, Reading):
                    self._read(work, len(ids), row, out)
                elif isinstance(work, Reply) and work.cache.length >= work.prompt_tokens:
                    at = work.cache.length
                    z_1D = out.z([last])
                    opens = work.opens(at, z_1D)
                    if at < len(work.ids):
                        pass  # run again: its device has the next token already
                    elif opens:
                        self._ask(work, z_1D, out.tapped([last], work.plug.tap.layers))
                    else:
                        self._rows.append(Row(work, at, z_1D))
            except Exception as error:
                self._fail(work, error)
            row += len(ids)
        self._write(writing)

    def _ask(self, reply: Reply, z_1D: np.ndarray, hidden_1KD: np.ndarray) -> None:
        codes, scales = reply.plug.tap.encode(hidden_1KD)
        seen = reply.plug.tap.decode(codes, scales).ravel() if codes.size <= correction_predictor.MAX_CODES else z_1D[0]
        ask = reply.ask(z_1D, seen, time.monotonic())
        start, ids = reply.untold()
        control = {"turn": reply.turn, "run": reply.run, "at": [ask.at], "from": start, "ids": ids}
        tensors = {"codes": codes, "scales": scales}
        if reply.head == "device":
            tensors["z"], _ = pack(z_1D, int8=False)
        reply.send(Frame(Kind.ASK, control, tensors))
        self._go_on(reply)

    def _go_on(self, reply: Reply) -> None:
        """Guess at the last ask, where that is worth its step: a row of the next head call."""
        ask = reply.unguessed
        if ask is None or len(reply.asks) > reply.ahead:
            return
        habits = reply.habits
        right = habits.own_agrees if ask.drafted is None else max(habits.own_agrees, habits.draft_agrees)
        # A wrong guess costs the step that is under way when the answer comes: a near device is waited for.
        if (1 - right) * self._step_s > habits.answer_s:
            return
        # The step's use falls with every open ask before it; the fuller the batch, the more it must be.
        if right ** len(reply.asks) * BUSY > self._busy:
            z_1D = ask.z_1D + habits.foresight.predict(ask.seen)
            self._rows.append(Row(reply, ask.at, z_1D, guess=ask))

    def _choose(self) -> bool:
        """One head call for all choices that are due, then a token each. False: none was."""
        answered, self._answered = [reply for reply in self._answered if reply.alive], []
        for reply in answered:
            if not any(row.work is reply for row in self._rows):
                self._go_on(reply)
        answers = [Row(reply, answer.ask.at, answer.z_1D, answer) for reply in answered for answer in reply.answers]
        rows = [*answers, *(row for row in self._rows if row.work.alive)]  # what is answered comes before what follows
        self._rows = []
        if not rows:
            return False
        open_rows = [row for row in rows if row.picked is None]
        try:
            found = iter(self.model.logits(np.concatenate([row.z_1D for row in open_rows])) if open_rows else [])
        except Exception as error:
            for reply in {id(row.work): row.work for row in rows}.values():
                self._fail(reply, error)
            return True
        for row, logits_V in [(row, next(found) if row.picked is None else _NONE) for row in rows]:
            reply = row.work
            if not reply.alive or row.run != reply.run:
                continue
            if not row.answer and (reply.end or row.at != len(reply.ids)):
                continue  # its answer has just come: there is nothing left to guess
            try:
                before = reply.ids if row.at == len(reply.ids) else reply.ids[: row.at]
                picked = row.picked
                token = choose(logits_V, reply.sampling, row.at, before) if picked is None else picked
                if reply.top and logits_V.size and not row.guess:
                    reply.tops[row.at] = self._top(logits_V, token, reply.top)
                if row.answer:
                    reply.confirm(token)
                elif row.guess:
                    reply.guess(row.guess, token)
                else:
                    reply.extend(token)
            except Exception as error:
                self._fail(reply, error)
        for reply in {id(row.work): row.work for row in rows}.values():
            if reply.alive:
                self._settle(reply)
        return True

    def _top(self, logits_V: np.ndarray, token: int, count: int) -> list[Top]:
        """The chosen token, then the best `count`, with their texts and log-probabilities (without temperature)."""
        peak = float(logits_V.max())
        lse = peak + float(np.log(np.exp(logits_V - peak).sum()))
        best = np.argpartition(logits_V, -count)[-count:]
        best = best[np.argsort(-logits_V[best], kind="stable")]
        return [[self.tokenizer.decode([i]), round(float(logits_V[i]) - lse, 4)] for i in (token, *best.tolist())]

    def _settle(self, reply: Reply) -> None:
        """Send what has become final, and end a reply that is over."""
        parts = reply.settle()
        for number, part in enumerate(parts):
            if part.at == reply.prompt_tokens:
                self.meters.first_s.add(time.monotonic() - reply.since_s)
            self.meters.tokens["reply"] += len(part.ids)
            text = reply.text.push(part.ids, reply.over and number == len(parts) - 1)
            control = {"turn": reply.turn, "at": part.at, "ids": part.ids, "text": text, "by": part.by}
            reply.send(Frame(Kind.TOKENS, {**control, "top": part.tops} if reply.top else control))
        if reply.over:
            self._finish(reply, reply.end)

    def _finish(self, reply: Reply, why: str) -> None:
        rest = reply.text.push([], last=True)
        if rest:
            at = reply.settled
            reply.send(Frame(Kind.TOKENS, {"turn": reply.turn, "at": at, "ids": [], "text": rest, "by": "cloud"}))
        control = {"turn": reply.turn, "why": why, "prompt": reply.prompt_tokens, "reply": reply.reply_tokens}
        reply.send(Frame(Kind.DONE, {**control, "counts": vars(reply.counts)}))
        self.meters.replies[why] += 1
        self.meters.gate.update(vars(reply.counts))
        self.drop(reply, keep=True)

    def _write(self, writing: list[tuple[Reading, np.ndarray, np.ndarray]]) -> None:
        """One head call for the replies that the base writes itself; each gets its next token."""
        if not writing:
            return
        z_TD = np.concatenate([z for _, z, _ in writing])
        try:
            columns = self.model.read(z_TD, np.zeros(len(z_TD), np.int32), TOP)
        except Exception as error:
            for reading, _, _ in writing:
                self._fail(reading, error)
            return
        for i, (reading, z, hidden) in enumerate(writing):
            try:
                logp, top, lse = (column[i : i + 1] for column in columns)
                reading.parts.append((z, *reading.plug.tap.encode(hidden), logp, top, lse))
                reading.ids.append(int(top[0, 0]))
                written = len(reading.parts)
                if reading.ids[-1] in self.tokenizer.stop_ids or written >= reading.write:
                    self._hand_over(reading)
            except Exception as error:
                self._fail(reading, error)

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
        if not reading.pending:
            self._hand_over(reading)

    def _hand_over(self, reading: Reading) -> None:
        """The example is complete."""
        z, codes, scales, logp, top, lse = (np.concatenate(column) for column in zip(*reading.parts, strict=True))
        z_codes, z_scales = pack(z, int8=False)
        tensors = {"ids": reading.targets, "codes": codes, "scales": scales}
        tensors |= {"z": z_codes, "z_scales": z_scales, "top": top, "lse": lse}
        self.meters.readings += 1
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
        corrected = reading.plug.correct(z, frame.tensors["delta"], frame.tensors["scales"])
        self._scorings.append(Scoring(reading, logp, corrected))

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
