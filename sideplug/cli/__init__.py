"""The command line: it parses, then imports the one module, and the room, that a command needs.

Results go to standard output, progress and errors to the error stream. Exit codes: 0 done; 1 could not be done (cloud,
network, disk, interrupted); 2 what was given can't be used. Some options are variables too: see common.option.
Test: pytest tests/test_cli.py
"""

from __future__ import annotations

import os
import sys

import click

from sideplug.cli.common import group
from sideplug.contract.errors import SideplugError
from sideplug.terminal import say

__all__ = ["group", "main"]


def main(args: list[str] | None = None) -> None:
    """The entry point: one plain sentence and the exit code for whatever goes wrong."""
    try:
        code = group.main(args, prog_name="sideplug", standalone_mode=False)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "sideplug"
        say(f"sideplug: {error.format_message().rstrip('.')} (see {where} --help)")
        code = 2
    except click.ClickException as error:
        say(f"sideplug: {error.format_message()}")
        code = 2
    except SideplugError as error:
        say(f"sideplug: {error}")
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        say("sideplug: stopped")
        code = 1
    except BrokenPipeError:  # the reader of our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code if isinstance(code, int) else 0)
