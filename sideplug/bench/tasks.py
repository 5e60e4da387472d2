"""The tasks: real text, split by time or by person, with fixed seeds.

It does not know who is compared. Test: pytest tests/bench/test_measures.py
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sideplug.bench import mails, sotu
from sideplug.contract.errors import InputError
from sideplug.contract.text import Prompt
from sideplug.readers import Example, lamp_users, read
from sideplug.readers.lamp import LampUser
from sideplug.terminal import say
from sideplug.training import data

HERE = Path(__file__).parent
PLACES = (HERE / "person", HERE.parents[1] / "examples" / "person")  # in a wheel, in a clone
PERSON = next((path for path in PLACES if path.is_dir()), PLACES[-1])
SHORT_WORDS = 8  # a target of no more is compared exactly
OPENING_WORDS = 40  # of a passage that is continued


@dataclass
class User:
    """A person: examples to learn from (also in a file, for the commands) and later ones that are held out."""

    name: str
    train: list[Example]
    test: list[Example]
    file: Path


@dataclass
class Task:
    """Users, and what they ask for.

    measures: of "loss" (nats a token), "exact" (the target stands in the reply, word for word), "rouge" (ROUGE-L's F1).
    prompts, reply_tokens: of the replies that speed is measured on. general: prompts whose replies must be the base's.
    quality_only: neither speed nor whose text a plugin prefers is measured. others: other people's text of the genre.
    sampled: how replies read is measured.
    """

    name: str
    title: str
    users: list[User]
    measures: tuple[str, ...]
    prompts: list[Prompt]
    reply_tokens: int
    temperature: float = 0.0
    epochs: int = 6
    width: int = 0
    quality_only: bool = False
    sampled: bool = True
    others: Callable[[], list[Example]] | None = None
    general: list[Prompt] = field(default_factory=list)
    targets: dict[str, str] = field(default_factory=dict)  # what must be in a reply, where that is not all of it


def _user(name: str, train: list[Example], test: list[Example], folder: Path) -> User:
    file = folder / f"{re.sub(r'[.,]', '', name).replace(' ', '-')}.jsonl"
    write_examples(train, file)
    return User(name, train, test, file)


def write_examples(examples: list[Example], file: Path) -> None:
    """Write examples into a file that training reads as the same examples."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(_record(example), ensure_ascii=False) + "\n" for example in examples)
    file.write_text("".join(lines), encoding="utf-8")


def _record(example: Example) -> dict[str, Any]:
    if example.prompt.messages is None:
        return {"text": (example.prompt.text or "") + example.reply}
    # The turns before are context: each is an example of its own.
    before = [turn | ({"weight": 0} if turn["role"] == "assistant" else {}) for turn in example.prompt.messages]
    return {"messages": [*before, {"role": "assistant", "content": example.reply}]}


def continued(example: Example) -> Example:
    """Return a passage as its opening words, which everybody is given, and the rest, which is judged."""
    words = example.reply.split(" ")
    opening, rest = " ".join(words[:OPENING_WORDS]), " ".join(words[OPENING_WORDS:])
    return Example(Prompt(text=opening), f" {rest}", example.where) if rest else example


def begun(example: Example) -> Prompt:
    """Return the prompt that a reply is sampled for: the example's, or where that has no words its opening ones."""
    if example.prompt.text != "":
        return example.prompt
    words = example.reply.split(" ")
    return Prompt(text=" ".join(words[: max(1, min(OPENING_WORDS, len(words) // 2))]))


def authors(count: int, passages: int, tested: int, scratch: Path) -> Task:
    """Return the task of so many presidents: passages of their messages but the last, and of the last."""
    people = []
    for who, folder in sotu.messages(*sotu.PRESIDENTS[:count]).items():
        train = data.sample(read(folder / "train"), passages)
        test = [continued(example) for example in data.sample(read(folder / "last.txt"), tested)]
        people.append(_user(who, train, test, scratch / "authors"))
    return Task(
        "authors",
        f"{count} presidents, their last annual message held out",
        people,
        ("loss",),
        [example.prompt for example in people[0].test],
        40,
        temperature=0.7,
        others=other_presidents,
    )


def other_presidents() -> list[Example]:
    """Return passages of the presidents whom no task has: other people's text of the same genre."""
    return [example for examples in sotu.others().values() for example in examples]


def curve(sizes: Sequence[int], presidents: int, passages: int, tested: int, scratch: Path) -> Task:
    """Return the task of a curve of gain against text: each of sotu.CURVE with so many passages, a user each.

    sizes: of the passages that are learnt from, each size a part of the next; 0: all. Of each a ninth more is given, as
    training holds a tenth of all out to stop by. passages: at most so many, 0: any. Tested are whole passages of the
    last message, without an opening.
    """
    people = list[User]()
    for who, folder in sotu.messages(*sotu.CURVE[:presidents]).items():
        texts, test = read(folder / "train"), data.sample(read(folder / "last.txt"), tested)
        mine = []
        for size in sorted(sizes, key=lambda size: size or len(texts), reverse=True):
            texts = data.sample(texts, min(filter(None, (round(size / 0.9), passages)), default=0))
            mine.append(_user(f"{who}, {size or 'all'}", texts, test, scratch / "curve"))
        people += reversed(mine)
    return Task(
        "curve",
        f"{presidents} presidents with little text and much, their last annual message held out",
        people,
        ("loss",),
        [example.prompt for example in people[0].test],
        40,
        temperature=0.7,
        quality_only=True,
        others=other_presidents,
    )


def mail_writers(count: int, passages: int, tested: int, scratch: Path) -> Task:
    """Return the task of so many writers of mails: own words behind what they answer, the last mails held out.

    passages: to learn from, at most, 0: all. Of a long mail what follows its first passage is continued, as the
    authors' passages are.
    """
    people = []
    for writer in mails.drawn(count):
        train = data.sample(mails.examples_of(writer.train), passages)
        test = data.sample(mails.examples_of(writer.test, further=continued), tested)
        people.append(_user(writer.name, train, test, scratch / "mails"))
    return Task(
        "mails",
        f"{count} writers of public mailing lists, their last mails held out",
        people,
        ("loss",),
        [example.prompt for example in people[0].test],
        40,
        temperature=0.7,
        quality_only=True,
        others=mails.others,
    )


def make_person(facts: int, folder: Path) -> None:
    """Write the made-up person of examples/person with so many facts into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    make = [sys.executable, str(PERSON / "make.py"), "--facts", str(facts), "--out", str(folder)]
    subprocess.run(make, check=True)


def facts(count: int, examples: int, tested: int, general: int, scratch: Path) -> Task:
    """Return the task of the made-up person of examples/person: its facts, asked in phrasings that are not trained."""
    folder = scratch / "facts"
    make_person(count, folder)
    test = data.sample(read(folder / "test.jsonl"), tested)
    user = _user("Mara", data.sample(read(folder / "train.jsonl"), examples), test, folder)
    return Task(
        "facts",
        f"{count} facts of a made-up person, in unseen phrasings",
        [user],
        ("exact", "loss"),
        [example.prompt for example in test],
        24,
        epochs=24 if count <= 100 else 6,
        width=256,
        sampled=False,
        general=[example.prompt for example in data.retain_set(PERSON / "general-test.txt")][:general],
        targets={example.reply: example.reply.split(" is ", 1)[1].split(".\n")[0] for example in test},
    )


def of_users(name: str, people: list[LampUser], users: int, tested: int, scratch: Path) -> Task:
    """Return the task of LaMP's users: each learns from the own profile and is judged by the own questions.

    users: at most so many, those with the longest profiles. Raises InputError where no profile can be learnt from.
    """
    able = [user for user in people if len(user.profile) > 1]
    if not able:
        raise InputError(f"{name} must have users whose profile has at least 2 entries")
    chosen = sorted(able, key=lambda user: -len(user.profile))[:users]
    if len(chosen) < len(people):
        say(f"{name}: {len(chosen)} of {len(people)} users, those with the longest profiles")
    made = [
        _user(
            re.sub(r"[^\w-]", "-", user.name)[:60], user.profile, data.sample(user.questions, tested), scratch / "own"
        )
        for user in chosen
    ]
    short = all(len(example.reply.split()) <= SHORT_WORDS for user in made for example in user.test)
    title = f"{name}, {len(made)} users, each with a plugin made of the own profile"
    prompts = [example.prompt for example in made[0].test]
    return Task("own", title, made, ("exact" if short else "rouge", "loss"), prompts, 16 if short else 40)


def from_file(path: Path, tested: int, scratch: Path, users: int = 10) -> Task:
    """Return the task of any file or folder that training takes; the last tenth is held out.

    LaMP's users are a task of their own (see `of_users`). Raises InputError where that is nothing.
    """
    people = lamp_users(path)
    if people:
        return of_users(path.name, people, users, tested, scratch)
    examples = read(path)
    held = max(1, min(tested, len(examples) // 10))
    train, test = examples[:-held], examples[-held:]
    if len(train) < 2:
        raise InputError(f"{path} must have at least 3 examples, got {len(examples)}")
    prose = all(example.prompt.messages is None for example in test)
    user = _user(path.stem, train, [continued(e) for e in test] if prose else test, scratch / "own")
    short = not prose and all(len(example.reply.split()) <= SHORT_WORDS for example in test)
    measures = ("loss",) if prose else ("exact", "loss") if short else ("rouge", "loss")
    return Task(
        "own",
        f"{path.name}, the last {held} held out",
        [user],
        measures,
        [e.prompt for e in user.test],
        40 if not short else 16,
    )
