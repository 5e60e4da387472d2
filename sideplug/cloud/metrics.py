"""`/metrics`: what `meters` counted and what is under way, as Prometheus reads it. It changes nothing.

Test: pytest tests/cloud/test_metrics.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from sideplug.cloud.counters import Counters, Histogram

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Exposition:
    """`gauges()`: what is under way, by name; `sideplug_` stands before each."""

    def __init__(self, meters: Counters, gauges: Callable[[], Mapping[str, tuple[str, float]]], model: str) -> None:
        self._meters = meters
        self._gauges = gauges
        self._model = model
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)  # type: ignore[arg-type]

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        m = self._meters
        info = GaugeMetricFamily("sideplug_model", "The base model that is served.", labels=["name"])
        info.add_metric([self._model], 1)
        yield info
        for name, (about, value) in self._gauges().items():
            yield GaugeMetricFamily(f"sideplug_{name}", about, value)
        yield _counter("steps", "Packed forwards.", m.steps)
        yield _counter("resumed", "Replies that went on after a break.", m.resumed)
        yield _counter("readings", "Examples read for tapes and scores.", m.readings)
        yield _labelled("tokens", "Tokens: prompt (run), kept (taken over), reply.", ["of"], m.tokens)
        yield _labelled("replies", "Replies by how they ended.", ["why"], m.replies)
        yield _labelled("gate", "Tokens asked, guesses confirmed, drafts accepted, fallbacks …", ["what"], m.gate)
        yield _labelled("refused", "What was refused, by code.", ["code"], m.refused)
        yield _labelled("bytes", "Bytes of frames.", ["direction", "kind", "codec"], m.bytes)
        yield _labelled("frames", "Frames.", ["direction", "kind"], m.frames)
        yield _histogram("batch_sequences", "Sequences of a step.", m.batch)
        yield _histogram("step_seconds", "A step.", m.step_s)
        yield _histogram("answer_seconds", "From an ask to the device's answer.", m.answer_s)
        yield _histogram("first_token_seconds", "From a prompt to its reply's first token.", m.first_s)
        yield _histogram("queue_seconds", "From a prompt to its first step.", m.queue_s)


def _counter(name: str, about: str, value: float) -> Metric:
    return CounterMetricFamily(f"sideplug_{name}", about, value)


def _labelled(name: str, about: str, labels: list[str], values: Mapping[Any, float]) -> Metric:
    family = CounterMetricFamily(f"sideplug_{name}", about, labels=labels)
    for key, value in sorted(dict(values).items()):
        family.add_metric(list(key) if isinstance(key, tuple) else [key], value)
    return family


def _histogram(name: str, about: str, found: Histogram) -> Metric:
    return HistogramMetricFamily(f"sideplug_{name}", about, buckets=found.cumulative, sum_value=found.sum)
