"""The split of a person's examples: what is trained on, and what is held out, so that each figure says what it means.

    told facts in other words   questions in a frame that no trained one has; training stops by these
    held-out text               passages, and whatever is no question; training stops by these too
    facts held out whole        of many facts a few: the plugin should answer them as the base does

Copies stand on one side. A fact that is told in several phrasings keeps at least two to train on; one that is told once
or twice is reworded. So no told fact is lost to holding out, but for the few that are held out whole, which are named.
It does not know the retain set. Test: pytest tests/training/test_split.py
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from sideplug.contract.errors import DataError
from sideplug.contract.text import Prompt
from sideplug.readers import Example
from sideplug.training.alike import Union, copies, question_of
from sideplug.training.facts import Facts, is_question, near, words_of
from sideplug.training.rewording import reword

PHRASINGS = 4  # of a fact, with the made ones …
MOST_MADE = 800  # … but no more made ones than this: each is read by the cloud
MANY_FACTS, MOST_WHOLE = 30, 4  # from how many facts on some are held out whole, and how many
MOST_HELD = 0.35  # of all questions, where one frame has many of them
LEAST_HELD = 8  # questions, where there are so many facts: fewer are a bad judge


@dataclass(frozen=True)
class Split:
    """The examples by what becomes of them. made: how many of `training` are reworded.

    told, text: what is held out of told facts, in other words, and of text. copies: how many of the person's examples
    are nearly the same as another one.
    """

    training: list[Example]
    told: list[Example]
    text: list[Example]
    whole: list[Example]
    made: int
    copies: int

    @property
    def lines(self) -> list[str]:
        """What a person should know of it, a sentence each."""
        lines = []
        if self.copies:
            lines.append(f"{_count(self.copies, 'example')} nearly the same as another: copies stand on one side")
        if self.made:
            lines.append(f"{_count(self.made, 'question')} made of yours in other words, to train on (--no-reword)")
        if self.whole:
            asked = ", ".join(f"“{question_of(example)[:60]}”" for example in self.whole)
            lines.append(f"held out whole, so not learnt: {asked} (--held-out 0 learns everything)")
        if not (self.told or self.text):
            lines.append("nothing is held out: training does not stop early, and no figure says what it is worth")
        return lines


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{' is' if number == 1 else 's are'}"


def split(examples: Sequence[Example], share: float, seed: int, rewording: bool = True) -> Split:
    """Return the split; `seed` draws about the share that is held out, 0 holds out nothing.

    Raises DataError for a share that is not 0 or more and below 1, or for no examples.
    """
    if not 0 <= share < 1:
        raise DataError(f"the held-out share must be 0 (nothing) or more and below 1, got {share}")
    if not examples:
        raise DataError("there must be at least 1 example")
    group = copies(examples)
    asked = _Questions(examples, group)
    rng = random.Random(seed)
    whole, phrasings, texts = set[int](), set[int](), set[int]()
    if share:
        whole = asked.draw_whole(rng)
        phrasings = asked.draw_phrasings(rng, share, whole)
        texts = _draw_texts([n for n in range(len(examples)) if n not in asked.fact], group, share, rng)
    out = whole | phrasings | texts
    made, others = asked.reworded(out, phrasings, rng, share) if rewording else ([], [])

    def once(numbers: set[int]) -> list[Example]:
        """These examples, each of several copies once."""
        return [examples[number] for number in sorted({group[n]: n for n in sorted(numbers, reverse=True)}.values())]

    return Split(
        [example for number, example in enumerate(examples) if number not in out] + made,
        [*once(phrasings), *others],
        once(texts),
        once(whole),
        len(made),
        len(examples) - len(set(group)),
    )


def _draw_texts(numbers: list[int], group: list[int], share: float, rng: random.Random) -> set[int]:
    """Which of these texts to hold out: whole groups of copies, about this share; one group is never held out."""
    groups = _by(numbers, lambda number: group[number])
    order = sorted(groups)
    rng.shuffle(order)
    held: set[int] = set()
    for each in order[1:]:
        if not held or len(held) + len(groups[each]) <= share * len(numbers) + 0.5:
            held |= set(groups[each])
    return held


def _by(numbers: Iterable[int], key: Callable[[int], int]) -> dict[int, list[int]]:
    groups: dict[int, list[int]] = defaultdict(list)
    for number in numbers:
        groups[key(number)].append(number)
    return groups


class _Questions:
    """The questions among the examples, by fact, and what may be held out of them.

    A single instruction ("Write to Ingrid.") is none: it is text of the person's. fact: of each question, by number.
    """

    def __init__(self, examples: Sequence[Example], group: list[int]) -> None:
        self._examples = examples
        short = [number for number, example in enumerate(examples) if is_question(example)]
        self._facts = Facts.among([examples[number] for number in short])
        by_fact = _by(range(len(short)), lambda at: self._facts.of[at])
        self._text = {number: question_of(examples[number]) for number in short}
        self._spoken = {number: words_of(text) for number, text in self._text.items()}
        self.fact: dict[int, int] = {}
        for fact, members in by_fact.items():
            if len({self._spoken[short[at]] for at in members}) > 1 or reword(self._text[short[members[0]]]).trained:
                self.fact |= {short[at]: fact for at in members}
        self._by_fact = _by(sorted(self.fact), self.fact.__getitem__)
        self._frame = {number: self._facts.frame(fact, self._text[number]) for number, fact in self.fact.items()}
        self._side = self._sides(group)

    def _sides(self, group: list[int]) -> dict[int, int]:
        """What must stand on one side: copies, questions of one frame, near copies within a fact."""
        union = Union(len(self._examples))
        first: dict[object, int] = {}
        for number in self.fact:
            for mark in (group[number], self._frame[number]):
                union.join(number, first.setdefault(mark, number))
        for members in self._by_fact.values():
            distinct = list({self._spoken[number]: number for number in members}.values())
            for at, one in enumerate(distinct):
                for other in distinct[at + 1 : at + 32]:
                    if near(self._spoken[one], self._spoken[other]):
                        union.join(one, other)
        return {number: union.of(number) for number in self.fact}

    def draw_whole(self, rng: random.Random) -> set[int]:
        """All questions of a few facts, where there are many."""
        facts = [fact for fact, numbers in sorted(self._by_fact.items()) if reword(self._text[numbers[0]]).trained]
        chosen = rng.sample(facts, min(MOST_WHOLE, len(facts) // MANY_FACTS))
        return {number for fact in chosen for number in self._by_fact[fact]}

    def draw_phrasings(self, rng: random.Random, share: float, whole: set[int]) -> set[int]:
        """Phrasings to hold out, about this share: all questions of a frame whose facts keep two others each."""
        sides = _by((number for number in self.fact if number not in whole), self._side.__getitem__)
        wanted, most = max(1, round(share * len(self.fact))), MOST_HELD * len(self.fact)
        order = sorted(sides)
        rng.shuffle(order)
        order.sort(key=lambda side: abs(len(sides[side]) - wanted))  # the frames that come nearest to the share
        held: set[int] = set()
        for side in order:
            numbers = set(sides[side])
            if len(held | numbers) > (1.5 * wanted if held else most):
                continue
            left = [set(self._by_fact[self.fact[number]]) - held - numbers for number in numbers]
            if all(len({self._side[number] for number in rest}) >= 2 for rest in left):
                held |= numbers
        return held

    def reworded(
        self, out: set[int], held: set[int], rng: random.Random, share: float
    ) -> tuple[list[Example], list[Example]]:
        """(made questions to train on, made ones to stop by) of facts that are told in one or two phrasings.

        No made question to stop by has the frame of a trained one, and none to train on that of a held one.
        """
        kept = _by((number for number in self.fact if number not in out), self.fact.__getitem__)
        frames, forbidden = {self._frame[n] for ns in kept.values() for n in ns}, {self._frame[n] for n in held}
        room = min(PHRASINGS - 1, MOST_MADE // max(1, len(kept)))
        made: list[Example] = []
        others: list[tuple[Example, str, int]] = []
        for fact, numbers in kept.items():
            told = {self._spoken[number] for number in numbers}
            if len(told) > 2:
                continue
            one, held_ones = self._examples[numbers[0]], [self._spoken[n] for n in self._by_fact[fact] if n in held]
            words = reword(self._text[numbers[0]])
            for text in words.trained[: max(0, room + 1 - len(told))]:
                frame, spoken = self._facts.frame(fact, text), words_of(text)
                if spoken not in told and frame not in forbidden and not any(near(spoken, each) for each in held_ones):
                    told.add(spoken)
                    frames.add(frame)
                    made.append(_asking(one, text))
            fresh = [text for text in words.held if not any(near(words_of(text), each) for each in told)]
            others += [(one, text, fact) for text in fresh[:1] if not held_ones]
        others = [each for each in others if self._facts.frame(each[2], each[1]) not in frames]
        wanted = max(LEAST_HELD, round(share * len(self.fact))) - len(held) if share else 0
        chosen = sorted(rng.sample(range(len(others)), max(0, min(wanted, len(others)))))
        return made, [_asking(*others[number][:2]) for number in chosen]


def _asking(example: Example, text: str) -> Example:
    """The example, asked in other words."""
    messages = (*(example.prompt.messages or ())[:-1], {"role": "user", "content": text})
    return replace(example, prompt=Prompt(messages=messages), told=example.question)
