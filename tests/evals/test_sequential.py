from __future__ import annotations

from fractions import Fraction
from math import perm

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from modelgit.errors import UsageError
from modelgit.evals.sequential import FlipTest, allocate


def run_test(test: FlipTest, populations: list[np.ndarray], *, batch: int = 8) -> tuple[str, int]:
    drawn, flipped = [0] * len(populations), [0] * len(populations)
    while True:
        for i, amount in enumerate(allocate(test.sizes, drawn, flipped, batch, allowed=test.allowed)):
            flipped[i] += int(populations[i][drawn[i] : drawn[i] + amount].sum())
            drawn[i] += amount
        verdict = test.decide(drawn, flipped)
        if verdict != "open":
            return verdict, sum(drawn)


def shuffled(rng: np.random.Generator, size: int, flips: int) -> np.ndarray:
    return rng.permutation(np.arange(size) < flips)


@pytest.mark.parametrize(
    ("total", "allowed", "low", "high"), [(4000, 80, 216, 224), (4000, 40, 416, 416), (1000, 10, 328, 336)]
)
def test_clean_patches_pass_after_the_expected_number_of_examples(
    total: int, allowed: int, low: int, high: int
) -> None:
    test = FlipTest((total,), allowed)
    first = next(drawn for drawn in range(8, total, 8) if test.decide((drawn,), (0,)) == "pass")
    assert low <= first <= high


def test_a_regression_is_proven_early() -> None:
    rng = np.random.default_rng(3)
    test = FlipTest((4000,), 80)
    results = [run_test(test, [shuffled(rng, 4000, 200)], batch=16) for _ in range(60)]
    assert {verdict for verdict, _ in results} == {"fail"}
    # 215 examples on average is the measured figure for 5 % flips against a limit of 2 %.
    assert 150 < np.mean([drawn for _, drawn in results]) < 290


@pytest.mark.parametrize(("flips", "wrong"), [(10, "fail"), (11, "pass")])
@pytest.mark.parametrize("fragile", [None, 9])
def test_error_at_the_boundary_stays_below_alpha(flips: int, wrong: str, fragile: int | None) -> None:
    rng = np.random.default_rng(17)
    alpha, runs = 0.05, 400
    sizes = (200,) if fragile is None else (40, 160)
    split = (flips,) if fragile is None else (fragile, flips - fragile)
    test = FlipTest(sizes, 10, alpha_pass=alpha, alpha_fail=alpha)
    outcomes = [run_test(test, [shuffled(rng, n, k) for n, k in zip(sizes, split, strict=True)]) for _ in range(runs)]
    errors = sum(verdict == wrong for verdict, _ in outcomes)
    assert errors / runs <= alpha


@given(st.integers(1, 60), st.data())
@settings(max_examples=60, deadline=None)
def test_a_complete_draw_is_exact(total: int, data: st.DataObject) -> None:
    allowed = data.draw(st.integers(0, total))
    flips = data.draw(st.integers(0, total))
    assert FlipTest((total,), allowed).decide((total,), (flips,)) == ("pass" if flips <= allowed else "fail")


@given(st.integers(1, 40), st.data())
@settings(max_examples=60, deadline=None)
def test_early_verdicts_agree_with_exact_rational_arithmetic(total: int, data: st.DataObject) -> None:
    allowed = data.draw(st.integers(0, total - 1))
    drawn = data.draw(st.integers(0, total))
    flipped = data.draw(st.integers(0, drawn))

    def likelihood(k: int) -> Fraction:
        return Fraction(perm(k, flipped) * perm(total - k, drawn - flipped), perm(total, drawn))

    below, above = range(allowed + 1), range(allowed + 1, total + 1)
    weights = {k: Fraction(1, (k + 1) ** 2) for k in above}
    mixture_below = sum((likelihood(k) for k in below), Fraction(0)) / len(below)
    mixture_above = sum((weights[k] * likelihood(k) for k in above), Fraction(0)) / sum(weights.values())
    peaks = (max(map(likelihood, above)), max(map(likelihood, below)))
    # A tie with the threshold may fall either way in floating point.
    assume(mixture_below != 20 * peaks[0] and mixture_above != 20 * peaks[1])
    if flipped > allowed:
        expected = "fail"
    elif flipped + total - drawn <= allowed or mixture_below > 20 * peaks[0]:
        expected = "pass"
    elif mixture_above > 20 * peaks[1]:
        expected = "fail"
    else:
        expected = "open"
    assert FlipTest((total,), allowed).decide((drawn,), (flipped,)) == expected


def test_knowing_the_fragile_examples_proves_a_failure_sooner() -> None:
    rng = np.random.default_rng(5)
    two = [
        run_test(FlipTest((483, 2735), 40), [shuffled(rng, 483, 74), shuffled(rng, 2735, 12)], batch=16)
        for _ in range(10)
    ]
    one = [run_test(FlipTest((3218,), 40), [shuffled(rng, 3218, 86)], batch=16) for _ in range(10)]
    assert {verdict for verdict, _ in two + one} == {"fail"}
    assert np.mean([n for _, n in two]) < 0.5 * np.mean([n for _, n in one])


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=2),
    st.integers(1, 40),
    st.integers(0, 60),
)
def test_allocation_spends_the_whole_batch_within_the_strata(
    strata: list[tuple[int, int, int]], batch: int, allowed: int
) -> None:
    sizes = [size for size, _, _ in strata]
    drawn = [min(size, n) for size, n, _ in strata]
    flipped = [min(n, s) for n, (_, _, s) in zip(drawn, strata, strict=True)]
    shares = allocate(sizes, drawn, flipped, batch, allowed=allowed)
    left = [size - n for size, n in zip(sizes, drawn, strict=True)]
    assert sum(shares) == min(batch, sum(left))
    assert all(0 <= share <= rest for share, rest in zip(shares, left, strict=True))


def test_a_failing_patch_is_looked_at_where_it_fails_and_a_clean_one_where_flips_could_hide() -> None:
    sizes = (480, 2720)
    failing = allocate(sizes, (64, 32), (24, 0), 32, allowed=40)
    clean = allocate(sizes, (64, 32), (0, 0), 32, allowed=40)
    assert failing[0] > 24
    assert clean[1] > 16


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(UsageError, match="strata"):
        FlipTest((1, 2, 3), 1)
    with pytest.raises(UsageError, match="alpha"):
        FlipTest((10,), 1, alpha_pass=0.0)
