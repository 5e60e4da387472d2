"""A reply under way: what is settled, what is speculative, and what the device was asked. No model, no socket.

Run-ahead (optimistic decoding): the cloud does not stop where it asks the device. It goes on with a speculative token
and asks on. An answer that confirms the token settles it. An answer that changes it rolls back everything behind it and
raises the run's number, so that answers to the old run are recognised and ignored. The sampling noise depends on the
position alone, so the text is the same with any window, without one, and whatever tokens were speculated.
D width, V vocabulary. Test: pytest tests/cloud/test_reply.py
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from sideplug.cloud.bill import Bill
from sideplug.cloud.context_rows import ContextRows
from sideplug.cloud.grammar import Guide
from sideplug.cloud.model.base import Cache, NoCache
from sideplug.cloud.model.memory import Reservation
from sideplug.cloud.prefix_cache import Text
from sideplug.cloud.speculation import AcceptanceStats
from sideplug.cloud.tokenizer import TextStream
from sideplug.contract import bias
from sideplug.contract.bias import Bias
from sideplug.contract.capabilities import MIXTURE, CallForm, MixtureSettings, settings_of
from sideplug.contract.correction import (
    Correction,
    Merge,
    Mixture,
    apply_delta,
    check_shapes,
    mixture_of,
    pack_corrections,
    unpacked,
)
from sideplug.contract.errors import ProtocolError
from sideplug.contract.frames import MAX_DRAFT, Frame, Map, Top
from sideplug.contract.frames import Answer as AnswerFrame
from sideplug.contract.gate import Gate
from sideplug.contract.progress import running_hash
from sideplug.contract.sampling import Sampling
from sideplug.contract.tap import ContextSlice, Encoder, Tap

Send = Callable[[Frame], None]
Correct = Callable[[np.ndarray], np.ndarray]  # a row of codes (K, R) → Δ (D,)


@dataclass(frozen=True)
class SessionSpec:
    """What a device set in OPEN: how it is asked, and how its answers are used.

    gates: one for each part of its plugin. merge: see contract/correction. context: what rows without a question carry.
    granted: the settings of the capabilities that it has. encoder: the tap's, which the session holds; None: the tap's
    own, for tests. biases: one for each part, or none at all. trunks: by part, what the cloud corrects by itself.
    """

    tap: Tap
    gates: tuple[Gate, ...]
    merge: Merge = "add"
    context: ContextSlice | None = None
    granted: Mapping[str, Map] = field(default_factory=dict)
    encoder: Encoder | None = None
    biases: tuple[Bias, ...] = ()
    trunks: Mapping[int, Correct] = field(default_factory=dict)

    @property
    def trunk_gates(self) -> int:
        """The gates of the parts that the cloud corrects by itself: bit p is part p's."""
        return sum(1 << part for part in self.trunks)

    def corrected(self, z_1D: np.ndarray, codes: np.ndarray, scales: np.ndarray, gates: int) -> np.ndarray:
        """z (1, D) by the trunks of the open gates, from the codes (1, K, R): as their device would answer."""
        code_KR, int8 = self.tap.decode(codes, scales)[0], self.tap.codec == "int8"
        deltas = [correct(code_KR) for part, correct in sorted(self.trunks.items()) if gates >> part & 1]
        packed = pack_corrections([Correction(sum(deltas[1:], deltas[0]))], z_1D.shape[1], int8)
        return unpacked(z_1D, packed["delta"], packed["scales"], self.merge)

    def biased(self, logits_V: np.ndarray, gates: int) -> np.ndarray:
        """Logits (V,) with the biases of the parts whose gates are open: bit p is part p's."""
        return bias.add(self.biases, gates, logits_V)

    def encode(self, hidden_TKD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tapped states (T, K, D) → codes (T, K, R) and scales (T, K)."""
        return (self.encoder or self.tap).encode(hidden_TKD)

    @property
    def max_pairs(self) -> int:
        """Pairs that a mixture may have at most; 0: answers may not bring mixtures."""
        settings = settings_of(self.granted, MIXTURE, MixtureSettings)
        return settings.pairs if settings else 0


@dataclass(eq=False, kw_only=True)
class Sequence:
    """Token ids of which the first `cache.length` are in the cache, and `send` for the frames that it gives rise to.

    user: whom it belongs to, for fair shares of a step. scope: whose cached texts it may begin with. bill: what its
    tokens are charged to. claim: memory that it holds beside its cache.
    """

    ids: list[int]
    send: Send
    bill: Bill = field(default_factory=Bill)
    claim: Reservation | None = None
    cache: Cache = field(default_factory=NoCache)
    user: str = ""
    scope: str = ""
    alive: bool = True  # False once the engine has dropped it
    since_s: float = field(default_factory=time.monotonic)  # when it was requested

    @property
    def pending(self) -> int:
        """The number of tokens that may be run now."""
        return len(self.ids) - self.cache.length

    @property
    def max_length(self) -> int:
        """The number of tokens that it may have at its end."""
        return len(self.ids)

    @property
    def held_bytes(self) -> int:
        """The bytes that it makes the cloud hold beside its keys and values."""
        return 0

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that may be tapped while it runs."""
        return ()

    def next_ids(self, count: int) -> list[int]:
        """The next `count` ids to run."""
        return self.ids[self.cache.length : self.cache.length + count]


@dataclass
class Ask:
    """A question to the device: which token stands at position `at`, which z (1, D) predicts?"""

    at: int
    z_1D: np.ndarray
    seen: np.ndarray  # what the device sees of z, as a vector: the input of the correction predictor
    gates: int  # bit p: part p's gate is open
    asked_s: float  # monotonic clock
    drafted: int | None = None  # the token of the device's draft for this position, if there is one
    predicted: int | None = None  # the cloud's own choice for it, with the predicted correction
    speculated: int | None = None  # the token that the text went on with: `drafted` or `predicted`


@dataclass
class Answer:
    """z (1, D) as the device corrected it ("plugin"), or unchanged where its deadline had passed ("fallback")."""

    ask: Ask
    z_1D: np.ndarray
    by: str
    draft: list[int]  # ids that the device expects from this position on
    mixture: Mixture | None = None
    token: int | None = None  # the device's choice, where the device has the head


@dataclass
class Part:
    """Settled tokens from position `at` on that were all chosen by the same party, with their alternatives."""

    at: int
    ids: list[int]
    by: str
    tops: list[list[Top]]


@dataclass
class Counts:
    """What a reply took; DONE carries it."""

    asked: int = 0  # questions to the device
    round_trips: int = 0  # times that the text had to wait for the device: a plain ask, a rollback, the end
    speculated: int = 0  # tokens that the text went on with before their answer came
    confirmed: int = 0  # speculated tokens that the answer confirmed
    rolled_back: int = 0  # answers that changed a speculated token
    wasted: int = 0  # tokens that were run and are not in the text
    drafted: int = 0  # speculated tokens that came from the device's drafts
    accepted: int = 0  # drafted tokens that were confirmed
    fallback: int = 0  # tokens of the base because the device was late
    trunk: int = 0  # tokens that the cloud corrected by a trunk


@dataclass(eq=False, kw_only=True)
class Reply(Sequence):
    """A reply under way. `ids` is the prompt, then the settled tokens (before `settled`), then the speculative ones.

    window: questions that may be open while the text goes on; 0 waits for each answer. done: ids of this reply that the
    device has from before its connection broke; they are run again one by one, as they were, unless they are cached.
    """

    turn: int
    spec: SessionSpec
    text: TextStream
    sampling: Sampling
    max_tokens: int
    context: int  # positions that the model has
    stop_ids: Collection[int]
    window: int = 0
    deadline_s: float = 0.0  # seconds that the device has for an answer; 0: no deadline
    head: str = "cloud"  # or "device": z is sent along, and the device answers with token ids
    top: int = 0  # alternatives to report for each token
    stats: AcceptanceStats = field(default_factory=AcceptanceStats)
    done: list[int] = field(default_factory=list)
    gates: tuple[Gate, ...] = ()  # of this reply, one for each part
    rows: ContextRows | None = None  # where the device wants the rows that it is not asked about
    first_draft: list[int] = field(default_factory=list)  # ids that the device expects the reply to begin with
    quote: list[int] = field(default_factory=list)  # ids that the reply begins with, whatever the base would say
    guide: Guide | None = None  # of the grammar that the reply must have
    calls: CallForm | None = None  # how the base writes calls, where the prompt brings tools
    waits_for: tuple[Reply, int] | None = None  # a reply whose prompt begins alike, and how many tokens they share
    held_since_s: float = 0.0  # since when the device does not read, so that no more is run; 0: it reads
    prompt_tokens: int = field(init=False)
    prompt_hash: str = field(init=False)  # computed here, outside the engine's thread, so that no step waits for it
    settled: int = field(init=False)
    sent: int = field(init=False)  # ids before this position were sent with an ASK of this run
    end: str = ""  # "stop" or "length", when the text (with its speculative tokens) has ended
    run: int = 0  # rollbacks so far
    asks: deque[Ask] = field(default_factory=deque)  # open questions
    answers: deque[Answer] = field(default_factory=deque)  # answers whose token is not chosen yet
    late: set[int] = field(default_factory=set)  # positions of this run that fell back: their answers are ignored
    by: dict[int, str] = field(default_factory=dict)  # position → who chose the token, where not the cloud alone
    tops: dict[int, list[Top]] = field(default_factory=dict)  # position → the chosen token, then its alternatives
    scores: dict[int, tuple[float, ...]] = field(default_factory=dict)  # position → each gate's score
    draft: dict[int, int] = field(default_factory=dict)  # position → token that the device expects
    counts: Counts = field(default_factory=Counts)
    _array: tuple[int, int, np.ndarray] | None = None  # run, length and ids when `ids_array` was last asked for

    def __post_init__(self) -> None:
        self.prompt_tokens = self.sent = len(self.ids)
        self.prompt_hash = running_hash(self.ids)
        self.ids += self.done
        self.settled = len(self.ids)
        self._check_length()
        self.gates = self.gates or self.spec.gates
        if not self.done:
            self.draft = dict(enumerate(self.first_draft, self.prompt_tokens))
        self.text.push(self.done, last=bool(self.end))
        for token in self.quote[len(self.done) :]:
            if self.end:
                break
            self.by[len(self.ids)] = "plugin"
            self.extend(token)
        if self.head == "device" and self.sampling.repetition_penalty != 1:
            self.sent = 0  # the device needs the prompt too: the penalty looks at all ids

    @property
    def ids_array(self) -> np.ndarray:
        """Its ids as an array, (T,) int32, made anew only when they have changed."""
        if self._array is None or self._array[:2] != (self.run, len(self.ids)):
            self._array = self.run, len(self.ids), np.asarray(self.ids, np.int32)
        return self._array[2]

    @property
    def layers(self) -> tuple[int, ...]:
        """The tap's layers, or none if no gate ever opens and no context is wanted."""
        shut = self.rows is None and all(gate.kind == "shut" for gate in self.gates)
        return () if shut else self.spec.tap.layers

    @property
    def gate_id(self) -> bytes:
        """Bytes that identify the gates: scores of one gate must not be continued with another."""
        return b"".join(repr(gate.to_wire()).encode() + gate.weight_D.tobytes() for gate in self.gates)

    @property
    def pending(self) -> int:
        """Tokens that may be run now: the prompt's in one go, the reply's (and those of `done`) one by one.

        0 while the text waits for an answer, is held, or has ended.
        """
        if self.end or self.held:
            return 0
        prompt = self.prompt_tokens - self.cache.length
        return prompt if prompt > 0 else min(1, len(self.ids) - self.cache.length)

    @property
    def held(self) -> bool:
        """Whether no more is run because the device does not read what it is sent."""
        return bool(self.held_since_s)

    @property
    def max_length(self) -> int:
        """The number of tokens that prompt and reply may have at the end."""
        return min(self.prompt_tokens + self.max_tokens, self.context)

    @property
    def held_bytes(self) -> int:
        """The bytes of the context rows of its whole text, where its device wants them."""
        return 0 if self.rows is None else (self.max_length - self.rows.start) * self.rows.bytes_per_row

    def waits_s(self, now_s: float) -> float:
        """For how many seconds it has waited for its device: for an answer that has no deadline, or for its reading."""
        asked_s = self.asks[0].asked_s if self.asks and not self.deadline_s else now_s
        return max(now_s - asked_s, now_s - self.held_since_s if self.held else 0.0)

    @property
    def cacheable(self) -> Text:
        """The part of the text that the prefix cache may hold: settled, and run."""
        ids = self.ids[: min(self.settled, self.cache.length)]
        scores = {at: score for at, score in self.scores.items() if at <= len(ids)}
        rows = self.rows.copy(len(ids)) if self.rows is not None else None
        return Text(self.scope, np.asarray(ids), min(self.prompt_tokens, len(ids)), self.gate_id, scores, rows)

    @property
    def reply_tokens(self) -> int:
        """Settled tokens of the reply."""
        return self.settled - self.prompt_tokens

    @property
    def blocking_ask(self) -> Ask | None:
        """The last open question, if the text stops behind it (no token was speculated there)."""
        return self.asks[-1] if self.asks and self.asks[-1].at == len(self.ids) and not self.end else None

    @property
    def over(self) -> bool:
        """Whether the text has ended and no question about it is open."""
        return bool(self.end) and not self.asks and not self.answers

    def begin(self, cache: Cache, cached: Text | None, length: int) -> None:
        """Take a cache into which the first `length` tokens of a `cached` text (or of none) have been copied."""
        self.cache = cache
        if cached and length >= self.prompt_tokens:
            self.scores = {at: score for at, score in cached.scores.items() if at <= length}
        if self.rows is not None:
            self.rows.take(cached.rows if cached else None, length)

    def opens(self, at: int, z_1D: np.ndarray) -> int:
        """Which gates open for position `at`, which z (1, D) predicts: bit p is part p's. Notes the gates' scores."""
        before = self.scores.get(at - 1)
        scores = tuple(gate.score(z_1D[0], before[part] if before else None) for part, gate in enumerate(self.gates))
        self.scores[at] = scores
        return sum(
            bool(gate.opens(score)) << part for part, (gate, score) in enumerate(zip(self.gates, scores, strict=True))
        )

    def answers_itself(self, gates: int) -> bool:
        """Whether all of these gates, bit p part p's, are of trunks that the cloud has, so that no question is due."""
        trunks = self.spec.trunk_gates if self.head == "cloud" and self.rows is None else 0
        return bool(gates) and not gates & ~trunks

    def ask(self, z_1D: np.ndarray, seen: np.ndarray, gates: int, now_s: float) -> Ask:
        """Open a question about the next position. `seen`: what the device sees of z, as a vector."""
        ask = Ask(len(self.ids), z_1D, seen, gates, now_s, drafted=self.draft.get(len(self.ids)))
        self.asks.append(ask)
        self.counts.asked += 1
        return ask

    def unsent(self) -> tuple[int, list[int]]:
        """(position, ids) of the text that the device has not been sent in this run; from now on it counts as sent."""
        start, self.sent = self.sent, len(self.ids)
        return start, self.ids[start:]

    def allowed(self, at: int) -> np.ndarray | None:
        """Which tokens (V,) bool its grammar allows at position `at`; None: it has none, or all. Raises InputError."""
        return None if self.guide is None else self.guide.allowed(self.ids[self.prompt_tokens : at])

    def speculate(self, ask: Ask, predicted: int) -> None:
        """Go on before the answer: with the device's draft if drafts have proven the better choice, or `predicted`."""
        ask.predicted = token = predicted
        if ask.drafted is not None and self.stats.draft_accuracy >= self.stats.prediction_accuracy_at_drafts:
            token = ask.drafted
            self.counts.drafted += 1
        ask.speculated = token
        self.counts.speculated += 1
        self.extend(token)

    def extend(self, token: int) -> None:
        """Append the next token, settled or speculative; a stop id or the last possible position ends the text."""
        at = len(self.ids)
        if self.draft.get(at, token) != token:
            self.draft = {}  # the text has left the draft
        if token in self.stop_ids:
            self.end = "stop"
            return
        self.ids.append(token)
        self._check_length()

    def _check_length(self) -> None:
        if len(self.ids) - self.prompt_tokens >= self.max_tokens or len(self.ids) >= self.context:
            self.end = "length"

    def receive(self, frame: AnswerFrame, vocab: int, now_s: float) -> list[float]:
        """Take an ANSWER: the seconds that each of its positions took. Raises ProtocolError, and then changes nothing.

        An answer to a run that was rolled back is ignored; so are positions that fell back to the base already.
        """
        rows = check_answer(self, frame, vocab)
        if rows is None:
            return []
        self.late.difference_update(frame.at)
        took = []
        for number, row in enumerate(rows.indices):
            ask = self.asks.popleft()
            took.append(now_s - ask.asked_s)
            self.stats.observe("answer_s", now_s - ask.asked_s)
            draft = [token for token in frame.draft[row].tolist() if token >= 0]
            if frame.ids is not None:
                self.answers.append(Answer(ask, ask.z_1D, "plugin", draft, token=int(frame.ids[row])))
                continue
            z_1D = rows.corrected_TD[number : number + 1]
            if frame.delta is not None:
                self.stats.predictor.observe(ask.seen, z_1D[0] - ask.z_1D[0])
            self.answers.append(Answer(ask, z_1D, "plugin", draft, mixture_of(frame, row)))
        return took

    def expire(self, run: int, at: int) -> bool:
        """The deadline of a question has passed: use the base's token if it is still open, and then return True."""
        if not self.alive or run != self.run or not self.asks or self.asks[0].at != at:
            return False
        ask = self.asks.popleft()
        self.late.add(at)
        self.answers.append(Answer(ask, ask.z_1D, "fallback", []))
        return True

    def confirm(self, token: int) -> None:
        """Settle the first answered position with `token`: its speculative token stands, or is rolled back."""
        answer = self.answers.popleft()
        ask = answer.ask
        accepted = ask.drafted == token and answer.by == "plugin" and ask.speculated == token
        self.by[ask.at] = "draft" if accepted else answer.by
        self.counts.fallback += answer.by == "fallback"
        if ask.predicted is not None and answer.by == "plugin":
            self.stats.observe("prediction_accuracy", ask.predicted == token)
            if ask.drafted is not None:
                self.stats.observe("draft_accuracy", ask.drafted == token)
                self.stats.observe("prediction_accuracy_at_drafts", ask.predicted == token)
        speculated = self.ids[ask.at] if len(self.ids) > ask.at else None
        stopped = speculated is None and self.end == "stop"  # the speculative token was a stop id
        if speculated == token or (stopped and token in self.stop_ids):
            self.counts.confirmed += 1
            self.counts.accepted += accepted
            self.counts.round_trips += bool(self.end) and not self.asks and not self.answers
        else:
            self.counts.round_trips += 1
            if speculated is not None or stopped:
                self._roll_back(ask.at)
            self.extend(token)
        if answer.draft[:1] == [token] and self.ids[ask.at :] == answer.draft[: len(self.ids) - ask.at]:
            self.draft = dict(enumerate(answer.draft, ask.at))

    def _roll_back(self, at: int) -> None:
        """Remove everything from position `at` on, and begin a new run."""
        self.counts.rolled_back += 1
        self.counts.wasted += max(0, self.cache.length - at)
        del self.ids[at:]
        self.scores = {position: score for position, score in self.scores.items() if position <= at}
        self.by = {position: by for position, by in self.by.items() if position <= at}
        self.cache.trim(at)
        if self.rows is not None:
            self.rows.trim(at)
        self.sent = min(self.sent, at)
        self.end = ""
        self.run += 1
        self.asks.clear()
        self.answers.clear()
        self.late.clear()
        self.draft = {}

    def settle(self) -> list[Part]:
        """The tokens that have become settled since the last call, in order."""
        unsettled = self.answers[0].ask if self.answers else self.asks[0] if self.asks else None
        end = unsettled.at if unsettled else len(self.ids)
        parts: list[Part] = []
        for at in range(self.settled, end):
            by = self.by.pop(at, "cloud")
            self.counts.trunk += by == "trunk"
            if not parts or parts[-1].by != by:
                parts.append(Part(at, [], by, []))
            parts[-1].ids.append(self.ids[at])
            parts[-1].tops.append(self.tops.pop(at, []))
        self.settled = max(self.settled, end)
        return parts


@dataclass(frozen=True)
class AnsweredRows:
    """The rows of an ANSWER that answer the first open questions, and z (T, D) as they correct it."""

    indices: list[int]
    corrected_TD: np.ndarray


def check_answer(reply: Reply, frame: AnswerFrame, vocab: int) -> AnsweredRows | None:
    """What an ANSWER says about the reply's open questions; None if it is for a run that was rolled back.

    It changes nothing. Raises ProtocolError when tensors, positions, turn or run are not what was asked for.
    """
    turn, run, at, draft, ids = frame.turn, frame.run, frame.at, frame.draft, frame.ids
    if turn == reply.turn and run < reply.run:
        return None  # it was on its way when its run was rolled back
    device_picks = reply.head == "device"
    if device_picks != (ids is not None) or (device_picks and (frame.delta is not None or frame.mix is not None)):
        brings = "ids" if device_picks else "corrections"
        raise ProtocolError(f"an answer with the head in the {reply.head} must have {brings} and draft only")
    if not (len(draft) == len(at) and draft.shape[1] <= MAX_DRAFT and draft.dtype == np.int32):
        raise ProtocolError(f"an answer must have a draft of at most {MAX_DRAFT} ids a position")
    if draft.size and not -1 <= draft.min() <= draft.max() < vocab:
        raise ProtocolError(f"a draft's ids must be below {vocab}, and -1 behind its end")
    if ids is not None and (
        ids.dtype != np.int32 or len(ids) != len(at) or (len(ids) and not 0 <= ids.min() <= ids.max() < vocab)
    ):
        raise ProtocolError(f"an answer's ids must be int32, 0 to {vocab - 1}, one a position")
    width = reply.asks[0].z_1D.shape[1] if reply.asks else 0
    if width and ids is None:
        check_shapes(frame, len(at), width, vocab, reply.spec.max_pairs)
    rows = [row for row, position in enumerate(at) if position not in reply.late]
    asks = [reply.asks[number] for number in range(min(len(rows), len(reply.asks)))]
    expected = [ask.at for ask in asks]
    if turn != reply.turn or run != reply.run or [at[row] for row in rows] != expected:
        raise ProtocolError(
            f"an answer must be for turn {reply.turn}, run {reply.run}, positions {expected}…, each asked once; got "
            f"turn {turn}, run {run}, positions {str(at)[:60]}"
        )
    if not rows:
        return AnsweredRows(rows, np.zeros((0, 0), np.float32))
    z_TD = np.concatenate([ask.z_1D for ask in asks])
    return AnsweredRows(rows, apply_delta(z_TD, frame, reply.spec.merge, rows))
