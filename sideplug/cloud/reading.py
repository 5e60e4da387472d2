"""Reading examples: run each through the model once, for the device's training tape, or to score a plugin on it.

An example's tokens are run like a prompt. For each token of its reply the device gets what predicted it: the tap's
codes, z, and the head's best candidates. Instead of a given reply the base may write one, greedily. A read example may
then be scored: the exact log-probabilities of its reply under the device's corrections.
T reply tokens, D width. This module does not know sockets or plugins. Test: pytest tests/cloud/test_engine.py
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from sideplug.cloud.counters import Counters
from sideplug.cloud.model.base import Forward, Model
from sideplug.cloud.reply import Sequence, SessionSpec
from sideplug.cloud.tokenizer import Tokenizer
from sideplug.contract.codec import pack
from sideplug.contract.correction import Mixture, apply_delta, check_shapes, mixed_logp, mixture_of
from sideplug.contract.errors import ProtocolError
from sideplug.contract.frames import BEST_IDS, MAX_PARTS, Score, Scored
from sideplug.contract.frames import Example as ExampleFrame

TOP = BEST_IDS  # that a tape holds for each position: the candidates of training
HEAD_ROWS = 64  # rows of one head call for examples: their logits stay small, and nobody waits long for the call
ALL_PARTS = (1 << MAX_PARTS) - 1
Fail = Callable[[Sequence, Exception], None]  # what becomes of a work that met an error


@dataclass(eq=False, kw_only=True)
class ExampleWork(Sequence):
    """An example to be read once: for each token of its reply, the row before it, which predicts it.

    With `greedy_tokens` above 0 there is no reply yet: the base writes up to that many tokens while they are read.
    """

    number: int
    spec: SessionSpec
    prompt_tokens: int
    score: bool  # whether its score may be asked for
    width: int = 0  # D of the model
    greedy_tokens: int = 0
    wants_context: bool = False  # whether the rows of its prompt are to be sent too
    context: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)  # their codes and scales so far
    scorable: tuple[np.ndarray, np.ndarray] | None = None  # z (T, D) and the targets' log p (T,), until it is scored
    # One tuple for each head call so far: z, codes, scales, log p of the targets, best ids, log-sum-exp.
    parts: list[tuple[np.ndarray, ...]] = field(default_factory=list)

    @property
    def layers(self) -> tuple[int, ...]:
        """The tap's layers."""
        return self.spec.tap.layers

    @property
    def max_length(self) -> int:
        """The number of tokens that it may have at its end."""
        return len(self.ids) + self.greedy_tokens

    @property
    def held_bytes(self) -> int:
        """The bytes of what is kept of its rows until EXAMPLE has left, or SCORED: z twice, codes, ids; its context."""
        tap, rows = self.spec.tap, self.spec.context
        reply = (self.max_length - self.prompt_tokens) * (tap.bytes_per_token + 6 * self.width + 4 * TOP + 16)
        return reply + (rows.bytes_per_token * self.prompt_tokens if rows and self.wants_context else 0)

    @property
    def targets(self) -> np.ndarray:
        """The reply's ids (T,) int32."""
        return np.asarray(self.ids[self.prompt_tokens :], np.int32)


@dataclass(eq=False)
class Scoring:
    """A read example with a device's corrections: some of its rows go through the head in each step."""

    example: ExampleWork
    base_T: np.ndarray
    corrected_TD: np.ndarray
    mixtures: list[Mixture | None]
    parts: list[np.ndarray] = field(default_factory=list)  # log p of the targets, of each head call so far


GreedyRow = tuple[ExampleWork, np.ndarray, np.ndarray]  # an example, its last z (1, D) and tapped states (1, K, D)


class Reader:
    """Turns the rows of a step into EXAMPLE frames, and SCORE frames into SCORED."""

    def __init__(self, model: Model, tokenizer: Tokenizer, counters: Counters) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._counters = counters
        self._scorings: list[Scoring] = []

    @property
    def scoring_users(self) -> set[str]:
        """The users of the examples whose score is under way."""
        return {scoring.example.user for scoring in self._scorings}

    def read(self, example: ExampleWork, count: int, first_row: int, out: Forward) -> bool:
        """Take the step's `count` rows of an example, from `first_row` on. True: it is complete and was sent."""
        stop = example.cache.length
        start = stop - count
        self._take_context(example, start, min(stop, example.prompt_tokens - 1), first_row, out)
        # The position before a reply token predicts it.
        first, last = max(start, example.prompt_tokens - 1), min(stop, len(example.ids) - 1)
        for at in range(first, last, HEAD_ROWS):
            end = min(at + HEAD_ROWS, last)
            rows = slice(first_row + at - start, first_row + end - start)
            z = out.z(rows)
            targets = np.asarray(example.ids[at + 1 : end + 1], np.int32)
            hidden = out.tapped(rows, example.spec.tap.layers)
            example.parts.append((z, *example.spec.encode(hidden), *self._model.read(z, targets, TOP)))
        if example.pending:
            return False
        self._hand_over(example)
        return True

    @staticmethod
    def _take_context(example: ExampleWork, start: int, stop: int, first_row: int, out: Forward) -> None:
        """Keep the context rows from position `start` to `stop`, of which the first is the step's `first_row`."""
        context = example.spec.context
        if example.wants_context and context is not None and start < stop:
            hidden = out.tapped(slice(first_row, first_row + stop - start), example.spec.tap.layers)
            example.context.append(context.cut(*example.spec.encode(hidden)))

    def write_greedily(self, rows: list[GreedyRow], fail: Fail) -> list[ExampleWork]:
        """One head call for the replies that the base writes: each gets its next token. Those now complete."""
        if not rows:
            return []
        z_TD = np.concatenate([z for _, z, _ in rows])
        try:
            columns = self._model.read(z_TD, np.zeros(len(z_TD), np.int32), TOP)
        except Exception as error:
            for example, _, _ in rows:
                fail(example, error)
            return []
        complete = []
        for i, (example, z, hidden) in enumerate(rows):
            try:
                logp, top, lse = (column[i : i + 1] for column in columns)
                example.parts.append((z, *example.spec.encode(hidden), logp, top, lse))
                example.ids.append(int(top[0, 0]))
                if example.ids[-1] in self._tokenizer.stop_ids or len(example.parts) >= example.greedy_tokens:
                    self._hand_over(example)
                    complete.append(example)
            except Exception as error:
                fail(example, error)
        return complete

    def _hand_over(self, example: ExampleWork) -> None:
        """Send a complete example; of its rows only z and log p stay, and only if it may be scored."""
        z, codes, scales, logp, top, lse = (np.concatenate(column) for column in zip(*example.parts, strict=True))
        z_codes, z_scales = pack(z, int8=False)
        rows = example.spec.context
        context = context_scales = None
        if example.wants_context and rows is not None:
            none = np.zeros((0, len(example.layers), z.shape[1]), np.float32)
            parts = example.context or [
                rows.cut(*example.spec.encode(none))
            ]  # a prompt of one token has no row before it
            context, context_scales = (np.concatenate(column) for column in zip(*parts, strict=True))
        self._counters.examples += 1
        example.parts, example.context = [], []
        example.scorable = (z, logp) if example.score else None
        example.send(
            ExampleFrame(
                example.number,
                example.targets,
                codes,
                scales,
                z_codes,
                z_scales,
                top,
                lse,
                context=context,
                context_scales=context_scales,
            )
        )

    def score(self, example: ExampleWork, frame: Score) -> None:
        """Begin to score a read example under the corrections of a SCORE frame; SCORED follows.

        Raises ProtocolError when the example is not read yet or was scored already, or for wrong corrections.
        """
        if example.scorable is None:
            raise ProtocolError(f"example {example.number} must be read before it is scored, and scored once")
        z, logp = example.scorable
        example.scorable = None
        check_shapes(frame, len(z), z.shape[1], self._model.vocab, example.spec.max_pairs)
        corrected = apply_delta(z, frame, example.spec.merge)
        mixtures = [mixture_of(frame, row) for row in range(len(z))]
        self._scorings.append(Scoring(example, logp, corrected, mixtures))

    def score_rows(self, user: str, fail: Fail) -> None:
        """One head call for this user's score that has waited longest."""
        scoring = next(scoring for scoring in self._scorings if scoring.example.user == user)
        example = scoring.example
        at = sum(map(len, scoring.parts))
        try:
            rows = slice(at, at + HEAD_ROWS)
            targets, mixtures = example.targets[rows], scoring.mixtures[rows]
            logp = self._log_p(scoring, rows, targets)
            for row, (target, mixture) in enumerate(zip(targets.tolist(), mixtures, strict=True)):
                if mixture is not None:
                    logp[row] = mixed_logp(float(logp[row]), target, mixture)
            scoring.parts.append(logp)
        except Exception as error:
            self._scorings.remove(scoring)
            fail(example, error)
            return
        if at + HEAD_ROWS >= len(scoring.corrected_TD):
            self._scorings.remove(scoring)
            example.send(Scored(example.number, scoring.base_T, np.concatenate(scoring.parts)))

    def _log_p(self, scoring: Scoring, rows: slice, targets: np.ndarray) -> np.ndarray:
        """log p (T,) of the targets of these rows by the corrected z, with the biases where there is no mixture."""
        spec, z_TD = scoring.example.spec, scoring.corrected_TD[rows]
        if not any(map(len, spec.biases)):
            return self._model.read(z_TD, targets, 1)[0]
        logp = np.empty(len(targets), np.float32)
        for row, logits_V in enumerate(self._model.logits(z_TD)):
            if scoring.mixtures[rows.start + row] is None:
                logits_V = spec.biased(logits_V, ALL_PARTS)
            peak = logits_V.max()
            logp[row] = logits_V[targets[row]] - peak - np.log(np.exp(logits_V - peak).sum())
        return logp

    def forget(self, work: Sequence) -> None:
        """Drop the score that is under way for this example, if there is one."""
        self._scorings = [scoring for scoring in self._scorings if scoring.example is not work]
