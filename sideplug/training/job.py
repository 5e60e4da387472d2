"""Training for the gateway's page: one plugin at a time, in a thread, with its progress as plain numbers.

An existing plugin is updated (see update), a new one is made (see pipeline). It does not know HTTP.
Test: pytest tests/training/test_job.py
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sideplug.contract.errors import InputError, SideplugError, Stopped
from sideplug.device.client import Client
from sideplug.device.plugin_store import PluginStore
from sideplug.plugins.file import is_trained
from sideplug.readers import Example
from sideplug.readers.dropped import Files, read_dropped
from sideplug.training import by_token, forgetting, pipeline, preflight, recorder, report, update
from sideplug.training.fit import TrainConfig
from sideplug.training.recipe import Recipe
from sideplug.training.trainer import CHECKPOINT, Progress

log = logging.getLogger("sideplug.training")
MOST_SEEN = 20_000  # characters of a text whose words are looked at


class TrainingJob:
    """Trains one plugin at a time, in a thread. retain: a file of prompts for the retain set; None: our own list.

    state has: running, name, stage, done, total, note, losses ([step, training, held out] …), line, error, kept (was
    the plugin made, or replaced?) and notes: what is not learnt of the files, and what a person should know of a new
    plugin, a line each.
    """

    def __init__(self, store: PluginStore, client: Client, retain: Path | None = None) -> None:
        self._store = store
        self._client = client
        self._retain = retain
        self._lock = threading.Lock()
        self._wants_stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._state: dict[str, Any] = {"running": False, "line": "", "error": "", "kept": False}

    @property
    def state(self) -> dict[str, Any]:
        """A copy of the state, as JSON has it."""
        return dict(self._state)

    def start(self, name: str, files: Files, settings: dict[str, Any]) -> None:
        """Begin, from files. settings: epochs, width, force, and how files are read (see read_dropped); or retrain and
        no files, to train an existing plugin anew on what is left on its tape (see forgetting). Raises InputError."""
        reading = {key: value for key, value in settings.items() if key in ("me", "redact", "skip_bad")}
        for key in settings.keys() - reading.keys():
            value = settings[key]
            number = key in ("epochs", "width") and type(value) is int and 1 <= value <= 4096
            if not number and not (key in ("force", "retrain") and type(value) is bool):
                allowed = "epochs and width (1 to 4096), force, me, redact, skip_bad and retrain"
                raise InputError(f"settings must be {allowed}, got {str(key)[:40]!r}")
        told = list[str]()
        retrain = settings.get("retrain", False)
        if retrain and files:
            raise InputError("retrain takes no files: it trains on what is left on the plugin's tape")
        examples = [] if retrain else read_dropped(files, reading, told.append)
        with self._lock:
            if self._state["running"]:
                raise InputError(f"{self._state['name']} is being trained: wait for it, or stop it")
            folder = self._store.folder(name)
            if retrain:
                self._store.find(name)
                work = lambda: self._retrain(folder)  # noqa: E731
            elif is_trained(folder):
                work = lambda: self._update(folder, examples, settings)  # noqa: E731
            else:
                recipe = Recipe(width=settings.get("width", 0)).with_epochs(settings.get("epochs", 0))
                pipeline.Texts.prepare(examples, recipe, self._retain)  # what is wrong is said at once
                work = lambda: self._make(folder, examples, recipe, settings)  # noqa: E731
            self._state = {"running": True, "name": name, "stage": "starting", "done": 0, "total": 0, "note": ""}
            self._state |= {
                "losses": [],
                "line": "",
                "error": "",
                "notes": told,
                "kept": False,
                "examples": len(examples),
            }
            self._wants_stop.clear()
            self._thread = threading.Thread(target=self._run, args=(work,), name="training", daemon=True)
            self._thread.start()

    def words(self, name: str, text: str) -> dict[str, Any]:
        """What the plugin of this name does to a text that it has not learnt: losses in nats a token, and the words.

        words: [text, times, probability without it, with it], the best first. Raises InputError, CloudError.
        """
        examples = read_dropped([("text.txt", text.encode())], {})
        plugin = self._store.load(name)
        if sum(len(each.reply) for each in examples) > MOST_SEEN:
            raise InputError(f"give at most {MOST_SEEN:,} characters")
        with self._client.connect(plugin) as session:
            judged = recorder.score(session, examples)
        words, _ = by_token.by_word(self._client, examples, judged)
        losses = {"base": round(-float(judged.base.mean()), 4), "plugin": round(-float(judged.plugin.mean()), 4)}
        return {**losses, "words": [[each.text, each.count, each.base, each.plugin] for each in words]}

    def stop(self) -> None:
        """Stop between two steps; the plugin that was there before stays."""
        self._wants_stop.set()

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait until it has ended."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self, work: Callable[[], str]) -> None:
        try:
            self._state["line"] = work()
        except SideplugError as error:
            self._state["error"] = str(error)
        except Exception:
            log.exception("training failed")
            self._state["error"] = "training met a fault of its own; the gateway's log has the details"
        finally:
            self._state |= {"running": False, "stage": ""}

    def _make(self, folder: Path, examples: list[Example], recipe: Recipe, settings: dict[str, Any]) -> str:
        """A training that was stopped goes on where its checkpoint fits; `force` begins anew."""
        resume = (folder / CHECKPOINT).is_file() and not settings.get("force", False)
        model = self._client.model()
        recipe = recipe.suited_to(examples).begun_with("", model.fingerprint)
        part, skip_bad = recipe.new_plugin(model).trained, settings.get("skip_bad", False)
        notes = self._state["notes"]
        examples = preflight.readable(self._client, examples, part.tap, part.context, skip_bad, notes.append)
        texts = pipeline.Texts.prepare(examples, recipe, self._retain)
        told = list[str]()
        made = pipeline.make(self._client, texts, folder, recipe, self._show, self._interrupts, resume, told.append)
        self._state["notes"] = [*notes, *texts.lines, *told, *(made.trial.lines if made.trial else [])]
        self._state["kept"] = True
        return report.reached(made)

    def _retrain(self, folder: Path) -> str:
        line = forgetting.retrain(self._client, folder, self._show, self._interrupts)
        self._state["kept"] = True
        return line

    def _update(self, folder: Path, examples: list[Example], settings: dict[str, Any]) -> str:
        epochs = settings.get("epochs", TrainConfig().epochs)
        force, skip_bad = settings.get("force", False), settings.get("skip_bad", False)
        show, interrupts, tell = self._show, self._interrupts, self._state["notes"].append
        made = update.update(self._client, folder, examples, show, interrupts, epochs, force, skip_bad, tell)
        self._state["kept"] = made.kept
        return made.line

    @contextlib.contextmanager
    def _show(self, label: str, total: int) -> Iterator[pipeline.Tell]:
        self._state |= {"stage": label, "done": 0, "total": total, "note": ""}

        def tell(done: int, progress: Progress | None = None) -> None:
            if label.startswith("recording") and self._wants_stop.is_set():
                raise Stopped("stopped; what is on the tape is kept")
            self._state |= {"done": done, "note": progress.line if progress else ""}
            if progress:
                self._state["losses"].append([done, progress.loss, progress.held_loss])

        yield tell

    @contextlib.contextmanager
    def _interrupts(self) -> Iterator[Callable[[], bool]]:
        yield self._wants_stop.is_set
