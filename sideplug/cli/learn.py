"""Commands that make a plugin, or judge one: train, learn, eval, gate curve."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sideplug.contract.errors import InputError, PluginError
from sideplug.terminal import progress, say

if TYPE_CHECKING:
    from sideplug.device.address import Address
    from sideplug.device.plugin import Plugin
    from sideplug.training.pipeline import Made
    from sideplug.training.tape import Judged

from sideplug.cli.common import (
    FOLDER,
    cloud_options,
    command,
    group,
    interrupts,
    json_option,
    limit_option,
    load_plugin,
    open_session,
    option,
    peak_rss_mb,
    print_json,
)


@command("train", "sideplug train my-notes/ --out my-plugin")
@click.argument("data", type=FOLDER)
@option("--out", type=FOLDER, required=True, metavar="DIR", help="Where the plugin goes; its tape and checkpoint too.")
@cloud_options
@option("--format", "form", default="auto", help="auto, alpaca, messages, sharegpt or text.")
@limit_option
@option("--held-out", default=0.1, help="Share of the examples kept from training, to stop by.")
@option(
    "--kind",
    default="ladder",
    type=click.Choice(["ladder", "paper", "paper-added"]),
    help="Ours; the paper's, whose output replaces z; or that added to z.",
)
@option("--taps", default=9, type=click.IntRange(1, 256), help="Layers that are tapped.")
@option("--rank", default=64, type=click.IntRange(1), help="Width of a tapped layer's code.")
@option("--tap", "tap_name", help="A tap by name, or raw: every layer, unprojected, fp16.")
@option("--width", default=0, type=click.IntRange(0), help="The plugin's width; 0: 128 (ladder), 32 (paper).")
@option("--epochs", default=6, type=click.IntRange(1), help="Passes over the tape at most.")
@option("--learning-rate", default=1e-3, help="AdamW's peak rate.")
@option("--batch-tokens", default=64, type=click.IntRange(1), help="Tokens of a step, about.")
@option(
    "--candidates", default=4096, type=click.IntRange(1), help="Vocabulary rows of the candidate softmax, at least."
)
@option(
    "--general",
    type=FOLDER,
    metavar="FILE",
    help="Prompts, one a line or in any format, where your plugin is to be silent; none: sideplug's own list.",
)
@option(
    "--general-weight",
    default=1.0,
    type=click.FloatRange(0),
    help="Of staying the base on general text; 0: no general text, and a gate that is always open.",
)
@option("--seed", default=0, type=click.IntRange(0), help="Of the split, the start and the order.")
@option("--resume", is_flag=True, help="Go on from the checkpoint in --out.")
@option("--force", is_flag=True, help="Replace a plugin that is in --out.")
@json_option
def train(data: Path, out: Path, cloud: Address, form: str, held_out: float, **settings: Any) -> None:
    """Train a plugin on your files (text, alpaca, OpenAI messages, ShareGPT), on this device.

    Ctrl-C keeps a checkpoint; the same command with --resume goes on from it.

    The cloud reads each example once, for the tape; it keeps none of it. The plugin is made here and stays here.
    """
    from sideplug.device.plugin import WEIGHTS, is_sealed
    from sideplug.training import data as files
    from sideplug.training.pipeline import Recipe, Texts, make
    from sideplug.training.trainer import Settings

    as_json, seed = settings["as_json"], settings["seed"]
    if (out / WEIGHTS).exists() and not (settings["force"] or settings["resume"]):
        raise InputError(f"{out} already holds a plugin: give another --out, or --force to replace it")
    if is_sealed(out):
        raise InputError(f"{out} holds a sealed plugin: unlock it first, or give another --out")
    examples = files.some(files.read(data, form, skip=out), settings["limit"], seed)
    training, held = files.split(examples, held_out, seed)
    silent = files.general(settings["general"]) if settings["general_weight"] else []
    near = files.hard_negatives(training) if silent and not settings["general"] else []
    first = training[0]
    start = " ".join(((first.prompt.messages or ({"content": ""},))[-1]["content"] + " ⟶ " + first.reply).split())
    say(f"{len(training)} examples to train on, {len(held)} held out; {first.where}: {start[:100]}…")
    hyper = Settings(
        settings["epochs"],
        settings["learning_rate"],
        settings["batch_tokens"],
        seed=seed,
        general_weight=settings["general_weight"],
    )
    chosen = {name: settings[name] for name in ("kind", "taps", "rank", "width", "candidates")}
    recipe = Recipe(**chosen, tap=settings["tap_name"] or "", training=hyper)
    texts = Texts(training, held, silent, near)
    connect = lambda tap: open_session(cloud, tap=tap)  # noqa: E731
    made = make(connect, texts, out, recipe, progress, interrupts, settings["resume"], say)
    if as_json:
        about = {"parameters": made.plugin.size, "tap": made.plugin.tap.name, "peak_rss_mb": peak_rss_mb()}
        print_json({"plugin": str(out), **about, **made.plugin.about})
    else:
        click.echo(_learnt(made, out))


def _learnt(made: Made, out: Path) -> str:
    """One line on what training reached."""
    result, gated = made.result, made.gated
    gain = result.best_loss - result.base_loss
    learnt = f"held-out loss {result.base_loss:.3f} → {result.best_loss:.3f} nats a token ({gain:+.3f})"
    if gain >= 0:
        learnt = (
            f"nothing that helps on held-out text (loss {result.base_loss:.3f}): the plugin leaves the base as it is"
        )
    if gated:
        ours, others = gated["personal"], gated["general"]
        learnt += (
            f", gated {ours['gated']:.3f}; the gate opens for {ours['rate']:.0%} of your tokens and for "
            f"{others['rate']:.1%} of general ones (loss there {others['base']:.3f} → {others['gated']:.3f})"
        )
    return (
        f"learnt from {result.tokens:,} tokens in {result.seconds:.0f} s: {learnt}; "
        f"{made.plugin.size / 1e6:.2f} M parameters in {out}"
    )


@command("eval", "sideplug eval held-out.txt --plugin my-plugin")
@click.argument("data", type=FOLDER)
@option("--plugin", "folder", type=FOLDER, required=True, metavar="DIR", help="The plugin's folder.")
@cloud_options
@option("--format", "form", default="auto", help="auto, alpaca, messages, sharegpt or text.")
@limit_option
@json_option
def evaluate(data: Path, folder: Path, cloud: Address, form: str, limit: int, as_json: bool) -> None:
    """Loss on DATA, of the base, with the plugin at every token and gated: exact, over the whole vocabulary."""
    import numpy as np

    plugin, judged, examples = _judge(data, folder, cloud, form, limit)
    opens = plugin.gate.opens(plugin.gate.scores(judged.z_TD, judged.starts))
    gated = np.where(opens, judged.plugin, judged.base)
    found = {"base": judged.base, "plugin": judged.plugin, "gated": gated}
    result: dict[str, Any] = {"examples": examples, "tokens": len(judged.base)}
    result |= {f"{name}_loss": round(float(-logp.mean()), 5) for name, logp in found.items()}
    result |= {f"{name}_perplexity": round(float(np.exp(-logp.mean())), 3) for name, logp in found.items()}
    result["gate_rate"] = round(float(opens.mean()), 5)
    if as_json:
        print_json(result)
        return
    base = result["base_loss"]
    click.echo(
        f"loss {base:.3f} → {result['plugin_loss']:.3f} nats a token ({result['plugin_loss'] - base:+.3f}), gated "
        f"{result['gated_loss']:.3f} ({result['gated_loss'] - base:+.3f}) with the gate open for {opens.mean():.1%}; "
        f"{len(judged.base):,} tokens of {examples} examples"
    )


def _judge(data: Path, folder: Path, cloud: Address, form: str, limit: int) -> tuple[Plugin, Judged, int]:
    """(plugin, what it makes of the data, how many examples)."""
    from sideplug.training import data as files
    from sideplug.training import tape

    plugin = load_plugin(folder)
    assert plugin is not None
    examples = files.some(files.read(data, form), limit)
    with open_session(cloud, plugin) as session, progress("evaluating", len(examples)) as show:
        return plugin, tape.score(session, examples, lambda done: show(done, "")), len(examples)


@group.group("gate")
def gate_group() -> None:
    """Look at a plugin's gate."""


@gate_group.command(
    "curve", epilog="Example:  sideplug gate curve --plugin my-plugin --data held-out.txt --picture curve.png"
)
@option("--plugin", "folder", type=FOLDER, required=True, metavar="DIR", help="The plugin's folder.")
@option("--data", type=FOLDER, required=True, help="Text that the plugin was not trained on.")
@cloud_options
@option("--format", "form", default="auto", help="auto, alpaca, messages, sharegpt or text.")
@limit_option
@option("--picture", type=FOLDER, metavar="FILE", help="Draw the curve: .png, .svg or .pdf.")
@json_option
def gate_curve(
    folder: Path, data: Path, cloud: Address, form: str, limit: int, picture: Path | None, as_json: bool
) -> None:
    """Quality against traffic over the gate's dial, beside a random gate of the same rate."""
    from sideplug.training import gate

    if picture:
        gate.check_picture(picture)
    loaded = load_plugin(folder)
    if loaded is not None and loaded.gate.kind != "linear":
        raise PluginError(f"the gate of {folder} is {loaded.gate.kind}: it has no dial (train it with general text)")
    plugin, judged, examples = _judge(data, folder, cloud, form, limit)
    points = gate.curve(plugin.gate, judged, plugin.tap)
    rate, loss = gate.at(plugin.gate, judged)
    if picture:
        gate.draw(points, (rate, loss), f"{folder.name} on {data.name}", picture)
    if as_json:
        about = {"examples": examples, "tokens": len(judged.base), "points": gate.to_json(points)}
        print_json({**about, "default": {"rate": round(rate, 5), "loss": round(loss, 5)}})
        return
    click.echo("rate   opened    loss   random   bytes down   up   round trips   (a token, nothing run ahead)")
    for p in points:
        losses = f"{p.loss:7.3f}  {p.random_loss:7.3f}"
        traffic = f"{p.bytes_down:12.0f} {p.bytes_up:4.0f} {p.round_trips:13.2f}"
        click.echo(f"{p.asked_for:<6g} {p.rate:6.1%} {losses} {traffic}")
    click.echo(f"default {rate:6.1%} {loss:6.3f}   over {len(judged.base):,} tokens of {examples} examples")


@command("learn", "sideplug learn corrections.jsonl --plugin my-plugin")
@click.argument("data", type=FOLDER)
@option("--plugin", "folder", type=FOLDER, required=True, metavar="DIR", help="The plugin that learns on.")
@cloud_options
@option("--format", "form", default="auto", help="auto, alpaca, messages, sharegpt or text.")
@option("--epochs", default=6, type=click.IntRange(1), help="Passes over old and new examples at most.")
@option("--force", is_flag=True, help="Replace the plugin even where it does worse on what was held out before.")
@json_option
def learn(data: Path, folder: Path, cloud: Address, form: str, epochs: int, force: bool, as_json: bool) -> None:
    """Let a plugin learn more (replies that you liked, corrections, new notes), without forgetting.

    The cloud reads only what is new. A worse plugin does not replace a better one; plugin rollback goes back.
    """
    from sideplug.training import data as files
    from sideplug.training import update

    connect = lambda tap: open_session(cloud, tap=tap)  # noqa: E731
    learnt = update.learn(connect, folder, files.read(data, form), progress, interrupts, epochs, force)
    if as_json:
        print_json({"plugin": str(folder), **learnt.to_json()})
    else:
        click.echo(learnt.line)
