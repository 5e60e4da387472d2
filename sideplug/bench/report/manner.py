"""The tables of manner: gains by position in a text, by how much was learnt from, and how sampled replies read."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from sideplug.bench.report.figures import NONE, gain, interval_text, label
from sideplug.bench.report.table import Table
from sideplug.bench.spreads import bootstrap
from sideplug.bench.texts import COPIED, POSITIONS, REPEATED

STRETCHES = (*(f"tokens {start}\u2013{end - 1}" for start, end in pairwise(POSITIONS)), f"from {POSITIONS[-1]} on")
CURVE = "curve"  # the task whose users are people with so much text each: "name, 40", "name, all"


def positions(result: dict[str, Any], task: str) -> Table | None:
    """Return the gain of each system by position, or None where nothing tells it."""
    rows = []
    for system in result["systems"]:
        cells = [gain(result, task, system, stretch=stretch) for stretch in range(len(POSITIONS))]
        if any(cells):
            rows.append([label(result, system), *(interval_text(cell, signed=True) for cell in cells)])
    columns = ["loss less its engine's base, nats a token", *STRETCHES]
    note = (
        "Positions are those of the tokens that are judged, so behind the opening or the question that everybody is "
        "given. 95 % bootstrap intervals over pairs, each of one example by both."
    )
    return Table(f"By position: {task}", columns, rows, note) if rows else None


def curve(result: dict[str, Any]) -> Table | None:
    """Return the gain of each system by how many passages were learnt from, or None without that task."""
    if CURVE not in result["tasks"]:
        return None
    sizes = curve_sizes(result)
    rows = []
    for system in result["systems"]:
        cells = [gain(result, CURVE, system, users) for users in sizes.values()]
        if any(cells):
            rows.append([label(result, system), *(interval_text(cell, signed=True) for cell in cells)])
    columns = ["loss less its engine's base, nats a token", *(f"{size} passages" for size in sizes)]
    note = "Of all people together, the same tested passages at each size; a ninth more is held out to stop by."
    return Table("Gain against text", columns, rows, note) if rows else None


def curve_sizes(result: dict[str, Any]) -> dict[str, set[str]]:
    """Return the users of the curve by how many passages they have learnt from, the least first, all of them last."""
    sizes: dict[str, set[str]] = {}
    for user in result["tasks"][CURVE]["users"]:
        sizes.setdefault(user.rpartition(", ")[2], set()).add(user)
    return {size: sizes[size] for size in sorted(sizes, key=lambda size: int(size) if size.isdigit() else 1 << 30)}


def texts(result: dict[str, Any], task: str) -> Table | None:
    """Return how sampled replies of each system read, or None where none were sampled."""
    rows = []
    for system in result["systems"]:
        cells = read_cells(result, task, system)
        if not cells:
            continue
        shares = {name: counted([pair for cell in cells for pair in cell[name]]) for name in ("repeated", "copied")}
        varied = counted([cell["distinct"] for cell in cells])
        base = read_cells(result, task, result["systems"][system]["base"])
        plain = counted([pair for cell in base for pair in cell["repeated"]])
        times = NONE
        if shares["repeated"] and plain and plain["mean"] and base != cells:
            times = f"{shares['repeated']['mean'] / plain['mean']:.2f}"
        tokens = [count for cell in cells for count in cell["tokens"]]
        figures = [interval_text(shares["repeated"]), times, interval_text(shares["copied"]), interval_text(varied)]
        rows.append([label(result, system), *figures, f"{sum(tokens) / len(tokens):.0f}", str(len(tokens))])
    columns = ["system", f"repeated {REPEATED}-grams", "times its engine's base", f"copied {COPIED}-grams"]
    note = (
        "Shares of grams in replies sampled at 0.7 with top-p 0.95, of 128 tokens at most. Repeated: those that stood "
        "before in the same reply; copied: those that stand in the text that was learnt from; distinct: different ones "
        "over all of a user's replies. 95 % bootstrap intervals over replies; of distinct over users."
    )
    columns += [f"distinct-{REPEATED}", "tokens a reply", "replies"]
    return Table(f"How replies read: {task}", columns, rows, note) if rows else None


def read_cells(result: dict[str, Any], task: str, system: str) -> list[dict[str, Any]]:
    """Return what was counted in the replies of a system, by user."""
    cells = [cell for cell in result.get("texts", []) if (cell["task"], cell["system"]) == (task, system)]
    return [cell for cell in cells if "repeated" in cell]


def counted(pairs: list[list[float]]) -> dict[str, float] | None:
    """Return the share of pairs [of it, of all] with its interval; None where there is nothing to count."""
    return bootstrap(pairs) if sum(count for _, count in pairs) else None
