"""sideplug remember, and sideplug memory …: what a plugin was told.

Test: pytest tests/test_cli_memory.py tests/test_cli_memory_shown.py
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sideplug.cli.common import (
    FOLDER,
    Reading,
    cloud_options,
    command,
    group,
    json_option,
    option,
    preview_option,
    print_json,
    reading_options,
    required_plugin_option,
    show_preview,
)
from sideplug.cli.session import (
    Cloud,
    check_utf8,
    data_or_stdin,
    interrupts,
    passphrase_of,
)
from sideplug.contract.errors import InputError
from sideplug.terminal import counted, say, tell

if TYPE_CHECKING:
    from sideplug.device.plugin_store import PluginStore
    from sideplug.memory.part import Memory
    from sideplug.memory.store import Entry

NUMBER = click.IntRange(1)  # of an entry
SHOWN = 72  # characters of an entry in a list


@command("remember", 'sideplug remember "The spare key hangs by the cellar door." --plugin my-plugin')
@click.argument("told", nargs=-1, metavar="[TEXT|FILE|FOLDER]...")
@required_plugin_option
@option("--question", metavar="TEXT", help="What is asked; give its --reply too.")
@option("--reply", metavar="TEXT", help="The reply to --question, as it is to be said.")
@option("--date", metavar="YYYY-MM-DD", default="", help="The day that it is about, where a row names none.")
@cloud_options
@reading_options
@option("--watch", type=FOLDER, metavar="FOLDER", help="Keep the memory in step with the files of a folder.")
@preview_option
@json_option
@click.pass_context
def remember(
    context: click.Context,
    told: tuple[str, ...],
    folder: Path,
    question: str | None,
    reply: str | None,
    date: str,
    cloud: Cloud,
    reading: Reading,
    preview: bool,
    watch: Path | None,
    as_json: bool,
) -> None:
    """Tell your plugin something. It knows it at once, without training.

    A sentence is a note. A file or folder has questions with replies, or notes: all that train reads. - is standard
    input. DIR is made where there is none. A question that was told before with another reply is replaced by the newer
    one, and that is told.

    What is told stays on this device. The cloud's base reads each reply once, for its tokens; where no cloud answers,
    that is done at the next connection.
    """
    entries = list(_pair(question, reply, date))
    for each in told:
        entries += _entries(context, each, date, reading, folder)
    if watch is not None:
        if entries or as_json or not watch.is_dir():
            raise InputError(f"--watch must be given a folder, and nothing else to remember, got {watch}")
        _follow(watch, folder, date, cloud, reading, preview)
        return
    if not entries:
        raise InputError("there is nothing to remember: give a text, a file, or --question with --reply")
    if preview:
        show_preview(entries, "the cloud would read each reply once", as_json)
        return
    _remembered(folder, entries, cloud, as_json)


def _follow(watched: Path, folder: Path, date: str, cloud: Cloud, reading: Reading, preview: bool) -> None:
    """See follow.follow."""
    from sideplug.api import entry_of
    from sideplug.cli.follow import follow

    def read(root: Path) -> list[Entry]:
        return [entry_of(example, date) for example in reading.read(root, folder)]

    if preview:
        show_preview(read(watched), "the cloud would read each reply once", False)
        return
    remember = partial(_remembered, folder, cloud=cloud, as_json=False)
    follow(watched, folder, read, remember, partial(_forgotten, folder))


def _forgotten(folder: Path, numbers: Sequence[int]) -> None:
    """Forget entries in the memory, and wherever else a plugin has them."""
    from sideplug.api import forget

    line = forget(numbers, folder, quiet=True)
    if line:
        say(line)


def _remembered(folder: Path, entries: Sequence[Entry], cloud: Cloud, as_json: bool) -> None:
    """Tell a plugin these entries, and say what became of them."""
    from sideplug.api import remember_entries

    result, why = remember_entries(folder, entries, cloud.client, _say, counted)
    for old, _ in result.replaced:
        say(f"this replaces entry {old.number}, {_line(old)} (sideplug memory restore {old.number} brings it back)")
    for old, new in result.doubtful:
        say(
            f"entry {new.number} may contradict entry {old.number}, {_line(old)}: both hold; "
            f"sideplug memory edit {old.number} --reply TEXT corrects it, sideplug memory forget {old.number} ends it"
        )
    count = len(result.numbers)
    known = f", {result.known} {'was' if result.known == 1 else 'were'} known" if result.known else ""
    if as_json:
        numbers = {
            "numbers": result.numbers,
            "known": result.known,
            "replaced": [old.number for old, _ in result.replaced],
            "doubtful": [old.number for old, _ in result.doubtful],
        }
        print_json({"plugin": str(folder), **numbers, "read": not why, "why": why})
        return
    end = f"it can be said as soon as a cloud has read it ({why})" if why else "ask for it"
    tell(f"{folder} remembers {count} more {'entry' if count == 1 else 'entries'}{known}; {end}")


def _pair(question: str | None, reply: str | None, date: str) -> Iterable[Entry]:
    from sideplug.memory.store import Entry

    if (question is None) != (reply is None):
        raise InputError("--question and --reply must be given together")
    if question is not None and reply is not None:
        if not question.strip():
            raise InputError("--question must not be empty: give a note as a text, without it")
        yield Entry(check_utf8(question), check_utf8(reply), date=date)


def _entries(context: click.Context, told: str, date: str, reading: Reading, folder: Path) -> list[Entry]:
    """The entries of one argument: a path, - or a note's text."""
    from sideplug.api import entry_of
    from sideplug.memory.store import Entry
    from sideplug.readers import SUFFIXES

    if not told.strip():
        raise InputError("a text, file or folder must not be empty")
    path = Path(told)
    if told != "-" and not _is_there(path):
        if len(told.split()) < 2 or path.suffix.lower() in SUFFIXES:
            raise InputError(f"there is no file or folder {told}; a note must be a sentence")
        return [Entry("", check_utf8(told), date=date)]
    source = context.with_resource(data_or_stdin(path))
    return [entry_of(example, date) for example in reading.read(source, folder)]


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long for a path, or with a null byte
        return False


def entries_of_files(
    files: Sequence[tuple[str, bytes]], reading: Mapping[str, object], tell: Callable[[str], None]
) -> list[Entry]:
    """Return the entries of files that were dropped on the gateway's page. Raises DataError, InputError."""
    from sideplug.api import entry_of
    from sideplug.readers.dropped import read_dropped

    return [entry_of(example) for example in read_dropped(files, reading, tell)]


def preview_files(files: Sequence[tuple[str, bytes]], reading: Mapping[str, object], is_told: bool) -> dict[str, Any]:
    """What would be read of such files, to be told to a memory or to be learnt. Raises DataError, InputError."""
    from sideplug.api import entry_of
    from sideplug.readers.dropped import preview

    return preview(files, reading, entry_of) if is_told else preview(files, reading)


def forgotten(folder: Path, numbers: Sequence[int]) -> tuple[list[Entry], str]:
    """Forget entries completely; return what they were, and a line that says what still holds them, or "".

    Raises InputError, PluginError, Stopped.
    """
    from sideplug.api import forget_entries

    gone, left = forget_entries(folder, numbers)
    return gone, left.line(folder)


def fetch_encoder_for(plugins: PluginStore) -> None:
    """Fetch the sentence encoder, unless it is there or not wanted, for all plugins. Raises NoNetwork."""
    from sideplug.memory.weights import encoder_path, fetch_encoder

    was_there = encoder_path().is_file()
    fetch_encoder(say)
    if encoder_path().is_file() and not was_there:
        plugins.reload()


def _have_read(cloud: Cloud, folder: Path) -> str:
    """Have the base read what is new; why that could not be, "" if it was."""
    from sideplug.api import have_read

    return have_read(folder, cloud.client, counted)


def _say(line: str) -> None:
    say(f"sideplug: {line}")


@group.group("memory")
def memory_group() -> None:
    """See, change and forget what a plugin remembers."""


def _opened(folder: Path) -> Memory:
    from sideplug.memory import book

    return book.open_memory(folder, lambda: passphrase_of(folder.name))


def _line(entry: Entry) -> str:
    from sideplug.memory.part import shortened

    return repr(shortened(entry.title, SHOWN)) + ("" if entry.is_note else f" → {shortened(entry.reply, SHOWN)!r}")


def _json(entry: Entry) -> dict[str, Any]:
    kept = {"number": entry.number, "instruction": entry.question, "output": entry.reply}
    return {
        **kept,
        "source": entry.source,
        "date": entry.date,
        "told": entry.told,
        "replaced_by": entry.replaced_by or None,
    }


def _print(entries: Iterable[Entry], as_json: bool) -> None:
    entries = list(entries)
    if as_json:
        print_json([_json(entry) for entry in entries])
        return
    for entry in entries:
        day = f"  ({entry.date})" if entry.date else ""
        gone = f"  (replaced by {entry.replaced_by})" if entry.replaced_by else ""
        tell(f"{entry.number:6}  {_listed(entry)}{day}{gone}")


def _listed(entry: Entry) -> str:
    """An entry in a list: a note begins with where it is from, and of how many sentences it is where it has several."""
    from sideplug.memory.part import shortened
    from sideplug.memory.words import sentences

    if not entry.is_note:
        return _line(entry)
    count = len(sentences(entry.reply))
    about = ", ".join([entry.source] * bool(entry.source) + [f"{count} sentences"] * (count > 1))
    start = shortened(entry.title, SHOWN)
    start += " …" if count > 1 and not start.endswith("…") else ""
    return (f"{about}: " if about else "") + repr(start)


@memory_group.command("list", epilog="Example:  sideplug memory list --plugin my-plugin")
@required_plugin_option
@json_option
def memory_list(folder: Path, as_json: bool) -> None:
    """List all entries, in the order in which they were told."""
    entries = list(_opened(folder).store.entries())
    _print(entries, as_json)
    if not entries and not as_json:
        say(f"sideplug: {folder} remembers nothing yet")


@memory_group.command("show", epilog="Example:  sideplug memory show 3 --plugin my-plugin")
@click.argument("number", type=NUMBER)
@required_plugin_option
@json_option
def memory_show(number: int, folder: Path, as_json: bool) -> None:
    """Show an entry whole, with where it came from and when."""
    entry = _opened(folder).store.entry(number)
    if as_json:
        print_json(_json(entry))
        return
    shown = {"question": entry.question, "reply" if entry.question else "note": entry.reply, "from": entry.source}
    for name, value in {**shown, "about": entry.date, "told": entry.told}.items():
        if value:
            tell(f"{name:9} {value}")
    if entry.replaced_by:
        tell(f"{'replaced':9} by entry {entry.replaced_by}")


@memory_group.command("search", epilog='Example:  sideplug memory search "Where is the spare key?" --plugin my-plugin')
@click.argument("question")
@required_plugin_option
@json_option
def memory_search(question: str, folder: Path, as_json: bool) -> None:
    """Show what would be found for a question, and how certain it is. No cloud is asked."""
    memory = _opened(folder)
    found = memory.judged(check_utf8(question))[:8]
    if as_json:
        print_json(
            [{"number": each.entry.number, "text": each.text, "certainty": round(each.certainty, 4)} for each in found]
        )
        return
    for each in found:
        said = f"{each.entry.question!r} → {each.text!r}" if each.entry.question else repr(each.text)
        verdict = "said  " if memory.says(question, each) else "unsaid"
        tell(f"{each.entry.number:6}  {each.certainty:6.1%} {verdict}  {said}")
    if not found:
        say("sideplug: nothing is near that")


@memory_group.command("edit", epilog='Example:  sideplug memory edit 3 --reply "Behind the clock." --plugin my-plugin')
@click.argument("number", type=NUMBER)
@required_plugin_option
@option("--question", metavar="TEXT", help="Another question.")
@option("--reply", metavar="TEXT", help="Another reply, or another text of a note.")
@cloud_options
def memory_edit(number: int, folder: Path, question: str | None, reply: str | None, cloud: Cloud) -> None:
    """Put other words in an entry's place."""
    from sideplug.memory import book

    if question is None and reply is None:
        raise InputError("nothing is to be changed: give --question or --reply")

    asked, said = (None if each is None else check_utf8(each) for each in (question, reply))
    book.change(folder, partial(book.edit, number=number, question=asked, reply=said))
    why = _have_read(cloud, folder)
    tell(
        f"entry {number} of {folder} is changed"
        + (f"; it can be said as soon as a cloud has read it ({why})" if why else "")
    )


@memory_group.command("forget", epilog="Example:  sideplug memory forget 3 7 --plugin my-plugin")
@click.argument("numbers", type=NUMBER, nargs=-1, metavar="NUMBER...")
@required_plugin_option
@option("--retrain", is_flag=True, help="Train the trained part anew on what is left; without numbers, only that.")
@cloud_options
def memory_forget(numbers: tuple[int, ...], folder: Path, retrain: bool, cloud: Cloud) -> None:
    """Forget entries completely: their words, tokens and vectors are overwritten, and all that training kept of them.

    They are taken off the tape, out of the drafts and out of earlier versions. What a trained part learnt from them
    stays in its numbers until it is trained anew: --retrain does that, on this device, with the head of the cloud's
    base.
    """
    from sideplug.api import forget_entries
    from sideplug.cli.train import training_progress
    from sideplug.plugins.file import is_plugin, is_trained
    from sideplug.training import forgetting

    if not numbers and not retrain:
        raise click.UsageError("Missing argument 'NUMBER...'.")
    left = None
    if numbers:
        gone, left = forget_entries(folder, numbers)
        for entry in gone:
            tell(f"forgotten: {_line(entry)}")
    if retrain and is_plugin(folder) and not is_trained(folder):
        say(f"sideplug: {folder} has no trained part: there is nothing to train again")
    elif retrain and (left is None or left.learnt):
        tell(forgetting.retrain(cloud.client, folder, training_progress, interrupts))
    elif left and left.line(folder):
        say(f"sideplug: {left.line(folder)}")
    elif retrain:
        say("sideplug: its trained part learnt nothing from that: it stays as it is")


@memory_group.command("restore", epilog="Example:  sideplug memory restore 3 --plugin my-plugin")
@click.argument("number", type=NUMBER)
@required_plugin_option
@cloud_options
def memory_restore(number: int, folder: Path, cloud: Cloud) -> None:
    """Let an entry hold again that a newer one replaced; the newer one is replaced by it."""
    from sideplug.memory import book

    newer = book.change(folder, partial(book.restore, number=number))
    _have_read(cloud, folder)
    tell(f"entry {number} holds again, instead of entry {newer.number}")


@memory_group.command("settings", epilog="Example:  sideplug memory settings --unknown say --plugin my-plugin")
@required_plugin_option
@option("--certain", metavar="P", help="Say what was told above this certainty, 0.3 to 0.99; default: as shipped.")
@option("--doubt", type=click.Choice(["base", "ask"]), help="Below it: ask back, or leave it to the base model.")
@option("--unknown", type=click.Choice(["base", "say"]), help="Say that you never told it, or leave it to the base.")
@cloud_options
@json_option
def memory_settings(
    folder: Path, certain: str | None, doubt: str | None, unknown: str | None, cloud: Cloud, as_json: bool
) -> None:
    """Show or change what a memory does where it is not certain.

    sideplug gate curve shows what each certainty answers, and what of it is wrong. Questions about you are known from
    others by the sentence encoder, in English; about 4 in 100 general prompts are taken for one.
    """
    from sideplug.memory import book
    from sideplug.memory.part import CERTAIN

    changes: dict[str, Any] = {name: value for name, value in (("doubt", doubt), ("unknown", unknown)) if value}
    if certain is not None:
        changes["certain"] = None if certain == "default" else _number(certain)
    settings = book.change(folder, partial(book.set_, changes=changes)) if changes else _opened(folder).settings
    why = _have_read(cloud, folder) if changes.keys() & {"doubt", "unknown"} else ""
    if as_json:
        print_json({"certain": settings.certain, "doubt": settings.doubt, "unknown": settings.unknown})
        return
    shown = f"{CERTAIN} (as shipped)" if settings.certain is None else f"{settings.certain:g}"
    tell(f"certain   {shown}\ndoubt     {settings.doubt}\nunknown   {settings.unknown}")
    if why:
        say(f"sideplug: this holds as soon as a cloud has read what is to be said ({why})")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--certain must be a number or default, got {text[:40]!r}") from None


@memory_group.command("export", epilog="Example:  sideplug memory export told.jsonl --plugin my-plugin")
@click.argument("file", type=FOLDER, metavar="FILE")
@required_plugin_option
def memory_export(file: Path, folder: Path) -> None:
    """Write all entries that hold as JSON lines, which remember and train read; - is standard output."""
    from sideplug.paths import write_aside, writing

    entries = [entry for entry in _opened(folder).store.entries() if not entry.replaced_by]
    lines = [json.dumps(_exported(entry), ensure_ascii=False) for entry in entries]
    text = "".join(line + "\n" for line in lines)
    if str(file) == "-":
        sys.stdout.write(text)
        return
    with writing(file):
        write_aside(file, text.encode())
    tell(f"{len(lines)} entries are in {file}")


def _exported(entry: Entry) -> dict[str, str]:
    words = {"instruction": entry.question, "output": entry.reply} if entry.question else {"text": entry.reply}
    return words | ({"date": entry.date} if entry.date else {})
