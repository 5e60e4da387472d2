"""What answers a cloud's questions, without a cloud: parts together, their gates and rows, the head, the listener."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest

from sideplug.contract.capabilities import CONTEXT, GRAMMAR, MIXTURE, QUOTE, TOKENS, TOOLS
from sideplug.contract.codec import pack, unpack
from sideplug.contract.correction import Correction, Mixture, merged, mix, mixture_of, pack_corrections
from sideplug.contract.errors import PluginError, ProtocolError, WrongBase
from sideplug.contract.frames import Answer, Ask, Context, Example, ModelInfo
from sideplug.contract.gate import Gate
from sideplug.contract.sampling import Sampling, choose
from sideplug.contract.tap import ContextSlice, Tap
from sideplug.contract.text import Prompt
from sideplug.device.head import DeviceHead, LogitTransform
from sideplug.device.responders import Answering, Listener, PluginResponder, ReplyOptions, Silent
from sideplug.plugins import Part, PartReply, Plugin
from tests.conftest import a_plugin

WIDTH, VOCAB, RANK = 64, 50, 16
TAP = Tap((0, 1, 2), RANK)
PROMPT = Prompt.user("Is it far?")
rng = np.random.default_rng(0)
Said = list[tuple[Any, ...]]


class Noted(PartReply):
    """Says what its part says, and notes all that it is told."""

    def __init__(self, part: Says, **more: Any) -> None:
        super().__init__(**more)
        self.part, self.noted = part, part.noted

    def hear(self, start: int, ids: list[int]) -> None:
        self.noted.append(("hear", start, ids))

    def context(self, first: int, code_CKR: np.ndarray) -> None:
        self.noted.append(("context", first, code_CKR.shape))

    def answer(self, at: int, code_KR: np.ndarray) -> Correction | None:
        self.noted.append(("answer", at, code_KR.shape))
        return self.part.says.get(at)

    def expected(self, at: int) -> list[int]:
        return self.part.expects.get(at, [])

    def trim(self, length: int) -> None:
        self.noted.append(("trim", length))


class Says(Part):
    """A part that says `says[at]` at position `at`. noted: what its replies were told."""

    kind_name = "says"

    def __init__(
        self,
        name: str,
        says: dict[int, Correction],
        role: Literal["memory", "manner"] = "manner",
        layers: tuple[int, ...] = (0, 1, 2),
        context: bool = False,
        gate: Gate = Gate("open"),
        expects: dict[int, list[int]] | None = None,
        **reply: Any,
    ) -> None:
        self.name, self.says, self.tap, self.gate = name, says, Tap(layers, RANK), gate
        self.role = role  # type: ignore[misc]
        self.expects, self.about = expects or {}, {}
        self.noted: Said = []
        self._context, self._reply = context, reply

    @property
    def context(self) -> ContextSlice | None:
        return ContextSlice(self.tap, self.tap.layers, 4) if self._context else None

    @property
    def size(self) -> int:
        return 0

    def begin(self, prompt: Prompt) -> PartReply:
        return Noted(self, wants_context=self._context, **self._reply)

    def tensors(self) -> dict[str, np.ndarray]:
        return {}

    def config(self) -> dict[str, Any]:
        return {}


def a_delta(value: float) -> Correction:
    return Correction(np.full(WIDTH, value, np.float32))


def a_mixture(token: int, weight: float = 1.0) -> Correction:
    return Correction(mixture=Mixture(weight, np.array([token], np.int32), np.ones(1, np.float32)))


def plugin_of(*parts: Part) -> Plugin:
    return Plugin("b" * 64, "base", list(parts))


def begun(plugin: Plugin, drafts: bool = True, head: DeviceHead | None = None, sampling: Sampling = Sampling()) -> Any:
    options = ReplyOptions(drafts=drafts, head=head, width=WIDTH)
    answering: Answering = PluginResponder(plugin).begin(PROMPT, sampling, options)
    return answering


def an_ask(at: Sequence[int], gates: list[int] | None = None, z: np.ndarray | None = None, run: int = 0) -> Ask:
    codes, scales = TAP.encode(rng.normal(size=(len(at), len(TAP.layers), WIDTH)))
    return Ask(1, run, list(at), at[0], [], codes, scales, gates or [], z)


def a_context(first: int, count: int, context: ContextSlice) -> Context:
    codes, scales = context.cut(*context.tap.encode(rng.normal(size=(count, len(context.tap.layers), WIDTH))))
    return Context(1, 0, first, codes, scales)


def deltas(answer: Any) -> list[float]:
    """The first number of each position's correction."""
    return [round(float(row[0]), 1) for row in unpack(answer["delta"], answer["scales"])]


# ── parts together ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_memory_that_knows_that_nothing_was_told_hushes_the_others() -> None:
    """Else a manner part makes up what nobody told."""
    told = begun(plugin_of(Says("m", {}, "memory", hushes=True), Says("a", {1: a_delta(1)})))
    assert told.gates == ["shut", "shut"]
    quoting = begun(plugin_of(Says("m", {}, "memory", quote=[7]), Says("a", {1: a_delta(1)}, context=True)))
    assert (quoting.gates, quoting.rows) == (["", "shut"], None), "and one that quotes speaks alone"
    other = begun(plugin_of(Says("m", {}, "memory", gate="shut"), Says("a", {1: a_delta(1)})))
    assert other.gates in ([], ["shut", ""])


def test_a_part_that_is_hushed_needs_no_rows() -> None:
    """Nothing of the prompt comes down where nobody may speak."""
    for hushes, rows in ((True, None), (False, 0)):
        memory = Says("m", {}, "memory", gate="shut", hushes=hushes)
        assert begun(plugin_of(memory, Says("a", {1: a_delta(1)}, context=True))).rows == rows


def test_the_corrections_of_manner_parts_are_summed() -> None:
    first, second = Says("a", {5: a_delta(1.0), 6: a_delta(1.0)}), Says("b", {5: a_delta(0.5)}, layers=(1,))
    answer = begun(plugin_of(first, second)).answer([an_ask([5, 6, 7])])
    assert deltas(answer) == [1.5, 1.0, 0.0]
    assert "mix" not in answer
    assert [each for each in second.noted if each[0] == "answer"] == [("answer", at, (1, RANK)) for at in (5, 6, 7)]


def test_a_memory_that_speaks_speaks_alone() -> None:
    """Also where it speaks by a delta; where it is silent the manner parts speak."""
    memory = Says("m", {5: a_mixture(9), 6: a_delta(2.0)}, role="memory", layers=(1,))
    manner = Says("a", {at: a_delta(1.0) for at in (5, 6, 7)})
    answering = begun(plugin_of(manner, memory))  # in whatever order they stand, the memory is asked first
    answer = answering.answer([an_ask([5, 6, 7])])
    assert deltas(answer) == [0.0, 2.0, 1.0]
    frame = Answer(1, 0, [5, 6, 7], np.zeros((1, 0), np.int32), **answer)
    mixtures = [mixture_of(frame, row) for row in range(3)]
    assert [mixture.ids.tolist() if mixture else None for mixture in mixtures] == [[9], None, None]
    assert [each[1] for each in manner.noted if each[0] == "answer"] == [7], "it is not asked in vain"


def test_the_first_memory_that_speaks_is_heard() -> None:
    memories = [
        Says("m", {6: a_mixture(9)}, role="memory"),
        Says("n", {5: a_mixture(8), 6: a_mixture(8)}, role="memory"),
    ]
    answer = begun(plugin_of(*memories)).answer([an_ask([5, 6])])
    assert answer["mix_ids"].tolist() == [[8], [9]]
    assert "delta" not in answer


def test_a_mixture_of_a_manner_part_stands_beside_the_sum() -> None:
    both = Correction(np.ones(WIDTH, np.float32), a_mixture(7, 0.5).mixture)
    answer = begun(plugin_of(Says("a", {5: a_delta(1.0)}), Says("b", {5: both}))).answer([an_ask([5])])
    assert deltas(answer) == [2.0]
    assert (answer["mix"].tolist(), answer["mix_ids"].tolist()) == ([0.5], [[7]])


def test_nothing_to_say_is_nothing_sent() -> None:
    assert begun(plugin_of(Says("m", {}, role="memory"), Says("a", {}))).answer([an_ask([5, 6])]) == {}


def test_several_asks_are_answered_in_one() -> None:
    part = Says("a", {at: a_delta(float(at)) for at in range(20)})
    assert deltas(begun(plugin_of(part)).answer([an_ask([5, 6]), an_ask([7])])) == [5.0, 6.0, 7.0]


def test_the_bits_of_the_gates_say_which_parts_are_asked() -> None:
    """Bit p is part p's, in the plugin's order; without bits all are asked."""
    memory = Says("m", {at: a_mixture(9) for at in range(9)}, role="memory")
    first, second = (Says(name, {at: a_delta(by) for at in range(9)}) for name, by in (("a", 1.0), ("b", 0.5)))
    answering = begun(plugin_of(memory, first, second))
    answer = answering.answer([an_ask([5, 6, 7, 8], gates=[0b110, 0b100, 0b010, 0b011])])
    assert deltas(answer) == [1.5, 0.5, 1.0, 0.0]
    assert answer["mix"].tolist() == [0, 0, 0, 1]
    for part, asked in ((memory, [8]), (first, [5, 7]), (second, [5, 6])):
        assert [each[1] for each in part.noted if each[0] == "answer"] == asked


def test_what_replaces_z_is_alone() -> None:
    """A position at which a memory speaks has no z of its own to be replaced by."""
    paper = a_plugin("b" * 64, "paper").trained
    memory = Says("m", {}, role="memory")
    memory.tap = paper.tap
    with pytest.raises(PluginError, match="only part"):
        plugin_of(memory, paper)


def test_a_text_is_told_to_every_part_before_it_is_asked() -> None:
    part = Says("a", {})
    ask = an_ask([7])
    ask.ids.extend([3, 4])
    begun(plugin_of(part)).answer([ask])
    assert part.noted == [("hear", 7, [3, 4]), ("answer", 7, (3, RANK))]


# ── what OPEN and PROMPT ask for ──────────────────────────────────────────────────────────────────────────────────────


def test_the_opening() -> None:
    linear = Gate("linear", np.ones(WIDTH, np.float32))
    plugin = a_plugin("b" * 64)
    memory = Says("m", {}, role="memory", layers=(1,), gate=Gate("shut"), context=True)
    both = plugin_of(memory, *plugin.parts)
    opening = PluginResponder(both).opening
    assert (opening.base, opening.tap, opening.merge) == ("b" * 64, TAP, "add")
    assert [gate.kind for gate in opening.gates] == ["shut", "open"]
    always = {GRAMMAR.name: False, TOOLS.name: False}
    required = {**always, MIXTURE.name: True, CONTEXT.name: True, QUOTE.name: False, TOKENS.name: False}
    assert {name: wanted.required for name, wanted in opening.capabilities.items()} == required
    assert {name: each.required for name, each in PluginResponder(plugin).opening.capabilities.items()} == always
    for gate, kinds in ((Gate("open"), "open open"), (Gate("shut"), "shut shut"), (linear, "shut linear")):
        assert [each.kind for each in PluginResponder(both, gate).opening.gates] == kinds.split()
    model = ModelInfo("m", "c" * 64, blocks=2, width=WIDTH, vocab=VOCAB, context=9, chat=True)
    with pytest.raises(WrongBase, match="made for the base model bbb"):
        PluginResponder(both).check_base(model)


def test_what_parts_ask_for_in_a_reply() -> None:
    memory = Says("m", {}, role="memory", gate=Gate("shut"), **{"draft": [4, 5]})
    answering = begun(plugin_of(memory, Says("a", {})))
    assert (answering.gates, answering.draft, answering.rows) == ([], [4, 5], None)
    assert begun(plugin_of(memory), drafts=False).draft == []
    opened = Noted(memory, gate="open")
    memory.begin = lambda prompt: opened  # type: ignore[method-assign]
    assert begun(plugin_of(memory, Says("a", {}))).gates == ["open", ""]


def test_drafts_are_a_part_s_own_first() -> None:
    plugin = a_plugin("b" * 64)
    plugin.trained.phrases = np.array([1, 2, 3, -1, 1, 2, 3], np.int32)
    memory = Says("m", {}, role="memory", expects={7: [8, 9]})
    answering = begun(plugin_of(memory, *plugin.parts))
    answering.begun(5)
    assert answering.drafts(an_ask([5])) == [1, 2, 3]
    ahead = replace(an_ask([6]), start=5, ids=[1])
    assert answering.drafts(ahead) == [2, 3], "the rest of what is drafted behind the settled text"
    assert answering.drafts(replace(ahead, ids=[9])) == [], "the cloud proposes another text"
    answering.settled(5, [1, 9])
    assert answering.drafts(replace(an_ask([8]), start=7, ids=[8])) == [9]
    assert answering.drafts(an_ask([7])) == [8, 9]
    assert begun(plugin_of(*plugin.parts), drafts=False).drafts(an_ask([5])) == []
    assert begun(plugin_of(Says("a", {}))).drafts(an_ask([5])) == []


# ── rows ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def looking_back() -> tuple[Says, Says, Any]:
    """A part that needs all rows, one that does not, and a reply of both."""
    needs, not_ = Says("a", {5: a_delta(1.0)}, layers=(0, 2), context=True), Says("b", {})
    return needs, not_, begun(plugin_of(needs, not_))


def test_rows_go_to_the_parts_that_need_them() -> None:
    needs, not_, answering = looking_back()
    context = ContextSlice(TAP, (0, 2), 4)
    assert answering.rows == 0
    answering.context(a_context(0, 3, context))
    answering.context(a_context(3, 1, context))
    assert answering.rows == 4
    answering.answer([an_ask([5], gates=[0b01])])
    answering.answer([an_ask([6], gates=[0b10])])  # it is not asked, but it needs the row
    assert answering.rows == 6
    shape = (2, RANK)
    rows = [each for each in needs.noted if each[0] != "hear"]
    assert rows == [
        ("context", 0, (3, *shape)),
        ("context", 3, (1, *shape)),
        ("answer", 5, shape),
        ("context", 5, (1, *shape)),
    ]
    assert [each for each in not_.noted if each[0] != "hear"] == [("answer", 6, (3, RANK))]


def test_a_memory_that_speaks_leaves_the_rows_to_the_others() -> None:
    memory, needs = Says("m", {5: a_mixture(9)}, role="memory"), Says("a", {}, context=True)
    answering = begun(plugin_of(memory, needs))
    answering.context(a_context(0, 4, ContextSlice(TAP, TAP.layers, 4)))
    answering.answer([an_ask([5])])
    assert needs.noted[-1] == ("context", 4, (1, 3, RANK))
    assert answering.rows == 5


@pytest.mark.parametrize("row", [1, 4])
def test_a_gap_in_the_rows_is_seen(row: int) -> None:
    _, _, answering = looking_back()
    with pytest.raises(ProtocolError, match=f"must send the rows from 0 on, got row {row}"):
        answering.context(a_context(row, 1, ContextSlice(TAP, (0, 2), 4)))
    with pytest.raises(ProtocolError, match=f"must send the rows from 0 on, got row {row}"):
        answering.answer([an_ask([row + 1])])


def test_rows_that_come_again_replace_what_stood_there() -> None:
    """The text was rolled back: what each part has from there on is forgotten first."""
    needs, not_, answering = looking_back()
    answering.context(a_context(0, 4, ContextSlice(TAP, (0, 2), 4)))
    answering.answer([an_ask([5]), an_ask([6]), an_ask([7])])
    for part in (needs, not_):
        part.noted.clear()
    answering.answer([an_ask([6])])
    assert [each for each in needs.noted if each[0] != "hear"] == [("trim", 5), ("answer", 6, (2, RANK))]
    assert not_.noted[-2:] == [("trim", 5), ("answer", 6, (3, RANK))]
    assert answering.rows == 6
    needs.noted.clear()
    answering.context(a_context(2, 1, ContextSlice(TAP, (0, 2), 4)))
    assert needs.noted == [("trim", 2), ("context", 2, (1, 2, RANK))]
    assert answering.rows == 3


def test_an_ask_that_was_rolled_back_still_gives_its_row() -> None:
    needs, _, answering = looking_back()
    answering.context(a_context(0, 4, ContextSlice(TAP, (0, 2), 4)))
    answering.skip(an_ask([5]))
    assert needs.noted[-1] == ("context", 4, (1, 2, RANK))
    assert answering.rows == 5
    part = Says("a", {})
    begun(plugin_of(part)).skip(an_ask([5]))
    assert part.noted == [], "nobody needs it"


def a_text(answering: Any, first: int, ids: list[int]) -> None:
    """A prompt of `first` positions, and asks as these ids come behind it, one by one."""
    answering.context(a_context(0, first - 1, ContextSlice(TAP, (0, 2), 4)))
    for at, before in enumerate([[], *([token] for token in ids)], first):
        ask = an_ask([at])
        answering.answer([Ask(1, 0, [at], at - len(before), before, ask.codes, ask.scales)])


def test_a_row_behind_a_token_that_did_not_settle_is_forgotten() -> None:
    needs, _, answering = looking_back()
    a_text(answering, 5, [40, 41])
    assert answering.rows == 7
    answering.settled(5, [40])
    assert answering.rows == 7
    answering.settled(6, [49])  # row 6 stands behind 41
    assert needs.noted[-1] == ("trim", 6)
    assert answering.rows == 6


def test_after_a_break_only_what_is_settled_is_kept() -> None:
    needs, _, answering = looking_back()
    a_text(answering, 5, [40, 41])
    answering.resume(6, 5)
    assert needs.noted[-1] == ("trim", 6)
    assert answering.rows == 6
    answering.resume(9, 5)
    assert answering.rows == 6, "what it does not have it does not keep"


def test_after_a_break_a_row_behind_an_unknown_token_is_not_kept() -> None:
    needs, _, answering = looking_back()
    a_text(answering, 5, [40])
    answering.add_rows(6, np.zeros((1, 3, RANK), np.float32))  # which token it stands behind was not told
    answering.resume(8, 5)
    assert needs.noted[-1] == ("trim", 6)
    assert answering.rows == 6


def test_rows_that_nobody_asked_for() -> None:
    frame = a_context(0, 1, ContextSlice(TAP, TAP.layers, 4))
    silent = Silent(TAP).begin(PROMPT, Sampling(), ReplyOptions(drafts=True, head=None, width=WIDTH))
    for answering in (begun(plugin_of(Says("a", {}))), silent):
        with pytest.raises(ProtocolError, match="context rows that nobody asked for"):
            answering.context(frame)


# ── the head on the device ────────────────────────────────────────────────────────────────────────────────────────────

HEAD = DeviceHead(
    rng.normal(size=(VOCAB, WIDTH)).astype(np.float32),
    rng.normal(size=VOCAB).astype(np.float32),
    LogitTransform(0.7, 20.0),
)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.9, seed=3), Sampling(0.9, repetition_penalty=1.4, seed=3)])
def test_the_head_picks_what_a_cloud_would_from_the_answer(sampling: Sampling) -> None:
    """With a delta, with a mixture, with both and with neither."""
    both = Correction(np.ones(WIDTH, np.float32), a_mixture(3, 0.2).mixture)
    says = {5: a_delta(0.3), 6: a_mixture(17, 0.6), 7: both}
    plugin = plugin_of(Says("a", says))
    text = list(range(8))
    for at in (5, 6, 7, 8):
        z_1D = rng.normal(size=(1, WIDTH)).astype(np.float16)
        ask = Ask(1, 0, [at], 0, text[:at], *TAP.encode(rng.normal(size=(1, 3, WIDTH))), z=z_1D)
        picked = begun(plugin, head=HEAD, sampling=sampling).answer([ask])
        corrected = z_1D.astype(np.float32)
        correction = says.get(at, Correction())
        if correction.delta_D is not None:
            corrected = merged(corrected, unpack(*pack(correction.delta_D[None], int8=True)), "add")
        want = choose(mix(HEAD.logits(corrected), correction.mixture), sampling, at, text[:at])
        assert picked["ids"].dtype == np.int32
        assert picked["ids"].tolist() == [want]


def test_a_mixture_of_one_token_is_picked() -> None:
    plugin = plugin_of(Says("a", {at: a_mixture(at) for at in (5, 6)}))
    z_TD = rng.normal(size=(2, WIDTH)).astype(np.float16)
    assert begun(plugin, head=HEAD).answer([an_ask([5, 6], z=z_TD)])["ids"].tolist() == [5, 6]


def test_the_head_needs_z() -> None:
    answering = begun(plugin_of(Says("a", {})), head=HEAD)
    for z in (None, np.zeros((2, WIDTH), np.float16)):
        with pytest.raises(ProtocolError, match="must send z with each ASK"):
            answering.answer([an_ask([5], z=z)])


def test_the_head_leaves_the_rest_to_the_parts() -> None:
    part = Says("a", {}, context=True, expects={5: [1]})
    answering = begun(plugin_of(part), head=HEAD)
    answering.context(a_context(0, 4, ContextSlice(TAP, TAP.layers, 4)))
    assert answering.rows == 4
    answering.begun(5)
    assert answering.drafts(an_ask([5])) == [1]
    answering.resume(2, 2)
    assert part.noted[-1] == ("trim", 2)


# ── others ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_listener_hears_and_corrects_nothing() -> None:
    listener = Listener(TAP, WIDTH)
    assert [gate.kind for gate in listener.opening.gates] == ["open"]
    options = ReplyOptions(drafts=True, head=None, width=WIDTH)
    answering = listener.begin(PROMPT, Sampling(), options)
    asks = [an_ask([5, 6]), an_ask([7])]
    answer = answering.answer(asks)
    assert not unpack(answer["delta"], answer["scales"]).any()
    assert answer["delta"].shape == (3, WIDTH)
    assert sorted(listener.heard) == [5, 6, 7]
    np.testing.assert_array_equal(listener.heard[6], TAP.decode(asks[0].codes, asks[0].scales)[1])
    again = an_ask([6], run=1)
    answering.answer([again])  # rolled back: what comes later stands
    np.testing.assert_array_equal(listener.heard[6], TAP.decode(again.codes, again.scales)[0])
    listener.begin(PROMPT, Sampling(), options)
    assert listener.heard == {}, "each reply has its own"
    with pytest.raises(ProtocolError, match="has nothing to score"):
        listener.score(an_example(2))


def test_without_a_plugin_nothing_is_answered() -> None:
    silent = Silent()
    assert [gate.kind for gate in silent.opening.gates] == ["shut"]
    answering = silent.begin(PROMPT, Sampling(), ReplyOptions(drafts=True, head=None, width=WIDTH))
    with pytest.raises(ProtocolError, match="this session has no plugin"):
        answering.answer([an_ask([5])])
    with pytest.raises(ProtocolError, match="this session has no plugin"):
        silent.score(an_example(2))


def an_example(count: int, context: int | None = None, slice_: ContextSlice | None = None) -> Example:
    codes, scales = TAP.encode(rng.normal(size=(count, 3, WIDTH)))
    rows: dict[str, Any] = {}
    if context is not None and slice_ is not None:
        frame = a_context(0, context, slice_)
        rows = {"context": frame.codes, "context_scales": frame.scales}
    z = rng.normal(size=(count, WIDTH)).astype(np.float16)
    ids = np.arange(count, dtype=np.int32)
    top = np.zeros((count, 16), np.int32)
    return Example(0, ids, codes, scales, z, np.zeros(0, np.float32), top, np.zeros(count, np.float32), **rows)


def test_a_score_is_the_answers_of_a_reply() -> None:
    plugin = a_plugin("b" * 64)
    example = an_example(4)
    got = PluginResponder(plugin).score(example)
    rows = TAP.decode(example.codes, example.scales)
    want = pack_corrections([Correction(plugin.trained.correct(row[None])[0]) for row in rows], WIDTH, int8=True)
    for name, value in want.items():
        np.testing.assert_array_equal(got[name], value)  # type: ignore[literal-required]


def test_a_score_has_the_rows_of_the_prompt_first() -> None:
    part = Says("a", {4: a_delta(1.0)}, context=True)
    context = ContextSlice(TAP, TAP.layers, 4)
    responder = PluginResponder(plugin_of(part))
    assert deltas(responder.score(an_example(2, 3, context))) == [1.0, 0.0]
    shape = (3, RANK)
    assert part.noted == [("context", 0, (3, *shape)), ("answer", 4, shape), ("answer", 5, shape)]
    with pytest.raises(ProtocolError, match="must send the rows of the prompt"):
        responder.score(an_example(2))
