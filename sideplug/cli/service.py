"""sideplug service …: the gateway, or a cloud, as a service that starts when you log in.

Linux: a unit of systemd's user manager. macOS: an agent of launchd. Both start `sideplug gateway` (or `serve`) with the
options that are given, and the file of settings (sideplug config show). Test: pytest tests/test_cli_service.py
"""

from __future__ import annotations

import os
import plistlib
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from sideplug.cli.common import group, json_option, print_json
from sideplug.contract.errors import InputError, Stopped
from sideplug.paths import write_aside, writing
from sideplug.terminal import say, tell

WHAT = ("gateway", "serve")
WAIT_S = 30  # for a manager's command


@dataclass(frozen=True)
class Manager:
    """A manager of services. file: what tells it of one. start, stop, ask: its commands, one after the other."""

    name: str
    file: Path
    start: Sequence[Sequence[str]]
    stop: Sequence[Sequence[str]]
    ask: Sequence[str]
    log: str

    @classmethod
    def of(cls, what: str) -> Manager:
        """The manager of this machine. Raises InputError where there is none that is known."""
        if sys.platform == "darwin":
            label = f"org.sideplug.{what}"
            file = Path.home() / "Library" / "LaunchAgents" / f"{label}.plist"
            domain = f"gui/{os.getuid()}"
            return cls(
                "launchd",
                file,
                [["launchctl", "bootstrap", domain, str(file)]],
                [["launchctl", "bootout", f"{domain}/{label}"]],
                ["launchctl", "print", f"{domain}/{label}"],
                f"log show --predicate 'process == \"{label}\"'",
            )
        if not sys.platform.startswith("linux"):
            raise InputError(f"services are known on Linux (systemd) and macOS (launchd), not on {sys.platform}")
        unit = f"sideplug-{what}.service"
        home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
        ctl = ["systemctl", "--user"]
        return cls(
            "systemd",
            home / "systemd" / "user" / unit,
            [[*ctl, "daemon-reload"], [*ctl, "enable", "--now", unit]],
            [[*ctl, "disable", "--now", unit]],
            [*ctl, "is-active", unit],
            f"journalctl --user -u {unit}",
        )

    def text(self, command: Sequence[str], what: str) -> bytes:
        """What stands in the file."""
        if self.name == "launchd":
            about = {"Label": f"org.sideplug.{what}", "ProgramArguments": list(command)}
            return plistlib.dumps({**about, "RunAtLoad": True, "KeepAlive": {"SuccessfulExit": False}})
        return UNIT.format(what=what, command=" ".join(map(_quoted, command))).encode()


UNIT = """\
# Written by sideplug service install. What it needs beside its options stands in the file of settings.
[Unit]
Description=sideplug {what}
After=network-online.target
StartLimitIntervalSec=0

[Service]
ExecStart={command}
Restart=on-failure
RestartSec=5
NoNewPrivileges=true

[Install]
WantedBy=default.target
"""


def _quoted(word: str) -> str:
    """A word of a command as systemd reads it: $ and % doubled, and in quotes where it has spaces."""
    word = word.replace("\\", "\\\\").replace("%", "%%").replace("$", "$$").replace('"', '\\"')
    return f'"{word}"' if not word or any(each.isspace() or each in "'\";" for each in word) else word


def own_command() -> str:
    """The path by which sideplug is started anew. Raises InputError where there is none."""
    beside = Path(sys.executable).with_name("sideplug")
    found = str(beside) if beside.is_file() else shutil.which("sideplug")
    if not found:
        raise InputError("the command sideplug is not found: install the package, with pip or pipx")
    return found


@group.group("service", epilog="Example:  sideplug service install")
def service_group() -> None:
    """Let it run in the background, from your next login on."""


@service_group.command(
    "install",
    epilog="Example:  sideplug service install gateway --plugins ~/plugins",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("what", type=click.Choice(WHAT), default="gateway")
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[OPTIONS OF THAT COMMAND]...")
def install(what: str, options: tuple[str, ...]) -> None:
    """Start the gateway, or a cloud (serve), now and with each login.

    The options behind it are those of sideplug gateway or sideplug serve. A key does not belong there, because others
    can see a command line: it belongs into the file of settings, or a file that --cloud-key-file names.
    """
    secret = [each for each in options if each.split("=")[0] in ("--cloud-key", "--key")]
    if secret:
        raise InputError(f"{secret[0].split('=')[0]} would be seen by others: give {secret[0].split('=')[0]}-file")
    _check(what, options)
    manager = Manager.of(what)
    text = manager.text([own_command(), what, *options], what)
    with writing(manager.file, "the service's file"):
        manager.file.parent.mkdir(parents=True, exist_ok=True)
        write_aside(manager.file, text)
    tell(f"{manager.file} is written")
    failed = next((why for each in manager.start if (why := _run(each))), "")
    if failed:
        raise Stopped(
            f"{manager.name} did not take it ({failed}); when it runs: {' && '.join(map(shlex.join, manager.start))}"
        )
    tell(f"sideplug {what} runs now, and from each login on; {manager.log} shows what it says")


@service_group.command("status", epilog="Example:  sideplug service status")
@json_option
@click.pass_context
def status(context: click.Context, as_json: bool) -> None:
    """Show which services there are, and whether they run; it ends with 1 where one should and does not."""
    rows = []
    for what in WHAT:
        manager = Manager.of(what)
        is_there = manager.file.is_file()
        rows.append((what, is_there, is_there and not _run(manager.ask), manager))
    if as_json:
        print_json({what: {"installed": there, "runs": runs, "file": str(of.file)} for what, there, runs, of in rows})
    else:
        for what, there, runs, manager in rows:
            state = "not installed" if not there else "runs" if runs else f"does not run: {manager.log} says why"
            click.echo(f"{what:10} {state}")
    context.exit(1 if any(there and not runs for _, there, runs, _ in rows) else 0)


@service_group.command("remove", epilog="Example:  sideplug service remove")
@click.argument("what", type=click.Choice(WHAT), default="gateway")
def remove(what: str) -> None:
    """Stop a service, and start it no more. Plugins, settings and keys stay."""
    manager = Manager.of(what)
    if not manager.file.is_file():
        raise InputError(f"there is no service {what}: {manager.file} is not there")
    for each in manager.stop:
        why = _run(each)
        if why:
            say(f"{manager.name} did not stop it ({why})")
    with writing(manager.file, "the service's file"):
        manager.file.unlink()
    tell(f"sideplug {what} is no service any more; your plugins and settings are as they were")


def _check(what: str, options: Sequence[str]) -> None:
    """Raises UsageError for options that the command does not have."""
    command = group.get_command(click.Context(group), what)
    assert command is not None
    command.make_context(f"sideplug {what}", list(options), resilient_parsing=False)


def _run(command: Sequence[str]) -> str:
    """Run a manager's command; "" if it did what it should, else why not."""
    try:
        done = subprocess.run(
            list(command), capture_output=True, encoding="utf-8", errors="replace", timeout=WAIT_S, check=False
        )
    except FileNotFoundError:
        return f"there is no {command[0]} on this machine"
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    said = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return "" if not done.returncode else (said[-1] if said else f"it ended with {done.returncode}")
