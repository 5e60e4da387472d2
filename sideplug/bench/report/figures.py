"""What the tables and pictures show, read from a result: figures by system and task, and how a figure is written.

It does not know what a table looks like. Test: pytest tests/bench/test_report.py
"""

from __future__ import annotations

import statistics
from collections.abc import Collection
from typing import Any

from sideplug.bench.spreads import bootstrap

NONE = "—"
LOWER = {"exact": "exact, share", "rouge": "ROUGE-L, F1", "loss": "loss, nats a token"}
OURS = ("ungated", "gated", "gated, lookahead")


def label(result: dict[str, Any], name: str) -> str:
    """Return how a system is called."""
    return str(result["systems"][name]["label"])


def quality(result: dict[str, Any], task: str, system: str) -> list[dict[str, Any]]:
    """Return the quality cells of each user; where a system has none, those of the system with the same texts."""
    measured = result["systems"][system]["like"] or system
    return [cell for cell in result["quality"] if cell["task"] == task and cell["system"] == measured]


def measure(result: dict[str, Any], task: str, system: str, name: str) -> dict[str, float] | None:
    """Return a measure over all users' examples, with its 95 % interval; None where it was not measured."""
    pairs = [pair for user in judged(result, task, system, name).values() for pair in user]
    return bootstrap(pairs) if pairs else None


def judged(result: dict[str, Any], task: str, system: str, name: str) -> dict[str, list[tuple[float, float]]]:
    """Return by user, of each example, its figure and what it is over."""
    cells = quality(result, task, system)
    return {cell["user"]: cell[name] for cell in cells if isinstance(cell.get(name), list)}


def gain(
    result: dict[str, Any], task: str, system: str, users: Collection[str] = (), stretch: int | None = None
) -> dict[str, float] | None:
    """Return a system's loss less that of the base of the same engine on the same examples, with its 95 % interval.

    users: of these alone; (): of all. stretch: of the tokens in this one of measures.POSITIONS alone.
    """
    base = result["systems"][system]["base"]
    if system == base or base not in result["systems"]:
        return None
    mine, theirs = (losses(result, task, name, stretch) for name in (system, base))
    both = [user for user in mine if len(mine[user]) == len(theirs.get(user, ())) and (not users or user in users)]
    pairs, others = ([pair for user in both for pair in by_user[user]] for by_user in (mine, theirs))
    return bootstrap(pairs, others) if sum(count for _, count in pairs) else None


def losses(
    result: dict[str, Any], task: str, system: str, stretch: int | None = None
) -> dict[str, list[tuple[float, float]]]:
    """Return by user, of each example, its nats and tokens: all of them, or those of one stretch of positions."""
    if stretch is None:
        return judged(result, task, system, "loss")
    return {user: stretches[stretch] for user, stretches in judged(result, task, system, "positions").items()}  # type: ignore[misc]


def untouched(result: dict[str, Any], task: str, system: str) -> float | None:
    """Return the share of general prompts that are answered as by the base of the same engine."""
    base = result["systems"][system]["base"]
    if base not in result["systems"]:
        return None
    mine, theirs = (
        [text for cell in quality(result, task, name) for text in cell.get("general", [])] for name in (system, base)
    )
    if not result["systems"][system]["personal"] or not mine or len(mine) != len(theirs):
        return None
    return statistics.mean(float(a == b) for a, b in zip(mine, theirs, strict=True))


def speeds(result: dict[str, Any], task: str, system: str) -> dict[tuple[float, float], dict[str, Any]]:
    """Return a system's speed cells by (RTT in ms, Mbit/s)."""
    cells = [c for c in result["speed"] if c["task"] == task and c["system"] == system and "tokens_s" in c]
    return {(cell["rtt_ms"], cell["mbit"]): cell for cell in cells}


def is_timed(result: dict[str, Any], task: str) -> bool:
    """Return whether speed was measured on a task."""
    return any(speeds(result, task, system) for system in result["systems"])


def timed_task(result: dict[str, Any]) -> str:
    """Return the task that the tables of one task's speed show: the first that speed was measured on, or the first."""
    tasks = list(result["tasks"])
    return next((task for task in tasks if is_timed(result, task)), tasks[0])


def usual(result: dict[str, Any]) -> tuple[float, float]:
    """Return the network that tables of one network show: 50 ms and 10 Mbit/s, or the one measured that is nearest."""
    networks = {(cell["rtt_ms"], cell["mbit"]) for cell in result["speed"]}
    return min(networks, key=lambda n: (abs(n[0] - 50), abs(n[1] - 10))) if networks else (50.0, 10.0)


def usual_speed(result: dict[str, Any], task: str, system: str) -> dict[str, Any] | None:
    """Return the speed cell at the usual network; as it is, for a system that has no network."""
    by_network = speeds(result, task, system)
    alone = next(iter(by_network.values()), None) if len(by_network) == 1 else None
    return by_network.get(usual(result)) or alone


def judged_by(result: dict[str, Any], task: str) -> list[str]:
    """Return the measures of a task, the one that it is judged by first."""
    cells = [cell for cell in result["quality"] if cell["task"] == task]
    return [name for name in LOWER if any(name in cell for cell in cells)]


def with_general(result: dict[str, Any]) -> list[str]:
    """Return the tasks that have prompts whose replies must be untouched."""
    return list(dict.fromkeys(cell["task"] for cell in result["quality"] if cell.get("general")))


def prefers(result: dict[str, Any], task: str) -> str:
    """Return in how many pairs a plugin gains more on its own user's held-out text than on another's; "" for none."""
    rows = {row["user"]: row for row in result["matrix"] if row["task"] == task and "unavailable" not in row}
    gain = {(a, b): row[b][1] - row[b][0] for a, row in rows.items() for b in rows}
    pairs = [gain[a, a] > gain[a, b] for a in rows for b in rows if a != b]
    return f"{sum(pairs)} of {len(pairs)} pairs" if pairs else ""


def over_base(result: dict[str, Any], task: str, system: str) -> str:
    """Return its speed over that of the base alone on the same engine: what splitting costs, not the engine."""
    base = result["systems"][system]["base"]
    if system == base or base not in result["systems"]:
        return NONE
    mine, theirs = (usual_speed(result, task, name) for name in (system, base))
    if not mine or not theirs:
        return NONE
    return f"{mine['tokens_s']['median'] / theirs['tokens_s']['median']:.2f}×"


def peaks(result: dict[str, Any], system: str) -> list[float]:
    """Return the MB of the device's memory at most, over each network of the first task."""
    return [cell["peak_rss_mb"] for cell in speeds(result, timed_task(result), system).values()]


def spread_text(spread: dict[str, float] | None, digits: int = 1) -> str:
    """Return a median with the least and most, or NONE for fewer than two runs."""
    if not spread or spread.get("runs", 0) < 2:
        return NONE
    return f"{spread['median']:.{digits}f} ({spread['min']:.{digits}f}–{spread['max']:.{digits}f})"


def interval_text(interval: dict[str, float] | None, percent: bool = False, signed: bool = False) -> str:
    """Return a mean with its interval, or NONE."""
    if not interval:
        return NONE
    scale, digits, unit = (100, 0, " %") if percent else (1, 3, "")
    sign, to = ("+", " to ") if signed else ("", "–")
    mean, low, high = (f"{scale * interval[key]:{sign}.{digits}f}".replace("-", "−") for key in ("mean", "low", "high"))
    return f"{mean} ({low}{to}{high}){unit}"


def share_text(share: float | None) -> str:
    """Return a share in per cent, or NONE."""
    return NONE if share is None else f"{100 * share:.0f} %"
