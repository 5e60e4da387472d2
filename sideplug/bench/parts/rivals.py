"""The settings of rivals that have some, chosen on people whom no task has: kNN-LM's share and heat, steering's weight.

People: presidents outside the ten with text enough, and writers of mails who are not drawn for the task, by seed. Each
text is read once, and every setting is judged on what the model said. The best are those of `sideplug.bench.systems`.
Test: sideplug bench --part rivals --quick
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from sideplug.bench import mails, sotu
from sideplug.bench.devices.hf import Transformers
from sideplug.bench.devices.knn import Knn
from sideplug.bench.devices.steer import Steer, steered
from sideplug.bench.meters import machine
from sideplug.bench.parts import Result, Save
from sideplug.bench.prompts import example_record
from sideplug.bench.scale import SCALES
from sideplug.bench.systems import NEAREST
from sideplug.bench.tasks import continued
from sideplug.readers import Example, read
from sideplug.terminal import say
from sideplug.training import data

Person = tuple[str, list[Example], list[Example]]  # name, what is learnt from, what is tested


@dataclass(frozen=True)
class Settings:
    """presidents, writers: how many people; passages: to learn from; tested: of each; the others: what is tried."""

    presidents: int = 3
    writers: int = 3
    passages: int = 40
    tested: int = 6
    shares: tuple[float, ...] = (0.05, 0.1, 0.15, 0.2, 0.3)
    heats: tuple[float, ...] = (0.01, 0.02, 0.03, 0.05, 0.08)
    weights: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)


QUICK = Settings(presidents=1, writers=0, passages=4, tested=2, shares=(0.1, 0.2), heats=(0.03,), weights=(0.5, 1.0))


def people(settings: Settings) -> Iterator[Person]:
    """Yield the people that settings are chosen on."""
    names = [who for who in sotu.everybody() if who not in sotu.PRESIDENTS]
    random.Random(0).shuffle(names)
    count = 0
    for who, folder in sotu.messages(*names).items():
        train = read(folder / "train") if any((folder / "train").iterdir()) else []
        last = read(folder / "last.txt")
        if count < settings.presidents and len(train) >= settings.passages and len(last) >= settings.tested:
            count += 1
            test = [continued(example) for example in data.sample(last, settings.tested)]
            yield who, data.sample(train, settings.passages), test
    if settings.writers:
        for writer in data.sample(mails.kept_apart(SCALES["full"].writers), settings.writers):
            test = mails.examples_of(writer.test, further=continued)
            train = data.sample(mails.examples_of(writer.train), settings.passages)
            yield writer.name, train, data.sample(test, settings.tested)


def judge(model: Transformers, person: Person, settings: Settings) -> dict[str, float]:
    """Return the loss of each setting less the base's, in nats a token."""
    _, train, test = person
    store, beside = Knn.store_of(model, train), Steer.beside(model, train, NEAREST)
    sums: dict[str, float] = {}
    count = 0
    with torch.inference_mode():
        for example in test:
            record = example_record(example)["prompt"]
            prompt, reply = model.tokenizer.encode_example(example.prompt, example.reply)
            targets_T = torch.tensor(reply)
            out = model.lm(input_ids=torch.tensor([prompt + reply]), output_hidden_states=True)
            logits_TV, states_TD = (each[0][len(prompt) - 1 : -1] for each in (out.logits, out.hidden_states[-1]))
            informed = beside(record, prompt)
            informed_TV = model.lm(input_ids=torch.tensor([informed + reply])).logits[0][len(informed) - 1 : -1]
            said = {"base": logits_TV}
            for share, heat in itertools.product(settings.shares, settings.heats):
                said[f"knn share={share} heat={heat}"] = store.mixed(states_TD, logits_TV, share, heat)
            for weight in settings.weights:
                said[f"steer weight={weight}"] = steered(logits_TV, informed_TV, weight)
            for name, rows_TV in said.items():
                nats = float(torch.nn.functional.cross_entropy(rows_TV, targets_T, reduction="sum"))
                sums[name] = sums.get(name, 0.0) + nats
            count += len(reply)
    return {name: round((nats - sums["base"]) / count, 4) for name, nats in sums.items() if name != "base"}


def run(model: str, settings: Settings, save: Save) -> Result:
    """Judge every setting on each person; what there is so far is saved after each."""
    base = Transformers(model)
    judged: dict[str, dict[str, float]] = {}
    result: dict[str, Any] = {"machine": machine(), "people": judged, "mean": {}}
    for person in people(settings):
        judged[person[0]] = judge(base, person, settings)
        names = next(iter(judged.values()))
        result["mean"] = {name: round(sum(one[name] for one in judged.values()) / len(judged), 4) for name in names}
        say(f"{person[0]}: {summary(result)}")
        save(result)
    return result


def summary(result: Result) -> list[str]:
    """Return the best settings of each rival, over all people."""
    best = sorted(result["mean"].items(), key=lambda each: float(each[1]))
    kinds = dict.fromkeys(name.split()[0] for name, _ in best)
    return [next(f"{name}: {less:+.4f} nats" for name, less in best if name.startswith(kind)) for kind in kinds]
