"""Commands that judge a plugin: eval and gate curve."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sideplug.cli.common import (
    FOLDER,
    Reading,
    cloud_options,
    command,
    group,
    json_option,
    limit_option,
    option,
    print_json,
    reading_options,
    required_plugin_option,
)
from sideplug.cli.session import Cloud, data_or_stdin, load_plugin
from sideplug.contract.errors import DataError, PluginError
from sideplug.terminal import counted, progress

SHOWN = 10  # questions that a memory answers wrongly

if TYPE_CHECKING:
    from sideplug.memory.part import Memory
    from sideplug.plugins import Plugin
    from sideplug.readers import Example
    from sideplug.training.judged import Judged


@command("eval", "sideplug eval held-out.txt --plugin my-plugin")
@click.argument("data", type=FOLDER)
@required_plugin_option
@cloud_options
@reading_options
@limit_option
@option("--by-position", is_flag=True, help="Also by how far into each passage a token stands.")
@option("--by-token", is_flag=True, help="Also the words that it makes likelier, and those that it makes rarer.")
@option("--picture", type=FOLDER, metavar="FILE", help="Draw these words: .png, .svg or .pdf.")
@json_option
def evaluate(
    data: Path,
    folder: Path,
    cloud: Cloud,
    reading: Reading,
    limit: int,
    by_position: bool,
    by_token: bool,
    picture: Path | None,
    as_json: bool,
) -> None:
    """Measure the loss on DATA, with and without a plugin.

    It tells the loss of the base, with the plugin at every token, and gated: exact, over the whole vocabulary.
    """
    import numpy as np

    from sideplug.picture import check_picture
    from sideplug.training import by_token as closer

    if picture:
        check_picture(picture)
    plugin = load_plugin(folder)
    judged, asked = judge(plugin, data, cloud, reading, limit)
    examples = len(asked)
    gate = plugin.trained.gate
    opens = gate.opens(gate.scores(judged.z_TD, judged.starts))
    gated = np.where(opens, judged.plugin, judged.base)
    logps = {"base": judged.base, "plugin": judged.plugin, "gated": gated}
    result: dict[str, Any] = {"examples": examples, "tokens": len(judged.base)}
    result |= {f"{name}_loss": round(float(-logp.mean()), 5) for name, logp in logps.items()}
    result |= {f"{name}_perplexity": round(float(np.exp(-logp.mean())), 3) for name, logp in logps.items()}
    result["gate_rate"] = round(float(opens.mean()), 5)
    lines: list[str] = []
    if by_position:
        stretches = closer.by_position(judged)
        result["by_position"] = [vars(each) for each in stretches]
        for each in stretches:
            gain = f"{each.plugin - each.base:+.3f} ({each.low:+.3f} to {each.high:+.3f})"
            lines.append(f"  {each.name:16} {each.tokens:>6,} tokens  {each.base:.3f} → {each.plugin:.3f}  {gain}")
    if by_token or picture:
        with counted("asking for the tokens of words") as show:
            words, missed = closer.by_word(cloud.client, asked, judged, show)
        result |= {"words": [vars(word) for word in words], "examples_without_words": missed}
        for title, some in (("likelier", words[:12]), ("rarer", words[::-1][:6])):
            lines.append(f"  {title} with the plugin (how likely each is where it stands, without → with):")
            better = [word for word in some if (word.gain > 0) == (title == "likelier")]
            lines += [f"    {w.text:24} ×{w.count:<4} {w.base:7.2%} → {w.plugin:7.2%}" for w in better]
        if missed:
            lines.append(f"  {missed} of {examples} examples could not be laid along their words")
        if picture:
            closer.draw(words, f"{folder.name}: words on {data.name}", picture)
            lines.append(f"  the picture is {picture}")
    if as_json:
        print_json(result)
        return
    base = result["base_loss"]
    click.echo(
        f"loss {base:.3f} → {result['plugin_loss']:.3f} nats a token ({result['plugin_loss'] - base:+.3f}), gated "
        f"{result['gated_loss']:.3f} ({result['gated_loss'] - base:+.3f}) with the gate open for {opens.mean():.1%}; "
        f"{len(judged.base):,} tokens of {examples} examples"
    )
    for line in lines:
        click.echo(line)


def judge(plugin: Plugin, data: Path, cloud: Cloud, reading: Reading, limit: int) -> tuple[Judged, list[Example]]:
    """(what the base and the plugin make of the examples, and these). Raises DataError, CloudError and its kin."""
    from sideplug.training import recorder
    from sideplug.training.data import sample

    data = click.get_current_context().with_resource(data_or_stdin(data))

    examples = sample(reading.read(data), limit)
    with cloud.session(plugin) as session, progress("evaluating", len(examples)) as show:
        return recorder.score(session, examples, lambda done: show(done, "")), examples


@group.group("gate")
def gate_group() -> None:
    """Look at a plugin's gate."""


@gate_group.command(
    "curve", epilog="Example:  sideplug gate curve --plugin my-plugin --data held-out.txt --picture curve.png"
)
@required_plugin_option
@option("--data", type=FOLDER, required=True, help="Text that the plugin was not trained on.")
@cloud_options
@reading_options
@limit_option
@option("--picture", type=FOLDER, metavar="FILE", help="Draw the curve: .png, .svg or .pdf.")
@json_option
def gate_curve(
    folder: Path, data: Path, cloud: Cloud, reading: Reading, limit: int, picture: Path | None, as_json: bool
) -> None:
    """Show quality against traffic for each setting of the gate.

    A random gate of the same rate stands beside each. Of a plugin that only remembers: what each certainty (sideplug
    memory settings) answers of the questions in --data, rightly where what is said has the words of the reply there.
    """
    from sideplug.memory.book import memory_of
    from sideplug.picture import check_picture
    from sideplug.plugins import TrainedPart
    from sideplug.training import gate

    if picture:
        check_picture(picture)
    plugin = load_plugin(folder)
    memory = memory_of(plugin)
    if memory is not None and not any(isinstance(part, TrainedPart) for part in plugin.parts):
        _memory_curve(memory, folder, data, reading, limit, picture, as_json)
        return
    trained = plugin.trained.gate
    if trained.kind != "linear":
        raise PluginError(f"the gate of {folder} is {trained.kind}: it has no dial (train it with a retain set)")
    judged, asked = judge(plugin, data, cloud, reading, limit)
    examples = len(asked)
    points = gate.curve(trained, judged, plugin.tap)
    rate, loss = gate.rate_and_loss(trained, judged)
    if picture:
        gate.draw(points, (rate, loss), f"{folder.name} on {data.name}", picture)
    if as_json:
        about = {"examples": examples, "tokens": len(judged.base), "points": gate.to_json(points)}
        print_json({**about, "default": {"rate": round(rate, 5), "loss": round(loss, 5)}})
        return
    click.echo("rate   opened    loss   random   bytes down   up   round trips   (a token, without speculation)")
    for p in points:
        losses = f"{p.loss:7.3f}  {p.random_loss:7.3f}"
        traffic = f"{p.bytes_down:12.0f} {p.bytes_up:4.0f} {p.round_trips:13.2f}"
        click.echo(f"{p.asked_for:<6g} {p.rate:6.1%} {losses} {traffic}")
    click.echo(f"default {rate:6.1%} {loss:6.3f}   over {len(judged.base):,} tokens of {examples} examples")


def _memory_curve(
    memory: Memory, folder: Path, data: Path, reading: Reading, limit: int, picture: Path | None, as_json: bool
) -> None:
    from sideplug.api import entry_of
    from sideplug.memory import curve
    from sideplug.memory.part import shortened
    from sideplug.training.data import sample

    data = click.get_current_context().with_resource(data_or_stdin(data))
    entries = [entry_of(example) for example in sample(reading.read(data), limit)]
    asked = [(entry.question, entry.reply) for entry in entries if not entry.is_note]
    if not asked:
        raise DataError(f"{data} must have questions with the words of a right reply: it has none")
    with progress("asking the memory", len(asked)) as show:
        points, default, wrong = curve.curve(memory, asked, lambda done: show(done, ""))
    if picture:
        curve.draw(points, default, f"{folder.name} on {data.name}", picture)
    if as_json:
        about = {"points": curve.to_json(points), "default": curve.to_json([default])[0]}
        print_json({"questions": len(asked), **about, "wrong": curve.to_json(wrong)})
        return
    click.echo("certain   right   wrong   silent")
    for name, p in [*((f"{point.certain:<7g}", point) for point in points), ("as set ", default)]:
        click.echo(f"{name}  {p.right:6.1%}  {p.wrong:6.1%}  {1 - p.right - p.wrong:6.1%}")
    click.echo(f"over {len(asked):,} questions; sideplug memory settings --certain P sets it")
    if wrong:
        click.echo("counted as wrong, above these certainties:")
    for each in wrong[:SHOWN]:
        said = "said  " if each.is_said else "unsaid"
        click.echo(f"{each.certainty:6.1%} {said}  {shortened(each.question)!r} → {shortened(each.text)!r}")
    if len(wrong) > SHOWN:
        click.echo(f"and {len(wrong) - SHOWN} more; --json has all")
