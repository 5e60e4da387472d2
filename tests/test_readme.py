"""Figures in README.md and docs/BENCHMARK.md are those of the committed results, and README's code blocks run."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from sideplug.bench.parts import PARTS
from sideplug.bench.report.figures import gain, measure, prefers, share_text, untouched
from sideplug.cli import group
from sideplug.cloud.engines import BITS, ENGINES
from sideplug.cloud.model.ort.blueprint import _FAMILIES
from sideplug.contract.defaults import DEFAULT_MODEL, DEFAULT_URL
from sideplug.training import data
from tests.conftest import Cloud

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
README, BENCHMARK = ROOT / "README.md", ROOT / "docs" / "BENCHMARK.md"
TEXT = README.read_text()
Found = dict[str, Any]


def median(found: Found, what: str, name: str) -> float:
    return float(found[what][name]["median"])


def lora_loss(r: Found) -> list[str]:
    base, ours, best = r["base_loss"], r["sideplug"]["loss"], r["lora"]["best"]["loss"]
    return [f"base {base:.3f}", f"{ours:.3f} (−{base - ours:.3f})", f"{best:.3f} (−{base - best:.3f})"]


def lora_time(r: Found) -> list[str]:
    s, best = r["sideplug"], r["lora"]["best"]
    seconds = best.get("train_s", best.get("seconds"))
    return [f"**{s['wall_s']:.0f} s** (tape {s['tape_s']:.0f}, training {s['train_s']:.0f})", f"LoRA {seconds:.0f} s"]


def lora_memory(r: Found) -> list[str]:
    s, best = r["sideplug"], r["lora"]["best"]
    peak = best.get("peak_mb", best.get("peak_rss_mb"))
    return [f"**{s['device_peak_mb']:.0f} MB**", f"cloud: {s['cloud_pss_mb']} MB", f"LoRA {peak:,.0f} MB"]


def decode(count: int, rival: str, *ratios: str) -> Callable[[Found], list[str]]:
    def figures(r: Found) -> list[str]:
        rates = [f"**{median(r, 'tokens_per_s', f'ours, 4 bits: {count} at once'):.0f} tokens/s**"]
        return [*rates, *(ratio(r, f"ours, 4 bits: {count} at once against {name}") for name in (rival, *ratios))]

    return figures


def ratio(r: Found, name: str) -> str:
    value = median(r, "ratios", name)
    return f"({value:.1f}×)" if value >= 3 else f"({value:.2f}×)"


def network(task: str) -> Callable[[Found], list[str]]:
    def figures(r: Found) -> list[str]:
        rows = {row["system"]: row for row in r["rows"] if row["task"] == task and row["rtt_ms"] == 50}
        best, plain, cloud = rows["+ lookahead"], rows["plain loop"], rows["cloud only"]
        return [
            f"**{best['tokens_s']['median']:.0f} tokens/s**, {best['tokens_a_round_trip']:.0f} tokens a round trip",
            f"each token {plain['tokens_s']['median']:.0f} ({best['times_plain_loop']:.1f}×)",
            f"at all {cloud['tokens_s']['median']:.0f} ({best['times_cloud_only']:.2f}×)",
        ]

    return figures


def person(r: Found) -> list[str]:
    run = next(run for run in r["runs"] if (run["facts"], run["width"]) == (20, 256))
    same = f"{50 * run['general_same']:.0f} of 50 general prompts"
    return [f"**{100 * run['facts_right']:.1f} %**", same, f"{100 * run['general_asked']:.2f} % of those tokens"]


def many(r: Found) -> list[str]:
    rates = {name: found["8"]["median"] for name, found in r["tokens_per_s"].items()}
    return [
        f"**{rates['ours, a plugin each']:.0f} tokens/s**",
        f"{r['each_over_peft']['8']['median']:.1f} times PEFT",
        f"{rates['PEFT, a LoRA each']:.0f}",
    ]


def many_more(r: Found) -> list[str]:
    return [*many(r), f"one plugin for all ({r['tokens_per_s']['ours, one for all']['8']['median']:.0f})"]


def authors(r: Found) -> list[str]:
    base, ours, lora, near, paper = (
        measure(r, "authors", name, "loss")["mean"]
        for name in ("cloud only", "gated", "cloud LoRA", "retrieval", "SPA, added to z")
    )
    gained = gain(r, "authors", "gated")
    assert gained["high"] < 0  # or it would not be told as a gain
    return [
        f"held-out loss, base {base:.3f}",
        f"{ours:.3f} (−{-gained['mean']:.3f}); it prefers its own author's text in {prefers(r, 'authors')}",
        f"**{lora:.3f}**; nearest examples in the prompt {near:.3f}; the paper's plugin, added to z {paper:.3f}",
    ]


def compared(r: Found) -> list[str]:
    cells = {c["system"]: c for c in r["speed"] if (c["task"], c["rtt_ms"], c["mbit"]) == ("authors", 50, 10)}
    rates = {name: cell["tokens_s"]["median"] for name, cell in cells.items()}
    ours = cells["gated, lookahead"]
    return [
        f"**{rates['gated, lookahead']:.0f} tokens/s**, {ours['round_trips']['median']:.2f} round trips a token",
        f"cloud only {rates['cloud only']:.0f}, SPA as in the paper {rates['SPA as in the paper']:.0f}",
        f"a round trip a layer {rates['per layer']:.1f}",
    ]


def nearest(r: Found) -> list[str]:
    cells = {c["system"]: c for c in r["quality"] if c["task"] == "facts"}
    right = [sum(right for right, _ in cells[name]["exact"]) for name in ("gated", "retrieval")]
    asked = len(cells["gated"]["exact"])
    same = [share_text(untouched(r, "facts", name)) for name in ("gated", "retrieval")]
    return [
        f"{right[0]:.0f} of {asked}, and {same[0]} of general replies stay the base's",
        f"**{right[1]:.0f} of {asked}**, and {same[1]}",
    ]


def price(manner: Found, all_: Found) -> list[str]:
    """What ours learns of ten people's style, with the trunk and without, beside LoRA."""
    ours, alone = (-manner["ways"][way]["gain"]["mean"] for way in ("ours", "without a trunk"))
    lora = -gain(all_, "authors", "cloud LoRA")["mean"]
    return [
        f"−{ours:.3f} nats",
        f"{100 * ours / lora:.0f} %",
        f"−{alone:.3f} ({100 * alone / lora:.0f} %)",
        f"**−{lora:.3f}**",
    ]


def making(r: Found) -> list[str]:
    s, best = r["sideplug"], r["lora"]["best"]
    seconds, peak = best.get("train_s", best.get("seconds")), best.get("peak_mb", best.get("peak_rss_mb"))
    return [f"**{s['wall_s']:.0f} s, {s['device_peak_mb']:.0f} MB**", f"LoRA {seconds:.0f} s, {peak:,.0f} MB"]


def short_speed(r: Found) -> list[str]:
    cells = {c["system"]: c for c in r["speed"] if (c["task"], c["rtt_ms"], c["mbit"]) == ("authors", 50, 10)}
    rates = {name: cell["tokens_s"]["median"] for name, cell in cells.items()}
    return [
        f"{rates['gated, lookahead']:.0f} tokens/s",
        f"no plugin at all **{rates['cloud only']:.0f}**, the paper's way {rates['SPA as in the paper']:.0f}",
    ]


def remembered(r: Found) -> list[str]:
    own = next(run for run in r["runs"] if run["set"] == "own words, test")
    told, notes, same = own["told"], own["note"], own["general_same"]
    untold = own["untold"]["asked"] + own["unnoted"]["asked"]
    answered = own["untold"]["answered"] + own["unnoted"]["answered"]
    shares = [f"{each['right'] / each['asked']:.0%}".replace("%", " %") for each in (told, notes)]
    rivals = [f"{right / asked:.0%}".replace("%", " %") for right, asked in own["rival"].values()]
    wrong = f"{told['wrong'] / told['asked']:.0%}".replace("%", " %")
    facts = f"**{shares[0]}** right and {wrong} wrong, notes {shares[1]}"
    return [facts, f"{answered} of {untold} untold", f"{same[0]} of {same[1]} general", " and ".join(rivals)]


WHOLE = "smollm2-135m_*.json"  # of `sideplug bench`
ROWS: list[tuple[Path, str, tuple[str, ...], Callable[..., list[str]]]] = [
    (README, "| **the price:**", ("manner.json", WHOLE), price),
    (README, "| making it", ("lora.json",), making),
    (README, "| told once", ("memory.json",), remembered),
    (README, "| a cloud 50 ms away", (WHOLE,), short_speed),
    (README, "| 8 people", ("many.json",), many),
    (BENCHMARK, "| held-out loss", ("lora.json",), lora_loss),
    (BENCHMARK, "| time to make it", ("lora.json",), lora_time),
    (BENCHMARK, "| memory to make it", ("lora.json",), lora_memory),
    (
        BENCHMARK,
        "| decode, 1 session",
        ("decode.json",),
        decode(1, "llama.cpp: 1 at once", "transformers fp32: 1 at once"),
    ),
    (BENCHMARK, "| decode, 8 sessions", ("decode.json",), decode(8, "llama.cpp, 8 slots: 8 at once")),
    (BENCHMARK, "| 50 ms away, prose", ("network.json",), network("prose")),
    (BENCHMARK, "| 50 ms away, facts", ("network.json",), network("person")),
    (BENCHMARK, "| 20 facts", ("person.json",), person),
    (BENCHMARK, "| ten presidents", (WHOLE,), authors),
    (BENCHMARK, "| twelve ways to split", (WHOLE,), compared),
    (BENCHMARK, "| the 20 facts", (WHOLE,), nearest),
    (BENCHMARK, "| 8 people", ("many.json",), many_more),
]


@pytest.mark.parametrize(("page", "row", "files", "figures"), ROWS, ids=[f"{row[0].stem} {row[1]}" for row in ROWS])
def test_a_row_says_what_was_measured(
    page: Path, row: str, files: tuple[str, ...], figures: Callable[..., list[str]]
) -> None:
    (said,) = (line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith(row))
    results = []
    for name in files:
        (path,) = RESULTS.glob(name)
        results.append(json.loads(path.read_text()))
    for figure in figures(*results):
        assert figure in said


def test_the_readme_is_short_and_says_its_price() -> None:
    assert len(TEXT.splitlines()) <= 120
    table = TEXT.split("## What it gives, and what it costs")[1].split("\n\n")
    rows = next(part for part in table if part.startswith("| |")).splitlines()[2:]
    assert len(rows) <= 5
    assert "of what a LoRA learns" in rows[0]
    assert "your text passes through the cloud, which keeps none of it" in TEXT
    assert "private inference" not in TEXT


def test_every_part_of_the_benchmark_is_on_its_page() -> None:
    assert [name for name in PARTS if f"`--part {name}`" not in BENCHMARK.read_text()] == []


def shell_lines() -> list[str]:
    """The readme's lines that begin with sideplug, and such calls in its text."""
    lines = re.findall(r"^    (sideplug .*)$", TEXT, re.M) + re.findall(r"`(sideplug [a-z][^`]*)`", TEXT)
    return [line.split("  #")[0].strip() for line in lines]


@pytest.mark.parametrize("line", shell_lines())
def test_a_shell_line_has_arguments_that_its_command_takes(line: str) -> None:
    """Each is parsed by the command that it calls: its name, its options, how many arguments it has."""
    command: click.Command = group
    words = shlex.split(line)[1:]
    path = "sideplug"
    context = click.Context(group, info_name=path)
    while isinstance(command, click.Group):
        name = words.pop(0)
        inner = command.get_command(context, name)
        assert inner is not None, line
        command, context = inner, click.Context(inner, info_name=name, parent=context)
        if not words:
            break
    if words == ["--engine", "--bits", "--threads"]:  # named together, without values
        words = ["--engine", ENGINES[0], "--bits", BITS[0], "--threads", "1"]
    if words:
        command.parse_args(context, words)


def test_the_python_lines_run(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```$", TEXT, re.M | re.S)
    lines = [line for line in block.splitlines() if line.strip()]
    assert len(lines) <= 10
    assert DEFAULT_URL in block
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SIDEPLUG_CACHE", str(tmp_path / "cache"))
    all_lines = data._lines
    monkeypatch.setattr(data, "_lines", lambda name: all_lines(name)[:30])  # a tiny model takes seconds for all of them
    names: dict[str, Any] = {}
    exec(block.replace(DEFAULT_URL, cloud.url), names)
    assert names["shapes"] == [(3, cloud.engine.model.width)] * len(names["shapes"])
    assert names["shapes"]
    assert (tmp_path / "mill" / "plugin.json").is_file()
    assert capsys.readouterr().out.count("round trips") == 2


def test_the_table_of_models_is_the_engines() -> None:
    rows = {line.split(" | ")[0]: line for line in TEXT.splitlines() if line.startswith(("| onnx (", "| torch ("))}
    (onnx,) = (line for name, line in rows.items() if name.startswith("| onnx"))
    named = {name.strip().lower().replace(" ", "") for name in onnx.split(" | ")[2].split(":")[0].split(",")}
    assert {family.removesuffix("_text") for family in _FAMILIES} <= named
    assert all(bits in onnx.split(" | ")[3] for bits in BITS if bits != "auto")
    assert len(rows) + 1 == len(ENGINES)  # auto is none of its own
    assert f"`{DEFAULT_MODEL}`" in TEXT
