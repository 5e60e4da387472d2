"""GET /metrics: the counters and the present state of a cloud in Prometheus' text format.

It only reads, and does not know how anything is counted. Test: pytest tests/cloud/test_metrics.py
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from sideplug.cloud.bill import Usage
from sideplug.cloud.counters import Counters, Histogram
from sideplug.contract.version import __version__
from sideplug.contract.wire import VERSION

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Exposition:
    """The metrics of one server. Names begin with `sideplug_`, or are Prometheus' standard ones of a process.

    `gauges()` gives the present state: name → (help text, value). `model` is the name of the base model.
    """

    def __init__(
        self,
        counters: Counters,
        usage: Usage,
        gauges: Callable[[], Mapping[str, tuple[str, float]]],
        model: str,
    ) -> None:
        self._counters = counters
        self._usage = usage
        self._gauges = gauges
        self._model = model
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)  # type: ignore[arg-type]
        ProcessCollector(registry=self._registry)  # process_resident_memory_bytes, process_open_fds, …

    def text(self) -> bytes:
        """The body of the response to GET /metrics."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """All metrics as they are now; prometheus_client calls it."""
        c = self._counters
        info = GaugeMetricFamily("sideplug_model", "The base model that is served.", labels=["name"])
        info.add_metric([self._model], 1)
        yield info
        names = ["version", "wire", "python"]
        build = GaugeMetricFamily("sideplug_build_info", "The version that runs.", labels=names)
        build.add_metric([__version__, str(VERSION), platform.python_version()], 1)
        yield build
        for name, (description, value) in self._gauges().items():
            yield GaugeMetricFamily(f"sideplug_{name}", description, value)
        yield _counter("steps", "Packed forwards.", c.steps)
        yield _counter("resumed", "Replies that went on after a break.", c.resumed)
        yield _counter("examples", "Examples read for tapes and scores.", c.examples)
        yield _labelled("tokens", "Tokens: prompt (run), kept (copied from the prefix cache), reply.", ["of"], c.tokens)
        yield _labelled("replies", "Replies by how they ended.", ["why"], c.replies)
        yield _labelled("gate", "Tokens asked, speculated, confirmed; drafts accepted; fallbacks …", ["what"], c.gate)
        yield _labelled("refused", "What was refused, by code.", ["code"], c.refused)
        yield _labelled("bytes", "Bytes of frames.", ["direction", "kind", "codec"], c.bytes)
        yield _labelled("frames", "Frames.", ["direction", "kind"], c.frames)
        used = self._usage
        yield _labelled("key_tokens", "Tokens that were run, by the key's name.", ["key"], used.tokens)
        yield _labelled("key_bytes", "Bytes received and sent, by the key's name.", ["key"], used.bytes)
        yield _labelled("key_sessions", "Sessions opened, by the key's name.", ["key"], used.sessions)
        yield _histogram("batch_sequences", "Sequences in a step.", c.batch)
        yield _histogram("step_seconds", "Duration of a step.", c.step_s)
        yield _histogram("answer_seconds", "From an ask to the device's answer.", c.answer_s)
        yield _histogram("first_token_seconds", "From a prompt to its reply's first token.", c.first_s)
        yield _histogram("queue_seconds", "From a prompt to its first step.", c.queue_s)


def _counter(name: str, description: str, value: float) -> Metric:
    return CounterMetricFamily(f"sideplug_{name}", description, value)


def _labelled(name: str, description: str, labels: list[str], values: Mapping[Any, float]) -> Metric:
    family = CounterMetricFamily(f"sideplug_{name}", description, labels=labels)
    for key, value in sorted(dict(values).items()):
        family.add_metric(list(key) if isinstance(key, tuple) else [key], value)
    return family


def _histogram(name: str, description: str, values: Histogram) -> Metric:
    return HistogramMetricFamily(f"sideplug_{name}", description, buckets=values.cumulative, sum_value=values.sum)
