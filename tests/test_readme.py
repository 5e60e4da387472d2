"""The README's figures are those of the committed results: each row, from the file that its command wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sideplug.bench.report.figures import gain, measure, prefers, share_text, untouched

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
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
    assert run["general_same"] == 1.0
    return [f"**{100 * run['facts_right']:.1f} %**", f"{100 * run['general_asked']:.2f} % of those tokens"]


def many(r: Found) -> list[str]:
    each = r["tokens_per_s"]["ours, a plugin each"]["8"]["median"]
    return [f"{each:.0f} tokens/s", f"{r['each_over_peft']['8']['median']:.1f} times PEFT"]


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


ROWS: list[tuple[str, str, Callable[[Found], list[str]]]] = [
    ("| held-out loss", "lora.json", lora_loss),
    ("| time to make it", "lora.json", lora_time),
    ("| memory to make it", "lora.json", lora_memory),
    ("| decode, 1 session", "decode.json", decode(1, "llama.cpp: 1 at once", "transformers fp32: 1 at once")),
    ("| decode, 8 sessions", "decode.json", decode(8, "llama.cpp, 8 slots: 8 at once")),
    ("| 50 ms away, prose", "network.json", network("prose")),
    ("| 50 ms away, facts", "network.json", network("person")),
    ("| 20 facts", "person.json", person),
    ("| ten presidents", "smollm2-135m_*.json", authors),
    ("| twelve ways to split", "smollm2-135m_*.json", compared),
    ("| the 20 facts", "smollm2-135m_*.json", nearest),
    ("With 8 people at once", "many.json", many),
]


@pytest.mark.parametrize(("row", "file", "figures"), ROWS, ids=[row for row, _, _ in ROWS])
def test_a_row_says_what_was_measured(row: str, file: str, figures: Callable[[Found], list[str]]) -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith(row))
    said = lines[start] if row.startswith("|") else " ".join(lines[start : start + 2])
    (path,) = RESULTS.glob(file)
    for figure in figures(json.loads(path.read_text())):
        assert figure in said
