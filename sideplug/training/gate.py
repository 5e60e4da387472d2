"""Training of a linear gate, which opens where the plugin improves the text. The plugin is frozen meanwhile.

    L = −log[(1−g)·p_base(y) + g·p_plugin(y)] + λ·mean(g)         g = σ(u·z + b)

This is the latent-choice likelihood of Co-LLM (arXiv 2403.03870) with a penalty on the rate. Some steps on weak labels
come first: yes for personal tokens that the plugin does not harm, no for the retain set. Then the threshold is
calibrated on held-out text. Within the person's own text that score says nothing of where the plugin is needed, so the
dial's low rates have a direction of their own: ridge regression of the plugin's gain from z.
It does not know kinds of plugins, nor how their probabilities were computed.
Letters: T tokens, D width. Test: pytest tests/training/test_fit_gate.py
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sideplug.contract.correction import Correction, pack_corrections
from sideplug.contract.frames import Answer, Ask
from sideplug.contract.gate import Gate
from sideplug.contract.tap import Tap
from sideplug.contract.wire import encode
from sideplug.picture import drawn
from sideplug.training import adamw
from sideplug.training.judged import Judged

MAX_TOKENS = 4096  # of each of the two texts that a gate is fitted to
LABEL_STEPS, CHOICE_STEPS = 300, 100
LEARNING_RATE = 1e-2
DECAY = 0.5
PENALTY = 0.05  # λ
HARM = 0.1  # nats; a personal token that the plugin makes less likely by this gets the weak label no
KEPT_GAIN = 0.985  # share of the plugin's gain on held-out personal text that the calibrated threshold keeps …
RETAIN_RATE = 0.025  # … and share of the retain set's tokens that may be asked about
MEMORIES = (0.0, 0.5, 0.7)
RIDGE = 0.05  # of the number of tokens
QUIET = 0.5  # of the mean gain, negative: what a token of the retain set counts as
DIAL_STEPS = 201
RATES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)


def fit(personal: Judged, retain: Judged, seed: int = 0) -> Gate:
    """Return a linear gate, with threshold 0 and without a dial: `calibrate` sets both."""
    rng = np.random.default_rng(seed)
    parts = []
    for judged in (personal, retain):
        rows = rng.permutation(len(judged.base))[:MAX_TOKENS]
        parts.append((judged.z_TD[rows], judged.base[rows], judged.plugin[rows], np.full(len(rows), 1 / len(rows))))
    x, base, plugin, share = (np.concatenate(column) for column in zip(*parts, strict=True))
    mean, spread = x.mean(0), x.std(0) + np.float32(1e-5)
    x -= mean
    x /= spread
    is_personal = np.arange(len(x)) < len(parts[0][0])
    label = is_personal & (plugin - base > -HARM)
    weight, bias = np.zeros(x.shape[1], np.float32), np.zeros(1, np.float32)
    moments = [(np.zeros_like(value), np.zeros_like(value)) for value in (weight, bias)]
    for step in range(1, LABEL_STEPS + CHOICE_STEPS + 1):
        g = 1 / (1 + np.exp(-np.clip(x @ weight + bias, -30, 30)))
        slope = g - label if step <= LABEL_STEPS else choice_slope(g, base, plugin)
        slope = (slope * share / 2).astype(np.float32)
        adamw.step(weight, slope @ x, *moments[0], step, LEARNING_RATE, DECAY)
        adamw.step(bias, slope.sum(keepdims=True), *moments[1], step, LEARNING_RATE, 0.0)
    unscaled = (weight / spread).astype(np.float32)
    return Gate("linear", unscaled, float(bias[0] - mean @ unscaled))


def fit_by_gain(personal: Judged, retain: Judged) -> Gate:
    """Return a linear gate whose score is the plugin's gain on a token, as z tells it; threshold 0, without a dial."""
    x = np.concatenate([personal.z_TD, retain.z_TD]).astype(np.float64)
    quiet = -QUIET * max(0.0, float(personal.gain.mean()))
    y = np.concatenate([personal.gain, np.full(len(retain.gain), quiet)]).astype(np.float64)
    sizes = len(personal.gain), len(retain.gain)
    share = np.concatenate([np.full(size, len(x) / 2 / size) for size in sizes])  # both texts weigh the same
    mean, spread = x.mean(0), x.std(0) + 1e-5
    x = (x - mean) / spread
    level = float((share * y).sum() / len(x))
    gram = x.T @ (x * share[:, None]) + RIDGE * len(x) * np.eye(x.shape[1])
    weight = np.linalg.solve(gram, x.T @ (share * (y - level))) / spread
    return Gate("linear", weight.astype(np.float32), level - float(mean @ weight))


def with_dial_by_gain(gate: Gate, by_gain: Gate, personal: Judged, retain: Judged) -> Gate:
    """Return the gate whose dial turns `by_gain` at low rates, from held-out text.

    Up to the highest rate at which at most RETAIN_RATE of the retain set's tokens pass; not at all where it keeps less
    of the gain there than the gate itself.
    """
    scores, others = (by_gain.scores(text.z_TD, text.starts) for text in (personal, retain))
    dialled = replace(by_gain, dial=_dial(scores))
    rates = [rate for rate in np.linspace(0.05, 0.95, 19) if _passing(others, dialled.at_rate(rate)) <= RETAIN_RATE]
    if not rates:
        return gate
    highest = float(rates[-1])
    own = gate.at_rate(highest)
    kept = [
        float(personal.gain[each.opens(each.scores(personal.z_TD, personal.starts))].sum())
        for each in (dialled.at_rate(highest), own)
    ]
    return replace(gate, by_gain=dialled, by_gain_rate=highest) if kept[0] > kept[1] else gate


def _passing(scores: np.ndarray, gate: Gate) -> float:
    return float(np.mean(gate.opens(scores)))


def _dial(scores: np.ndarray) -> tuple[float, ...]:
    return tuple(np.quantile(scores, np.linspace(0, 1, DIAL_STEPS)).tolist())


def choice_slope(g: np.ndarray, base: np.ndarray, plugin: np.ndarray) -> np.ndarray:
    """Return the gradient (T,) of L at u·z + b, from g (T,) and both log-probabilities (T,)."""
    peak = np.maximum(base, plugin)
    p, q = np.exp(base - peak), np.exp(plugin - peak)
    slope: np.ndarray = ((p - q) / ((1 - g) * p + g * q) + PENALTY) * g * (1 - g)
    return slope


def calibrate(gate: Gate, personal: Judged, retain: Judged) -> Gate:
    """Return the gate with its memory, dial and default threshold, from held-out text.

    The memory is the one that separates the two texts best: it lets the fewest tokens of the retain set through when
    KEPT_GAIN of the gain is kept. The threshold keeps KEPT_GAIN; it is lower if even then at most RETAIN_RATE of the
    retain set's tokens pass.
    """
    candidates = []
    for memory in MEMORIES:
        smoothed = replace(gate, memory=memory)
        personal_scores, retain_scores = (smoothed.scores(text.z_TD, text.starts) for text in (personal, retain))
        keeping = _keeping_threshold(personal_scores, personal.gain)
        quiet = float(np.quantile(retain_scores, 1 - RETAIN_RATE))
        dial = _dial(personal_scores)
        threshold = min(keeping, quiet) if np.isfinite(keeping) else max(float(personal_scores.max()), quiet)
        leak = float((retain_scores > keeping).mean())
        candidates.append((leak, memory, replace(smoothed, threshold=threshold, dial=dial)))
    return min(candidates, key=lambda candidate: candidate[:2])[2]


def _keeping_threshold(scores: np.ndarray, gain: np.ndarray) -> float:
    """Return the highest threshold that keeps KEPT_GAIN of the gain; infinity for a plugin without any gain."""
    order = np.argsort(-scores)
    gain_so_far = np.cumsum(gain[order])
    if gain_so_far[-1] <= 0:
        return float("inf")
    last = scores[order][np.flatnonzero(gain_so_far >= KEPT_GAIN * gain_so_far[-1])[0]]
    return float(np.nextafter(last, -np.inf))


@dataclass
class Point:
    """One setting of the dial, measured on a text. asked_for: the rate that was set. rate: the share that passes.

    loss, random_loss: nats a token with the gate, and with a random gate of the same rate.
    """

    asked_for: float
    rate: float
    loss: float
    random_loss: float
    bytes_down: float  # of ASK frames, for each token …
    bytes_up: float  # … and of ANSWER frames
    round_trips: float  # for each token, without speculative decoding


def rate_and_loss(gate: Gate, judged: Judged) -> tuple[float, float]:
    """Return the share of tokens for which the gate opens, and the loss with this gate in nats a token."""
    opens = gate.opens(gate.scores(judged.z_TD, judged.starts))
    return float(opens.mean()), float(-np.where(opens, judged.plugin, judged.base).mean())


def trade_off(gate: Gate, judged: Judged) -> dict[str, float]:
    """Return the losses of the base, with the plugin for all tokens, and with the gate; and the gate's rate."""
    rate, loss = rate_and_loss(gate, judged)
    values = {"base": -judged.base.mean(), "plugin": -judged.plugin.mean(), "gated": loss, "rate": rate}
    return {name: round(float(value), 5) for name, value in values.items()}


def curve(gate: Gate, judged: Judged, tap: Tap, rates: tuple[float, ...] = RATES) -> list[Point]:
    """Return loss and traffic for each rate of the dial, and the expected loss of a random gate of the same rate."""
    down, up = frame_bytes(tap, judged.z_TD.shape[1])
    points = []
    for asked_for in rates:
        rate, loss = rate_and_loss(gate.at_rate(asked_for), judged)
        random_loss = float(-judged.base.mean() - rate * judged.gain.mean())
        points.append(Point(asked_for, rate, loss, random_loss, rate * down, rate * up, rate))
    return points


def frame_bytes(tap: Tap, width: int) -> tuple[int, int]:
    """Return the bytes of one ASK and of its ANSWER on the wire."""
    codes, scales = tap.encode(np.zeros((1, len(tap.layers), width), np.float32))
    zero = pack_corrections([Correction(np.zeros(width, np.float32))], width, tap.codec == "int8")
    answer = Answer(1, 0, [200], np.zeros((1, 0), np.int32), **zero)
    return len(encode(Ask(1, 0, [200], 199, [300], codes, scales))), len(encode(answer))


def to_json(points: list[Point]) -> list[dict[str, Any]]:
    """Return the points as plain values, rounded to five places."""
    return [{name: round(value, 5) for name, value in asdict(point).items()} for point in points]


def draw(points: list[Point], default: tuple[float, float], title: str, path: Path) -> None:
    """Draw the curve to the file `path`; `default` is the calibrated gate's (rate, loss). Raises Stopped."""
    rates = [100 * point.rate for point in points]
    with drawn(path, title, "tokens that the device is asked about, %", "loss, nats a token") as axes:
        axes.plot(rates, [point.random_loss for point in points], "--", color="0.6", label="random gate, same rate")
        axes.plot(rates, [point.loss for point in points], "o-", color="#1a6faf", label="trained gate")
        axes.plot(100 * default[0], default[1], "*", markersize=14, color="#c8421b", label="its default")
