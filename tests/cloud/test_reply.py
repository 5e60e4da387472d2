"""A reply alone, without a model or a socket: what is settled, speculated, confirmed, rolled back, late, drafted."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from sideplug.cloud.reply import Counts, Reply, SessionSpec, check_answer
from sideplug.cloud.speculation import AcceptanceStats
from sideplug.cloud.tokenizer import TextStream
from sideplug.contract.capabilities import MIXTURE, MixtureSettings
from sideplug.contract.correction import Mixture
from sideplug.contract.errors import ProtocolError
from sideplug.contract.frames import Answer
from sideplug.contract.gate import Gate
from sideplug.contract.progress import running_hash
from sideplug.contract.sampling import Sampling
from sideplug.contract.tap import Tap

WIDTH, VOCAB, STOP = 4, 50, 0
PROMPT = [11, 12, 13]
SPEC = SessionSpec(Tap((0, 1), 2), (Gate("open"),))


class Letters:
    """A tokenizer whose token 1 is a, 2 is b …"""

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(96 + i) for i in ids)


class Row:
    """A cache without keys and values."""

    length = 0

    def trim(self, length: int) -> None:
        self.length = min(self.length, length)


def a_reply(**more: Any) -> Reply:
    """A reply to three tokens, with its cache; nothing limits it before ten."""
    given: dict[str, Any] = {"max_tokens": 10, "window": 4, "sampling": Sampling(), "spec": SPEC, **more}
    reply = Reply(
        ids=list(PROMPT),
        send=lambda frame: None,
        turn=1,
        text=TextStream(Letters()),  # type: ignore[arg-type]
        context=100,
        stop_ids={STOP},
        **given,
    )
    reply.cache = Row()  # type: ignore[assignment]
    return reply


def z(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(1, WIDTH)).astype(np.float32)


def answer(*at: int, run: int = 0, turn: int = 1, drafts: Any = None, **tensors: Any) -> Answer:
    """Corrections that change nothing, or what `tensors` say."""
    if not tensors:
        tensors = {"delta": np.zeros((len(at), WIDTH), np.int8), "scales": np.zeros(len(at), np.float32)}
    draft = np.zeros((len(at), 0), np.int32) if drafts is None else np.asarray(drafts, np.int32)
    return Answer(turn, run, list(at), draft, **{name: np.asarray(tensor) for name, tensor in tensors.items()})


def follow(reply: Reply, script: str) -> list[tuple[int, list[int], str]]:
    """Do what a script says; what became settled, as (position, ids, by).

    ask: the gate opens for the next position. spec T: go on with token T behind the last ask. own T: the cloud's token.
    run: everything so far has been run. answer T D…: the device answers the first ask, T is chosen, and it drafts D….
    late: the deadline of the first ask passes; T of `base T` is chosen for it.
    """
    settled = []
    for line in script.split(", "):
        verb, *words = line.split()
        numbers = [int(word) for word in words]
        if verb == "ask":
            reply.ask(z(len(reply.ids)), np.zeros(2), 1, 0.0)
        elif verb == "spec":
            assert reply.blocking_ask is not None
            reply.speculate(reply.blocking_ask, *numbers)
        elif verb == "own":
            reply.extend(*numbers)
        elif verb == "run":
            reply.cache.length = len(reply.ids)  # type: ignore[misc]
        elif verb == "answer":
            reply.receive(answer(reply.asks[0].at, run=reply.run, drafts=[numbers]), VOCAB, 0.5)
            reply.confirm(numbers[0])
        elif verb == "late":
            assert reply.expire(reply.run, reply.asks[0].at)
        elif verb == "base":
            reply.confirm(*numbers)
        settled += [(part.at, part.ids, part.by) for part in reply.settle()]
    return settled


def mixture(weight: float, ids: list[int], weights: list[float]) -> dict[str, np.ndarray]:
    """The tensors of one position's mixture."""
    return {
        "mix": np.array([weight], np.float32),
        "mix_ids": np.array([ids], np.int32),
        "mix_weights": np.array([weights], np.float32),
    }


Settled = list[tuple[int, list[int], str]]
SCRIPTS: dict[str, tuple[str, list[int], Settled, dict[str, int]]] = {
    # name: script, the reply's ids at its end, what was settled, the counts that are not 0
    "the cloud alone": ("own 7, own 8", [7, 8], [(3, [7], "cloud"), (4, [8], "cloud")], {}),
    "a plain ask": ("ask, answer 9", [9], [(3, [9], "plugin")], {"asked": 1, "round_trips": 1}),
    "speculated and not answered": ("ask, spec 7, ask, spec 8", [7, 8], [], {"asked": 2, "speculated": 2}),
    "confirmed": (
        "ask, spec 7, ask, spec 8, answer 7, answer 8",
        [7, 8],
        [(3, [7], "plugin"), (4, [8], "plugin")],
        {"asked": 2, "speculated": 2, "confirmed": 2},
    ),
    "shut tokens behind an open ask wait for it": (
        "ask, spec 7, own 8, own 9, answer 7",
        [7, 8, 9],
        [(3, [7], "plugin"), (4, [8, 9], "cloud")],
        {"asked": 1, "speculated": 1, "confirmed": 1},
    ),
    "rolled back": (
        "run, ask, spec 7, run, ask, spec 8, run, own 9, answer 5",
        [5],
        [(3, [5], "plugin")],
        {"asked": 2, "speculated": 2, "rolled_back": 1, "wasted": 2, "round_trips": 1},
    ),
    "rolled back, then confirmed": (
        "run, ask, spec 7, run, ask, answer 5, ask, spec 6, answer 6",
        [5, 6],
        [(3, [5], "plugin"), (4, [6], "plugin")],
        {"asked": 3, "speculated": 2, "rolled_back": 1, "wasted": 1, "round_trips": 1, "confirmed": 1},
    ),
    "late, and the base says what was speculated": (
        "ask, spec 7, late, base 7",
        [7],
        [(3, [7], "fallback")],
        {"asked": 1, "speculated": 1, "confirmed": 1, "fallback": 1},
    ),
    "late, and the base says another": (
        "run, ask, spec 7, run, late, base 8",
        [8],
        [(3, [8], "fallback")],
        {"asked": 1, "speculated": 1, "rolled_back": 1, "wasted": 1, "round_trips": 1, "fallback": 1},
    ),
    "a stop is confirmed": (
        f"ask, spec {STOP}, answer {STOP}",
        [],
        [],
        {"asked": 1, "speculated": 1, "confirmed": 1, "round_trips": 1},
    ),
    "a stop is rolled back": (
        f"ask, spec {STOP}, answer 7",
        [7],
        [(3, [7], "plugin")],
        {"asked": 1, "speculated": 1, "rolled_back": 1, "round_trips": 1},
    ),
    "a draft is followed and accepted": (
        # The first answer drafts 5 6; the cloud itself would say 9 for the second.
        "ask, answer 5 6, ask, spec 9, answer 6",
        [5, 6],
        [(3, [5], "plugin"), (4, [6], "draft")],
        {"asked": 2, "round_trips": 1, "speculated": 1, "drafted": 1, "accepted": 1, "confirmed": 1},
    ),
    "a draft that is wrong": (
        "ask, answer 5 6, run, ask, spec 9, answer 9",
        [5, 9],
        [(3, [5], "plugin"), (4, [9], "plugin")],
        {"asked": 2, "round_trips": 2, "speculated": 1, "drafted": 1, "rolled_back": 1},
    ),
    "a draft that the text has left": (
        "ask, answer 5 6 7, own 8, ask, spec 9, answer 9",
        [5, 8, 9],
        [(3, [5], "plugin"), (4, [8], "cloud"), (5, [9], "plugin")],
        {"asked": 2, "round_trips": 1, "speculated": 1, "confirmed": 1},
    ),
    "late, and then asked again": (
        "run, ask, spec 7, late, base 5, ask, spec 9, answer 9",
        [5, 9],
        [(3, [5], "fallback"), (4, [9], "plugin")],
        {"asked": 2, "round_trips": 1, "speculated": 2, "rolled_back": 1, "fallback": 1, "confirmed": 1},
    ),
}


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_scripts(script: tuple[str, list[int], Settled, dict[str, int]]) -> None:
    lines, ids, settled, counts = script
    reply = a_reply()
    assert follow(reply, lines) == settled
    assert reply.ids == [*PROMPT, *ids]
    assert {name: count for name, count in asdict(reply.counts).items() if count} == counts
    assert asdict(reply.counts) == {**asdict(Counts()), **counts}


def test_a_roll_back_begins_a_run_and_sends_what_changed() -> None:
    reply = a_reply()
    follow(reply, "ask")
    assert reply.unsent() == (3, [])
    follow(reply, "spec 7, ask")
    assert reply.unsent() == (3, [7])
    follow(reply, "spec 8, ask")
    assert reply.unsent() == (4, [8])
    follow(reply, "answer 5, ask")
    assert (reply.run, reply.unsent()) == (1, (3, [5]))
    assert [ask.at for ask in reply.asks] == [4]
    assert reply.receive(answer(4, 5, run=0), VOCAB, 0.0) == [], "of the run before"
    with pytest.raises(ProtocolError, match=r"turn 1, run 1, positions \[4\]…, each asked once; got turn 1, run 2"):
        reply.receive(answer(4, run=2), VOCAB, 0.0)


def test_a_late_answer_is_ignored_and_only_once() -> None:
    reply = a_reply()
    follow(reply, "ask, spec 7, ask, spec 8")
    assert not reply.expire(0, 4), "not the first that is open"
    assert not reply.expire(1, 3), "another run"
    assert reply.expire(0, 3)
    assert not reply.expire(0, 3), "it is not open any more"
    assert reply.receive(answer(3, 4), VOCAB, 0.25) == [0.25], "the first is late, the second is not"
    assert [(a.ask.at, a.by) for a in reply.answers] == [(3, "fallback"), (4, "plugin")]
    with pytest.raises(ProtocolError):
        reply.receive(answer(3), VOCAB, 0.0)
    follow(reply, "base 7, base 8")
    assert (reply.counts.fallback, reply.counts.confirmed) == (1, 2)
    reply.alive = False
    follow(reply, "ask")
    assert not reply.expire(0, 5), "it is over"


WRONG_ANSWERS: dict[str, tuple[Answer, str]] = {
    "another position": (answer(4), r"an answer must be for turn 1, run 0, positions \[3\]…, each asked once; got .*4"),
    "one too many": (answer(3, 4), r"positions \[3\]"),
    "another turn": (answer(3, turn=2), "got turn 2, run 0"),
    "a run to come": (answer(3, run=1), "got turn 1, run 1"),
    "tokens where the cloud has the head": (
        answer(3, ids=np.zeros(1, np.int32)),
        "head in the cloud must have corrections and draft only",
    ),
    "a draft past the vocabulary": (answer(3, drafts=[[VOCAB]]), "a draft's ids must be below 50, and -1 behind"),
    "a draft below none": (answer(3, drafts=[[-2]]), "a draft's ids must be below 50"),
    "a draft too long": (answer(3, drafts=[[1] * 33]), "an answer must have a draft of at most 32 ids a position"),
    "a draft for two": (answer(3, drafts=[[1], [1]]), "a draft of at most 32 ids a position"),
    "another width": (
        answer(3, delta=np.zeros((1, 5), np.int8), scales=np.zeros(1, np.float32)),
        r"a correction must be int8 or fp16 \(1, 4\), got int8 \(1, 5\)",
    ),
    "no scale": (
        answer(3, delta=np.zeros((1, 4), np.int8), scales=np.zeros(0, np.float32)),
        "a correction's scales must be one float32 a vector for int8",
    ),
    "a correction without its scales": (
        answer(3, delta=np.zeros((1, 4), np.int8)),
        "a correction must bring delta and scales together",
    ),
    "a mixture that was not granted": (answer(3, **mixture(0.5, [7], [1.0])), "must not bring mixtures: the session"),
    "not finite": (
        answer(3, delta=np.full((1, 4), np.nan, np.float16), scales=np.zeros(0, np.float32)),
        "a correction must be finite and at most 1e",
    ),
}


@pytest.mark.parametrize("wrong", WRONG_ANSWERS.values(), ids=WRONG_ANSWERS.keys())
def test_a_wrong_answer_changes_nothing(wrong: tuple[Answer, str]) -> None:
    frame, sentence = wrong
    reply = a_reply()
    follow(reply, "ask")
    with pytest.raises(ProtocolError, match=sentence):
        reply.receive(frame, VOCAB, 1.0)
    assert [ask.at for ask in reply.asks] == [3]
    assert not reply.answers
    assert reply.stats == AcceptanceStats(predictor=reply.stats.predictor)
    assert reply.receive(answer(3), VOCAB, 1.0) == [1.0], "the right one still comes"


def test_what_an_answer_says_is_found_without_a_change() -> None:
    reply = a_reply()
    follow(reply, "ask, spec 7, ask")
    delta = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.int8)
    frame = answer(3, 4, delta=delta, scales=np.array([0.5, 2.0], np.float32))
    for _ in range(2):
        rows = check_answer(reply, frame, VOCAB)
        assert rows is not None
        assert rows.indices == [0, 1]
        want = np.concatenate([z(3), z(4)]) + delta * np.array([[0.5], [2.0]], np.float32)
        np.testing.assert_allclose(rows.corrected_TD, want, rtol=1e-6)
    reply.expire(0, 3)
    rows = check_answer(reply, frame, VOCAB)
    assert rows is not None
    assert rows.indices == [1]
    np.testing.assert_allclose(rows.corrected_TD, want[1:], rtol=1e-6)


MIXING = SessionSpec(SPEC.tap, SPEC.gates, granted={MIXTURE.name: MixtureSettings()})


def test_an_answer_brings_a_mixture_where_that_was_granted() -> None:
    """Alone, beside a correction, or with a weight of 0, which is none; pairs behind the end (id −1) are left out."""
    reply = a_reply(spec=MIXING)
    follow(reply, "ask, spec 7, ask, spec 8, ask")
    frame = Answer(
        1,
        0,
        [3, 4, 5],
        np.zeros((3, 0), np.int32),
        mix=np.array([0.25, 0.0, 1.0], np.float32),
        mix_ids=np.array([[7, 9], [-1, -1], [5, -1]], np.int32),
        mix_weights=np.array([[0.75, 0.25], [0, 0], [1, 0]], np.float32),
    )
    reply.receive(frame, VOCAB, 0.0)
    first, second, third = (each.mixture for each in reply.answers)
    assert isinstance(first, Mixture)
    assert (first.weight, first.ids.tolist(), first.weights.tolist()) == (0.25, [7, 9], [0.75, 0.25])
    assert second is None
    assert isinstance(third, Mixture)
    assert (third.weight, third.ids.tolist(), third.weights.tolist()) == (1.0, [5], [1.0])
    np.testing.assert_array_equal(reply.answers[0].z_1D, z(3))  # without a correction z stays
    alone = a_reply(spec=MIXING)
    follow(alone, "ask")
    both = {"delta": np.ones((1, WIDTH), np.int8), "scales": np.ones(1, np.float32), **mixture(0.5, [7], [1.0])}
    alone.receive(answer(3, **both), VOCAB, 0.0)
    np.testing.assert_allclose(alone.answers[0].z_1D, z(3) + 1, rtol=1e-6)
    assert alone.answers[0].mixture is not None


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (mixture(1.5, [7], [1.0]), "a mixture's weight must be 0 to 1"),
        (mixture(float("nan"), [7], [1.0]), "a mixture's weight must be 0 to 1"),
        (mixture(0.5, [VOCAB], [1.0]), "a mixture's ids must be below 50"),
        (mixture(0.5, [7, 7], [0.5, 0.5]), "a mixture's ids must differ"),
        (mixture(0.5, [7, 8], [0.5, 0.4]), "a mixture's weights must sum to 1"),
        (mixture(0.5, [7, 8], [1.5, -0.5]), "a mixture's weights must be 0 or more"),
        (mixture(0.5, list(range(VOCAB)) + [-1] * 15, [1.0] + [0.0] * 64), "a mixture must have at most 64 pairs"),
        ({"mix": np.ones(1, np.float32)}, "must bring mix, mix_ids and mix_weights together"),
    ],
)
def test_a_wrong_mixture_changes_nothing(wrong: dict[str, np.ndarray], sentence: str) -> None:
    reply = a_reply(spec=MIXING)
    follow(reply, "ask")
    with pytest.raises(ProtocolError, match=sentence):
        reply.receive(answer(3, **wrong), VOCAB, 1.0)
    assert [ask.at for ask in reply.asks] == [3]
    assert not reply.answers


def test_each_part_has_a_gate_of_its_own() -> None:
    """The mask says whose gates are open; a linear gate's memory goes on from its own score."""
    weight = np.array([1, 0, 0, 0], np.float32)
    gates = (Gate("shut"), Gate("open"), Gate("linear", weight, threshold=0.5, memory=0.5), Gate("linear", -weight))
    reply = a_reply(spec=SessionSpec(SPEC.tap, gates))
    assert reply.opens(3, np.array([[2.0, 0, 0, 0]], np.float32)) == 0b0110
    assert reply.opens(4, np.array([[-2.0, 0, 0, 0]], np.float32)) == 0b1010  # 0.5 · 2 + 0.5 · (−2) = 0, and 2
    assert reply.opens(5, np.array([[1.5, 0, 0, 0]], np.float32)) == 0b0110  # 0.75
    assert reply.scores[5] == (0.0, 0.0, 0.75, -1.5)
    other = a_reply(spec=SessionSpec(SPEC.tap, gates), gates=(Gate("open"), *gates[1:]))
    assert other.opens(3, np.array([[2.0, 0, 0, 0]], np.float32)) == 0b0111
    assert other.gate_id != reply.gate_id, "scores of one gate must not be continued with another"
    shut = a_reply(spec=SessionSpec(SPEC.tap, gates), gates=(Gate("shut"),) * 4)
    assert (shut.layers, reply.layers) == ((), SPEC.tap.layers)


def test_a_first_draft_is_what_the_reply_is_expected_to_begin_with() -> None:
    reply = a_reply(first_draft=[5, 6, 7])
    settled = follow(reply, "ask, spec 9, ask, spec 9, ask, spec 9, answer 5, answer 6, answer 8")
    assert settled == [(3, [5], "draft"), (4, [6], "draft"), (5, [8], "plugin")]
    assert (reply.counts.drafted, reply.counts.accepted, reply.counts.rolled_back) == (3, 2, 1)
    left = a_reply(first_draft=[5, 6, 7])
    follow(left, "own 4, ask, spec 9")
    assert (left.ids[3:], left.counts.drafted) == ([4, 9], 0), "the text has left the draft"
    resumed = a_reply(first_draft=[5, 6, 7], done=[5])
    follow(resumed, "ask, spec 9")
    assert (resumed.ids[3:], resumed.counts.drafted) == ([5, 9], 0), "it is of the reply's beginning only"


def test_the_device_picks_where_it_has_the_head() -> None:
    reply = a_reply(head="device")
    follow(reply, "ask, spec 7, ask")
    for ids in ([VOCAB, 1], [-1, 1]):
        with pytest.raises(ProtocolError, match="an answer's ids must be int32, 0 to 49"):
            reply.receive(answer(3, 4, ids=np.array(ids, np.int32)), VOCAB, 0.0)
    with pytest.raises(ProtocolError, match="an answer's ids must be int32, 0 to 49, one a position"):
        reply.receive(answer(3, 4, ids=np.array([7], np.int32)), VOCAB, 0.0)
    with pytest.raises(ProtocolError, match="head in the device must have ids and draft"):
        reply.receive(answer(3, 4), VOCAB, 0.0)
    reply.receive(answer(3, 4, ids=np.array([7, 9], np.int32)), VOCAB, 0.0)
    assert [a.token for a in reply.answers] == [7, 9]
    penalised = a_reply(head="device", sampling=Sampling(repetition_penalty=1.5))
    assert penalised.unsent() == (0, PROMPT), "it must know the prompt"


def test_what_the_stats_learn() -> None:
    """Running means with a weight of 0.05, from 0.7: of the cloud's own prediction, and of the drafts."""
    reply = a_reply()
    follow(reply, "ask, spec 7, answer 7")
    assert reply.stats.prediction_accuracy == pytest.approx(0.95 * 0.7 + 0.05)
    assert reply.stats.answer_s == pytest.approx(0.95 * 0.1 + 0.05 * 0.5)
    assert reply.stats.draft_accuracy == 0.7
    follow(reply, "ask, answer 5 6, ask, spec 9, answer 6")
    assert reply.stats.draft_accuracy == pytest.approx(0.95 * 0.7 + 0.05)
    assert reply.stats.prediction_accuracy_at_drafts == pytest.approx(0.95 * 0.7)
    assert reply.stats.prediction_accuracy == pytest.approx(0.95 * (0.95 * 0.7 + 0.05))


@pytest.mark.parametrize(("draft_accuracy", "token"), [(0.6, 9), (0.7, 6), (0.8, 6)])
def test_a_draft_is_followed_where_it_is_the_better_guess(draft_accuracy: float, token: int) -> None:
    reply = a_reply()
    follow(reply, "ask, answer 5 6, ask")
    reply.stats.draft_accuracy = draft_accuracy
    follow(reply, "spec 9")
    assert reply.ids[-1] == token


def test_the_length_ends_it() -> None:
    reply = a_reply(max_tokens=2)
    follow(reply, "own 7, ask, spec 8")
    assert (reply.end, reply.over, reply.pending) == ("length", False, 0)
    assert reply.blocking_ask is None
    follow(reply, "answer 9")
    assert (reply.end, reply.over, reply.ids[3:]) == ("length", True, [7, 9])
    assert a_reply(max_tokens=2).max_length == 5
    assert a_reply(max_tokens=200).max_length == 100


def test_a_prompt_is_run_at_once_and_a_reply_token_by_token() -> None:
    reply = a_reply(done=[1, 2])
    assert (reply.pending, reply.settled, reply.sent) == (3, 5, 3)
    assert reply.prompt_hash == running_hash(PROMPT)
    reply.cache.length = 3  # type: ignore[misc]
    assert (reply.pending, reply.next_ids(1)) == (1, [1])
    reply.held_since_s = 1.0
    assert reply.pending == 0
    assert a_reply(done=[1] * 10).over, "its device had all of it"


def test_what_may_be_cached_is_settled_and_run() -> None:
    reply = a_reply()
    follow(reply, "own 1, own 2, run, own 4, ask, spec 5")
    assert reply.cacheable.ids.tolist() == [*PROMPT, 1, 2], "4 is not run"
    assert reply.cacheable.prompt_tokens == 3
    follow(reply, "run")
    assert reply.cacheable.ids.tolist() == [*PROMPT, 1, 2, 4], "5 is not settled"
