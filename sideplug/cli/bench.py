"""`sideplug bench`, whose code is the room bench; the extra `bench` has the packages of its rivals.

Test: pytest tests/bench
"""

from __future__ import annotations

from pathlib import Path

import click

from sideplug.cli.common import DEFAULT_MODEL, FOLDER, group, json_option, option, print_json
from sideplug.contract.errors import InputError
from sideplug.terminal import say


@group.command("bench")
@click.argument("model", default=DEFAULT_MODEL)
@option("--quick", is_flag=True, help="Little of everything: ten minutes on two cores. Without: hours.")
@option(
    "--task",
    "tasks",
    multiple=True,
    type=click.Choice(["authors", "facts", "mails", "curve"]),
    help="Of these; may be repeated; none: authors and facts, or only your own with --data.",
)
@option("--data", type=FOLDER, metavar="FILE", help="A task of your own, in any format that training takes.")
@option("--system", "systems", multiple=True, metavar="NAME", help="Only these systems; may be repeated.")
@option("--part", metavar="NAME", help="Run one part alone, e.g. decode; a wrong name lists them.")
@option("--set", "changes", multiple=True, metavar="NAME=VALUE", help="Change a setting of the part; may be repeated.")
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
    part: str | None,
    changes: tuple[str, ...],
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
        sideplug bench --part person --set facts=20 --set widths=64,256
    """
    if changes and not part:
        raise InputError("--set changes a part's settings: give --part too")
    if part and (tasks or data or systems or result):
        raise InputError("--part runs a part alone, so --task, --data, --system and --report must not be given")
    try:
        if part:
            from sideplug.bench.parts import run_part

            path, _, lines = run_part(part, model, quick, changes, out)
            return print_json({"result": str(path), "report": []}) if as_json else print("\n".join([*lines, str(path)]))
        from sideplug.bench import main as comparison
    except ImportError as error:
        raise InputError(f"sideplug bench needs {error.name}: pip install 'sideplug[bench]'") from error
    if result:
        files = comparison.report(comparison.read(result), result)
    else:
        chosen = tasks or (() if data else comparison.TASKS)
        result, values = comparison.bench(model, "quick" if quick else "full", chosen, systems, data, out)
        files = comparison.report(values, result)
    if as_json:
        print_json({"result": str(result), "report": [str(file) for file in files]})
    else:
        say(f"{result}\nthe page: {result.with_suffix('.html')}")
