"""When the cloud speculates: goes on behind an open question to the device with a token that may be rolled back.

A speculative token is worth its step if it is probably right and the step has room for it. What is probable follows
from the session's own answers (AcceptanceStats); how dear a step is, from the engine's (SpeculationPolicy). It never
changes a text, only how soon it comes. This module does not know models, sequences or sockets.
Test: pytest tests/cloud/test_speculation.py
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sideplug.cloud.correction_predictor import CorrectionPredictor

NEWEST_WEIGHT = 0.05  # weight of the newest observation in the running means of a session
STEP_WEIGHT = 0.1  # weight of the newest step in the running mean of a step's duration
FULL_BATCH = 16  # sequences of a step from which on nobody speculates, however probable the token is


@dataclass
class AcceptanceStats:
    """How often a session's speculative tokens were right, and how long its answers take. All are running means.

    prediction_accuracy: share of the cloud's predicted tokens that the device confirmed. draft_accuracy: share of the
    device's drafted tokens that it confirmed. prediction_accuracy_at_drafts: the first, at the positions of the second.
    """

    prediction_accuracy: float = 0.7
    draft_accuracy: float = 0.7
    prediction_accuracy_at_drafts: float = 0.7
    answer_s: float = 0.1  # from an ASK to its answer
    predictor: CorrectionPredictor = field(default_factory=CorrectionPredictor)

    def observe(self, name: str, value: float) -> None:
        """Take one observation into the running mean `name`."""
        setattr(self, name, (1 - NEWEST_WEIGHT) * getattr(self, name) + NEWEST_WEIGHT * value)

    def accuracy(self, has_draft: bool) -> float:
        """The probability that a speculative token is confirmed; `has_draft`: the device's draft covers it."""
        return max(self.prediction_accuracy, self.draft_accuracy) if has_draft else self.prediction_accuracy


class SpeculationPolicy:
    """What a step of the engine costs at present, and so whether a speculative token is worth running."""

    def __init__(self) -> None:
        self.batch = 0  # sequences in the last step
        self._step_s = 0.01  # running mean over steps without prefill

    def observe_step(self, seconds: float) -> None:
        """A step without prefill took so many seconds."""
        self._step_s += STEP_WEIGHT * (seconds - self._step_s)

    def is_worthwhile(self, stats: AcceptanceStats, has_draft: bool, open_asks: int) -> bool:
        """Whether to run a token behind `open_asks` unanswered questions, of which the last is the token's own."""
        accuracy = stats.accuracy(has_draft)
        # A wrong token costs the step that is running when the answer comes: for a near device, waiting is cheaper.
        if (1 - accuracy) * self._step_s > stats.answer_s:
            return False
        # The token is of use only if all open questions are confirmed; the fuller the batch, the surer that must be.
        return accuracy**open_asks * FULL_BATCH > self.batch
