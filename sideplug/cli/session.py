"""What the values of shared options become: a session with the cloud, a plugin, a gate, how a reply is decoded.

It imports the one room that a command needs when it needs it. Test: pytest tests/test_cli.py tests/test_cli_device.py
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sideplug.contract.errors import InputError, PluginError, Stopped
from sideplug.terminal import counted, progress, say, tell

if TYPE_CHECKING:
    from sideplug.contract.capabilities import Grammar
    from sideplug.contract.gate import Gate
    from sideplug.contract.sampling import Sampling
    from sideplug.contract.text import Prompt
    from sideplug.device.address import Address
    from sideplug.device.audit import Recorder
    from sideplug.device.client import Client
    from sideplug.device.head import DeviceHead
    from sideplug.device.reply import DecodeOptions
    from sideplug.device.session import Session
    from sideplug.plugins import Plugin


@dataclass(frozen=True)
class Cloud:
    """Where the cloud is, and what hears all messages with it (--transcript)."""

    address: Address
    recorder: Recorder | None = None

    @classmethod
    def chosen(
        cls,
        cloud: str,
        ca: Path | None,
        cloud_key: str,
        cloud_key_file: Path | None,
        pin: str,
        retry: float,
        transcript: Path | None,
    ) -> Cloud:
        """The cloud of the options of common.cloud_options. Raises InputError; Stopped for a transcript that can't be
        written."""
        from sideplug.device.address import Address
        from sideplug.device.audit import Recorder

        key = key_or_file("--cloud-key", cloud_key, cloud_key_file)
        address = Address(cloud, ca, key, pin, retry)
        return cls(address, Recorder(transcript) if transcript else None)

    @property
    def client(self) -> Client:
        """The client that opens sessions; it shows breaks on the error stream."""
        from sideplug.device.client import Client

        return Client(self.address, self.recorder, say)

    def session(self, plugin: Plugin | None = None, gate: Gate | None = None, head: str = "cloud") -> Session:
        """An open session, for a `with` statement; it shows what makes it wait. Raises CloudError and its kin."""
        from sideplug.device.reading import MANY

        with counted("the base reads what your plugin was told, once") as show:
            reading = lambda done, count: show(done, count) if count >= MANY else None  # noqa: E731
            client = replace(self.client, reading=reading, head=head)
            return client.connect(plugin, gate)


def key_or_file(option: str, key: str, file: Path | None) -> str:
    """The key of an option, or of the file that the option with -file names. Raises InputError."""
    from sideplug.paths import read_secret

    if key and file:
        raise InputError(f"{option} and {option}-file can't be given together (a variable counts): give one of them")
    return read_secret(file, "the key file") if file else key


@contextlib.contextmanager
def data_or_stdin(data: Path) -> Iterator[Path]:
    """Yields the path of the data; of - that of a file with what comes on standard input. Raises InputError."""
    if str(data) != "-":
        yield data
        return
    content = b"" if sys.stdin.isatty() else sys.stdin.buffer.read()
    if not content.strip():
        raise InputError("standard input is empty: there is nothing to learn from")
    name = "standard-input.jsonl" if content.lstrip()[:1] in (b"{", b"[") else "standard-input.txt"
    with tempfile.TemporaryDirectory(prefix="sideplug-") as folder:
        (Path(folder) / name).write_bytes(content)
        yield Path(folder) / name


@dataclass(frozen=True)
class GateChoice:
    """What --gate and --gate-rate ask for."""

    gate: str | None
    gate_rate: float | None

    def __post_init__(self) -> None:
        if self.gate and self.gate_rate is not None:
            raise InputError("--gate and --gate-rate can't be given together: --gate open is --gate-rate 1")

    def of(self, plugin: Plugin | None) -> Gate | None:
        """The gate to use; None: the plugin's own. Raises PluginError."""
        from sideplug.contract.gate import Gate

        if plugin is None:
            if self.gate == "open" or self.gate_rate:
                raise PluginError(f"{'--gate open' if self.gate else '--gate-rate'} needs a --plugin to ask")
            return None
        if self.gate_rate is not None:
            return plugin.gate_at_rate(self.gate_rate)
        return Gate(self.gate) if self.gate else None


@dataclass(frozen=True)
class DecodeChoice:
    """What --window, --drafts, --answer-deadline-ms and --head ask for."""

    window: int
    drafts: bool
    answer_deadline_ms: int
    head: str

    @property
    def needs_head(self) -> bool:
        """Whether tokens are to be picked on the device."""
        return self.head == "device"

    def options(self, head: DeviceHead | None = None) -> DecodeOptions:
        """How a reply is decoded: this is the one place that builds DecodeOptions for the commands."""
        from sideplug.device.reply import DecodeOptions

        return DecodeOptions(self.window, self.drafts, self.answer_deadline_ms, head)

    def options_for(self, session: Session) -> DecodeOptions:
        """The same for one session; the base's head is fetched if the session has something to answer with."""
        asked = any(gate.kind != "shut" for gate in session.responder.opening.gates)
        return self.options(fetch_head(session) if self.needs_head and asked else None)


def fetch_head(session: Session) -> DeviceHead:
    """The base's head on this device, from the cache or the cloud. Raises CloudError and its kin."""
    from sideplug.device.head import DeviceHead
    from sideplug.paths import cache_dir

    model = session.model
    with progress("fetching the base's head, once", model.vocab) as show:
        return DeviceHead.fetch(
            session.link, cache_dir() / "heads", model.fingerprint, model.vocab, lambda done: show(done, "")
        )


def sampling(
    temperature: float, top_k: int, top_p: float, min_p: float, repetition_penalty: float, seed: int
) -> Sampling:
    """The Sampling of the options of common.sampling_options. Raises InputError."""
    from sideplug.contract.sampling import Sampling

    return Sampling(temperature, top_k, top_p, repetition_penalty, seed, min_p)


def form(schema: Path | None, regex: str | None) -> Grammar | None:
    """The form of the options of common.form_options. Raises InputError."""
    from sideplug.contract.capabilities import Grammar
    from sideplug.contract.grammar import checked

    if schema is not None and regex is not None:
        raise InputError("--schema and --regex can't be given together: each says what the reply must be")
    if schema is not None:
        try:
            return checked(Grammar("json", schema.read_text("utf-8")))
        except OSError as error:
            raise InputError(f"{schema} can't be read: {(error.strerror or 'it is no file').lower()}") from error
        except UnicodeDecodeError as error:
            raise InputError(f"{schema} can't be read: it is no text in UTF-8") from error
    return checked(Grammar("regex", regex)) if regex is not None else None


def load_plugin(folder: Path) -> Plugin:
    """The plugin in a folder; its passphrase is asked for if it is sealed. Raises PluginError."""
    from sideplug.plugins import Plugin

    return Plugin.load(folder, lambda: passphrase_of(folder.name))


def remember_plugin(folder: Path) -> None:
    """Write down where a plugin was made, for plugin list; where that can't be, it is said."""
    from sideplug.device import elsewhere
    from sideplug.paths import plugins_dir

    try:
        elsewhere.remember(plugins_dir(), folder)
    except Stopped as error:
        say(f"sideplug: plugin list will not show {folder}: {error}")


def load_plugin_if(folder: Path | None) -> Plugin | None:
    """The plugin in a folder; None for no folder."""
    return load_plugin(folder) if folder else None


def passphrase_in_environment() -> str:
    """SIDEPLUG_PASSPHRASE, or ""."""
    return os.environ.get("SIDEPLUG_PASSPHRASE", "")


def passphrase_of(name: str, twice: bool = False) -> str:
    """SIDEPLUG_PASSPHRASE, or what is typed on the terminal; "" if there is neither."""
    given = passphrase_in_environment()
    if given or not sys.stdin.isatty():
        return given
    typed: str = click.prompt(f"Passphrase of {name}", hide_input=True, confirmation_prompt=twice, err=True)
    return typed


def check_utf8(text: str) -> str:
    """The same text. Raises InputError if it isn't UTF-8: Python hands on wrong bytes as lone surrogates, which can't
    be sent."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError("what is given must be UTF-8 text") from error
    return text


def stream_reply(
    session: Session, prompt: Prompt, max_tokens: int, sampling: Sampling, options: DecodeOptions, show: bool
) -> tuple[str, list[int], bool]:
    """(text, ids, whether Ctrl-C interrupted it); with `show` the text appears as it comes."""
    text, interrupted = [], False
    with session.generate(prompt, max_tokens, sampling, options) as reply:
        try:
            for piece in reply:
                text.append(piece.text)
                if show:
                    tell(piece.text, end="")
        except KeyboardInterrupt:
            interrupted = True
    return "".join(text), reply.ids, interrupted


@contextlib.contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Yields `wants_stop()`: whether Ctrl-C (or SIGTERM) has come. A second one raises KeyboardInterrupt."""
    signals: list[int] = []

    def remember(number: int, frame: object) -> None:
        if signals:
            raise KeyboardInterrupt
        signals.append(number)

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(signals)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def peak_rss_mb() -> float | None:
    """The largest resident memory of this process so far, in MB; None where the system does not tell (Windows)."""
    with contextlib.suppress(OSError):  # Linux: getrusage would also count the process that started this one
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024, 1)
    with contextlib.suppress(ImportError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1)
    return None
