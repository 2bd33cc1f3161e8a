"""Deciding on negative flips with few examples, with a guaranteed bound on the error.

The question is finite: a suite has N examples that can flip, the whole run would show K flips, and at most `allowed`
are tolerated.  Examples are drawn without replacement.  The likelihood of what was seen, as a function of K, is known
exactly, and the ratio of a mixture of such likelihoods to the likelihood of the true K is a non-negative martingale
of mean 1 (the prior-posterior ratio of Waudby-Smith and Ramdas, "Confidence sequences for sampling without
replacement", NeurIPS 2020).  By Ville's inequality a wrong early verdict has a probability of at most alpha however
often one looks.  Certainties (more flips seen than allowed; too few examples left) decide at once and cost nothing.

With two strata (fragile examples, which the baseline had right by a small margin, and the rest) the likelihood is a
product, and any allocation of draws that depends only on the past keeps the guarantee.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal as OneOf

import numpy as np
from numpy.typing import NDArray

from modelgit.errors import UsageError

__all__ = ["FlipTest", "SequentialVerdict", "allocate"]

SequentialVerdict = OneOf["pass", "fail", "open"]
_Array = NDArray[np.float64]

# Never 0 or 1: rates that look certain after few draws are not.
_SHARES: _Array = np.linspace(0.02, 0.98, 25)
# Flips supposed in a stratum before one example is seen, of one example: fragile examples may well flip, others hardly.
_PRIOR_FLIPS = (0.5, 0.01)


def _log_factorials(count: int) -> _Array:
    """log(k!) for k = 0..count."""
    return np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, count + 1, dtype=np.float64)))))


class FlipTest:
    """Decides whether a population of examples holds at most `allowed` flips.

    `sizes` are the population's strata: one number, or two.  `alpha_pass` bounds the probability of ever saying
    "pass" where the full run would fail, `alpha_fail` that of ever saying "fail" where it would pass.
    """

    def __init__(
        self, sizes: Sequence[int], allowed: int, *, alpha_pass: float = 0.05, alpha_fail: float = 0.05
    ) -> None:
        if not 1 <= len(sizes) <= 2 or any(size < 0 for size in sizes):
            raise UsageError(f"a flip test takes one or two strata, not {list(sizes)}")
        if not (0 < alpha_pass < 1 and 0 < alpha_fail < 1):
            raise UsageError(f"alpha must lie between 0 and 1, not {alpha_pass} and {alpha_fail}")
        self.sizes = tuple(sizes)
        self.allowed = allowed
        self.total = sum(sizes)
        self._threshold_pass = -np.log(alpha_pass)
        self._threshold_fail = -np.log(alpha_fail)
        self._factorials = _log_factorials(max(self.sizes))
        first, second = self._padded(self.sizes)
        # One stratum: uniform on 0..allowed, and 1/(k+1)^2 above, which spends most on moderate regressions, for gross
        # ones show at once under any weight.  Two strata: 1/(k+1) each, because uniform weights on pairs would leave
        # too little on "no flips at all".  Any choice is valid; this one only decides where examples are saved.
        self._weights_pass = (_harmonic(first), np.ones(second + 1) if not first else _harmonic(second))
        self._weights_fail = (_harmonic(first), _harmonic(second) if first else _harmonic(second) ** 2)
        ones = (np.zeros(first + 1), np.zeros(second + 1))
        if 0 <= allowed < self.total:
            self._norm_pass = self._log_mixture(ones, self._weights_pass, inside=True)
            self._norm_fail = self._log_mixture(ones, self._weights_fail, inside=False)

    def decide(self, drawn: Sequence[int], flipped: Sequence[int]) -> SequentialVerdict:
        """The verdict after `drawn` examples of each stratum, of which `flipped` flipped."""
        seen, left = sum(flipped), self.total - sum(drawn)
        if seen > self.allowed:
            return "fail"
        if seen + left <= self.allowed:
            return "pass"
        likelihoods = self._likelihoods(self._padded(drawn), self._padded(flipped))
        passing = self._log_mixture(likelihoods, self._weights_pass, inside=True) - self._norm_pass
        if passing - self._log_maximum(likelihoods, inside=False) >= self._threshold_pass:
            return "pass"
        failing = self._log_mixture(likelihoods, self._weights_fail, inside=False) - self._norm_fail
        if failing - self._log_maximum(likelihoods, inside=True) >= self._threshold_fail:
            return "fail"
        return "open"

    @staticmethod
    def _padded(counts: Sequence[int]) -> tuple[int, int]:
        """Counts of two strata; a single stratum is the second of two, beside an empty one."""
        return (counts[0], counts[1]) if len(counts) == 2 else (0, counts[0])

    def _likelihoods(self, drawn: tuple[int, int], flipped: tuple[int, int]) -> tuple[_Array, _Array]:
        """Per stratum, the log-likelihood of the draws for every possible number of flips 0..size."""
        first, second = (
            self._stratum(size, n, s) for size, n, s in zip(self._padded(self.sizes), drawn, flipped, strict=True)
        )
        return first, second

    def _stratum(self, size: int, drawn: int, flipped: int) -> _Array:
        result = np.full(size + 1, -np.inf)
        # (k)_s (size-k)_(n-s) / (size)_n with falling factorials; other k are impossible.
        k = np.arange(flipped, size - drawn + flipped + 1)
        lf = self._factorials
        result[k] = (
            lf[k] - lf[k - flipped] + lf[size - k] - lf[size - k - drawn + flipped] - lf[size] + lf[size - drawn]
        )
        return result

    def _partners(self, *, inside: bool) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """For each k of the first stratum the largest (inside) or smallest (outside) partner in the second.

        Returns (k, partner) for those k that have one.
        """
        first, second = self._padded(self.sizes)
        k = np.arange(first + 1)
        if inside:
            keep = k <= self.allowed
            return k[keep], np.minimum(self.allowed - k[keep], second)
        start = np.maximum(self.allowed + 1 - k, 0)
        keep = start <= second
        return k[keep], start[keep]

    def _log_maximum(self, likelihoods: tuple[_Array, _Array], *, inside: bool) -> float:
        """The largest joint log-likelihood over pairs with at most (inside) or more than `allowed` flips."""
        k, partner = self._partners(inside=inside)
        second = likelihoods[1]
        best = np.maximum.accumulate(second) if inside else np.maximum.accumulate(second[::-1])[::-1]
        return float(np.max(likelihoods[0][k] + best[partner]))

    def _log_mixture(
        self, likelihoods: tuple[_Array, _Array], weights: tuple[_Array, _Array], *, inside: bool
    ) -> float:
        """log of the weighted sum of joint likelihoods over one side of the limit."""
        k, partner = self._partners(inside=inside)
        with np.errstate(divide="ignore"):
            first = likelihoods[0] + np.log(weights[0])
            second = likelihoods[1] + np.log(weights[1])
            # Running log-sums: exact where plain sums of exponentials would underflow.
            sums = np.logaddexp.accumulate(second) if inside else np.logaddexp.accumulate(second[::-1])[::-1]
            return float(np.logaddexp.reduce(first[k] + sums[partner]))


def _harmonic(size: int) -> _Array:
    weights: _Array = 1.0 / np.arange(1, size + 2, dtype=np.float64)
    return weights


def allocate(
    sizes: Sequence[int], drawn: Sequence[int], flipped: Sequence[int], batch: int, *, allowed: int
) -> tuple[int, ...]:
    """How many of the next `batch` draws each stratum gets, to decide soonest on at most `allowed` flips.

    The rule of Garivier and Kaufmann ("Optimal best arm identification with fixed confidence", COLT 2016) for two
    strata: take the rates seen so far for true, and share the draws so that the least distinguishable population on the
    other side of the limit is told apart fastest, by Kullback-Leibler divergence.  A regression that shows among the
    fragile examples is thus proven there, and a pass where the flips could still hide.

    Depends on the past alone.  Every stratum with examples left gets at least one draw while the batch allows it;
    together they get `batch`, or all that is left.
    """
    left = [size - n for size, n in zip(sizes, drawn, strict=True)]
    batch = min(batch, sum(left))
    if len(sizes) == 1 or 0 in left:
        shares = [min(rest, batch) for rest in left]
    else:
        share = _first_share(sizes, drawn, flipped, allowed)
        first = min(max(round(batch * share), 1), max(batch - 1, 1), left[0])
        shares = [first, min(batch - first, left[1])]
        shares[0] = min(batch - shares[1], left[0])
    return tuple(shares)


def _first_share(sizes: Sequence[int], drawn: Sequence[int], flipped: Sequence[int], allowed: int) -> float:
    """The share of draws, of `_SHARES`, for the first of two strata."""
    size, other = sizes
    rate, other_rate = ((s + prior) / (n + 1) for n, s, prior in zip(drawn, flipped, _PRIOR_FLIPS, strict=True))
    failing = rate * size + other_rate * other > allowed
    # The nearest populations of the other verdict lie on the limit: k flips here and the rest of it there.
    flips = allowed if failing else allowed + 1
    k = np.arange(max(0, flips - other), min(size, flips) + 1)
    if not k.size:
        return 0.5
    here, there = k / size, (flips - k) / other
    # A population may lie further inside than the limit where that brings it nearer to what was seen.
    if failing:
        here, there = np.minimum(here, rate), np.minimum(there, other_rate)
    else:
        here, there = np.maximum(here, rate), np.maximum(there, other_rate)
    speeds = _SHARES[:, None] * _divergence(rate, here) + (1 - _SHARES[:, None]) * _divergence(other_rate, there)
    return float(_SHARES[int(np.argmax(speeds.min(1)))])


def _divergence(rate: float, others: _Array) -> _Array:
    """Kullback-Leibler divergence of coins, nats: of one with `rate`, 0 < rate < 1, from each of `others`."""
    with np.errstate(divide="ignore"):
        result: _Array = rate * (np.log(rate) - np.log(others)) + (1 - rate) * (np.log1p(-rate) - np.log1p(-others))
    return result
