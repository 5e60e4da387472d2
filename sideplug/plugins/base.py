"""Kinds and parts. A *kind* knows how a correction is computed; a *part* holds one person's numbers of a kind.

A plugin is made of parts, which are asked in a fixed order: a memory first, and where it speaks it speaks alone; then
the manner parts, whose corrections are summed. Training makes parts of a `TrainedKind`; other kinds (a memory, say)
make their parts themselves.

Letters: T rows, K tapped layers, R code width, W a part's width, D the base model's width, B texts.
It does not know the wire, training data or the base model. Test: pytest tests/plugins
"""

from __future__ import annotations

import hashlib
import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from sideplug.contract.bias import NONE, Bias
from sideplug.contract.correction import Correction, Merge
from sideplug.contract.errors import InputError, PluginError
from sideplug.contract.frames import MAX_VOCAB
from sideplug.contract.gate import Gate
from sideplug.contract.tap import ContextSlice, Tap
from sideplug.contract.text import Prompt

Params = dict[str, np.ndarray]
Saved = Any  # what a kind's forward leaves for its backward
BIAS = "bias."  # before the names of a bias's tensors in a file
PARAMS = "params."  # before the parameters' names in a file, so that a kind may name them as it likes
ONE_TEXT = np.zeros(1, np.int64)  # starts_B of a single text
MAX_PHRASES = 1 << 16  # tokens of the person's that a part keeps for drafts
NO_PHRASES = np.zeros(0, np.int32)


@dataclass(frozen=True)
class Shape:
    """Sizes of a trained part: K tapped layers, code width R, width W, the model's width D."""

    taps: int
    rank: int
    width: int
    model_width: int


class Past(Protocol):
    """What the earlier rows of one text left for later ones, for kinds with context "all"."""

    @property
    def length(self) -> int:
        """Rows that are in it."""
        ...

    def trim(self, length: int) -> None:
        """Forget the rows from `length` on."""
        ...


class PartReply:
    """A part during one reply; this one does nothing, and others override what they need.

    gate: "open" or "shut" overrides the part's gate for this reply; "" leaves it. draft: token ids that the part
    expects the reply to begin with. quote: a memory's token ids that it does begin with. wants_context: whether it
    needs the rows of the prompt and of positions that it is not asked about. source: what it answers from, in words,
    for the person. entry: the number of a memory's entry that it answers from; 0 without one. hushes: a memory knows
    that nobody told the answer, so no other part may make it up.
    """

    def __init__(
        self,
        gate: str = "",
        draft: list[int] | None = None,
        wants_context: bool = False,
        source: str = "",
        entry: int = 0,
        hushes: bool = False,
        quote: list[int] | None = None,
    ) -> None:
        self.gate, self.hushes = gate, hushes
        self.source, self.entry = source, entry
        self.draft, self.quote = draft or [], quote or []
        self.wants_context = wants_context

    def hear(self, start: int, ids: list[int]) -> None:
        """The text from position `start` on is `ids`, as far as the cloud has decoded it, perhaps speculatively."""

    def context(self, first: int, code_CKR: np.ndarray) -> None:
        """Rows from position `first` on, without a question."""

    def answer(self, at: int, code_KR: np.ndarray) -> Correction | None:
        """The correction of the token at `at`, from row at − 1; None: it has nothing to say."""
        return None

    def expected(self, at: int) -> list[int]:
        """The token ids that it expects from position `at` on."""
        return []

    def trim(self, length: int) -> None:
        """The text was rolled back: forget the rows from `length` on."""


class Part(ABC):
    """One part of a plugin. role: a "memory" is asked before "manner" parts. has_read: `take_read` changed it."""

    role: ClassVar[Literal["memory", "manner"]] = "manner"
    fits_any_base: ClassVar[bool] = False
    merge: Merge = "add"
    name: str
    kind_name: str
    tap: Tap | None  # None: it reads no states
    gate: Gate
    about: dict[str, Any]
    has_read: bool = False

    @property
    def context(self) -> ContextSlice | None:
        """What a context row must carry for this part; None: it needs none."""
        return None

    @property
    @abstractmethod
    def size(self) -> int:
        """Numbers that it holds."""

    @abstractmethod
    def begin(self, prompt: Prompt) -> PartReply:
        """The part for one reply to this prompt."""

    @property
    def bias(self) -> Bias:
        """What it adds to the logits of some tokens wherever its gate is open."""
        return NONE

    def meet(self, base: str) -> None:  # noqa: B027  (most parts fit one base only)
        """The base model with this fingerprint answers from now on."""

    def unread(self, base: str) -> list[tuple[Prompt, str]]:
        """Prompts with replies whose tokens by the base model with this fingerprint it needs, and has not yet."""
        return []

    def take_read(self, base: str, ids: Mapping[str, list[int]]) -> None:
        """The tokens of some of the replies of `unread`; [] of one that the base can't read."""
        assert not ids, "a part that reads nothing takes nothing"

    def merged_with(self, stored: Part) -> Part:
        """What is to be stored in place of `stored`, which may have changed since this part was loaded."""
        return self

    @abstractmethod
    def tensors(self) -> dict[str, np.ndarray]:
        """All that its file holds beside the gate."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """What its kind needs, beside the tensors, to load it again; plain values."""


class Kind(ABC):
    """A kind of parts, registered by its name."""

    name: ClassVar[str]

    @abstractmethod
    def load(
        self, config: Mapping[str, Any], tensors: Params, tap: Tap | None, gate: Gate, about: dict[str, Any]
    ) -> Part:
        """The part of a file. Raises PluginError (or any error: the caller names the file)."""


class TrainedKind(Kind):
    """A kind whose parts are trained: NumPy, forward and backward over rows of several texts at once.

    merge: how the cloud uses a correction. context: "all" where a row's correction depends on earlier rows of its text;
    then `new_past` gives what one reply keeps of them. biased: its parts have a bias too. An untrained part of a kind
    with merge "add" must give Δ = 0.
    """

    merge: ClassVar[Merge] = "add"
    context: ClassVar[Literal["none", "all"]] = "none"
    default_width: ClassVar[int] = 128
    biased: ClassVar[bool] = False

    def tap(self, blocks: int, width: int, layers: int = 9, rank: int = 64) -> Tap:
        """The tap that suits a model of so many blocks and this width."""
        return Tap.spread(blocks, width, layers, rank)

    def check_tap(self, tap: Tap) -> None:
        """Raises PluginError for a tap that the kind can't read."""

    def context_slice(self, tap: Tap) -> ContextSlice:
        """What context rows must carry, for a kind with context "all"."""
        return ContextSlice(tap, tap.layers, tap.rank)

    def config(self) -> dict[str, Any]:
        """The kind's own settings (heads, a window, …), which a part's file keeps; plain values."""
        return {}

    def configured(self, config: Mapping[str, Any]) -> TrainedKind:
        """The kind with the settings of a part's file. Raises any error for settings that can't be."""
        return self

    def shapes(self, tap: Tap, params: Params) -> dict[str, tuple[int, ...]] | None:
        """The shapes of all parameters, by this tap and the sizes that some of these show; None: they are not checked.

        It says so before anything is computed with what a file holds. Raises any error where one is missing.
        """
        return None

    @abstractmethod
    def init(self, shape: Shape, rng: np.random.Generator) -> Params:
        """Untrained parameters, float32."""

    def dropped(self, share: float, rng: np.random.Generator) -> TrainedKind:
        """The kind as one step of training runs it: with this share of dropout, drawn by `rng`, where it has any."""
        return self

    @abstractmethod
    def forward(
        self, params: Params, code_TKR: np.ndarray, starts_B: np.ndarray, past: Past | None = None
    ) -> tuple[np.ndarray, Saved]:
        """Δ (T, D), and what `backward` needs. starts_B: the row where each text begins; the first is 0.

        With `past` the rows are those of one text behind the rows that are in it, and are added to it.
        """

    @abstractmethod
    def backward(self, params: Params, saved: Saved, d_delta_TD: np.ndarray) -> Params:
        """The gradient of every parameter, from the loss's gradient at Δ."""

    def new_past(self, params: Params) -> Past | None:
        """An empty past; None for kinds without context."""
        return None

    def extend(self, params: Params, code_TKR: np.ndarray, past: Past) -> None:
        """Add rows that need no correction to the past; a kind may do this in less than `forward` takes."""
        self.forward(params, code_TKR, ONE_TEXT, past)

    def load(
        self, config: Mapping[str, Any], tensors: Params, tap: Tap | None, gate: Gate, about: dict[str, Any]
    ) -> Part:
        """A trained part. Raises PluginError for parameters that don't fit together."""
        if tap is None:
            raise PluginError("a trained part must have a tap")
        phrases = tensors.pop("phrases", NO_PHRASES)
        bias = _bias_of(tensors)
        kind = self.configured(config.get("settings", {}))
        kind.check_tap(tap)
        foreign = [name for name in tensors if not name.startswith(PARAMS)]
        if foreign:
            raise PluginError(f"a part must have no tensor {foreign[0][:64]!r}: it holds something of another version")
        params = {name.removeprefix(PARAMS): value for name, value in tensors.items()}
        check_params(params, kind.shapes(tap, params))
        check_phrases(phrases)
        part = TrainedPart(kind, tap, params, gate, phrases, about, bias)
        delta_TD = part.correct(np.zeros((1, len(tap.layers), tap.rank), np.float32))
        gate.check(delta_TD.shape[1])
        return part


def digest(kind: str, tap: Tap, params: Params) -> bytes:
    """The SHA-256 (32 bytes) of a part's parameters, with its kind and tap: two parts with one digest correct alike."""
    whole = hashlib.sha256(f"{kind} {tap.name}".encode())
    for name, value in sorted(params.items()):
        whole.update(f" {name} {value.shape} ".encode() + np.ascontiguousarray(value, "<f4").tobytes())
    return whole.digest()


def check_params(params: Params, shapes: Mapping[str, tuple[int, ...]] | None) -> None:
    """Raises PluginError for parameters that are not float32, or not those of these shapes."""
    for name, value in params.items():
        if value.dtype != np.float32:
            raise PluginError(f"its parameter {name[:64]!r} must be float32, got {value.dtype.name}")
    if shapes is not None and {name: value.shape for name, value in params.items()} != dict(shapes):
        names = [name for name in {**shapes, **params} if name not in params or params[name].shape != shapes.get(name)]
        raise PluginError(f"its parameters must have the shapes of its kind: {', '.join(names)[:200]} have others")


def _bias_of(tensors: Params) -> Bias:
    """Take the bias of a part's tensors out of them. Raises PluginError."""
    ids, values = (tensors.pop(BIAS + name, none) for name, none in (("ids", NONE.ids), ("values", NONE.values)))
    try:
        return Bias(ids, values)
    except InputError as error:
        raise PluginError(str(error)) from None


def check_phrases(phrases: np.ndarray) -> None:
    """Raises PluginError for phrases that are no token ids."""
    if phrases.dtype != np.int32 or phrases.ndim != 1 or len(phrases) > MAX_PHRASES:
        raise PluginError(f"its phrases must be at most {MAX_PHRASES:,} token ids")
    if phrases.size and not -1 <= int(phrases.min()) <= int(phrases.max()) < MAX_VOCAB:
        raise PluginError("its phrases must be token ids")


@dataclass
class TrainedPart(Part):
    """A part that training makes. phrases: token ids of the person's texts, −1 between two, for drafts.

    own_bias: of the words that the person uses more, or less, than the base and this part expect.
    """

    kind: TrainedKind
    tap: Tap
    params: Params
    gate: Gate = field(default_factory=Gate)
    phrases: np.ndarray = field(default_factory=lambda: NO_PHRASES)
    about: dict[str, Any] = field(default_factory=dict)
    own_bias: Bias = NONE
    name: str = "manner"

    @property
    def bias(self) -> Bias:
        """See Part."""
        return self.own_bias

    @property
    def merge(self) -> Merge:  # type: ignore[override]
        """How the cloud uses its corrections."""
        return self.kind.merge

    @property
    def kind_name(self) -> str:  # type: ignore[override]
        """The name of its kind."""
        return self.kind.name

    @property
    def context(self) -> ContextSlice | None:
        """See Part."""
        return self.kind.context_slice(self.tap) if self.kind.context == "all" else None

    @property
    def size(self) -> int:
        """Parameters, with the bias's values."""
        return sum(value.size for value in self.params.values()) + len(self.own_bias)

    @property
    def digest(self) -> bytes:
        """See `digest`."""
        return digest(self.kind.name, self.tap, self.params)

    @property
    def model_width(self) -> int:
        """The width D of the base model that it corrects."""
        return int(self.correct(np.zeros((1, len(self.tap.layers), self.tap.rank), np.float32)).shape[1])

    def begin(self, prompt: Prompt) -> TrainedReply:
        """See Part."""
        return TrainedReply(self)

    def correct(self, code_TKR: np.ndarray, starts_B: np.ndarray = ONE_TEXT) -> np.ndarray:
        """Codes (T, K, R) float32 of whole texts → corrections (T, D) float32."""
        return self.kind.forward(self.params, code_TKR, starts_B)[0]

    def tensors(self) -> dict[str, np.ndarray]:
        """See Part."""
        bias = {BIAS + "ids": self.own_bias.ids, BIAS + "values": self.own_bias.values} if len(self.own_bias) else {}
        return {**{PARAMS + name: value for name, value in self.params.items()}, "phrases": self.phrases, **bias}

    def config(self) -> dict[str, Any]:
        """See Part."""
        return {"merge": self.merge, "settings": self.kind.config()}


class TrainedReply(PartReply):
    """A trained part during one reply: rows come in their order, and each is run by itself.

    A matrix product of several rows may differ from single ones in the last bit, and the text must not depend on how
    rows were bundled.
    """

    def __init__(self, part: TrainedPart) -> None:
        super().__init__(wants_context=part.context is not None)
        self._part = part
        self._past = part.kind.new_past(part.params)

    def context(self, first: int, code_CKR: np.ndarray) -> None:
        """See PartReply."""
        if self._past is not None:
            for code_KR in code_CKR:
                self._part.kind.extend(self._part.params, code_KR[None], self._past)

    def answer(self, at: int, code_KR: np.ndarray) -> Correction:
        """See PartReply."""
        return Correction(self._run(code_KR))

    def _run(self, code_KR: np.ndarray) -> np.ndarray:
        part = self._part
        delta_D: np.ndarray = part.kind.forward(part.params, code_KR[None], ONE_TEXT, self._past)[0][0]
        return delta_D

    def trim(self, length: int) -> None:
        """See PartReply."""
        if self._past is not None and length < self._past.length:
            self._past.trim(length)


_KINDS: dict[str, Kind] = {}
_HOMES = {"memory": "sideplug.memory"}  # kinds in rooms of their own, which are imported where a file has such a part


def register(kind: Kind) -> None:
    """Make a kind known to files, the command line and the benchmark. Raises ValueError for a name that is taken."""
    if kind.name in _KINDS and type(_KINDS[kind.name]) is not type(kind):
        raise ValueError(f"there is a kind {kind.name!r} already")
    _KINDS[kind.name] = kind


def kind_named(name: str, path: str = "") -> Kind:
    """The kind of this name, of a plugin in `path`. Raises PluginError."""
    if name in _HOMES:
        importlib.import_module(_HOMES[name])
    if name not in _KINDS and path:
        raise PluginError(
            f"{path} is of a kind that this version does not have, {name!r}: use the version that made it, or register "
            "the kind"
        )
    if name not in _KINDS:
        raise PluginError(f"a plugin's kind must be one of {', '.join(_KINDS)}, got {name[:64]!r}")
    return _KINDS[name]


def trained_kinds() -> dict[str, TrainedKind]:
    """The kinds that can be trained, by name, in the order of registration."""
    return {name: kind for name, kind in _KINDS.items() if isinstance(kind, TrainedKind)}


def trained_kind(name: str) -> TrainedKind:
    """The trainable kind of this name. Raises PluginError."""
    kind = kind_named(name)
    if not isinstance(kind, TrainedKind):
        raise PluginError(f"a plugin's kind must be one of {', '.join(trained_kinds())}, got {name!r}")
    return kind
