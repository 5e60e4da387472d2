"""What a cloud may say during one reply: it may ask and tell only what this reply can have.

A cloud that keeps to docs/WIRE.md asks at most once about a position in each run, behind the text that it has settled,
with at most `window` asks open before it. A run begins only where an answer changed a token, so each begins at least a
token further on. So a reply of one token can be asked about once, and one of N tokens about N positions, each of them
in as many runs as there are tokens before it. Anything else is a cloud with questions of its own to the plugin.

Shapes and numbers of frames are checked in terms. Test: pytest tests/device/test_guard.py
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sideplug.contract.capabilities import TRUNK
from sideplug.contract.errors import ProtocolError, Untrusted
from sideplug.contract.frames import MAX_TOKEN_TEXT, Ask, Begun, Context, Done, Tokens
from sideplug.contract.sampling import Sampling
from sideplug.device.terms import Terms

CHOOSERS = ("cloud", "plugin", "draft", "fallback", "trunk")
WHY = ("stop", "length", "cancelled")
COUNTS = {"asked", "round_trips", "speculated", "confirmed", "rolled_back", "wasted", "drafted", "accepted"}
COUNTS |= {"fallback", "trunk"}


@dataclass(frozen=True)
class Asked:
    """What the device asked for in its PROMPT. shut: for each part of the plugin, whether its gate can't open.

    head: the device picks the tokens. rows: it wants the rows that it is not asked about. quote: what it begins with.
    """

    max_tokens: int
    window: int
    sampling: Sampling = Sampling()
    shut: Sequence[bool] = (False,)
    head: bool = False
    rows: bool = False
    deadline: bool = False
    top: int = 0
    quote: Sequence[int] = ()


class Guard:
    """Follows one reply. Each method raises Untrusted for what a cloud must not say, and ProtocolError for a frame that
    is merely out of step."""

    def __init__(self, terms: Terms, asked: Asked) -> None:
        self._terms, self._asked = terms, asked
        self.prompt: int | None = None  # tokens; None: the cloud has not begun
        self.next = 0  # position of the next token that is not settled
        self._base = 0  # where this connection's first run began
        self._limit = 0  # the position behind the last possible token
        self._run = 0
        self._told: list[int] = []  # the text from `_first` on, as the asks of this run tell it
        self._first = 0
        self._compared = 0  # … of which all before this position was compared with the settled text
        self._open: set[int] = set()  # positions that this run asked about and that are not settled
        self._last = -1  # the last position that this run asked about
        self._ever: set[int] = set()  # positions that were asked about in any run and are not settled
        self._row: int | None = None  # the next row of the text; None: none came on this connection
        self._characters = 0
        self._settled: list[int] = []  # the reply's ids
        self._waits = False  # a PROMPT was sent, and the cloud has not begun
        self._ended = False  # text without tokens came, which only the end has

    def prompted(self, terms: Terms) -> None:
        """A PROMPT is sent: the reply's first, or one after a break, perhaps to another cloud."""
        self._terms, self._waits = terms, True

    def begun(self, frame: Begun) -> None:
        """BEGUN: the first of this reply, or the first after a break."""
        if not self._waits:
            raise Untrusted("the cloud begins a reply that was not asked for")
        self._waits = self._ended = False
        if frame.cached > frame.prompt + len(self._settled):
            raise Untrusted("the cloud says that it had more of the text than there is")
        if self.prompt is None:
            self.prompt = self.next = frame.prompt
            self._limit = min(frame.prompt + self._asked.max_tokens, self._terms.model.context)
        elif frame.prompt != self.prompt:
            raise Untrusted("the cloud reads the prompt otherwise than when the reply began")
        penalty = self._asked.head and self._asked.sampling.repetition_penalty != 1
        self._base, self._run, self._last, self._row = self.next, 0, -1, None
        self._first = 0 if penalty else self.prompt
        self._told = [] if penalty else list(self._settled)
        self._compared = self.next
        self._open.clear()
        self._ever.clear()

    def tokens(self, frame: Tokens) -> None:
        """TOKENS that are new to the device."""
        begun = self._begun()
        if self._ended:
            raise Untrusted("the cloud goes on behind the end of the reply")
        self._ended = not frame.ids
        if frame.at + len(frame.ids) > self._limit:
            raise Untrusted(f"the cloud sends more tokens than the {self._asked.max_tokens} that the reply may have")
        can = {"fallback": self._asked.deadline, "trunk": TRUNK.name in self._terms.granted}
        if frame.by not in CHOOSERS or not can.get(frame.by, True):
            raise Untrusted("the cloud says that somebody chose a token who can't have")
        done = frame.at - begun
        quoted = list(self._asked.quote[done : done + len(frame.ids)])
        if quoted != frame.ids[: len(quoted)]:
            raise Untrusted("the cloud goes on otherwise than with the quote that it was told")
        if (
            frame.by not in ("cloud", "trunk")
            and not set(range(frame.at + len(quoted), frame.at + len(frame.ids))) <= self._ever
        ):
            raise Untrusted("the cloud says that your plugin chose a token that it was not asked about")
        if any(not (0 < len(tops) <= self._asked.top + 1) and tops for tops in frame.top):
            raise Untrusted("the cloud sends more alternatives than were asked for")
        self._characters += len(frame.text)
        if self._characters > MAX_TOKEN_TEXT * (frame.at + len(frame.ids) - begun + 1):
            raise Untrusted("the cloud sends more text than its tokens can have")
        self._settled += frame.ids
        self.next = frame.at + len(frame.ids)
        self._open = {at for at in self._open if at >= self.next}
        self._ever = {at for at in self._ever if at >= self.next}

    def ask(self, frame: Ask) -> None:
        """ASK."""
        self._begun()
        shut = self._asked.shut
        if all(shut):
            raise Untrusted("the cloud asks your plugin, which is not to be asked in this reply")
        self._enter(frame.run)
        for at in frame.at:
            if not max(self.next, self._base + self._run) <= at < self._limit:
                raise Untrusted(f"the cloud asks about position {at}, which this reply does not have")
            if at <= self._last:
                raise Untrusted(f"the cloud asks about position {at} twice, or out of order")
            self._last = at
            self._open.add(at)
            self._ever.add(at)
        if len(self._open) > self._asked.window + 1:
            raise Untrusted(f"the cloud asks ahead of its text more than the {self._asked.window} times that it may")
        if len(shut) > 1 and (not frame.gates or any(not gates or self._foreign(gates, shut) for gates in frame.gates)):
            raise Untrusted("the cloud asks a part of your plugin that is not to be asked in this reply")
        if self._asked.head != (frame.z is not None):
            raise Untrusted("the cloud asks otherwise than the device wants to be asked")
        self._row = frame.at[-1]
        self._tell(frame)

    @staticmethod
    def _foreign(gates: int, shut: Sequence[bool]) -> bool:
        """Whether these bits name a part that is shut or that there is not."""
        return bool(gates >> len(shut)) or any(gates >> part & 1 and is_shut for part, is_shut in enumerate(shut))

    def context(self, frame: Context) -> None:
        """CONTEXT."""
        self._begun()
        if not self._asked.rows:
            raise Untrusted("the cloud sends rows of the text that this reply did not ask for")
        if frame.run != self._run:
            self._enter(frame.run)
        elif self._row is not None and frame.first != self._row:
            raise Untrusted(f"the cloud must send the rows from {self._row} on, got row {frame.first}")
        if frame.first + len(frame.codes) > self._limit:
            raise Untrusted("the cloud sends more rows than this reply has")
        self._row = frame.first + len(frame.codes)

    def done(self, frame: Done) -> None:
        """DONE."""
        ended = self.prompt is None or (frame.prompt == self.prompt and frame.reply == len(self._settled))
        if frame.why not in WHY or not (ended or frame.why == "cancelled"):
            raise Untrusted("the cloud's account of the reply is not that of the reply that came")
        if not set(frame.counts) <= COUNTS:
            raise Untrusted("the cloud counts what a reply does not have")

    def told(self, end: int) -> list[int]:
        """The ids from the next unsettled position to `end`, as this run tells them."""
        return self._told[self.next - self._first : end - self._first]

    def _begun(self) -> int:
        if self.prompt is None or self._waits:
            raise ProtocolError("the cloud must say that the reply has begun before it goes on with it")
        return self.prompt

    def _enter(self, run: int) -> None:
        """The run that the next frame is of."""
        if run == self._run:
            return
        if run < self._run or self._base + run >= self._limit:
            raise Untrusted("the cloud goes back to a text that it gave up, or gave up more than there is")
        self._run, self._last = run, -1
        self._open.clear()
        self._row = None

    def _tell(self, frame: Ask) -> None:
        """The text that the ask continues: what this run told before, then its ids. It must be what was settled."""
        start, end = frame.start - self._first, frame.start + len(frame.ids)
        if not 0 <= start <= len(self._told) or end != frame.at[-1]:
            raise Untrusted("the cloud asks about a text that has a gap")
        del self._told[start:]
        self._told += frame.ids
        begin = self._begun()
        low = max(begin, min(frame.start, self._compared))
        told = self._told[low - self._first : self.next - self._first]
        if told != self._settled[low - begin : self.next - begin]:
            raise Untrusted("the cloud asks about another text than the one that it told")
        self._compared = self.next
