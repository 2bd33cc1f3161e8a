"""`nfr`: negative flips, b/N over all N labelled examples (Yan et al., "Positive-Congruent Training", CVPR 2021)."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from modelgit.config.suites import NfrTest
from modelgit.evals.base import Side, SuiteRun
from modelgit.evals.checks import Row, allowed_count, flips_row, percent
from modelgit.evals.drawing import Draw
from modelgit.evals.paired import Pair
from modelgit.objects import CheckResult

__all__ = ["run"]

_NAME = "negative flips"


def run(test: NfrTest, run: SuiteRun) -> Iterator[Row]:
    """One line for each baseline, and one for each slice that is large enough where slices are limited.

    Examples are drawn until the limit is decided, unless the suite is run in full.  Limits on slices are looked at
    in full: a slice is too small for a draw to save much.
    """
    data = run.data_of(test)
    limit = _limit_text(test.max)
    if not (data.labels[run.order(data)] >= 0).any():
        yield _row(CheckResult(name=_NAME, decision="error", limit=limit, detail="no example has a label"))
        return
    if not run.baselines:
        yield _row(CheckResult(name=_NAME, decision="baseline", limit=limit))
    for side in run.baselines:
        yield from _against(test, run, side)


def _against(test: NfrTest, run: SuiteRun, side: Side) -> Iterator[Row]:
    data = run.data_of(test)
    pair = Pair(run, data, side)
    rate = limit_against(test, side.name)
    if rate is not None and test.slice_max is None and not run.in_full(data, run.candidate, side):
        allowed = allowed_count(rate, pair.total)
        draw = pair.draw([allowed], alpha_fail=run.alpha_fail)
        pair.note_flips(test.name, draw.flips)
        yield _row(_drawn(pair, draw, allowed, _limit_text(rate)))
        return
    before, after = pair.outcomes()
    flipped = before & ~after
    pair.note_flips(test.name, pair.positions[flipped])
    yield flips_row(int(np.count_nonzero(flipped)), pair.total, rate, against=side.name)
    if test.slice_max is not None:
        yield from _slices(test, pair, flipped, test.slice_max)


def limit_against(test: NfrTest, baseline: str) -> float | None:
    """The limit for one baseline: that of the first name or pattern in `max_vs` that matches, else `max`."""
    for pattern, rate in test.max_vs.items():
        if pattern == baseline or fnmatchcase(baseline, pattern):
            return rate
    return test.max


def _slices(test: NfrTest, pair: Pair, flipped: NDArray[np.bool_], limit: float) -> Iterator[Row]:
    """The slices that are large enough, by field and value; those that hold are one line together."""
    checked, worst = 0, 0.0
    for name, values in pair.data.slices.items():
        here = np.array([values[position] for position in pair.positions.tolist()], dtype=object)
        for value in sorted(set(here.tolist())):
            inside = here == value
            total, count = int(np.count_nonzero(inside)), int(np.count_nonzero(flipped & inside))
            if total < test.slice_min_n:
                continue
            checked += 1
            worst = max(worst, count / total)
            if count > allowed_count(limit, total):
                yield flips_row(count, total, limit, against=pair.baseline.name, part=f"{name}={value}")
    yield _row(
        CheckResult(
            name="slices",
            decision="pass",
            value=worst if checked else None,
            limit=_limit_text(limit),
            against=pair.baseline.name,
            detail=f"{checked:,} slices of at least {test.slice_min_n:,} examples; the worst is shown"
            if checked
            else f"no slice has {test.slice_min_n:,} labelled examples",
            examples=pair.total,
            total=pair.total,
        )
    )


def _drawn(pair: Pair, draw: Draw, allowed: int, limit: str) -> CheckResult:
    verdict = draw.verdicts[0]
    certain = draw.flipped > allowed or draw.flipped + draw.population - draw.drawn <= allowed
    proof = "certain without the rest" if certain else f"proven at alpha {pair.run.settings.alpha:g}"
    if verdict == "open":
        proof = "not decided when the time was over"
    among = f"{pair.total:,}" if draw.population == pair.total else f"the {draw.population:,} right before"
    return CheckResult(
        name=_NAME,
        decision="inconclusive" if verdict == "open" else verdict,
        value=draw.expected / pair.total if draw.drawn else None,
        limit=limit,
        detail=f"{draw.flipped:,} of the {draw.drawn:,} examples drawn from {among} "
        f"{'' if draw.population == pair.total else f'(of {pair.total:,}) '}went from right to wrong; {proof}",
        against=pair.baseline.name,
        examples=draw.drawn,
        total=pair.total,
        broken=draw.flipped,
    )


def _limit_text(rate: float | None) -> str:
    return "" if rate is None else f"max {percent(rate)} %"


def _row(result: CheckResult) -> Row:
    return Row(result, result.decision)
