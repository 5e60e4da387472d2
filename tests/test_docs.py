"""Docs that can't lie: the wire's table, the commands' help, the README's commands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click

from sideplug.cli import group
from sideplug.contract.wire import HEADER_BYTES, MAX_CONTROL_BYTES, MAX_DIMS, MAX_PAYLOAD_BYTES, MAX_TENSORS, SCHEMA

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


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


def reference() -> str:
    """docs/CLI.md, from the commands themselves."""
    parts = ["# The commands\n\nMade from `--help` by `make docs`; a test checks it.\n"]

    def add(command: click.Command, path: str, parent: click.Context | None) -> None:
        context = click.Context(command, info_name=path.rsplit(" ", 1)[-1], parent=parent, max_content_width=100)
        parts.append(f"\n## {path}\n\n```\n{command.get_help(context)}\n```\n")
        if isinstance(command, click.Group):
            for name in sorted(command.commands):
                add(command.commands[name], f"{path} {name}", context)

    add(group, "sideplug", None)
    return "".join(parts)


def test_the_commands_reference_is_current() -> None:
    assert (ROOT / "docs" / "CLI.md").read_text() == reference(), "run make docs"


def test_readmes_commands_exist() -> None:
    commands = re.findall(r"^ +sideplug ([a-z]+)", README, re.M)
    assert {"serve", "train", "chat", "generate"} <= set(commands)
    assert set(commands) <= set(group.commands)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    for target in re.findall(r"^ +make ([a-z-]+)", README, re.M):
        assert target in targets
    options = {name for c in group.commands.values() for p in c.params for name in p.opts}
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
    code = "import sys; sys.modules['torch'] = None; import sideplug.cli"
    subprocess.run([sys.executable, "-c", code], check=True)


if __name__ == "__main__":
    (ROOT / "docs" / "CLI.md").write_text(reference())
