"""`nfr`: negative flips, b/N over all N labelled examples (Yan et al., "Positive-Congruent Training", CVPR 2021)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelgit.config.suites import NfrTest
from modelgit.evals.base import Side, SuiteRun
from modelgit.evals.checks import Row, allowed_count, flips_row, rate_limit_text
from modelgit.evals.drawing import Draw
from modelgit.evals.means import ClusterDraw, draw_clusters
from modelgit.evals.paired import Pair
from modelgit.objects import CheckResult

__all__ = ["run"]

_NAME = "negative flips"


def run(test: NfrTest, run: SuiteRun) -> Iterator[Row]:
    """One line for each baseline, and one for each slice that is large enough where slices are limited.

    A baseline with several names has one line, or one for each where they have different limits.

    Examples (whole clusters, where the data have some) are drawn until the limit is decided, unless the suite is run in
    full.  Then each slice that is limited is drawn from until it is decided, too.
    """
    data = run.data_of(test)
    limit = rate_limit_text(test.max)
    if not (data.labels[run.order(data)] >= 0).any():
        yield _row(CheckResult(name=_NAME, decision="error", limit=limit, detail="no example has a label"))
        return
    if not run.baselines:
        yield _row(CheckResult(name=_NAME, decision="baseline", limit=limit))
    for side in run.baselines:
        yield from _against(test, run, side)


def _against(test: NfrTest, run: SuiteRun, side: Side) -> Iterator[Row]:
    data = run.data_of(test)
    pair = Pair(run, data, side, test=test.name)
    limits = _limits(test, run.names_of(side))
    slices = list(_large_slices(test, pair)) if test.slice_max is not None else []
    if run.in_full(data, run.candidate, side) or (test.slice_max is None and set(limits.values()) == {None}):
        flipped = pair.flips()
        pair.note_flips(test.name, pair.positions[flipped])
        for name, rate in limits.items():
            yield flips_row(int(np.count_nonzero(flipped)), pair.total, rate, against=name)
        yield from _slices_in_full(test, pair, flipped, slices)
        return
    for name, rate in limits.items():
        if rate is not None:
            line = _by_drawing(test, pair, rate)
            yield _row(msgspec.structs.replace(line.result, against=name))
    yield from _slices_by_drawing(test, pair, slices)


def _by_drawing(test: NfrTest, pair: Pair, rate: float) -> Row:
    run = pair.run
    allowed = allowed_count(rate, pair.total)
    if pair.data.clusters is not None:
        clusters = draw_clusters(pair, allowed, alpha_fail=run.alpha_fail)
        pair.note_flips(test.name, clusters.flips)
        return _row(_drawn_clusters(pair, clusters, rate_limit_text(rate)))
    draw = pair.draw([allowed], alpha_fail=run.alpha_fail)
    pair.note_flips(test.name, draw.flips)
    return _row(_drawn(pair, draw, allowed, rate_limit_text(rate), total=pair.total))


def _limits(test: NfrTest, names: Sequence[str]) -> dict[str, float | None]:
    """The limits of one baseline by its names; one that is the same for all by the first."""
    limits = {name: limit_against(test, name) for name in names}
    return limits if len(set(limits.values())) > 1 else {names[0]: limits[names[0]]}


def limit_against(test: NfrTest, baseline: str) -> float | None:
    """The limit for one baseline: that of the first name or pattern in `max_vs` that matches, else `max`.

    What is said of "parent" holds for every parent of a merge ("parent:2").
    """
    for pattern, rate in test.max_vs.items():
        if pattern == baseline or fnmatchcase(baseline, pattern):
            return rate
        if pattern == "parent" and baseline.startswith("parent:"):
            return rate
    return test.max


def _large_slices(test: NfrTest, pair: Pair) -> Iterator[tuple[str, NDArray[np.bool_], int]]:
    """Each slice of enough labelled examples: what it is called, which examples of the data, how many labelled."""
    labelled = np.zeros(len(pair.data), dtype=bool)
    labelled[pair.positions] = True
    for name, values in pair.data.slices.items():
        column = np.array(values, dtype=object)
        for value in sorted(set(values)):
            inside = (column == value) & labelled
            total = int(np.count_nonzero(inside))
            if total >= test.slice_min_n:
                yield f"{name}={value}", inside, total


def _slices_in_full(
    test: NfrTest, pair: Pair, flipped: NDArray[np.bool_], slices: Sequence[tuple[str, NDArray[np.bool_], int]]
) -> Iterator[Row]:
    """The slices that break their limit; those that hold are one line together."""
    if test.slice_max is None:
        return
    worst, held = 0.0, 0
    for name, inside, total in slices:
        count = int(np.count_nonzero(flipped & inside[pair.positions]))
        if count > allowed_count(test.slice_max, total):
            yield flips_row(count, total, test.slice_max, against=pair.baseline.name, part=name)
        else:
            worst, held = max(worst, count / total), held + 1
    if held or not slices:
        yield _slices_row(test, pair, held, value=worst if held else None, examples=pair.total, of=len(slices))


def _slices_by_drawing(
    test: NfrTest, pair: Pair, slices: Sequence[tuple[str, NDArray[np.bool_], int]]
) -> Iterator[Row]:
    """As in full, but each slice is drawn from until it is decided; the error of a failure is split among them."""
    if test.slice_max is None:
        return
    examples = held = 0
    for name, inside, total in slices:
        allowed = allowed_count(test.slice_max, total)
        if pair.data.clusters is not None:
            # Clusters may lie across slices: these are looked at whole.
            positions = np.flatnonzero(inside)
            flips = positions[pair.flips_at(positions)]
            line = flips_row(flips.size, total, test.slice_max, against=pair.baseline.name, part=name)
            examples += total
        else:
            draw = pair.draw_slice(inside, allowed, alpha_fail=pair.run.alpha_fail / len(slices))
            result = _drawn(pair, draw, allowed, rate_limit_text(test.slice_max), total=total)
            line = _row(msgspec.structs.replace(result, slice=name))
            examples += draw.drawn
        held += line.decision == "pass"
        if line.decision != "pass":
            yield line
    if held or not slices:
        yield _slices_row(test, pair, held, value=None, examples=min(examples, pair.total), of=len(slices))


def _slices_row(test: NfrTest, pair: Pair, count: int, *, value: float | None, examples: int, of: int) -> Row:
    """One line for the slices that hold, `count` of all `of`; `value` is the worst of them where all was looked at."""
    words = f"{count:,} of {of:,}" if count < of or value is None else f"{count:,}"
    detail = f"{words} slices of at least {test.slice_min_n:,} examples"
    if value is not None:
        detail += "; the worst is shown" if count == of else " hold; the worst of them is shown"
    elif not of:
        detail = f"no slice has {test.slice_min_n:,} labelled examples"
    else:
        detail += f" hold; proven at alpha {pair.run.settings.alpha:g}"
    return _row(
        CheckResult(
            name="slices",
            decision="pass",
            value=value,
            limit=rate_limit_text(test.slice_max),
            against=pair.baseline.name,
            detail=detail,
            examples=examples,
            total=pair.total,
        )
    )


def _drawn_clusters(pair: Pair, draw: ClusterDraw, limit: str) -> CheckResult:
    proof = f"proven at alpha {pair.run.settings.alpha:g}"
    if draw.verdict == "open":
        proof = "not decided when the time was over"
    elif draw.units == draw.of:
        proof = "all were looked at"
    return CheckResult(
        name=_NAME,
        decision="inconclusive" if draw.verdict == "open" else draw.verdict,
        value=draw.flips.size / draw.drawn if draw.drawn else None,
        limit=limit,
        detail=f"{draw.flips.size:,} of the {draw.drawn:,} examples in {draw.units:,} of {draw.of:,} clusters went "
        f"from right to wrong; {proof}",
        against=pair.baseline.name,
        examples=draw.drawn,
        total=pair.total,
        broken=draw.flips.size,
    )


def _drawn(pair: Pair, draw: Draw, allowed: int, limit: str, *, total: int) -> CheckResult:
    verdict = draw.verdicts[0]
    certain = draw.flipped > allowed or draw.flipped + draw.population - draw.drawn <= allowed
    proof = "certain without the rest" if certain else f"proven at alpha {pair.run.settings.alpha:g}"
    if verdict == "open":
        proof = "not decided when the time was over"
    among = f"{total:,}" if draw.population == total else f"the {draw.population:,} right before"
    return CheckResult(
        name=_NAME,
        decision="inconclusive" if verdict == "open" else verdict,
        value=draw.expected / total if draw.drawn else None,
        limit=limit,
        detail=f"{draw.flipped:,} of the {draw.drawn:,} examples drawn from {among} "
        f"{'' if draw.population == total else f'(of {total:,}) '}went from right to wrong; {proof}",
        against=pair.baseline.name,
        examples=draw.drawn,
        total=total,
        broken=draw.flipped,
    )


def _row(result: CheckResult) -> Row:
    return Row(result, result.decision)
