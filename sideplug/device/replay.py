"""Does a transcript hold what this plugin sends, and nothing else? Every message that went up is made again.

The replay hears what the cloud said, in its order, and lets the plugin answer as device/reply does. What went up must
be that, bit by bit: OPEN from the plugin, PROMPT's gates, drafts and ids of a resumed reply, each ANSWER from its ASKs,
each SCORE from its EXAMPLE, numbers and form of all messages. What a person or an app chose (words, a seed) can't
be made again: it is listed. It does not know files or how a report looks. Test: pytest tests/device/test_replay.py
"""

from __future__ import annotations

import re
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np

from sideplug.contract.capabilities import GRAMMAR, QUOTE, TOOLS
from sideplug.contract.errors import InputError, ProtocolError
from sideplug.contract.frames import (
    Answer,
    Ask,
    Begun,
    Cancel,
    Context,
    Done,
    Error,
    Example,
    Frame,
    GateSpec,
    Open,
    Opened,
    PromptFrame,
    Read,
    Rows,
    Score,
    Tokens,
    tensors_of,
)
from sideplug.contract.gate import pack_gates
from sideplug.contract.progress import running_hash
from sideplug.contract.sampling import Sampling
from sideplug.contract.text import Prompt
from sideplug.contract.wire import HEADER, encode
from sideplug.device.reply import answer_to, quoted
from sideplug.device.responders import Answering, Opening, PluginAnswering, PluginResponder, ReplyOptions, Silent
from sideplug.plugins import Plugin

CLIENT = re.compile(r"sideplug/\d{1,3}(\.\d{1,3}){1,2}")
CHOSEN = ("max_tokens", "window", "deadline_ms", "top", "head")  # fields of a PROMPT that somebody chooses
OF_THE_PERSON = (GRAMMAR.name, TOOLS.name)  # capabilities for what the person, or their program, asks of a reply
UP = ">"
GAPS = "messages are missing, or out of order: their numbers do not follow each other"


@dataclass
class Turn:
    """One reply of the transcript, as far as it was heard."""

    prompt: PromptFrame
    answering: Answering
    asks: list[Ask] = field(default_factory=list)  # not answered yet
    expected: deque[Answer] = field(default_factory=deque)  # answers that are due
    ids: list[int] = field(default_factory=list)
    hash: str = ""
    prompt_tokens: int = 0
    over: bool = False
    cancelled: bool = False
    drafted: bool | None = None  # whether its drafts are sent; None: there was none to send yet


@dataclass
class Found:
    """What a transcript was found to hold. verified: messages that were made again, by what they are. wrong: what went
    up and is not what the plugin sends. rounded: answers that differ in the last bit. unproven: what went up and could
    not be made again, in words. chosen: values that somebody chose, by field."""

    verified: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    rounded: int = 0
    unproven: Counter[str] = field(default_factory=Counter)
    chosen: dict[str, set[str]] = field(default_factory=dict)


class Replay:
    """All connections of a transcript. Of a session, one may be open when it breaks and the next goes on: a message
    belongs to the one whose next number it has, and whose turn."""

    def __init__(self, plugin: Plugin) -> None:
        self.found = Found()
        self._plugin = plugin
        self._sessions: dict[str, list[Connection]] = {}  # the one that was used last is the last

    def hear(self, session: str, direction: str, frame: Frame, message: bytes) -> None:
        """Take the next message. session: what tells it from others; "" where the transcript names none."""
        number = HEADER.unpack_from(message)[3]
        connections = self._sessions.setdefault(session, [])
        if direction == UP and isinstance(frame, Open):
            connection = Connection(self._plugin, self.found, connections.copy())
        else:
            fit = [each for each in connections if each.next[direction] == number and not each.gone]
            turn = getattr(frame, "turn", None) if not isinstance(frame, PromptFrame) else None
            own = [each for each in fit if turn is None or each.turn is None or each.turn.prompt.turn == turn]
            known = own or fit or connections
            if not known:
                self.found.wrong["messages before a session was opened"] += 1
                return
            connection = known[-1]
        connection.hear(direction, frame, message)
        self._sessions[session] = [each for each in connections if each is not connection] + [connection]


class Connection:
    """One connection of a transcript. others: those before it, of which one may have broken."""

    def __init__(self, plugin: Plugin, found: Found, others: list[Connection]) -> None:
        self.plugin, self.found, self._others = plugin, found, others
        self.next = {UP: 0, "<": 0}
        self.turn: Turn | None = None
        self.gone = False  # it broke, and its reply went on in another
        self._responder: PluginResponder | Silent | None = None
        self._width = 0
        self._turns = 0
        self._number = 0  # READs
        self._reads: set[int] = set()
        self._to_score: set[int] = set()
        self._examples: dict[int, Example] = {}
        self._rows = 0  # of the head that were asked for
        self._part = 0
        self._fresh = True  # a reply that another connection began may go on in it

    def hear(self, direction: str, frame: Frame, message: bytes) -> None:
        """Take the next message."""
        number = HEADER.unpack_from(message)[3]
        if number != self.next[direction] & 0xFFFFFFFF:
            self._find(GAPS)
        self.next[direction] = number + 1
        try:
            if direction == UP:
                self._check_form(frame, message, number)
                self._up(frame)
            else:
                self._down(frame)
        except (ProtocolError, InputError, ValueError, IndexError, KeyError, TypeError):
            self._find(f"{frame.kind.name} messages do not fit what came before them")

    def _find(self, what: str) -> None:
        self.found.wrong[what] += 1

    def _check_form(self, frame: Frame, message: bytes, number: int) -> None:
        if frame.extensions and not isinstance(frame, PromptFrame):  # whose quote is compared with the plugin's
            self._find(f"{frame.kind.name} messages carry fields that no capability of this version has")
        if encode(frame, number) != message:
            self._find(f"{frame.kind.name} messages are written otherwise than sideplug writes them")

    def _expect(self, right: bool, what: str) -> None:
        if not right:
            self._find(what)

    # What came ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _down(self, frame: Frame) -> None:
        turn = self.turn
        if isinstance(frame, Opened):
            self._width = frame.model.width
            for part in self.plugin.parts:
                part.meet(frame.model.fingerprint)
        elif isinstance(frame, Example):
            self._reads.discard(frame.number)
            if frame.number in self._to_score:
                self._examples[frame.number] = frame
        elif isinstance(frame, Error):
            if frame.number is None and turn is not None:
                turn.over = True
        elif turn is None or turn.over or getattr(frame, "turn", None) != turn.prompt.turn:
            return
        elif isinstance(frame, Begun):
            turn.answering.begun(frame.prompt)
            if not turn.ids:
                turn.hash, turn.prompt_tokens = frame.hash, frame.prompt
        elif isinstance(frame, Done):
            turn.over = True
        elif turn.cancelled:
            return
        elif isinstance(frame, Ask):
            turn.asks.append(frame)
        elif isinstance(frame, Context):
            self._due(turn)
            turn.answering.context(frame)
        elif isinstance(frame, Tokens):
            self._due(turn)
            if frame.at == turn.prompt_tokens + len(turn.ids):
                turn.ids += frame.ids
                turn.hash = running_hash(frame.ids, turn.hash)
                turn.answering.settled(frame.at, frame.ids)

    def _due(self, turn: Turn) -> None:
        """The asks so far are answered now, as device/reply does before it goes on."""
        asks, turn.asks = turn.asks, []
        if asks:
            turn.expected.append(answer_to(turn.answering, turn.prompt.turn, asks))

    # What went up ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _up(self, frame: Frame) -> None:
        if isinstance(frame, Open):
            self._open(frame)
        elif isinstance(frame, PromptFrame):
            self._prompt(frame)
        elif isinstance(frame, Answer):
            self._answer(frame)
        elif isinstance(frame, Cancel):
            turn = self.turn
            fits = turn is not None and not (turn.over or turn.cancelled) and frame.turn == turn.prompt.turn
            self._expect(fits, "CANCEL messages that stop nothing")
            if turn is not None:
                turn.cancelled = True
        elif isinstance(frame, Read):
            again = frame.number in self._reads
            if not again and frame.number not in (0, self._number):
                self.found.unproven["numbers of examples at which a recording went on"] += 1
            self._number = frame.number + 1 if not again else self._number
            self._reads.add(frame.number)
            if frame.score:
                self._to_score.add(frame.number)
            self._expect(
                not frame.context or self.plugin.context is not None, "READ messages ask for rows without need"
            )
        elif isinstance(frame, Score):
            self._score(frame)
        elif isinstance(frame, Rows):
            self._ask_rows(frame)
        else:
            self._find(f"{frame.kind.name} messages, which only a cloud sends")

    def _open(self, frame: Open) -> None:
        responder, picking = PluginResponder(self.plugin), PluginResponder(self.plugin, head="device")
        opening = responder.opening
        silent = Silent(self.plugin.tap, self.plugin.context)
        expected: list[tuple[Opening, PluginResponder | Silent]] = [(opening, responder), (silent.opening, silent)]
        expected += [(picking.opening, picking)]
        expected += [(Silent().opening, Silent())]
        by_gain = [part.gate.by_gain for part in self.plugin.parts]
        if any(by_gain):  # what the dial turns at low rates
            gates = [other or gate for other, gate in zip(by_gain, opening.gates, strict=True)]
            expected.append((replace(opening, gates=gates), responder))
        self._expect(bool(CLIENT.fullmatch(frame.client)), "OPEN names another client than sideplug")
        for each, answers in expected:
            if self._opens(frame, each):
                self._responder = answers
                self.found.verified["openings"] += 1
                return
        others = _of_another(frame, opening)
        what = f"of another plugin: {'; '.join(others)}" if others else "ask for something else than your plugin does"
        self._find(f"OPEN messages {what}")

    def _opens(self, frame: Open, opening: Opening) -> bool:
        """Whether OPEN is that of an opening; its gates may all be opened or shut, and the dial may be turned."""
        tap = opening.tap.name if opening.tap else ""
        if (frame.base, frame.tap, frame.merge) != (opening.base, tap, opening.merge):
            return False
        encoder = msgspec.msgpack.encode
        wanted = dict(opening.capabilities)
        for name in set(OF_THE_PERSON) - set(frame.capabilities):
            wanted.pop(name, None)  # an older version's
        if encoder(frame.capabilities) != encoder(wanted):
            return False
        width = max((gate.weight_D.size for gate in opening.gates), default=0)
        specs, weights_GD = pack_gates(opening.gates, width)
        if len({spec.kind for spec in frame.gates}) == 1 and frame.gates[0].kind in ("open", "shut"):
            plain = all(spec == GateSpec(spec.kind) for spec in frame.gates)
            if len(frame.gates) == len(specs) and plain and frame.gate.shape == (0, 0):
                return True
        dials = [gate.dial for gate in opening.gates]
        for spec, own, dial in zip(frame.gates, specs, dials, strict=False):
            if spec == own:
                continue
            turned = bool(dial) and dial[0] <= spec.threshold <= dial[-1]
            if not turned or msgspec.structs.replace(spec, threshold=own.threshold) != own:
                return False
            self._choose("gate's threshold", spec.threshold)
        return len(frame.gates) == len(specs) and _same(frame.gate, weights_GD)

    def _choose(self, name: str, value: object) -> None:
        self.found.chosen.setdefault(name, set()).add(f"{value}")

    def _prompt(self, frame: PromptFrame) -> None:
        broken = self._broken(frame) if self._fresh else None
        if broken is not None:
            self.turn, self._turns = broken, frame.turn
            self._resume(broken, frame)
            return
        if self._responder is None:
            self._find("prompts in a session that your plugin did not open")
            return
        after_a_break = self._fresh and any(other._turns == frame.turn - 1 for other in self._others)
        self._expect(frame.turn == self._turns + 1 or after_a_break, "turns are not counted on")
        self._turns, self._fresh = frame.turn, False
        sampling = Sampling.from_wire(frame.sampling)
        prompt = Prompt.from_wire(frame)
        formed = GRAMMAR.name in frame.extensions or (prompt.tools is not None and prompt.tools.choice != "auto")
        options = ReplyOptions(drafts=frame.window > 0, head=None, width=self._width, has_grammar=formed)
        answering = self._responder.begin(prompt, sampling, options)
        if isinstance(answering, PluginAnswering) and not frame.gates:
            answering.be_silent()  # the person has shut the gate; else the answers will not be these
        self.turn = turn = Turn(frame, answering)
        self._check_quote(turn, frame)
        self._check_draft(turn, frame.draft, [] if QUOTE.name in frame.extensions else answering.draft)
        self._expect(not frame.done and not frame.hash, "prompts say that a reply goes on which did not begin")
        self._fits(turn, frame)
        for name in CHOSEN:
            self._choose(name, getattr(frame, name))
        for name in frame.sampling.__struct_fields__:
            self._choose(name, getattr(frame.sampling, name))

    def _broken(self, frame: PromptFrame) -> Turn | None:
        """The reply of another connection that this PROMPT goes on with."""
        for other in reversed(self._others):
            turn = other.turn
            if turn is not None and not turn.over and turn.prompt.turn == frame.turn and (frame.done or frame.turn > 1):
                other.turn, other.gone = None, True
                return turn
            if turn is not None and not turn.over and turn.prompt.turn == frame.turn == 1 and _same_words(turn, frame):
                other.turn, other.gone = None, True
                return turn
        return None

    def _resume(self, turn: Turn, frame: PromptFrame) -> None:
        self._fresh, turn.asks = False, []
        turn.expected.clear()
        turn.answering.resume(turn.prompt_tokens + len(turn.ids), turn.prompt_tokens)
        done = (list(frame.done), frame.hash) == ((turn.ids, turn.hash) if turn.ids else ([], ""))
        self._expect(done, "a resumed reply is said to have other tokens than those that came")
        same = all(getattr(frame, name) == getattr(turn.prompt, name) for name in (*CHOSEN, "sampling", "text", "ids"))
        self._expect(same and frame.messages == turn.prompt.messages, "a resumed reply has another prompt")
        self._check_quote(turn, frame)
        self._check_draft(turn, frame.draft, [] if turn.ids or QUOTE.name in frame.extensions else turn.answering.draft)
        self._fits(turn, frame)

    def _check_quote(self, turn: Turn, frame: PromptFrame) -> None:
        quote = turn.answering.quote
        sent = {name: value for name, value in frame.extensions.items() if name not in OF_THE_PERSON}
        right = not sent or (bool(quote) and sent == quoted(quote))
        self._expect(right, "prompts quote what your memory does not say")
        if sent and right:
            self.found.verified["quotes of your memory"] += 1

    def _fits(self, turn: Turn, frame: PromptFrame) -> None:
        fits = frame.gates == turn.answering.gates and frame.context == turn.answering.rows
        self._expect(fits, "prompts open other gates, or ask for other rows, than your plugin does")
        self.found.verified["prompts"] += fits

    def _check_draft(self, turn: Turn, sent: list[int], expected: list[int]) -> None:
        """A draft is the plugin's; or none is sent in this reply (--no-drafts)."""
        if not expected:
            self._expect(not sent, "drafts that are not those of your phrases")
            return
        if turn.drafted is None:
            turn.drafted = bool(sent)
        right = sent == (expected if turn.drafted else [])
        self._expect(right, "drafts that are not those of your phrases")

    def _answer(self, frame: Answer) -> None:
        turn = self.turn
        if turn is None or turn.over or turn.cancelled or frame.turn != turn.prompt.turn:
            self._find("answers that nobody asked for")
            return
        if not turn.expected:
            self._due(turn)
        if not turn.expected:
            self._find("answers that nobody asked for")
            return
        expected = turn.expected.popleft()
        if (frame.run, frame.at) != (expected.run, expected.at) or frame.draft.dtype != np.int32:
            self._find("answers to other questions than those that were asked")
            return
        rows = zip(frame.draft.tolist(), expected.draft.tolist(), strict=True)
        for sent, own in rows:
            self._check_draft(turn, [t for t in sent if t != -1], [t for t in own if t != -1])
        longest = max((len(row) for row in ([t for t in each if t != -1] for each in frame.draft.tolist())), default=0)
        padded = frame.draft.shape == (len(frame.at), longest) and _is_padded(frame.draft)
        self._expect(padded, "drafts with room for something else")
        if turn.prompt.head == "device":
            self._expect(
                frame.delta is None and frame.mix is None and frame.ids is not None, "answers with more than tokens"
            )
            self.found.unproven[
                "token ids that your plugin picked were not picked again (the base's head is needed for it)"
            ] += len(frame.at)
            return
        self._compare(frame, expected, "answers")

    def _score(self, frame: Score) -> None:
        example = self._examples.pop(frame.number, None)
        if example is None or self._responder is None:
            self._find("corrections of an example that did not come")
            return
        packed: Any = self._responder.score(example)
        self._compare(frame, Score(frame.number, **packed), "scores")

    def _compare(self, frame: Answer | Score, expected: Answer | Score, what: str) -> None:
        sent, own = ({n: t for n, t in tensors_of(f).items() if n != "draft"} for f in (frame, expected))
        if sent.keys() == own.keys() and all(_same(sent[name], own[name]) for name in own):
            self.found.verified[what] += 1
        elif sent.keys() == own.keys() and all(_nearly(sent[name], own[name]) for name in own):
            self.found.rounded += 1
        else:
            self._find(f"{what} that are not what your plugin says")

    def _ask_rows(self, frame: Rows) -> None:
        self._part, self._rows = (0, 0) if frame.part == 0 else (self._part, self._rows)
        self._expect(frame.part == self._part, "parts of the head are asked for out of order")
        self._part += 1
        count = len(frame.ids)
        if np.array_equal(frame.ids, np.arange(self._rows, self._rows + count, dtype=np.int32)):
            self.found.verified["parts of the whole head"] += 1
        else:
            self.found.unproven[
                "token ids whose rows of the head were asked for (those of the examples, and a sample)"
            ] += count
        self._rows += count


def _of_another(frame: Open, opening: Opening) -> list[str]:
    """What tells that an OPEN was made with another plugin than this opening, in words; [] where nothing plainly does.

    Gates of the same kinds with other numbers may be another plugin's, or numbers that somebody hid there.
    """
    kinds = [[gate.kind for gate in gates] for gates in (frame.gates, opening.gates)]
    tap = opening.tap.name if opening.tap else ""
    pairs = {
        "base": (frame.base[:12], opening.base[:12]),
        "tap": (frame.tap, tap),
        "merge": (frame.merge, opening.merge),
        "gates": tuple(" and ".join(each) for each in kinds),
    }
    return [f"{what} {a or 'any'}, your plugin's {b or 'any'}" for what, (a, b) in pairs.items() if a != b]


def _same_words(turn: Turn, frame: PromptFrame) -> bool:
    before = turn.prompt
    return (before.messages, before.text, before.ids) == (frame.messages, frame.text, frame.ids)


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def _nearly(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether they differ as the same sums do on another processor: by a step of a code, or a millionth."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype.kind == "i":
        return bool((np.abs(a.astype(np.int64) - b) <= 1).all())
    tolerance = 2e-3 if a.dtype == np.float16 else 1e-5
    return bool(np.allclose(a.astype(np.float64), b.astype(np.float64), rtol=tolerance, atol=tolerance))


def _is_padded(draft: np.ndarray) -> bool:
    """Whether each row is ids, then −1 to its end."""
    ends = draft == -1
    return bool((draft >= -1).all()) and bool((ends[:, :-1] <= ends[:, 1:]).all())
