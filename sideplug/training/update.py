"""Continual learning: new examples for an existing plugin, without forgetting.

What the plugin learnt from is on its tapes, so the cloud reads only what is new. Training continues from the plugin as
it is, on old and new examples together. The result replaces the plugin only where it learnt the new examples and does
not do worse on the text that was held out before; the version before is kept, for `rollback`.
Test: pytest tests/training/test_update.py
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sideplug.contract.errors import InputError, PluginError, Stopped
from sideplug.device.client import Client
from sideplug.device.responders import Silent
from sideplug.paths import alone, write_aside, writing
from sideplug.plugins import Plugin
from sideplug.plugins.base import MAX_PHRASES
from sideplug.plugins.bundle import RETAIN, tapes_of
from sideplug.plugins.file import SUFFIX, is_sealed
from sideplug.plugins.validate import read_file
from sideplug.readers import Example
from sideplug.readers.report import Tell
from sideplug.training import pipeline, threads
from sideplug.training.fit import TrainConfig
from sideplug.training.preflight import readable
from sideplug.training.tape import Tape
from sideplug.training.trainer import TRAIN, Trainer

VERSIONS = "versions"
MAX_VERSIONS = 5  # that `rollback` can return to
SHARE = 0.25  # of an epoch that new examples make up, by being repeated …
MAX_REPEATS = 8  # … but no more often than this
WORSE = 0.01  # nats a token on the old held-out text: what may be noise


@dataclass
class Update:
    """What an update reached. Losses in nats a token, on the text that was held out when the plugin was made (old) and
    on the new examples; kept: whether the plugin was replaced; why: why not."""

    examples: int
    old_before: float
    old_after: float
    new_before: float
    new_after: float
    epochs: int
    kept: bool
    why: str

    def to_json(self) -> dict[str, Any]:
        """The fields by name, to five places."""
        return {name: round(value, 5) if isinstance(value, float) else value for name, value in asdict(self).items()}

    @property
    def line(self) -> str:
        """One line for a person to read."""
        new = f"new text {self.new_before:.3f} → {self.new_after:.3f}"
        old = f"old held-out text {self.old_before:.3f} → {self.old_after:.3f} nats a token"
        end = "the plugin is replaced" if self.kept else f"the plugin stays as it was: {self.why}"
        return f"learnt {self.examples} more in {self.epochs} epochs: {new}, {old}; {end}"


def update(
    client: Client,
    folder: Path,
    added: list[Example],
    show: pipeline.Show,
    interrupts: pipeline.Interrupts,
    epochs: int = TrainConfig().epochs,
    force: bool = False,
    skip_bad: bool = False,
    tell: Tell = lambda line: None,
) -> Update:
    """Train the plugin in `folder` on these examples too; skip_bad: but for those that the cloud can't read.

    Raises PluginError for a plugin without its tapes, Stopped where somebody wanted that, or another training writes
    into the folder (the plugin stays).
    """
    open_plugin(folder)
    with writing(folder), alone(folder / pipeline.TRAINING.parent, shown=folder), threads.measured():
        return _update(client, folder, added, show, interrupts, epochs, force, skip_bad, tell)


def _update(
    client: Client,
    folder: Path,
    added: list[Example],
    show: pipeline.Show,
    interrupts: pipeline.Interrupts,
    epochs: int,
    force: bool,
    skip_bad: bool,
    tell: Tell,
) -> Update:
    plugin = open_plugin(folder)
    part = plugin.trained
    before = Plugin(plugin.base, plugin.base_name, [part]).to_bytes()  # not what it remembers: that is no training's
    number = int(part.about.get("additions", 0)) + 1
    tapes = tapes_learnt(folder, plugin)
    if not len(tapes.training):
        raise PluginError(f"nothing is left on the tape of {folder}, all was forgotten: train it anew (train --out)")
    added = readable(client, added, part.tap, part.context, skip_bad, tell)
    with client.connect(responder=Silent(part.tap, part.context)) as session:
        plugin.check_base(session.model.fingerprint, session.model.name)
        new = pipeline.record_one(session, part.tap, part.context, "new", added, _addition(folder, number), show)
        old = tapes.training
        tapes.training = old + new.part([*range(len(new))] * _repeats(old, new))
        held = tapes.held or old  # where nothing was held out, what it learnt must stay as it is
        tapes.held = held + new
        config = replace(config_of(plugin), epochs=epochs)
        rows = tapes.fetch_head(session, 4096)
    retain = tapes.split_retain(config.seed, hard_negatives=True)
    trainer = Trainer(
        part, plugin.base, rows.tilted(part.bias), tapes.training, tapes.held, config, folder, retain, trained=True
    )

    def losses() -> list[float]:
        return [float(-trainer.judge(tape).plugin.mean()) for tape in (held, new)]

    old_before, new_before = losses()
    if len(part.bias):
        trainer.fit_bias(TRAIN)
    try:
        result = pipeline.train(trainer, show, interrupts, resume=False)
    except Stopped as stopped:
        raise Stopped(f"{str(stopped).split(';')[0]}; the plugin stays as it was") from stopped
    finally:
        trainer.forget_checkpoint()  # nothing continues from it: the tape is what is kept
    old_after, new_after = losses()
    why = ""
    if old_after > old_before + WORSE:
        why = "it would do worse on the old text"
    elif not new_after < new_before:
        why = "it learnt nothing"
    made = Update(len(added), old_before, old_after, new_before, new_after, result.epochs, force or not why, why)
    if made.kept:
        part.phrases = (old + new).texts()[-MAX_PHRASES:]
        gated = pipeline.fit_gate(trainer, tapes)
        examples = int(part.about.get("examples", len(old))) + len(added)
        part.about = {**part.about, **result.to_json(), **gated, "examples": examples, "additions": number}
        _keep(folder, before)
        plugin.save_part(part, folder)
    return made


def tapes_to_export(folder: Path) -> dict[str, bytes]:
    """All tapes that the plugin in `folder` learnt from, by name, the retain set's too. Raises PluginError."""
    open_plugin(folder)
    tapes = tapes_of(folder)
    if pipeline.TRAINING.name not in tapes:
        raise PluginError(f"{folder} has no tape to export")
    if pipeline.RETAIN.name in tapes and RETAIN not in tapes:
        path = pipeline.retain_tape(json.loads(tapes[pipeline.RETAIN.name])["tape"])
        if not path.is_file():
            raise PluginError("the retain set's tape is not in the cache any more: train the plugin anew")
        tapes[RETAIN] = read_file(path)
    return tapes


def rollback(folder: Path) -> Plugin:
    """The plugin with its trained part as it was before it last learnt, and the rest as it is.

    Raises PluginError where there is no such version.
    """
    open_plugin(folder)
    versions = sorted((folder / VERSIONS).glob("*.safetensors"))
    if not versions:
        raise PluginError(f"{folder} has no version before this one")
    before = Plugin.from_bytes(versions[-1].read_bytes(), str(versions[-1]))
    before.save_part(before.trained, folder)  # what it remembers stays as it is
    versions[-1].unlink()
    return Plugin.load(folder)


def open_plugin(folder: Path) -> Plugin:
    """The plugin. Raises PluginError for one that is sealed: what is learnt from is sealed with it."""
    if is_sealed(folder):
        raise PluginError(f"{folder} is sealed, its tape too: unlock it first (sideplug plugin unlock {folder})")
    return Plugin.load(folder)


def _repeats(old: Tape, new: Tape) -> int:
    """How often an epoch reads the new examples."""
    return max(1, min(MAX_REPEATS, round(SHARE / (1 - SHARE) * len(old) / len(new))))


def _addition(folder: Path, number: int) -> Path:
    return (folder / pipeline.TRAINING).with_name(f"more-{number}.tape")


def config_of(plugin: Plugin) -> TrainConfig:
    """How a plugin was trained, as far as this version knows its settings."""
    known = plugin.about.get("settings", {})
    return TrainConfig(**{name: value for name, value in known.items() if name in TrainConfig.__dataclass_fields__})


def tape_files(folder: Path, plugin: Plugin) -> list[Path]:
    """The files of the tapes that the plugin in `folder` learnt from: trained on, added later, held out."""
    about = plugin.trained.about
    numbers = range(1, int(about.get("additions", 0)) + 1)
    held = [folder / pipeline.HELD] if about.get("held", 1) else []
    return [folder / pipeline.TRAINING, *(_addition(folder, number) for number in numbers), *held]


def tapes_learnt(folder: Path, plugin: Plugin) -> pipeline.Tapes:
    """What the plugin was made from so far. Raises PluginError where a tape is missing, DataError for a damaged one."""
    if not all(path.is_file() for path in tape_files(folder, plugin)):
        if any(folder.rglob("*" + SUFFIX)):
            raise PluginError(f"a tape of {folder} is sealed: unlock it first (sideplug plugin unlock {folder})")
        raise PluginError(
            f"{folder} has no tape to learn on from: export it with its tape where it was made (sideplug plugin export "
            "--tape --seal), or train it anew"
        )
    part = plugin.trained
    additions = int(part.about.get("additions", 0))

    def whole(path: Path) -> Tape:
        return Tape.whole(path, part.tap, part.context)

    training = whole(folder / pipeline.TRAINING)
    for number in range(1, additions + 1):
        training = training + whole(_addition(folder, number))
    held = whole(folder / pipeline.HELD) if part.about.get("held", 1) else None
    try:
        about = json.loads((folder / pipeline.RETAIN).read_text(encoding="utf-8"))
        imported, negatives = (folder / pipeline.RETAIN).with_name(RETAIN), folder / pipeline.HARD_NEGATIVES
        path = imported if imported.is_file() else pipeline.retain_tape(about["tape"])
        own = whole(negatives) if negatives.is_file() else None
        return pipeline.Tapes.of(training, held, whole(path), about["negatives"], own)
    except FileNotFoundError:
        if part.gate.kind == "linear":
            raise InputError(
                "the retain set's tape is not in the cache any more: train the plugin anew, which records it"
            ) from None
        return pipeline.Tapes(training, held, None)


def _keep(folder: Path, file: bytes) -> None:
    """Keep the trained part before, where `rollback` finds it."""
    try:
        (folder / VERSIONS).mkdir(exist_ok=True)
        versions = sorted((folder / VERSIONS).glob("*.safetensors"))
        number = int(versions[-1].stem) + 1 if versions else 1
        write_aside(folder / VERSIONS / f"{number:06}.safetensors", file)
        for path in versions[: max(0, len(versions) + 1 - MAX_VERSIONS)]:
            path.unlink()
    except OSError as error:
        raise Stopped(f"the version before could not be kept in {folder}: {error.strerror or error}") from error
