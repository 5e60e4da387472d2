"""The engine: one homogeneous batch per step, because nobody's adapter is in the cloud.

Two kinds of work share the steps: a Reply is generated, an ExampleWork is read once for a device's tape or score. Where
a Reply's gate opens, the device is asked, and the text goes on with a speculative token or waits (see reply). Each step
has one head call for all tokens that are due: of replies whose gate is shut, of speculation, and of corrected z. What
a step takes is charged to users (fair_share), and each token to its key (bill). The engine does not know sockets (each
work has a `send` function) nor how plugins are made. All of it runs in one thread.
D width, V vocabulary. Test: pytest tests/cloud/test_engine.py
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from sideplug.cloud import correction_predictor, reply_frames
from sideplug.cloud.admission import Admission, AdmissionLimits
from sideplug.cloud.counters import Counters
from sideplug.cloud.fair_share import FairShare
from sideplug.cloud.model.base import Chunk, Forward, Model, NoCache
from sideplug.cloud.prefix_cache import MIN_PREFIX, PrefixCache, Text
from sideplug.cloud.reading import ExampleWork, GreedyRow, Reader
from sideplug.cloud.reply import Answer, Ask, Reply, Sequence
from sideplug.cloud.scheduler import Budget, Scheduler
from sideplug.cloud.speculation import SpeculationPolicy
from sideplug.cloud.tokenizer import Tokenizer
from sideplug.contract.correction import mix
from sideplug.contract.errors import CloudError
from sideplug.contract.frames import Answer as AnswerFrame
from sideplug.contract.frames import Score, Top
from sideplug.contract.grammar import constrain
from sideplug.contract.sampling import choose
from sideplug.contract.wire import error_frame

ABOUT_TO_ANSWER_S = 1.0  # for so long after an ASK its device counts as one that takes part
STALLED_S = 5.0  # a reply that waits for its device for so long is ended where another user waits for its memory
LEAST_LOGP = -9999.0  # told of a token that a mixture leaves no probability: JSON has no infinity
_NO_LOGITS = np.zeros(0, np.float32)  # of a row whose token the device has chosen
log = logging.getLogger("sideplug.cloud")


@dataclass
class HeadRow:
    """One row of the next head call: the token at position `at`, from z (1, D). A rollback of its run voids it."""

    reply: Reply
    at: int
    z_1D: np.ndarray
    answer: Answer | None = None  # the device's answer that the token settles; or …
    speculates_on: Ask | None = None  # … the open question behind which the token goes on; else nobody is asked
    trunks: int = 0  # the gates whose trunks corrected z here, a bit each
    run: int = field(init=False)

    def __post_init__(self) -> None:
        self.run = self.reply.run

    @property
    def biased(self) -> int:
        """The parts whose biases are added, a bit each: those whose gates opened, unless one of them says a mixture."""
        if self.answer:
            corrected = self.answer.by == "plugin" and self.answer.mixture is None
            return self.answer.ask.gates if corrected else 0
        return self.speculates_on.gates if self.speculates_on else self.trunks

    @property
    def token(self) -> int | None:
        """The token, if the device has the head and has chosen it itself."""
        return self.answer.token if self.answer else None


@dataclass(frozen=True)
class Chore:
    """Work that is no text's, such as reading rows of the head: one is done in a step."""

    user: str
    run: Callable[[], None]


class Engine:
    """`add` work, `answer` its questions, and call `step` until it returns False."""

    def __init__(
        self, model: Model, tokenizer: Tokenizer, budget: Budget | None = None, limits: AdmissionLimits | None = None
    ) -> None:
        limits = limits or AdmissionLimits()
        self.model = model
        self.tokenizer = tokenizer
        self.counters = Counters()
        self.prefix_cache = PrefixCache(model.memory, limits.keep_s)
        self.admission = Admission(model, self.prefix_cache, limits, self.counters)
        self.reader = Reader(model, tokenizer, self.counters)
        self.alive_s = time.monotonic()  # when it last took a call or ticked; one that hangs does neither
        self._scheduler = Scheduler(budget or Budget())
        self._speculation = SpeculationPolicy()
        self._fair = FairShare()
        self._charges: deque[tuple[str, float]] = deque()  # of work outside the engine
        self._chores: list[Chore] = []
        self._works: list[Sequence] = []
        self._rows: list[HeadRow] = []  # rows of the last forward that have not been through the head
        self._answered: list[Reply] = []  # replies with answers that have not been through the head

    @property
    def waiting(self) -> int:
        """Works that have not begun."""
        return len(self.admission)

    @property
    def working(self) -> int:
        """Works that have begun."""
        return len(self._works)

    def charge(self, user: str, seconds: float) -> None:
        """Count work of a user outside the engine as time of the engine's. May be called from any thread."""
        self._charges.append((user, seconds))

    # What sessions ask for ────────────────────────────────────────────────────────────────────────────────────────────

    def add(self, work: Reply | ExampleWork) -> None:
        """Run it when there is memory for it. Raises TooLong if there never will be, Busy if too many wait already."""
        self.admission.check_size(work)
        if isinstance(work, Reply) and work.over:  # nothing is to be run: it is a quote, or all but its DONE had come
            work.send(reply_frames.begun(work, 0))
            self._settle(work)
            return
        self.admission.add(work)

    def answer(self, reply: Reply, frame: AnswerFrame) -> None:
        """Take a device's ANSWER. Raises ProtocolError when it does not answer what was asked."""
        if reply.alive:  # else it was cancelled while the answer was on its way
            for seconds in reply.receive(frame, self.model.vocab, time.monotonic()):
                self.counters.answer_s.add(seconds)
            self._note_answers(reply)

    def expire(self, reply: Reply, run: int, at: int) -> None:
        """The deadline of a question has passed: unless it was answered, the base's token is used."""
        if reply.expire(run, at):
            self._note_answers(reply)

    def _note_answers(self, reply: Reply) -> None:
        if reply.answers and reply not in self._answered:
            self._answered.append(reply)

    def score(self, example: ExampleWork, frame: Score) -> None:
        """Score a read example under a SCORE frame's corrections; SCORED follows. Raises ProtocolError."""
        self.reader.score(example, frame)

    def do(self, chore: Chore) -> None:
        """Do this when its user's turn comes."""
        self._chores.append(chore)

    def hold(self, reply: Reply, held: bool) -> None:
        """Stop running a reply whose device does not read what it is sent, or go on with it."""
        reply.held_since_s = time.monotonic() if held else 0.0

    def cancel(self, reply: Reply) -> None:
        """End a reply where it is settled; DONE says "cancelled"."""
        if reply.alive:
            self._finish(reply, "cancelled")

    def leave(self, reply: Reply) -> None:
        """Drop a reply whose device is gone, perhaps to come back: its settled text goes into the prefix cache."""
        self.drop(reply, cache=True)

    def drop(self, *works: Sequence, cache: bool = False) -> None:
        """Forget these works. With `cache`, the settled text of a reply goes into the prefix cache."""
        for work in works:
            if cache and work.alive and isinstance(work, Reply):
                self._cache_text(work)
            work.alive = False
            work.bill.close()
            self.admission.remove(work)
            work.cache = NoCache()  # frees its memory now, even if somebody still refers to the work
            if work in self._works:
                self._works.remove(work)
            self.reader.forget(work)

    def _cache_text(self, reply: Reply) -> None:
        """Put the reply's settled text into the prefix cache. A fault in that must not keep the reply alive."""
        try:
            text = reply.cacheable
            if len(text.ids) >= MIN_PREFIX:
                self.prefix_cache.put(text, reply.cache.read(len(text.ids)))
        except Exception:
            log.exception("a text could not be cached")

    def declare(self, ids: list[int]) -> None:
        """Run a beginning that everybody's prompts may share, and cache it for good. Raises Busy."""
        cache = self.model.new_cache(len(ids))
        self.model.forward([Chunk(ids, cache)])
        self.prefix_cache.declare(Text(None, np.asarray(ids), len(ids)), cache.read(len(ids)))

    def tick(self) -> None:
        """Once a second or so: send away works that waited too long, and evict prefixes that were not used."""
        self.admission.expire()
        self._end_stalled()
        self.prefix_cache.expire()
        self.alive_s = time.monotonic()

    def _end_stalled(self) -> None:
        """Where a text waits for memory, end the reply of another user whose device has been away for the longest.

        Its connection is cut, so that a device that is still there takes the reply up again, as after any break.
        """
        lacking, now_s = self.admission.lacking, time.monotonic()
        if lacking is None:
            return
        others = [work for work in self._works if isinstance(work, Reply) and work.user != lacking.user]
        longest = max(others, key=lambda reply: reply.waits_s(now_s), default=None)
        if longest is not None and longest.waits_s(now_s) > STALLED_S:
            self.counters.refused["stalled"] += 1
            longest.send(error_frame(CloudError("the device was away while others wanted the memory that it held")))
            self.drop(longest)

    # The step, in the order in which it runs ──────────────────────────────────────────────────────────────────────────

    def step(self) -> bool:
        """Run everything that is ready once. False: nothing was.

        A token crosses two steps: the forward of one step gives the z that predicts it, and the head call of the next
        step chooses it, together with the tokens of all answers that came in between.
        """
        # 1. Admit: begin the works that there is memory for.
        self.admission.begin_waiting(self._works, self._fail)
        # 2. Choose: the head, for the rows of the last step's forward and for answers. Then one chore, or score.
        started_s = time.monotonic()
        chose = self._choose()
        resting, most_prefill = self._shares_of_the_step()
        did = self._do_chore(resting)
        # 3. Forward: pick the tokens of this step and run them as one batch.
        batch = self._scheduler.pick(self._works, resting, most_prefill)
        self._speculation.batch = len(batch)
        if not batch:
            return chose or did
        picked_s = time.monotonic()
        try:
            layers = {layer for work, _ in batch for layer in work.layers}
            out = self.model.forward([Chunk(ids, work.cache) for work, ids in batch], layers)
        except Exception as error:
            for work, _ in batch:
                self._fail(work, error)
            return True
        self.counters.steps += 1
        self.counters.batch.add(len(batch))
        self.counters.tokens["prompt"] += sum(len(ids) for _, ids in batch if len(ids) > 1)
        # 4. Postprocess: ask the device where a gate opens, note the rows of the next head call, read examples.
        parts: Counter[str] = Counter()
        for work, ids in batch:
            work.bill.run_to(work.cache.length - len(ids), work.cache.length)
            parts[work.user] += len(ids)
        self._postprocess(batch, out)
        ended_s = time.monotonic()
        self._fair.spend(ended_s - picked_s, parts)
        self.counters.step_s.add(ended_s - started_s)
        if all(len(ids) == 1 for _, ids in batch):
            self._speculation.observe_step(ended_s - started_s)
        return True

    def _shares_of_the_step(self) -> tuple[set[str], int | None]:
        """Which users rest in this step, and how many tokens of prefill it may have if others wait for their devices.

        A step is not interrupted, so while an answer is on its way nobody else's prompt may make it a long one.
        """
        while self._charges:
            user, seconds = self._charges.popleft()
            self._fair.spend(seconds, {user: 1})
        now_s, running, answering = time.monotonic(), set[str](), set[str]()
        for work in self._works:
            if work.pending:
                running.add(work.user)
            elif isinstance(work, Reply) and work.waits_s(now_s) < ABOUT_TO_ANSWER_S and not work.end:
                answering.add(work.user)
        running |= self.reader.scoring_users | {chore.user for chore in self._chores}
        resting = self._fair.resting(running, answering)
        awake, budget = running - resting, self._scheduler.budget
        if not answering - awake or not awake:
            return resting, None
        all_ahead = all(self._fair.is_ahead(user) for user in awake)
        return resting, budget.prefill_ahead_tokens if all_ahead else budget.prefill_beside_decode_tokens

    def _do_chore(self, resting: set[str]) -> bool:
        """One chore, or one head call for a score, of the user who has had the least. False: there is none."""
        chores = [chore for chore in self._chores if chore.user not in resting]
        users = {chore.user for chore in chores} | self.reader.scoring_users - resting
        if not users:
            return False
        user, started_s = min(users, key=self._fair.used), time.monotonic()
        chore = next((chore for chore in chores if chore.user == user), None)
        if chore is not None:
            self._chores.remove(chore)
            chore.run()
        else:
            self.reader.score_rows(user, self._fail)
        self._fair.spend(time.monotonic() - started_s, {user: 1})
        return True

    def _choose(self) -> bool:
        """One head call for all tokens that are due, then choose each of them. False: none was due."""
        answered, self._answered = [reply for reply in self._answered if reply.alive], []
        for reply in answered:
            if not any(row.reply is reply for row in self._rows):
                self._speculate(reply)
        rows = [HeadRow(reply, answer.ask.at, answer.z_1D, answer) for reply in answered for answer in reply.answers]
        rows += (row for row in self._rows if row.reply.alive)  # behind the answers, which come earlier in the text
        self._rows = []
        if not rows:
            return False
        started_s = time.monotonic()
        replies = list({id(row.reply): row.reply for row in rows}.values())
        headless = [row for row in rows if row.token is None]
        try:
            logits = iter(self.model.logits(np.concatenate([row.z_1D for row in headless])) if headless else [])
        except Exception as error:
            for reply in replies:
                self._fail(reply, error)
            return True
        for row in rows:
            logits_V = next(logits) if row.token is None else _NO_LOGITS
            try:
                self._take(row, logits_V)
            except Exception as error:
                self._fail(row.reply, error)
        for reply in replies:
            if reply.alive:
                self._settle(reply)
        self._fair.spend(time.monotonic() - started_s, Counter(row.reply.user for row in rows))
        return True

    def _take(self, row: HeadRow, logits_V: np.ndarray) -> None:
        """Choose a row's token and put it into its reply, unless the row has become void in the meantime."""
        reply = row.reply
        if not reply.alive or row.run != reply.run:
            return
        if not row.answer and (reply.end or row.at != len(reply.ids)):
            return  # the answer for this position is in the same head call: there is nothing left to speculate on
        before = reply.ids if row.at == len(reply.ids) else reply.ids[: row.at]
        if row.token is None:
            logits_V = reply.spec.biased(logits_V, row.biased)
        unmixed_V = logits_V
        if row.answer:
            logits_V = mix(logits_V, row.answer.mixture)
        if row.token is None:
            logits_V = constrain(logits_V, unmixed_V, reply.allowed(row.at))
        token = choose(logits_V, reply.sampling, row.at, before) if row.token is None else row.token
        if reply.top and logits_V.size and not row.speculates_on:
            reply.tops[row.at] = self._alternatives(logits_V, token, reply.top, row.at == reply.prompt_tokens)
        if row.answer:
            reply.confirm(token)
        elif row.speculates_on:
            reply.speculate(row.speculates_on, token)
        else:
            if row.trunks:
                reply.by[row.at] = "trunk"
            reply.extend(token)

    def _postprocess(self, batch: list[tuple[Sequence, list[int]]], out: Forward) -> None:
        """What each work does with the last of its rows, or with all of them."""
        greedy: list[GreedyRow] = []
        row = 0
        for work, ids in batch:
            last = row + len(ids) - 1
            try:
                if isinstance(work, ExampleWork) and work.greedy_tokens:
                    if not work.pending:
                        greedy.append((work, out.z([last]), out.tapped([last], work.layers)))
                elif isinstance(work, ExampleWork):
                    if self.reader.read(work, len(ids), row, out):
                        self.drop(work)
                elif isinstance(work, Reply):
                    self._take_rows(work, row, len(ids), out)
                    if work.cache.length >= work.prompt_tokens:
                        self._predict(work, last, out)
            except Exception as error:
                self._fail(work, error)
            row += len(ids)
        self.drop(*self.reader.write_greedily(greedy, self._fail))

    def _predict(self, reply: Reply, row: int, out: Forward) -> None:
        """The step's `row` predicts the reply's next token: ask the device for it, or let the next head call choose."""
        at = reply.cache.length
        z_1D = out.z([row])
        opens = reply.opens(at, z_1D)
        if at < len(reply.ids):
            return  # the reply is resumed, and its device has the next token already
        if reply.answers_itself(opens):
            codes, scales = reply.spec.encode(out.tapped([row], reply.spec.tap.layers))
            z_1D = reply.spec.corrected(z_1D, codes, scales, opens)
            self._rows.append(HeadRow(reply, at, z_1D, trunks=opens))
        elif opens:
            self._ask(reply, z_1D, out.tapped([row], reply.spec.tap.layers), opens)
        else:
            self._rows.append(HeadRow(reply, at, z_1D))

    def _take_rows(self, reply: Reply, first_row: int, count: int, out: Forward) -> None:
        """Keep the rows of this step for a device that wants the context, and send those of its prompt.

        The last row of the text is not sent with them where it may go with an ASK.
        """
        if reply.rows is None:
            return
        stop = reply.cache.length
        hidden = out.tapped(slice(first_row, first_row + count), reply.spec.tap.layers)
        reply.rows.add(stop - count, hidden)
        if stop <= reply.prompt_tokens or stop < len(reply.ids):
            self._send_rows(reply, min(stop, len(reply.ids) - 1))

    def _send_rows(self, reply: Reply, stop: int) -> None:
        if reply.rows is not None:
            for frame in reply.rows.unsent(reply.turn, reply.run, stop):
                reply.send(frame)

    def _ask(self, reply: Reply, z_1D: np.ndarray, hidden_1KD: np.ndarray, gates: int) -> None:
        """Ask the device for the next token, and speculate behind the question. Bit p of `gates`: part p's is open."""
        codes, scales = reply.spec.encode(hidden_1KD)
        few = codes.size <= correction_predictor.MAX_CODES
        seen = reply.spec.tap.decode(codes, scales).ravel() if few else z_1D[0]
        ask = reply.ask(z_1D, seen, gates, time.monotonic())
        if reply.rows is not None:
            self._send_rows(reply, ask.at - 1)
            reply.rows.mark_sent(ask.at)
        reply.send(reply_frames.ask(reply, ask, codes, scales, gates))
        self._speculate(reply)

    def _speculate(self, reply: Reply) -> None:
        """Add a row for a speculative token behind the last open question, if that is worth its step."""
        ask = reply.blocking_ask
        if ask is None or len(reply.asks) > reply.window:
            return
        if self._speculation.is_worthwhile(reply.stats, ask.drafted is not None, len(reply.asks)):
            z_1D = ask.z_1D + reply.stats.predictor.predict(ask.seen)
            self._rows.append(HeadRow(reply, ask.at, z_1D, speculates_on=ask))

    # What comes of it ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _settle(self, reply: Reply) -> None:
        """Send the tokens that have become settled, and end a reply that is over."""
        parts = reply.settle()
        # The last token is charged too, though it is not run.
        reply.bill.run_to(reply.prompt_tokens + len(reply.done), reply.settled)
        for number, part in enumerate(parts):
            if part.at == reply.prompt_tokens:
                self.counters.first_s.add(time.monotonic() - reply.since_s)
            self.counters.tokens["reply"] += len(part.ids)
            reply.send(reply_frames.tokens(reply, part, last=reply.over and number == len(parts) - 1))
        if reply.over:
            self._finish(reply, reply.end)

    def _finish(self, reply: Reply, why: str) -> None:
        """Send the text that was held back, and DONE; cache the reply's text."""
        rest = reply_frames.rest(reply)
        if rest is not None:
            reply.send(rest)
        reply.send(reply_frames.done(reply, why))
        self.counters.replies[why] += 1
        self.counters.gate.update(vars(reply.counts))
        self.drop(reply, cache=True)

    def _alternatives(self, logits_V: np.ndarray, token: int, count: int, first: bool) -> list[Top]:
        """The chosen token, then the best `count`, each with its text and log-probability at temperature 1."""
        peak = float(logits_V.max())
        lse = peak + float(np.log(np.exp(logits_V - peak).sum()))
        best = np.argpartition(logits_V, -count)[-count:]
        best = best[np.argsort(-logits_V[best], kind="stable")]
        ids: Iterable[int] = (token, *best.tolist())
        text = self.tokenizer.token_text
        return [(text(i, first), max(round(float(logits_V[i]) - lse, 4), LEAST_LOGP)) for i in ids]

    def _fail(self, work: Sequence, error: Exception) -> None:
        """End one work, and its session, because of a fault in it; nobody else's work is touched."""
        self.counters.refused["internal"] += 1
        log.error("a %s failed", type(work).__name__, exc_info=error)
        work.send(error_frame(error))
        self.drop(work)
