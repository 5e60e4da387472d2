"""What is made of a device's answers: rates, limits, bytes, the groups of a result.

Test: pytest tests/bench/test_measures.py
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sideplug.bench.shaper import Network
from sideplug.bench.systems import Device
from sideplug.contract.text import Prompt
from sideplug.plugins import Plugin, file
from sideplug.plugins.base import ONE_TEXT


def short(model: str) -> str:
    """Return a model's name without its owner, or the name of its folder."""
    return model.rstrip("/").split("/")[-1]


def ask_reply(
    client: Device, prompt: Prompt, tokens: int, temperature: float = 0.0, seed: int = 0, top_p: float = 1.0
) -> dict[str, Any]:
    """Ask a device for a reply to this prompt: see devices.ours.Reply."""
    reply: dict[str, Any] = client.ask(
        "reply", prompt=prompt.to_json(), max_tokens=tokens, temperature=temperature, seed=seed, top_p=top_p
    )
    return reply


def reply_rate(reply: dict[str, Any]) -> float:
    """Return the tokens a second behind the first piece of the reply; 0 where there is nothing behind it."""
    times: list[float] = reply["times_s"]
    if not times or times[-1] <= times[0]:
        return 0.0
    behind = sum(at > times[0] for at in times) / len(times) * reply["tokens"]  # a piece may be several tokens
    return float(behind / (times[-1] - times[0]))


def contains_words(text: str, target: str) -> bool:
    """Return whether the text holds the target, not as a part of longer words or numbers."""
    return re.search(rf"(?<!\w){re.escape(target.strip())}(?!\w)", text) is not None


def line_limit(trips: float, down: float, up: float, network: Network) -> float | None:
    """Return the tokens a second that the line alone lets through, by a token's round trips and bytes; None: any."""
    seconds = trips * network.rtt_ms / 1000
    if network.mbit:
        # Where the text waits for the device both ways add up; else each way has its own line.
        seconds += 8e-6 / network.mbit * (down + up if trips > 0.5 else max(down, up))
    return round(1 / seconds, 2) if seconds else None


def disk_bytes(folder: Path) -> int:
    """Return the bytes of the weights of a plugin or an adapter."""
    files = file.part_files(folder) if file.is_plugin(folder) else folder.glob("*.safetensors")
    return sum(path.stat().st_size for path in files)


def backward_bytes(plugin: Plugin, tokens: int = 64) -> int:
    """Return the bytes a token that the plugin's own backward pass keeps. Nothing is kept of the LLM."""
    part = plugin.trained
    codes_TKR = np.zeros((tokens, len(part.tap.layers), part.tap.rank), np.float32)
    _, saved = part.kind.forward(part.params, codes_TKR, ONE_TEXT)
    kept = {id(array): array.nbytes for array in (*_arrays(saved), codes_TKR)}
    return sum(kept.values()) // tokens


def _arrays(saved: Any) -> Iterator[np.ndarray]:
    """Yield the arrays among what a kind's forward pass leaves, at any depth."""
    if isinstance(saved, np.ndarray):
        yield saved
    elif isinstance(saved, (list, tuple)):
        for part in saved:
            yield from _arrays(part)
    elif isinstance(saved, dict):
        yield from _arrays(list(saved.values()))


def grouped(cells: dict[str, Any]) -> dict[str, Any]:
    """Return the cells by the first part of their key, each with what its key says."""
    names = {
        "training": ("task", "made", "user"),
        "quality": ("task", "system", "user"),
        "texts": ("task", "system", "user"),
        "matrix": ("task", "user"),
        "speed": ("task", "system", "rtt_ms", "mbit"),
        "bits": ("bits",),
    }
    groups: dict[str, Any] = {name: [] for name in names} | {"drift": [], "energy": []}
    for key, value in cells.items():
        kind, *parts = key.split("/")
        if kind in names:
            groups[kind].append({**dict(zip(names[kind], map(_number, parts), strict=True)), **value})
        elif kind in ("drift", "energy"):
            groups[kind].append(value)
        elif kind != "floor":
            groups[kind.replace(" ", "_")] = value
    return groups


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text
