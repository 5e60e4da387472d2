"""The comparison, as `sideplug bench` runs it: plans, measures, writes a result and its report.

Test: pytest -m slow tests/slow/test_bench.py
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sideplug.bench import tasks
from sideplug.bench.cells import Cells
from sideplug.bench.measures import short
from sideplug.bench.meters import machine
from sideplug.bench.report.page import page
from sideplug.bench.report.pictures import draw
from sideplug.bench.report.tables import markdown
from sideplug.bench.run import Run
from sideplug.bench.scale import SCALES, Scale
from sideplug.bench.systems import BY_NAME
from sideplug.bench.tasks import Task
from sideplug.cloud.store import find
from sideplug.contract.errors import InputError, Stopped
from sideplug.contract.version import __version__
from sideplug.paths import cache_dir
from sideplug.readers import read as read_examples

TASKS = ("authors", "facts")  # of a run that names none
ALL_TASKS = (*TASKS, "mails", "curve")
NEEDED = {"systems", "speed", "quality", "training", "matrix", "bits", "drift", "energy", "floor", "tasks", "scale"}


def bench(
    model: str, scale: str, chosen: Sequence[str], systems: Sequence[str], data: Path | None, out: Path
) -> tuple[Path, dict[str, Any]]:
    """Measure, or go on measuring, and return (the result's file, the result). Raises InputError, Stopped."""
    unknown = [name for name in systems if name not in BY_NAME]
    if unknown:
        raise InputError(f"there is no system {unknown[0]!r}; there are {'; '.join(BY_NAME)}")
    examples = read_examples(data) if data else []  # what is wrong with it is said before the work, not behind it
    base = find(model)
    name = short(base.name)
    size = SCALES[scale]
    settings = {
        "version": __version__,
        "model": base.fingerprint,
        "scale": asdict(size) | {"networks": [list(n) for n in size.networks]},
        "tasks": list(chosen),
        "systems": list(systems),
        "data": hashlib.sha256(repr([(e.prompt, e.reply) for e in examples]).encode()).hexdigest() if data else "",
    }
    settings = json.loads(json.dumps(settings))
    mark = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:8]
    where = re.sub(r"[^a-z0-9]+", "-", f"{machine()['cpu']} {machine()['cores']} cores".lower()).strip("-")
    folder = cache_dir() / "bench" / f"{name}-{mark}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Stopped(f"{error.filename} can't be made: {error.strerror}") from error
    cells = Cells(out / f"{name}_{where}_{scale}-{mark}.cells.jsonl", settings)
    chosen_tasks = make_tasks(size, chosen, data, folder)
    result = Run(model, size, cells, folder, tuple(systems)).measure(chosen_tasks)
    part = "" if (*chosen,) == TASKS and not systems and not data else f"_{mark}"
    path = out / f"{name}_{where}_{time.strftime('%Y-%m-%d')}{'' if scale == 'full' else f'_{scale}'}{part}.json"
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    cells.path.unlink()
    shutil.rmtree(folder, ignore_errors=True)  # plugins, adapters, tapes
    return path, result


def make_tasks(size: Scale, chosen: Sequence[str], data: Path | None, folder: Path) -> list[Task]:
    """Return the chosen tasks. Raises InputError where none is chosen, or for data that can't be used."""
    made: list[Task] = []
    if "authors" in chosen:
        made.append(tasks.authors(size.authors, size.passages, size.tested, folder))
    if "facts" in chosen:
        made.append(tasks.facts(size.facts, size.examples, size.questions, size.general, folder))
    if "mails" in chosen:
        made.append(tasks.mail_writers(size.writers, size.mails, size.mails_tested, folder))
    if "curve" in chosen:
        made.append(tasks.curve(size.curve, size.curve_presidents, size.curve_passages, size.curve_tested, folder))
    if data:
        made.append(tasks.from_file(data, size.questions, folder, size.authors))
    if not made:
        raise InputError(f"there must be a task: --task {' or '.join(ALL_TASKS)}, or --data FILE")
    return made


def read(path: Path) -> dict[str, Any]:
    """Return a written result. Raises InputError for what is not the result of a run."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} must be the JSON of a run: {error}") from error
    if not isinstance(result, dict) or not result.keys() >= NEEDED:
        raise InputError(f"{path} is not the result of a run of this version of sideplug bench")
    return result


def report(result: dict[str, Any], path: Path) -> list[Path]:
    """Write the result's tables (.md), page (.html) and pictures (-NAME.svg) beside it. Raises Stopped."""
    pictures = draw(result)
    files = {path.with_suffix(".md"): markdown(result), path.with_suffix(".html"): page(result, pictures)}
    files |= {path.with_name(f"{path.stem}-{name}.svg"): svg for name, svg in pictures.items()}
    try:
        for file, text in files.items():
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Stopped(f"{error.filename} could not be written: {error.strerror}") from error
    return list(files)
