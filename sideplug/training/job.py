"""Trains for the gateway's page: one plugin at a time, in a thread, its progress told as plain numbers.

A name that is on the shelf learns on (learn/more), a new one is made (learn/make). It does not know HTTP.
Test: pytest tests/training/test_job.py
"""

from __future__ import annotations

import contextlib
import logging
import re
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from sideplug.contract.errors import InputError, SideplugError, Stopped
from sideplug.device.plugin_store import PluginStore
from sideplug.training import data, pipeline, update
from sideplug.training.data import Example
from sideplug.training.trainer import Settings

HELD_OUT = 0.1
LOSSES = re.compile(r"loss ([\d.]+)(?:, held out ([\d.]+))?")  # in what pipeline.train notes
log = logging.getLogger("sideplug.teacher")


class TrainingJob:
    """`state` has: running, name, stage, done, total, note, losses ([step, training, held out] …), line, error."""

    def __init__(self, shelf: PluginStore, connect: pipeline.Connect, general: Path | None = None) -> None:
        self._shelf = shelf
        self._connect = connect
        self._general = general
        self._lock = threading.Lock()
        self._wants_stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._state: dict[str, Any] = {"running": False, "line": "", "error": ""}

    @property
    def state(self) -> dict[str, Any]:
        return dict(self._state)

    def start(self, name: str, files: list[tuple[str, str]], settings: dict[str, Any]) -> None:
        """`files`: (name, text). settings: epochs, width, force. Raises InputError."""
        for key, value in settings.items():
            number = key in ("epochs", "width") and type(value) is int and 1 <= value <= 4096
            if not number and not (key == "force" and type(value) is bool):
                raise InputError(f"settings must be epochs and width (1 to 4096) and force, got {str(key)[:40]!r}")
        examples = read_files(files)
        with self._lock:
            if self._state["running"]:
                raise InputError(f"{self._state['name']} is being trained: wait for it, or stop it")
            if any(entry.name == name for entry in self._shelf.entries()):
                folder = self._shelf.find(name).folder
                work = lambda: self._learn_on(folder, examples, settings)  # noqa: E731
            else:
                folder = self._shelf.new_folder(name)
                training, held = data.split(examples, HELD_OUT, 0)
                work = lambda: self._make(folder, training, held, settings)  # noqa: E731
            self._state = {"running": True, "name": name, "stage": "starting", "done": 0, "total": 0, "note": ""}
            self._state |= {"losses": [], "line": "", "error": "", "examples": len(examples)}
            self._wants_stop.clear()
            self._thread = threading.Thread(target=self._run, args=(work,), name="teacher", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Between two steps; what was there before stays."""
        self._wants_stop.set()

    def wait(self, timeout_s: float | None = None) -> None:
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

    def _make(self, folder: Path, training: list[Example], held: list[Example], settings: dict[str, Any]) -> str:
        recipe = pipeline.Recipe(width=settings.get("width", 0), training=Settings(settings.get("epochs", 6)))
        near = [] if self._general else data.hard_negatives(training)
        texts = pipeline.Texts(training, held, data.general(self._general), near)
        made = pipeline.make(self._connect, texts, folder, recipe, self._show, self._interrupts)
        gain = made.result.base_loss - made.result.best_loss
        return f"held-out loss {made.result.base_loss:.3f} → {made.result.best_loss:.3f} nats a token ({-gain:+.3f})"

    def _learn_on(self, folder: Path, examples: list[Example], settings: dict[str, Any]) -> str:
        epochs, force = settings.get("epochs", 6), settings.get("force", False)
        return update.learn(self._connect, folder, examples, self._show, self._interrupts, epochs, force).line

    @contextlib.contextmanager
    def _show(self, label: str, total: int) -> Iterator[Callable[[int, str], None]]:
        self._state |= {"stage": label, "done": 0, "total": total, "note": ""}

        def told(done: int, note: str = "") -> None:
            if label.startswith("recording") and self._wants_stop.is_set():
                raise Stopped("stopped; what is on the tape is kept")
            self._state |= {"done": done, "note": note}
            losses = LOSSES.search(note)
            if losses:
                self._state["losses"].append([done, *(float(loss) if loss else None for loss in losses.groups())])

        yield told

    @contextlib.contextmanager
    def _interrupts(self) -> Iterator[Callable[[], bool]]:
        yield self._wants_stop.is_set


def read_files(files: list[tuple[str, str]]) -> list[Example]:
    """Examples of texts that were dropped on the page, by the names that they had. Raises DataError."""
    if not files:
        raise InputError("there is nothing to learn from: give at least one file")
    with tempfile.TemporaryDirectory(prefix="sideplug-") as scratch:
        examples: list[Example] = []
        for number, (name, text) in enumerate(files):
            shown, suffix = PurePath(name).name or "text.txt", PurePath(name).suffix
            # The name is somebody's: it is told, never used as a path.
            path = Path(scratch) / f"{number}{suffix if suffix in data.SUFFIXES else ''}"
            try:
                path.write_bytes(text.encode())
                read = data.read(path)
            except UnicodeEncodeError as error:
                raise InputError(f"{shown} must be UTF-8 text") from error
            except InputError as error:
                raise type(error)(str(error).replace(str(path), shown)) from None
            examples += [replace(example, where=example.where.replace(str(path), shown)) for example in read]
    return examples
