"""Pure steps: the trainer's own, parameters that stay as they are, and gradients that are slopes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sideplug.contract.errors import InputError
from sideplug.contract.tap import Tap
from sideplug.contract.text import Prompt
from sideplug.plugins import Plugin
from sideplug.plugins.base import Params, TrainedPart
from sideplug.readers import Example
from sideplug.training.fit import FitState, KLToBase, Rows, TargetLoss, Term, TrainConfig, fit, take_step
from sideplug.training.head import Head, _logsumexp, fetch
from sideplug.training.recorder import record
from sideplug.training.tape import Recorded, Tape
from sideplug.training.trainer import Trainer
from tests.conftest import Cloud, a_plugin, a_session
from tests.test_parts import an_attention

TAP = Tap((0, 1, 2), 16)
CONFIG = TrainConfig(epochs=3, learning_rate=1e-2, batch_tokens=16, patience=3)
THINGS = ("dog", "tea", "town", "sister", "day", "bank")
TRAIN = [Example(Prompt.user(f"What is my {thing}?"), f"Your {thing} is here.", "") for thing in THINGS]
SILENT = [Example(Prompt.user(f"Tell of {thing}."), "", "", 8) for thing in THINGS]
Stage = tuple[dict[str, Tape], Head, str]


@pytest.fixture(scope="module")
def stage(cloud: Cloud, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    folder = tmp_path_factory.mktemp("tapes")
    texts = {"train": TRAIN, "held": TRAIN[:2], "retain": SILENT[:4], "retain held": SILENT[4:]}
    with a_session(cloud.url, tap=TAP) as session:
        tapes = {name: record(session, TAP, each, folder / f"{name}.tape") for name, each in texts.items()}
        head = fetch(session, np.arange(session.model.vocab, dtype=np.int32))
        return tapes, head, session.model.fingerprint


def copied(params: Params) -> Params:
    return {name: value.copy() for name, value in params.items()}


def same(a: Params, b: Params) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def batches_of(trainer: Trainer, epochs: int) -> list[list[Term]]:
    """What the trainer's epochs are made of."""
    return [
        list(trainer._terms(epoch, number, examples))
        for epoch in range(epochs)
        for number, examples in enumerate(trainer._batches(epoch))
    ]


def test_fit_is_the_trainer_s_steps(stage: Stage, tmp_path: Path) -> None:
    """The same batches give the same parameters, to the last bit; so whoever has batches needs no trainer."""
    tapes, head, base = stage
    part = Plugin.new("ladder", base, "tiny", TAP, 24, 64).trained
    first = copied(part.params)
    retain = tapes["retain"], tapes["retain held"]
    trainer = Trainer(part, base, head, tapes["train"], tapes["held"], CONFIG, tmp_path, retain)
    batches = batches_of(trainer, CONFIG.epochs)
    assert len(batches) == CONFIG.epochs * trainer.batches > 6
    assert {type(term) for terms in batches for term in terms} == {TargetLoss, KLToBase}
    result = trainer.run()
    fitted = fit(part.kind, head, first, batches, CONFIG)
    assert result.best_loss < result.base_loss, "the trainer's best are its last"
    assert same(fitted.params, part.params)
    assert not same(fitted.params, first)
    assert fitted.tokens == CONFIG.epochs * tapes["train"].tokens


def test_one_step_after_the_other_is_fit(stage: Stage, tmp_path: Path) -> None:
    tapes, head, base = stage
    part = Plugin.new("ladder", base, "tiny", TAP, 24, 64).trained
    trainer = Trainer(part, base, head, tapes["train"], tapes["held"], CONFIG, tmp_path)
    batches = batches_of(trainer, 1)
    state, loss, count = FitState.new(part.params), 0.0, 0
    for number, terms in enumerate(batches, 1):
        more, tokens = take_step(part.kind, head, state, terms, CONFIG, len(batches))
        loss, count = loss + more, count + tokens
        assert state.step == number
    fitted = fit(part.kind, head, part.params, iter(batches), CONFIG)
    assert same(fitted.params, state.params)
    assert (fitted.tokens, fitted.loss) == (count, pytest.approx(loss / count))


def test_parameters_that_were_given_stay_as_they_are(stage: Stage, tmp_path: Path) -> None:
    tapes, head, base = stage
    part = a_plugin(base).trained
    trainer = Trainer(part, base, head, tapes["train"], tapes["held"], CONFIG, tmp_path)
    before = copied(part.params)
    for value in part.params.values():
        value.flags.writeable = False
    fitted = fit(part.kind, head, part.params, batches_of(trainer, 1), CONFIG)
    assert same(part.params, before)
    assert not any(np.array_equal(fitted.params[name], value) for name, value in before.items())
    assert not any(np.shares_memory(fitted.params[name], value) for name, value in part.params.items())


def test_nothing_to_fit_is_nothing_done(stage: Stage) -> None:
    part = a_plugin(stage[2]).trained
    fitted = fit(part.kind, stage[1], part.params, [], CONFIG)
    assert same(fitted.params, part.params)
    assert (fitted.tokens, fitted.loss) == (0, 0.0)


def test_the_loss_falls(stage: Stage, tmp_path: Path) -> None:
    tapes, head, base = stage
    part = Plugin.new("ladder", base, "tiny", TAP, 24, 64).trained
    trainer = Trainer(part, base, head, tapes["train"], tapes["held"], CONFIG, tmp_path)
    batches = batches_of(trainer, 1)
    first = fit(part.kind, head, part.params, batches, CONFIG)
    second = fit(part.kind, head, first.params, batches, CONFIG)
    assert second.loss < first.loss


@pytest.mark.parametrize("changed", [{"epochs": 0}, {"learning_rate": -1.0}, {"batch_tokens": 0}, {"patience": 0}])
def test_values_out_of_range(changed: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(changed))} must be above 0"):
        replace(CONFIG, **changed)


# ── gradients ─────────────────────────────────────────────────────────────────────────────────────────────────────────

VOCAB, WIDTH = 40, 64
rng = np.random.default_rng(0)
WHOLE = Head(np.arange(VOCAB, dtype=np.int32), rng.normal(size=(VOCAB, WIDTH)), rng.normal(size=VOCAB), 0.5)


def recorded(tokens: int, before: int) -> Recorded:
    """An example, in float64 so that a small difference is exact: so many rows of its prompt before it."""
    z_TD = rng.normal(size=(tokens, WIDTH))
    ids = rng.integers(0, VOCAB // 2, tokens).astype(np.int32)
    context = rng.normal(size=(before, 3, 16))
    lse = _logsumexp(WHOLE._logits(z_TD))
    return Recorded(ids, rng.normal(size=(tokens, 3, 16)), z_TD, np.zeros((tokens, 16), np.int32), lse, context)


def rows_of(examples: list[Recorded], head: Head, context: bool) -> Rows:
    weights = [head.log_weight(example.z_TD, example.lse).astype(np.float64) for example in examples]
    return Rows.of(examples, head, weights, context)


def objective(term: TargetLoss | KLToBase, part: TrainedPart, head: Head, params: Params) -> float:
    rows = term.rows
    z_ND = rows.corrected(part.kind, params)
    if isinstance(term, TargetLoss):
        return float(head.loss(z_ND, rows.columns, rows.log_weight).mean())
    return term.weight * float(head.divergence_and_gradient(rows.z_ND, z_ND, rows.log_weight)[0].mean())


def exact(part: TrainedPart) -> Params:
    return {name: value.astype(np.float64) for name, value in part.params.items()}


PARTS = {
    "ladder": lambda: a_plugin("b", scale=0.2).trained,
    "toy attention": lambda: an_attention("b", 0.2).trained,
    "attention": lambda: a_plugin("b", "attention", 0.2).trained,
}


@pytest.mark.parametrize("sampled", [False, True], ids=["whole head", "candidates and a sample"])
@pytest.mark.parametrize("term", ["target", "kl"])
@pytest.mark.parametrize("which", PARTS)
def test_a_term_s_gradient_is_its_slope(which: str, term: str, sampled: bool) -> None:
    """Against finite differences, over two texts with rows of their prompts before them."""
    part = PARTS[which]()
    context = part.context is not None
    assert context == ("attention" in which)
    head = WHOLE
    if sampled:
        ids = np.arange(VOCAB // 2, dtype=np.int32)
        order = np.concatenate([ids, np.arange(VOCAB // 2, VOCAB, 3)])
        head = Head(ids, WHOLE.rows_CD[order], WHOLE.bias_C[order], WHOLE.scale)
    rows = rows_of([recorded(4, 3), recorded(2, 5)], head, context)
    assert rows.starts_B.tolist() == ([0, 7] if context else [0, 4])
    assert rows.asked_N.tolist() == ([3, 4, 5, 6, 12, 13] if context else list(range(6)))
    each: TargetLoss | KLToBase = TargetLoss(rows) if term == "target" else KLToBase(rows, 0.7)
    params = exact(part)
    step, precision = (1e-5, 1e-4) if "toy" not in which else (1e-3, 1e-2)  # the toy's weights are float32
    loss, count, gradient = each.gradient(part.kind, head, params)
    if term == "target":
        assert (loss / count, count) == (pytest.approx(objective(each, part, head, params)), 6)
    else:
        assert (loss, count) == (0.0, 0), "it is not reported"
    assert gradient.keys() == params.keys()
    for name, value in params.items():
        direction = rng.normal(size=value.shape)
        sides = []
        for sign in (1, -1):
            moved = {**params, name: value + sign * step * direction}
            sides.append(objective(each, part, head, moved))
        slope = (sides[0] - sides[1]) / (2 * step)
        assert float((gradient[name] * direction).sum()) == pytest.approx(slope, rel=precision, abs=1e-6), name
        assert abs(slope) > 1e-5, name


def test_rows_of_a_prompt_matter_where_they_are_looked_at() -> None:
    part = PARTS["attention"]()
    examples = [recorded(4, 3)]
    with_them, without = (rows_of(examples, WHOLE, context) for context in (True, False))
    params = exact(part)
    assert not np.allclose(with_them.corrected(part.kind, params), without.corrected(part.kind, params))
    assert with_them.corrected(part.kind, params).shape == without.corrected(part.kind, params).shape


def test_at_the_base_nothing_diverges() -> None:
    """An untrained part that adds nothing has no gradient against the base."""
    part = Plugin.new("ladder", "b", "tiny", TAP, 24, WIDTH).trained
    _, _, gradient = KLToBase(rows_of([recorded(4, 0)], WHOLE, False), 1.0).gradient(part.kind, WHOLE, exact(part))
    assert max(float(np.abs(value).max()) for value in gradient.values()) < 1e-9


def test_a_step_sums_its_terms() -> None:
    """One step on two terms is one on their gradients' sum."""

    class Sum:
        def __init__(self, terms: list[Term]) -> None:
            self.terms = terms

        def gradient(self, kind: Any, head: Head, params: Params) -> tuple[float, int, Params]:
            all_of = [term.gradient(kind, head, params) for term in self.terms]
            total = {name: sum(gradient[name] for _, _, gradient in all_of) for name in params}
            return sum(loss for loss, _, _ in all_of), sum(count for _, count, _ in all_of), total

    part = PARTS["ladder"]()
    terms: list[Term] = [
        TargetLoss(rows_of([recorded(4, 0)], WHOLE, False)),
        KLToBase(rows_of([recorded(3, 0)], WHOLE, False), 0.5),
    ]
    apart, together = (fit(part.kind, WHOLE, exact(part), [each], CONFIG) for each in (terms, [Sum(terms)]))
    for name, value in apart.params.items():
        np.testing.assert_allclose(value, together.params[name], atol=1e-12)
    assert (apart.loss, apart.tokens) == (together.loss, together.tokens)
