"""Who is compared. A system is what is trained for a person, what runs far away, and what runs on the device.

Its settings stand in `settings`, which the report prints: rivals get their best reasonable ones.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sideplug.bench.processes import Child, child
from sideplug.contract.gate import Gate
from sideplug.device.plugin import Plugin

LORA_RANK = 8
EXCHANGE_RANK = 8
NEAREST = 3


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
    trains: what is made for a person: "ladder", "paper", "paper-added", "lora" or nothing.
    remote: what runs beyond the network. base: the system whose replies are the untouched ones.
    same_texts_as: the system whose quality this one has, because its texts are the same.
    """

    name: str
    label: str
    settings: str
    device: Callable[[Place], Settings]
    trains: str = ""
    remote: str = "sideplug"  # or "gateway", "transformers", "per layer", or "" for none
    same_texts_as: str = ""
    base: str = "cloud only"
    tells_losses: bool = True
    needs: tuple[str, ...] = ()  # packages

    @property
    def personal(self) -> bool:
        """Whether it knows whose text it is."""
        return bool(self.trains) or self.name == "retrieval"

    @property
    def kept(self) -> str:
        """What the device has on its disk: the model, the person's examples, what is trained for them, or nothing."""
        if not self.remote:
            return "model"
        if self.name == "retrieval":
            return "examples"
        return self.trains if self.remote == "sideplug" else ""

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


def ours(gate: str, ahead: int = 0, lookahead: bool = False) -> Callable[[Place], Settings]:
    """Return how our device is started: with this gate ("": the plugin's own), window and drafts."""
    more = {"gate": gate, "ahead": ahead, "lookahead": lookahead}
    return lambda place: ("ours", {"url": place.url, "plugin": place.trained, **more})


HF = ("torch", "transformers")
SYSTEMS = (
    System("cloud only", "cloud only", "sideplug serve, nobody's plugin: the ceiling of speed", ours("shut")),
    System(
        "retrieval",
        "nearest examples in the prompt",
        f"sideplug serve, nobody's plugin; the person's {NEAREST} nearest examples (BM25) before each prompt",
        lambda p: ("retrieval", {"url": p.url, "examples": p.examples, "nearest": NEAREST}),
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
        "the paper's ladder (width 32), every hidden state as fp16, every token, its output in place of z; trained on "
        "the person's text alone",
        ours("open"),
        trains="paper",
    ),
    System(
        "SPA, added to z",
        "SPA as in the paper, added to z",
        "the same, but its output is added to z",
        ours("open"),
        trains="paper-added",
    ),
    System(
        "ungated",
        "ours, ungated",
        "9 taps of 64 int8 numbers; asked for every token; trained with general prompts, which the base answers",
        ours("open"),
        trains="ladder",
    ),
    System("gated", "ours, gated", "the same plugin at its calibrated gate", ours(""), trains="ladder"),
    System(
        "gated, lookahead",
        "ours, gated, with lookahead",
        "the same, run ahead with up to 24 open asks, drafts from the person's phrases",
        ours("", 24, True),
        trains="ladder",
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
        trains="ladder",
        remote="gateway",
        same_texts_as="ungated",
    ),
)
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
        replace(Plugin.load(Path(trained)), gate=Gate("open")).save(always)
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
