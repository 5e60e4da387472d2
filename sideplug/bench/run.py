"""A run: each system on each task, then each over each network, cell by cell.

What a person's plugin or adapter needs is trained once and kept in the run's folder; quality is measured without a
network, for a network changes no text; speed is measured behind the shaper, round by round, on replies of the task.
"""

from __future__ import annotations

import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rouge_score.rouge_scorer import RougeScorer

from sideplug.bench import tasks, texts
from sideplug.bench.cells import Cells
from sideplug.bench.measures import (
    ask_reply,
    backward_bytes,
    contains_words,
    disk_bytes,
    grouped,
    line_limit,
    reply_rate,
    short,
)
from sideplug.bench.meters import Energy, machine, read_gb_s
from sideplug.bench.processes import child, command, served
from sideplug.bench.prompts import example_record
from sideplug.bench.scale import Scale
from sideplug.bench.shaper import Network, Shaped, shaped
from sideplug.bench.spreads import spread
from sideplug.bench.systems import BY_NAME, LORA_OTHERS, OURS, SYSTEMS, Device, Place, System, device, remote_side
from sideplug.bench.tasks import Task, User, begun
from sideplug.cloud.cores import cores
from sideplug.cloud.store import find
from sideplug.contract.errors import Stopped
from sideplug.contract.text import Prompt
from sideplug.plugins import Plugin
from sideplug.terminal import say
from sideplug.training import data

EXACT_TOKENS, ROUGE_TOKENS = 32, 128  # of a reply that is judged
SAMPLED_TOKENS, SAMPLED_HEAT, SAMPLED_TOP_P = 128, 0.7, 0.95  # of a reply whose text is judged
JITTER = 0.02  # of the RTT
DRIFT_S = 300.0  # between two checks of the machine
LEAST = 4  # tokens of a reply that is timed
TRIES = 4  # of a round: what is sampled may end at once
WARM_UP = Prompt.user("What is a bridge?")


@dataclass
class Run:
    """One model's run. `folder` keeps what is trained; `cells` what is measured."""

    model: str
    scale: Scale
    cells: Cells
    folder: Path
    only: tuple[str, ...] = ()
    systems: list[System] = field(default_factory=list)

    def __post_init__(self) -> None:
        quick = self.scale.name == "quick"
        self.systems = [s for s in SYSTEMS if (s.name in self.only if self.only else s.quick or not quick)]
        folder = find(self.model).folder
        self.absent = {s.name: why for s in self.systems if (why := s.missing(folder))}
        self.systems = [system for system in self.systems if system.name not in self.absent]

    def measure(self, chosen: list[Task]) -> dict[str, Any]:
        """Everything that is not in `cells` yet; then the whole as one object."""
        energy, start = Energy(), time.time()
        self.cells.expected = sum(self.planned(task) for task in chosen) + len(self.scale.bits) + 4
        last = 0.0
        # Nothing is kept between replies: a prompt that another system had would come at once.
        with served(self.model, "--keep-seconds", 0) as (url, process):
            cloud = process.memory_full_info().pss

            def check_drift(now: bool = False) -> None:
                nonlocal last
                if now or time.time() - last > DRIFT_S:
                    last = time.time()
                    self.cells.measured(f"drift/{last:.0f}", lambda: {"at": last, "tokens_s": self._reference(url)})

            check_drift(now=True)
            for task in chosen:
                self._quality(task, url)
                check_drift()
            for task in chosen:
                if not task.quality_only:
                    self._speed(task, url, check_drift)
            if any(system.name == "gated" for system in self.systems):
                self._gate_curve(chosen[0], url)
            check_drift(now=True)
        if not self.only:
            self._users()
            self._bits(chosen)
        floor = self.cells.measured("floor", self._floor)
        if (joules := energy.joules) is not None:
            self.cells.measured(f"energy/{start:.0f}", lambda: {"joules": joules, "seconds": time.time() - start})
        return {
            "machine": machine(),
            "model": short(find(self.model).name),
            "date": time.strftime("%Y-%m-%d"),
            "scale": asdict(self.scale),
            "tasks": {task.name: {"title": task.title, "users": [user.name for user in task.users]} for task in chosen},
            "systems": {s.name: s.for_report() for s in self.systems},
            "absent": self.absent,
            "hours": round(self.cells.seconds / 3600, 2),
            "cloud_pss_mb": round(cloud / 1e6),
            "floor": floor,
            **grouped(self.cells.values),
        }

    def _cell(self, key: str, measure: Callable[..., Any], *arguments: Any) -> Any:
        """As `cells.measured`; what fails is a cell that says so, and the run goes on."""

        def tried() -> Any:
            try:
                return measure(*arguments)
            except Stopped as error:
                say(f"sideplug bench: {key}: {error}")
                return {"unavailable": str(error)}

        return self.cells.measured(key, tried)

    def planned(self, task: Task) -> int:
        """Cells of a task."""
        systems = self._on(task)
        judged = len(self._judged(task)) * len(task.users)
        trained = len({system.trains for system in systems if system.trains}) * len(task.users)
        timed = sum(len(self.scale.networks) if system.remote else 1 for system in systems if system.timed)
        matrix = len(task.users) if self._has_matrix(task) else 0
        sampled = judged if task.sampled and self.scale.sampled else 0
        return judged + trained + matrix + sampled + (0 if task.quality_only else timed)

    def _on(self, task: Task) -> list[System]:
        """Return the systems that this task compares."""
        return [system for system in self.systems if system.belongs(task.name)]

    def _judged(self, task: Task) -> list[System]:
        """Return those of them whose texts are no other's."""
        return [system for system in self._on(task) if not system.same_texts_as]

    def _reference(self, url: str) -> float:
        """Tokens a second of the plain cloud, for the drift of the machine."""
        with device(*BY_NAME["cloud only"].device(Place(self.model, url))) as client:
            client.ask("reply", prompt={"text": "Fellow-citizens,"}, max_tokens=8, temperature=0.7, seed=0)
            reply = client.ask("reply", prompt={"text": "Fellow-citizens,"}, max_tokens=48, temperature=0.7, seed=1)
        return round(reply_rate(reply), 2)

    # training

    def trained(self, system: System, task: Task, user: User, url: str) -> str:
        """The folder of what is trained for a user, or "" for nothing."""
        if not system.trains:
            return ""
        out = self.folder / task.name / f"{user.file.stem}-{system.trains}"

        def train() -> dict[str, Any]:
            shutil.rmtree(out, ignore_errors=True)  # of a run that was cut: its tape would be had for nothing
            epochs = self.scale.epochs or task.epochs
            if system.trains in ("lora", LORA_OTHERS):
                start = self._others_adapter(task) if system.trains == LORA_OTHERS else None
                return self._lora(user.file, out, epochs, start)
            options = ["--cloud", url, "--out", out, "--force"]
            options += ["--kind", system.trains] if system.trains != OURS else []
            as_needed = system.trains == OURS and not task.width and not self.scale.epochs
            options += ["--epochs", epochs] if not as_needed else []
            options += ["--no-remember"]  # kinds are compared; what a memory knows is a part of its own
            options += ["--width", task.width] if task.width and system.trains == OURS else []
            options += [] if system.retain else ["--retain-weight", 0]
            costs = command("train", user.file, *options)
            kept = ("recording_s", "seconds", "peak_rss_mb", "parameters", "tape_bytes", "epochs")
            plugin = Plugin.load(out)
            if plugin.tap.codec == "raw":
                shutil.rmtree(out / "tape")  # of every hidden state, 36 KB a token
            return {name: costs[name] for name in kept} | {
                "backward_bytes_a_token": backward_bytes(plugin),
                "disk_bytes": disk_bytes(out),
            }

        key = f"training/{task.name}/{system.trains}/{user.name}"
        self._cell(key, train)
        if "unavailable" in self.cells.values[key]:
            raise Stopped(f"its training failed: {self.cells.values[key]['unavailable']}")
        if not out.exists():  # the figures are there, what they are of is not
            train()
        return str(out)

    def _lora(self, examples: Path, out: Path, epochs: int, start: Path | None = None) -> dict[str, Any]:
        """What training an adapter took. start: the one that it goes on from."""
        options = ["--epochs", epochs, *(["--start", start] if start else [])]
        with child("-m", "sideplug.bench.rivals.lora_training", self.model, examples, out, *options) as process:
            return {**process.ready, "disk_bytes": disk_bytes(out)}

    def _others_adapter(self, task: Task) -> Path:
        """The adapter that one epoch of the task's other people has made. Raises Stopped."""
        if task.others is None:
            raise Stopped(f"the task {task.name} has no text of other people")
        out, file = self.folder / task.name / "others-lora", self.folder / task.name / "others.jsonl"
        tasks.write_examples(data.sample(task.others(), self.scale.others), file)
        self.cells.measured(f"training/{task.name}/lora of the others/others", self._lora, file, out, 1)
        if not out.exists():
            self._lora(file, out, 1)
        return out

    # quality

    def _quality(self, task: Task, url: str) -> None:
        for system, user in itertools.product(self._judged(task), task.users):
            self._cell(f"quality/{task.name}/{system.name}/{user.name}", self._judge, system, task, user, url)
        if task.sampled and self.scale.sampled:
            for system, user in itertools.product(self._judged(task), task.users):
                self._cell(f"texts/{task.name}/{system.name}/{user.name}", self._texts, system, task, user, url)
        if self._has_matrix(task):
            for one in task.users:
                self._cell(f"matrix/{task.name}/{one.name}", self._matrix_row, task, one, url)

    def _has_matrix(self, task: Task) -> bool:
        """Whether it is measured whose text a plugin prefers."""
        names = {system.name for system in self._on(task)}
        return {"ungated", "cloud only"} <= names and len(task.users) > 1 and not task.quality_only

    @contextmanager
    def _device(self, system: System, task: Task, user: User, url: str) -> Iterator[Device]:
        made = self.trained(system, task, user, url)
        with ExitStack() as stack:
            far, _ = stack.enter_context(remote_side(system, self.model, url, made, self.folder))
            yield stack.enter_context(device(*system.device(Place(self.model, far, made, str(user.file)))))

    def _judge(self, system: System, task: Task, user: User, url: str) -> dict[str, Any]:
        """Of each example its figure and what it is over: nats and tokens, a score and one."""
        result: dict[str, Any] = {}
        with self._device(system, task, user, url) as client:
            if system.tells_losses:
                losses = client.ask("losses", examples=[example_record(example) for example in user.test])
                result |= {"loss": texts.totals(losses), "positions": texts.by_position(losses)}
            else:
                result["loss"] = {"unavailable": "its server tells no log-probabilities of a text"}
            if {"exact", "rouge"} & set(task.measures):
                result |= self._replies(client, task, user)
            if task.general:
                result["general"] = [ask_reply(client, prompt, EXACT_TOKENS)["text"] for prompt in task.general]
        return result

    def _replies(self, client: Device, task: Task, user: User) -> dict[str, Any]:
        exact = "exact" in task.measures
        tokens = EXACT_TOKENS if exact else ROUGE_TOKENS
        texts = [ask_reply(client, example.prompt, tokens)["text"] for example in user.test]
        ones = [1.0] * len(texts)
        if exact:
            targets = [task.targets.get(example.reply, example.reply) for example in user.test]
            right = [float(contains_words(text, target)) for target, text in zip(targets, texts, strict=True)]
            return {"exact": list(zip(right, ones, strict=True))}
        scorer = RougeScorer(["rougeL"], use_stemmer=True)
        scores = [scorer.score(e.reply, text)["rougeL"].fmeasure for e, text in zip(user.test, texts, strict=True)]
        return {"rouge": list(zip(scores, ones, strict=True))}

    def _texts(self, system: System, task: Task, user: User, url: str) -> dict[str, Any]:
        """How sampled replies read (see texts.py), of each reply its figure and what it is over. No text is kept."""
        count = -(-self.scale.sampled // len(task.users))
        prompts = [begun(example) for example in user.test]
        known = texts.known_grams(example.reply for example in user.train)
        with self._device(system, task, user, url) as client:
            replies = [
                ask_reply(client, prompts[seed % len(prompts)], SAMPLED_TOKENS, SAMPLED_HEAT, seed, SAMPLED_TOP_P)
                for seed in range(count)
            ]
        said = [reply["text"] for reply in replies]
        return {
            "repeated": [texts.repeated(text) for text in said],
            "copied": [texts.copied(text, known) for text in said],
            "distinct": texts.distinct(said),
            "tokens": [reply["tokens"] for reply in replies],
        }

    def _matrix_row(self, task: Task, user: User, url: str) -> dict[str, Any]:
        """Loss of everybody's held-out text with this user's plugin always on, and by the base."""
        rows: dict[str, Any] = {}
        with self._device(BY_NAME["ungated"], task, user, url) as client:
            for other in task.users:
                with_plugin = np.array(
                    texts.totals(client.ask("losses", examples=[example_record(e) for e in other.test]))
                )
                base = np.array(self.cells.values[f"quality/{task.name}/cloud only/{other.name}"]["loss"])
                rows[other.name] = [round(float(t[:, 0].sum() / t[:, 1].sum()), 4) for t in (with_plugin, base)]
        return rows

    # speed

    def _speed(self, task: Task, url: str, check_drift: Callable[[], None]) -> None:
        user = task.users[0]
        for system in (system for system in self._on(task) if system.timed):
            keys = {n: f"speed/{task.name}/{system.name}/{n[0]}/{n[1]}" for n in self.scale.networks}
            if all(key in self.cells.values for key in keys.values()):
                continue
            made = self.trained(system, task, user, url)
            with remote_side(system, self.model, url, made, self.folder) as (far, alone):
                for (rtt, mbit), key in keys.items():
                    if not system.remote and (rtt, mbit) != self.scale.networks[0]:
                        continue  # no network: once is enough
                    network = Network(rtt, JITTER * rtt, mbit)
                    self._cell(key, self._over, system, task, user, far, made, network, alone)
            check_drift()

    def _over(
        self, system: System, task: Task, user: User, far: str, made: str, network: Network, cloud_bytes: int
    ) -> dict[str, Any]:
        with ExitStack() as stack:
            line = stack.enter_context(shaped(far, network)) if system.remote else None
            url = line.url if line else ""
            client = stack.enter_context(device(*system.device(Place(self.model, url, made, str(user.file)))))
            warm = (ask_reply(client, WARM_UP, LEAST, task.temperature, seed) for seed in range(TRIES))
            rate = next(filter(None, map(reply_rate, warm)), 1.0)  # tells how many tokens to ask for
            tokens = int(np.clip(self.scale.seconds * rate, LEAST, task.reply_tokens))
            rows: list[tuple[Any, ...]] = []
            for turn in range(TRIES * self.scale.rounds):
                if len(rows) == self.scale.rounds:
                    break
                prompt = task.prompts[turn % len(task.prompts)]
                # The same reply with its first token alone: what the prompt costs, to be told apart from the tokens.
                first, *begun = self._reply(client, line, prompt, 1, task.temperature, turn)
                reply, *done = self._reply(client, line, prompt, tokens, task.temperature, turn)
                if reply["tokens"] >= LEAST and reply_rate(reply):
                    trips = reply["round_trips"] - first["round_trips"]
                    rows.append((reply, trips, *(b - a for a, b in zip(begun, done, strict=True))))
            if len(rows) < 2:
                return {"unavailable": "its replies are too short to be timed"}
            # Behind the first token; a reply that ended by itself had one choice more, its end.
            behind = [row[0]["tokens"] - 1 + (row[0]["tokens"] < tokens) for row in rows]
            trips, down, up, cpu = (
                spread([max(0.0, row[column] / n) for row, n in zip(rows, behind, strict=True)])
                for column in (1, 2, 3, 4)
            )
            return {
                "tokens_s": spread([reply_rate(row[0]) for row in rows]),
                "token_ms": spread([1000 / reply_rate(row[0]) for row in rows]),
                "first_token_ms": spread([1000 * row[0]["times_s"][0] for row in rows]),
                "round_trips": trips,
                "bytes_down": down,
                "bytes_up": up,
                "cpu_ms": cpu,
                "peak_rss_mb": client.ask("cost")["peak_rss_mb"],
                "limit_tokens_s": line_limit(trips["median"], down["median"], up["median"], network) if line else None,
                "reply_tokens": tokens,
                "cloud_bytes": cloud_bytes,
            }

    def _reply(
        self, client: Device, line: Shaped | None, prompt: Prompt, tokens: int, temperature: float, seed: int
    ) -> tuple[dict[str, Any], int, int, float]:
        """A reply, the bytes that it took down and up, and the device's CPU milliseconds."""
        down, up = line.passed() if line else (0, 0)
        cpu = client.ask("cost")["cpu_s"]
        reply = ask_reply(client, prompt, tokens, temperature, seed)
        spent = client.ask("cost")["cpu_s"] - cpu
        down_now, up_now = line.passed() if line else (0, 0)
        return reply, down_now - down, up_now - up, 1000 * spent

    # the rest

    def _gate_curve(self, task: Task, url: str) -> None:
        user = task.users[0]

        def curve() -> Any:
            made = self.trained(BY_NAME["gated"], task, user, url)
            held = self.folder / "held.jsonl"
            held.write_text("".join(json.dumps({"text": e.reply}) + "\n" for e in user.test), encoding="utf-8")
            return command("gate", "curve", "--plugin", made, "--data", held, "--cloud", url)

        if all(example.prompt.messages is None for example in user.test):
            self._cell("gate curve", curve)

    def _users(self) -> None:
        from sideplug.bench.parts import users

        rounds, peft = self.scale.rounds, 0 if "cloud LoRA" in self.absent else 3
        self._cell("users", users.measure, self.model, self.scale.users, rounds, 32, min(rounds, peft))

    def _bits(self, chosen: list[Task]) -> None:
        """The base at each width of its weights: loss of the first task's first user, memory, speed."""
        user = chosen[0].users[0]

        def at(bits: str) -> dict[str, Any]:
            with served(self.model, "--bits", bits) as (url, process):
                with device(*BY_NAME["cloud only"].device(Place(self.model, url))) as client:
                    losses = texts.totals(
                        client.ask("losses", examples=[example_record(example) for example in user.test])
                    )
                rates = [self._reference(url) for _ in range(self.scale.rounds)]
                memory = process.memory_full_info().pss
            return {"loss": losses, "tokens_s": spread(rates), "pss_mb": round(memory / 1e6)}

        for bits in self.scale.bits:
            self._cell(f"bits/{bits}", at, bits)

    def _floor(self) -> dict[str, Any]:
        """How fast a single text could be decoded if reading the weights were all: bytes a step over the read rate."""
        folder = find(self.model).folder
        files = [*folder.glob("model.gguf")] or [*folder.glob("*.safetensors")]
        size = sum(file.stat().st_size for file in files)
        rate = read_gb_s(cores()[0])
        return {"weights_bytes": size, "read_gb_s": round(rate, 1), "tokens_s": round(rate * 1e9 / size, 1)}
