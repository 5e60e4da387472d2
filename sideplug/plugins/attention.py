"""A kind that reads the text: causal blocks over the codes of prompt and reply, whose output is added to z.

    x = A c + b;   for each block:  x += O attend(norm x),  x += W₂ gelu(W₁ norm x);   Δ = C gelu(norm x) + b

C is zero at the start, so Δ = 0. A row looks at itself and the rows before it, at most as many as its window, with a
learnt bias for each distance: a text means the same wherever it stands, and a token costs the same however long the
text is. Two blocks of 256 rows see 511 positions. Gains are kept less one, so that weight decay draws them to one.

Letters: T rows, S rows that are looked at, K tapped layers, R code width, W width, H heads, E = W / H, N blocks, L the
window, D the model's width. It does not know gates or the wire. Test: pytest tests/plugins/test_attention.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from sideplug.contract.errors import PluginError, ProtocolError
from sideplug.contract.tap import Tap
from sideplug.plugins.base import ONE_TEXT, Params, Past, Saved, Shape, TrainedKind
from sideplug.plugins.ladder import gelu, uniform

BLOCKS, HEADS, WINDOW = 2, 4, 256
MOST_BLOCKS, MOST_ROWS = 16, 4096  # of a file: blocks, and the window
ROLL_BACK = 1024  # rows by which a text can go back, at least; run-ahead is some dozens
EPSILON = 1e-5  # of a norm's variance


class LastRows:
    """Keys and values of the last rows of one text in every block: what is looked at, and what may be rolled back.

    Rows lie in their order, so a sum over them has the same bits however they came.
    """

    def __init__(self, params: Params) -> None:
        blocks, _, self._window = params["near"].shape
        self._first, self._count = 0, 0  # the earliest row that is kept, and how many are
        self._kv = np.zeros((blocks, self._window + 2 * ROLL_BACK, params["kv"].shape[2]), np.float32)

    @property
    def length(self) -> int:
        """See Past."""
        return self._first + self._count

    @property
    def kept(self) -> int:
        """Rows that are kept."""
        return self._count

    def trim(self, length: int) -> None:
        """See Past. Raises ProtocolError where what the next row looks at is not kept any more."""
        if length < (self._first + self._window - 1 if self._first else 0):
            raise ProtocolError(f"the cloud must go back by at most {ROLL_BACK:,} tokens for this kind of plugin")
        self._count = min(self._count, length - self._first)

    def make_room(self, rows: int) -> None:
        """There is room for so many more rows, at most ROLL_BACK; the earliest go where it lacks."""
        if self._count + rows > self._kv.shape[1]:
            kept = self._window + ROLL_BACK
            self._kv[:, :kept] = self._kv[:, self._count - kept : self._count].copy()
            self._first, self._count = self.length - kept, kept

    def put(self, block: int, kv_TX: np.ndarray) -> np.ndarray:
        """The rows of a block that are kept, behind which these are put; `advance` makes them count."""
        end = self._count + len(kv_TX)
        self._kv[block, self._count : end] = kv_TX
        return self._kv[block, :end]

    def advance(self, rows: int) -> None:
        """So many rows were put into every block."""
        self._count += rows


@dataclass(frozen=True)
class Span:
    """Rows `of` that are computed together, and the rows `over` that they look at: both end with the same row."""

    of: slice
    over: slice

    @classmethod
    def all(cls, starts_B: np.ndarray, rows: int, earlier: int, window: int) -> list[Span]:
        """The spans of so many rows of texts that begin at these; `earlier` rows of the one text lie before them."""
        spans = []
        for start, end in zip(starts_B.tolist(), [*starts_B[1:].tolist(), rows], strict=True):
            for first in range(start, end, window):
                last = min(end, first + window)
                least = 0 if earlier else start
                low = max(least, first + earlier - window + 1)
                spans.append(cls(slice(first, last), slice(low, last + earlier)))
        return spans

    @property
    def distance_TS(self) -> np.ndarray:
        """How far each row that is looked at lies before each row."""
        rows, seen = self.of.stop - self.of.start, self.over.stop - self.over.start
        return np.arange(seen - rows, seen)[:, None] - np.arange(seen)


def heads(x_TW: np.ndarray, count: int) -> np.ndarray:
    """(T, W) → (H, T, E)."""
    return x_TW.reshape(len(x_TW), count, -1).transpose(1, 0, 2)


def together(x_HTE: np.ndarray) -> np.ndarray:
    """(H, T, E) → (T, W)."""
    return x_HTE.transpose(1, 0, 2).reshape(x_HTE.shape[1], -1)


def attend(q_TW: np.ndarray, kv_SX: np.ndarray, near_HL: np.ndarray, span: Span) -> tuple[np.ndarray, np.ndarray]:
    """What the rows of a span take from those before them (T, W), and with what weights (H, T, S)."""
    count, window = near_HL.shape
    width = q_TW.shape[1]
    kv = kv_SX[span.over]
    q, k, v = heads(q_TW[span.of], count), heads(kv[:, :width], count), heads(kv[:, width:], count)
    distance = span.distance_TS
    scores = q @ k.transpose(0, 2, 1) * np.float32((width // count) ** -0.5)
    scores += near_HL[:, np.clip(distance, 0, window - 1)]
    scores[:, (distance < 0) | (distance >= window)] = -np.inf
    weights = np.exp(scores - scores.max(2, keepdims=True))
    weights /= weights.sum(2, keepdims=True)
    return together(weights @ v), weights


def attend_back(
    q_TW: np.ndarray, kv_SX: np.ndarray, near_HL: np.ndarray, span: Span, weights: np.ndarray, d_out_TW: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The gradients of a span's q (T, W), keys and values (S, 2 W), and of `near` (H, L)."""
    count, window = near_HL.shape
    width = q_TW.shape[1]
    kv, scale = kv_SX[span.over], np.float32((width // count) ** -0.5)
    q, k, v = heads(q_TW[span.of], count), heads(kv[:, :width], count), heads(kv[:, width:], count)
    d_out = heads(d_out_TW[span.of], count)
    d_weights = d_out @ v.transpose(0, 2, 1)
    d_scores = weights * (d_weights - (d_weights * weights).sum(2, keepdims=True))
    where = np.clip(span.distance_TS, 0, window - 1).ravel()  # what is out of sight has a gradient of zero
    d_near = np.stack([np.bincount(where, each.ravel(), window) for each in d_scores]).astype(near_HL.dtype)
    d_scores *= scale
    d_kv = [together(d_scores.transpose(0, 2, 1) @ q), together(weights.transpose(0, 2, 1) @ d_out)]
    return together(d_scores @ k), np.concatenate(d_kv, 1), d_near


def norm(x_TW: np.ndarray, gain_W: np.ndarray, bias_W: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Layer norm with a gain of 1 + gain_W; its rows before the gain, and 1/σ of each, are for `norm_back`."""
    centred = x_TW - x_TW.mean(1, keepdims=True)
    inverse = 1 / np.sqrt((centred * centred).mean(1, keepdims=True) + x_TW.dtype.type(EPSILON))
    rows = centred * inverse
    return rows * (1 + gain_W) + bias_W, (rows, inverse)


def norm_back(
    saved: tuple[np.ndarray, np.ndarray], gain_W: np.ndarray, d_TW: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The gradients of a norm's input, gain and bias."""
    rows, inverse = saved
    inner = d_TW * (1 + gain_W)
    d_x = (inner - inner.mean(1, keepdims=True) - rows * (inner * rows).mean(1, keepdims=True)) * inverse
    return d_x, (d_TW * rows).sum(0), d_TW.sum(0)


class Attention(TrainedKind):
    """Parameters: in_XW, then of each block (first axis N) the two norms, q, kv, o, near_HL, up, down, then norm and c.

    They show all sizes: W, the blocks, heads and window (the shape of `near`).
    """

    name = "attention"
    context: ClassVar[Literal["none", "all"]] = "all"
    default_width = 192

    def init(self, shape: Shape, rng: np.random.Generator) -> Params:
        """See TrainedKind. Raises PluginError for a width that its heads can't share."""
        width, size = shape.width, shape.taps * shape.rank
        check_sizes(width, BLOCKS, HEADS, WINDOW)
        p: Params = {}
        for name, expected in sizes(size, width, shape.model_width, (BLOCKS, HEADS, WINDOW)).items():
            is_weight = name in ("in", "q", "kv", "o", "up", "down")
            p[name] = uniform(rng, expected[-2], *expected) if is_weight else np.zeros(expected, np.float32)
        return p

    def shapes(self, tap: Tap, params: Params) -> dict[str, tuple[int, ...]]:
        """See TrainedKind."""
        blocks, count, window = params["near"].shape
        width, model_width = params["c"].shape
        check_sizes(width, blocks, count, window)
        return sizes(len(tap.layers) * tap.rank, width, model_width, (blocks, count, window))

    def new_past(self, params: Params) -> Past:
        """See TrainedKind."""
        return LastRows(params)

    def forward(
        self, params: Params, code_TKR: np.ndarray, starts_B: np.ndarray, past: Past | None = None
    ) -> tuple[np.ndarray, Saved]:
        """See TrainedKind."""
        x, spans, blocks = self._run(params, code_TKR, starts_B, past, False)
        y, normed = norm(x, params["norm_gain"], params["norm_bias"])
        value, slope = gelu(y)
        return value @ params["c"] + params["c_bias"], (code_TKR, spans, blocks, normed, value, slope)

    def extend(self, params: Params, code_TKR: np.ndarray, past: Past) -> None:
        """See TrainedKind: of the last block only the keys and values are computed."""
        self._run(params, code_TKR, ONE_TEXT, past, True)

    def _run(
        self, p: Params, code_TKR: np.ndarray, starts_B: np.ndarray, past: Past | None, keys_only: bool
    ) -> tuple[np.ndarray, list[Span], list[Saved]]:
        """x (T, W) behind the last block, the spans, and what each block leaves for `backward`."""
        rows, (blocks, _, window) = len(code_TKR), p["near"].shape
        kept = past if isinstance(past, LastRows) else None
        if kept is not None:
            kept.make_room(rows)
        earlier = kept.kept if kept is not None else 0
        spans = Span.all(starts_B, rows, earlier, window)
        x = code_TKR.reshape(rows, -1) @ p["in"] + p["in_bias"]
        saved: list[Saved] = []
        for n in range(blocks):
            y, normed = norm(x, p["attend_gain"][n], p["attend_bias"][n])
            kv = y @ p["kv"][n] + p["kv_bias"][n]
            seen = kv if kept is None else kept.put(n, kv)
            if keys_only and n == blocks - 1:
                break
            q = y @ p["q"][n] + p["q_bias"][n]
            taken = [attend(q, seen, p["near"][n], span) for span in spans]
            out = np.concatenate([each for each, _ in taken])
            x = x + out @ p["o"][n] + p["o_bias"][n]
            y2, normed2 = norm(x, p["mix_gain"][n], p["mix_bias"][n])
            value, slope = gelu(y2 @ p["up"][n] + p["up_bias"][n])
            x = x + value @ p["down"][n] + p["down_bias"][n]
            saved.append((y, normed, q, kv, [weights for _, weights in taken], out, y2, normed2, value, slope))
        if kept is not None:
            kept.advance(rows)
        return x, spans, saved

    def backward(self, params: Params, saved: Saved, d_delta_TD: np.ndarray) -> Params:
        """See TrainedKind."""
        p = params
        code_TKR, spans, blocks, normed, value, slope = saved
        g = {name: np.zeros_like(tensor) for name, tensor in p.items()}
        g["c"], g["c_bias"] = value.T @ d_delta_TD, d_delta_TD.sum(0)
        d_x, g["norm_gain"], g["norm_bias"] = norm_back(normed, p["norm_gain"], (d_delta_TD @ p["c"].T) * slope)
        for n in reversed(range(len(blocks))):
            y, normed, q, kv, weights, out, y2, normed2, value, slope = blocks[n]
            g["down"][n], g["down_bias"][n] = value.T @ d_x, d_x.sum(0)
            d_inner = (d_x @ p["down"][n].T) * slope
            g["up"][n], g["up_bias"][n] = y2.T @ d_inner, d_inner.sum(0)
            d_more, g["mix_gain"][n], g["mix_bias"][n] = norm_back(normed2, p["mix_gain"][n], d_inner @ p["up"][n].T)
            d_x = d_x + d_more
            g["o"][n], g["o_bias"][n] = out.T @ d_x, d_x.sum(0)
            d_out, d_q, d_kv = d_x @ p["o"][n].T, np.zeros_like(q), np.zeros_like(kv)
            for span, each in zip(spans, weights, strict=True):
                d_q[span.of], d_seen, d_near = attend_back(q, kv, p["near"][n], span, each, d_out)
                d_kv[span.over] += d_seen
                g["near"][n] += d_near
            g["q"][n], g["q_bias"][n] = y.T @ d_q, d_q.sum(0)
            g["kv"][n], g["kv_bias"][n] = y.T @ d_kv, d_kv.sum(0)
            d_y = d_q @ p["q"][n].T + d_kv @ p["kv"][n].T
            d_more, g["attend_gain"][n], g["attend_bias"][n] = norm_back(normed, p["attend_gain"][n], d_y)
            d_x = d_x + d_more
        g["in"], g["in_bias"] = code_TKR.reshape(len(d_x), -1).T @ d_x, d_x.sum(0)
        return g


def check_sizes(width: int, blocks: int, count: int, window: int) -> None:
    """Raises PluginError for sizes that can't be."""
    if not (1 <= blocks <= MOST_BLOCKS and 1 <= window <= MOST_ROWS):
        raise PluginError(f"its blocks must be 1 to {MOST_BLOCKS} and look at 1 to {MOST_ROWS:,} rows")
    if not count or width % count or not width:
        raise PluginError(f"the width of a plugin that reads the text must be a multiple of {count}, got {width}")


def sizes(size: int, width: int, model_width: int, near: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
    """The shapes of all parameters. size: numbers of a row's codes. near: blocks, heads and window."""
    blocks = near[0]
    return {
        "in": (size, width),
        "in_bias": (width,),
        "attend_gain": (blocks, width),
        "attend_bias": (blocks, width),
        "q": (blocks, width, width),
        "q_bias": (blocks, width),
        "kv": (blocks, width, 2 * width),
        "kv_bias": (blocks, 2 * width),
        "near": near,
        "o": (blocks, width, width),
        "o_bias": (blocks, width),
        "mix_gain": (blocks, width),
        "mix_bias": (blocks, width),
        "up": (blocks, width, 2 * width),
        "up_bias": (blocks, 2 * width),
        "down": (blocks, 2 * width, width),
        "down_bias": (blocks, width),
        "norm_gain": (width,),
        "norm_bias": (width,),
        "c": (width, model_width),
        "c_bias": (model_width,),
    }
