"""The pictures of a run, as SVG. Test: pytest tests/bench/test_report.py"""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable
from typing import Any

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "sideplug"  # the same run gives the same file
from matplotlib import pyplot  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

from sideplug.bench.report.figures import OURS, gain, label, peaks, speeds, timed_task, usual, usual_speed  # noqa: E402
from sideplug.bench.report.manner import CURVE, curve_sizes  # noqa: E402

COLOURS = {
    "gated, lookahead": "#0b6e4f",
    "gated": "#2ca25f",
    "ungated": "#8fd3ae",
    "cloud only": "#333333",
}
OTHERS = ("#1a6faf", "#c0504d", "#8064a2", "#e08214", "#6b8e9b", "#b8860b", "#7f7f7f", "#d977a8", "#5b5ea6")
WORSE = 0.5  # nats above the base: beyond the picture
Draw = Callable[[dict[str, Any], Axes], bool]  # False: there is nothing to draw


def colour(result: dict[str, Any], system: str) -> str:
    """Return a system's colour, the same in every picture."""
    others = [name for name in result["systems"] if name not in COLOURS]
    return COLOURS[system] if system in COLOURS else OTHERS[others.index(system) % len(OTHERS)]


def over_rtt(result: dict[str, Any], axes: Axes) -> bool:
    """Tokens a second against RTT, with spreads; dotted: what the line alone would let through."""
    task = timed_task(result)
    mbit = usual(result)[1]
    drawn = False
    for system in result["systems"]:
        cells = sorted((rtt, cell) for (rtt, m), cell in speeds(result, task, system).items() if m == mbit)
        everywhere = (
            len(speeds(result, task, system)) == 1
            and not next(iter(speeds(result, task, system).values()))["limit_tokens_s"]
        )
        kind: dict[str, Any] = {
            "color": colour(result, system),
            "label": label(result, system),
            "lw": 2.2 if system in OURS else 1.2,
        }
        if everywhere:
            (cell,) = speeds(result, task, system).values()
            axes.axhline(cell["tokens_s"]["median"], ls="-.", **kind)
            continue
        if not cells:
            continue
        drawn = True
        middles = [cell["tokens_s"]["median"] for _, cell in cells]
        down = [cell["tokens_s"]["median"] - cell["tokens_s"]["min"] for _, cell in cells]
        up = [cell["tokens_s"]["max"] - cell["tokens_s"]["median"] for _, cell in cells]
        axes.errorbar([rtt for rtt, _ in cells], middles, yerr=[down, up], marker="o", ms=4, capsize=2, **kind)
        limits = [(rtt, cell["limit_tokens_s"]) for rtt, cell in cells if cell["limit_tokens_s"]]
        if cells[-1][1]["round_trips"]["median"] > 0.5 and len(limits) > 1:
            axes.plot(*zip(*limits, strict=True), ":", color=colour(result, system), lw=1)
    axes.axhline(result["floor"]["tokens_s"], color="0.6", ls="--", lw=1, label="floor: reading the weights")
    axes.set(xlabel=f"round trip, ms (at {mbit:.0f} Mbit/s)", ylabel="tokens a second", yscale="log")
    axes.set_title(f"Speed over the network: {task}")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return drawn


def against_bytes(result: dict[str, Any], axes: Axes) -> bool:
    """Loss less the base's against bytes a token."""
    task = timed_task(result)
    base = {"mean": 0.0, "low": 0.0, "high": 0.0}
    points = {}
    for system in result["systems"]:
        gained = base if result["systems"][system]["base"] == system else gain(result, task, system)
        cell = usual_speed(result, task, system)
        if gained and cell:
            points[system] = gained, cell["bytes_down"]["median"] + cell["bytes_up"]["median"]
    if not points:
        return False
    near = [gained for gained, _ in points.values() if gained["mean"] <= WORSE]
    highest = max((gained["high"] for gained in near), default=0.0)
    lowest = min((gained["low"] for gained in near), default=0.0)
    top = highest + 0.15 * max(highest - lowest, 0.01)
    for system, (gained, size) in points.items():
        if gained["mean"] > WORSE:  # far off: it would press all others into a line
            axes.plot([max(size, 1)], [top], "^", color=colour(result, system), label=label(result, system))
            axes.annotate(
                f"{gained['mean']:+.1f}", (max(size, 1), top), (0, -14), textcoords="offset points", ha="center"
            )
            continue
        low, high = gained["mean"] - gained["low"], gained["high"] - gained["mean"]
        kind: dict[str, Any] = {"color": colour(result, system), "label": label(result, system), "capsize": 2}
        axes.errorbar(
            [max(size, 1)], [gained["mean"]], yerr=[[low], [high]], marker="s" if system in OURS else "o", **kind
        )
    axes.set(
        xlabel="bytes a token, both ways (1: none)",
        ylabel="held-out loss less its engine's base (lower is better)",
        xscale="log",
    )
    axes.axhline(0, color="0.7", lw=0.8)
    axes.set_title(f"Quality against traffic: {task}")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return True


def gate_curve(result: dict[str, Any], axes: Axes) -> bool:
    """Loss against how often the device is asked, beside a random gate."""
    curve = result.get("gate_curve")
    if not curve or "points" not in curve:
        return False
    points = curve["points"]
    rates = [100 * point["rate"] for point in points]
    axes.plot(rates, [point["random_loss"] for point in points], "--", color="0.6", label="random gate, same rate")
    axes.plot(rates, [point["loss"] for point in points], "o-", color=COLOURS["gated, lookahead"], label="trained gate")
    axes.set(
        xlabel="tokens that the device is asked about, %", ylabel="held-out loss, nats a token", title="The gate's dial"
    )
    axes.legend()
    return True


def users(result: dict[str, Any], axes: Axes) -> bool:
    """Tokens a second of all users together against how many they are."""
    measured = result.get("users")
    if not measured or "tokens_per_s" not in measured:
        return False
    for number, (name, by) in enumerate(measured["tokens_per_s"].items()):
        counts = [int(count) for count in by]
        middles = [cell["median"] for cell in by.values()]
        errors = [[c["median"] - c["min"] for c in by.values()], [c["max"] - c["median"] for c in by.values()]]
        color = ("#0b6e4f", "#2ca25f", "#333333", "#c0504d", "#e08214")[number % 5]
        axes.errorbar(counts, middles, yerr=errors, marker="o", ms=4, capsize=2, label=name, color=color)
    axes.set(
        xlabel="users at once", ylabel="tokens a second, all together", title="One base model, many users", xscale="log"
    )
    axes.set_xticks(counts, list(map(str, counts)))
    axes.minorticks_off()
    axes.legend(fontsize=8)
    return True


def memory(result: dict[str, Any], axes: Axes) -> bool:
    """The device's peak memory, by system."""
    rows = []
    for system in result["systems"]:
        mb = peaks(result, system)
        if mb:
            rows.append((statistics.median(mb), label(result, system), colour(result, system)))
    rows.sort(reverse=True)
    axes.barh([row[1] for row in rows], [row[0] for row in rows], color=[row[2] for row in rows])
    axes.set(xlabel="MB", title="Device: peak memory while generating")
    for place, row in enumerate(rows):
        axes.text(row[0], place, f" {row[0]:,.0f}", va="center", fontsize=8)
    return bool(rows)


def matrix(result: dict[str, Any], axes: Axes) -> bool:
    """What each user's plugin does to each user's held-out text; its own should be the best of its column."""
    rows = [row for row in result["matrix"] if "unavailable" not in row]
    if len(rows) < 2:
        return False
    names = [row["user"] for row in rows]
    gains = [[row[other][0] - row[other][1] for other in names] for row in rows]
    most = max(abs(value) for line in gains for value in line)
    drawn = axes.imshow(gains, cmap="RdYlGn_r", vmin=-most, vmax=most)
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    for y, line in enumerate(gains):
        for x, value in enumerate(line):
            axes.text(x, y, f"{value:+.2f}", ha="center", va="center", fontsize=max(5.5, 10 - len(names) / 2))
    axes.set(xlabel="whose held-out text", ylabel="whose plugin", title="Loss with the plugin, less the base's")
    axes.figure.colorbar(drawn, ax=axes, shrink=0.8)
    return True


def text_curve(result: dict[str, Any], axes: Axes) -> bool:
    """Loss less the base's against how many passages were learnt from, all people together."""
    if CURVE not in result["tasks"]:
        return False
    sizes, drawn = curve_sizes(result), False
    for system in result["systems"]:
        gains = [gain(result, CURVE, system, users) for users in sizes.values()]
        points = [(place, each) for place, each in enumerate(gains) if each]
        if points:
            drawn = True
            middles = [each["mean"] for _, each in points]
            errors = [[e["mean"] - e["low"] for _, e in points], [e["high"] - e["mean"] for _, e in points]]
            kind: dict[str, Any] = {"color": colour(result, system), "label": label(result, system), "capsize": 2}
            axes.errorbar([place for place, _ in points], middles, yerr=errors, marker="o", ms=4, **kind)
    axes.set_xticks(range(len(sizes)), list(sizes))
    axes.axhline(0, color="0.7", lw=0.8)
    axes.set(xlabel="passages to learn from", ylabel="held-out loss less its engine's base", title="Gain against text")
    if drawn:
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return drawn


PICTURES: dict[str, Draw] = {
    "speed": over_rtt,
    "quality": against_bytes,
    "gate": gate_curve,
    "users": users,
    "memory": memory,
    "matrix": matrix,
    "text": text_curve,
}


def draw(result: dict[str, Any]) -> dict[str, str]:
    """Return the pictures that there is something to draw of: name → SVG."""
    pictures = {}
    for name, picture in PICTURES.items():
        figure, axes = pyplot.subplots(
            figsize=(9, 4.6) if name in ("speed", "quality", "text") else (6.4, 4.6), layout="constrained"
        )
        if picture(result, axes):
            text = io.StringIO()
            figure.savefig(text, format="svg", metadata={"Date": None})
            pictures[name] = text.getvalue()
        pyplot.close(figure)
    return pictures
