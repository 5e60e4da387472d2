"""sideplug train: a new plugin, or a plugin that learns more.

Test: pytest tests/test_cli.py tests/test_cli_device.py
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sideplug.cli.common import (
    FOLDER,
    Reading,
    cloud_options,
    command,
    gathered,
    json_option,
    limit_option,
    option,
    preview_option,
    print_json,
    reading_options,
    show_preview,
)
from sideplug.cli.session import Cloud, data_or_stdin, interrupts, peak_rss_mb, remember_plugin
from sideplug.contract.errors import InputError
from sideplug.terminal import progress, say
from sideplug.training.recipe import Recipe

if TYPE_CHECKING:
    from sideplug.device.client import Client
    from sideplug.readers import Example
    from sideplug.training.pipeline import Tell


RECIPE = Recipe()


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
class Source:
    """The person's data, and how it is read."""

    path: Path
    how: Reading

    def read(self, skip: Path | None = None) -> list[Example]:
        """The examples, but for those in the folder `skip`; what is passed over is told. Raises DataError."""
        return self.how.read(self.path, skip)


@dataclass(frozen=True)
class NewPlugin:
    """The options that only a new plugin has."""

    limit: int
    held_out: float
    kind: str | None
    trunk: str | None
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
    raw: bool
    reword: bool
    bias: bool
    remember: bool
    resume: bool

    def recipe(self, epochs: int) -> Recipe:
        """The kind of plugin, and how it is trained."""
        from sideplug.training.fit import TrainConfig

        training = TrainConfig(
            learning_rate=self.learning_rate,
            batch_tokens=self.batch_tokens,
            seed=self.seed,
            retain_weight=self.retain_weight,
        )
        tap = self.tap or ""
        recipe = Recipe(
            self.kind or "", self.taps, self.rank, tap, self.width, self.candidates, training, self.held_out
        )
        return replace(recipe, reword=self.reword, raw=self.raw, bias=self.bias).with_epochs(epochs)

    def examples(self, source: Source, skip: Path, client: Client, recipe: Recipe) -> tuple[list[Example], Recipe]:
        """The examples of `source`, but for those in the folder `skip`, and the recipe that suits them. Raises
        DataError."""
        from sideplug.training.data import sample
        from sideplug.training.preflight import readable

        examples = sample(source.read(skip), self.limit, self.seed)
        model = client.model()
        recipe = recipe.suited_to(examples).begun_with(self.trunk or "", model.fingerprint)
        part = recipe.new_plugin(model).trained
        return readable(client, examples, part.tap, part.context, source.how.skip_bad, say), recipe


new_plugin_options = gathered(
    "new",
    NewPlugin,
    (
        limit_option,
        option(
            "--held-out",
            default=RECIPE.held_out,
            help="The share of examples that is held out, to tell when to stop: phrasings of told facts, and text. 0 "
            "holds out nothing.",
        ),
        option(
            "--kind",
            type=click.Choice(plugin_kinds()),
            help="Without it: ladder where most examples are questions with short replies, else mlp, which has the "
            "person's manner and a bias for their words. Both see one position. attention reads the prompt and the "
            "reply: it keeps more facts apart, takes longer to train, and sends the whole prompt's codes down. The "
            "output of paper (arXiv 2403.07088) replaces z, that of paper-added is added to z.",
        ),
        option(
            "--trunk",
            metavar="NAME",
            help="What a plugin of manner begins with: a trunk by its name or file, or none. Without it: the newest "
            "that is installed for the base (sideplug trunk list).",
        ),
        option(
            "--taps", default=RECIPE.taps, type=click.IntRange(1, 256), help="The number of layers that are tapped."
        ),
        option("--rank", default=RECIPE.rank, type=click.IntRange(1), help="The width of each tapped layer's code."),
        option("--tap", help="A tap by its name, or raw: every layer, unprojected, in fp16."),
        option(
            "--width", default=RECIPE.width, type=click.IntRange(0), help="The plugin's width; 0 takes the kind's own."
        ),
        option("--learning-rate", default=RECIPE.training.learning_rate, help="The peak learning rate of AdamW."),
        option(
            "--batch-tokens",
            default=RECIPE.training.batch_tokens,
            type=click.IntRange(1),
            help="The approximate number of tokens a step.",
        ),
        option(
            "--candidates",
            default=RECIPE.candidates,
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
            default=RECIPE.training.retain_weight,
            env=True,
            type=click.FloatRange(0),
            help="The weight of the KL term that keeps the plugin equal to the base on the retain set. 0 trains "
            "without one, and leaves the gate always open.",
        ),
        option(
            "--seed",
            default=RECIPE.training.seed,
            type=click.IntRange(0),
            help="Seed of the split, the start and the order.",
        ),
        option(
            "--raw",
            is_flag=True,
            help="Train without the base's chat template, for generate --raw: a prompt and its reply are one text. A "
            "base that has no template is always trained so.",
        ),
        option(
            "--reword/--no-reword",
            default=RECIPE.reword,
            help="Ask a fact that you told in one or two phrasings in other words too: in training, and to tell when "
            "to stop.",
        ),
        option(
            "--bias/--no-bias",
            default=RECIPE.bias,
            help="For an mlp: a list of your words, each with how much likelier you use it than the base. It goes up "
            "once when a session opens (with --head device it stays), and says which words you use.",
        ),
        option(
            "--remember/--no-remember",
            default=True,
            help="Keep questions with short replies in the plugin's memory too, which knows them at once.",
        ),
        option("--resume", is_flag=True, help="Go on from the checkpoint in --out."),
    ),
)


@command("train", "sideplug train my-notes/ --out my-plugin")
@click.argument("data", type=FOLDER)
@option("--out", type=FOLDER, metavar="DIR", help="A new plugin's folder; its tape and checkpoint go there too.")
@option("--update", type=FOLDER, metavar="DIR", help="A plugin's folder: that plugin learns more, without forgetting.")
@cloud_options
@reading_options
@preview_option
@option(
    "--epochs",
    default=0,
    type=click.IntRange(0),
    help="The most passes over the examples; 0: 6, or more where there are few examples.",
)
@option(
    "--force",
    is_flag=True,
    help="Replace the plugin, or the checkpoint, in --out. With --update, replace the plugin even if it gets worse on "
    "what was held out before.",
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
    reading: Reading,
    preview: bool,
    epochs: int,
    force: bool,
    new: NewPlugin,
    as_json: bool,
) -> None:
    """Train a plugin on your files, on this device.

    DATA is a file, a folder, or - for standard input: text, Markdown, HTML, mail, tables, JSON of questions and answers
    or of messages. What is not learnt of it is told. Ctrl-C keeps a checkpoint; the same command with --resume goes on
    from it. At the end the plugin is asked for what you told, in other words, and for what you did not tell; a plugin
    of text writes on.

    With --update, an existing plugin learns more from DATA: replies that you liked, corrections, new notes. A plugin
    that gets worse is not kept, and plugin rollback goes back. Of the options below only those of
    reading, --epochs and --force apply then, beside those of the cloud.

    The cloud reads each example once, for the tape, and keeps none of it. The plugin is made here and stays here.
    """
    if out and update:
        raise InputError("--out and --update can't be given together: --out makes a new plugin")
    source = Source(context.with_resource(data_or_stdin(data)), reading)
    if preview:
        show_preview(source.read(out or update), "the cloud would read each once", as_json)
        return
    if update:
        check_update(context)
        result, lines = learn_more(source, update, cloud, epochs, force)
    elif out:
        result, lines = make_new(source, out, cloud, epochs, force, new)
    else:
        raise click.UsageError("Missing option '--out' (or '--update', for a plugin that is to learn more).")
    if as_json:
        print_json(result)
    else:
        click.echo("\n".join(lines))


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
    source: Source, folder: Path, cloud: Cloud, epochs: int, force: bool
) -> tuple[dict[str, Any], list[str]]:
    """Let the plugin in `folder` learn more; (what is told as JSON, the same as lines). The cloud reads only what is
    new."""
    from sideplug.api import remember_questions
    from sideplug.memory.book import memory_of
    from sideplug.plugins import Plugin
    from sideplug.training.update import update

    passes = epochs or RECIPE.training.epochs
    examples, skip_bad = source.read(), source.how.skip_bad
    made = update(cloud.client, folder, examples, training_progress, interrupts, passes, force, skip_bad, say)
    if memory_of(Plugin.load(folder)) is not None:
        remember_questions(examples, folder, say)
    return {"plugin": str(folder), **made.to_json()}, [made.line + ("" if made.kept else FORCED)]


def make_new(
    source: Source, out: Path, cloud: Cloud, epochs: int, force: bool, new: NewPlugin
) -> tuple[dict[str, Any], list[str]]:
    """Train a new plugin into `out`; (what is told as JSON, the same as lines)."""
    from sideplug.api import remember_questions
    from sideplug.plugins.base import trained_kind
    from sideplug.training import report
    from sideplug.training.pipeline import Texts, check_early, check_out, make

    check = partial(check_out, out, new.resume, force)
    check_early(out, check)
    recipe = new.recipe(epochs)
    examples, recipe = new.examples(source, out, cloud.client, recipe)
    if recipe.trunk is not None:
        say(f"it begins with the trunk {recipe.trunk.title} (--trunk none leaves it out)")
    texts = Texts.prepare(examples, recipe, new.retain)
    first = texts.training[0]
    start = (first.prompt.messages or ({"content": ""},))[-1]["content"] + " ⟶ " + first.reply.replace("\n", " ⏎ ")
    start = " ".join(start.split())
    say(f"{len(texts.training)} examples to train on, {len(texts.held)} held out; {first.where}: {start[:100]}…")
    for line in texts.lines:
        say(line)
    remembered = 0

    def begin() -> None:
        nonlocal remembered
        if trained_kind(recipe.kind).merge == "replace":
            say(f"a {recipe.kind} is a plugin's only part: nothing is remembered beside it")
        elif new.remember:
            remembered = remember_questions(examples, out, say)

    made = make(cloud.client, texts, out, recipe, training_progress, interrupts, new.resume, say, check, begin)
    remember_plugin(out)
    about = {"parameters": made.plugin.size, "tap": made.plugin.tap.name, "peak_rss_mb": peak_rss_mb()}
    trial = {"trial": made.trial.to_json()} if made.trial else {}
    lines = [report.line(made, out), *(made.trial.lines if made.trial else [])]
    return {"plugin": str(out), "remembered": remembered, **about, **made.plugin.about, **trial}, lines
