"""What a memory knows: in a person's own words, of notes, in a generator's phrasings, and that it is silent elsewhere.

Each thing is told once, through `remember`'s own code, then asked over the wire, greedy. A reply is right when it holds
the answer; *answered* means that the memory spoke (the reply names its source), so that an answer which the base
invents counts as neither. The rival has the three nearest entries (BM25) in the base's prompt. The own words stand in
the clone's verifier/own_words: `tune` chose the threshold, `test` is asked once for the committed figure.
Test: sideplug bench --part memory --quick
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sideplug.bench.meters import machine
from sideplug.bench.parts import Result, Save
from sideplug.bench.processes import served
from sideplug.bench.sessions import open_session
from sideplug.bench.shaper import Network, shaped
from sideplug.bench.tasks import PERSON, make_person
from sideplug.contract.errors import InputError
from sideplug.contract.gate import Gate
from sideplug.contract.text import Prompt
from sideplug.device.reply import Usage
from sideplug.device.session import Session
from sideplug.memory import book
from sideplug.memory.curve import holds
from sideplug.memory.store import Entry
from sideplug.memory.weights import fetch_encoder
from sideplug.plugins import Plugin
from sideplug.readers import read
from sideplug.terminal import say
from sideplug.training import data

OWN_WORDS = Path(__file__).parents[3] / "verifier" / "own_words"
REPLY_TOKENS = 48
NEAREST = 3
OTHER_THINGS = ("phone number", "dog's name", "home town", "favourite book", "car", "shoe size", "birthday", "dentist")
Replies = list[tuple[str, Usage]]


@dataclass(frozen=True)
class Settings:
    """own: sets of own words (test, tune), "" for none. facts: of the generator's persons; questions: at most of each,
    drawn by seed; near: things that were not told; general: prompts; rival: 1 to ask the rival too. away: told
    questions of the first person that are asked 50 ms away too, beside the base alone."""

    own: tuple[str, ...] = ("tune",)
    facts: tuple[int, ...] = (20, 100, 500, 2000)
    questions: int = 100
    near: int = 300
    general: int = 300
    rival: int = 1
    away: int = 20


QUICK = Settings(facts=(20,), own=("",), questions=6, near=4, general=4, away=2)
FAR = Network(rtt_ms=50, mbit=10)


@dataclass
class Asked:
    """What was told, and what is asked: (question, answer) of told things and of notes, and questions about others."""

    entries: list[Entry]
    told: list[tuple[str, str]]
    notes: list[tuple[str, str]]
    untold: list[str]
    unnoted: list[str]
    general: list[str]


def run(model: str, settings: Settings, save: Save) -> Result:
    """Ask each set; what there is so far is saved after each."""
    fetch_encoder(say)
    runs: list[dict[str, Any]] = []
    result = {"machine": machine(), "runs": runs}
    with tempfile.TemporaryDirectory() as scratch, served(model) as (url, _):
        sets = [(f"own words, {name}", own_words(name)) for name in settings.own if name]
        for count in settings.facts:
            folder = Path(scratch) / f"person-{count}"
            sets.append((f"{count} facts", [generated(count, folder, settings)]))
        for name, people in sets:
            runs.append({"set": name} | measure(url, people, Path(scratch) / name.replace(" ", "-"), settings))
            say(json.dumps(runs[-1], ensure_ascii=False))
            save(result)
    return result


def own_words(name: str) -> list[Asked]:
    """Return the people of a set of own words. Raises InputError where there is none of this name."""
    folder = OWN_WORDS / name
    if not folder.is_dir():
        raise InputError(f"there are no own words in {folder}: they stand in a clone of the project")
    told, asked, untold, general, notes, noted, unnoted = (
        [json.loads(line) for line in (folder / f"{each}.jsonl").read_text("utf-8").splitlines()]
        for each in ("told", "asked", "untold", "general", "notes", "notes_asked", "notes_untold")
    )

    def of(person: str, lines: Iterable[dict[str, str]]) -> list[dict[str, str]]:
        return [line for line in lines if line["person"] == person]

    return [
        Asked(
            [Entry(line["instruction"], line["output"]) for line in of(person, told)]
            + [Entry("", line["note"]) for line in of(person, notes)],
            [(line["question"], line["answer"]) for line in of(person, asked)],
            [(line["question"], line["answer"]) for line in of(person, noted)],
            [line["question"] for line in of(person, untold)],
            [line["question"] for line in of(person, unnoted)],
            [line["question"] for line in of(person, general)],
        )
        for person in dict.fromkeys(line["person"] for line in [*told, *notes])
    ]


def generated(count: int, folder: Path, settings: Settings) -> Asked:
    """Return the made-up person of so many facts, each told once; half of what is untold is one word off."""
    make_person(count, folder)
    first: dict[str, Entry] = {}
    for example in read(folder / "train.jsonl"):
        first.setdefault(example.reply, Entry(_asked(example.prompt), example.reply))
    more = folder / "more"
    make_person(count + 200, more)
    told = {example.reply for example in read(folder / "test.jsonl")}
    others = [_asked(example.prompt) for example in read(more / "test.jsonl") if example.reply not in told]
    people = sorted({entry.question.split("'s ")[0].removeprefix("What is ") for entry in first.values()})
    things = [f"What is {who}'s {thing}?" for who in people for thing in OTHER_THINGS if "my " not in who]
    half = settings.near // 2
    near = data.sample(others, half) + data.sample(things, settings.near - half)
    near += [_asked(example.prompt) for example in data.retain_set(folder / "near-misses.txt")]
    test = data.sample(read(folder / "test.jsonl"), settings.questions)
    # The prompts that a training keeps to the base are general ones too; a memory learns nothing from them.
    prompts = [*data.retain_set(PERSON / "general-test.txt"), *data.retain_set(None)]
    general = list(dict.fromkeys(_asked(example.prompt) for example in prompts))
    return Asked(
        list(first.values()),
        [(_asked(example.prompt), example.reply.split(" is ", 1)[1].split(".\n")[0]) for example in test],
        [],
        near[: settings.near],
        [],
        general[: settings.general],
    )


def _asked(prompt: Prompt) -> str:
    return (prompt.messages or ({"content": ""},))[-1]["content"]


def measure(url: str, people: Sequence[Asked], scratch: Path, settings: Settings) -> dict[str, Any]:
    """Tell each person's memory, then ask; the sums over all people."""
    got: dict[str, list[tuple[str, str, Usage]]] = {}  # kind → (answer, text, usage)
    rival: dict[str, list[tuple[str, str]]] = {}
    same = general = 0
    far: dict[str, Any] = {}
    seconds, one_s, entries = 0.0, list[float](), 0
    for number, person in enumerate(people):
        folder = scratch / f"plugin-{number}"
        began = time.perf_counter()
        book.change(folder, lambda memory, told=person: book.tell(memory, told.entries), must_be=False)  # type: ignore[misc]
        plugin = Plugin.load(folder)
        with open_session(url, plugin) as session:
            seconds += time.perf_counter() - began
            entries += len(person.entries)
            for kind, pairs in _kinds(person):
                for question, answer in pairs:
                    text, usage = _reply(session, Prompt.user(question))
                    got.setdefault(kind, []).append((answer, text, usage))
        with open_session(url, plugin, Gate("shut")) as base:
            asked = [
                (question, got["general"][-len(person.general) + n][1]) for n, question in enumerate(person.general)
            ]
            same += sum(_reply(base, Prompt.user(question))[0] == text for question, text in asked)
            general += len(asked)
            if settings.rival:
                for kind, pairs in _kinds(person):
                    for question, answer in pairs if kind in ("told", "note") else []:
                        text, _ = _reply(base, nearest(person.entries, question))
                        rival.setdefault(kind, []).append((answer, text))
        if not number:
            far = far_away(url, plugin, [question for question, _ in person.told[: settings.away]])
        began = time.perf_counter()
        book.change(
            folder, lambda memory: book.tell(memory, [Entry("What is the bell's name?", "Its name is Old Tom.")])
        )
        open_session(url, Plugin.load(folder)).close()
        one_s.append(time.perf_counter() - began)
    return {
        "people": len(people),
        "entries": entries,
        "remember_s": round(seconds, 2),
        "one_more_s": round(statistics.median(one_s), 2),
        **{kind: _told(some) for kind, some in got.items() if kind in ("told", "note")},
        **{kind: _untold(some) for kind, some in got.items() if kind in ("untold", "unnoted", "general")},
        "general_same": [same, general],
        "general_asked": sum(usage.plugin_tokens for _, _, usage in got.get("general", [])),
        "50 ms away": far,
        "rival": {kind: [sum(holds(text, answer) for answer, text in some), len(some)] for kind, some in rival.items()},
    }


def far_away(url: str, plugin: Plugin, questions: Sequence[str]) -> dict[str, Any]:
    """Return what replies from memory take 50 ms away, beside as many tokens of the base alone to the same prompts.

    tokens_per_s: [memory, base]; ratio: of the two, of each reply, its median and range. Round by round.
    """
    pairs: list[tuple[Usage, Usage]] = []
    with (
        shaped(url, FAR) as there,
        open_session(there.url, plugin) as mine,
        open_session(there.url, plugin, Gate("shut")) as base,
    ):
        for question in questions:
            _, usage = _reply(mine, Prompt.user(question))
            if usage.entry:
                pairs.append((usage, _reply(base, Prompt.user(question), usage.reply_tokens)[1]))
    if not pairs:
        return {}
    rates = [(a.reply_tokens / a.total_s, b.reply_tokens / b.total_s) for a, b in pairs]
    ratios = sorted(a / b for a, b in rates)
    first = [(a.first_token_s - b.first_token_s) * 1000 for a, b in pairs]
    return {
        "replies": len(pairs),
        "tokens_per_s": [round(statistics.median(column), 1) for column in zip(*rates, strict=True)],
        "ratio": [round(each, 2) for each in (statistics.median(ratios), ratios[0], ratios[-1])],
        "first_token_later_ms": round(statistics.median(first), 1),
        "plugin_ms_a_reply": round(1000 * statistics.median(a.plugin_s for a, _ in pairs), 2),
    }


def _kinds(person: Asked) -> list[tuple[str, list[tuple[str, str]]]]:
    silent = [("untold", person.untold), ("unnoted", person.unnoted), ("general", person.general)]
    return [("told", person.told), ("note", person.notes), *((kind, [(q, "") for q in some]) for kind, some in silent)]


def _reply(session: Session, prompt: Prompt, tokens: int = REPLY_TOKENS) -> tuple[str, Usage]:
    reply = session.generate(prompt, tokens)
    return reply.text, reply.usage


def _told(some: Sequence[tuple[str, str, Usage]]) -> dict[str, Any]:
    """Of questions about told things: how many got the answer from the memory, and how many something else of it."""
    spoke = [(answer, text, usage) for answer, text, usage in some if usage.source]
    right = sum(holds(text, answer) for answer, text, _ in spoke)
    figures: dict[str, Any] = {"asked": len(some), "right": right, "wrong": len(spoke) - right}
    if spoke:
        figures |= {
            "first_token_ms": round(1000 * statistics.median(usage.first_token_s for _, _, usage in spoke)),
            "round_trips": statistics.median(usage.round_trips for _, _, usage in spoke),
            "bytes_down": round(statistics.median(usage.bytes_down for _, _, usage in spoke)),
            "bytes_up": round(statistics.median(usage.bytes_up for _, _, usage in spoke)),
        }
    return figures


def _untold(some: Sequence[tuple[str, str, Usage]]) -> dict[str, int]:
    return {"asked": len(some), "answered": sum(bool(usage.source) for _, _, usage in some)}


def nearest(entries: Sequence[Entry], question: str) -> Prompt:
    """Return the question behind the entries that are nearest by BM25, as their owner would put them."""
    import bm25s

    index = bm25s.BM25()
    index.index(
        bm25s.tokenize([f"{each.question} {each.reply}" for each in entries], show_progress=False), show_progress=False
    )
    found, _ = index.retrieve(
        bm25s.tokenize(question, show_progress=False), k=min(NEAREST, len(entries)), show_progress=False
    )
    turns: list[dict[str, str]] = []
    for place in reversed(found[0]):
        entry = entries[int(place)]
        asked = entry.question or "What did I note?"
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": entry.reply}]
    return Prompt(messages=(*turns, {"role": "user", "content": question}))


def summary(result: dict[str, Any]) -> list[str]:
    """Return a line for each set."""
    lines = []
    for run in result["runs"]:
        told = [
            f"{kind} {got['right'] / got['asked']:.1%} right, {got['wrong'] / got['asked']:.1%} wrong"
            + (f" (rival {run['rival'][kind][0] / run['rival'][kind][1]:.1%})" if kind in run["rival"] else "")
            for kind, got in run.items()
            if kind in ("told", "note")
        ]
        silent = [
            f"{kind} {run[kind]['answered']} of {run[kind]['asked']} answered"
            for kind in ("untold", "unnoted", "general")
            if kind in run
        ]
        lines.append(f"{run['set']}: {'; '.join([*told, *silent])}")
    return lines
