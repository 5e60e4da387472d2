"""sideplug config and sideplug doctor: where settings come from, and whether all that is needed is there.

Test: pytest tests/test_cli_config.py
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path

import click

from sideplug.cli.common import (
    cloud_options,
    command,
    group,
    json_option,
    plugin_option,
    print_json,
)
from sideplug.cli.session import Cloud
from sideplug.cli.variables import OTHERS, SECRET, read_file
from sideplug.contract.errors import InputError, SideplugError
from sideplug.contract.version import __version__
from sideplug.paths import cache_dir, config_file, plugins_dir

LEAST_FREE = 1 << 30  # bytes on the disk of the cache and of the plugins
MOST_OFF_S = 120  # of the clocks of this machine and the cloud
SLOW_MS = 300  # to the cloud and back


@dataclass(frozen=True)
class Setting:
    """A variable, its option ("" without one), what is known of it, its value and where that comes from."""

    variable: str
    option: str
    help: str
    value: str
    where: str

    @property
    def shown(self) -> str:
        """The value, but of a secret only that there is one."""
        return "(set, not shown)" if self.variable in SECRET and self.value else self.value


def every_option() -> Iterator[tuple[str, str, str, str]]:
    """(variable, option, help, default) of all options that have a variable, each variable once."""
    seen = set[str]()

    def walk(found: click.Command, context: click.Context) -> Iterator[tuple[str, str, str, str]]:
        if isinstance(found, click.Group):
            for name in found.list_commands(context):
                child = found.get_command(context, name)
                if child is not None:
                    yield from walk(child, context)
            return
        for each in found.params:
            if isinstance(each, click.Option) and isinstance(each.envvar, str) and each.envvar not in seen:
                seen.add(each.envvar)
                default = each.get_default(context)
                yield each.envvar, each.opts[0], each.help or "", "" if default is None else str(default)

    yield from walk(group, click.Context(group))


def settings() -> list[Setting]:
    """All settings as a command would have them. Raises InputError for a file with a name that is none."""
    held = read_file()
    environ = _without(held)
    rows = [*every_option(), *((name, "", what, "") for name, what in OTHERS.items())]
    known = {name for name, *_ in rows}
    unknown = [name for name in held if name not in known]
    if unknown:
        keys = ", ".join(sorted(name.removeprefix("SIDEPLUG_").lower().replace("_", "-") for name in known))
        raise InputError(
            f"{config_file()}: there is no setting {unknown[0].removeprefix('SIDEPLUG_').lower()!r}; there are: {keys}"
        )
    found = []
    for name, option, what, default in rows:
        where = "variable" if name in environ else "file" if name in held else "default"
        value = environ.get(name, held.get(name, default))
        found.append(Setting(name, option, what, value, where))
    return found


def _without(held: dict[str, str]) -> dict[str, str]:
    """The variables of this process that the file has not set. (One that both have, with one value, is the file's.)"""
    return {name: value for name, value in os.environ.items() if held.get(name) != value}


@group.group("config", epilog="Example:  sideplug config show")
def config_group() -> None:
    """See your settings."""


@config_group.command("show", epilog="Example:  sideplug config show")
@click.option("--all", "every", is_flag=True, help="Those too that nobody has set.")
@json_option
def show(every: bool, as_json: bool) -> None:
    """Show each setting, and where it comes from.

    An option on the command line comes before its variable, a variable before the file, and the file before what holds
    without any. The file is TOML: cloud = "wss://that-machine:8765" stands for --cloud and SIDEPLUG_CLOUD, and port
    = 9000 below [gateway] for SIDEPLUG_GATEWAY_PORT. Secrets are not shown.
    """
    found, file = settings(), config_file()
    if as_json:
        rows = [{"variable": each.variable, "value": each.shown, "from": each.where} for each in found]
        print_json({"file": str(file), "is_there": file.is_file(), "settings": rows})
        return
    click.echo(f"file: {file}{'' if file.is_file() else ' (not there)'}")
    for each in found:
        if every or each.where != "default":
            click.echo(f"{each.variable:30} {each.shown or '-':32} {each.where}")
    if not every:
        click.echo("all others hold as they are; --all shows them")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. good: True, False, or None where there is nothing to be said for or against it."""

    what: str
    good: bool | None
    line: str


@command("doctor", "sideplug doctor")
@cloud_options
@plugin_option
@json_option
@click.pass_context
def doctor(context: click.Context, cloud: Cloud, folder: Path | None, as_json: bool) -> None:
    """See whether all that is needed is there: versions, settings, cloud, key, base, plugins, disk.

    What it prints holds no key, no word of yours, and your home folder as ~: it can be shown to others. It ends with 1
    where something is wrong.
    """
    found = list(_findings(cloud, folder))
    bad = [each for each in found if each.good is False]
    if as_json:
        print_json({"good": not bad, "findings": [{**vars(each), "line": _safe(each.line, cloud)} for each in found]})
    else:
        marks = {True: "ok", False: "!!", None: "--"}
        for each in found:
            click.echo(f"{marks[each.good]}  {each.what:10} {_safe(each.line, cloud)}")
        click.echo(
            "all is well" if not bad else f"{len(bad)} of {len(found)} need a hand: {', '.join(b.what for b in bad)}"
        )
    context.exit(1 if bad else 0)


def _safe(line: str, cloud: Cloud) -> str:
    """A line without keys and without the home folder's name."""
    for secret in (cloud.address.key, *(os.environ.get(name, "") for name in SECRET)):
        if secret:
            line = line.replace(secret, "(key)")
    return line.replace(str(Path.home()), "~")


def _findings(cloud: Cloud, folder: Path | None) -> Iterator[Finding]:
    system = f"{platform.system()} {platform.machine()}"
    yield Finding("versions", True, f"sideplug {__version__}, Python {platform.python_version()}, {system}")
    yield _tried("settings", _settings)
    extras = {"files": "pypdf", "seal": "cryptography", "plot": "matplotlib", "cloud": "onnxruntime"}
    there = [name for name, package in extras.items() if importlib.util.find_spec(package)]
    yield Finding("extras", None, f"installed: {', '.join(there) or 'none'} (of {', '.join(extras)})")
    yield from _cloud(cloud)
    yield from _plugins(cloud, folder)
    yield _tried("encoder", _encoder)
    for what, path in (("cache", cache_dir()), ("plugins", plugins_dir())):
        yield _disk(what, path)


def _tried(what: str, look: Callable[[], Finding]) -> Finding:
    try:
        return look()
    except SideplugError as error:
        return Finding(what, False, str(error))


def _settings() -> Finding:
    given = [each for each in settings() if each.where != "default"]
    names = ", ".join(f"{each.variable} ({each.where})" for each in given)
    return Finding("settings", True, names or "none is set: all hold as they are")


def _cloud(cloud: Cloud) -> Iterator[Finding]:
    from sideplug.contract.wire import VERSION
    from sideplug.device.address import get_with_date

    url, started = cloud.address.url, time.monotonic()
    try:
        _, date = get_with_date(cloud.address, "/health")
    except SideplugError as error:
        yield Finding("cloud", False, str(error))
        return
    took_ms = 1000 * (time.monotonic() - started)
    yield Finding("cloud", took_ms < SLOW_MS, f"{url} answers in {took_ms:.0f} ms")
    yield _clock(date)
    try:
        model = cloud.client.model()
        started = time.monotonic()
        cloud.session().close()
        took_ms = 1000 * (time.monotonic() - started)
        yield Finding("key", True, f"a session opens in {took_ms:.0f} ms, wire {VERSION}")
        yield Finding("base", True, f"{model.name} ({model.fingerprint[:12]}), {model.context:,} tokens of context")
    except SideplugError as error:
        yield Finding("key", False, str(error))


def _clock(said: str) -> Finding:
    try:
        off_s = time.time() - parsedate_to_datetime(said).timestamp()
    except (TypeError, ValueError):
        return Finding("clock", None, "the cloud does not tell its time")
    if abs(off_s) <= MOST_OFF_S:
        return Finding("clock", True, f"as the cloud's, within {abs(off_s):.0f} s")
    way = "ahead of" if off_s > 0 else "behind"
    return Finding("clock", False, f"{abs(off_s):,.0f} s {way} the cloud's: certificates and days will be wrong")


def _plugins(cloud: Cloud, folder: Path | None) -> Iterator[Finding]:
    from sideplug.device.plugin_store import PluginStore

    base = ""
    try:
        base = cloud.client.model().fingerprint
    except SideplugError:
        pass
    folders = [folder] if folder else [plugins_dir() / each.name for each in PluginStore(plugins_dir()).entries()]
    if not folders:
        yield Finding("plugin", None, "none yet: sideplug remember or sideplug train makes one")
    for each in folders:
        yield _plugin(each, base)


def _plugin(folder: Path, base: str) -> Finding:
    from sideplug.memory.book import memory_of
    from sideplug.plugins import ANY_BASE, Plugin
    from sideplug.plugins.file import is_sealed

    if is_sealed(folder) and not os.environ.get("SIDEPLUG_PASSPHRASE"):
        return Finding("plugin", None, f"{folder} is sealed")
    try:
        plugin = Plugin.load(folder, lambda: os.environ.get("SIDEPLUG_PASSPHRASE", ""))
    except SideplugError as error:
        return Finding("plugin", False, f"{folder}: {error}")
    memory = memory_of(plugin)
    parts = ", ".join(part.kind_name for part in plugin.parts)
    entries = f", {memory.size:,} entries" if memory is not None else ""
    fits = not base or plugin.base in (base, ANY_BASE)
    whose = "" if fits else f"; it is for another base ({plugin.base_name}), so this cloud can't use it"
    return Finding("plugin", fits, f"{folder}: {parts}{entries}{whose}")


def _encoder() -> Finding:
    from sideplug.memory import weights

    if os.environ.get(weights.OFF):
        return Finding("encoder", None, f"off ({weights.OFF}): a memory finds by words alone")
    if weights.encoder_path().is_file():
        return Finding("encoder", True, "the sentence encoder is there")
    return Finding("encoder", None, "the sentence encoder is fetched by the first sideplug remember (83 MB)")


def _disk(what: str, path: Path) -> Finding:
    there = next(each for each in (path, *path.parents) if each.exists())
    free = shutil.disk_usage(there).free
    writable = os.access(there, os.W_OK)
    line = f"{path}: {free / 2**30:.1f} GiB free" + ("" if writable else ", but it can't be written to")
    return Finding(what, writable and free >= LEAST_FREE, line)
