"""An engine with a real tiny model, and a device that needs the context: which rows it is sent, when, and how often.

Also what an engine does with the gates of several parts, with a first draft, and with mixtures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sideplug.cloud.admission import AdmissionLimits
from sideplug.cloud.engine import Engine
from sideplug.cloud.engines import open_model
from sideplug.cloud.model.base import Chunk, Model
from sideplug.cloud.requests import Terms, read_example, read_open, read_prompt
from sideplug.cloud.scheduler import Budget
from sideplug.cloud.store import Base, find
from sideplug.cloud.tokenizer import Tokenizer
from sideplug.contract.capabilities import CONTEXT, MIXTURE, ContextSettings, MixtureSettings, want
from sideplug.contract.correction import Correction, Mixture, pack_corrections
from sideplug.contract.errors import ProtocolError
from sideplug.contract.frames import (
    Answer,
    Ask,
    Begun,
    Context,
    Done,
    Example,
    Frame,
    Map,
    Open,
    Opened,
    PromptFrame,
    Read,
    SamplingSpec,
    Score,
    Scored,
    Tokens,
)
from sideplug.contract.gate import Gate, pack_gates
from sideplug.contract.progress import running_hash
from sideplug.contract.sampling import Sampling, choose
from sideplug.contract.tap import ContextSlice, Tap
from tests.conftest import UNQUANTISED, Cloud, a_link

TAP = Tap((0, 1, 2), 16)
SLICE = ContextSlice(TAP, (0, 2), 8)
LINEAR = Gate("linear", np.random.default_rng(0).normal(0, 0.1, 64).astype(np.float32), memory=0.5)
NEEDS_CONTEXT: dict[str, Map] = {CONTEXT.name: ContextSettings([0, 2], 8)}
MAY_MIX: dict[str, Map] = {MIXTURE.name: MixtureSettings()}
NOTHING = Correction(np.zeros(64, np.float32))
Correct = Callable[[int], Correction]  # a position → what the device answers there


@pytest.fixture(scope="module")
def parts(tiny: Path) -> tuple[Model, Tokenizer]:
    return open_model(find(str(tiny)), UNQUANTISED).model, Tokenizer(tiny)


def an_engine(parts: tuple[Model, Tokenizer], **limits: Any) -> Engine:
    """Its prompts are run in chunks of 16 tokens."""
    return Engine(*parts, Budget(16, 8), AdmissionLimits(**limits))


def some(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(2, 300, count).tolist()


def opening(gates: Sequence[Gate], capabilities: dict[str, Map], merge: str = "add") -> Open:
    specs, weights_GD = pack_gates(gates, 64)
    return Open("", TAP.name, merge, specs, "test", weights_GD, {name: want(s) for name, s in capabilities.items()})


def terms(engine: Engine, gates: Sequence[Gate], capabilities: dict[str, Map]) -> Terms:
    base = Base("tiny", Path("tiny"), "a" * 64)
    return Terms(read_open(opening(gates, capabilities), base, engine.model), engine.model, engine.tokenizer)


class Device:
    """A reply in an engine, as its device hears it. Whatever breaks the order of rows fails here.

    rows: position → (codes, scales) of the slice, from `have` on. came: (run, position, kind) of each row.
    """

    def __init__(
        self,
        engine: Engine,
        ids: Sequence[int],
        gates: Sequence[Gate] = (Gate("open"),),
        capabilities: dict[str, Map] = NEEDS_CONTEXT,
        correct: Correct = lambda at: NOTHING,
        opened: Sequence[str] = (),
        **more: Any,
    ) -> None:
        self.engine, self.correct = engine, correct
        self.frames: list[Frame] = []
        self.rows: list[Any] = [None] * (more.get("context") or 0)
        self.have = len(self.rows)
        self.came: list[tuple[int, int, str]] = []
        self.run = 0
        given = {"context": 0} if CONTEXT.name in capabilities else {}
        fields = {"ids": list(ids), "max_tokens": 12, "sampling": SamplingSpec(), "turn": 1, "gates": list(opened)}
        fields |= {**given, **more}
        self.wants_rows = fields.get("context") is not None
        self.frame = PromptFrame(**fields)
        self.reply = read_prompt(self.frame, terms(engine, gates, capabilities), self._hear)
        self.reply.stats.answer_s = 60.0  # as of a far device: speculation is worth its step on any machine
        self.reply.stop_ids = ()  # nothing but its length ends it
        engine.add(self.reply)

    def _hear(self, frame: Frame) -> None:
        self.frames.append(frame)
        if isinstance(frame, Context):
            assert self.wants_rows, "nobody asked for it"
            assert 0 < len(frame.codes) == len(frame.scales)
            for row, (codes, scales) in enumerate(zip(frame.codes, frame.scales, strict=True)):
                self._take(frame.run, frame.first + row, "context", codes, scales)
        elif isinstance(frame, Ask) and self.wants_rows:
            codes, scales = SLICE.cut(frame.codes, frame.scales)
            self._take(frame.run, frame.at[0] - 1, "ask", codes[0], scales[0])

    def _take(self, run: int, position: int, kind: str, codes: np.ndarray, scales: np.ndarray) -> None:
        assert run == self.run or run == self.run + 1
        if run > self.run:  # rolled back: the rows from there on come again
            assert position <= len(self.rows)
            del self.rows[position:]
            self.run = run
        if position == self.have - 1 == len(self.rows) - 1 and kind == "ask":
            self.rows.pop()  # an ASK carries its row even where the device has it
        assert position == len(self.rows), "in order, without a gap, none twice"
        self.rows.append((codes, scales))
        self.came.append((run, position, kind))

    def answer(self, *asks: Ask, correct: Correct | None = None) -> None:
        corrections = [(correct or self.correct)(ask.at[0]) for ask in asks]
        at = [ask.at[0] for ask in asks]
        packed: Any = pack_corrections(corrections, 64, int8=True)
        self.engine.answer(self.reply, Answer(1, asks[-1].run, at, np.zeros((len(at), 0), np.int32), **packed))

    def finish(self) -> Device:
        """Answer what is asked, first things first, until it is done."""
        while not self.of(Done):
            assert self.reply.alive, "a fault ended it: the log has it"
            if not self.engine.step():
                (ask, *_) = [
                    ask for ask in self.of(Ask) if ask.at[0] == self.reply.asks[0].at and ask.run == self.run_of()
                ]
                self.answer(ask)
        return self

    def run_of(self) -> int:
        return self.of(Ask)[-1].run

    def of(self, kind: type[Any]) -> list[Any]:
        return [frame for frame in self.frames if isinstance(frame, kind)]

    @property
    def ids(self) -> list[int]:
        """Of the reply, as far as they came."""
        return [token for frame in self.of(Tokens) for token in frame.ids]

    @property
    def asked(self) -> list[int]:
        return [ask.at[0] for ask in self.of(Ask)]

    @property
    def counts(self) -> dict[str, int]:
        (done,) = self.of(Done)
        counts: dict[str, int] = done.counts
        return counts

    def check_rows(self) -> None:
        """What it has is what the model makes of prompt and reply, run in one piece.

        At the end there may be rows of a run that was rolled back, if nothing was asked in the run after it. The device
        knows them: the text that the ASKs told is not the one that was settled.
        """
        whole = [*(self.frame.ids or []), *self.frame.done, *self.ids]
        heard = {at: token for ask in self.of(Ask) for at, token in enumerate(ask.ids, ask.start)}
        wrong = [at for at, token in enumerate(whole) if heard.get(at, token) != token]
        assert bool(wrong) <= (self.run < self.reply.run)
        del self.rows[min(wrong, default=len(whole)) :]
        assert len(self.rows) > self.have, "or this shows nothing"
        codes, scales = (np.stack(column) for column in zip(*self.rows[self.have :], strict=True))
        got = SLICE.decode(codes, scales)
        assert not got[:, 1].any()
        assert not got[:, :, 8:].any(), "no other layer, and no more of each"
        expected = naive_codes(self.engine.model, whole)[self.have : len(self.rows)]
        np.testing.assert_allclose(got[:, [0, 2], :8], expected[:, [0, 2], :8], atol=0.06)  # a step of int8 or two


def naive_codes(model: Model, ids: Sequence[int]) -> np.ndarray:
    """The tap's codes (T, K, R) of a whole text."""
    out = model.forward([Chunk(list(ids), model.new_cache(len(ids)))], set(TAP.layers))
    return TAP.decode(*TAP.encode(out.tapped(slice(0, len(ids)), TAP.layers)))


def other(seed: int, scale: float = 9.0) -> Correction:
    """A correction that changes the token."""
    return Correction((np.random.default_rng(seed).normal(size=64) * scale).astype(np.float32))


# ── Rows ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_rows_of_the_prompt_come_in_its_chunks_and_before_the_first_ask(parts: tuple[Model, Tokenizer]) -> None:
    device = Device(an_engine(parts), some(40)).finish()
    kinds = [frame.kind.name for frame in device.frames]
    assert kinds[:5] == ["BEGUN", "CONTEXT", "CONTEXT", "CONTEXT", "ASK"]
    spans = [(frame.first, len(frame.codes)) for frame in device.of(Context)]
    assert spans == [(0, 16), (16, 16), (32, 7)], "the last row goes with the ASK"
    assert device.asked == list(range(40, 40 + len(device.ids)))
    assert [position for _, position, _ in device.came] == list(range(39 + len(device.ids)))
    device.check_rows()


def test_rows_without_an_ask_come_before_the_next_one(parts: tuple[Model, Tokenizer]) -> None:
    """A gate that opens now and then; the rows are, to the bit, those of a gate that is always open."""
    engine = an_engine(parts, keep_s=0)
    every = Device(engine, some(40)).finish()
    device = Device(engine, some(40), [LINEAR]).finish()
    assert device.ids == every.ids
    assert 1 < len(device.asked) < len(device.ids) - 1, "or this shows nothing"
    kinds = {position: kind for _, position, kind in device.came}
    assert len(device.came) == len(device.rows) == device.asked[-1]
    assert {at - 1 for at in device.asked} == {position for position, kind in kinds.items() if kind == "ask"}
    assert any(kind == "context" for position, kind in kinds.items() if position >= 40)
    for position, (codes, scales) in enumerate(device.rows):
        np.testing.assert_array_equal(codes, every.rows[position][0])
        np.testing.assert_array_equal(scales, every.rows[position][1])
    device.check_rows()


def test_after_a_roll_back_the_rows_come_again_from_there_on(parts: tuple[Model, Tokenizer]) -> None:
    engine = an_engine(parts)
    device = Device(engine, some(20), window=4)
    while engine.step():
        pass
    assert device.asked == [20, 21, 22, 23, 24]
    first, second = device.of(Ask)[:2]
    device.answer(first)  # what was speculated
    device.answer(second, correct=other)  # and another token at position 21
    while engine.step():
        pass
    again = [position for run, position, _ in device.came if run == 1]
    assert again == list(range(21, 21 + len(again))), "the first that is new is that of the token that changed"
    assert len(again) > 1
    assert device.reply.counts.rolled_back == 1
    device.finish()
    device.check_rows()


@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_answered_each_row_comes_once_and_in_order(parts: tuple[Model, Tokenizer], seed: int) -> None:
    """Any window, gates that open now and then, corrections that change some of the tokens; a conversation of two."""
    rng = np.random.default_rng(seed)
    engine = an_engine(parts)
    gates = [Gate("linear", rng.normal(0, 0.1, 64).astype(np.float32), memory=0.3), Gate("shut")]
    text = some(int(rng.integers(3, 60)), seed)
    for turn in range(2):
        changed = set(rng.integers(len(text), len(text) + 30, 8).tolist())
        device = Device(
            engine,
            text,
            gates,
            correct=lambda at, changed=changed: other(at) if at in changed else NOTHING,  # type: ignore[misc]
            window=int(rng.integers(0, 8)),
            max_tokens=30,
            opened=["", "open" if turn else ""],
        ).finish()
        device.check_rows()
        text = [*text, *device.ids, *some(5, seed + 9)]


def test_a_reused_prefix_brings_its_rows(parts: tuple[Model, Tokenizer]) -> None:
    engine = an_engine(parts)
    first = Device(engine, some(40), [LINEAR]).finish()
    text = [*some(40), *first.ids, *some(10, 1)]
    device = Device(engine, text, [LINEAR]).finish()
    (begun,) = device.of(Begun)
    assert begun.cached == 40
    for position in range(40):
        np.testing.assert_array_equal(device.rows[position][0], first.rows[position][0])
    device.check_rows()
    fresh = Device(an_engine(parts, keep_s=0), text, [LINEAR]).finish()
    assert (device.ids, device.asked) == (fresh.ids, fresh.asked)


def test_a_cached_text_without_rows_is_run_again(parts: tuple[Model, Tokenizer]) -> None:
    """Whoever needs no rows may reuse what somebody left who needed them, and not the other way round."""
    engine = an_engine(parts)
    without = Device(engine, some(40), [LINEAR], {}).finish()
    device = Device(engine, some(40), [LINEAR]).finish()
    assert device.of(Begun)[0].cached == 0
    device.check_rows()
    assert device.ids == without.ids
    assert Device(engine, some(40), [LINEAR], {}).finish().of(Begun)[0].cached == 38
    assert Device(engine, some(40), [LINEAR]).finish().of(Begun)[0].cached in (0, 38)


def test_the_rows_of_a_running_reply_are_shared_too(parts: tuple[Model, Tokenizer]) -> None:
    engine = an_engine(parts)
    first = Device(engine, some(40))
    while engine.step():
        pass
    second = Device(engine, some(40))
    while engine.step():
        pass
    assert second.of(Begun)[0].cached == 38
    second.answer(*second.of(Ask)[-1:])
    first.finish()
    second.finish()
    second.check_rows()
    assert first.ids == second.ids


@pytest.mark.parametrize("keep_s", [600.0, 0.0])
@pytest.mark.parametrize("window", [0, 4])
def test_a_reply_that_goes_on_brings_the_rows_that_the_device_lacks(
    parts: tuple[Model, Tokenizer], keep_s: float, window: int
) -> None:
    """At any cut, with any number of rows at the device, whether the cloud has cached what it ran or not."""
    prompt = some(20)
    whole = Device(an_engine(parts), prompt, [LINEAR], window=window).finish()
    assert len(whole.ids) == 12
    for cut in (1, 4, 8, 11):
        for have in {0, 7, 20, 20 + cut - 1, 20 + cut}:
            engine = an_engine(parts, keep_s=keep_s)
            broken = Device(engine, prompt, [LINEAR], window=window)
            while len(broken.ids) < cut:
                if not engine.step():
                    broken.answer(next(ask for ask in broken.of(Ask) if ask.at[0] == broken.reply.asks[0].at))
            engine.leave(broken.reply)
            done = whole.ids[:cut]
            more = {"done": done, "hash": running_hash(done, running_hash(prompt)), "context": have}
            device = Device(engine, prompt, [LINEAR], window=window, **more).finish()
            assert done + device.ids == whole.ids
            assert device.asked == [at for at in whole.asked if at >= 20 + cut]
            assert all(position >= have for _, position, kind in device.came if kind == "context")
            if device.asked:
                assert len(device.rows) == device.asked[-1]
            if len(device.rows) > have:
                device.check_rows()


def test_no_context_without_the_capability_or_the_wish(parts: tuple[Model, Tokenizer]) -> None:
    engine = an_engine(parts)
    for capabilities, more in (({}, {}), (MAY_MIX, {}), (NEEDS_CONTEXT, {"context": None})):
        device = Device(engine, some(40), [LINEAR], capabilities, **more).finish()
        assert device.asked
        assert not device.of(Context)


def test_where_every_gate_is_shut_the_prompts_rows_come_still(parts: tuple[Model, Tokenizer]) -> None:
    device = Device(an_engine(parts), some(40), [Gate("shut")]).finish()
    assert not device.of(Ask)
    assert len(device.rows) == 39
    device.check_rows()


def test_an_example_brings_the_rows_of_its_prompt(parts: tuple[Model, Tokenizer]) -> None:
    engine = an_engine(parts)
    text = "Anna wrote to her brother about the mill, the rain and the long road to it."
    for context in (True, False):
        heard: list[Frame] = []
        read = Read(1, " It was far.", False, text=text, context=context)
        engine.add(read_example(read, terms(engine, [Gate("open")], NEEDS_CONTEXT), heard.append))
        while engine.step():
            pass
        (example,) = heard
        assert isinstance(example, Example)
        if not context:
            assert (example.context, example.context_scales) == (None, None)
            continue
        assert example.context is not None
        assert example.context_scales is not None
        start = engine.tokenizer.ids(text, special=True)
        assert len(start) > 17, "more than one chunk"
        assert example.context.shape == (len(start) - 1, 2, 8), "those before the first of codes"
        whole = naive_codes(engine.model, [*start, *example.ids.tolist()])
        got = SLICE.decode(example.context, example.context_scales)
        np.testing.assert_allclose(got[:, [0, 2], :8], whole[: len(start) - 1, [0, 2], :8], atol=0.06)
        np.testing.assert_allclose(TAP.decode(example.codes, example.scales), whole[len(start) - 1 : -1], atol=0.06)


def test_over_a_socket(cloud: Cloud) -> None:
    link = a_link(cloud.url)
    link.send(opening([Gate("open")], {**NEEDS_CONTEXT, **MAY_MIX}))
    opened = link.receive(10)
    assert isinstance(opened, Opened)
    assert set(opened.granted) == {CONTEXT.name, MIXTURE.name} <= set(opened.offers)
    link.send(PromptFrame(1, 4, SamplingSpec(), ids=some(20), context=3))
    begun, context, ask = (link.receive(10) for _ in range(3))
    assert isinstance(begun, Begun)
    assert isinstance(context, Context)
    assert isinstance(ask, Ask)
    assert (context.turn, context.run, context.first, context.codes.shape) == (1, 0, 3, (16, 2, 8))
    assert (ask.at, ask.codes.shape, ask.gates) == ([20], (1, 3, 16), [])
    link.close()


# ── The gates of several parts ────────────────────────────────────────────────────────────────────────────────────────

UP = Gate("linear", LINEAR.weight_D, memory=0.5)
DOWN = Gate("linear", -LINEAR.weight_D, memory=0.5)


def test_an_ask_says_which_gates_are_open(parts: tuple[Model, Tokenizer]) -> None:
    """Of two gates that are opposites one is always open; each alone is asked where its bit says."""
    engine = an_engine(parts, keep_s=0)
    up = Device(engine, some(40), [UP], {}, max_tokens=20).finish()
    down = Device(engine, some(40), [DOWN], {}, max_tokens=20).finish()
    both = Device(engine, some(40), [Gate("shut"), UP, DOWN], {}, max_tokens=20).finish()
    masks = {ask.at[0]: ask.gates for ask in both.of(Ask)}
    assert sorted(masks) == list(range(40, 40 + len(both.ids)))
    assert up.asked
    assert down.asked
    assert masks == {at: [0b010 if at in up.asked else 0b100] for at in masks}
    assert sorted(up.asked + down.asked) == sorted(masks)
    assert {tuple(ask.gates) for ask in up.of(Ask)} == {()}, "where there is one part there is no mask"


GATES_OF_A_PROMPT: dict[str, tuple[list[str], int, set[int]]] = {
    # name: (gates of the PROMPT, the bits that are always set, the masks that may come)
    "as OPEN says": ([], 0, {0b010, 0b100}),
    "as OPEN says, said": (["", "", ""], 0, {0b010, 0b100}),
    "the first opened": (["open", "", ""], 0b001, {0b011, 0b101}),
    "the second shut": (["", "shut", ""], 0, {0b100}),
    "all open": (["open"] * 3, 0b111, {0b111}),
    "all shut": (["shut"] * 3, 0, set()),
}


@pytest.mark.parametrize("case", GATES_OF_A_PROMPT.values(), ids=GATES_OF_A_PROMPT.keys())
def test_a_prompt_opens_and_shuts_gates(parts: tuple[Model, Tokenizer], case: tuple[list[str], int, set[int]]) -> None:
    opened, always, masks = case
    engine = an_engine(parts)
    device = Device(engine, some(40), [Gate("shut"), UP, DOWN], {}, max_tokens=20, opened=opened).finish()
    got = [ask.gates[0] for ask in device.of(Ask)]
    assert set(got) == masks
    assert all(mask & always == always for mask in got)
    next_one = Device(engine, some(40), [Gate("shut"), UP, DOWN], {}, max_tokens=20).finish()
    assert {ask.gates[0] for ask in next_one.of(Ask)} == {0b010, 0b100}, "it was for that reply only"


# ── A first draft ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_first_draft_is_run_and_counted(parts: tuple[Model, Tokenizer]) -> None:
    """Corrections that nothing could predict; with the right draft no token waits for its answer."""
    engine = an_engine(parts, keep_s=0)
    plain = Device(engine, some(20), capabilities={}, correct=other).finish()
    right = Device(engine, some(20), capabilities={}, correct=other, window=4, draft=plain.ids).finish()
    assert right.ids == plain.ids
    assert right.counts["accepted"] == right.counts["drafted"] == len(plain.ids) == 12
    assert right.counts["rolled_back"] == 0
    assert {frame.by for frame in right.of(Tokens)} == {"draft"}
    half = [*plain.ids[:5], (plain.ids[5] + 1) % 300]
    wrong = Device(engine, some(20), capabilities={}, correct=other, window=4, draft=half).finish()
    assert wrong.ids == plain.ids
    assert wrong.counts["accepted"] == 5
    assert wrong.counts["rolled_back"] > 0
    unused = Device(engine, some(20), capabilities={}, correct=other, draft=plain.ids).finish()
    assert (unused.ids, unused.counts["drafted"]) == (plain.ids, 0), "without a window nothing is speculated"


# ── Mixtures ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def mixture(weight: float, **pairs: float) -> Mixture:
    ids = np.array([int(name[1:]) for name in pairs], np.int32)
    return Mixture(weight, ids, np.array(list(pairs.values()), np.float32))


def naive_logits(model: Model, ids: Sequence[int], delta_D: np.ndarray | None = None) -> np.ndarray:
    """The logits behind a text, (V,) float64."""
    out = model.forward([Chunk(list(ids), model.new_cache(len(ids)))])
    z_1D = out.z([len(ids) - 1])
    return model.logits(z_1D if delta_D is None else z_1D + delta_D)[0].astype(np.float64)


def naive_mix(logits_V: np.ndarray, weight: float, pairs: dict[int, float]) -> np.ndarray:
    """The probabilities of the mixture, as the formula says: (1 − λ) · softmax(l) + λ · w."""
    p = np.exp(logits_V - logits_V.max())
    p *= (1 - weight) / p.sum()
    for token, share in pairs.items():
        p[token] += weight * share
    return p


def test_a_mixture_of_weight_one_says_the_token(parts: tuple[Model, Tokenizer]) -> None:
    says = [17, 99, 250, 17, 5, 6]
    for sampling in (Sampling(), Sampling(0.9, top_k=40, top_p=0.95, repetition_penalty=1.1, seed=7)):
        for window in (0, 4):
            device = Device(
                an_engine(parts),
                some(20),
                capabilities=MAY_MIX,
                correct=lambda at: Correction(mixture=mixture(1.0, **{f"t{says[at - 20]}": 1.0})),
                max_tokens=6,
                sampling=sampling.to_wire(),
                window=window,
            ).finish()
            assert device.ids == says
            assert {frame.by for frame in device.of(Tokens)} == {"plugin"}


def test_the_alternatives_of_a_mixture_are_numbers(parts: tuple[Model, Tokenizer]) -> None:
    """What has no probability any more must not be told as minus infinity: JSON has none."""
    device = Device(
        an_engine(parts),
        some(20),
        capabilities=MAY_MIX,
        correct=lambda at: Correction(mixture=mixture(1.0, t17=0.75, t18=0.25)),
        max_tokens=2,
        top=4,
    ).finish()
    assert device.ids == [17, 17]
    for frame in device.of(Tokens):
        for top in frame.top:
            assert [value for _, value in top[:3]] == pytest.approx(
                [np.log(0.75), np.log(0.75), np.log(0.25)], abs=1e-3
            )
            assert np.isfinite([value for _, value in top]).all()


def test_a_mixture_wins_exactly_where_the_formula_says(parts: tuple[Model, Tokenizer]) -> None:
    """Greedily token t is said from λ* = (p_max − p_t) / (1 + p_max − p_t) on, and the base's before that."""
    engine = an_engine(parts)
    logits_V = naive_logits(engine.model, some(20))
    p = naive_mix(logits_V, 0, {})
    best, token = int(p.argmax()), 17
    assert best != token
    edge = (p[best] - p[token]) / (1 + p[best] - p[token])
    for weight, token_said in ((edge - 1e-3, best), (edge + 1e-3, token), (1e-6, best), (0.999, token)):
        correct = lambda at, weight=weight: Correction(mixture=mixture(weight, t17=1.0))  # noqa: E731
        device = Device(engine, some(20), capabilities=MAY_MIX, correct=correct, max_tokens=1).finish()
        assert device.ids == [token_said], weight


@pytest.mark.parametrize("corrected", [False, True])
def test_a_mixture_is_sampled_from(parts: tuple[Model, Tokenizer], corrected: bool) -> None:
    """With the noise of each seed the token is that of the mixture, also beside a correction."""
    engine = an_engine(parts, keep_s=0)
    delta_D = np.round(np.random.default_rng(3).normal(size=64) * 40) * np.float32(0.05)
    delta_D[0] = 127 * 0.05  # so that int8 holds all of it
    given = delta_D.astype(np.float32) if corrected else None
    logits_V = naive_logits(engine.model, some(20), given)
    mixed = naive_mix(logits_V, 0.4, {17: 0.5, 18: 0.3, 19: 0.2})
    said, plain = [], []
    for seed in range(40):
        sampling = Sampling(1.0, seed=seed)
        device = Device(
            engine,
            some(20),
            capabilities=MAY_MIX,
            correct=lambda at: Correction(given, mixture(0.4, t17=0.5, t18=0.3, t19=0.2)),
            max_tokens=1,
            sampling=sampling.to_wire(),
        ).finish()
        expected = choose(np.log(mixed), sampling, 20)
        assert device.ids == [expected]
        said.append(expected)
        plain.append(choose(logits_V, sampling, 20))
    assert said != plain
    assert {17, 18, 19} < set(said)


def test_a_score_with_mixtures(parts: tuple[Model, Tokenizer]) -> None:
    """Each target's probability under the mixture: where the memory is right, wrong, silent, sure, or beside a Δ."""
    engine = an_engine(parts)
    heard: list[Frame] = []
    read = Read(1, " It was far to the mill, and it rained.", True, text="Anna wrote to her brother.")
    example = read_example(read, terms(engine, [Gate("open")], MAY_MIX), heard.append)
    engine.add(example)
    while engine.step():
        pass
    targets, start = example.targets.tolist(), example.prompt_tokens
    assert len(targets) >= 6
    delta_D = np.zeros(64, np.float32)
    delta_D[:] = np.round(np.random.default_rng(3).normal(size=64) * 20) * 0.05
    delta_D[0] = 127 * 0.05
    wrong = next(token for token in range(2, 300) if token not in targets)
    corrections = [Correction() for _ in targets]
    pairs: list[tuple[float, dict[int, float], np.ndarray | None]] = [(0.0, {}, None)] * len(targets)
    pairs[0] = (0.3, {targets[0]: 1.0}, None)
    pairs[1] = (0.3, {wrong: 1.0}, None)
    pairs[2] = (1.0, {targets[2]: 0.25, wrong: 0.75}, None)
    pairs[4] = (0.5, {targets[4]: 0.5, wrong: 0.5}, delta_D)
    pairs[5] = (0.0, {}, delta_D)
    for row, (weight, share, given) in enumerate(pairs):
        said = mixture(weight, **{f"t{token}": value for token, value in share.items()}) if weight else None
        corrections[row] = Correction(given, said)
    packed: Any = pack_corrections(corrections, 64, int8=True)
    engine.score(example, Score(1, **packed))
    while engine.step():
        pass
    (scored,) = [frame for frame in heard if isinstance(frame, Scored)]
    text = example.ids
    for row, (weight, share, given) in enumerate(pairs):
        logits_V = naive_logits(engine.model, text[: start + row], given)
        base_V = naive_logits(engine.model, text[: start + row])
        assert scored.base[row] == pytest.approx(np.log(naive_mix(base_V, 0, {})[targets[row]]), abs=1e-3)
        mixed = np.log(naive_mix(logits_V, weight, share)[targets[row]])
        assert scored.plugin[row] == pytest.approx(mixed, abs=1e-3), row


def test_a_mixture_that_was_not_granted_is_refused(parts: tuple[Model, Tokenizer]) -> None:
    engine = an_engine(parts)
    device = Device(engine, some(20), capabilities=NEEDS_CONTEXT)
    while engine.step():
        pass
    with pytest.raises(ProtocolError, match="must not bring mixtures: the session did not ask for that capability"):
        device.answer(*device.of(Ask), correct=lambda at: Correction(mixture=mixture(1.0, t17=1.0)))
    device.finish()
    heard: list[Frame] = []
    read = Read(1, " It was far.", True, text="Anna wrote.")
    example = read_example(read, terms(engine, [Gate("open")], {}), heard.append)
    engine.add(example)
    while engine.step():
        pass
    packed: Any = pack_corrections([Correction(mixture=mixture(1.0, t17=1.0))] * len(example.targets), 64, int8=True)
    with pytest.raises(ProtocolError, match="must not bring mixtures"):
        engine.score(example, Score(1, **packed))
