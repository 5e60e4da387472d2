"""CorrectionPredictor learns what a device answers, forgets what is old, and says nothing where it knows nothing."""

import numpy as np

from sideplug.cloud.correction_predictor import HISTORY, RIDGE, CorrectionPredictor

RNG = np.random.default_rng(0)


def test_it_knows_nothing_at_first() -> None:
    predictor = CorrectionPredictor()
    assert predictor.predict(np.ones(4)) == 0
    predictor.observe(np.ones(4), np.ones(3))
    assert predictor.predict(np.ones(4)) == 0


def test_it_is_ridge_regression() -> None:
    """The dual form against the primal one, which needs the width squared."""
    codes, deltas = RNG.normal(size=(40, 6)), RNG.normal(size=(40, 3))
    predictor = CorrectionPredictor()
    for code, delta in zip(codes, deltas, strict=True):
        predictor.observe(code, delta)
    x = codes - codes.mean(0)
    penalty = RIDGE * (x * x).sum() / len(x) + 1e-6
    weight = np.linalg.solve(x.T @ x + penalty * np.eye(6), x.T @ (deltas - deltas.mean(0)))
    probe = RNG.normal(size=6)
    want = deltas.mean(0) + (probe - codes.mean(0)) @ weight
    np.testing.assert_allclose(predictor.predict(probe), want)


def test_it_follows_a_plugin_and_forgets_another() -> None:
    first, second = RNG.normal(size=(2, 12, 5))
    predictor = CorrectionPredictor()
    for weight in (first, second):
        for _ in range(2 * HISTORY):
            code = RNG.normal(size=12)
            predictor.observe(code, code @ weight)
    errors = []
    for _ in range(20):
        code = RNG.normal(size=12)
        errors.append(np.linalg.norm(predictor.predict(code) - code @ second) / np.linalg.norm(code @ second))
    assert np.mean(errors) < 0.2
