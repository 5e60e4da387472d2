"""The candidate softmax against the whole vocabulary's, and its gradient against torch."""

import numpy as np
import pytest

from sideplug.contract.bias import Bias
from sideplug.training.head import Head, _logsumexp, fetch
from tests.conftest import Cloud, a_session, twin

V, D, T = 300, 16, 12
rng = np.random.default_rng(0)
ROWS = rng.normal(0, 1, (V, D)).astype(np.float32)
BIAS = rng.normal(0, 0.1, V).astype(np.float32)
Z = rng.normal(0, 1, (T, D)).astype(np.float32)
TARGETS = rng.integers(0, V, T).astype(np.int32)


def a_head(ids: np.ndarray, sample: np.ndarray, scale: float = 1.0, softcap: float = 0.0) -> Head:
    rows = np.concatenate([ids, sample]).astype(int)
    return Head(ids.astype(np.int32), ROWS[rows], BIAS[rows], scale, softcap)


def full(scale: float = 1.0, softcap: float = 0.0) -> Head:
    return a_head(np.arange(V), np.zeros(0, int), scale, softcap)


@pytest.mark.twin
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, 0.0), (0.5, 0.0), (1.0, 5.0)])
def test_the_whole_vocabulary_is_the_plain_softmax(scale: float, softcap: float) -> None:
    head = full(scale, softcap)
    torch = twin("torch")
    z = torch.tensor(Z, requires_grad=True)
    logits = (z @ torch.tensor(ROWS).T + torch.tensor(BIAS)) * scale
    logits = torch.tanh(logits / softcap) * softcap if softcap else logits
    want = torch.nn.functional.cross_entropy(logits, torch.tensor(TARGETS).long(), reduction="none")
    want.sum().backward()
    weight = head.log_weight(Z, _logsumexp(head._logits(Z)))
    losses, gradient = head.loss_and_gradient(Z, head.column(TARGETS), weight)
    np.testing.assert_allclose(losses, want.detach().numpy(), atol=1e-4)
    np.testing.assert_allclose(head.loss(Z, head.column(TARGETS), weight), losses, atol=1e-5)
    np.testing.assert_allclose(gradient, z.grad.numpy(), atol=1e-4)


@pytest.mark.twin
@pytest.mark.parametrize("softcap", [0.0, 5.0])
def test_a_tilt_is_added_behind_the_soft_cap(softcap: float) -> None:
    """Losses and gradients with a part's bias, against torch over the whole vocabulary; the base has none of it."""
    ids = np.arange(0, V, 3, dtype=np.int32)
    bias = Bias(ids, np.random.default_rng(1).normal(0, 1, len(ids)).astype(np.float16))
    head = full(0.7, softcap).tilted(bias)
    torch = twin("torch")
    z = torch.tensor(Z, requires_grad=True)
    plain = (z @ torch.tensor(ROWS).T + torch.tensor(BIAS)) * 0.7
    plain = torch.tanh(plain / softcap) * softcap if softcap else plain
    tilt = torch.zeros(V)
    tilt[torch.tensor(ids).long()] = torch.tensor(bias.values).float()
    want = torch.nn.functional.cross_entropy(plain + tilt, torch.tensor(TARGETS).long(), reduction="none")
    want.sum().backward(retain_graph=True)
    weight = head.log_weight(Z, _logsumexp(head._logits(Z)))
    losses, gradient = head.loss_and_gradient(Z, head.column(TARGETS), weight)
    np.testing.assert_allclose(losses, want.detach().numpy(), atol=1e-4)
    np.testing.assert_allclose(gradient, z.grad.numpy(), atol=1e-4)
    z.grad = None
    p, q = plain.detach().log_softmax(-1), (plain + tilt).log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1)
    kl.sum().backward()
    divergence, slope = head.divergence_and_gradient(Z, Z, weight)
    np.testing.assert_allclose(divergence, kl.detach().numpy(), atol=1e-4)
    np.testing.assert_allclose(slope, z.grad.numpy(), atol=1e-4)


@pytest.mark.parametrize("softcap", [0.0, 5.0])
def test_at_the_base_it_is_exact_whatever_the_candidates(softcap: float) -> None:
    """Where nothing is corrected the sampled rest is the base's own mass: the loss is the full one, to rounding."""
    whole = full(1.0, softcap)
    logits = whole._logits(Z)
    lse = _logsumexp(logits)
    ids = np.unique(np.concatenate([TARGETS, np.argsort(-logits, 1)[:, :4].ravel()]))
    others = np.setdiff1d(np.arange(V), ids)
    head = a_head(ids, others[::3], 1.0, softcap)
    got = head.loss(Z, head.column(TARGETS), head.log_weight(Z, lse))
    np.testing.assert_allclose(got, lse - logits[np.arange(T), TARGETS], atol=1e-4)


def test_gradient_with_a_sample_and_a_soft_cap() -> None:
    lse = _logsumexp(full(1.0, 5.0)._logits(Z))
    ids = np.unique(TARGETS)
    head = a_head(ids, np.setdiff1d(np.arange(V), ids)[::5], 1.0, 5.0)
    weight = head.log_weight(Z, lse)
    columns = head.column(TARGETS)
    _, gradient = head.loss_and_gradient(Z, columns, weight)
    for t, d in ((0, 0), (3, 7), (11, 15)):
        step = np.zeros_like(Z)
        step[t, d] = 1e-2
        numeric = (head.loss(Z + step, columns, weight).sum() - head.loss(Z - step, columns, weight).sum()) / 2e-2
        assert abs(numeric - gradient[t, d]) < 2e-2


def test_the_rest_moves_with_a_shift_of_all_logits() -> None:
    """What a constant rest would get wrong: a correction that lifts every token alike must gain nothing."""
    shared = np.zeros_like(ROWS)
    shared[:, 0] = 1.0
    rows = ROWS + shared * 3
    ids = np.unique(TARGETS)
    sample = np.setdiff1d(np.arange(V), ids)[::4]
    order = np.concatenate([ids, sample])
    head = Head(ids, rows[order], np.zeros(len(order), np.float32))
    whole = Head(np.arange(V, dtype=np.int32), rows, np.zeros(V, np.float32))
    lse = _logsumexp(whole._logits(Z))
    weight = head.log_weight(Z, lse)
    lifted = Z.copy()
    lifted[:, 0] += 2.0  # lifts all logits by about 6
    gain = head.loss(lifted, head.column(TARGETS), weight).mean() - head.loss(Z, head.column(TARGETS), weight).mean()
    exact = whole.loss(lifted, TARGETS, 0 * lse).mean() - whole.loss(Z, TARGETS, 0 * lse).mean()
    assert abs(gain - exact) < 0.5


def test_a_target_that_is_no_candidate_is_our_bug() -> None:
    with pytest.raises(ValueError, match="must be a candidate"):
        a_head(np.array([1, 5]), np.array([7])).column(np.array([5, 6]))


def test_rows_over_the_wire_are_the_models_own(cloud: Cloud) -> None:
    with a_session(cloud.url) as session:
        ids = np.array([3, 7, 11], np.int32)
        head = fetch(session, ids, sample=20)
        want, _ = cloud.engine.model.head_rows(ids)
        np.testing.assert_allclose(head.rows_CD[:3], want, rtol=1e-3, atol=1e-4)
        assert head.rows_CD.shape == (23, 64)
        everything = fetch(session, np.arange(session.model.vocab, dtype=np.int32))
        assert everything.rows_CD.shape == (session.model.vocab, 64)


@pytest.mark.parametrize("softcap", [0.0, 5.0])
def test_divergence_is_none_at_the_base_and_its_gradient_is_its_slope(softcap: float) -> None:
    whole = full(1.0, softcap)
    ids = np.unique(TARGETS)
    head = a_head(ids, np.setdiff1d(np.arange(V), ids)[::3], 1.0, softcap)
    weight = head.log_weight(Z, _logsumexp(whole._logits(Z)))
    none, flat = head.divergence_and_gradient(Z, Z, weight)
    np.testing.assert_allclose(none, 0, atol=1e-5)
    np.testing.assert_allclose(flat, 0, atol=1e-4)
    moved = Z + rng.normal(0, 0.3, Z.shape).astype(np.float32)
    found, gradient = head.divergence_and_gradient(Z, moved, weight)
    assert (found > 0).all()
    step = rng.normal(0, 1, Z.shape).astype(np.float32)
    more, less = (head.divergence_and_gradient(Z, moved + sign * 1e-2 * step, weight)[0] for sign in (1, -1))
    np.testing.assert_allclose((more - less) / 2e-2, (gradient * step).sum(axis=1), rtol=0.05, atol=0.05)
