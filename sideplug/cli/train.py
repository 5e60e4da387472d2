"""sideplug train: a new plugin, or a plugin that learns more.

Test: pytest tests/test_cli.py tests/test_cli_device.py
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sideplug.cli.common import (
    FOLDER,
    cloud_options,
    command,
    format_option,
    gathered,
    json_option,
    limit_option,
    option,
    print_json,
)
from sideplug.cli.session import Cloud, data_or_stdin, interrupts, peak_rss_mb
from sideplug.contract.errors import InputError
from sideplug.terminal import progress, say

if TYPE_CHECKING:
    from sideplug.training.pipeline import Made, Recipe, Tell, Texts


FORCED = " (the same command with --force replaces it all the same)"


@contextlib.contextmanager
def training_progress(label: str, total: int) -> Iterator[Tell]:
    """A progress bar that shows the losses as they come."""
    with progress(label, total) as show:
        yield lambda done, losses: show(done, losses.line if losses else "")


def plugin_kinds() -> list[str]:
    """The kinds of plugins that can be trained."""
    from sideplug.plugins import trained_kinds

    return list(trained_kinds())


@dataclass(frozen=True)
class NewPlugin:
    """The options that only a new plugin has."""

    limit: int
    held_out: float
    kind: str
    taps: int
    rank: int
    tap: str | None
    width: int
    learning_rate: float
    batch_tokens: int
    candidates: int
    retain: Path | None
    retain_weight: float
    seed: int
    resume: bool

    def recipe(self, epochs: int) -> Recipe:
        """The kind of plugin, and how it is trained."""
        from sideplug.training.fit import TrainConfig
        from sideplug.training.pipeline import Recipe

        training = TrainConfig(
            epochs, self.learning_rate, self.batch_tokens, seed=self.seed, retain_weight=self.retain_weight
        )
        return Recipe(self.kind, self.taps, self.rank, self.tap or "", self.width, self.candidates, training)

    def texts(self, data: Path, form: str, skip: Path) -> Texts:
        """The examples of `data` (but for those in the folder `skip`), and the retain set. Raises DataError."""
        from sideplug.readers import read
        from sideplug.training.data import sample
        from sideplug.training.pipeline import Texts

        examples = sample(read(data, form, skip=skip), self.limit, self.seed)
        return Texts.prepare(examples, self.held_out, self.seed, self.retain_weight, self.retain)


new_plugin_options = gathered(
    "new",
    NewPlugin,
    (
        limit_option,
        option("--held-out", default=0.1, help="The share of examples that is held out, to tell when to stop."),
        option(
            "--kind",
            default="ladder",
            type=click.Choice(plugin_kinds()),
            help="ladder is sideplug's own. The output of paper (arXiv 2403.07088) replaces z, that of paper-added is "
            "added to z.",
        ),
        option("--taps", default=9, type=click.IntRange(1, 256), help="The number of layers that are tapped."),
        option("--rank", default=64, type=click.IntRange(1), help="The width of each tapped layer's code."),
        option("--tap", help="A tap by its name, or raw: every layer, unprojected, in fp16."),
        option("--width", default=0, type=click.IntRange(0), help="The plugin's width; 0 takes the kind's own."),
        option("--learning-rate", default=1e-3, help="The peak learning rate of AdamW."),
        option("--batch-tokens", default=64, type=click.IntRange(1), help="The approximate number of tokens a step."),
        option(
            "--candidates",
            default=4096,
            type=click.IntRange(1),
            help="The fewest rows of the vocabulary in the candidate softmax.",
        ),
        option(
            "--retain",
            type=FOLDER,
            env=True,
            metavar="FILE",
            help="The retain set: prompts that the plugin learns to leave to the base, one a line or in any format. "
            "Without it: sideplug's own list.",
        ),
        option(
            "--retain-weight",
            default=1.0,
            env=True,
            type=click.FloatRange(0),
            help="The weight of the KL term that keeps the plugin equal to the base on the retain set. 0 trains "
            "without one, and leaves the gate always open.",
        ),
        option("--seed", default=0, type=click.IntRange(0), help="Seed of the split, the start and the order."),
        option("--resume", is_flag=True, help="Go on from the checkpoint in --out."),
    ),
)


@command("train", "sideplug train my-notes/ --out my-plugin")
@click.argument("data", type=FOLDER)
@option("--out", type=FOLDER, metavar="DIR", help="A new plugin's folder; its tape and checkpoint go there too.")
@option("--update", type=FOLDER, metavar="DIR", help="A plugin's folder: that plugin learns more, without forgetting.")
@cloud_options
@format_option
@option("--epochs", default=6, type=click.IntRange(1), help="The most passes over the examples.")
@option(
    "--force",
    is_flag=True,
    help="Replace the plugin in --out. With --update, replace it even if it gets worse on what was held out before.",
)
@new_plugin_options
@json_option
@click.pass_context
def train(
    context: click.Context,
    data: Path,
    out: Path | None,
    update: Path | None,
    cloud: Cloud,
    form: str,
    epochs: int,
    force: bool,
    new: NewPlugin,
    as_json: bool,
) -> None:
    """Train a plugin on your files, on this device.

    DATA is a file, a folder, or - for standard input: text, alpaca, OpenAI messages, ShareGPT. Ctrl-C keeps a
    checkpoint; the same command with --resume goes on from it.

    With --update, an existing plugin learns more from DATA: replies that you liked, corrections, new notes. A plugin
    that gets worse is not kept, and plugin rollback goes back. Of the options below only --format, --epochs and
    --force apply then, beside those of the cloud.

    The cloud reads each example once, for the tape, and keeps none of it. The plugin is made here and stays here.
    """
    if out and update:
        raise InputError("--out and --update can't be given together: --out makes a new plugin")
    data = context.with_resource(data_or_stdin(data))
    if update:
        check_update(context)
        result, line = learn_more(data, update, cloud, form, epochs, force)
    elif out:
        result, line = make_new(data, out, cloud, form, epochs, force, new)
    else:
        raise click.UsageError("Missing option '--out' (or '--update', for a plugin that is to learn more).")
    if as_json:
        print_json(result)
    else:
        click.echo(line)


def check_update(context: click.Context) -> None:
    """Raises InputError for options of a new plugin that stand on the command line."""
    on_command_line = click.core.ParameterSource.COMMANDLINE
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name in NewPlugin.__dataclass_fields__
        and context.get_parameter_source(parameter.name) is on_command_line
    ]
    if given:
        raise InputError(f"{' and '.join(given)} can't be given with --update, only with --out")


def learn_more(
    data: Path, folder: Path, cloud: Cloud, form: str, epochs: int, force: bool
) -> tuple[dict[str, Any], str]:
    """Let the plugin in `folder` learn more; (what is told as JSON, the same as a sentence). The cloud reads only what
    is new."""
    from sideplug.readers import read
    from sideplug.training.update import update

    made = update(cloud.client, folder, read(data, form), training_progress, interrupts, epochs, force)
    return {"plugin": str(folder), **made.to_json()}, made.line + ("" if made.kept else FORCED)


def make_new(
    data: Path, out: Path, cloud: Cloud, form: str, epochs: int, force: bool, new: NewPlugin
) -> tuple[dict[str, Any], str]:
    """Train a new plugin into `out`; (what is told as JSON, the same as a sentence)."""
    from sideplug.plugins.file import is_plugin, is_sealed
    from sideplug.training.pipeline import make

    if is_plugin(out) and not (force or new.resume):
        raise InputError(f"{out} already holds a plugin: give another --out, or --force to replace it")
    if is_sealed(out):
        raise InputError(f"{out} holds a sealed plugin: unlock it first, or give another --out")
    texts = new.texts(data, form, skip=out)
    first = texts.training[0]
    start = " ".join(((first.prompt.messages or ({"content": ""},))[-1]["content"] + " ⟶ " + first.reply).split())
    say(f"{len(texts.training)} examples to train on, {len(texts.held)} held out; {first.where}: {start[:100]}…")
    recipe = new.recipe(epochs)
    made = make(cloud.client, texts, out, recipe, training_progress, interrupts, new.resume, say)
    about = {"parameters": made.plugin.size, "tap": made.plugin.tap.name, "peak_rss_mb": peak_rss_mb()}
    return {"plugin": str(out), **about, **made.plugin.about}, summary(made, out)


def summary(made: Made, out: Path) -> str:
    """One line on what training reached."""
    result, gated = made.result, made.gated
    gain = result.best_loss - result.base_loss
    reached = f"held-out loss {result.base_loss:.3f} → {result.best_loss:.3f} nats a token ({gain:+.3f})"
    if gain >= 0:
        reached = (
            f"nothing that helps on held-out text (loss {result.base_loss:.3f}): the plugin leaves the base as it is"
        )
    if gated:
        ours, others = gated["personal"], gated["general"]
        reached += (
            f", gated {ours['gated']:.3f}; the gate opens for {ours['rate']:.0%} of your tokens and for "
            f"{others['rate']:.1%} of general ones (loss there {others['base']:.3f} → {others['gated']:.3f})"
        )
    return (
        f"learnt from {result.tokens:,} tokens in {result.seconds:.0f} s: {reached}; "
        f"{made.plugin.size / 1e6:.2f} M parameters in {out}"
    )
