"""Who is compared. A system is what is trained for a person, what runs far away, and what runs on the device.

Its settings stand in `settings`, which the report prints: rivals get their best reasonable ones.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sideplug.bench.processes import Child, child
from sideplug.contract.gate import Gate
from sideplug.device.reply import WINDOW
from sideplug.plugins import Plugin, trained_kinds
from sideplug.plugins.base import trained_kind
from sideplug.training.recipe import FACTS, MANNER, Recipe

LORA_RANK = 8
EXCHANGE_RANK = 8
OURS = "ours"  # the kind that `sideplug train` takes for the task's examples
NEAREST = 3
# To be chosen on people whom no task has (`sideplug bench --part rivals`).
KNN_SHARE, KNN_HEAT = 0.1, 0.03
STEER_WEIGHT = 1.0


@dataclass(frozen=True)
class Place:
    """What a device is started with: the model, the remote side's URL, the folder of what was trained ("": none)."""

    model: str
    url: str
    trained: str = ""
    examples: str = ""


Settings = tuple[str, dict[str, Any]]  # of the device: see devices/


@dataclass(frozen=True)
class System:
    """A way to split and personalise a model.

    settings: as the report tells them. device: what its device is started with.
    trains: what is made for a person: a plugin of this kind or OURS, "lora", LORA_OTHERS or nothing. retain: whether a
    plugin learns to leave general prompts to the base, as `sideplug train` has it.
    remote: what runs beyond the network. base: the system whose replies are the untouched ones.
    same_texts_as: the system whose quality this one has, because its texts are the same.
    tasks: those that it belongs to; (): all. quick: whether a quick run has it where it is not named.
    timed: whether its speed is measured; what shows a pattern's quality alone has none.
    """

    name: str
    label: str
    settings: str
    device: Callable[[Place], Settings]
    trains: str = ""
    retain: bool = True
    remote: str = "sideplug"  # or "gateway", "transformers", "per layer", or "" for none
    same_texts_as: str = ""
    base: str = "cloud only"
    tells_losses: bool = True
    tasks: tuple[str, ...] = ()
    quick: bool = True
    timed: bool = True
    with_examples: bool = False  # the device has the person's examples
    needs: tuple[str, ...] = ()  # packages

    @property
    def personal(self) -> bool:
        """Whether it knows whose text it is."""
        return bool(self.trains) or self.with_examples

    @property
    def kept(self) -> str:
        """What the device has on its disk: the model, the person's examples, what is trained for them, or nothing."""
        if not self.remote:
            return "model"
        if self.with_examples and not self.trains:
            return "examples"
        return self.trains if self.remote == "sideplug" else ""

    def belongs(self, task: str) -> bool:
        """Whether it is compared on the task of this name."""
        return not self.tasks or task in self.tasks

    def for_report(self) -> dict[str, Any]:
        """Return what a result says of the system."""
        return {
            "label": self.label,
            "how": self.settings,
            "like": self.same_texts_as,
            "base": self.base,
            "personal": self.personal,
            "kept": self.kept,
        }

    def missing(self, folder: Path) -> str:
        """Why it can't run the model of this folder here, or ""."""
        absent = [name for name in self.needs if importlib.util.find_spec(name) is None]
        if absent:
            return f"needs {', '.join(absent)} (pip install 'sideplug[bench]')"
        if "xllamacpp" in self.needs and not (folder / "model.gguf").exists():
            return "needs the model as a GGUF file"
        return ""


def ours(gate: str, window: int = 0, drafts: bool = False) -> Callable[[Place], Settings]:
    """Return how our device is started: with this gate ("": the plugin's own), window and drafts."""
    more = {"gate": gate, "window": window, "drafts": drafts}
    return lambda place: ("ours", {"url": place.url, "plugin": place.trained, **more})


HF = ("torch", "transformers")
LORA_OTHERS = "lora-others"
PROSE = ("authors", "mails", "curve")
DESCRIBED = (
    System("cloud only", "cloud only", "sideplug serve, nobody's plugin: the ceiling of speed", ours("shut")),
    System(
        "retrieval",
        "nearest examples in the prompt",
        f"sideplug serve, nobody's plugin; the person's {NEAREST} nearest examples (BM25) before each prompt",
        lambda p: ("retrieval", {"url": p.url, "examples": p.examples, "nearest": NEAREST}),
        with_examples=True,
        needs=("bm25s",),
    ),
    System(
        "cloud LoRA",
        "cloud LoRA per user",
        f"PEFT, r={LORA_RANK} on q and v, alpha 16, AdamW at 1e-3 with a linear decay, the epoch that is best on "
        "held-out examples, the person's text alone; transformers, float32",
        lambda p: ("far", {"url": p.url}),
        trains="lora",
        remote="transformers",
        base="device, transformers",
        needs=(*HF, "peft"),
    ),
    System(
        "cloud LoRA, others first",
        "cloud LoRA per user, others' text first",
        "the same, but it goes on from an adapter that one epoch of other people's text of this genre has made; the "
        "epoch that is best on held-out examples, or none",
        lambda p: ("far", {"url": p.url}),
        trains=LORA_OTHERS,
        remote="transformers",
        base="device, transformers",
        tasks=PROSE,
        quick=False,
        timed=False,
        needs=(*HF, "peft"),
    ),
    System(
        "kNN-LM",
        "kNN-LM",
        f"the person's text as a store of states and what followed (kNN-LM), {KNN_SHARE:.0%} of the probability at a "
        f"heat of {KNN_HEAT}; transformers, float32",
        lambda p: ("knn", {"model": p.model, "examples": p.examples, "share": KNN_SHARE, "heat": KNN_HEAT}),
        remote="",
        base="device, transformers",
        tasks=PROSE,
        quick=False,
        timed=False,
        with_examples=True,
        needs=HF,
    ),
    System(
        "steering",
        "small model steers",
        f"CoSteer's pattern: the base on the device with the {NEAREST} nearest examples in its prompt and without, the "
        f"difference of their logits {STEER_WEIGHT:g} times added to the cloud's; transformers, float32",
        lambda p: (
            "steer",
            {"model": p.model, "examples": p.examples, "nearest": NEAREST, "weight": STEER_WEIGHT},
        ),
        remote="",
        base="device, transformers",
        tasks=PROSE,
        quick=False,
        timed=False,
        with_examples=True,
        needs=(*HF, "bm25s"),
    ),
    System(
        "retrieval and ours",
        "nearest examples, and ours, gated",
        f"the {NEAREST} nearest examples before each prompt, through our device with the plugin at its calibrated gate",
        lambda p: (
            "retrieval",
            {"url": p.url, "examples": p.examples, "nearest": NEAREST, "plugin": p.trained},
        ),
        trains=OURS,
        tasks=PROSE,
        quick=False,
        with_examples=True,
        needs=("bm25s",),
    ),
    System(
        "device, llama.cpp",
        "device only, llama.cpp",
        "the very GGUF that the cloud serves, by xllamacpp, all cores",
        lambda p: ("gguf", {"model": p.model}),
        remote="",
        tells_losses=False,
        needs=("xllamacpp",),
    ),
    System(
        "device, transformers",
        "device only, transformers",
        "the same weights in float32, all cores",
        lambda p: ("hf", {"model": p.model}),
        remote="",
        base="device, transformers",
        needs=HF,
    ),
    System(
        "SPA as in the paper",
        "SPA as in the paper",
        f"the paper's ladder (width {trained_kind('paper').default_width}), every hidden state as fp16, every token, "
        "its output in place of z; trained on the person's text alone",
        ours("open"),
        trains="paper",
        retain=False,
    ),
    System(
        "SPA, added to z",
        "SPA as in the paper, added to z",
        "the same, but its output is added to z",
        ours("open"),
        trains="paper-added",
        retain=False,
    ),
    System(
        "ungated",
        "ours, ungated",
        f"as sideplug train makes it: {MANNER} with its trunk for text, {FACTS} for facts; {Recipe().taps} taps of "
        f"{Recipe().rank} int8 numbers; asked for every token; trained with general prompts, which the base answers",
        ours("open"),
        trains=OURS,
    ),
    System("gated", "ours, gated", "the same plugin at its calibrated gate", ours(""), trains=OURS),
    System(
        "gated, lookahead",
        "ours, gated, with lookahead",
        f"the same, decoded speculatively in a window of {WINDOW} asks, with drafts from the person's phrases",
        ours("", WINDOW, True),
        trains=OURS,
        same_texts_as="gated",
    ),
    System(
        "per layer",
        "a round trip a layer",
        f"the traffic pattern of PrivateLoRA: q, k and v of rank {EXCHANGE_RANK} there and back in each layer; M is "
        "zero, so its text is the base's; transformers, float32",
        lambda p: ("far", {"url": p.url, "rank": EXCHANGE_RANK}),
        remote="per layer",
        same_texts_as="device, transformers",
        base="device, transformers",
        needs=HF,
    ),
    System(
        "plugin in the cloud",
        "ladder side-tuning, plugin in the cloud",
        "the ungated plugin in a gateway beside the cloud; only text passes the network",
        lambda p: ("gateway", {"url": p.url, "model": f"{Path(p.trained).name}-open"}),
        trains=OURS,
        remote="gateway",
        same_texts_as="ungated",
    ),
)


def further(kinds: Iterable[str], described: Sequence[System]) -> list[System]:
    """Return a system for each kind of plugin that none of the described ones trains: at its calibrated gate."""
    known = {MANNER, *(system.trains for system in described)}  # the first is ours, for text
    return [
        System(
            name,
            f"{name}, gated",
            f"a plugin of the kind {name}, trained as sideplug train does, at its calibrated gate",
            ours(""),
            trains=name,
        )
        for name in kinds
        if name not in known
    ]


SYSTEMS = (*DESCRIBED, *further(trained_kinds(), DESCRIBED))
BY_NAME = {system.name: system for system in SYSTEMS}


class Device:
    """A device's process, asked line by line. Raises Stopped where it has ended."""

    def __init__(self, process: Child) -> None:
        self._process = process

    def ask(self, request: str, **arguments: Any) -> Any:
        """Return its answer to "reply", "losses" or "cost" (see devices/)."""
        self._process.write({"do": request, **arguments})
        return self._process.read()


@contextmanager
def device(kind: str, settings: dict[str, Any]) -> Iterator[Device]:
    """A device of this kind (a module of devices/) with these settings, in a process of its own."""
    with child("-m", "sideplug.bench.devices", kind, json.dumps(settings)) as process:
        yield Device(process)


@contextmanager
def remote_side(system: System, model: str, cloud: str, trained: str, scratch: Path) -> Iterator[tuple[str, int]]:
    """(URL of what the device of this system talks to, bytes that it takes for this person alone beside KV caches)."""
    if system.remote == "gateway":
        always = scratch / f"{Path(trained).name}-open"
        shutil.rmtree(always, ignore_errors=True)
        plugin = Plugin.load(Path(trained))
        plugin.trained.gate = Gate("open")
        plugin.save(always)
        gateway = ["-m", "sideplug", "gateway", "--plugin", always, "--cloud", cloud, "--port", 0, "--json"]
        with child(*gateway) as process:
            yield process.ready["url"], process.process.memory_full_info().pss
    elif system.remote in ("transformers", "per layer"):
        exchange = ["--per-layer", EXCHANGE_RANK] if system.remote == "per layer" else []
        more = ["--adapter", trained] if trained else exchange
        with child("-m", "sideplug.bench.rivals.hf_cloud", model, *more) as process:
            yield process.ready["url"], Path(trained, "adapter_model.safetensors").stat().st_size if trained else 0
    else:
        yield cloud if system.remote else "", 0
