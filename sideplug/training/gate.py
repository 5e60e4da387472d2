"""The trained gate: where the plugin has something to add. Fitted with the plugin frozen, on both kinds of text.

    L = −log[(1−g)·p_base(y) + g·p_plugin(y)] + λ·mean(g)         g = σ(u·z + b)

the latent-choice likelihood of Co-LLM (arXiv 2403.03870) with a penalty on the rate, after some steps on weak labels
(personal text but where the plugin harms, against general text). Then the threshold is calibrated on held-out text.
Letters: T tokens, D width. Test: pytest tests/training/test_fit_gate.py
"""

from __future__ import annotations

import importlib.util
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sideplug.contract.correction import Correction, pack_corrections
from sideplug.contract.errors import InputError, Stopped
from sideplug.contract.frames import Answer, Ask
from sideplug.contract.gate import Gate
from sideplug.contract.tap import Tap
from sideplug.contract.wire import encode
from sideplug.training import adamw
from sideplug.training.judged import Judged

MOST = 4096  # tokens of each kind that are fitted to
LABEL_STEPS, CHOICE_STEPS = 300, 100
RATE = 1e-2
DECAY = 0.5
PENALTY = 0.05  # λ
HARMS = 0.1  # nats: where the plugin makes a personal token worse by that, the weak label says no
KEEP = 0.985  # of the plugin's gain on held-out personal text, at the calibrated threshold …
QUIET = 0.025  # … and of general tokens that it may be asked about
MEMORIES = (0.0, 0.5, 0.7)
RATES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)


def fit(personal: Judged, general: Judged, seed: int = 0) -> Gate:
    """A linear gate. Threshold 0, no dial: see `calibrate`."""
    rng = np.random.default_rng(seed)
    parts = []
    for judged in (personal, general):
        rows = rng.permutation(len(judged.base))[:MOST]
        parts.append((judged.z_TD[rows], judged.base[rows], judged.plugin[rows], np.full(len(rows), 1 / len(rows))))
    x, base, plugin, share = (np.concatenate(column) for column in zip(*parts, strict=True))
    mean, spread = x.mean(0), x.std(0) + np.float32(1e-5)
    x -= mean
    x /= spread
    ours = np.arange(len(x)) < len(parts[0][0])
    label = ours & (plugin - base > -HARMS)
    weight, bias = np.zeros(x.shape[1], np.float32), np.zeros(1, np.float32)
    moments = [(np.zeros_like(value), np.zeros_like(value)) for value in (weight, bias)]
    for step in range(1, LABEL_STEPS + CHOICE_STEPS + 1):
        g = 1 / (1 + np.exp(-np.clip(x @ weight + bias, -30, 30)))
        slope = g - label if step <= LABEL_STEPS else choice_slope(g, base, plugin)
        slope = (slope * share / 2).astype(np.float32)
        adamw.step(weight, slope @ x, *moments[0], step, RATE, DECAY)
        adamw.step(bias, slope.sum(keepdims=True), *moments[1], step, RATE, 0.0)
    folded = (weight / spread).astype(np.float32)
    return Gate("linear", folded, float(bias[0] - mean @ folded))


def choice_slope(g: np.ndarray, base: np.ndarray, plugin: np.ndarray) -> np.ndarray:
    """(T,) gradient of L at u·z + b, from g and both log-probabilities."""
    peak = np.maximum(base, plugin)
    p, q = np.exp(base - peak), np.exp(plugin - peak)
    slope: np.ndarray = ((p - q) / ((1 - g) * p + g * q) + PENALTY) * g * (1 - g)
    return slope


def calibrate(gate: Gate, personal: Judged, general: Judged) -> Gate:
    """The same gate with its memory, dial and default threshold, from held-out text.

    The memory is the one that tells the two texts apart best: that lets the least of the general tokens through where
    KEEP of the gain is kept. The threshold keeps KEEP, and is lower where QUIET of the general tokens allow it.
    """
    tried = []
    for memory in MEMORIES:
        smoothed = replace(gate, memory=memory)
        ours, others = (smoothed.scores(text.z_TD, text.starts) for text in (personal, general))
        keeps = _keeps(ours, personal.gain)
        quiet = float(np.quantile(others, 1 - QUIET))
        dial = tuple(np.quantile(ours, np.linspace(0, 1, 201)).tolist())
        threshold = min(keeps, quiet) if np.isfinite(keeps) else max(float(ours.max()), quiet)
        leak = float((others > keeps).mean())
        tried.append((leak, memory, replace(smoothed, threshold=threshold, dial=dial)))
    return min(tried, key=lambda found: found[:2])[2]


def _keeps(scores: np.ndarray, gain: np.ndarray) -> float:
    """The highest threshold above which KEEP of the gain lies; infinity for a plugin that has nothing to say."""
    order = np.argsort(-scores)
    kept = np.cumsum(gain[order])
    if kept[-1] <= 0:
        return float("inf")
    last = scores[order][np.flatnonzero(kept >= KEEP * kept[-1])[0]]
    return float(np.nextafter(last, -np.inf))


@dataclass
class Point:
    """One setting of the dial on a text: what share opened, and losses in nats a token, gated and at random."""

    asked_for: float
    rate: float
    loss: float
    random_loss: float
    bytes_down: float  # a token, ASK frames …
    bytes_up: float  # … and ANSWER frames
    round_trips: float  # a token, with nothing run ahead


def at(gate: Gate, judged: Judged) -> tuple[float, float]:
    """(share of tokens that it opens for, loss)."""
    opens = gate.opens(gate.scores(judged.z_TD, judged.starts))
    return float(opens.mean()), float(-np.where(opens, judged.plugin, judged.base).mean())


def trade_off(gate: Gate, judged: Judged) -> dict[str, float]:
    """Losses of the base, with the plugin always, and gated; and the gate's rate."""
    rate, loss = at(gate, judged)
    found = {"base": -judged.base.mean(), "plugin": -judged.plugin.mean(), "gated": loss, "rate": rate}
    return {name: round(float(value), 5) for name, value in found.items()}


def curve(gate: Gate, judged: Judged, tap: Tap, rates: tuple[float, ...] = RATES) -> list[Point]:
    """Quality against traffic over the dial; beside it a random gate of the same rate, in expectation."""
    down, up = frame_bytes(tap, judged.z_TD.shape[1])
    points = []
    for asked_for in rates:
        rate, loss = at(gate.at_rate(asked_for), judged)
        random_loss = float(-judged.base.mean() - rate * judged.gain.mean())
        points.append(Point(asked_for, rate, loss, random_loss, rate * down, rate * up, rate))
    return points


def frame_bytes(tap: Tap, width: int) -> tuple[int, int]:
    """Bytes of one ASK and of its ANSWER, as they are on the wire."""
    codes, scales = tap.encode(np.zeros((1, len(tap.layers), width), np.float32))
    zero = pack_corrections([Correction(np.zeros(width, np.float32))], width, tap.codec == "int8")
    answer = Answer(1, 0, [200], np.zeros((1, 0), np.int32), **zero)
    return len(encode(Ask(1, 0, [200], 199, [300], codes, scales))), len(encode(answer))


def to_json(points: list[Point]) -> list[dict[str, Any]]:
    """The points as plain values, to five places."""
    return [{name: round(value, 5) for name, value in asdict(point).items()} for point in points]


def check_picture(path: Path) -> None:
    """Raises InputError when no picture can be drawn there: said before the work, not behind it."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("a picture needs matplotlib: pip install 'sideplug[plot]'")
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InputError(f"a picture must be .png, .svg or .pdf, got {path.name}")
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent}")


def draw(points: list[Point], default: tuple[float, float], title: str, path: Path) -> None:
    """The curve as a picture; `default` is the calibrated gate's (rate, loss). Raises Stopped."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4), layout="constrained")
    rates = [100 * point.rate for point in points]
    axes.plot(rates, [point.random_loss for point in points], "--", color="0.6", label="random gate, same rate")
    axes.plot(rates, [point.loss for point in points], "o-", color="#1a6faf", label="trained gate")
    axes.plot(100 * default[0], default[1], "*", markersize=14, color="#c8421b", label="its default")
    axes.set_xlabel("tokens that the device is asked about, %")
    axes.set_ylabel("loss, nats a token")
    axes.set_title(title)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise Stopped(f"the picture {path} could not be written: {error.strerror or error}") from error
    finally:
        pyplot.close(figure)
