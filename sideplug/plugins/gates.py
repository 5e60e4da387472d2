"""A part's gate as its file has it: numbers in the header, weights as tensors; the dial's own gate beside them.

A file without `by_gain` is one of an earlier training: its dial turns the gate itself. Test: pytest
tests/plugins/test_gates.py
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from sideplug.contract.errors import PluginError
from sideplug.contract.frames import GateSpec
from sideplug.contract.gate import Gate

GATE, BY_GAIN = "gate", "by_gain"


def gate_config(gate: Gate) -> dict[str, Any]:
    """Return what a part's header says of its gate."""
    config = {GATE: _numbers(gate)}
    if gate.by_gain is not None:
        config[BY_GAIN] = {**_numbers(gate.by_gain), "rate": gate.by_gain_rate}
    return config


def gate_tensors(gate: Gate) -> dict[str, np.ndarray]:
    """Return the weights of a part's gate by their names in its file."""
    weights = {GATE: gate.weight_D}
    return weights if gate.by_gain is None else {**weights, BY_GAIN: gate.by_gain.weight_D}


def gate_of(config: Mapping[str, Any], tensors: dict[str, np.ndarray]) -> Gate:
    """Return a part's gate; its tensors are taken out of `tensors`. Raises KeyError, TypeError, InputError: damaged."""
    gate = _gate(config[GATE], tensors.pop(GATE))
    if BY_GAIN not in config:
        return gate
    numbers = dict(config[BY_GAIN])
    rate = float(numbers.pop("rate"))
    return replace(gate, by_gain=_gate(numbers, tensors.pop(BY_GAIN)), by_gain_rate=rate)


def _numbers(gate: Gate) -> dict[str, Any]:
    spec = gate.to_wire()
    numbers = {"kind": spec.kind, "bias": spec.bias, "threshold": spec.threshold, "memory": spec.memory}
    return {**numbers, "dial": list(gate.dial)}


def _gate(numbers: Mapping[str, Any], weight_D: np.ndarray) -> Gate:
    if weight_D.dtype != np.float32 or weight_D.ndim != 1:
        raise PluginError("a gate's weights must be float32")
    spec = GateSpec(numbers["kind"], numbers["bias"], numbers["threshold"], numbers["memory"])
    return Gate.from_wire(spec, weight_D, tuple(numbers["dial"]))
