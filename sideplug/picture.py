"""A picture of a curve, drawn with matplotlib (the extra plot) to a file. Test: pytest tests/memory/test_curve.py"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sideplug.contract.errors import InputError
from sideplug.paths import writing


def check_picture(path: Path) -> None:
    """Raises InputError if no picture can be drawn to `path`. Call it before the work, not after it."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("a picture needs matplotlib: pip install 'sideplug[plot]'")
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InputError(f"a picture must be .png, .svg or .pdf, got {path.name}")
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent}")


@contextlib.contextmanager
def drawn(path: Path, title: str, x: str, y: str) -> Iterator[Any]:
    """Yield axes to draw on, with these names; write the picture to `path` at the block's end. Raises Stopped."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4), layout="constrained")
    try:
        yield axes
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.set_title(title)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        with writing(path, "the picture"):
            figure.savefig(path, dpi=150)
    finally:
        pyplot.close(figure)
