"""What the public API adds to the rooms: `load`, `remember` and `train` in one call each. `import sideplug` has them.

Test: pytest tests/test_api.py
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sideplug.contract.defaults import DEFAULT_URL
from sideplug.contract.errors import CloudError, DataError, NoNetwork, Stopped
from sideplug.contract.text import Prompt
from sideplug.device import elsewhere
from sideplug.device.client import Client
from sideplug.paths import plugins_dir
from sideplug.plugins import Plugin
from sideplug.readers import Example, read
from sideplug.readers.records import check_example
from sideplug.terminal import progress, say

if TYPE_CHECKING:
    from sideplug.device.address import Address
    from sideplug.memory.store import Entry
    from sideplug.training.pipeline import Tell

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
    kind: str = "ladder",
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
    is, which reads each example once. kind, width: of the plugin; width 0 takes the kind's own. epochs: at most; 0: as
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
    part = recipe.new_plugin(client.model()).trained
    examples = readable(client, examples, part.tap, part.context, skip_bad, tell)
    texts = pipeline.Texts.prepare(examples, recipe, Path(retain) if retain is not None else None)

    @contextlib.contextmanager
    def show(label: str, total: int) -> Iterator[Tell]:
        if quiet:
            yield lambda done, losses: None
            return
        with progress(label, total) as draw:
            yield lambda done, losses: draw(done, losses.line if losses else "")

    @contextlib.contextmanager
    def uninterrupted() -> Iterator[Callable[[], bool]]:
        yield lambda: False

    def begin() -> None:
        if remember:
            remember_questions(examples, folder, tell)

    pipeline.make(client, texts, folder, recipe, show, uninterrupted, resume, check=check, begin=begin)
    with contextlib.suppress(Stopped):  # `plugin list` will not show it
        elsewhere.remember(plugins_dir(), folder)
    return load(folder)


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
    from sideplug.memory import book
    from sideplug.memory.weights import fetch_encoder

    say_ = (lambda line: None) if quiet else say
    entries = [entry_of(example) for example in _examples(data, skip_bad, say_)]
    book.check(entries)
    try:
        fetch_encoder(say_)
    except NoNetwork as error:
        say_(f"{error}; until it can be fetched, questions are found by words alone")
    told = book.change(Path(folder), partial(book.tell, entries=entries), must_be=False)
    if cloud is not None:
        with contextlib.suppress(CloudError):
            Client.at(cloud).connect(load(folder)).close()
    return told.numbers


def remember_questions(examples: Sequence[Example], folder: Path, tell: Callable[[str], None]) -> int:
    """Tell the plugin in `folder` the questions with short replies among these examples; return how many there are.

    Raises PluginError, Stopped.
    """
    from sideplug.memory import book
    from sideplug.memory.weights import fetch_encoder

    entries = book.questions([entry_of(example) for example in examples])
    if not entries:
        return 0
    try:
        fetch_encoder(tell)
    except NoNetwork as error:
        tell(f"{error}; until it can be fetched, questions are found by words alone")
    book.change(folder, partial(book.tell, entries=entries), must_be=False)
    tell(
        f"{folder} remembers {len(entries)} questions with their replies, word for word: sideplug memory list shows "
        "them, --no-remember leaves them out"
    )
    return len(entries)


def entry_of(example: Example, date: str = "") -> Entry:
    """What a memory keeps of an example: its last question with the reply, or the text as a note."""
    from sideplug.memory.store import Entry

    asked = [each["content"] for each in example.prompt.messages or () if each["role"] == "user"]
    return Entry(asked[-1] if asked else "", example.reply, example.where, date)


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
