"""Speed over networks: what the gate, run-ahead and lookahead save, beside the plain loop and the cloud alone.

    python bench/network.py                RTT 0, 20, 50, 100 ms at 10 Mbit/s (about ten minutes)

Two plugins are trained as a user would: the made-up person of examples/person (short replies to unseen phrasings,
greedy) and the demo's president (prose, continued at temperature 0.7). The device, the network
(sideplug_bench/shaper.py) and the cloud are processes of this machine and share its cores, which costs the run-ahead
most. Speeds are reply tokens behind the first over the time behind the first. Texts must equal those of the plain loop
with the same gate.
Results: bench/results/network.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from demo import AUTHOR, PASSAGES

from sideplug.contract.gate import Gate
from sideplug.contract.sampling import Sampling
from sideplug.contract.text import Prompt
from sideplug.device.head import DeviceHead
from sideplug.device.link import WebSocketLink
from sideplug.device.plugin import Plugin
from sideplug.device.runtime import DecodeOptions, Session
from sideplug.paths import cache_dir
from sideplug.training import data
from sideplug_bench.meters import machine
from sideplug_bench.processes import command, served
from sideplug_bench.shaper import Network, shaped
from sideplug_bench.sotu import messages
from sideplug_bench.spreads import spread

HERE = Path(__file__).parent
PERSON = HERE.parent / "examples" / "person"
HEAD = "head on the device"
SYSTEMS = {
    "cloud only": (Gate("shut"), DecodeOptions(0)),
    "plain loop": (Gate("open"), DecodeOptions(0)),
    "+ gate": (None, DecodeOptions(0)),
    "+ run-ahead": (None, DecodeOptions(lookahead=False)),
    "+ lookahead": (None, DecodeOptions()),
    HEAD: (None, DecodeOptions()),
}


@dataclass
class Task:
    plugin: Plugin
    asked: list[tuple[Prompt, Sampling]]
    tokens: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rtt-ms", type=float, nargs="*", default=[0, 20, 50, 100])
    parser.add_argument("--mbit", type=float, default=10)
    parser.add_argument("--up-mbit", type=float, default=0, help="of the way up, where it is another")
    parser.add_argument("--jitter-ms", type=float, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "network.json")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch, served("smollm2-135m") as (url, _):
        for name, task in tasks(url, Path(scratch)).items():
            for rtt in options.rtt_ms:
                with shaped(url, Network(rtt, options.jitter_ms if rtt else 0, options.mbit, options.up_mbit)) as far:
                    rows += [{"task": name, "rtt_ms": rtt, **row} for row in measure(far.url, task, options.rounds)]
                show(rows[-len(SYSTEMS) :])
    network = {"mbit": options.mbit, "up_mbit": options.up_mbit or options.mbit, "jitter_ms": options.jitter_ms}
    found = {"machine": machine(), **network, "rows": rows}
    options.out.write_text(json.dumps(found, indent=2) + "\n")


def tasks(url: str, scratch: Path) -> dict[str, Task]:
    texts = messages(AUTHOR)[AUTHOR]
    person, author = scratch / "person", scratch / "author"
    about = ["--cloud", url, "--out"]
    command("train", PERSON / "train.jsonl", "--epochs", 24, "--width", 256, *about, person)
    command("train", texts / "train", "--limit", PASSAGES, *about, author)
    prompts = [example.prompt for example in data.read(PERSON / "test.jsonl")][::4]
    words = (texts / "last.txt").read_text().split()
    openings = [" ".join(words[at : at + 40]) for at in (0, 2000, 4000)]
    return {
        "person": Task(Plugin.load(person), [(prompt, Sampling()) for prompt in prompts], 40),
        "prose": Task(
            Plugin.load(author),
            [(Prompt(text=text), Sampling(0.7, seed=seed)) for seed, text in enumerate(openings)],
            80,
        ),
    }


def measure(url: str, task: Task, rounds: int) -> list[dict[str, Any]]:
    """The systems in turn, round by round, so that a slow minute of the machine is everybody's."""
    speeds: dict[str, list[float]] = {name: [] for name in SYSTEMS}
    rows: dict[str, dict[str, Any]] = {}
    texts: dict[str, list[list[int]]] = {}
    for _ in range(rounds):
        for name, (gate, pace) in SYSTEMS.items():
            link = WebSocketLink.connect(url)
            session = Session.open(link, task.plugin, gate=gate)
            if name == HEAD:
                model = session.model
                own = DeviceHead.fetch(link, cache_dir() / "heads", model.fingerprint, model.vocab)
                pace = replace(pace, head=own)
            sums = dict.fromkeys(
                ("reply_tokens", "total_s", "first_token_s", "round_trips", "asked", "rolled_back"), 0.0
            )
            sums |= dict.fromkeys(("wasted", "drafted", "accepted", "bytes_down", "bytes_up"), 0.0)
            texts[name] = []
            for prompt, sampling in task.asked:
                pieces = session.generate(prompt, task.tokens, sampling, pace)
                texts[name].append([token for piece in pieces for token in piece.ids])
                for key in sums:
                    sums[key] += getattr(session.usage, key)
            link.close()
            tokens = sums["reply_tokens"]
            speeds[name].append((tokens - len(task.asked)) / (sums["total_s"] - sums["first_token_s"]))
            rows[name] = {
                "system": name,
                "first_token_ms": round(1000 * sums["first_token_s"] / len(task.asked), 1),
                "asked": round(sums["asked"] / tokens, 3),
                "tokens_a_round_trip": round(tokens / sums["round_trips"], 2) if sums["round_trips"] else None,
                **{f"{key}_a_token": round(sums[key] / tokens, 3) for key in ("round_trips", "wasted", "drafted")},
                **{f"{key}_a_token": round(sums[key] / tokens, 1) for key in ("bytes_down", "bytes_up")},
                "accepted_drafts": round(sums["accepted"] / sums["drafted"], 3) if sums["drafted"] else None,
            }
    for name in ("+ run-ahead", "+ lookahead"):
        if texts[name] != texts["+ gate"]:
            sys.exit(f"{name} gives another text than the plain loop with the same gate")
    # Near ties may fall the other way where the device rounds otherwise: from there on it is another text.
    same = [alike(*pair) for pair in zip(texts[HEAD], texts["+ gate"], strict=True)]
    rows[HEAD]["tokens_like_the_clouds"] = round(sum(same) / sum(map(len, texts["+ gate"])), 3)
    for name, row in rows.items():
        row["tokens_s"] = spread(speeds[name])
        for rival in ("cloud only", "plain loop"):
            ratios = [ours / theirs for ours, theirs in zip(speeds[name], speeds[rival], strict=True)]
            row[f"times_{rival.replace(' ', '_')}"] = round(statistics.median(ratios), 2)
    return list(rows.values())


def alike(one: list[int], other: list[int]) -> int:
    """Tokens that two texts begin with in common."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def show(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        print(
            f"{row['task']:7} {row['rtt_ms']:4.0f} ms  {row['system']:12} {row['tokens_s']['median']:6.1f} tokens/s  "
            f"{row['times_cloud_only']:5.2f} of cloud only  {row['times_plain_loop']:5.2f} of plain   "
            f"{row['tokens_a_round_trip'] or 0:5.1f} tokens a round trip  asked {row['asked']:.0%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
