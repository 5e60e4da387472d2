"""Corrections: what a device answers for a position, how it is packed, checked and applied. The only place that does.

    delta     z' = z + Δ  (merge "add"), or z' = Δ  (merge "replace")
    mixture   p' = (1 − λ) · softmax(l) + λ · w        over at most 64 token ids with weights w that sum to 1

Both, one or neither may stand in an answer. The mixture is applied to the logits l of the corrected z, before the
repetition penalty, temperature, top-k and top-p. It is written as logits again, l' = log p' + log Σ exp l, so that
λ = 0 leaves l as it is and a small λ changes it little.

Letters: T positions, D width, V vocabulary, M pairs. It does not know plugins or sessions.
Test: pytest tests/contract/test_correction.py
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

import numpy as np

from sideplug.contract.codec import pack, unpack
from sideplug.contract.errors import InputError, ProtocolError
from sideplug.contract.frames import Answer, Score

MAX_CORRECTED = 1e6  # of any number in a corrected z: far past every model's, far below what overflows in the head
MERGES = ("add", "replace")
Merge = Literal["add", "replace"]
Brings = Answer | Score  # frames that carry corrections


@dataclass(frozen=True, eq=False)
class Mixture:
    """λ in (0, 1], token ids (M,) int32, each once, and their weights (M,) float32, which sum to 1."""

    weight: float
    ids: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True, eq=False)
class Correction:
    """Of one position: Δ (D,) float32, a mixture, both, or neither (then the base's own distribution stays)."""

    delta_D: np.ndarray | None = None
    mixture: Mixture | None = None


class Packed(TypedDict, total=False):
    """Corrections as the tensor fields of an ANSWER or SCORE."""

    delta: np.ndarray
    scales: np.ndarray
    mix: np.ndarray
    mix_ids: np.ndarray
    mix_weights: np.ndarray


def check_merge(merge: str) -> Merge:
    """The merge of a name. Raises InputError."""
    if merge == "add":
        return "add"
    if merge == "replace":
        return "replace"
    raise InputError(f"merge must be add or replace, got {merge!r}")


def merged(z_TD: np.ndarray, delta_TD: np.ndarray, merge: str) -> np.ndarray:
    """z (T, D) after a correction Δ (T, D)."""
    corrected: np.ndarray = z_TD + delta_TD if merge == "add" else delta_TD
    return corrected


def pack_corrections(corrections: Sequence[Correction], width: int, int8: bool) -> Packed:
    """The tensors of these corrections. What nobody brings (deltas, mixtures) is left out."""
    packed = Packed()
    if any(each.delta_D is not None for each in corrections):
        zeros = np.zeros(width, np.float32)
        delta_TD = np.stack([zeros if each.delta_D is None else each.delta_D for each in corrections])
        packed["delta"], packed["scales"] = pack(delta_TD, int8)
    if any(each.mixture is not None for each in corrections):
        most = max(len(each.mixture.ids) for each in corrections if each.mixture is not None)
        packed["mix"] = np.zeros(len(corrections), np.float32)
        packed["mix_ids"] = np.full((len(corrections), most), -1, np.int32)
        packed["mix_weights"] = np.zeros((len(corrections), most), np.float32)
        for row, each in enumerate(corrections):
            if each.mixture is not None:
                count = len(each.mixture.ids)
                packed["mix"][row] = each.mixture.weight
                packed["mix_ids"][row, :count] = each.mixture.ids
                packed["mix_weights"][row, :count] = each.mixture.weights
    return packed


def join(parts: Sequence[Packed], width: int, int8: bool) -> Packed:
    """Several packed corrections as one; rows that lack a tensor which another has get zeros in it."""
    if len(parts) == 1:
        return parts[0]
    joined = Packed()
    rows = [_rows(part) for part in parts]
    if any("delta" in part for part in parts):
        empty = [pack(np.zeros((count, width), np.float32), int8) for count in rows]
        joined["delta"] = np.concatenate([part.get("delta", none[0]) for part, none in zip(parts, empty, strict=True)])
        joined["scales"] = np.concatenate(
            [part.get("scales", none[1]) for part, none in zip(parts, empty, strict=True)]
        )
    if any("mix" in part for part in parts):
        most = max(part["mix_ids"].shape[1] for part in parts if "mix" in part)
        wide = [_widened(part, count, most) for part, count in zip(parts, rows, strict=True)]
        joined["mix"], joined["mix_ids"], joined["mix_weights"] = (
            np.concatenate(column) for column in zip(*wide, strict=True)
        )
    return joined


def _rows(part: Packed) -> int:
    return len(part["delta"]) if "delta" in part else len(part["mix"]) if "mix" in part else 1


def _widened(part: Packed, rows: int, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    mix = part.get("mix", np.zeros(rows, np.float32))
    ids, weights = np.full((rows, most), -1, np.int32), np.zeros((rows, most), np.float32)
    if "mix" in part:
        ids[:, : part["mix_ids"].shape[1]] = part["mix_ids"]
        weights[:, : part["mix_weights"].shape[1]] = part["mix_weights"]
    return mix, ids, weights


def check_shapes(frame: Brings, rows: int, width: int, vocab: int, max_pairs: int) -> None:
    """Raises ProtocolError unless the corrections are of `rows` positions, of known types, and in range.

    max_pairs: of each mixture; 0: the session may not bring mixtures.
    """
    delta, scales = frame.delta, frame.scales
    if (delta is None) != (scales is None):
        raise ProtocolError("a correction must bring delta and scales together")
    if delta is not None and scales is not None:
        int8 = delta.dtype == np.int8
        if delta.shape != (rows, width) or delta.dtype not in (np.int8, np.float16):
            raise ProtocolError(f"a correction must be int8 or fp16 {(rows, width)}, got {delta.dtype} {delta.shape}")
        if scales.dtype != np.float32 or scales.shape != ((rows,) if int8 else (0,)):
            raise ProtocolError(f"a correction's scales must be one float32 a vector for int8, got {scales.shape}")
    mix, ids, weights = frame.mix, frame.mix_ids, frame.mix_weights
    if mix is None and ids is None and weights is None:
        return
    if not max_pairs:
        raise ProtocolError("an answer must not bring mixtures: the session did not ask for that capability")
    if mix is None or ids is None or weights is None:
        raise ProtocolError("a mixture must bring mix, mix_ids and mix_weights together")
    if not (mix.dtype == weights.dtype == np.float32 and ids.dtype == np.int32):
        raise ProtocolError("a mixture must have float32 weights and int32 ids")
    if not (mix.shape == (rows,) and ids.shape == weights.shape and len(ids) == rows and ids.shape[1] <= max_pairs):
        raise ProtocolError(f"a mixture must have at most {max_pairs} pairs for each of {rows} positions")
    if not (np.isfinite(mix).all() and (mix >= 0).all() and (mix <= 1).all()):
        raise ProtocolError("a mixture's weight must be 0 to 1")
    if ids.size and not -1 <= int(ids.min()) <= int(ids.max()) < vocab:
        raise ProtocolError(f"a mixture's ids must be below {vocab}, and -1 behind its end")
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise ProtocolError("a mixture's weights must be 0 or more")
    sums = np.where(ids >= 0, weights, 0).sum(axis=1)
    if not (np.abs(sums - 1) < 1e-3)[mix > 0].all():
        raise ProtocolError("a mixture's weights must sum to 1")
    for row in np.flatnonzero(mix > 0):
        kept = ids[row][ids[row] >= 0]
        if len(np.unique(kept)) != len(kept):
            raise ProtocolError("a mixture's ids must differ")


def apply_delta(z_TD: np.ndarray, frame: Brings, merge: str, rows: Sequence[int] | None = None) -> np.ndarray:
    """z (T, D) after the deltas of a checked frame, or of these rows of it. Raises ProtocolError (not finite, huge)."""
    if frame.delta is None or frame.scales is None:
        return z_TD
    delta, scales = frame.delta, frame.scales
    if rows is not None:
        index = list(rows)
        delta, scales = delta[index], scales[index] if len(scales) else scales
    return unpacked(z_TD, delta, scales, merge)


def unpacked(z_TD: np.ndarray, delta: np.ndarray, scales: np.ndarray, merge: str) -> np.ndarray:
    """z (T, D) after packed deltas. Raises ProtocolError (not finite, huge)."""
    with np.errstate(all="ignore"):
        corrected = merged(z_TD, unpack(delta, scales), merge)
    if not np.abs(corrected).max(initial=0) <= MAX_CORRECTED:  # also false for what is not a number
        raise ProtocolError(f"a correction must be finite and at most {MAX_CORRECTED:.0e}")
    return corrected


def mixture_of(frame: Brings, row: int) -> Mixture | None:
    """The mixture of one row of a checked frame; None where its λ is 0 or there is none."""
    if frame.mix is None or frame.mix_ids is None or frame.mix_weights is None or not frame.mix[row] > 0:
        return None
    kept = frame.mix_ids[row] >= 0
    return Mixture(float(frame.mix[row]), frame.mix_ids[row][kept], frame.mix_weights[row][kept])


def mix(logits_V: np.ndarray, mixture: Mixture | None) -> np.ndarray:
    """Logits (V,) of the mixture of softmax(logits) with its ids' weights; the logits themselves without one."""
    if mixture is None:
        return logits_V
    peak = logits_V.max()
    log_sum = peak + np.log(np.exp(logits_V - peak).sum())
    with np.errstate(divide="ignore"):
        mixed = logits_V + np.log(np.float32(1 - mixture.weight))
        added = log_sum + np.log(np.float32(mixture.weight)) + np.log(mixture.weights)
    mixed[mixture.ids] = np.logaddexp(mixed[mixture.ids], added)
    result: np.ndarray = mixed.astype(np.float32)
    return result


def mixed_logp(logp: float, target: int, mixture: Mixture | None) -> float:
    """log p' of a target whose log-probability without the mixture is `logp`."""
    if mixture is None:
        return logp
    said = float(mixture.weights[mixture.ids == target].sum())
    return float(np.log((1 - mixture.weight) * np.exp(logp) + mixture.weight * said + 1e-30))
