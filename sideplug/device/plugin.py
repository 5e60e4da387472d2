"""The side plugin: from a token's codes to a correction of z. NumPy, forward and backward, and its file.

    ladder    s = 0; for k: s += A_k c_k; s += mlp_k(s);  Δ = C gelu(s) + b       added to z; C zero at the start
    paper     arXiv 2403.07088's released ladder over every raw state, relu, whose output replaces z

An untrained `ladder` is exactly the base model. Files carry PEFT's names: adapter_config.json,
adapter_model.safetensors; the latter's header holds everything that matters, so the pair can't disagree.

Letters: T tokens, K tapped layers, R code width, W plugin width, D the base model's width.
It does not know the wire, training data or the base model. Test: pytest tests/device/test_plugin.py
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from sideplug.contract.errors import PluginError, Stopped, WrongBase
from sideplug.contract.gate import Gate
from sideplug.contract.tap import Tap
from sideplug.device import sealed_file
from sideplug.paths import write_aside

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
SUFFIX = ".sealed"  # of what only a passphrase opens
SEALED = WEIGHTS + SUFFIX
GATE, PHRASES = "gate", "phrases"  # tensors beside the parameters
FORMAT = 2
Params = dict[str, np.ndarray]


def gelu(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """GELU (tanh form, Hendrycks & Gimpel 2016) and its derivative."""
    c = np.float32(np.sqrt(2 / np.pi))
    inner = np.tanh(c * (x + np.float32(0.044715) * x * x * x))
    value = np.float32(0.5) * x * (1 + inner)
    slope = np.float32(0.5) * (1 + inner) + np.float32(0.5) * x * (1 - inner * inner) * c * (
        1 + np.float32(3 * 0.044715) * x * x
    )
    return value, slope


class Ladder:
    """Our default kind. Parameters: a_KRW, a_bias_KW, up_KWW, up_bias_KW, down_KWW, down_bias_KW, c_WD, c_bias_D."""

    merge = "add"

    @staticmethod
    def init(taps: int, rank: int, width: int, model_width: int, rng: np.random.Generator) -> Params:
        def uniform(*shape: int) -> np.ndarray:  # PyTorch's Linear: U(−1/√fan_in, 1/√fan_in)
            bound = shape[-2] ** -0.5
            return rng.uniform(-bound, bound, shape).astype(np.float32)

        zeros = lambda *shape: np.zeros(shape, np.float32)  # noqa: E731
        return {
            "a": uniform(taps, rank, width),
            "a_bias": zeros(taps, width),
            "up": uniform(taps, width, width),
            "up_bias": zeros(taps, width),
            "down": uniform(taps, width, width),
            "down_bias": zeros(taps, width),
            "c": zeros(width, model_width),
            "c_bias": zeros(model_width),
        }

    @staticmethod
    def forward(p: Params, code_TKR: np.ndarray, train: bool = False) -> tuple[np.ndarray, list[Any]]:
        """Δ (T, D), and with `train` what `backward` needs."""
        saved: list[Any] = []
        s = np.zeros((code_TKR.shape[0], p["a"].shape[2]), np.float32)
        for k in range(p["a"].shape[0]):
            s = s + code_TKR[:, k] @ p["a"][k] + p["a_bias"][k]
            value, slope = gelu(s @ p["up"][k] + p["up_bias"][k])
            if train:
                saved.append((s, value, slope))
            s = s + value @ p["down"][k] + p["down_bias"][k]
        value, slope = gelu(s)
        if train:
            saved.append((value, slope))
        return value @ p["c"] + p["c_bias"], saved

    @staticmethod
    def backward(p: Params, code_TKR: np.ndarray, saved: list[Any], d_delta_TD: np.ndarray) -> Params:
        """Gradients of every parameter, given the loss's gradient at Δ."""
        g = {name: np.zeros_like(value) for name, value in p.items()}
        value, slope = saved[-1]
        g["c"] = value.T @ d_delta_TD
        g["c_bias"] = d_delta_TD.sum(0)
        d_s = (d_delta_TD @ p["c"].T) * slope
        for k in reversed(range(p["a"].shape[0])):
            s, value, slope = saved[k]
            g["down"][k] = value.T @ d_s
            g["down_bias"][k] = d_s.sum(0)
            d_inner = (d_s @ p["down"][k].T) * slope
            g["up"][k] = s.T @ d_inner
            g["up_bias"][k] = d_inner.sum(0)
            d_s = d_s + d_inner @ p["up"][k].T
            g["a"][k] = code_TKR[:, k].T @ d_s
            g["a_bias"][k] = d_s.sum(0)
        return g


class Paper:
    """The paper's released ladder, for comparison: K = N raw states (layers 1…N), width W, the output replaces z."""

    merge = "replace"

    @staticmethod
    def init(taps: int, rank: int, width: int, model_width: int, rng: np.random.Generator) -> Params:
        def uniform(fan_in: int, *shape: int) -> np.ndarray:
            return rng.uniform(-(fan_in**-0.5), fan_in**-0.5, shape).astype(np.float32)

        steps = taps - 2  # states h_1 … h_N: the first starts the ladder, the others are its rungs (h_0 is not read)
        return {
            "in": uniform(rank, rank, width),
            "in_bias": uniform(rank, width),
            "rung": uniform(rank, steps, rank, width),
            "rung_bias": uniform(rank, steps, width),
            "up": uniform(width, steps, width, rank),
            "up_bias": uniform(width, steps, rank),
            "down": uniform(rank, steps, rank, width),
            "down_bias": uniform(rank, steps, width),
            "out": uniform(width, width, model_width),
            "out_bias": uniform(width, model_width),
        }

    @staticmethod
    def forward(p: Params, code_TKR: np.ndarray, train: bool = False) -> tuple[np.ndarray, list[Any]]:
        saved: list[Any] = []
        h = code_TKR[:, 1] @ p["in"] + p["in_bias"]
        for i in range(p["rung"].shape[0]):
            h = np.maximum(h, 0)
            inner = np.maximum(h @ p["up"][i] + p["up_bias"][i], 0)
            if train:
                saved.append((h, inner))
            h = code_TKR[:, i + 2] @ p["rung"][i] + p["rung_bias"][i] + h + inner @ p["down"][i] + p["down_bias"][i]
        h = np.maximum(h, 0)
        if train:
            saved.append(h)
        return h @ p["out"] + p["out_bias"], saved

    @staticmethod
    def backward(p: Params, code_TKR: np.ndarray, saved: list[Any], d_out_TD: np.ndarray) -> Params:
        g = {name: np.zeros_like(value) for name, value in p.items()}
        h = saved[-1]
        g["out"] = h.T @ d_out_TD
        g["out_bias"] = d_out_TD.sum(0)
        d_h = (d_out_TD @ p["out"].T) * (h > 0)
        for i in reversed(range(p["rung"].shape[0])):
            h, inner = saved[i]
            g["rung"][i] = code_TKR[:, i + 2].T @ d_h
            g["rung_bias"][i] = d_h.sum(0)
            g["down"][i] = inner.T @ d_h
            g["down_bias"][i] = d_h.sum(0)
            d_inner = (d_h @ p["down"][i].T) * (inner > 0)
            g["up"][i] = h.T @ d_inner
            g["up_bias"][i] = d_inner.sum(0)
            d_h = (d_h + d_inner @ p["up"][i].T) * (h > 0)
        g["in"] = code_TKR[:, 1].T @ d_h
        g["in_bias"] = d_h.sum(0)
        return g


class PaperAdded(Paper):
    """The same, but its output is added to z, and begins as nothing: untrained it is the base."""

    merge = "add"

    @staticmethod
    def init(taps: int, rank: int, width: int, model_width: int, rng: np.random.Generator) -> Params:
        params = Paper.init(taps, rank, width, model_width, rng)
        return {**params, "out": np.zeros_like(params["out"]), "out_bias": np.zeros_like(params["out_bias"])}


KINDS: dict[str, Any] = {"ladder": Ladder, "paper": Paper, "paper-added": PaperAdded}


@dataclass
class Plugin:
    """One person's plugin. `base` is the base model's fingerprint; `about` what training wrote down of itself."""

    kind: str
    base: str
    base_name: str
    tap: Tap
    params: Params
    gate: Gate = field(default_factory=Gate)
    phrases: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))  # the person's, for the lookahead
    about: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def new(cls, kind: str, base: str, base_name: str, tap: Tap, width: int, model_width: int, seed: int = 0) -> Plugin:
        """Untrained. Raises PluginError for a kind that does not exist, or a tap that the kind can't read."""
        if kind not in KINDS:
            raise PluginError(f"a plugin's kind must be one of {', '.join(KINDS)}, got {kind!r}")
        every = tap.codec == "raw" and len(tap.layers) >= 3 and tap.layers[-1] == len(tap.layers) - 1
        if issubclass(KINDS[kind], Paper) and not every:
            raise PluginError("the paper plugin must have a raw tap of every layer (--tap raw)")
        params = KINDS[kind].init(len(tap.layers), tap.rank, width, model_width, np.random.default_rng(seed))
        return cls(kind, base, base_name, tap, params)

    @property
    def merge(self) -> str:
        """What the cloud does with a correction: "add" it to z, or "replace" z by it."""
        return KINDS[self.kind].merge

    @property
    def size(self) -> int:
        """Parameters."""
        return sum(value.size for value in self.params.values())

    def correct(self, code_TKR: np.ndarray) -> np.ndarray:
        """Codes (T, K, R) float32 → corrections (T, D) float32."""
        return KINDS[self.kind].forward(self.params, code_TKR)[0]

    def config(self) -> dict[str, Any]:
        return {
            "peft_type": "SIDEPLUG",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base_name,
            "format": FORMAT,
            "kind": self.kind,
            "base_fingerprint": self.base,
            "tap": self.tap.name,
            "merge": self.merge,
            "gate": {**self.gate.to_wire(), "dial": list(self.gate.dial)},
            "about": self.about,
        }

    def to_bytes(self) -> bytes:
        """The whole plugin, as a safetensors file."""
        tensors = {**self.params, GATE: self.gate.weight_D, PHRASES: self.phrases}
        return safetensors.numpy.save(tensors, {"sideplug": json.dumps(self.config())})

    def save(self, folder: Path) -> None:
        """Write both files aside, then rename them: a full disk leaves the old plugin whole. Raises Stopped.

        Only their owner can read them.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_aside(folder / WEIGHTS, self.to_bytes())
            write_aside(folder / CONFIG, json.dumps(self.config(), indent=2).encode() + b"\n")
        except OSError as error:
            raise Stopped(f"the plugin could not be written to {folder}: {error.strerror or error}") from error

    @classmethod
    def load(cls, folder: Path, passphrase: Callable[[], str] = lambda: "") -> Plugin:
        """Raises PluginError, in one sentence, for a folder that holds no whole plugin of ours.

        `passphrase` is asked for where the plugin is sealed; WrongPassphrase is a PluginError too.
        """
        path, sealed = folder / WEIGHTS, folder / SEALED
        if not path.is_file() and not sealed.is_file():
            raise PluginError(f"there is no plugin in {folder}: it must have {WEIGHTS} (sideplug train makes it)")
        try:
            if path.is_file():
                return cls.from_bytes(path.read_bytes(), str(path))
            return cls.from_bytes(sealed_file.unseal(sealed.read_bytes(), passphrase()), str(sealed))
        except OSError as error:
            raise PluginError(f"{folder} can't be read: {error.strerror or error}") from error

    @classmethod
    def from_bytes(cls, file: bytes, path: str) -> Plugin:
        """What `to_bytes` gave. `path` names it in errors. Raises PluginError."""
        try:
            size = int.from_bytes(file[:8], "little")
            header = json.loads(file[8 : 8 + size]).get("__metadata__", {}).get("sideplug")
            if header is None:
                raise PluginError(f"{path} is not a side plugin: it holds another kind of adapter")
            config = json.loads(header)
            params = safetensors.numpy.load(file)
        except (safetensors.SafetensorError, ValueError, AttributeError) as error:
            raise PluginError(f"{path} is truncated or damaged: {error}") from error
        try:
            if config["format"] != FORMAT:
                raise PluginError(f"{path} has format {config['format']}, this version reads {FORMAT}")
            tap = Tap.parse(config["tap"])
            gate, phrases = params.pop(GATE), params.pop(PHRASES)
            plugin = cls(
                config["kind"],
                config["base_fingerprint"],
                config["base_model_name_or_path"],
                tap,
                params,
                Gate.from_wire(config["gate"], gate, tuple(config["gate"]["dial"])),
                phrases,
                config["about"],
            )
            delta = plugin.correct(np.zeros((1, len(tap.layers), tap.rank), np.float32))
            plugin.gate.check(delta.shape[1])
        except PluginError:
            raise
        except Exception as error:
            raise PluginError(f"{path} is damaged: {type(error).__name__} {error}") from error
        return plugin

    def check_base(self, fingerprint: str, name: str) -> None:
        """Raises WrongBase unless the plugin was made for this base model."""
        if fingerprint != self.base:
            raise WrongBase(
                f"this plugin was made for the base model {self.base[:12]} ({self.base_name}), but the cloud serves "
                f"{fingerprint[:12]} ({name}): serve that model, or train a plugin for this one"
            )


def is_sealed(folder: Path) -> bool:
    """Is there a plugin that only its passphrase opens?"""
    return (folder / SEALED).is_file() and not (folder / WEIGHTS).is_file()
