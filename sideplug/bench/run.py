"""A run: each system on each task, then each over each network, cell by cell.

What a person's plugin or adapter needs is trained once and kept in the run's folder; quality is measured without a
network, for a network changes no text; speed is measured behind the shaper, round by round, on replies of the task.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from rouge_score.rouge_scorer import RougeScorer

from sideplug.bench.cells import Cells
from sideplug.bench.meters import Energy, machine, read_gb_s
from sideplug.bench.processes import child, command, served
from sideplug.bench.shaper import Network, Shaped, shaped
from sideplug.bench.spreads import spread
from sideplug.bench.systems import BY_NAME, SYSTEMS, Device, Place, System, device, far_side
from sideplug.bench.tasks import Task, User
from sideplug.cloud.cores import cores
from sideplug.cloud.store import find
from sideplug.contract.errors import Stopped
from sideplug.contract.text import Prompt
from sideplug.device.plugin import KINDS, Plugin
from sideplug.terminal import say
from sideplug.training.data import Example

Rtt: TypeAlias = float  # milliseconds
Mbit: TypeAlias = float  # a second
TRAINED_AS = {
    "ladder": [],
    "paper": ["--kind", "paper", "--general-weight", 0],
    "paper-added": ["--kind", "paper-added", "--general-weight", 0],
}
EXACT_TOKENS, ROUGE_TOKENS = 32, 128  # of a reply that is judged
JITTER = 0.02  # of the RTT
DRIFT_S = 300.0  # between two checks of the machine
LEAST = 4  # tokens of a reply that is timed
TRIES = 4  # of a round: what is sampled may end at once
WARM_UP = Prompt.user("What is a bridge?")


@dataclass(frozen=True)
class Scale:
    """How much is measured. seconds: of a reply that speed is measured on, about; rounds: of such replies."""

    name: str
    authors: int
    passages: int
    tested: int
    facts: int
    asked: int
    general: int
    networks: tuple[tuple[Rtt, Mbit], ...]
    rounds: int
    seconds: float
    users: tuple[int, ...]
    bits: tuple[str, ...] = ("16", "8", "4")
    epochs: int = 0  # at most, of every training; 0: the task's
    examples: int = 0  # of the facts' to learn from; 0: all


RTTS, MBITS = (0, 20, 50, 100), (1, 10, 100)
SCALES = {
    "full": Scale("full", 10, 40, 8, 20, 40, 50, tuple(itertools.product(RTTS, MBITS)), 3, 3, (1, 2, 4, 8, 16)),
    "quick": Scale("quick", 2, 8, 3, 20, 6, 4, ((0, 10), (50, 10)), 2, 1.5, (1, 4), ("8", "4"), 2, 40),
}


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
        self.systems = [system for system in SYSTEMS if not self.only or system.name in self.only]
        folder = find(self.model).folder
        self.absent = {s.name: why for s in self.systems if (why := s.missing(folder))}
        self.systems = [system for system in self.systems if system.name not in self.absent]

    def measure(self, tasks: list[Task]) -> dict[str, Any]:
        """Everything that is not in `cells` yet; then the whole as one object."""
        energy, start = Energy(), time.time()
        self.cells.expected = sum(self.planned(task) for task in tasks) + len(self.scale.bits) + 4
        last = 0.0
        # Nothing is kept between replies: a prompt that another system had would come at once.
        with served(self.model, "--keep-seconds", 0) as (url, process):
            cloud = process.memory_full_info().pss

            def checked(now: bool = False) -> None:
                nonlocal last
                if now or time.time() - last > DRIFT_S:
                    last = time.time()
                    self.cells.measured(f"drift/{last:.0f}", lambda: {"at": last, "tokens_s": self._reference(url)})

            checked(now=True)
            for task in tasks:
                self._quality(task, url)
                checked()
            for task in tasks:
                self._speed(task, url, checked)
            if any(system.name == "gated" for system in self.systems):
                self._gate_curve(tasks[0], url)
            checked(now=True)
        if not self.only:
            self._users()
            self._bits(tasks)
        floor = self.cells.measured("floor", self._floor)
        if (joules := energy.joules) is not None:
            self.cells.measured(f"energy/{start:.0f}", lambda: {"joules": joules, "seconds": time.time() - start})
        return {
            "machine": machine(),
            "model": short(find(self.model).name),
            "date": time.strftime("%Y-%m-%d"),
            "scale": asdict(self.scale),
            "tasks": {task.name: {"title": task.title, "users": [user.name for user in task.users]} for task in tasks},
            "systems": {
                s.name: {name: getattr(s, name) for name in ("label", "how", "like", "base", "personal", "kept")}
                for s in self.systems
            },
            "absent": self.absent,
            "cloud_pss_mb": round(cloud / 1e6),
            "floor": floor,
            **grouped(self.cells.found),
        }

    def _cell(self, key: str, measure: Callable[..., Any], *about: Any) -> Any:
        """As `cells.measured`; what fails is a cell that says so, and the run goes on."""

        def tried() -> Any:
            try:
                return measure(*about)
            except Stopped as error:
                say(f"sideplug bench: {key}: {error}")
                return {"unavailable": str(error)}

        return self.cells.measured(key, tried)

    def planned(self, task: Task) -> int:
        """Cells of a task."""
        judged = sum(not system.like for system in self.systems) * len(task.users)
        trained = len({system.made for system in self.systems if system.made}) * len(task.users)
        timed = sum(len(self.scale.networks) if system.far else 1 for system in self.systems)
        return judged + trained + timed + (len(task.users) if len(task.users) > 1 else 0)

    def _reference(self, url: str) -> float:
        """Tokens a second of the plain cloud, for the drift of the machine."""
        with device(*BY_NAME["cloud only"].device(Place(self.model, url))) as asked:
            asked.ask("reply", prompt={"text": "Fellow-citizens,"}, max_tokens=8, temperature=0.7, seed=0)
            told = asked.ask("reply", prompt={"text": "Fellow-citizens,"}, max_tokens=48, temperature=0.7, seed=1)
        return round(pace(told), 2)

    # training

    def made(self, system: System, task: Task, user: User, url: str) -> str:
        """The folder of what is trained for a user, or "" for nothing."""
        if not system.made:
            return ""
        out = self.folder / task.name / f"{user.file.stem}-{system.made}"

        def train() -> dict[str, Any]:
            shutil.rmtree(out, ignore_errors=True)  # of a run that was cut: its tape would be had for nothing
            epochs = self.scale.epochs or task.epochs
            if system.made == "lora":
                with child(
                    "-m", "sideplug.bench.rivals.lora_training", self.model, user.file, out, "--epochs", epochs
                ) as process:
                    return process.ready | {"disk_bytes": disk_bytes(out)}
            width = ["--width", task.width] if task.width and system.made == "ladder" else []
            how = [*TRAINED_AS[system.made], *width, "--epochs", epochs, "--cloud", url, "--out", out, "--force"]
            told = command("train", user.file, *how)
            kept = ("recording_s", "seconds", "peak_rss_mb", "parameters", "tape_bytes", "epochs")
            plugin = Plugin.load(out)
            if system.made != "ladder":
                shutil.rmtree(out / "tape")  # of every hidden state, 36 KB a token
            told = {name: told[name] for name in kept}
            return told | {"backward_bytes_a_token": backward_bytes(plugin), "disk_bytes": disk_bytes(out)}

        key = f"training/{task.name}/{system.made}/{user.name}"
        self._cell(key, train)
        if "unavailable" in self.cells.found[key]:
            raise Stopped(f"its training failed: {self.cells.found[key]['unavailable']}")
        if not out.exists():  # the figures are there, what they are of is not
            train()
        return str(out)

    # quality

    def _quality(self, task: Task, url: str) -> None:
        for system, user in itertools.product(self.systems, task.users):
            if not system.like:
                self._cell(f"quality/{task.name}/{system.name}/{user.name}", self._judge, system, task, user, url)
        if {"ungated", "cloud only"} <= {s.name for s in self.systems} and len(task.users) > 1:
            for one in task.users:
                self._cell(f"matrix/{task.name}/{one.name}", self._matrix_row, task, one, url)

    @contextmanager
    def _device(self, system: System, task: Task, user: User, url: str) -> Iterator[Device]:
        made = self.made(system, task, user, url)
        with ExitStack() as stack:
            far, _ = stack.enter_context(far_side(system, self.model, url, made, self.folder))
            yield stack.enter_context(device(*system.device(Place(self.model, far, made, str(user.file)))))

    def _judge(self, system: System, task: Task, user: User, url: str) -> dict[str, Any]:
        """Of each example its figure and what it is over: nats and tokens, a score and one."""
        found: dict[str, Any] = {}
        with self._device(system, task, user, url) as asked:
            if system.tells_losses:
                told = asked.ask("losses", examples=[wire(example) for example in user.test])
                found["loss"] = told
            else:
                found["loss"] = {"unavailable": "its server tells no log-probabilities of a text"}
            if {"exact", "rouge"} & set(task.measures):
                found |= self._replies(asked, task, user)
            if task.general:
                found["general"] = [asked_for(asked, prompt, EXACT_TOKENS)["text"] for prompt in task.general]
        return found

    def _replies(self, asked: Device, task: Task, user: User) -> dict[str, Any]:
        exact = "exact" in task.measures
        tokens = EXACT_TOKENS if exact else ROUGE_TOKENS
        texts = [asked_for(asked, example.prompt, tokens)["text"] for example in user.test]
        ones = [1.0] * len(texts)
        if exact:
            wanted = [task.targets.get(example.reply, example.reply) for example in user.test]
            right = [float(says(text, target)) for target, text in zip(wanted, texts, strict=True)]
            return {"exact": list(zip(right, ones, strict=True))}
        scorer = RougeScorer(["rougeL"], use_stemmer=True)
        scores = [scorer.score(e.reply, text)["rougeL"].fmeasure for e, text in zip(user.test, texts, strict=True)]
        return {"rouge": list(zip(scores, ones, strict=True))}

    def _matrix_row(self, task: Task, user: User, url: str) -> dict[str, Any]:
        """Loss of everybody's held-out text with this user's plugin always on, and by the base."""
        rows: dict[str, Any] = {}
        with self._device(BY_NAME["ungated"], task, user, url) as asked:
            for other in task.users:
                told = np.array(asked.ask("losses", examples=[wire(example) for example in other.test]))
                base = np.array(self.cells.found[f"quality/{task.name}/cloud only/{other.name}"]["loss"])
                rows[other.name] = [round(float(t[:, 0].sum() / t[:, 1].sum()), 4) for t in (told, base)]
        return rows

    # speed

    def _speed(self, task: Task, url: str, checked: Callable[[], None]) -> None:
        user = task.users[0]
        for system in self.systems:
            keys = {n: f"speed/{task.name}/{system.name}/{n[0]}/{n[1]}" for n in self.scale.networks}
            if all(key in self.cells.found for key in keys.values()):
                continue
            made = self.made(system, task, user, url)
            with far_side(system, self.model, url, made, self.folder) as (far, alone):
                for (rtt, mbit), key in keys.items():
                    if not system.far and (rtt, mbit) != self.scale.networks[0]:
                        continue  # no network: once is enough
                    network = Network(rtt, JITTER * rtt, mbit)
                    self._cell(key, self._over, system, task, user, far, made, network, alone)
            checked()

    def _over(
        self, system: System, task: Task, user: User, far: str, made: str, network: Network, cloud_bytes: int
    ) -> dict[str, Any]:
        with ExitStack() as stack:
            line = stack.enter_context(shaped(far, network)) if system.far else None
            url = line.url if line else ""
            asked = stack.enter_context(device(*system.device(Place(self.model, url, made, str(user.file)))))
            warm = (asked_for(asked, WARM_UP, LEAST, task.temperature, seed) for seed in range(TRIES))
            rate = next(filter(None, map(pace, warm)), 1.0)  # tells how many tokens to ask for
            tokens = int(np.clip(self.scale.seconds * rate, LEAST, task.reply_tokens))
            rows: list[tuple[Any, ...]] = []
            for turn in range(TRIES * self.scale.rounds):
                if len(rows) == self.scale.rounds:
                    break
                prompt = task.asked[turn % len(task.asked)]
                # The same reply with its first token alone: what the prompt costs, to be told apart from the tokens.
                first, *begun = self._asked(asked, line, prompt, 1, task.temperature, turn)
                told, *done = self._asked(asked, line, prompt, tokens, task.temperature, turn)
                if told["tokens"] >= LEAST and pace(told):
                    trips = told["round_trips"] - first["round_trips"]
                    rows.append((told, trips, *(b - a for a, b in zip(begun, done, strict=True))))
            if len(rows) < 2:
                return {"unavailable": "its replies are too short to be timed"}
            # Behind the first token; a reply that ended by itself had one choice more, its end.
            behind = [row[0]["tokens"] - 1 + (row[0]["tokens"] < tokens) for row in rows]
            trips, down, up, cpu = (
                spread([max(0.0, row[column] / n) for row, n in zip(rows, behind, strict=True)])
                for column in (1, 2, 3, 4)
            )
            return {
                "tokens_s": spread([pace(row[0]) for row in rows]),
                "token_ms": spread([1000 / pace(row[0]) for row in rows]),
                "first_token_ms": spread([1000 * row[0]["times_s"][0] for row in rows]),
                "round_trips": trips,
                "bytes_down": down,
                "bytes_up": up,
                "cpu_ms": cpu,
                "peak_rss_mb": asked.ask("cost")["peak_rss_mb"],
                "limit_tokens_s": limit(trips["median"], down["median"], up["median"], network) if line else None,
                "reply_tokens": tokens,
                "cloud_bytes": cloud_bytes,
            }

    def _asked(
        self, asked: Device, line: Shaped | None, prompt: Prompt, tokens: int, temperature: float, seed: int
    ) -> tuple[dict[str, Any], int, int, float]:
        """A reply, the bytes that it took down and up, and the device's CPU milliseconds."""
        down, up = line.passed() if line else (0, 0)
        cpu = asked.ask("cost")["cpu_s"]
        told = asked_for(asked, prompt, tokens, temperature, seed)
        spent = asked.ask("cost")["cpu_s"] - cpu
        down_now, up_now = line.passed() if line else (0, 0)
        return told, down_now - down, up_now - up, 1000 * spent

    # the rest

    def _gate_curve(self, task: Task, url: str) -> None:
        user = task.users[0]

        def curve() -> Any:
            made = self.made(BY_NAME["gated"], task, user, url)
            held = self.folder / "held.jsonl"
            held.write_text("".join(json.dumps({"text": e.reply}) + "\n" for e in user.test))
            return command("gate", "curve", "--plugin", made, "--data", held, "--cloud", url)

        if all(example.prompt.messages is None for example in user.test):
            self._cell("gate curve", curve)

    def _users(self) -> None:
        from sideplug.bench.parts import users

        rounds, peft = self.scale.rounds, 0 if "cloud LoRA" in self.absent else 3
        self._cell("users", users.measure, self.model, self.scale.users, rounds, 32, min(rounds, peft))

    def _bits(self, tasks: list[Task]) -> None:
        """The base at each width of its weights: loss of the first task's first user, memory, speed."""
        user = tasks[0].users[0]

        def at(bits: str) -> dict[str, Any]:
            with served(self.model, "--bits", bits) as (url, process):
                told = []
                with device(*BY_NAME["cloud only"].device(Place(self.model, url))) as asked:
                    told = asked.ask("losses", examples=[wire(example) for example in user.test])
                rates = [self._reference(url) for _ in range(self.scale.rounds)]
                memory = process.memory_full_info().pss
            return {"loss": told, "tokens_s": spread(rates), "pss_mb": round(memory / 1e6)}

        for bits in self.scale.bits:
            self._cell(f"bits/{bits}", at, bits)

    def _floor(self) -> dict[str, Any]:
        """How fast a single text could be decoded if reading the weights were all: bytes a step over the read rate."""
        folder = find(self.model).folder
        files = [*folder.glob("model.gguf")] or [*folder.glob("*.safetensors")]
        size = sum(file.stat().st_size for file in files)
        rate = read_gb_s(cores()[0])
        return {"weights_bytes": size, "read_gb_s": round(rate, 1), "tokens_s": round(rate * 1e9 / size, 1)}


def short(model: str) -> str:
    """A model's name without its owner, or the name of its folder."""
    return model.rstrip("/").split("/")[-1]


def wire(example: Example) -> dict[str, Any]:
    return {"prompt": example.prompt.to_wire(), "reply": example.reply}


def asked_for(device: Device, prompt: Prompt, tokens: int, temperature: float = 0.0, seed: int = 0) -> dict[str, Any]:
    return device.ask("reply", prompt=prompt.to_wire(), max_tokens=tokens, temperature=temperature, seed=seed)


def pace(told: dict[str, Any]) -> float:
    """Tokens a second behind the first piece of the reply; 0 where there is nothing behind it."""
    times = told["times_s"]
    if not times or times[-1] <= times[0]:
        return 0.0
    behind = sum(at > times[0] for at in times) / len(times) * told["tokens"]  # a piece may be several tokens
    return behind / (times[-1] - times[0])


def says(text: str, target: str) -> bool:
    """Does the text hold the target, not as a part of longer words or numbers?"""
    return re.search(rf"(?<!\w){re.escape(target.strip())}(?!\w)", text) is not None


def limit(trips: float, down: float, up: float, network: Network) -> float | None:
    """Tokens a second that the line alone lets through, by a token's round trips and bytes; None: any."""
    seconds = trips * network.rtt_ms / 1000
    if network.mbit:
        # Where the text waits for the device both ways add up; else each way has its own line.
        seconds += 8e-6 / network.mbit * (down + up if trips > 0.5 else max(down, up))
    return round(1 / seconds, 2) if seconds else None


def disk_bytes(made: Path) -> int:
    """Of the weights of a plugin or an adapter."""
    return sum(file.stat().st_size for file in made.glob("*.safetensors"))


def backward_bytes(plugin: Plugin, tokens: int = 64) -> int:
    """Bytes a token that the plugin's own backward pass keeps. Nothing is kept of the LLM."""
    codes = np.zeros((tokens, len(plugin.tap.layers), plugin.tap.rank), np.float32)
    _, saved = KINDS[plugin.kind].forward(plugin.params, codes, train=True)
    arrays: list[np.ndarray] = []
    for part in saved:
        arrays += [a for a in (part if isinstance(part, (tuple, list)) else [part]) if isinstance(a, np.ndarray)]
    return (sum(a.nbytes for a in arrays) + codes.nbytes) // tokens


def grouped(cells: dict[str, Any]) -> dict[str, Any]:
    """Cells by the first part of their key, each with what its key says."""
    names = {
        "training": ("task", "made", "user"),
        "quality": ("task", "system", "user"),
        "matrix": ("task", "user"),
        "speed": ("task", "system", "rtt_ms", "mbit"),
        "bits": ("bits",),
    }
    found: dict[str, Any] = {name: [] for name in names} | {"drift": [], "energy": []}
    for key, value in cells.items():
        kind, *parts = key.split("/")
        if kind in names:
            found[kind].append({**dict(zip(names[kind], map(number, parts), strict=True)), **value})
        elif kind in ("drift", "energy"):
            found[kind].append(value)
        elif kind != "floor":
            found[kind.replace(" ", "_")] = value
    return found


def number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text
