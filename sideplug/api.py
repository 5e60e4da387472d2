"""What the public API adds to the rooms: `load`, `remember` and `train` in one call each. `import sideplug` has them.

Test: pytest tests/test_api.py
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sideplug.contract.defaults import DEFAULT_URL
from sideplug.contract.errors import DataError, SideplugError, Stopped
from sideplug.contract.text import Prompt
from sideplug.device import elsewhere
from sideplug.device.client import Client
from sideplug.paths import plugins_dir
from sideplug.plugins import Plugin
from sideplug.readers import Example, read
from sideplug.readers.records import check_example
from sideplug.terminal import counted, progress, say

if TYPE_CHECKING:
    from sideplug.device.address import Address
    from sideplug.memory.book import Told
    from sideplug.memory.part import Memory
    from sideplug.memory.store import Entry
    from sideplug.training.forgetting import Left
    from sideplug.training.pipeline import Show, Tell

Data = str | Path | Sequence[str | tuple[str, str] | Example]


def load(folder: str | Path, passphrase: str = "") -> Plugin:
    """The plugin in a folder. Raises PluginError where there is no whole one, or the passphrase is wrong.

    >>> plugin = sideplug.load("my-plugin")
    >>> plugin.trained.kind_name
    'ladder'
    """
    return Plugin.load(Path(folder), lambda: passphrase)


def train(
    data: Data,
    out: str | Path,
    cloud: str | Address = DEFAULT_URL,
    *,
    kind: str = "",
    trunk: str = "",
    width: int = 0,
    epochs: int = 0,
    held_out: float = 0.1,
    reword: bool = True,
    retain: str | Path | None = None,
    retain_weight: float = 1.0,
    seed: int = 0,
    remember: bool = True,
    resume: bool = False,
    replace: bool = False,
    skip_bad: bool = False,
    quiet: bool = False,
) -> Plugin:
    """Train a plugin on this device, save it in the folder `out`, and return it.

    data: a file or folder, or a list of texts, of (question, answer) pairs, or of Examples. cloud: where the base model
    is, which reads each example once. kind, width: of the plugin; kind "" takes the one that suits the examples,
    width 0 the kind's own. trunk: what a plugin of manner begins with, by its name or file; "": the newest that is
    installed for the base, "none": nothing. epochs: at most; 0: as
    many as the examples need. held_out: the share of examples to stop by, 0 for none. reword: ask told questions in
    other words too. remember: keep questions with short replies in the plugin's memory too. retain: a file of prompts
    on which the plugin learns to leave the base as it is (none: sideplug's own); retain_weight 0 trains without.
    resume: go on from the checkpoint in `out`. replace: a plugin or a checkpoint that is in `out`. skip_bad: leave out
    rows that can't be learnt. quiet: show no progress on the error stream, nor what is not learnt. Raises DataError,
    InputError, CloudError, Stopped.

    >>> pairs = [("Where is the mill?", "By the river."), ("Where is the inn?", "On the hill.")] * 3
    >>> plugin = sideplug.train(pairs, "my-plugin", cloud, epochs=2, quiet=True)
    >>> plugin.trained.size
    132288
    >>> with sideplug.connect(cloud, plugin) as session:
    ...     text = session.generate("Where is the mill?", max_tokens=5).text
    """
    from sideplug.plugins.base import trained_kind
    from sideplug.training import pipeline
    from sideplug.training.fit import TrainConfig
    from sideplug.training.preflight import readable
    from sideplug.training.recipe import Recipe

    folder = Path(out)
    config = TrainConfig(seed=seed, retain_weight=retain_weight)
    recipe = Recipe(kind, width=width, training=config, held_out=held_out, reword=reword).with_epochs(epochs)

    def check() -> None:
        pipeline.check_out(folder, resume, replace, ("resume=True", "replace=True"))

    pipeline.check_early(folder, check)
    tell = (lambda line: None) if quiet else say
    client = Client.at(cloud)
    examples = _examples(data, skip_bad, tell)
    model = client.model()
    recipe = recipe.suited_to(examples).begun_with(trunk, model.fingerprint)
    part = recipe.new_plugin(model).trained
    examples = readable(client, examples, part.tap, part.context, skip_bad, tell)
    texts = pipeline.Texts.prepare(examples, recipe, Path(retain) if retain is not None else None)

    def begin() -> None:
        if remember and trained_kind(recipe.kind).merge == "add":  # beside one that replaces z nothing can stand
            remember_questions(examples, folder, tell)

    show = _shown(quiet)
    pipeline.make(client, texts, folder, recipe, show, _uninterrupted, resume, check=check, begin=begin)
    with contextlib.suppress(Stopped):  # `plugin list` will not show it
        elsewhere.remember(plugins_dir(), folder)
    return load(folder)


def _shown(quiet: bool) -> Show:
    @contextlib.contextmanager
    def show(label: str, total: int) -> Iterator[Tell]:
        if quiet:
            yield lambda done, losses: None
            return
        with progress(label, total) as draw:
            yield lambda done, losses: draw(done, losses.line if losses else "")

    return show


@contextlib.contextmanager
def _uninterrupted() -> Iterator[Callable[[], bool]]:
    yield lambda: False


def remember(
    data: Data,
    folder: str | Path,
    cloud: str | Address | None = DEFAULT_URL,
    *,
    skip_bad: bool = False,
    quiet: bool = False,
) -> list[int]:
    """Tell the plugin in `folder`, which is made where there is none, something that it knows from now on; no training.

    data: as for `train`; a text is a note, a pair a question with its reply, to be said word for word. A question that
    was told before with another reply is replaced by the newer one. cloud: where the base reads each reply once, for
    its tokens; None, or a cloud that does not answer: at the next connection. Return the numbers of the new entries.
    Raises DataError, InputError, PluginError, Stopped.

    >>> sideplug.remember([("Where is the mill?", "By the river.")], "my-memory", cloud, quiet=True)
    [1]
    >>> with sideplug.connect(cloud, sideplug.load("my-memory")) as session:
    ...     session.generate("Where is the mill?", max_tokens=9).text
    'By the river.'
    """
    say_ = (lambda line: None) if quiet else say
    entries = [entry_of(example) for example in _examples(data, skip_bad, say_)]
    client = Client.at(cloud) if cloud is not None else None
    return remember_entries(Path(folder), entries, client, say_, _uncounted if quiet else counted)[0].numbers


Counted = Callable[[str], contextlib.AbstractContextManager[Callable[[int, int], None]]]  # of a label: see terminal


@contextlib.contextmanager
def _uncounted(label: str) -> Iterator[Callable[[int, int], None]]:
    yield lambda done, count: None


def remember_entries(
    folder: Path, entries: Sequence[Entry], client: Client | None, say: Callable[[str], None], show: Counted
) -> tuple[Told, str]:
    """Tell the plugin in a folder these entries; what became of them, and why no base has read them, "" if it has.

    client: of the cloud whose base is to read them; None: at the next connection. Raises InputError, PluginError,
    Stopped: then nothing is kept.
    """
    from sideplug.memory import book

    with show("taking in") as progress:
        told = book.remember(folder, entries, say, progress)
    try:
        elsewhere.remember(plugins_dir(), folder)
    except Stopped as error:
        say(f"plugin list will not show {folder}: {error}")
    return told, have_read(folder, client, show) if client else "no cloud was asked"


def have_read(folder: Path, client: Client, show: Counted) -> str:
    """Have the base read what is new to it in a plugin; return why that could not be, "" if it was."""
    with show("the base reads it") as progress:
        try:
            replace(client, reading=progress).connect(load(folder)).close()
        except SideplugError as error:  # no cloud, or one with another base than a trained part's
            return str(error)
    return ""


def forget(
    numbers: Sequence[int],
    folder: str | Path,
    cloud: str | Address = DEFAULT_URL,
    *,
    retrain: bool = False,
    quiet: bool = False,
) -> str:
    """Forget entries of the plugin in `folder`: in its memory, on its tapes, in its drafts and earlier versions.

    Return a line that says what still holds them, a trained part, and what ends that; "" where nothing does. retrain:
    train that part anew on what is left; no numbers: only that. cloud: has the base's head, for retrain. quiet: show no
    progress on the error stream. Raises InputError for a number that is not there, PluginError, CloudError, Stopped.

    >>> numbers = sideplug.remember([("Where is the inn?", "On the hill.")], "my-memory", None, quiet=True)
    >>> sideplug.forget(numbers, "my-memory")
    ''
    """
    from sideplug.training import forgetting

    left = forget_entries(Path(folder), numbers)[1] if numbers or not retrain else None
    if left is not None and not (retrain and left.learnt):
        return left.line(Path(folder))
    forgetting.retrain(Client.at(cloud), Path(folder), _shown(quiet), _uninterrupted)
    return ""


def forget_entries(folder: Path, numbers: Sequence[int]) -> tuple[list[Entry], Left]:
    """Forget entries of a plugin completely; return what they were, and what still holds them.

    Raises InputError, PluginError, Stopped; then the memory still has them, and it can be done again.
    """
    from sideplug.memory import book
    from sideplug.plugins.file import read_plugin
    from sideplug.training import forgetting

    def work(memory: Memory) -> tuple[list[Entry], Left]:
        base, left = read_plugin(folder).base_fingerprint, list[forgetting.Left]()

        def elsewhere_too(entries: list[Entry]) -> None:
            ids = [tuple(memory.store.ids_of(each.number, base)) for each in entries]
            gone = [forgetting.Gone(each.question, each.reply, of) for each, of in zip(entries, ids, strict=True)]
            left.append(forgetting.forget(folder, gone))

        return book.forget(memory, numbers, elsewhere_too), left[0]

    return book.change(folder, work)


def remember_questions(examples: Sequence[Example], folder: Path, tell: Callable[[str], None]) -> int:
    """Tell the plugin in `folder` the questions with short replies among these examples; return how many there are.

    Raises PluginError, Stopped.
    """
    from sideplug.memory import book

    entries = book.questions([entry_of(example) for example in examples])
    if not entries:
        return 0
    book.remember(folder, entries, tell)
    tell(
        f"{folder} remembers {len(entries)} questions with their replies, word for word: sideplug memory list shows "
        "them, --no-remember leaves them out"
    )
    return len(entries)


def entry_of(example: Example, date: str = "") -> Entry:
    """What a memory keeps of an example: its last question with the reply, or the text as a note.

    What somebody wrote in a conversation of people is a note too, unless it answers a short question. date: the day of
    those that name none themselves.
    """
    from sideplug.memory.book import SHORT
    from sideplug.memory.store import Entry

    asked = example.question
    if example.is_talk and not (asked.rstrip().endswith(("?", "\uff1f", "\u061f")) and len(asked) <= SHORT):
        asked = ""
    return Entry(asked, example.reply, example.where, example.date or date)


def _examples(data: Data, skip_bad: bool, tell: Callable[[str], None]) -> list[Example]:
    if isinstance(data, (str, Path)):
        return read(Path(data), skip_bad=skip_bad, tell=tell)
    examples = []
    for number, item in enumerate(data, 1):
        where = f"item {number}"
        if isinstance(item, Example):
            examples.append(item)
        elif isinstance(item, str):
            examples.append(Example(Prompt(text=""), item, where))
        elif isinstance(item, tuple) and len(item) == 2 and all(isinstance(part, str) for part in item):
            examples.append(Example(Prompt.user(item[0]), item[1], where))
        else:
            raise DataError(f"{where} must be a text, a (question, answer) pair or an Example, got {item!r:.60}")
        check_example(examples[-1])
    return examples
