"""From texts of many writers to a trunk: tapes of each writer, steps in NumPy, a card with what it reached.

Some writers are held out whole: a trunk is worth what it gives to people whom it has not read. A step takes a piece of
the head with its own targets, the texts' most frequent tokens and a random sample of the rest. On the retain set it
learns to leave the base as it is, as a person's part does. Test: pytest tests/trunk/test_making.py
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sideplug.contract.errors import InputError
from sideplug.contract.gate import Gate
from sideplug.contract.version import __version__
from sideplug.device.client import Client
from sideplug.device.responders import Silent
from sideplug.plugins.base import TrainedPart
from sideplug.plugins.trunk import Trunk
from sideplug.readers import Example
from sideplug.training import data, fit_bias, gate, pipeline, threads
from sideplug.training.fit import FitState, KLToBase, Rows, TargetLoss, Term, TrainConfig, judge, take_step
from sideplug.training.head import Head
from sideplug.training.preflight import readable
from sideplug.training.raw import without_chat
from sideplug.training.recipe import MANNER, Recipe
from sideplug.training.tape import Tape

FREQUENT, SAMPLE = 1000, 1500  # tokens of a step's piece of the head, beside its targets
HELD_OUT = 0.1  # of the writers, at least one
GENERAL = 0.25  # of a step's tokens are of the retain set
CONFIG = TrainConfig(epochs=6, learning_rate=2e-3, batch_tokens=1024, dropout=0.3)


@dataclass(frozen=True)
class Writer:
    """Whose text it is, under which licence, and its passages."""

    name: str
    licence: str
    examples: list[Example]


@dataclass(frozen=True)
class Worth:
    """What a trunk does to writers whom it has not read, in nats a token: alone, and with the bias of their own words.

    base, trunk, own: the loss of the base; with the trunk; with the trunk and a bias of the writer's other passages.
    general: how far it moves the base on the retain set's replies, which a gate leaves alone anyway.
    """

    writers: int
    tokens: int
    base: float
    trunk: float
    own: float
    general: float

    @property
    def line(self) -> str:
        """For a person to read."""
        return (
            f"{self.writers} writers whom it has not read: {self.base:.3f} → {self.trunk:.3f} nats a token "
            f"({self.trunk - self.base:+.3f}), with the bias of their own words {self.own:.3f} "
            f"({self.own - self.base:+.3f}); the base's own replies: {self.general:.3f} nats away"
        )


def make(
    client: Client,
    writers: Sequence[Writer],
    folder: Path,
    name: str,
    version: int,
    show: pipeline.Show,
    say: Callable[[str], None] = lambda line: None,
    config: TrainConfig = CONFIG,
    width: int = 0,
) -> tuple[Trunk, Worth]:
    """Train a trunk of these writers' texts on the base that the cloud serves. folder: keeps the tapes, so that what
    was recorded is not recorded again. Raises InputError, CloudError, Stopped."""
    if len(writers) < 2:
        raise InputError(f"a trunk must have texts of at least 2 writers, of whom one is held out; got {len(writers)}")
    began = time.monotonic()
    model = client.model()
    plugin = Recipe(MANNER, width=width, training=config).new_plugin(model)
    part = plugin.trained
    writers = [
        replace(each, examples=readable(client, each.examples, part.tap, part.context, True, say)) for each in writers
    ]
    apart = data.sample(list(range(len(writers))), max(1, round(HELD_OUT * len(writers))), config.seed)
    texts = [pipeline.Texts(writer.examples, [], []) for writer in writers]
    texts = [without_chat(each) for each in texts] if not model.chat else texts
    with client.connect(responder=Silent(part.tap, part.context)) as session:
        tapes = [
            pipeline.record_one(
                session, part.tap, part.context, writer.name, text.training, folder / f"{number:04}.tape", show
            )
            for number, (writer, text) in enumerate(zip(writers, texts, strict=True))
        ]
        general = pipeline.retain(session, part.tap, part.context, data.retain_set(None), show)
        learnt = joined([tape for number, tape in enumerate(tapes) if number not in apart])
        whole = pipeline.Tapes(learnt, joined([tapes[number] for number in apart]), general)
        rows = whole.fetch_head(session, FREQUENT)
    with threads.measured(say):
        part.params = trained(part, rows, learnt, general, config, show)
        part.gate = gate_of(part, rows, whole, config.seed)
        worth = worth_of(part, rows, [tapes[number] for number in apart], general, config.seed)
    licences = sorted({writer.licence for writer in writers})
    card: dict[str, Any] = {
        "texts": [
            {"name": writer.name, "licence": writer.licence, "passages": len(tape), "tokens": tape.tokens}
            for writer, tape in zip(writers, tapes, strict=True)
        ],
        "licences": licences,
        "held_out": sorted(writers[number].name for number in apart),
        "worth": {key: round(value, 5) if isinstance(value, float) else value for key, value in vars(worth).items()},
        "settings": {"epochs": config.epochs, "learning_rate": config.learning_rate, "seed": config.seed},
        "seconds": round(time.monotonic() - began),
        "made_by": f"sideplug {__version__}",
    }
    say(worth.line)
    about = (plugin.base, plugin.base_name, part.kind_name, part.tap)
    trunk = Trunk(name, version, *about, part.params, card, gate=part.gate)
    return trunk, worth


def joined(tapes: Sequence[Tape]) -> Tape:
    """Several tapes as one."""
    whole = tapes[0]
    for tape in tapes[1:]:
        whole = whole + tape
    return whole


def trained(
    part: TrainedPart, rows: Head, learnt: Tape, general: Tape, config: TrainConfig, show: pipeline.Show
) -> dict[str, np.ndarray]:
    """The parameters after all epochs over a tape."""
    count = np.zeros(len(rows.ids), np.int64)
    for number in range(len(learnt)):
        np.add.at(count, rows.column(learnt[number].ids), 1)
    frequent = np.argsort(-count, kind="stable")[:FREQUENT]
    per_step = max(1, round(config.batch_tokens * len(learnt) / learnt.tokens))
    steps = -(-len(learnt) // per_step)
    state = FitState.new(part.params)
    with show("training", config.epochs * steps) as tell:
        for step in range(config.epochs * steps):
            epoch, at = divmod(step, steps)
            rng = np.random.default_rng([config.seed, epoch])
            order = rng.permutation(len(learnt))[at * per_step : (at + 1) * per_step]
            rng = np.random.default_rng([config.seed, epoch, at])
            some = [learnt[number] for number in order.tolist()]
            kept = max(1, round(GENERAL * sum(len(each.ids) for each in some) * len(general) / general.tokens))
            drawn = [general[number] for number in rng.integers(len(general), size=kept).tolist()]
            wanted = np.concatenate([rows.column(each.ids) for each in [*some, *drawn]])
            piece = rows.piece(np.union1d(wanted, frequent), SAMPLE, rng)

            def of(recorded: Sequence[Any], piece: Head = piece) -> Rows:
                weights = [piece.log_weight(each.z_TD, each.lse) for each in recorded]
                return Rows.of(recorded, piece, weights, part.context is not None)

            terms: list[Term] = [TargetLoss(of(some)), KLToBase(of(drawn), config.retain_weight)]
            take_step(part.kind, piece, state, terms, config, config.epochs * steps)
            tell(step + 1, None)
    return state.params


def gate_of(part: TrainedPart, rows: Head, tapes: pipeline.Tapes, seed: int) -> Gate:
    """A gate that opens for the writers' text and not for general text, calibrated on those who were held out."""
    retain = tapes.split_retain(seed, hard_negatives=False)
    assert retain is not None
    assert tapes.held is not None
    if not (len(retain[0]) and len(retain[1])):
        return part.gate
    ours, others = (judge(part, rows, tape, seed, gate.MAX_TOKENS) for tape in (tapes.training, retain[0]))
    held, general = (judge(part, rows, tape, seed, gate.MAX_TOKENS) for tape in (tapes.held, retain[1]))
    fitted = gate.calibrate(gate.fit(ours, others, seed), held, general)
    return gate.with_dial_by_gain(fitted, gate.fit_by_gain(ours, others), held, general)


def worth_of(part: TrainedPart, rows: Head, tapes: Sequence[Tape], general: Tape, seed: int) -> Worth:
    """What a trunk gives to writers whom it has not read, each with two tapes' worth: half of it is their own text."""
    base = trunk = own = 0.0
    tokens = 0
    for tape in tapes:
        order = np.random.default_rng([seed, 7]).permutation(len(tape)).tolist()
        mine, asked = tape.part(order[: len(order) // 2]), tape.part(order[len(order) // 2 :])
        plain = judge(part, rows, asked)
        biased = replace(part, own_bias=fit_bias.fit(part, rows, mine, seed).bias) if len(mine) else part
        with_bias = judge(biased, rows.tilted(biased.bias), asked)
        base, trunk = base - float(plain.base.sum()), trunk - float(plain.plugin.sum())
        own, tokens = own - float(with_bias.plugin.sum()), tokens + len(plain.base)
    moved = judge(part, rows, general)
    return Worth(len(tapes), tokens, base / tokens, trunk / tokens, own / tokens, float(-moved.gain.mean()))
