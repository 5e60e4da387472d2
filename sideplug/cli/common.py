"""What the commands share: the group that holds them, and the options that several of them have.

What becomes of an option's value is in session.py. Test: pytest tests/test_cli.py
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from sideplug.cli import session
from sideplug.contract.defaults import DEFAULT_MODEL, DEFAULT_URL
from sideplug.contract.version import __version__
from sideplug.terminal import print_json, say

if TYPE_CHECKING:
    from sideplug.readers import Example

__all__ = ["DEFAULT_MODEL", "DEFAULT_URL", "print_json"]  # for commands that have nothing else of where these are

FOLDER = click.Path(path_type=Path)
# The commands by who asks for them, in the order of the help, each with the module of sideplug.cli that adds it.
SECTIONS = {
    "For you": {
        "chat": "talk",
        "generate": "talk",
        "remember": "memory",
        "memory": "memory",
        "train": "train",
        "plugin": "plugins",
        "gateway": "gateway",
        "web": "web",
        "mcp": "mcp",
        "audit": "talk",
        "service": "service",
        "config": "home",
        "doctor": "home",
    },
    "For whoever serves a model": {
        "serve": "serve",
        "pull": "cloud",
        "keys": "keys",
        "top": "cloud",
        "trunk": "trunk",
    },
    "For whoever measures": {"eval": "measure", "gate": "measure", "bench": "bench"},
}

Function = Callable[..., Any]
Decorator = Callable[[Function], Function]


class SectionedGroup(click.Group):
    """A group whose help has sections, and which imports a command's module when the command is asked for."""

    def list_commands(self, context: click.Context) -> list[str]:
        """The names of all commands, in the order of the sections."""
        return [name for commands in SECTIONS.values() for name in commands]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """The command; None if there is no such one."""
        for commands in SECTIONS.values():
            if name in commands:
                importlib.import_module(f"sideplug.cli.{commands[name]}")
        return super().get_command(context, name)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections."""
        width = formatter.width - 6 - max(map(len, self.list_commands(context)))
        for title, names in SECTIONS.items():
            commands = [(name, self.get_command(context, name)) for name in names]
            with formatter.section(title):
                formatter.write_dl([(name, found.get_short_help_str(width)) for name, found in commands if found])


@click.group(cls=SectionedGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="sideplug")
def group() -> None:
    """One frozen LLM in the cloud, shared by everybody; your side plugin on your device.

    Your plugin stays on your device; your text passes through the cloud, which keeps none of it.
    """


def command(name: str, example: str) -> Callable[[Function], click.Command]:
    """A command of `group` whose help ends with an example."""
    return group.command(name, epilog=f"Example:  {example}")


def option(*names: str, env: bool | str = False, **settings: Any) -> Decorator:
    """click.option, with its default in the help.

    env: True for the variable SIDEPLUG_ and the option's name, or a variable's name. Only options that mean the same
    wherever they occur, and that destroy nothing, have one.
    """
    long = next(name for name in names if name.startswith("--")).split("/")[0]
    if env:
        settings["envvar"] = env if isinstance(env, str) else "SIDEPLUG_" + long.lstrip("-").replace("-", "_").upper()
    settings.setdefault("show_default", settings.get("default") != "")
    return click.option(*names, show_envvar=True, **settings)


def options(several: Iterable[Decorator]) -> Decorator:
    """Several options as one decorator."""

    def apply(function: Function) -> Function:
        for decorator in reversed(list(several)):
            function = decorator(function)
        return function

    return apply


def gathered(name: str, make: Function, several: Iterable[Decorator], names: Iterable[str] = ()) -> Decorator:
    """Options that a command gets as one argument: `name`, which is `make(**their values)`.

    names: of the values; none: the parameters of `make`.
    """
    parameters = tuple(names) or tuple(inspect.signature(make).parameters)

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def with_one_argument(**values: Any) -> Any:
            made = make(**{parameter: values.pop(parameter) for parameter in parameters})
            return function(**values, **{name: made})

        return options(several)(with_one_argument)

    return decorate


address_option = option(
    "--cloud", default=DEFAULT_URL, env=True, metavar="URL", help="The cloud's address, ws:// or wss://."
)
trust_options = (
    option(
        "--cloud-key",
        default="",
        env=True,
        metavar="KEY",
        help="Your key for that cloud. A cloud on this machine needs none.",
    ),
    option(
        "--cloud-key-file",
        type=FOLDER,
        env=True,
        metavar="FILE",
        help="A file with that key, which only you can read.",
    ),
    option("--ca", type=FOLDER, env=True, help="A PEM file to trust beside the system's certificates (wss)."),
    option(
        "--pin", default="", env=True, metavar="SHA256", help="Trust this certificate and no other: sha256:… (wss)."
    ),
)
cloud_options = gathered(
    "cloud",
    session.Cloud.chosen,
    (
        address_option,
        *trust_options,
        option(
            "--retry",
            default=60.0,
            env=True,
            type=click.FloatRange(0),
            metavar="SECONDS",
            help="Seconds to keep reconnecting after a lost connection; 0 disables retries.",
        ),
        option(
            "--transcript",
            type=FOLDER,
            metavar="FILE",
            help="Append all messages with the cloud to a file, for sideplug audit. It will hold your words.",
        ),
    ),
)
keys_option = option(
    "--keys",
    "keys_path",
    type=FOLDER,
    metavar="FILE",
    help="The file of keys. Without it: SIDEPLUG_KEYS, or sideplug/keys.json in your configuration folder.",
)
json_option = option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
sampling_options = gathered(
    "sampling",
    session.sampling,
    (
        option("--temperature", default=0.0, help="Randomness of the choice; 0 is greedy."),
        option("--top-k", default=0, help="Choose among this many best tokens; 0: all."),
        option("--top-p", default=1.0, help="Choose among the best tokens that together have this probability."),
        option("--min-p", default=0.0, help="Leave out tokens below this share of the best one's probability."),
        option("--repetition-penalty", default=1.0, help="Values above 1 discourage tokens that occurred before."),
        option("--seed", default=0, help="The same seed gives the same text."),
    ),
)
max_tokens_option = option("--max-tokens", default=256, help="The most tokens of the reply.")

PREVIEWED = 6  # examples that a preview shows


@dataclass(frozen=True)
class Reading:
    """How a person's files are read: see readers.read."""

    form: str
    skip_bad: bool
    me: str
    redact: str

    def read(self, path: Path, skip: Path | None = None) -> list[Example]:
        """The examples of a file or folder, but for those in the folder `skip`; what is passed over is told. Raises
        DataError, InputError."""
        from sideplug.readers import read

        return read(path, self.form, skip, self.skip_bad, say, self.me, self.redact.split(","))


reading_options = gathered(
    "reading",
    Reading,
    (
        option(
            "--format", "form", default="auto", help="The examples' format: auto, alpaca, messages, sharegpt or text."
        ),
        option(
            "--skip-bad",
            is_flag=True,
            help="Leave out rows that can't be learnt, and say which, instead of refusing them all.",
        ),
        option(
            "--me",
            metavar="NAME",
            default="",
            help="Who you are in chats and mailboxes, by name or address: your lines are the replies, others' the "
            "prompts. Without it, who you are is seen in the file where it shows that, and told.",
        ),
        option(
            "--redact",
            metavar="KINDS",
            default="",
            help="Put out of sight, before anything is learnt or sent: numbers, addresses, names (of those who write "
            "in chats and mailboxes), or several with commas. It finds by pattern, and tells what.",
        ),
    ),
)
preview_option = option("--preview", is_flag=True, help="Show what would be read, and end: nothing is sent or changed.")
limit_option = option(
    "--limit", default=0, type=click.IntRange(0), help="Use only this many examples, drawn by seed; 0: all."
)
plugin_option = option(
    "--plugin", "folder", type=FOLDER, env=True, metavar="DIR", help="The plugin's folder; without it the base answers."
)
required_plugin_option = option(
    "--plugin", "folder", type=FOLDER, env=True, required=True, metavar="DIR", help="The plugin's folder."
)
plugins_option = option(
    "--plugins",
    "plugins_folder",
    type=FOLDER,
    env=True,
    metavar="DIR",
    help="The folder that holds your plugins. Without it: sideplug/plugins in your data folder.",
)
gate_options = gathered(
    "gate",
    session.GateChoice,
    (
        option("--gate", type=click.Choice(["open", "shut"]), help="Open or shut the gate, whatever the plugin's is."),
        option(
            "--gate-rate",
            type=click.FloatRange(0, 1),
            help="The share of tokens that your plugin is asked about: 0 is the base, 1 every token.",
        ),
    ),
)
form_options = gathered(
    "form",
    session.form,
    (
        option("--schema", type=FOLDER, help="A JSON schema, in a file: the reply is JSON that it allows."),
        option("--regex", help="A regular expression: the reply is a text that it matches as a whole."),
    ),
)
decode_options = gathered(
    "decode",
    session.DecodeChoice,
    (
        option(
            "--window",
            default=24,
            env=True,
            type=click.IntRange(0, 32),
            help="The most unanswered questions to your plugin while the cloud decodes speculatively; 0 waits for each "
            "answer.",
        ),
        option(
            "--drafts/--no-drafts", default=True, env=True, help="Send drafts from your own phrases with the answers."
        ),
        option(
            "--answer-deadline-ms",
            default=0,
            env=True,
            type=click.IntRange(0),
            help="Milliseconds after which the base's token is used in place of your plugin's; 0: never.",
        ),
        option(
            "--head",
            default="cloud",
            env=True,
            type=click.Choice(["cloud", "device"]),
            help="Where your plugin's tokens are picked. With device, the base's head is fetched once, and only the "
            "chosen tokens are sent.",
        ),
    ),
)


class Shown(Protocol):
    """What a preview shows: an example, or an entry of a memory."""

    @property
    def question(self) -> str:
        """What is asked; "" for a text."""
        ...

    @property
    def reply(self) -> str:
        """What is learnt."""
        ...


def show_preview(items: Sequence[Shown], what: str, as_json: bool) -> None:
    """Tell how much there is, and show the first of it. what: becomes of it."""
    pairs = [each for each in items if each.question]
    size = sum(len(each.question) + len(each.reply) for each in items)
    if as_json:
        shown = [{"question": each.question, "reply": each.reply} for each in items]
        print_json({"questions": len(pairs), "texts": len(items) - len(pairs), "characters": size, "items": shown})
        return
    for each in items[:PREVIEWED]:
        asked = f"{shortened(each.question, 60)} ⟶ " if each.question else ""
        click.echo(f"  {asked}{shortened(each.reply, 110 - len(asked))}")
    if len(items) > PREVIEWED:
        click.echo(f"  … and {len(items) - PREVIEWED:,} more")
    click.echo(
        f"{len(pairs):,} replies to something and {len(items) - len(pairs):,} texts, {size:,} characters: {what}, and "
        "keep none of it; nothing was sent or changed"
    )


def shortened(text: str, most: int) -> str:
    """A text on one line, of at most so many characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"
