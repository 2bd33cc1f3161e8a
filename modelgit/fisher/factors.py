"""Output directions whose squared gradients average to the Fisher diagonal.

For logits z with Jacobian J and p = softmax(z), the Fisher matrix of one example is J^T (diag p - p p^T) J.  With any S
such that S S^T = diag p - p p^T, its diagonal is the sum over the columns s of S of (J^T s)^2: one backward pass per
column.  The closed-form Cholesky factor L (Tanabe and Sagae 1992) has C - 1 columns, and L r with random signs r needs
one pass whatever C is (Hutchinson 1990), without error when C = 2.

All functions take float64 probabilities `[B, C]` and give float64 directions `[B, C]`, one per example.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

__all__ = ["cholesky_columns", "label_directions", "sampled_labels", "signed_directions"]


def _tails(p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """q_{j-1} and q_j for j = 1..C-1, where q_j is the mass of the classes after j; summed from the small end."""
    tail = p.flip(1).cumsum(1).flip(1)
    return tail[:, :-1], tail[:, 1:]


def _below(p: torch.Tensor) -> torch.Tensor:
    """c_j with L_ij = -p_i c_j for i > j: sqrt(p_j / (q_{j-1} q_j)), 0 where no mass is left after j.  `[B, C-1]`."""
    before, after = _tails(p)
    # Two roots in place of one: the product of two small tails underflows long before either does.
    c = (p[:, :-1] / before).sqrt() / after.sqrt()
    return torch.where(after > 0, c, 0.0)


def _diagonal(p: torch.Tensor) -> torch.Tensor:
    """L_jj = sqrt(p_j q_j / q_{j-1}), 0 where no mass is left after j.  `[B, C-1]`."""
    before, after = _tails(p)
    return torch.where(after > 0, (p[:, :-1] / before * after).sqrt(), 0.0)


def cholesky_columns(p: torch.Tensor) -> Iterator[torch.Tensor]:
    """The C - 1 columns of the Cholesky factor of diag p - p p^T, for each row of `p`."""
    below, diagonal = _below(p), _diagonal(p)
    for j in range(p.shape[1] - 1):
        column = torch.zeros_like(p)
        column[:, j] = diagonal[:, j]
        column[:, j + 1 :] = -p[:, j + 1 :] * below[:, j : j + 1]
        yield column


def signed_directions(p: torch.Tensor, signs: torch.Tensor) -> torch.Tensor:
    """L r for signs r in {-1, 1}, float64 `[B, C-1]`, in O(C) operations: a running sum stands in for the triangle."""
    direction = torch.zeros_like(p)
    direction[:, :-1] = _diagonal(p) * signs
    direction[:, 1:] -= p[:, 1:] * (_below(p) * signs).cumsum(1)
    return direction


def sampled_labels(p: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Labels drawn from each row of `p` by inverting its distribution at `uniform` `[B]` in [0, 1).  int64 `[B]`."""
    cumulative = p.cumsum(1)
    drawn = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)[:, 0]
    return drawn.clamp_max(p.shape[1] - 1)


def label_directions(p: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The gradient of log p_y with respect to the logits, e_y - p, for int64 `labels` `[B]`."""
    direction = -p
    direction[torch.arange(len(labels), device=p.device), labels] += 1.0
    return direction
