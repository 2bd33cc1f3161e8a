"""One limit against one measurement: the lines of a verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal as OneOf

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelgit.config.schema import Limit
from modelgit.config.suites import MetricLimit
from modelgit.objects import CheckResult, Decision

__all__ = [
    "Level",
    "Row",
    "Spread",
    "accuracy_row",
    "allowed_count",
    "at_level",
    "divergence_row",
    "failed",
    "flips_row",
    "limit_text",
    "metric_row",
    "needed_count",
    "rate_limit_text",
    "row",
]

Level = OneOf["block", "warn", "info"]
"""What a broken limit does: it refuses, it warns, or it is only told."""
# Limits are decimal fractions: 0.01 of 4,000 is 40, whatever binary arithmetic makes of it.
_SLACK = 1e-9


@dataclass(frozen=True)
class Row:
    """A line of the verdict, and what it contributes to the decision of the suite, given the limit's level."""

    result: CheckResult
    decision: Decision


def row(result: CheckResult, limit: Limit) -> Row:
    """The line of one limit, as much as its level makes of it (see `at_level`)."""
    return at_level(Row(result, result.decision), limit.level)


def at_level(line: Row, level: Level) -> Row:
    """A broken or undecided limit only warns at level "warn", and is "info" that changes nothing at level "info".

    What could not be measured stays an error.
    """
    if level == "block":
        return line
    shown, decision = line.result.decision, line.decision
    if level == "info" and shown in ("fail", "warn", "inconclusive"):
        shown = "info"
    elif shown == "fail":
        shown = "warn"
    if decision in ("fail", "warn", "inconclusive"):
        decision = "warn" if level == "warn" else "pass"
    return Row(msgspec.structs.replace(line.result, decision=shown), decision)


def failed(name: str, limit: Limit, reason: str, *, decision: Decision = "error") -> Row:
    """A line for what could not be measured ("error") or was left open ("inconclusive")."""
    return row(CheckResult(name=name, decision=decision, limit=limit_text(name, limit), detail=reason), limit)


def allowed_count(rate: float, total: int) -> int:
    """The most examples of `total` that make up at most `rate`."""
    return math.floor(rate * total + _SLACK)


def needed_count(rate: float, total: int) -> int:
    """The fewest examples of `total` that make up at least `rate`."""
    return math.ceil(rate * total - _SLACK)


def accuracy_row(limit: Limit, total: int, right: int, right_before: int | None, *, against: str = "") -> Row:
    """Accuracy of `right` of `total` examples, `right_before` of them in the baseline (None without one)."""
    kept = [
        limit.min is None or right >= needed_count(limit.min, total),
        limit.max is None or right <= allowed_count(limit.max, total),
    ]
    relative = limit.max_drop is not None or limit.max_rise is not None
    if right_before is not None:
        change = right - right_before
        kept.append(limit.max_drop is None or -change <= allowed_count(limit.max_drop, total))
        kept.append(limit.max_rise is None or change <= allowed_count(limit.max_rise, total))
    decision: Decision = "pass"
    if not all(kept):
        decision = "fail"
    elif relative and right_before is None:
        decision = "baseline"
    return row(
        CheckResult(
            name="accuracy",
            decision=decision,
            value=right / total,
            baseline=None if right_before is None else right_before / total,
            limit=limit_text("accuracy", limit),
            against=against,
            examples=total,
            total=total,
        ),
        limit,
    )


def metric_row(
    name: str, limit: Limit, value: float, before: float | None, *, unit: str = "", examples: int, against: str = ""
) -> Row:
    """A mean or score of `examples` examples, `before` that of the baseline (None without one).

    What is not finite breaks every limit.
    """
    finite = math.isfinite(value)
    kept = [finite or not _has_bound(limit)]
    if finite:
        kept.append(limit.min is None or value >= limit.min - _SLACK)
        kept.append(limit.max is None or value <= limit.max + _SLACK)
    ratio = limit.max_ratio if isinstance(limit, MetricLimit) else None
    relative = limit.max_drop is not None or limit.max_rise is not None or ratio is not None
    comparable = before is not None and math.isfinite(before)
    if before is not None and finite and comparable:
        kept.append(limit.max_drop is None or before - value <= limit.max_drop + _SLACK)
        kept.append(limit.max_rise is None or value - before <= limit.max_rise + _SLACK)
        kept.append(ratio is None or value <= before * ratio * (1 + _SLACK))
    decision: Decision = "pass"
    if not all(kept):
        decision = "fail"
    elif relative and before is None:
        decision = "baseline"
    elif relative and not comparable:
        decision = "error"
    return row(
        CheckResult(
            name=name,
            decision=decision,
            value=value if finite else None,
            baseline=before if comparable else None,
            unit=unit,
            limit=limit_text(name, limit, unit=unit),
            detail="" if finite else "not finite",
            against=against,
            examples=examples,
            total=examples,
        ),
        limit,
    )


def _has_bound(limit: Limit) -> bool:
    if isinstance(limit, MetricLimit) and limit.max_ratio is not None:
        return True
    return any(bound is not None for bound in (limit.min, limit.max, limit.max_drop, limit.max_rise))


def flips_row(flips: int, total: int, rate: float | None, *, against: str, part: str = "") -> Row:
    """`flips` of `total` examples went from right to wrong against a baseline; `part` is the slice they are of."""
    broken = rate is not None and flips > allowed_count(rate, total)
    decision: Decision = "fail" if broken else "pass"
    return Row(
        CheckResult(
            name="negative flips",
            decision=decision,
            value=flips / total,
            limit=rate_limit_text(rate),
            detail=f"{flips:,} of {total:,} examples went from right to wrong",
            against=against,
            slice=part,
            examples=total,
            total=total,
            broken=flips,
        ),
        decision,
    )


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Divergences in nats as a few numbers: `count` of them, `broken` of which are not finite.

    `mean`, `p99` and `largest` are None where any is not.
    """

    count: int
    broken: int
    mean: float | None
    p99: float | None
    largest: float | None

    @classmethod
    def of(cls, divergences: NDArray[np.float64]) -> Spread:
        """From an array `[N]`, N at least 1."""
        broken = int(np.count_nonzero(~np.isfinite(divergences)))
        if broken:
            # NaN and infinity are no JSON numbers.
            return cls(count=divergences.size, broken=broken, mean=None, p99=None, largest=None)
        return cls(
            count=divergences.size,
            broken=0,
            mean=float(divergences.mean()),
            p99=float(np.percentile(divergences, 99)),
            largest=float(divergences.max()),
        )


def divergence_row(
    name: str, spread: Spread, value: float | None, limit: float | None, *, against: str, examples: int, noun: str
) -> Row:
    """One number of KL(baseline || candidate) in nats, over `spread.count` outputs called `noun` of `examples`."""
    # A limit holds only where a number says so: what is not finite fails.
    held = limit is None or (value is not None and value <= limit)
    detail = ""
    if value is None:
        detail = f"not finite on {spread.broken:,} of {spread.count:,} {noun}"
    elif not held or noun != "examples":
        detail = (
            f"{spread.count:,} {noun}, mean {spread.mean:.3g}, 99 % at most {spread.p99:.3g}, all {spread.largest:.3g}"
        )
    decision: Decision = "pass" if held else "fail"
    return Row(
        CheckResult(
            name=name,
            decision=decision,
            value=value,
            unit="nats",
            limit="" if limit is None else f"max {limit:g} nats",
            detail=detail,
            against=against,
            examples=examples,
            total=examples,
        ),
        decision,
    )


def limit_text(name: str, limit: Limit, *, unit: str = "") -> str:
    """The limit as it is shown: "max 1.0 %", "min 78.0 %, -0.5 pt", "max 0.05 nats"."""
    if name == "kl":
        unit = "nats"
    bounds = (
        ("min ", limit.min, "%"),
        ("max ", limit.max, "%"),
        ("-", limit.max_drop, "pt"),
        ("+", limit.max_rise, "pt"),
    )
    suffix = "" if unit in ("number", "count") else f" {unit}"
    parts = [
        f"{word}{value:.10g}{suffix}" if unit else f"{word}{_percent(value)} {short}"
        for word, value, short in bounds
        if value is not None
    ]
    if isinstance(limit, MetricLimit) and limit.max_ratio is not None:
        parts.append(f"max {limit.max_ratio:g} times")
    return ", ".join(parts)


def rate_limit_text(rate: float | None) -> str:
    """A limit on a rate as it is shown, `max 1.0 %`; "" without one."""
    return "" if rate is None else f"max {_percent(rate)} %"


def _percent(rate: float) -> str:
    """A rate in per cent with one decimal, or as many as it needs."""
    short = f"{100 * rate:.1f}"
    return short if math.isclose(float(short), 100 * rate, abs_tol=1e-9) else f"{100 * rate:.4g}"
