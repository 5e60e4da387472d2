"""Docs that can't lie: the wire's table, the commands' help, a fleet's arguments, the README's commands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click

from sideplug.cli import group
from sideplug.cli.common import SECTIONS
from sideplug.cloud.config import RAY, settings
from sideplug.contract.wire import HEADER_BYTES, MAX_CONTROL_BYTES, MAX_DIMS, MAX_PAYLOAD_BYTES, MAX_TENSORS, SCHEMA

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
FLEET = ROOT / "docs" / "FLEET.md"
OTHER_VARIABLES = {
    "SIDEPLUG_CACHE": "the folder of what can be made again: models, prepared weights, the retain set's tape",
    "SIDEPLUG_KEYS": "the file of keys that a cloud knows",
    "SIDEPLUG_LOCAL_KEY": "the file of the key for a cloud on this very machine",
    "SIDEPLUG_PASSPHRASE": "the passphrase of sealed plugins",
}
Commands = list[tuple[str, click.Command, click.Context]]  # (path, command, its context)


def test_wire_table_is_the_schema() -> None:
    text = (ROOT / "docs" / "WIRE.md").read_text()
    rows = re.findall(r"^\| (\d+) ([A-Z]+) \| (?:device|cloud|both) \| ([^|]*) \| ([^|]*)\|$", text, re.M)
    assert [(int(number), name) for number, name, _, _ in rows] == [(kind.value, kind.name) for kind in SCHEMA]
    for (_, _, fields, tensors), row in zip(rows, SCHEMA.values(), strict=True):
        assert [name.strip() for name in fields.split(",")] == list(row.control)
        named = [f"{name} ({rank})" for name, rank in row.tensors.items()]
        assert [name.strip() for name in tensors.split(",") if name.strip()] == named
    assert (HEADER_BYTES, MAX_CONTROL_BYTES, MAX_PAYLOAD_BYTES) == (20, 4 << 20, 64 << 20)
    assert f"At most {MAX_TENSORS} tensors of at most {MAX_DIMS} dimensions" in text


def all_commands() -> Commands:
    """Every command and group, in the order of the help."""
    found: Commands = []

    def add(command: click.Command, path: str, parent: click.Context | None) -> None:
        context = click.Context(command, info_name=path.rsplit(" ", 1)[-1], parent=parent, max_content_width=100)
        found.append((path, command, context))
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                inner = command.get_command(context, name)
                assert inner is not None
                add(inner, f"{path} {name}", context)

    add(group, "sideplug", None)
    return found


def variables() -> dict[str, dict[str, str]]:
    """The variables that are options: of each, the option that it stands for by command."""
    found: dict[str, dict[str, str]] = {}
    for path, command, _ in all_commands():
        for parameter in command.params:
            if isinstance(parameter.envvar, str):
                found.setdefault(parameter.envvar, {})[path.removeprefix("sideplug ")] = parameter.opts[0]
    return found


def reference() -> str:
    """docs/CLI.md, from the commands themselves."""
    parts = ["# The commands\n\nMade from `--help` by `make docs`; a test checks it.\n"]
    for path, command, context in all_commands():
        parts.append(f"\n## {path}\n\n```\n{command.get_help(context)}\n```\n")
    parts.append(
        "\n## Variables\n\nWhat is the same for many commands may be a variable; an option that is given wins.\n\n"
    )
    parts.append("| variable | instead of |\n|---|---|\n")
    rows = dict(OTHER_VARIABLES)
    for name, options in variables().items():
        (command, option), *more = options.items()
        rows[name] = f"`{option}`" if more else f"`{command} {option}`"
    parts += [f"| `{name}` | {rows[name]} |\n" for name in sorted(rows)]
    return "".join(parts)


def fleet_arguments() -> str:
    """The table of docs/FLEET.md, from ServeConfig's fields."""
    rows = ["| argument | default | values | |", "|---|---|---|---|"]
    for about in settings(RAY):
        default = str(about.default).lower() if about.kind is bool else f"{about.default}"
        rows.append(f"| `{about.name}` | {default and f'`{default}`'} | {about.range} | {about.help} |")
    return "\n".join(rows) + "\n"


def fleet_page() -> str:
    """docs/FLEET.md with that table."""
    start, rest = FLEET.read_text().split("<!-- arguments: made by make docs -->\n")
    end = rest[rest.index("<!-- end -->") :]
    return f"{start}<!-- arguments: made by make docs -->\n{fleet_arguments()}{end}"


def test_the_commands_reference_is_current() -> None:
    assert (ROOT / "docs" / "CLI.md").read_text() == reference(), "run make docs"


def test_a_fleets_arguments_are_current() -> None:
    assert FLEET.read_text() == fleet_page(), "run make docs"


def test_a_variable_has_one_meaning_and_destroys_nothing() -> None:
    for name, options in variables().items():
        assert len(set(options.values())) == 1, name
    never = {"force", "resume", "seed", "data", "out", "update", "limit", "json", "transcript", "epochs", "gate", "raw"}
    assert not {f"SIDEPLUG_{name.upper()}" for name in never} & set(variables())
    assert {"SIDEPLUG_CLOUD", "SIDEPLUG_WINDOW", "SIDEPLUG_RETAIN", "SIDEPLUG_GATEWAY_PORT"} <= set(variables())


def test_the_help_has_its_sections() -> None:
    text = group.get_help(click.Context(group, info_name="sideplug"))
    shown = re.findall(r"^(For .*):$|^  ([a-z]+)  ", text, re.M)
    wanted = [(title, *commands) for title, commands in SECTIONS.items()]
    assert [title or name for title, name in shown] == [word for section in wanted for word in section]
    for _, command, _ in all_commands():
        first = (command.help or "").split("\n\n")[0]
        assert first, command.name


def test_readmes_commands_exist() -> None:
    commands = re.findall(r"^ +sideplug ([a-z]+)", README, re.M)
    assert {"serve", "train", "chat", "generate"} <= set(commands)
    top = {path.split(" ")[-1]: command for path, command, _ in all_commands() if path.count(" ") == 1}
    assert set(commands) <= set(top)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    for target in re.findall(r"^ +make ([a-z-]+)", README, re.M):
        assert target in targets
    options = {name for c in top.values() for p in c.params for name in p.opts}
    for option in re.findall(r"sideplug [^\n]*?(--[a-z-]+)", README):
        assert option in {*options, "--help"}


def test_files_that_docs_name_exist() -> None:
    for file in [ROOT / "README.md", *ROOT.glob("docs/*.md"), ROOT / "CONTRIBUTING.md"]:
        for name in re.findall(r"\]\(([^)#:]+)\)|`((?:sideplug|tests|docs|bench|examples)/[\w/.]+)`", file.read_text()):
            path = name[0] or name[1]
            assert (file.parent / path).exists() or (ROOT / path).exists() or (ROOT / f"{path}.py").exists(), (
                file,
                path,
            )


def test_help_runs_without_the_clouds_packages() -> None:
    absent = ("torch", "onnxruntime", "tokenizers", "ray")
    code = f"import sys; sys.modules |= dict.fromkeys({absent}); from sideplug.cli import main; main(sys.argv[1:])"
    for arguments in (["--help"], ["serve", "--help"]):
        subprocess.run([sys.executable, "-c", code, *arguments], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    (ROOT / "docs" / "CLI.md").write_text(reference())
    FLEET.write_text(fleet_page())
