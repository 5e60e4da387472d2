"""A reply in the making: what is settled, what is only guessed, and what the device was asked. No model, no socket.

Run-ahead (optimistic decoding): the cloud does not stop at an ask. It goes on with a guess, and asks on. An answer that
confirms the guess settles it; one that changes the token takes everything behind it back, and the run's number goes
up, so that an answer to what is gone is known for what it is. All noise is of a position, so the text is the same
with any window, with none, and whatever was guessed. Test: pytest tests/cloud/test_reply.py
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import numpy as np

from sideplug.cloud.correction_predictor import CorrectionPredictor
from sideplug.cloud.model.base import Cache, NoCache
from sideplug.cloud.prefix_cache import Text
from sideplug.cloud.tokenizer import TextStream
from sideplug.contract.codec import unpack
from sideplug.contract.errors import InputError, ProtocolError
from sideplug.contract.gate import Gate
from sideplug.contract.progress import running_hash
from sideplug.contract.sampling import Sampling
from sideplug.contract.tap import Tap
from sideplug.contract.wire import MAX_DRAFT, Frame

MAX_CORRECTED = 1e6  # of any number in a corrected z: far past every model's, far below what overflows in the head
RECENT = 0.05  # weight of the newest observation in a running mean
Send = Callable[[Frame], None]
Top = list[str | float]  # a token's text and its log-probability


@dataclass(frozen=True)
class SessionSpec:
    """What a device said in OPEN: how its plugin is asked and how its answer is used ("add" to z, or "replace" it)."""

    tap: Tap
    gate: Gate
    merge: str = "add"

    def __post_init__(self) -> None:
        if self.merge not in ("add", "replace"):
            raise InputError(f"merge must be add or replace, got {self.merge!r}")

    @property
    def mark(self) -> bytes:
        """Of the gate, whose scores another gate could not go on from."""
        return repr(self.gate.to_wire()).encode() + self.gate.weight_D.tobytes()

    def correct(self, z_TD: np.ndarray, codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
        """z after the device's answer. Raises ProtocolError for an answer of another size or with no finite numbers."""
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
    """Token ids, of which the cache has the first `cache.length`.

    user: who it is for, that nobody has all of a step. scope: whose texts it may share its beginning with.
    """

    ids: list[int]
    send: Send
    cache: Cache = field(default_factory=NoCache, kw_only=True)
    user: str = field(default="", kw_only=True)
    scope: str = field(default="", kw_only=True)
    alive: bool = field(default=True, kw_only=True)
    since_s: float = field(default_factory=time.monotonic, kw_only=True)

    @property
    def pending(self) -> int:
        """Tokens that may be run now."""
        return len(self.ids) - self.cache.length

    @property
    def longest(self) -> int:
        """Tokens that it may come to."""
        return len(self.ids)

    @property
    def layers(self) -> tuple[int, ...]:
        """Those that may be tapped."""
        return ()

    def next_ids(self, count: int) -> list[int]:
        return self.ids[self.cache.length : self.cache.length + count]


@dataclass
class Ask:
    """The device is asked about the token at position `at`, which z (1, D) predicts."""

    at: int
    z_1D: np.ndarray
    seen: np.ndarray  # what the device sees of it, as numbers
    asked_s: float  # when, on a monotonic clock
    own: int | None = None  # what the cloud itself would go on with …
    guess: int | None = None  # … and what it went on with
    drafted: int | None = None  # what the device's draft says there


@dataclass
class Answer:
    """z (1, D) as the device corrected it, or after its deadline as it was."""

    ask: Ask
    z_1D: np.ndarray
    by: str  # "plugin" or "fallback"
    draft: list[int]
    token: int | None = None  # where the device has picked it itself


@dataclass
class Part:
    """Tokens that have become final: from position `at` on, all chosen by the same, with their alternatives."""

    at: int
    ids: list[int]
    by: str
    tops: list[list[Top]]


@dataclass
class Counts:
    """What a reply took, for DONE."""

    asked: int = 0
    round_trips: int = 0  # times that the text waited for the device: a plain ask, a guess taken back, the end
    guessed: int = 0  # tokens that were gone on with before their answer came
    confirmed: int = 0  # of these: the answer said the same
    taken_back: int = 0  # answers that changed a guess
    thrown_away: int = 0  # tokens that were run and are not in the text
    drafted: int = 0  # guesses that came from the device's drafts
    accepted: int = 0  # of these: confirmed
    fallback: int = 0  # tokens of the base, because the device was late


@dataclass
class AcceptanceStats:
    """What a session's replies have shown so far, for the window. All are running means."""

    own_agrees: float = 0.7  # how often the cloud's own guess is confirmed …
    draft_agrees: float = 0.7  # … and the device's draft, where there is one
    own_agrees_at_drafts: float = 0.7
    answer_s: float = 0.1  # from an ask to its answer
    foresight: CorrectionPredictor = field(default_factory=CorrectionPredictor)

    def observe(self, name: str, value: float) -> None:
        setattr(self, name, (1 - RECENT) * getattr(self, name) + RECENT * value)


@dataclass(eq=False)
class Reply(Sequence):
    """`ids` is the prompt, then what was settled (before `settled`), then what is guessed.

    `ahead`: asks that may be open while the cloud goes on; 0 waits for each answer. `done`: ids of the reply that the
    device has from before it was cut off; they are run again one by one, as they were, unless their keys were kept.
    """

    turn: int
    plug: SessionSpec
    text: TextStream
    sampling: Sampling
    max_tokens: int
    context: int  # positions that the model has
    stop_ids: Collection[int]
    ahead: int = 0
    head: str = "cloud"  # or "device": z goes down too, and the device answers with tokens
    top: int = 0  # alternatives that the device wants to be told of each token
    habits: AcceptanceStats = field(default_factory=AcceptanceStats)
    done: list[int] = field(default_factory=list)
    behind: tuple[Reply, int] | None = None  # whose prompt it waits for, and how many tokens of it
    held: bool = False  # the device does not read what it was sent
    prompt_tokens: int = field(init=False)
    prompt_hash: str = field(init=False)  # found where the reply is made, so that no step waits for it
    settled: int = field(init=False)
    told: int = field(init=False)  # ids before this were sent with an ask of this run
    end: str = ""  # "stop" or "length", when the text (so far as it is guessed) is over
    run: int = 0
    asks: deque[Ask] = field(default_factory=deque)
    answers: deque[Answer] = field(default_factory=deque)  # not yet through the head
    late: set[int] = field(default_factory=set)  # positions of this run that fell back: their answers are dropped
    by: dict[int, str] = field(default_factory=dict)  # who chose, where it was not the cloud alone
    tops: dict[int, list[Top]] = field(default_factory=dict)  # position → the chosen token, then its alternatives
    scores: dict[int, float] = field(default_factory=dict)  # position → the gate's score
    draft: dict[int, int] = field(default_factory=dict)  # position → token that the device expects
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        self.prompt_tokens = self.told = len(self.ids)
        self.prompt_hash = running_hash(self.ids)
        self.ids += self.done
        self.settled = len(self.ids)
        self._look_for_the_end()
        self.text.push(self.done, last=bool(self.end))
        if self.head == "device" and self.sampling.repetition_penalty != 1:
            self.told = 0  # it picks with the prompt in view

    @property
    def layers(self) -> tuple[int, ...]:
        return () if self.plug.gate.kind == "shut" else self.plug.tap.layers

    @property
    def pending(self) -> int:
        """0 while an answer is waited for, and at the end. A reply's tokens are run one by one, those of `done` too."""
        if self.end or self.held:
            return 0
        prompt = self.prompt_tokens - self.cache.length
        return prompt if prompt > 0 else min(1, len(self.ids) - self.cache.length)

    @property
    def longest(self) -> int:
        return min(self.prompt_tokens + self.max_tokens, self.context)

    @property
    def kept(self) -> Text:
        """What of it may be kept: the text so far as it is settled and run."""
        ids = self.ids[: min(self.settled, self.cache.length)]
        scores = {at: score for at, score in self.scores.items() if at <= len(ids)}
        return Text(self.scope, np.asarray(ids), min(self.prompt_tokens, len(ids)), self.plug.mark, scores)

    @property
    def reply_tokens(self) -> int:
        return self.settled - self.prompt_tokens

    @property
    def unguessed(self) -> Ask | None:
        """The last ask, where the text waits behind it."""
        return self.asks[-1] if self.asks and self.asks[-1].at == len(self.ids) and not self.end else None

    def begin(self, cache: Cache, kept: Text | None, length: int) -> None:
        """It has memory now, and perhaps `length` tokens of a kept text in it."""
        self.cache = cache
        if kept and length >= self.prompt_tokens:
            self.scores = {at: score for at, score in kept.scores.items() if at <= length}

    def opens(self, at: int, z_1D: np.ndarray) -> bool:
        """Whether the gate opens for position `at`, which z predicts."""
        self.scores[at] = self.plug.gate.score(z_1D[0], self.scores.get(at - 1))
        return bool(self.plug.gate.opens(self.scores[at]))

    def ask(self, z_1D: np.ndarray, seen: np.ndarray, now_s: float) -> Ask:
        """The gate is open for the next position."""
        ask = Ask(len(self.ids), z_1D, seen, now_s, drafted=self.draft.get(len(self.ids)))
        self.asks.append(ask)
        self.counts.asked += 1
        return ask

    def untold(self) -> tuple[int, list[int]]:
        """(position, ids): the text from what the device last heard of it to now."""
        start, self.told = self.told, len(self.ids)
        return start, self.ids[start:]

    def guess(self, ask: Ask, own: int) -> None:
        """Go on before the answer: as the device's draft says where it has proven the better guess, else with `own`."""
        ask.own = token = own
        if ask.drafted is not None and self.habits.draft_agrees >= self.habits.own_agrees_at_drafts:
            token = ask.drafted
            self.counts.drafted += 1
        ask.guess = token
        self.counts.guessed += 1
        self.extend(token)

    def extend(self, token: int) -> None:
        """The next token, settled or guessed."""
        at = len(self.ids)
        if self.draft.get(at, token) != token:
            self.draft = {}  # the text has gone another way
        if token in self.stop_ids:
            self.end = "stop"
            return
        self.ids.append(token)
        self._look_for_the_end()

    def _look_for_the_end(self) -> None:
        if len(self.ids) - self.prompt_tokens >= self.max_tokens or len(self.ids) >= self.context:
            self.end = "length"

    def hear(self, frame: Frame, vocab: int, now_s: float) -> list[float]:
        """An ANSWER has come: the seconds that each of it took. Raises ProtocolError when it answers something else."""
        turn, run, at, t = frame["turn"], frame["run"], frame["at"], frame.tensors
        if turn == self.turn and 0 <= run < self.run:
            return []  # it was on its way when its run was taken back
        picks = self.head == "device"
        said, draft = ("ids",) if picks else ("delta", "scales"), t["draft"]
        if set(t) != {*said, "draft"}:
            raise ProtocolError(f"an answer with the head in the {self.head} must have {', '.join(said)} and draft")
        if not all(type(position) is int for position in at):
            raise ProtocolError("an answer's positions must be whole numbers")
        if not (len(t[said[0]]) == len(at) == len(draft) and draft.shape[1] <= MAX_DRAFT and draft.dtype == np.int32):
            raise ProtocolError(
                f"an answer must have a {'token' if picks else 'correction'} and a draft of at most {MAX_DRAFT} ids a "
                "position"
            )
        if draft.size and not -1 <= draft.min() <= draft.max() < vocab:
            raise ProtocolError(f"a draft's ids must be below {vocab}, and -1 behind its end")
        if picks and at and not (t["ids"].dtype == np.int32 and 0 <= t["ids"].min() <= t["ids"].max() < vocab):
            raise ProtocolError(f"an answer's ids must be int32, 0 to {vocab - 1}")
        keep = [i for i, position in enumerate(at) if position not in self.late]
        asked = [self.asks[i].at for i in range(min(len(keep), len(self.asks)))]
        if turn != self.turn or run != self.run or [at[i] for i in keep] != asked:
            raise ProtocolError(
                f"an answer must be for turn {self.turn}, run {self.run}, positions {asked}…, each asked once; got "
                f"turn {turn}, run {run}, positions {str(at)[:60]}"
            )
        self.late.difference_update(at)
        corrected = None if picks or not keep else self._corrected(t["delta"], t["scales"], keep)
        took = []
        for row, i in enumerate(keep):
            ask = self.asks.popleft()
            took.append(now_s - ask.asked_s)
            self.habits.observe("answer_s", now_s - ask.asked_s)
            expected = [token for token in draft[i].tolist() if token >= 0]
            if corrected is None:
                self.answers.append(Answer(ask, ask.z_1D, "plugin", expected, int(t["ids"][i])))
            else:
                self.habits.foresight.observe(ask.seen, corrected[row] - ask.z_1D[0])
                self.answers.append(Answer(ask, corrected[row : row + 1], "plugin", expected))
        return took

    def _corrected(self, delta: np.ndarray, scales: np.ndarray, keep: list[int]) -> np.ndarray:
        """z (T, D) of the first open asks, corrected by these rows of an answer."""
        z_TD = np.concatenate([self.asks[i].z_1D for i in range(len(keep))])
        if delta.dtype == np.int8 and len(scales) == len(delta):
            scales = scales[keep]
        return self.plug.correct(z_TD, delta[keep], scales)

    def expire(self, run: int, at: int) -> bool:
        """The deadline of an ask has passed. True: nobody has answered it, and the base's token is used."""
        if not self.alive or run != self.run or not self.asks or self.asks[0].at != at:
            return False
        ask = self.asks.popleft()
        self.late.add(at)
        self.answers.append(Answer(ask, ask.z_1D, "fallback", []))
        return True

    def confirm(self, token: int) -> None:
        """What the first answer makes of its position: the guess stands, or all behind it is taken back."""
        answer = self.answers.popleft()
        ask = answer.ask
        drafted = ask.drafted == token and answer.by == "plugin" and ask.guess == token
        self.by[ask.at] = "draft" if drafted else answer.by
        self.counts.fallback += answer.by == "fallback"
        if ask.own is not None and answer.by == "plugin":
            self.habits.observe("own_agrees", ask.own == token)
            if ask.drafted is not None:
                self.habits.observe("draft_agrees", ask.drafted == token)
                self.habits.observe("own_agrees_at_drafts", ask.own == token)
        guessed = self.ids[ask.at] if len(self.ids) > ask.at else None
        ended = guessed is None and self.end == "stop"  # the guess was to end here
        if guessed == token or (ended and token in self.stop_ids):
            self.counts.confirmed += 1
            self.counts.accepted += drafted
            self.counts.round_trips += bool(self.end) and not self.asks and not self.answers
        else:
            self.counts.round_trips += 1
            if guessed is not None or ended:
                self._take_back(ask.at)
            self.extend(token)
        if answer.draft[:1] == [token] and self.ids[ask.at :] == answer.draft[: len(self.ids) - ask.at]:
            self.draft = dict(enumerate(answer.draft, ask.at))

    def _take_back(self, at: int) -> None:
        self.counts.taken_back += 1
        self.counts.thrown_away += max(0, self.cache.length - at)
        del self.ids[at:]
        self.scores = {position: score for position, score in self.scores.items() if position <= at}
        self.by = {position: by for position, by in self.by.items() if position <= at}
        self.cache.trim(at)
        self.told = min(self.told, at)
        self.end = ""
        self.run += 1
        self.asks.clear()
        self.answers.clear()
        self.late.clear()
        self.draft = {}

    def settle(self) -> list[Part]:
        """What has become final since, in order."""
        end = self.asks[0].at if self.asks else len(self.ids)
        parts: list[Part] = []
        for at in range(self.settled, end):
            by = self.by.pop(at, "cloud")
            if not parts or parts[-1].by != by:
                parts.append(Part(at, [], by, []))
            parts[-1].ids.append(self.ids[at])
            parts[-1].tops.append(self.tops.pop(at, []))
        self.settled = max(self.settled, end)
        return parts

    @property
    def over(self) -> bool:
        return bool(self.end) and not self.asks and not self.answers
