"""Fits the verifier that ships: python verifier/fit.py sideplug/memory/verifier.safetensors (with torch; half an hour)

    loss = − log Σ exp s(right parts) / (1 + Σ exp s(all parts found))          1 stands for "this was never told"

Each made-up person of verifier/texts has one memory of facts and notes; each question gets what the product's own
search finds in it. A right passage is left out now and then, so that "never told" is right beside its neighbours. After
each epoch it is judged on own_words/tune; own_words/test is never read here.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from made import SMALL_TALK, contrasts, kin, relations, siblings
from torch import nn
from torch.nn import functional

from sideplug.memory.encoder import FIRST, LAST, LINEAR, MAX_TOKENS, WIDTH, Encoder
from sideplug.memory.index import Candidate, Index
from sideplug.memory.store import Entry, Store
from sideplug.memory.verifier import Verifier, features, pairs
from sideplug.memory.weights import encoder_path

HERE = Path(__file__).parent
RANK, INNER, BATCH, PASSAGES, LEFT_OUT = 32, 128, 8, 5, 0.12
LEARNING_RATE, WARM_UP, CLIP, DROPOUT = 1e-3, 0.1, 1.0, 0.1


WITHIN = tuple(name.removeprefix("encoder.layer.0.") for name in LINEAR if name.startswith("encoder.layer.0."))


@dataclass
class Asked:
    """A question, what was found, and which parts of it are right. kind: told, note, untold, unnoted or general."""

    question: str
    kind: str
    candidates: list[Candidate]
    right: list[list[bool]] = field(default_factory=list)


def lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON lines file; none where there is no such file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []


class Vectors:
    """Vectors of texts, as the encoder gives them, by the thousand."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder, self._model, self._known = encoder, Model(encoder), dict[str, np.ndarray]()
        self._wanted = set[str]()

    def want(self, texts: Iterable[str]) -> None:
        """Note texts whose vectors will be asked for."""
        self._wanted.update(text for text in texts if text not in self._known)

    def learn(self) -> None:
        """Compute the vectors that are wanted."""
        wanted = sorted(self._wanted, key=len)
        self._wanted.clear()
        for start in range(0, len(wanted), 64):
            tokens = [
                [FIRST, *self._encoder.tokens(text)[: MAX_TOKENS - 2], LAST] for text in wanted[start : start + 64]
            ]
            length = max(map(len, tokens))
            ids = torch.tensor([[*each, *[0] * (length - len(each))] for each in tokens])
            mask = torch.tensor([[1.0] * len(each) + [0.0] * (length - len(each)) for each in tokens])
            with torch.no_grad():
                rows = self._model.rows(self._model.embedded(ids), mask).float()
            mean = functional.normalize((rows * mask[..., None]).sum(1), dim=-1).numpy()
            self._known.update(zip(wanted[start : start + 64], mean, strict=True))

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        self.want(texts)
        self.learn()
        return np.stack([self._known[text] for text in texts])


def asked_of(index: Index, numbers: set[int], question: str, kind: str, answer: str = "") -> Asked:
    """A question to a memory. Right: the parts of the entries `numbers` that have the answer, in a note."""
    found = Asked(question, kind, index.candidates(question))
    for candidate in found.candidates:
        passage = candidate.passage
        hit = passage.number in numbers
        found.right.append([hit and (bool(passage.asked) or answer.lower() in part.lower()) for part in passage.parts])
    return found


def learn(vectors: Vectors, *files: list[dict[str, Any]]) -> None:
    """Compute the vectors of all questions of these lines at once."""
    for line in (line for file in files for line in file):
        asked = [each if isinstance(each, str) else each["question"] for each in line.get("asked", [])]
        vectors.want([*asked, *line.get("near", []), line.get("told", ""), line.get("question", "")])
    vectors.learn()


def training_texts(vectors: Vectors | None) -> list[Asked]:
    """All questions of verifier/texts, each to its person's memory."""
    found = []
    for folder in sorted((HERE / "texts").iterdir()):
        facts, notes, general = (lines(folder / f"{name}.jsonl") for name in ("facts", "notes", "general"))
        if vectors is not None:
            learn(vectors, facts, notes, general)
        for person in dict.fromkeys(line["person"] for line in [*facts, *notes]):
            index = Index(Store(), "fit" if vectors else "", vectors)
            mine = [[line for line in each if line["person"] == person] for each in (facts, notes, general)]
            for fact, number in zip(
                mine[0], index.store.add([Entry(f["told"], f["reply"]) for f in mine[0]]), strict=True
            ):
                fact["number"] = number
            for note, number in zip(mine[1], index.store.add([Entry("", n["note"]) for n in mine[1]]), strict=True):
                note["number"] = number
            for fact in mine[0]:
                found += [asked_of(index, {fact["number"]}, q, "told") for q in [fact["told"], *fact["asked"]] if q]
                found += [asked_of(index, set(), q, "untold") for q in fact["near"] if q]
            for note in mine[1]:
                found += [asked_of(index, {note["number"]}, a["question"], "note", a["answer"]) for a in note["asked"]]
                found += [asked_of(index, set(), q, "unnoted") for q in note["near"] if q]
            found += [asked_of(index, set(), line["question"], "general") for line in mine[2]]
        print(f"{folder.name}: {len(found)} questions", flush=True)
    return found


def made_texts(vectors: Vectors | None, people: int, rng: random.Random) -> list[Asked]:
    """The questions of so many made-up memories of each kind."""
    found = []
    for make in (siblings, contrasts, relations, kin):
        for _ in range(people):
            entries, asked = make(rng)
            index = Index(Store(), "fit" if vectors else "", vectors)
            numbers = index.store.add(entries)
            for question, number in asked:
                right = set() if number is None else {numbers[number]}
                kind = "untold" if number is None else "told" if entries[number].question else "note"
                found.append(asked_of(index, right, question, kind))
    return found


def tuning_texts(vectors: Vectors | None, name: str = "tune") -> list[Asked]:
    """The questions of own_words/`name`; facts and notes of a person are one memory."""
    folder, found = HERE / "own_words" / name, []
    told, asked, untold, general, notes, noted, unnoted = (
        lines(folder / f"{each}.jsonl")
        for each in ("told", "asked", "untold", "general", "notes", "notes_asked", "notes_untold")
    )
    for person in dict.fromkeys(line["person"] for line in [*told, *notes]):
        index, numbers = Index(Store(), "fit" if vectors else "", vectors), {}
        for line in [*told, *notes]:
            if line["person"] == person:
                entry = Entry(line.get("instruction", ""), line.get("output") or line["note"])
                numbers[line["id"]] = index.store.add([entry])[0]
        for kind, questions in (
            ("told", asked),
            ("note", noted),
            ("untold", untold),
            ("unnoted", unnoted),
            ("general", general),
        ):
            for line in questions:
                if line["person"] == person:
                    right = {numbers[line["id"]]} if kind in ("told", "note") else set()
                    found.append(asked_of(index, right, line["question"], kind, line.get("answer", "")))
    return found


class LowRank(nn.Module):
    """A frozen linear layer with its low-rank change."""

    def __init__(self, weight: np.ndarray, bias: np.ndarray) -> None:
        super().__init__()
        self.weight, self.bias = torch.tensor(weight), torch.tensor(bias).bfloat16()
        self.a = nn.Parameter(torch.randn(RANK, weight.shape[1]) / weight.shape[1] ** 0.5)
        self.b = nn.Parameter(torch.zeros(weight.shape[0], RANK))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, (self.weight + self.b @ self.a).bfloat16(), self.bias)


class Model(nn.Module):
    """The verifier, as sideplug.memory.verifier computes it."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        w = {name: value.astype(np.float32) for name, value in encoder.weights.items()}
        self.w = {name: torch.tensor(value) for name, value in w.items()}
        self.words = self.w["embeddings.word_embeddings.weight"] * self.w["embeddings.word_embeddings.weight.scale"]
        self.linear = nn.ModuleDict(
            {
                name.replace(".", "_"): LowRank(w[name + ".weight"] * w[name + ".weight.scale"], w[name + ".bias"])
                for name in LINEAR
            }
        )
        self.of = nn.Parameter(torch.zeros(3, WIDTH))
        self.inner, self.outer = nn.Linear(2 * WIDTH, INNER), nn.Linear(INNER, 1)
        self.features = nn.Linear(3, 1, bias=False)

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = self.w[name + ".weight"].bfloat16(), self.w[name + ".bias"].bfloat16()
        return functional.layer_norm(x.bfloat16(), (WIDTH,), weight, bias, 1e-12)

    def forward(self, questions: list[tuple[str, list[Candidate]]], encoder: Encoder) -> torch.Tensor:
        """The scores of all parts of all candidates, question by question."""
        flat = [(question, candidate) for question, some in questions for candidate in some]
        read = pairs(encoder, [(question, c.passage.about, c.passage.parts) for question, c in flat])
        ids, mask = torch.tensor(read.ids_BT), torch.tensor(read.mask_BT)
        rows = self.embedded(ids) + self.of[torch.tensor(read.of_BT)]
        x = self.rows(rows, mask).float()
        spans = torch.zeros(len(read.spans), x.shape[1])
        owner = torch.tensor([row for row, _, _ in read.spans])
        for number, (_, start, stop) in enumerate(read.spans):
            spans[number, start:stop] = 1 / (stop - start)
        part = (spans[:, None] @ x[owner]).squeeze(1)
        hidden = functional.gelu(self.inner(torch.cat([x[owner, 0], part], -1)))
        told = torch.tensor([features(candidate) for _, candidate in flat], dtype=torch.float32)
        return (self.outer(self._dropped(hidden)) + self.features(told)[owner])[:, 0]

    def embedded(self, ids: torch.Tensor) -> torch.Tensor:
        """The embeddings of tokens (B, T)."""
        rows = self.words[ids] + self.w["embeddings.position_embeddings.weight"][: ids.shape[1]]
        return rows + self.w["embeddings.token_type_embeddings.weight"][0]

    def rows(self, rows: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The last layer's rows (B, T, E) of embedded tokens."""
        x = self._norm(rows, "embeddings.LayerNorm")
        blocked = ((1 - mask[:, None, None, :]) * -1e9).bfloat16()

        def heads(value: torch.Tensor) -> torch.Tensor:
            return value.view(*value.shape[:2], 12, -1).transpose(1, 2)

        for layer in range(6):
            name = f"encoder.layer.{layer}."
            run = {each: self.linear[(name + each).replace(".", "_")] for each in WITHIN}
            query, key, value = (heads(run[f"attention.self.{each}"](x)) for each in ("query", "key", "value"))
            # Plain, because the fused kernel's backward takes ten times as long on a CPU.
            mixed = (query @ key.transpose(2, 3) * key.shape[-1] ** -0.5 + blocked).softmax(-1) @ value
            mixed = run["attention.output.dense"](mixed.transpose(1, 2).flatten(2))
            x = self._norm(x + self._dropped(mixed), name + "attention.output.LayerNorm")
            inner = run["output.dense"](functional.gelu(run["intermediate.dense"](x)))
            x = self._norm(x + self._dropped(inner), name + "output.LayerNorm")
        return x

    def _dropped(self, x: torch.Tensor) -> torch.Tensor:
        return functional.dropout(x, DROPOUT, self.training)

    def take(self, kept: dict[str, np.ndarray]) -> None:
        """Go on from what `tensors` gave."""
        own = self.parameters_by_name()
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(torch.tensor(kept[name].astype(np.float32)))

    def parameters_by_name(self) -> dict[str, torch.Tensor]:
        """All that is trained, by the names that it ships under."""
        kept: dict[str, torch.Tensor] = {
            "of": self.of,
            "inner.weight": self.inner.weight,
            "inner.bias": self.inner.bias,
        }
        kept |= {"outer.weight": self.outer.weight, "outer.bias": self.outer.bias}
        kept |= {"features.weight": self.features.weight}
        for name in LINEAR:
            part: Any = self.linear[name.replace(".", "_")]
            kept |= {f"{name}.a": part.a, f"{name}.b": part.b}
        return kept

    def tensors(self) -> dict[str, np.ndarray]:
        """What ships."""
        return {name: value.detach().numpy().astype(np.float16) for name, value in self.parameters_by_name().items()}


def by_words(texts: list[Asked]) -> np.ndarray:
    """The logistic over words alone: weights of found, covered, their product, and a bias (4,) float32."""
    most = max(sum(map(len, asked.right)) for asked in texts)
    x, real, right = np.zeros((len(texts), most, 4)), np.zeros((len(texts), most)), np.zeros((len(texts), most + 1))
    for row, asked in enumerate(texts):
        told = [(c, each) for c, some in zip(asked.candidates, asked.right, strict=True) for each in some]
        for column, (candidate, is_right) in enumerate(told):
            found, covered = candidate.found, candidate.covered
            x[row, column], real[row, column] = (found, covered, found * covered, 1), 1
            right[row, column] = is_right
        right[row, most] = not right[row].any()
    features_, rest = torch.tensor(x).float(), torch.tensor(np.log(real + 1e-12)).float()
    wanted = torch.tensor(np.log(right + 1e-12)).float()
    weight = nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.Adam([weight], 0.1)
    for _ in range(400):
        scores = torch.cat([features_ @ weight + rest, torch.zeros(len(texts), 1)], 1)
        loss = (torch.logsumexp(scores, 1) - torch.logsumexp(scores + wanted, 1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"by words: {float(loss.detach()):.3f}, {weight.detach().numpy().round(2)}", flush=True)
    return weight.detach().numpy().astype(np.float32)


PERSONAL_STEPS, SMALL_TALK_WEIGHS = 400, 5


def personal(texts: list[Asked], vectors: Vectors) -> np.ndarray:
    """The logistic of whether a question is about its asker: a weight for each number of its vector, and a bias.

    Both kinds of questions weigh the same.
    """
    small = [each for each in SMALL_TALK for _ in range(SMALL_TALK_WEIGHS)]
    x = torch.tensor(vectors([*(asked.question for asked in texts), *small])).float()
    wanted = torch.tensor([*(float(asked.kind != "general") for asked in texts), *(0.0 for _ in small)])
    share = torch.where(wanted > 0, 0.5 / wanted.sum(), 0.5 / (1 - wanted).sum())
    layer = nn.Linear(WIDTH, 1)
    optimizer = torch.optim.AdamW(layer.parameters(), 0.01, weight_decay=1e-3)
    for _ in range(PERSONAL_STEPS):
        loss = functional.binary_cross_entropy_with_logits(layer(x)[:, 0], wanted, weight=share, reduction="sum")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"personal: {float(loss.detach()):.3f}", flush=True)
    return torch.cat([layer.weight[0], layer.bias]).detach().numpy().astype(np.float32)


def personal_table(texts: list[Asked], weights: np.ndarray, vectors: Vectors) -> list[str]:
    """How many of each kind are held for personal, at several logits."""
    logits = vectors([asked.question for asked in texts]) @ weights[:-1] + weights[-1]
    kinds = [asked.kind for asked in texts]
    rows = []
    for threshold in (1.0, 1.5, 2.0, 2.5, 3.0):
        found = {
            kind: np.mean([x > threshold for x, k in zip(logits, kinds, strict=True) if k == kind]) for kind in kinds
        }
        rows.append(f"  personal > {threshold}: " + ", ".join(f"{kind} {share:.3f}" for kind, share in found.items()))
    return rows


def word_scores(texts: list[Asked], weights: np.ndarray) -> list[np.ndarray]:
    """The scores of each question's parts, by words alone."""
    verifier = Verifier(None, {"words": weights})
    return [np.array([s for some in verifier.scores(t.question, t.candidates) for s in some]) for t in texts]


def typed(question: str) -> str:
    """The question as a hurried person may type it: now and then without capitals, its last sign, or a letter."""
    if random.random() < 0.3:
        question = question.lower()
    if random.random() < 0.2:
        question = question.rstrip("?.!")
    long = [each for each in question.split() if len(each) > 4 and each.isalpha()]
    if long and random.random() < 0.15:
        word, at = random.choice(long), random.randrange(1, 4)
        question = question.replace(word, word[:at] + word[at + 1 :], 1)
    return question


def shown(asked: Asked) -> tuple[list[Candidate], list[bool]]:
    """The candidates of one step, and which parts are right."""
    order = list(range(len(asked.candidates)))
    right = [number for number in order if any(asked.right[number])]
    if right and random.random() < LEFT_OUT:
        order, right = [number for number in order if number not in right], []
    rest = [number for number in order if number not in right]
    hard = rest[:3] + random.sample(rest[3:], min(2, len(rest[3:])))
    some = (right + hard)[:PASSAGES]
    return [asked.candidates[n] for n in some], [each for n in some for each in asked.right[n]]


def judged(model: Model, encoder: Encoder, texts: list[Asked]) -> list[np.ndarray]:
    """The scores of each question's parts."""
    model.eval()
    found = []
    with torch.no_grad():
        for asked in texts:
            some = [(asked.question, asked.candidates)]
            found.append(model(some, encoder).float().numpy() if asked.candidates else np.zeros(0))
    model.train()
    return found


def table(texts: list[Asked], scores: list[np.ndarray]) -> list[str]:
    """What is answered at several thresholds of P, a line each."""
    rows = []
    for threshold in (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98):
        right: dict[str, int] = {}
        answered: dict[str, int] = {}
        count: dict[str, int] = {}
        for asked, score in zip(texts, scores, strict=True):
            count[asked.kind] = count.get(asked.kind, 0) + 1
            if not len(score):
                continue
            best = int(np.argmax(score))
            if np.exp(score[best]) / (1 + np.exp(score).sum()) > threshold:
                answered[asked.kind] = answered.get(asked.kind, 0) + 1
                right[asked.kind] = right.get(asked.kind, 0) + [each for part in asked.right for each in part][best]
        shares = []
        for kind, total in count.items():
            if kind in ("told", "note"):
                wrong = answered.get(kind, 0) - right.get(kind, 0)
                shares.append(f"{kind} {right.get(kind, 0) / total:.3f} right {wrong / total:.3f} wrong")
            else:
                shares.append(f"{kind} {answered.get(kind, 0)} of {total}")
        rows.append(f"  P > {threshold}: " + ", ".join(shares))
    return rows


def main() -> None:
    """Fit, judge after each epoch, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--epochs", type=int, default=2, help="0 fits the two logistics, and keeps the rest of the file"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--people", type=int, default=40, help="made-up people whose memories are full of siblings")
    parser.add_argument("--start", type=Path, help="go on from this file")
    parser.add_argument("--share", type=float, default=1.0, help="of the hand-written questions")
    parser.add_argument("--rate", type=float, default=LEARNING_RATE, help="the peak learning rate")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    random.seed(options.seed)
    words, tune = by_words(training_texts(None)), tuning_texts(None)
    print("\n".join(table(tune, word_scores(tune, words))), flush=True)
    encoder = Encoder.load(encoder_path())
    vectors = Vectors(encoder)
    by_vector = personal(training_texts(None), vectors)
    print("\n".join(personal_table(tune, by_vector, vectors)), flush=True)
    small = {"words": words, "personal": by_vector}
    if not options.epochs:
        kept = safetensors.numpy.load_file(options.out) if options.out.is_file() else {}
        options.out.write_bytes(safetensors.numpy.save({**kept, **small}))
        return
    texts, tune = training_texts(vectors), tuning_texts(vectors)
    texts = random.sample(texts, int(options.share * len(texts)))
    rng = random.Random(options.seed)
    texts += made_texts(vectors, options.people, rng)
    print(f"{len(texts)} questions, {len(tune)} to tune by", flush=True)
    model = Model(encoder)
    if options.start:
        model.take(safetensors.numpy.load_file(options.start))
    trained = [each for each in model.parameters() if each.requires_grad]
    total = options.epochs * (len(texts) // BATCH)
    optimizer = torch.optim.AdamW(trained, options.rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.rate, total_steps=total + 1, pct_start=WARM_UP)
    losses, began = list[float](), time.monotonic()
    for epoch in range(options.epochs):
        random.shuffle(texts)
        for start in range(0, len(texts) - BATCH + 1, BATCH):
            batch = [
                (typed(asked.question), *shown(asked)) for asked in texts[start : start + BATCH] if asked.candidates
            ]
            scores = model([(question, some) for question, some, _ in batch], encoder)
            at, loss = 0, torch.zeros(())
            for _, _, right in batch:
                all_ = torch.cat([scores[at : at + len(right)], torch.zeros(1)])
                at += len(right)
                wanted = [n for n, each in enumerate(right) if each] or [len(right)]
                loss = loss - torch.logsumexp(all_[wanted], 0) + torch.logsumexp(all_, 0)
            (loss / len(batch)).backward()
            nn.utils.clip_grad_norm_(trained, CLIP)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            losses.append(float(loss.detach()) / len(batch))
            if len(losses) % 100 == 0:
                print(
                    f"step {len(losses)} of {total}: {np.mean(losses[-100:]):.3f}, {time.monotonic() - began:.0f} s",
                    flush=True,
                )
        print(f"epoch {epoch + 1}\n" + "\n".join(table(tune, judged(model, encoder, tune))), flush=True)
        options.out.write_bytes(safetensors.numpy.save({**model.tensors(), **small}))


if __name__ == "__main__":
    main()
