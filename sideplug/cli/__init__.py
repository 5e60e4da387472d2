"""The command line: it parses, then imports the one module, and the room, that a command needs.

Results go to standard output, progress and errors to the error stream. Exit codes: 0 done; 1 could not be done (cloud,
network, disk, interrupted); 2 what was given can't be used. Some options are variables too: see common.option.
Test: pytest tests/test_cli.py
"""

from __future__ import annotations

import codecs
import io
import os
import sys

import click

from sideplug.cli import variables
from sideplug.cli.common import group
from sideplug.contract.errors import SideplugError
from sideplug.terminal import say

__all__ = ["group", "main"]


def escape(error: UnicodeError) -> tuple[str, int]:
    """The handler of characters that an encoding can't hold: as \\u escapes, two for an emoji, as JSON has them."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4)), error.end


def main(args: list[str] | None = None) -> None:
    """The entry point: one plain sentence and the exit code for whatever goes wrong."""
    codecs.register_error("sideplug", escape)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="sideplug")
    try:
        variables.apply()
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
