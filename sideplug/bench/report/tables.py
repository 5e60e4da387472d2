"""The tables of a run. What a rival wins is said first; a figure without its spread is not printed."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from sideplug.bench.report import manner
from sideplug.bench.report.figures import (
    LOWER,
    NONE,
    OURS,
    gain,
    interval_text,
    is_timed,
    judged_by,
    label,
    measure,
    over_base,
    peaks,
    prefers,
    share_text,
    speeds,
    spread_text,
    timed_task,
    untouched,
    usual,
    usual_speed,
    with_general,
)
from sideplug.bench.report.table import Table
from sideplug.bench.spreads import bootstrap


def tables(result: dict[str, Any]) -> Iterator[Table]:
    """Yield the tables of a result, the one that says it all first."""
    yield _glance(result)
    for task in result["tasks"]:
        yield _quality(result, task)
        yield from filter(None, (manner.positions(result, task), manner.texts(result, task)))
        if is_timed(result, task):
            yield _speed(result, task)
    if there := manner.curve(result):
        yield there
    if is_timed(result, timed_task(result)):
        yield _networks(result)
        yield _resources(result)
    yield _training(result)
    if result["bits"]:
        yield _bits(result)
    if "tokens_per_s" in (result.get("users") or {}):
        yield _users(result)


def _glance(result: dict[str, Any]) -> Table:
    """One line a system: how well it knows the person, what it does to others' questions, how fast, at what cost."""
    tasks, general = list(result["tasks"]), with_general(result)
    timed = [task for task in tasks if is_timed(result, task)]
    first = {task: judged_by(result, task)[:1] for task in tasks}
    rows = []
    for system in result["systems"]:
        row = [label(result, system)]
        for task in tasks:
            for name in first[task]:
                row.append(
                    interval_text(gain(result, task, system), signed=True)
                    if name == "loss"
                    else interval_text(measure(result, task, system, name), percent=True)
                )
        row += [share_text(untouched(result, task, system)) for task in general]
        cells = [usual_speed(result, task, system) or {} for task in timed]
        row += [spread_text(cell.get("tokens_s")) for cell in cells]
        row += [spread_text(cells[0].get(name), 0) for name in ("bytes_down", "bytes_up")] if cells else []
        rows.append([*row, _peak(result, system)])
    of = [f"{task}: {'loss less base' if name == 'loss' else LOWER[name]}" for task in tasks for name in first[task]]
    columns = ["system", *of, *("general prompts untouched" for _ in general), *(f"{task}: tokens/s" for task in timed)]
    columns += [
        *(f"{task}: bytes down a token" for task in timed[:1]),
        *("bytes up" for _ in timed[:1]),
        "device, peak MB",
    ]
    network = usual(result)
    where = f"Speed at {network[0]:.0f} ms round trip and {network[1]:.0f} Mbit/s. " if timed else ""
    note = f"{where}Every column again below, with what it is of."
    return Table("At a glance", columns, rows, note)


def _quality(result: dict[str, Any], task: str) -> Table:
    names = judged_by(result, task)
    has_general = task in with_general(result)
    rows = []
    for system in result["systems"]:
        values = [measure(result, task, system, name) for name in names]
        texts = [interval_text(value, name != "loss") for name, value in zip(names, values, strict=True)]
        general = [share_text(untouched(result, task, system))] if has_general else []
        texts += [interval_text(gain(result, task, system), signed=True)]
        best = next((value for value in values if value), None)
        order = float("inf") if best is None else best["mean"] if names[0] == "loss" else -best["mean"]
        rows.append((order, [label(result, system), *texts, *general]))
    rows.sort(key=lambda row: row[0])
    task_of, pairs = result["tasks"][task], prefers(result, task)
    general = ["general prompts untouched"] if has_general else []
    return Table(
        f"Quality: {task}",
        ["system, best first", *(LOWER[name] for name in names), "loss less its engine's base", *general],
        [row for _, row in rows],
        f"{task_of['title']}; mean of {len(task_of['users'])} user(s), 95 % bootstrap intervals over examples (of the "
        "difference: over pairs, each of one example by both)."
        + (f" A plugin prefers its own user's text to another's in {pairs}." if pairs else ""),
    )


def _speed(result: dict[str, Any], task: str) -> Table:
    network = usual(result)
    rows = []
    for system in result["systems"]:
        cell = usual_speed(result, task, system)
        if cell is None:
            continue
        rows.append(
            (
                -cell["tokens_s"]["median"],
                [
                    label(result, system),
                    spread_text(cell["tokens_s"]),
                    spread_text(cell["token_ms"]),
                    spread_text(cell["first_token_ms"], 0),
                    spread_text(cell["round_trips"], 2),
                    spread_text(cell["bytes_down"], 0),
                    spread_text(cell["bytes_up"], 0),
                    over_base(result, task, system),
                    f"{cell['limit_tokens_s']:,.1f}" if cell["limit_tokens_s"] else NONE,
                ],
            )
        )
    rows.sort(key=lambda row: row[0])
    columns = ["system, fastest first", "tokens/s", "ms a token", "first token, ms", "round trips a token"]
    columns += ["bytes down a token", "bytes up", "of its engine's base", "the line's own limit, tokens/s"]
    where = f"At {network[0]:.0f} ms round trip and {network[1]:.0f} Mbit/s; systems without a network as they are."
    note = f"{where} Median (least–most)."
    return Table(f"Speed: {task}", columns, [row for _, row in rows], note)


def _networks(result: dict[str, Any]) -> Table:
    task = timed_task(result)
    networks = sorted({network for system in result["systems"] for network in speeds(result, task, system)})
    rows = []
    for system in result["systems"]:
        by_network = speeds(result, task, system)
        if len(by_network) > 1:
            texts = [spread_text(by_network.get(n, {}).get("tokens_s")) for n in networks]
            rows.append([label(result, system), *texts])
    columns = ["tokens/s", *(f"{rtt:.0f} ms, {mbit:.0f} Mbit/s" for rtt, mbit in networks)]
    return Table(f"Every network: {task}", columns, rows, "Median (least–most) of a reply's tokens a second.")


def _peak(result: dict[str, Any], system: str) -> str:
    mb = peaks(result, system)
    return f"{statistics.median(mb):.0f} ({min(mb):.0f}–{max(mb):.0f})" if mb else NONE


def _resources(result: dict[str, Any]) -> Table:
    task = timed_task(result)
    rows = []
    for system in result["systems"]:
        cells = list(speeds(result, task, system).values())
        if not cells:
            continue
        cpu = [cell["cpu_ms"]["median"] for cell in cells]
        alone = cells[0]["cloud_bytes"]
        rows.append(
            [
                label(result, system),
                _peak(result, system),
                f"{statistics.median(cpu):.1f} ({min(cpu):.1f}–{max(cpu):.1f})",
                _disk(result, task, system),
                f"{alone / 1e6:.1f}" if alone else "0" if any(cell["limit_tokens_s"] for cell in cells) else NONE,
            ]
        )
    note = (
        "Over all networks: median (least–most); on disk what the system keeps there, without software. Every text in "
        "work has its keys and values in the cloud besides; the last column is a gateway's whole process, an adapter's "
        "file, and for ours nothing but an open connection."
    )
    columns = ["system", "device, peak MB", "device, CPU ms a token", "device, MB on disk", "cloud, MB a further user"]
    return Table("What it takes", columns, rows, note)


def _disk(result: dict[str, Any], task: str, system: str) -> str:
    """MB on the device's disk: the model, or what is trained for a user (the median of them)."""
    kept = result["systems"][system].get("kept")
    if kept is None:  # of a run before it was told
        return NONE
    if kept == "model":
        return f"{result['floor']['weights_bytes'] / 1e6:.0f}"
    cells = [cell for cell in result["training"] if cell["task"] == task and cell["made"] == kept]
    sizes = [cell["disk_bytes"] for cell in cells if "disk_bytes" in cell]
    return f"{statistics.median(sizes) / 1e6:.1f}" if sizes else "the examples" if kept == "examples" else "0"


def _each(cells: list[dict[str, Any]], name: str, unit: float = 1.0) -> list[float]:
    return [cell[name] / unit for cell in cells if name in cell]


def _over_users(values: list[float], digits: int = 0) -> str:
    if not values:
        return NONE
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f}–{max(values):,.{digits}f})"


def _training(result: dict[str, Any]) -> Table:
    rows = []
    for task in result["tasks"]:
        for made in dict.fromkeys(cell["made"] for cell in result["training"]):
            cells = [cell for cell in result["training"] if cell["task"] == task and cell["made"] == made]
            cells = [cell for cell in cells if "seconds" in cell]
            if not cells:
                continue
            seconds = [cell["seconds"] + cell.get("recording_s", 0.0) for cell in cells]
            rows.append(
                [
                    f"{task}: {made}",
                    _over_users(seconds),
                    _over_users(_each(cells, "peak_rss_mb")),
                    _over_users(_each(cells, "backward_bytes_a_token", 1e3), 1),
                    _over_users(_each(cells, "parameters", 1e6), 2),
                    _over_users(_each(cells, "disk_bytes", 1e6), 1),
                    str(len(cells)),
                ]
            )
    columns = [
        "what is made",
        "seconds, tape included",
        "peak MB",
        "KB a token kept for the backward pass",
        "M parameters",
        "MB on disk",
    ]
    note = (
        "Over users: median (least–most). A plugin's peak is the device's; LoRA's is the process's that has the LLM, "
        "with 8 examples a step. The general tape is recorded once for a base and tap, and counted where it was."
    )
    return Table("Training", [*columns, "users"], rows, note)


def _bits(result: dict[str, Any]) -> Table:
    rows = []
    cells = sorted((cell for cell in result["bits"] if "loss" in cell), key=lambda cell: -cell["bits"])
    for cell in cells:
        loss = interval_text(bootstrap(cell["loss"]))
        less = interval_text(bootstrap(cell["loss"], cells[0]["loss"]), signed=True) if cell is not cells[0] else NONE
        rows.append([f"{cell['bits']:.0f}", loss, less, f"{cell['pss_mb']:.0f}", spread_text(cell["tokens_s"])])
    columns = ["bits of the weights", "loss, nats a token", "less that of the most bits", "cloud, MB", "tokens/s"]
    size = result["floor"]["weights_bytes"] / 1e6
    note = (
        "Weight-only; the base alone, on the first user's held-out text. The weights are as the model's file has them "
        f"({size:.0f} MB): one that is quantised, as most GGUF files are, gives 16 bits no more than it holds, and the "
        "rows below say what is lost on top of that."
    )
    return Table("Quantised bases", columns, rows, note)


def _users(result: dict[str, Any]) -> Table:
    rates = result["users"]["tokens_per_s"]
    counts = list(next(iter(rates.values())))
    rows = [[name, *(spread_text(by.get(count), 0) for count in counts)] for name, by in rates.items()]
    note = "Tokens a second of all users together, each with a plugin or a LoRA of their own unless it says otherwise."
    return Table("Many users", ["tokens/s", *(f"{count} at once" for count in counts)], rows, note)


def markdown(result: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    lines = [
        f"# sideplug bench: {result['model']}, {result['date']} ({result['scale']['name']})",
        "",
        *wins(result),
        "",
    ]
    for table in tables(result):
        lines += [f"## {table.title}", "", "| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
        lines += ["| " + " | ".join(row) + " |" for row in table.rows]
        lines += ["", table.note, ""]
    lines += ["## Settings", ""]
    lines += [f"- **{system['label']}**: {system['how']}." for system in result["systems"].values()]
    lines += [f"- {name} is not here: {why}." for name, why in result["absent"].items()]
    lines += ["", circumstances(result), ""]
    return "\n".join(lines)


def circumstances(result: dict[str, Any]) -> str:
    """Return what the figures stand with: the machine, its energy, the floor, its drift."""
    energy = [cell for cell in result["energy"] if cell.get("joules")]
    joules = (
        f"{sum(c['joules'] for c in energy):,.0f} J by the processor's meter" if energy else "unavailable (no meter)"
    )
    floor = result["floor"]
    machine = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    hours = f" All cells together took {result['hours']:.1f} hours." if "hours" in result else ""
    drifts = [check["tokens_s"] for check in result["drift"]]
    return (
        f"Machine: {machine}. Energy: {joules}. Memory is read at {floor['read_gb_s']} GB/s, so a single text can't be "
        f"decoded faster than {floor['tokens_s']:.0f} tokens/s (the floor). Drift: the plain cloud gave {drifts[0]:.1f}"
        f" tokens/s at the start and {drifts[-1]:.1f} at the end ({min(drifts):.1f}–{max(drifts):.1f} over "
        f"{len(drifts)} checks).{hours}"
    )


def rivals_ahead(result: dict[str, Any], title: str, figures: dict[str, float], better: int, digits: int) -> list[str]:
    """Return a line with the rivals that are ahead of the best of ours, if any are. better: 1 for more, −1 for less."""
    ours = [better * value for system, value in figures.items() if system in OURS]
    rivals = {s: v for s, v in figures.items() if s not in OURS and ours and better * v > max(ours)}
    if not rivals:
        return []
    lines = (f"{label(result, s)} {v:.{digits}f}" for s, v in sorted(rivals.items(), key=lambda x: -better * x[1]))
    return [f"- {title}: **{', '.join(lines)}**, ours {better * max(ours):.{digits}f}"]


def wins(result: dict[str, Any]) -> list[str]:
    """Return where a rival is better than the best of ours: lines that are read before anything else."""
    lines = []
    network = usual(result)
    for task in result["tasks"]:
        for name, better in (("exact", 1), ("rouge", 1), ("loss", -1)):
            figures = {s: m["mean"] for s in result["systems"] if (m := measure(result, task, s, name))}
            figures = {s: value for s, value in figures.items() if not result["systems"][s]["like"] or s in OURS}
            lines += rivals_ahead(result, f"{task}, {LOWER[name]}", figures, better, 3)
        for title, name, better in (("tokens/s", "tokens_s", 1), ("ms to the first token", "first_token_ms", -1)):
            figures = {
                s: cell[name]["median"]
                for s in result["systems"]
                for n, cell in speeds(result, task, s).items()
                if n == network or not cell["limit_tokens_s"]
            }
            lines += rivals_ahead(result, f"{task}, {title} at {network[0]:.0f} ms", figures, better, 1)
    if not any(name in OURS for name in result["systems"]):
        return ["Ours was not measured."]
    if not lines:
        return ["No rival is better than ours in quality, tokens/s or time to the first token."]
    return ["Where a rival is better than ours:", "", *lines]
