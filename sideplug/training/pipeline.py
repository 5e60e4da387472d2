"""From examples to a plugin in a folder: tape, training, gate, in this order. No plugin is made another way.

`train`, its update of an existing plugin, the page and the benchmark call this. It knows neither the command line nor
the page: how progress is shown and whether somebody wants to stop are passed in. Test: pytest tests/test_cli.py
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sideplug.contract.errors import InputError, Stopped
from sideplug.contract.gate import Gate
from sideplug.contract.tap import ContextSlice, Tap
from sideplug.device.client import Client
from sideplug.device.responders import Silent
from sideplug.device.session import Session
from sideplug.paths import alone, cache_dir, write_aside, writing
from sideplug.plugins import Plugin
from sideplug.plugins.base import MAX_PHRASES, Part
from sideplug.plugins.file import is_sealed, is_trained
from sideplug.readers import Example
from sideplug.training import data, gate, head, recorder, tape, threads, trial
from sideplug.training.facts import is_question
from sideplug.training.figures import Figure, figures_of
from sideplug.training.fit import Batches
from sideplug.training.judged import Judged
from sideplug.training.raw import without_chat
from sideplug.training.recipe import Recipe
from sideplug.training.split import split
from sideplug.training.tape import Tape
from sideplug.training.trainer import CHECKPOINT, TRAIN, Progress, Result, Trainer, check_same, identity_of_checkpoint
from sideplug.training.trainer import HELD as HELD_OUT
from sideplug.training.trial import Trial

TRAINING, HELD, HARD_NEGATIVES, RETAIN = (
    Path("tape", name) for name in ("train.tape", "held.tape", "hard_negatives.tape", "retain.json")
)
TUNED_TOKENS = 10_000  # of the person's, from which on the trunk is tuned to them (docs/LOG.md)
MOST_LEAKED = 0.1  # of general text, that a person's own gate may pass before their trunk's is kept (docs/LOG.md)
UNTOLD = 4  # questions about what nobody told, that are asked at the end

Tell = Callable[[int, Progress | None], None]  # how much is done; losses, where there are some
Show = Callable[[str, int], AbstractContextManager[Tell]]  # (label, total)
Interrupts = Callable[[], AbstractContextManager[Callable[[], bool]]]  # yields: does somebody want to stop?


@dataclass(frozen=True)
class Texts:
    """The person's examples to train on, held out (see split.py) and held out whole, and prompts that the base answers
    itself (perhaps none): the retain set, and hard negatives in the person's phrasings.

    told: how many of `held`, from the first on, ask for told facts in other words. untold: questions about what nobody
    told, which are only asked at the end. made: how many of `training` are reworded. lines: what a person should know.
    """

    training: list[Example]
    held: list[Example]
    retain: list[Example]
    hard_negatives: list[Example] = field(default_factory=list)
    told: int = 0
    whole: list[Example] = field(default_factory=list)
    untold: list[Example] = field(default_factory=list)
    made: int = 0
    lines: list[str] = field(default_factory=list)

    @classmethod
    def prepare(cls, examples: Sequence[Example], recipe: Recipe = Recipe(), retain: Path | None = None) -> Texts:
        """These examples, split, with the retain set of a file (none: our own list, and hard negatives beside it).

        A retain weight of 0: without both. Raises DataError.
        """
        seed = recipe.training.seed
        parts = split(examples, recipe.held_out, seed, recipe.reword)
        negatives = data.hard_negatives(parts.training)
        untold = data.sample(negatives, UNTOLD, seed) if any(map(is_question, parts.training)) else []
        others = [example for example in negatives if example not in untold]
        prompts = data.retain_set(retain) if recipe.training.retain_weight else []
        hard = others if recipe.training.retain_weight and not retain else []
        held = [*parts.told, *parts.text]
        told, made = len(parts.told), parts.made
        return cls(parts.training, held, prompts, hard, told, parts.whole, untold, made, parts.lines)


@dataclass
class Tapes:
    """What the frozen model made of the texts, on disk. negatives: numbers of the retain tape's hard negatives."""

    training: Tape
    held: Tape | None
    retain: Tape | None
    negatives: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, training: Tape, held: Tape | None, retain: Tape, alike: list[int], negatives: Tape | None) -> Tapes:
        """alike: numbers of the retain set that look like hard negatives, which stand on a tape of their own."""
        if negatives is None:
            return cls(training, held, retain, set(alike))
        both = retain + negatives
        return cls(training, held, both, {*alike, *range(len(retain), len(both))})

    @property
    def nbytes(self) -> int:
        """Bytes of the personal tapes on disk."""
        return self.training.nbytes + (self.held.nbytes if self.held else 0)

    @property
    def tokens(self) -> int:
        """Target tokens of the personal tapes."""
        return self.training.tokens + (self.held.tokens if self.held else 0)

    def split_retain(self, seed: int, hard_negatives: bool) -> tuple[Tape, Tape] | None:
        """The retain set to train on and held out, drawn by seed, with or without the hard negatives."""
        if self.retain is None:
            return None
        order = list(range(len(self.retain)))
        apart = data.sample(order, max(1, len(order) // 5), seed)
        parts = [i for i in order if i not in set(apart)], apart
        kept = [[i for i in part if hard_negatives or i not in self.negatives] for part in parts]
        return self.retain.part(kept[0]), self.retain.part(kept[1])

    def fetch_head(self, session: Session, least: int) -> head.Head:
        """The head's rows of all that is a target here, and of the base's best beside them."""
        candidates = self.training.candidates(least)
        for other in (self.held, self.retain):
            if other is not None:
                candidates = np.union1d(candidates, other.targets()).astype(np.int32)
        return head.fetch(session, candidates)


@dataclass
class Made:
    """A plugin that was made and saved, and what its making reached.

    gated: what its gate trades; empty without a retain set. figures: what it is worth, each by its name. trial: what it
    says; None where it could not be asked.
    """

    plugin: Plugin
    result: Result
    gated: dict[str, dict[str, float]]
    figures: dict[str, Figure]
    trial: Trial | None


def check_out(out: Path, resume: bool, replace: bool, ways: tuple[str, str] = ("--resume", "--force")) -> None:
    """Raises InputError where a new plugin in `out` would replace something unasked: a plugin, or a checkpoint.

    ways: how resuming and replacing are asked for.
    """
    if is_sealed(out):
        raise InputError(f"{out} holds a sealed plugin: unlock it first, or give another folder")
    if resume or replace:
        return
    if is_trained(out):
        raise InputError(f"{out} already holds a plugin: give another folder, or {ways[1]} to replace it")
    if (out / CHECKPOINT).is_file():
        raise InputError(f"{out} has a checkpoint of a stopped training: {ways[0]}, or {ways[1]} to begin anew")


def check_early(out: Path, check: Callable[[], None]) -> None:
    """Call `check` before there are texts. Raises what it raises; Stopped where another training writes into `out`."""
    if out.is_dir():
        with writing(out), alone(out / TRAINING.parent, shown=out):
            check()


def make(
    client: Client,
    texts: Texts,
    out: Path,
    recipe: Recipe,
    show: Show,
    interrupts: Interrupts,
    resume: bool = False,
    say: Callable[[str], None] = lambda line: None,
    check: Callable[[], None] = lambda: None,
    begin: Callable[[], None] = lambda: None,
) -> Made:
    """Record, train, fit the gate, save, try it. Raises Stopped where somebody wanted that (what was done is kept), or
    another training writes into `out`.

    check: called when `out` is this training's alone, before anything is written; it may raise. begin: called when
    nothing speaks against this training any more, before the cloud reads.
    """
    with writing(out), alone(out / TRAINING.parent, shown=out), threads.measured(say):
        check()
        return _make(client, texts, out, recipe, show, interrupts, resume, say, begin)


def _make(
    client: Client,
    texts: Texts,
    out: Path,
    recipe: Recipe,
    show: Show,
    interrupts: Interrupts,
    resume: bool,
    say: Callable[[str], None],
    begin: Callable[[], None],
) -> Made:
    started = time.perf_counter()
    model = client.model()
    if recipe.raw or not model.chat:
        texts = without_chat(texts)
    made_with = {"options": recipe.options(), "the examples": tape.digest([*texts.training, *texts.held])}
    if resume:
        was = identity_of_checkpoint(out)
        check_same(out / CHECKPOINT, {name: was.get(name) for name in made_with}, made_with)
        base = (was.get("plugin") or ["", ""])[1]
        if base != model.fingerprint:  # nothing is recorded anew for another cloud
            raise InputError(
                f"the checkpoint {out / CHECKPOINT} is of a training on the base {str(base)[:12]}, but the cloud "
                f"serves {model.fingerprint[:12]} ({model.name}): go on with that base, or begin anew with --force"
            )
    plugin = recipe.new_plugin(model)
    for line in staying(plugin.check_beside(out), out):
        say(line)
    begin()
    part = plugin.trained
    with client.connect(responder=Silent(part.tap, part.context)) as session:
        tapes = record(session, part.tap, part.context, texts, out, show, say)
        rows = tapes.fetch_head(session, recipe.candidates)
    recorded_s = time.perf_counter() - started
    size, tokens = tapes.nbytes, tapes.tokens
    say(f"tape: {tokens:,} tokens, {size / 1e6:.1f} MB ({size / tokens:,.0f} bytes a token), {recorded_s:.0f} s")
    config = recipe.schedule(Batches.count(tapes.training, recipe.training.batch_tokens))
    retain = tapes.split_retain(config.seed, hard_negatives=True)
    begun = recipe.trunk is not None
    trainer = Trainer(
        part, plugin.base, rows, tapes.training, tapes.held, config, out, retain, trained=begun, about=made_with
    )
    part.about = {
        "trunk": recipe.trunk.about if recipe.trunk else None,
        "examples": len(texts.training) - texts.made,
        "made": texts.made,
        "held": len(texts.held),
        "told": texts.told,
        "tape_bytes": size,
        "recording_s": round(recorded_s, 2),
    }
    tuned = not begun or not recipe.least_steps or tapes.training.tokens >= TUNED_TOKENS
    if begun and not tuned:
        say(f"fewer than {TUNED_TOKENS:,} tokens: the trunk is not tuned, which would learn them by heart")
    result, gated, figures = learn(trainer, tapes, texts.told, show, interrupts, resume, tuned, recipe.bias, say)
    plugin.save_part(part, out)
    trainer.forget_checkpoint()
    told, text = texts.held[: texts.told], texts.held[texts.told :]
    kept = Plugin.load(out)  # it may remember too: then what was held out whole is told all the same
    untold = texts.untold if len(kept.parts) > 1 else [*texts.whole, *texts.untold]
    tested = trial.tried(client, kept, texts.training, told, text, untold, say)
    return Made(plugin, result, gated, figures, tested)


def staying(parts: Sequence[Part], out: Path) -> list[str]:
    """What a plugin in `out` remembers, of whose parts these stay beside a new one: a line, or none."""
    sizes = [part.size for part in parts if part.role == "memory"]
    return [f"what {out} remembers ({n} {'entry' if n == 1 else 'entries'}) stays beside the new part" for n in sizes]


def learn(
    trainer: Trainer,
    tapes: Tapes,
    told: int,
    show: Show,
    interrupts: Interrupts,
    resume: bool = False,
    tuned: bool = True,
    biased: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Result, dict[str, Any], dict[str, Figure]]:
    """Train a trainer's part on these tapes, with its gate and its phrases; what that reached is in its `about` too.

    told: how many held-out examples, from the first on, ask for told facts. tuned: whether its parameters change.
    biased: whether a bias is fitted, where the kind has one. Raises Stopped.
    """
    part = trainer.part
    biased = biased and part.kind.biased
    if biased:
        say(trainer.fit_bias(TRAIN).line)
    result = train(trainer, show, interrupts, resume) if tuned else trainer.left_as_it_is()
    figures = figures_of(trainer, told, tapes.held)
    if tuned and result.best_loss < result.base_loss:
        trainer.learn_held()
    elif biased:
        trainer.fit_bias(TRAIN, HELD_OUT)
    part.phrases = tapes.training.texts()[-MAX_PHRASES:]
    begun = part.gate if part.about.get("trunk") else None
    gated = fit_gate(trainer, tapes, begun)
    if gated and part.gate is begun:
        say("the gate is the trunk's: the text is too little to tell it from other people's")
    shown = {name: figure.to_json() for name, figure in figures.items()}
    part.about = {**part.about, **result.to_json(), **gated, "figures": shown, "settings": vars(trainer.config)}
    return result, gated, figures


def record_one(
    session: Session,
    tap: Tap,
    context: ContextSlice | None,
    label: str,
    examples: list[Example],
    path: Path,
    show: Show,
    say: Callable[[str], None] = lambda line: None,
) -> Tape:
    """One tape. Raises Stopped where Ctrl-C came: what is on the tape is kept."""
    with show(f"recording the {label} tape", len(examples)) as tell:
        try:
            return recorder.record(session, tap, examples, path, lambda done: tell(done, None), context, say)
        except KeyboardInterrupt:
            raise Stopped("stopped; what is on the tape is kept, the same command goes on from there") from None


def record(
    session: Session,
    tap: Tap,
    context: ContextSlice | None,
    texts: Texts,
    out: Path,
    show: Show,
    say: Callable[[str], None] = lambda line: None,
) -> Tapes:
    """The tapes of these texts: what is not on them yet is read by the cloud, once."""

    def recorded(label: str, examples: list[Example], path: Path) -> Tape:
        return record_one(session, tap, context, label, examples, path, show, say)

    training = recorded("train", texts.training, out / TRAINING)
    held = recorded("held", texts.held, out / HELD) if texts.held else None
    if not texts.retain:
        return Tapes(training, held, None)
    alike = [i for i, example in enumerate(texts.retain) if data.is_hard_negative(example)]
    general = retain(session, tap, context, texts.retain, show, say)
    path = out / RETAIN
    with writing(path):
        told = {"tape": retain_name(session, tap, context, texts.retain), "negatives": alike}
        write_aside(path, json.dumps(told).encode())
    negatives = recorded("hard-negative", texts.hard_negatives, out / HARD_NEGATIVES) if texts.hard_negatives else None
    return Tapes.of(training, held, general, alike, negatives)


def retain(
    session: Session,
    tap: Tap,
    context: ContextSlice | None,
    prompts: list[Example],
    show: Show,
    say: Callable[[str], None] = lambda line: None,
) -> Tape:
    """The tape of a retain set. It has nothing personal: one serves all trainings on this base with this tap."""
    path = retain_tape(retain_name(session, tap, context, prompts))
    return record_one(session, tap, context, "retain", prompts, path, show, say)


def retain_name(session: Session, tap: Tap, context: ContextSlice | None, prompts: list[Example]) -> str:
    """The name of a retain set's tape."""
    rows = f"-{context.layers}-{context.rank}" if context else ""
    mark = f"{tap.name}{rows}-{session.model.fingerprint[:16]}-{tape.digest(prompts)[:16]}"
    return hashlib.sha256(mark.encode()).hexdigest()[:24]


def retain_tape(name: str) -> Path:
    """Where the retain set's tape of this name is kept. Raises InputError for a name that is none."""
    if not re.fullmatch(r"[0-9a-f]{24}", name):
        raise InputError("the plugin's folder names a retain set's tape that can't be: train the plugin anew")
    return cache_dir() / "retain" / f"{name}.tape"


def train(trainer: Trainer, show: Show, interrupts: Interrupts, resume: bool) -> Result:
    """Run a trainer, and show its progress. Raises Stopped."""
    with show("training", trainer.config.epochs * trainer.batches) as tell, interrupts() as wants_stop:
        return trainer.run(resume, lambda p: tell((p.epoch - 1) * p.batches + p.batch, p), wants_stop)


def own_or_begun(own: Gate, begun: Gate | None, general: Judged) -> Gate:
    """A person's own gate, or that of the trunk that they began with, where their own tells nothing apart.

    A gate of its own that does what it should passes some RETAIN_RATE of general text: no less than the trunk's, which
    was calibrated on that very text, but less of other text.
    """
    if begun is None or begun.kind != "linear":
        return own
    leaks = [gate.rate_and_loss(each, general)[0] for each in (own, begun)]
    return begun if leaks[0] > MOST_LEAKED and leaks[1] < leaks[0] else own


def fit_gate(trainer: Trainer, tapes: Tapes, begun: Gate | None = None) -> dict[str, Any]:
    """Give the trained part its gate; what it trades on held-out text, personal and general (nothing without any).

    begun: the gate of the trunk that it began with, which it keeps where its own would let too much general text pass.
    """
    part, seed = trainer.part, trainer.config.seed
    # The part learns to be silent on hard negatives too; the gate is not asked to tell them apart.
    retain = tapes.split_retain(seed, hard_negatives=False)
    if retain is None or not (len(retain[0]) and len(retain[1])):
        return {}  # there are only hard negatives: nothing that a gate could tell apart
    ours, others = trainer.judge(tapes.training, gate.MAX_TOKENS), trainer.judge(retain[0], gate.MAX_TOKENS)
    judged = {"personal": trainer.judge(tapes.held or tapes.training), "general": trainer.judge(retain[1])}
    fitted = gate.calibrate(gate.fit(ours, others, seed), judged["personal"], judged["general"])
    part.gate = gate.with_dial_by_gain(fitted, gate.fit_by_gain(ours, others), judged["personal"], judged["general"])
    part.gate = own_or_begun(part.gate, begun, judged["general"])
    return {name: gate.trade_off(part.gate, text) for name, text in judged.items()}
