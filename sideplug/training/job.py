"""Training for the gateway's page: one plugin at a time, in a thread, with its progress as plain numbers.

An existing plugin is updated (see update), a new one is made (see pipeline). It does not know HTTP.
Test: pytest tests/training/test_job.py
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import Any

from sideplug.contract.errors import InputError, SideplugError, Stopped
from sideplug.device.client import Client
from sideplug.device.plugin_store import PluginStore
from sideplug.readers import Example, parse
from sideplug.training import pipeline, update
from sideplug.training.fit import TrainConfig
from sideplug.training.trainer import Progress

HELD_OUT = 0.1
log = logging.getLogger("sideplug.training")


class TrainingJob:
    """Trains one plugin at a time, in a thread. retain: a file of prompts for the retain set; None: our own list.

    state has: running, name, stage, done, total, note, losses ([step, training, held out] …), line, error, kept (was
    the plugin made, or replaced?).
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

    def start(self, name: str, files: list[tuple[str, str]], settings: dict[str, Any]) -> None:
        """Begin, from files of (name, text). settings: epochs, width, force. Raises InputError."""
        for key, value in settings.items():
            number = key in ("epochs", "width") and type(value) is int and 1 <= value <= 4096
            if not number and not (key == "force" and type(value) is bool):
                raise InputError(f"settings must be epochs and width (1 to 4096) and force, got {str(key)[:40]!r}")
        examples = read_files(files)
        with self._lock:
            if self._state["running"]:
                raise InputError(f"{self._state['name']} is being trained: wait for it, or stop it")
            if any(entry.name == name for entry in self._store.entries()):
                folder = self._store.find(name).folder
                work = lambda: self._update(folder, examples, settings)  # noqa: E731
            else:
                folder = self._store.new_folder(name)
                texts = pipeline.Texts.prepare(examples, HELD_OUT, 0, retain=self._retain)
                work = lambda: self._make(folder, texts, settings)  # noqa: E731
            self._state = {"running": True, "name": name, "stage": "starting", "done": 0, "total": 0, "note": ""}
            self._state |= {"losses": [], "line": "", "error": "", "kept": False, "examples": len(examples)}
            self._wants_stop.clear()
            self._thread = threading.Thread(target=self._run, args=(work,), name="training", daemon=True)
            self._thread.start()

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

    def _make(self, folder: Path, texts: pipeline.Texts, settings: dict[str, Any]) -> str:
        recipe = pipeline.Recipe(width=settings.get("width", 0), training=TrainConfig(settings.get("epochs", 6)))
        made = pipeline.make(self._client, texts, folder, recipe, self._show, self._interrupts)
        gain = made.result.base_loss - made.result.best_loss
        self._state["kept"] = True
        return f"held-out loss {made.result.base_loss:.3f} → {made.result.best_loss:.3f} nats a token ({-gain:+.3f})"

    def _update(self, folder: Path, examples: list[Example], settings: dict[str, Any]) -> str:
        epochs, force = settings.get("epochs", 6), settings.get("force", False)
        made = update.update(self._client, folder, examples, self._show, self._interrupts, epochs, force)
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


def read_files(files: list[tuple[str, str]]) -> list[Example]:
    """The examples of texts that were dropped on the page, by the names that they had. Raises DataError, InputError."""
    if not files:
        raise InputError("there is nothing to learn from: give at least one file")
    examples: list[Example] = []
    for name, text in files:
        shown = PurePath(name).name or "text.txt"
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{shown} must be UTF-8 text") from error
        examples += parse(text, shown)
    return examples
