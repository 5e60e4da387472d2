"""Values at the edges of what a frame may hold, and ways to put one in another's place. Every draw is by seed.

Test: pytest -m slow tests/robustness
"""

from __future__ import annotations

import math
import random
from typing import Any

from msgspec.msgpack import Ext

from tests.robustness.tiny_cloud import CONTEXT

INTS = [-(1 << 63), -(1 << 31), -1, 0, 1, 2, 33, 255, CONTEXT + 1, (1 << 31) - 1, 1 << 31, 1 << 32, (1 << 63) - 1]
INTS += [1 << 63, (1 << 64) - 1]
FLOATS = [math.nan, math.inf, -math.inf, -0.0, 1e-300, 1e300, 0.5, -1.0]
TEXTS = ["", "\0", "a", "\u00e9\U0001f40d\u202e", "x" * 70_000, "<|im_end|>" * 50, "{{ 7*7 }}", "\ufffd\n\r", "00" * 8]


def anything(rng: random.Random, depth: int = 3) -> Any:
    """Return a value that msgpack knows, with the edges of each type often."""
    kind = rng.randrange(9 if depth else 6)
    if kind == 0:
        return rng.choice([None, True, False])
    if kind == 1:
        return rng.choice([*INTS, rng.getrandbits(rng.randint(1, 63))])
    if kind == 2:
        return rng.choice(FLOATS)
    if kind == 3:
        return rng.choice(TEXTS[:4] + TEXTS[6:])
    if kind == 4:
        return rng.randbytes(rng.randint(0, 9))
    if kind == 5:
        return Ext(rng.randrange(128), rng.randbytes(rng.choice([0, 0, 1, 4, 8])))
    if kind == 6:
        return {
            rng.choice(["t", "turn", "kind", "seed", "a", ""]): anything(rng, depth - 1)
            for _ in range(rng.randint(0, 4))
        }
    return [anything(rng, depth - 1) for _ in range(rng.choice([0, 1, 1, 2, 3, 9]))]


def rearranged(rng: random.Random, control: Any) -> Any:
    """Return a control map with one of its values, at any depth, another."""
    if isinstance(control, dict) and control and rng.random() < 0.85:
        control = dict(control)
        name = rng.choice(list(control))
        mutation = rng.randrange(5)
        if mutation == 0:
            del control[name]
        elif mutation == 1:
            control[rng.choice(["x", "t", "turn", "number", f"{name}?"])] = anything(rng)
        else:
            control[name] = rearranged(rng, control[name])
        return control
    if isinstance(control, list) and control and rng.random() < 0.85:
        control = list(control)
        at = rng.randrange(len(control))
        control[at : at + 1] = [rearranged(rng, control[at])] * rng.choice([0, 1, 1, 2, 10])
        return control
    return anything(rng)
