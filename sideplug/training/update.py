"""Learning as one goes: new examples for a plugin that is there already, from its own tapes, without forgetting.

What it learnt from is on its tapes, so only what is new is read by the cloud. Training goes on from the plugin as it
is, on old and new examples together. It replaces the plugin only where it learnt the new ones and does not do worse on
the text that was held out before; the one before is kept, for `rollback`.
Test: pytest tests/training/test_update.py
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sideplug.contract.errors import InputError, PluginError, Stopped
from sideplug.device.plugin import WEIGHTS, Plugin, is_sealed, write_aside
from sideplug.training import pipeline
from sideplug.training.data import Example
from sideplug.training.tape import Tape
from sideplug.training.trainer import Settings, Trainer

VERSIONS = "versions"
KEPT = 5  # versions that can be gone back to
SHARE = 0.25  # of an epoch that new examples make up, by being read several times …
REPEATS = 8  # … but no more often than this
WORSE = 0.01  # nats a token on the old held-out text: what may be noise


@dataclass
class Learnt:
    """Losses in nats a token, on the text that was held out when the plugin was made, and on what is new."""

    examples: int
    old_before: float
    old_after: float
    new_before: float
    new_after: float
    epochs: int
    kept: bool
    why: str  # not kept

    def to_json(self) -> dict[str, Any]:
        return {name: round(value, 5) if isinstance(value, float) else value for name, value in asdict(self).items()}

    @property
    def line(self) -> str:
        """For a person to read."""
        new = f"new text {self.new_before:.3f} → {self.new_after:.3f}"
        old = f"old held-out text {self.old_before:.3f} → {self.old_after:.3f} nats a token"
        end = "the plugin is replaced" if self.kept else f"the plugin stays as it was: {self.why}"
        return f"learnt {self.examples} more in {self.epochs} epochs: {new}, {old}; {end}"


def learn(
    connect: pipeline.Connect,
    folder: Path,
    added: list[Example],
    show: pipeline.Show,
    interrupts: pipeline.Interrupts,
    epochs: int = 6,
    force: bool = False,
) -> Learnt:
    """Raises PluginError for a plugin without its tapes, Stopped where somebody wanted that (the plugin stays)."""
    plugin = _open(folder)
    number = int(plugin.about.get("additions", 0)) + 1
    tapes_of_it = [
        folder / pipeline.TRAINING,
        folder / pipeline.HELD,
        *(_addition(folder, n) for n in range(1, number)),
    ]
    if not all(path.is_file() for path in tapes_of_it):
        raise PluginError(f"{folder} has no tape to learn on from (it was imported, perhaps): train it anew")
    before = (folder / WEIGHTS).read_bytes()
    with connect(plugin.tap) as session:
        plugin.check_base(session.model.fingerprint, session.model.name)
        new = pipeline.record_one(session, plugin.tap, "new", added, _addition(folder, number), show)
        tapes = _tapes(folder, plugin, number - 1)
        old = tapes.training
        tapes.training = old + new.part([*range(len(new))] * _repeats(old, new))
        held, tapes.held = tapes.held, tapes.held + new
        settings = replace(_settings(plugin), epochs=epochs)
        rows = tapes.fetch_head(session, 4096)
    general = tapes.split_general(settings.seed, hard_negatives=True)
    trainer = Trainer(plugin, rows, tapes.training, tapes.held, settings, folder, general, started=True)

    def losses() -> list[float]:
        return [float(-trainer.judge(tape).plugin.mean()) for tape in (held, new)]

    old_before, new_before = losses()
    try:
        result = pipeline.train(trainer, show, interrupts, resume=False)
    except Stopped as stopped:
        raise Stopped(f"{str(stopped).split(';')[0]}; the plugin stays as it was") from stopped
    finally:
        trainer.forget_checkpoint()  # nothing goes on from it: the tape is what is kept
    old_after, new_after = losses()
    why = ""
    if old_after > old_before + WORSE:
        why = "it would do worse on the old text (--force replaces it all the same)"
    elif not new_after < new_before:
        why = "it learnt nothing"
    learnt = Learnt(len(added), old_before, old_after, new_before, new_after, result.epochs, force or not why, why)
    if learnt.kept:
        plugin.phrases = (old + new).texts()[-pipeline.MAX_PHRASES :]
        gated = pipeline.fit_gate(trainer, tapes)
        examples = int(plugin.about.get("examples", len(old))) + len(added)
        plugin.about = {**plugin.about, **result.to_json(), **gated, "examples": examples, "additions": number}
        _keep(folder, before)
        plugin.save(folder)
    return learnt


def rollback(folder: Path) -> Plugin:
    """The plugin as it was before it last learnt. Raises PluginError where there is no such version."""
    _open(folder)
    versions = sorted((folder / VERSIONS).glob("*.safetensors"))
    if not versions:
        raise PluginError(f"{folder} has no version before this one")
    plugin = Plugin.from_bytes(versions[-1].read_bytes(), str(versions[-1]))
    plugin.save(folder)
    versions[-1].unlink()
    return plugin


def _open(folder: Path) -> Plugin:
    """The plugin. Raises PluginError for one that is sealed: what is learnt from is sealed with it."""
    if is_sealed(folder):
        raise PluginError(f"{folder} is sealed, its tape too: unlock it first (sideplug plugin unlock {folder})")
    return Plugin.load(folder)


def _repeats(old: Tape, new: Tape) -> int:
    """How often an epoch reads the new examples."""
    return max(1, min(REPEATS, round(SHARE / (1 - SHARE) * len(old) / len(new))))


def _addition(folder: Path, number: int) -> Path:
    return (folder / pipeline.TRAINING).with_name(f"more-{number}.tape")


def _settings(plugin: Plugin) -> Settings:
    known = plugin.about.get("settings", {})
    return Settings(**{name: value for name, value in known.items() if name in Settings.__dataclass_fields__})


def _tapes(folder: Path, plugin: Plugin, additions: int) -> pipeline.Tapes:
    """What the plugin was made from so far."""
    training = Tape.whole(folder / pipeline.TRAINING, plugin.tap)
    for number in range(1, additions + 1):
        training = training + Tape.whole(_addition(folder, number), plugin.tap)
    held = Tape.whole(folder / pipeline.HELD, plugin.tap)
    try:
        about = json.loads((folder / pipeline.GENERAL).read_text())
        path = pipeline.general_tape(about["tape"])
        near = Tape.whole(folder / pipeline.NEAR, plugin.tap) if (folder / pipeline.NEAR).is_file() else None
        return pipeline.Tapes.of(training, held, Tape.whole(path, plugin.tap), about["near"], near)
    except FileNotFoundError:
        if plugin.gate.kind == "linear":
            raise InputError(
                "the general tape is not in the cache any more: train the plugin anew, which records it"
            ) from None
        return pipeline.Tapes(training, held, None)


def _keep(folder: Path, file: bytes) -> None:
    """Put the plugin as it was where `rollback` finds it."""
    try:
        (folder / VERSIONS).mkdir(exist_ok=True)
        versions = sorted((folder / VERSIONS).glob("*.safetensors"))
        number = int(versions[-1].stem) + 1 if versions else 1
        write_aside(folder / VERSIONS / f"{number:06}.safetensors", file)
        for path in versions[: max(0, len(versions) + 1 - KEPT)]:
            path.unlink()
    except OSError as error:
        raise Stopped(f"the version before could not be kept in {folder}: {error.strerror or error}") from error
