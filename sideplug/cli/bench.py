"""sideplug bench: the code is in the package sideplug_bench, which the extra `bench` has the rivals for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sideplug.contract.errors import InputError
from sideplug.terminal import say

if TYPE_CHECKING:
    pass

from sideplug.cli.common import DEFAULT_MODEL, FOLDER, group, json_option, option, print_json


@group.command("bench")
@click.argument("model", default=DEFAULT_MODEL)
@option("--quick", is_flag=True, help="Little of everything: ten minutes on two cores. Without: hours.")
@option(
    "--task",
    "tasks",
    multiple=True,
    type=click.Choice(["authors", "facts"]),
    help="Of these; may be repeated; none: both, or only your own with --data.",
)
@option("--data", type=FOLDER, metavar="FILE", help="A task of your own, in any format that training takes.")
@option("--system", "systems", multiple=True, metavar="NAME", help="Only these systems; may be repeated.")
@option(
    "--out",
    default="bench/results",
    envvar="SIDEPLUG_BENCH_OUT",
    type=FOLDER,
    metavar="DIR",
    help="Where results and reports go.",
)
@option("--report", "result", type=FOLDER, metavar="FILE", help="Only write a result's tables, page and pictures anew.")
@json_option
def bench(
    model: str,
    quick: bool,
    tasks: tuple[str, ...],
    data: Path | None,
    systems: tuple[str, ...],
    out: Path,
    result: Path | None,
    as_json: bool,
) -> None:
    """Compare ways to split and personalise MODEL, in one run, under one network.

    Ours, the paper's, LoRA in the cloud, the device alone, examples in the prompt, a round trip a layer: quality, speed
    over networks, bytes, memory, training. A run that was stopped goes on where it was. It serves the model itself.

    \b
        pip install 'sideplug[bench]'
        sideplug bench --quick
    """
    try:
        from sideplug_bench import main as run
    except ImportError as error:
        raise InputError(f"sideplug bench needs {error.name}: pip install 'sideplug[bench]'") from error
    if result:
        files = run.report(run.read(result), result)
    else:
        chosen = tasks or (() if data else run.TASKS)
        result, found = run.bench(model, "quick" if quick else "full", chosen, systems, data, out)
        files = run.report(found, result)
    if as_json:
        print_json({"result": str(result), "report": [str(file) for file in files]})
    else:
        say(f"{result}\nthe page: {result.with_suffix('.html')}")
