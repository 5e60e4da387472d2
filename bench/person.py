"""What a plugin of the made-up person knows, and that it is silent elsewhere: facts, general prompts, near misses.

    python bench/person.py                 20 facts, then 100 and 500, and the plugin's width (about forty minutes)
    python bench/person.py --facts 20 --widths 256

For each: a plugin is trained as a user would, then asked over the wire, greedy, at its calibrated gate. A fact is right
when the reply holds it word for word. Results: bench/results/person.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from sideplug.contract.gate import Gate
from sideplug.contract.text import Prompt
from sideplug.device.link import WebSocketLink
from sideplug.device.plugin import Plugin
from sideplug.device.runtime import Session, Usage
from sideplug.training import data, gate, tape
from sideplug_bench.meters import machine
from sideplug_bench.processes import command, served

HERE = Path(__file__).parent
PERSON = HERE.parent / "examples" / "person"
REPLY_TOKENS = 48
EPOCHS = {20: 24, 100: 24, 500: 6}  # an epoch of more facts has more steps
ASKED = 200  # questions at most, drawn by seed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", type=int, nargs="*", default=[20, 100, 500])
    parser.add_argument("--widths", type=int, nargs="*", default=[64, 128, 256])
    parser.add_argument("--out", type=Path, default=HERE / "results" / "person.json")
    options = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory() as scratch, served("smollm2-135m") as (url, _):
        for count in options.facts:
            folder = Path(scratch) / f"person-{count}"
            make = [sys.executable, PERSON / "make.py", "--facts", str(count), "--out", folder]
            subprocess.run(make, check=True)
            for width in options.widths:
                out = Path(scratch) / f"plugin-{count}-{width}"
                if width != options.widths[0]:  # the same texts and tap: the same tape
                    shutil.copytree(Path(scratch) / f"plugin-{count}-{options.widths[0]}" / "tape", out / "tape")
                runs.append(measure(url, count, width, folder, out))
                print(json.dumps(runs[-1], ensure_ascii=False), flush=True)
                found = {"machine": machine(), "runs": runs}  # a run that is cut keeps what it has
                options.out.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")


def measure(url: str, count: int, width: int, folder: Path, out: Path) -> dict[str, Any]:
    start = time.perf_counter()
    learnt = command(
        "train",
        folder / "train.jsonl",
        "--out",
        out,
        "--width",
        width,
        "--cloud",
        url,
        "--epochs",
        EPOCHS.get(count, 24),
    )
    seconds = time.perf_counter() - start
    plugin = Plugin.load(out)
    test = data.some(data.read(folder / "test.jsonl"), ASKED)
    general = [example.prompt for example in data.general(PERSON / "general-test.txt")]
    near = [example.prompt for example in data.general(folder / "near-misses.txt")]
    link = WebSocketLink.connect(url)
    session = Session.open(link, plugin)
    base = Session.open(shut := WebSocketLink.connect(url), plugin, gate=Gate("shut"))
    always = Session.open(third := WebSocketLink.connect(url), plugin, gate=Gate("open"))
    facts = ask(session, [example.prompt for example in test])
    values = [example.reply.split(" is ", 1)[1].split(".\n")[0] for example in test]
    quiet, quiet_base, quiet_always = (ask(s, general) for s in (session, base, always))
    misses, misses_base = ask(session, near), ask(base, near)
    known = set(values)
    judged = tape.score(session, test)
    silent = losses(always, plugin, [*zip(general, [text for text, _ in quiet_base], strict=True)])
    for opened in (link, shut, third):
        opened.close()
    personal = gate.trade_off(plugin.gate, judged)
    result = {
        "facts": count,
        "width": width,
        "parameters": plugin.size,
        "training_s": round(learnt["seconds"], 1),
        "in_all_s": round(seconds, 1),
        "epochs": learnt["epochs"],
        "facts_right": share(value in text for value, (text, _) in zip(values, facts, strict=True)),
        "facts_asked": asked(facts),
        "personal_loss": personal,
        "gain_kept": round((personal["base"] - personal["gated"]) / (personal["base"] - personal["plugin"]), 4),
        "general_same": share(a == b for (a, _), (b, _) in zip(quiet, quiet_base, strict=True)),
        "general_same_always_on": share(a == b for (a, _), (b, _) in zip(quiet_always, quiet_base, strict=True)),
        "general_asked": asked(quiet),
        "general_loss": silent,
        "near_misses_same": share(a == b for (a, _), (b, _) in zip(misses, misses_base, strict=True)),
        "near_misses_asked": asked(misses),
        "near_misses_invented": share(any(value in text for value in known) for text, _ in misses),
        "hard_negatives": [
            {"prompt": p.messages[-1]["content"], "plugin": text, "base": plain}
            for p, (text, _), (plain, _) in zip(near, misses, misses_base, strict=True)
            if p.messages and text != plain
        ],
    }
    return result


def ask(session: Session, prompts: Iterable[Prompt]) -> list[tuple[str, Usage]]:
    found = []
    for prompt in prompts:
        text = "".join(piece.text for piece in session.generate(prompt, REPLY_TOKENS))
        found.append((text, session.usage))
    return found


def asked(replies: list[tuple[str, Usage]]) -> float:
    """Share of the tokens that the plugin chose."""
    return round(sum(u.plugin_tokens for _, u in replies) / max(1, sum(u.reply_tokens for _, u in replies)), 4)


def share(found: Iterable[bool]) -> float:
    return round(float(np.mean(list(found))), 4)


def losses(session: Session, plugin: Plugin, replies: list[tuple[Prompt, str]]) -> dict[str, float]:
    """Of the base's own replies: by the base, with the plugin always, gated."""
    examples = [data.Example(prompt, text, "") for prompt, text in replies if text.strip()]
    return gate.trade_off(plugin.gate, tape.score(session, examples))


if __name__ == "__main__":
    main()
