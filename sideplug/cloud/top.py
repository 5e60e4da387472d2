"""The present state of a cloud from its /metrics, as rows of text: what `sideplug top` shows.

It does not know the network: the text of /metrics is given. Test: pytest tests/cloud/test_top.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from sideplug.contract.errors import CloudError
from sideplug.contract.printable import one_line

MAX_NAME = 256  # characters of a name that a cloud says
Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Sample:
    """The metrics at one time. at_s: that time, in seconds of a steady clock. values: by metric and labels."""

    at_s: float
    values: dict[tuple[str, Labels], float]

    @classmethod
    def read(cls, text: str, at_s: float) -> Sample:
        """Return the sample of a text of /metrics. Raises CloudError for any other text."""
        try:
            families = list(text_string_to_metric_families(text))
        except (ValueError, KeyError, IndexError) as error:
            raise CloudError(f"the response must be metrics: {error}") from error
        values = {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}
        if not any(name == "sideplug_sessions" for name, _ in values):
            raise CloudError("the response must be a sideplug cloud's metrics, got others")
        return cls(at_s, values)

    def sum(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's values with these labels, over all other labels."""
        return sum(
            value
            for (metric, own_labels), value in self.values.items()
            if metric == f"sideplug_{name}" and labels.items() <= dict(own_labels).items()
        )

    def by(self, name: str, label: str) -> dict[str, float]:
        """Return the sums of a metric's values by the value of one label."""
        sums: dict[str, float] = {}
        for (metric, labels), value in self.values.items():
            if metric == f"sideplug_{name}" and label in dict(labels):
                sums[dict(labels)[label]] = sums.get(dict(labels)[label], 0.0) + value
        return sums


@dataclass(frozen=True)
class Now:
    """What happened between two samples; with one sample, since the start of the cloud."""

    new: Sample
    old: Sample | None = None

    def since(self, name: str, **labels: str) -> float:
        """Return how much a counter grew between the two samples."""
        return self.new.sum(name, **labels) - (self.old.sum(name, **labels) if self.old else 0.0)

    def per_s(self, name: str, **labels: str) -> float:
        """Return how much a counter grew per second; 0 with one sample."""
        return self.since(name, **labels) / max(1e-9, self.new.at_s - self.old.at_s) if self.old else 0.0

    def mean(self, name: str) -> float:
        """Return the mean of a histogram's values between the two samples."""
        return self.since(f"{name}_sum") / max(1.0, self.since(f"{name}_count"))

    def quantile(self, name: str, share: float) -> float:
        """Return the upper bound of the histogram bucket with this quantile; 0 if there were no values."""
        labels = self.new.by(f"{name}_bucket", "le")
        bounds = sorted((float(bound), self.since(f"{name}_bucket", le=bound)) for bound in labels)
        if not bounds or not bounds[-1][1]:
            return 0.0
        return next(bound for bound, count in bounds if count >= share * bounds[-1][1])

    def to_json(self) -> dict[str, float | str | dict[str, float]]:
        """Return the state as plain values; rates, shares and times are those between the two samples."""
        new = self.new
        replied = self.since("tokens_total", of="reply")
        return {
            "model": one_line(next(iter(new.by("model", "name")), ""))[:MAX_NAME],
            **{name: new.sum(name) for name in ("ready", "sessions", "working", "waiting", "cached_texts")},
            "kv_reserved_bytes": new.sum("kv_reserved_bytes"),
            "kv_limit_bytes": new.sum("kv_limit_bytes"),
            "reply_tokens_per_s": self.per_s("tokens_total", of="reply"),
            "prompt_tokens_per_s": self.per_s("tokens_total", of="prompt"),
            "cached_tokens_per_s": self.per_s("tokens_total", of="cached"),
            "replies_per_s": self.per_s("replies_total"),
            "batch_mean": self.mean("batch_sequences"),
            "step_s_mean": self.mean("step_seconds"),
            "first_token_s_median": self.quantile("first_token_seconds", 0.5),
            "gate_rate": self.since("gate_total", what="asked") / max(1.0, replied),
            "tokens_per_round_trip": replied / max(1.0, self.since("gate_total", what="round_trips")),
            "answer_s_median": self.quantile("answer_seconds", 0.5),
            "answer_s_p95": self.quantile("answer_seconds", 0.95),
            "accepted_drafts": self.since("gate_total", what="accepted"),
            "fallbacks": self.since("gate_total", what="fallback"),
            "resumed": self.since("resumed_total"),
            "bytes_down_per_s": self.per_s("bytes_total", direction="down"),
            "bytes_up_per_s": self.per_s("bytes_total", direction="up"),
            "refused": {
                one_line(code)[:MAX_NAME]: self.since("refused_total", code=code)
                for code in new.by("refused_total", "code")
            },
        }

    def rows(self) -> Iterator[tuple[str, str]]:
        """Yield the rows (name, value) for a person."""
        j = self.to_json()
        number: Callable[[str], float] = lambda name: float(j[name])  # type: ignore[arg-type]  # noqa: E731
        yield "model", f"{j['model']}{'' if j['ready'] else '   NOT READY'}"
        busy = f"{number('working'):.0f} texts in work, {number('waiting'):.0f} waiting"
        yield "sessions", f"{number('sessions'):.0f} open, {busy}"
        share = number("kv_reserved_bytes") / max(1.0, number("kv_limit_bytes"))
        yield "kv memory", f"{_bytes(number('kv_reserved_bytes'))} of {_bytes(number('kv_limit_bytes'))} ({share:.0%})"
        yield "cached", f"{number('cached_texts'):.0f} texts for their next turn"
        yield "replies", f"{number('reply_tokens_per_s'):.1f} tokens/s, {number('replies_per_s'):.2f} ended/s"
        prompts = f"{number('prompt_tokens_per_s'):.1f} tokens/s run, {number('cached_tokens_per_s'):.1f} kept"
        yield "prompts", f"{prompts}; first token {_seconds(number('first_token_s_median'))}"
        yield "steps", f"{number('batch_mean'):.1f} texts a step, {1000 * number('step_s_mean'):.1f} ms"
        gate = f"open for {number('gate_rate'):.0%}, {number('tokens_per_round_trip'):.1f} tokens a round trip"
        yield "gate", f"{gate}, {number('accepted_drafts'):.0f} drafts accepted"
        answers = f"{_seconds(number('answer_s_median'))} median, {_seconds(number('answer_s_p95'))} p95"
        yield "answers", f"{answers}, {number('fallbacks'):.0f} fallbacks, {number('resumed'):.0f} resumed"
        yield "traffic", f"{_bytes(number('bytes_down_per_s'))}/s down, {_bytes(number('bytes_up_per_s'))}/s up"
        refused = {code: count for code, count in j["refused"].items() if count}  # type: ignore[union-attr]
        yield "refused", ", ".join(f"{count:.0f} {code}" for code, count in refused.items()) or "nothing"


def _bytes(count: float) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _seconds(bound: float) -> str:
    return "more than 30 s" if bound == float("inf") else f"≤ {1000 * bound:g} ms"
