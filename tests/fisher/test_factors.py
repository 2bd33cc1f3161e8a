"""The factors multiply back to diag p - p p^T, also where probabilities vanish."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from modelgit.fisher.factors import cholesky_columns, label_directions, sampled_labels, signed_directions  # noqa: E402

LOGITS = st.lists(st.floats(-800, 800), min_size=2, max_size=7)


@given(LOGITS)
def test_the_columns_are_a_factor(logits: list[float]) -> None:
    p = torch.tensor([logits, logits[::-1]], dtype=torch.float64).softmax(1)
    factor = torch.stack(list(cholesky_columns(p)), 2)
    assert factor.shape == (2, len(logits), len(logits) - 1)
    expected = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    assert torch.allclose(factor @ factor.transpose(1, 2), expected, rtol=0, atol=1e-14)
    assert torch.equal(factor, factor.tril())


@given(LOGITS, st.integers(0, 63))
def test_signed_directions_are_the_factor_times_signs(logits: list[float], pattern: int) -> None:
    p = torch.tensor([logits], dtype=torch.float64).softmax(1)
    signs = torch.tensor([[1.0 if pattern >> at & 1 else -1.0 for at in range(len(logits) - 1)]], dtype=torch.float64)
    factor = torch.stack(list(cholesky_columns(p)), 2)
    product = (factor @ signs[:, :, None])[:, :, 0]
    assert torch.allclose(signed_directions(p, signs), product, rtol=1e-9, atol=1e-14)


def test_labels_are_drawn_from_the_distribution() -> None:
    p = torch.tensor([[0.2, 0.0, 0.5, 0.3]], dtype=torch.float64).expand(4000, 4)
    uniform = torch.arange(4000, dtype=torch.float64) / 4000
    assert sampled_labels(p, uniform).bincount(minlength=4).tolist() == pytest.approx([800, 0, 2000, 1200], abs=1)
    assert sampled_labels(p[:1], torch.tensor([1.0 - 1e-16], dtype=torch.float64)).tolist() == [3]


def test_label_directions_are_gradients_of_the_log_probability() -> None:
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([1, 3, 0])
    log_p = logits.log_softmax(1)
    (gradient,) = torch.autograd.grad(log_p[torch.arange(3), labels].sum(), logits)
    assert torch.allclose(label_directions(log_p.exp().detach(), labels), gradient, atol=1e-12)
