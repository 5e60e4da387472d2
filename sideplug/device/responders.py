"""What answers a cloud's questions: a plugin, a plugin with the base's head on the device, or a listener.

A *responder* outlives a reply: it says what OPEN asks for. `begin` gives what answers during one reply. A plugin's
parts are asked in a fixed order: a memory first, and where it speaks it speaks alone; else the manner parts whose gates
are open, their corrections summed. The rows of a text come in their order; a row that comes again replaces what stood
there, because the text was rolled back.

It does not know sockets. Test: pytest tests/device/test_responders.py
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NotRequired, Protocol, TypedDict, cast

import numpy as np

from sideplug.contract import bias
from sideplug.contract.capabilities import (
    BIAS,
    CONTEXT,
    GRAMMAR,
    MIXTURE,
    QUOTE,
    TOKENS,
    TOOLS,
    TRUNK,
    ContextSettings,
    GrammarSettings,
    Masks,
    MixtureSettings,
    QuoteSettings,
    TokensSettings,
    ToolsSettings,
    TrunkOf,
    TrunkSettings,
    extension_of,
    want,
)
from sideplug.contract.codec import unpack
from sideplug.contract.correction import Correction, Merge, Packed, merged, mix, pack_corrections
from sideplug.contract.errors import ProtocolError, WrongBase
from sideplug.contract.frames import MAX_DRAFT, Ask, Context, Example, ModelInfo, Wanted
from sideplug.contract.gate import Gate
from sideplug.contract.grammar import constrain, unpack_mask
from sideplug.contract.sampling import Sampling, choose
from sideplug.contract.tap import ContextSlice, Tap
from sideplug.contract.text import Prompt
from sideplug.device.drafts import PromptLookup, Text
from sideplug.device.head import DeviceHead
from sideplug.plugins import ANY_BASE, PartReply, Plugin, TrainedPart


class AnswerFields(Packed, total=False):
    """The tensor fields of an ANSWER, all positions of its asks: corrections, or the tokens that were picked."""

    ids: np.ndarray


@dataclass(frozen=True)
class Opening:
    """What a responder asks for in OPEN. base: a fingerprint, "" for any. tap None: the cloud's default.

    head "device": the tokens must be picked on the device, because a bias stays there.
    """

    base: str = ""
    tap: Tap | None = None
    merge: Merge = "add"
    gates: Sequence[Gate] = (Gate("shut"),)
    capabilities: dict[str, Wanted] = field(default_factory=dict)
    head: str = "cloud"


class Answering(Protocol):
    """A responder during one reply.

    gates: for each part "open", "shut" or "" (as OPEN says); [] for as OPEN says. draft: ids that the reply is expected
    to begin with. quote: ids that it does begin with, where the cloud takes quotes. source: what it will answer from,
    in words; "" without a memory's answer. entry: the number of the memory's entry; 0 without one. rows: how many rows
    of the text it has, where it needs the context; None where it does not.
    """

    gates: list[str]
    draft: list[int]
    quote: list[int]
    source: str
    entry: int

    @property
    def rows(self) -> int | None:
        """See Answering."""
        ...

    def begun(self, prompt: int) -> None:
        """The reply begins behind a prompt of so many tokens. It is said again after a break."""
        ...

    def context(self, frame: Context) -> None:
        """Rows for which no answer is asked. Raises ProtocolError where rows before them are missing."""
        ...

    def answer(self, asks: Sequence[Ask]) -> AnswerFields:
        """The answers to all positions of these asks, in their order. Raises ProtocolError."""
        ...

    def skip(self, ask: Ask) -> None:
        """An ask of a run that was rolled back: it needs no answer, but its row may still stand."""
        ...

    def drafts(self, ask: Ask) -> list[int]:
        """The token ids that are expected from the ask's position on."""
        ...

    def settled(self, at: int, ids: list[int]) -> None:
        """The tokens from position `at` on are final."""
        ...

    def resume(self, settled: int, prompt: int) -> None:
        """The connection broke: the first `settled` positions of the text are final, `prompt` of them the prompt's."""
        ...


class Responder(Protocol):
    """What answers in a session."""

    @property
    def opening(self) -> Opening:
        """What it asks for in OPEN."""
        ...

    def check_base(self, model: ModelInfo) -> None:
        """Raises WrongBase where it was made for another base model."""
        ...

    def begin(self, prompt: Prompt, sampling: Sampling, options: ReplyOptions) -> Answering:
        """What answers during one reply to this prompt."""
        ...

    def score(self, example: Example) -> Packed:
        """The corrections of every position of an example that was read. Raises ProtocolError."""
        ...


class ReplyOptions(TypedDict):
    """What a responder must know of a reply. head: the base's head, where the device picks its tokens.

    has_grammar: the reply must have a form, for which a stored reply is not made.
    """

    drafts: bool
    head: DeviceHead | None
    width: int
    has_grammar: NotRequired[bool]


class Silent:
    """A responder without a plugin: its gate is shut, so it is never asked. With a `tap`, examples are read by it."""

    def __init__(self, tap: Tap | None = None, context: ContextSlice | None = None) -> None:
        self.opening = Opening(tap=tap, capabilities=_wanted(context))

    def check_base(self, model: ModelInfo) -> None:
        """Any base will do."""

    def begin(self, prompt: Prompt, sampling: Sampling, options: ReplyOptions) -> Answering:
        """See Responder."""
        return _NoAnswer()

    def score(self, example: Example) -> Packed:
        """Raises ProtocolError: there is nothing to score."""
        raise ProtocolError("the cloud asked, but this session has no plugin", "local")


class _NoAnswer:
    rows = None
    source = ""
    entry = 0

    def __init__(self) -> None:
        self.gates: list[str] = []
        self.draft: list[int] = []
        self.quote: list[int] = []

    def begun(self, prompt: int) -> None:
        return

    def context(self, frame: Context) -> None:
        raise ProtocolError("the cloud must not send context rows that nobody asked for")

    def answer(self, asks: Sequence[Ask]) -> AnswerFields:
        raise ProtocolError("the cloud asked, but this session has no plugin")

    def skip(self, ask: Ask) -> None:
        return

    def drafts(self, ask: Ask) -> list[int]:
        return []

    def settled(self, at: int, ids: list[int]) -> None:
        return

    def resume(self, settled: int, prompt: int) -> None:
        return


class Listener(_NoAnswer):
    """A responder that corrects nothing and hands on the states of every token that is asked about.

    heard: position → states (K, R). Test: pytest tests/device/test_states.py
    """

    def __init__(self, tap: Tap, width: int) -> None:
        super().__init__()
        self.opening = Opening(tap=tap, gates=(Gate("open"),))
        self.heard: dict[int, np.ndarray] = {}
        self._tap, self._width = tap, width

    def check_base(self, model: ModelInfo) -> None:
        """Any base will do."""

    def begin(self, prompt: Prompt, sampling: Sampling, options: ReplyOptions) -> Answering:
        """See Responder."""
        self.heard.clear()
        return self

    def answer(self, asks: Sequence[Ask]) -> AnswerFields:
        """Nothing is corrected: Δ = 0 for every position."""
        for ask in asks:
            self.heard.update(zip(ask.at, self._tap.decode(ask.codes, ask.scales), strict=True))
        zero = Correction(np.zeros(self._width, np.float32))
        count = sum(len(ask.at) for ask in asks)
        return cast(AnswerFields, pack_corrections([zero] * count, self._width, self._tap.codec == "int8"))

    def score(self, example: Example) -> Packed:
        """Raises ProtocolError: a listener corrects nothing."""
        raise ProtocolError("a listener has nothing to score", "local")


class PluginResponder:
    """Answers with a plugin. `gate` overrides: open or shut for all parts, a linear one for the trained part.

    head: where tokens are picked in this session, in the "cloud" or on the "device"; there the biases stay.
    """

    def __init__(self, plugin: Plugin, gate: Gate | None = None, head: str = "cloud") -> None:
        self.plugin = plugin
        gates = plugin.gates
        if gate is not None and gate.kind != "linear":
            gates = [gate] * len(gates)
        elif gate is not None:
            gates = [gate if part is plugin.trained else part.gate for part in plugin.parts]
        wanted = _wanted(plugin.context)
        if any(part.role == "memory" for part in plugin.parts):
            wanted[MIXTURE.name] = want(MixtureSettings())
            wanted[QUOTE.name] = want(QuoteSettings(), required=False)
            wanted[TOKENS.name] = want(TokensSettings(), required=False)  # an older cloud runs the model for them
        biases = bias.to_wire(plugin.biases)
        if biases is None:
            head = "cloud"  # nothing has to stay on the device
        elif head == "cloud":
            wanted[BIAS.name] = want(biases)
        if head == "cloud" and (trunks := _trunks(plugin)) is not None:
            wanted[TRUNK.name] = want(trunks, required=False)  # a cloud that has none of them asks
        base = "" if plugin.base == ANY_BASE else plugin.base
        self.opening = Opening(base, plugin.tap, plugin.merge, gates, wanted, head)
        self._is_shut = gate is not None and gate.kind == "shut"

    def check_base(self, model: ModelInfo) -> None:
        """See Responder."""
        self.plugin.check_base(model.fingerprint, model.name)
        for part in self.plugin.parts:
            part.meet(model.fingerprint)
        if any(isinstance(part, TrainedPart) and part.model_width != model.width for part in self.plugin.parts):
            raise WrongBase(
                f"the cloud says that {model.name} is {model.width} wide, which your plugin is not made for"
            )

    def begin(self, prompt: Prompt, sampling: Sampling, options: ReplyOptions) -> Answering:
        """See Responder."""
        answering = PluginAnswering(
            self.plugin,
            prompt,
            options["drafts"],
            options["width"],
            are_memories_silent=options.get("has_grammar", False),
        )
        if self._is_shut:
            answering.be_silent()
        head = options["head"]
        return answering if head is None else HeadAnswering(answering, head, sampling)

    def score(self, example: Example) -> Packed:
        """See Responder. The rows are run in their order, as in a reply."""
        tap, context = self.plugin.tap, self.plugin.context
        answering = PluginAnswering(self.plugin, Prompt(text=""), False, example.z.shape[1])
        first = 0
        if context is not None:
            if example.context is None or example.context_scales is None:
                raise ProtocolError("the cloud must send the rows of the prompt with this example")
            answering.add_rows(0, context.decode(example.context, example.context_scales))
            first = len(example.context)
        codes_TKR = tap.decode(example.codes, example.scales)
        asked = [answering.correct(first + row + 1, code_KR, -1) for row, code_KR in enumerate(codes_TKR)]
        return pack_corrections(asked, example.z.shape[1], tap.codec == "int8")


def _trunks(plugin: Plugin) -> TrunkSettings | None:
    """Which parts are still the trunks that they began with, which a cloud may have too; None where none is."""
    of = []
    for number, part in enumerate(plugin.parts):
        begun = part.about.get("trunk") if isinstance(part, TrainedPart) and part.context is None else None
        if isinstance(part, TrainedPart) and isinstance(begun, dict) and begun.get("digest") == part.digest.hex():
            of.append(TrunkOf(number, part.digest))
    return TrunkSettings(of) if of else None


class PluginAnswering:
    """A plugin during one reply. are_memories_silent: their gates are shut, whatever they know."""

    def __init__(
        self, plugin: Plugin, prompt: Prompt, drafts: bool, width: int, are_memories_silent: bool = False
    ) -> None:
        self.plugin = plugin
        self._width, self._drafts = width, drafts
        self._tap = plugin.tap
        self._parts: list[tuple[PartReply, list[int]]] = [
            (
                PartReply("shut") if are_memories_silent and part.role == "memory" else part.begin(prompt),
                self._tap.rows_of(part.tap) if part.tap else [],
            )
            for part in plugin.parts
        ]
        self._memories = sum(part.role == "memory" for part in plugin.parts)
        self._told = Text()
        self._lookup = PromptLookup(plugin.phrases, self._told) if drafts and len(plugin.phrases) else None
        hushed = any(reply.hushes or reply.quote for reply, _ in self._parts)  # a memory that quotes speaks alone
        looks_back = not hushed and any(reply.wants_context for reply, _ in self._parts)
        self._context = plugin.context if looks_back else None  # a reply in which no other part speaks needs none
        self._rows = 0
        self._text: dict[int, int] = {}  # position → the token that its row stands behind, as asks told it
        self._heard = 0  # the position behind the last of these
        self.gates = ["shut" if hushed and not reply.quote else reply.gate for reply, _ in self._parts]
        if not any(self.gates):
            self.gates = []
        self.draft = next((reply.draft for reply, _ in self._parts if reply.draft), []) if drafts else []
        self.quote = next((reply.quote for reply, _ in self._parts if reply.quote), [])
        sources = [(reply.source, reply.entry) for reply, _ in self._parts if reply.source]
        self.source, self.entry = sources[0] if sources else ("", 0)

    def be_silent(self) -> None:
        """Let no part open its gate by itself: every gate is as OPEN says."""
        self.gates, self.draft, self.quote, self.source, self.entry = [], [], [], "", 0

    @property
    def rows(self) -> int | None:
        """See Answering."""
        return None if self._context is None else self._rows

    def begun(self, prompt: int) -> None:
        """See Answering."""
        self._told.begin(prompt)

    def context(self, frame: Context) -> None:
        """See Answering."""
        if self._context is None:
            raise ProtocolError("the cloud must not send context rows that nobody asked for")
        self.add_rows(frame.first, self._context.decode(frame.codes, frame.scales))

    def add_rows(self, first: int, code_CKR: np.ndarray) -> None:
        """Rows from position `first` on, to all parts that need them."""
        self._go_to(first)
        for reply, layers in self._parts:
            if reply.wants_context:
                reply.context(first, code_CKR[:, layers])
        self._rows = first + len(code_CKR)

    def _go_to(self, row: int) -> None:
        """The next row is `row`. Raises ProtocolError where rows before it are missing."""
        if self._context is not None and row > self._rows:
            raise ProtocolError(f"the cloud must send the rows from {self._rows} on, got row {row}")
        if row < self._rows:
            for reply, _ in self._parts:
                reply.trim(row)
        self._rows = row

    def correct(self, at: int, code_KR: np.ndarray, gates: int) -> Correction:
        """The correction of position `at` from the row before it. Bit p of `gates`: part p is asked."""
        self._go_to(at - 1)
        self._rows = at
        spoken: Correction | None = None
        total: np.ndarray | None = None
        mixture = None
        for number, (reply, layers) in enumerate(self._parts):
            asked = bool(gates >> number & 1)
            if not asked or (spoken is not None and number >= self._memories):
                if reply.wants_context:
                    reply.context(at - 1, code_KR[None, layers])
                continue
            correction = reply.answer(at, code_KR[layers])
            if correction is None:
                continue
            if number < self._memories:
                spoken = spoken or correction
                continue
            mixture = mixture or correction.mixture
            if correction.delta_D is not None:
                total = correction.delta_D if total is None else total + correction.delta_D
        return spoken or Correction(total, mixture)

    def corrections(self, ask: Ask) -> list[Correction]:
        """The corrections of an ask's positions."""
        self._hear(ask)
        for reply, _ in self._parts:
            reply.hear(ask.start, ask.ids)
        codes_TKR = self._tap.decode(ask.codes, ask.scales)
        gates = ask.gates or [-1] * len(ask.at)
        return [self.correct(at, codes_TKR[row], gates[row]) for row, at in enumerate(ask.at)]

    def answer(self, asks: Sequence[Ask]) -> AnswerFields:
        """See Answering."""
        corrections = [each for ask in asks for each in self.corrections(ask)]
        return cast(AnswerFields, pack_corrections(corrections, self._width, self._tap.codec == "int8"))

    def skip(self, ask: Ask) -> None:
        """See Answering."""
        if self._context is not None:
            self._hear(ask)
            for at, code_KR in zip(ask.at, self._tap.decode(ask.codes, ask.scales), strict=True):
                self.add_rows(at - 1, code_KR[None])

    def drafts(self, ask: Ask) -> list[int]:
        """See Answering: a part's own expectation first, else the person's phrases; of the settled text only."""
        if not self._drafts:
            return []
        self._told.hear(ask.start, ask.ids)
        for reply, _ in self._parts:
            expected = reply.expected(self._told.settled_end)
            if expected:
                return self._told.behind(ask.at[0], expected)[:MAX_DRAFT]
        return self._lookup.draft(ask.at[0]) if self._lookup else []

    def settled(self, at: int, ids: list[int]) -> None:
        """See Answering."""
        self._told.settle(at, ids)
        if self._lookup is not None:
            self._lookup.settled(at, ids)
        if self._context is None:
            return
        for position, token in enumerate(ids, at):
            if position < self._rows and self._text.get(position, token) != token:
                self._go_to(position)  # these rows stand behind a token that was rolled back
                return

    def _hear(self, ask: Ask) -> None:
        if self._context is not None:
            self._text.update(enumerate(ask.ids, ask.start))
            self._heard = ask.start + len(ask.ids)

    def resume(self, settled: int, prompt: int) -> None:
        """See Answering. Rows count where it is known which token they stand behind."""
        length = min(self._rows, settled, max(self._heard, prompt))
        if length < self._rows:
            self._go_to(length)


class HeadAnswering:
    """A plugin during one reply, with the base's head on the device: it picks the tokens itself."""

    def __init__(self, inner: PluginAnswering, head: DeviceHead, sampling: Sampling) -> None:
        self._inner, self._head, self._sampling = inner, head, sampling
        self._text: list[int] = []  # prompt and reply, where the choice depends on them
        self._masks: dict[int, bytes] = {}  # of the reply's grammar
        self.gates, self.draft, self.quote = inner.gates, inner.draft, inner.quote
        self.source, self.entry = inner.source, inner.entry
        self.begun: Callable[[int], None] = inner.begun
        self.context: Callable[[Context], None] = inner.context
        self.skip: Callable[[Ask], None] = inner.skip
        self.drafts: Callable[[Ask], list[int]] = inner.drafts
        self.settled: Callable[[int, list[int]], None] = inner.settled
        self.resume: Callable[[int, int], None] = inner.resume

    @property
    def rows(self) -> int | None:
        """See Answering."""
        return self._inner.rows

    def answer(self, asks: Sequence[Ask]) -> AnswerFields:
        """The tokens that the device picks, (T,) int32."""
        return AnswerFields(ids=np.array([token for ask in asks for token in self._pick(ask)], np.int32))

    def _pick(self, ask: Ask) -> list[int]:
        if ask.z is None or len(ask.z) != len(ask.at):
            raise ProtocolError("the cloud must send z with each ASK where the device has the head")
        if self._sampling.repetition_penalty != 1:
            self._text[ask.start :] = ask.ids
        plugin = self._inner.plugin
        int8 = plugin.tap.codec == "int8"
        masks = extension_of(ask, GRAMMAR, Masks)
        if masks is not None:
            self._masks.update(masks.new)
        picked = []
        for row, correction in enumerate(self._inner.corrections(ask)):
            z_1D = ask.z[row : row + 1].astype(np.float32)
            packed = pack_corrections([correction], z_1D.shape[1], int8)
            if "delta" in packed:  # the very correction that the cloud would see
                z_1D = merged(z_1D, unpack(packed["delta"], packed["scales"]), plugin.merge)
            logits_V = self._head.logits(z_1D)
            if correction.mixture is None:
                logits_V = bias.add(plugin.biases, ask.gates[row] if ask.gates else -1, logits_V)
            unmixed_V = logits_V
            logits_V = constrain(mix(logits_V, correction.mixture), unmixed_V, self._allowed(masks, row, logits_V.size))
            picked.append(choose(logits_V, self._sampling, ask.at[row], self._text))
        return picked

    def _allowed(self, masks: Masks | None, row: int, vocab: int) -> np.ndarray | None:
        """The tokens (V,) bool that a row's mask allows; None: all. Raises ProtocolError for a mask that never came."""
        if masks is None:
            return None
        number = masks.of[row] if row < len(masks.of) else -1
        if number not in self._masks:
            raise ProtocolError("the cloud must send each mask before it names it")
        return unpack_mask(self._masks[number], vocab)


def _wanted(context: ContextSlice | None) -> dict[str, Wanted]:
    """What every session wants: a form of replies, and tools; and the rows of the text, where they are needed."""
    wanted = {GRAMMAR.name: want(GrammarSettings(), required=False), TOOLS.name: want(ToolsSettings(), required=False)}
    if context is not None:
        wanted[CONTEXT.name] = want(ContextSettings(list(context.layers), context.rank))
    return wanted
