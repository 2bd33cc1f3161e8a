"""One limit against one measurement: the lines of a verdict."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal as OneOf

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelgit.config.schema import Limit
from modelgit.objects import CheckResult, Decision

__all__ = [
    "Level",
    "Row",
    "accuracy_row",
    "allowed_count",
    "at_level",
    "decide",
    "divergence_row",
    "failed",
    "flips_row",
    "limit_text",
    "metric_row",
    "needed_count",
    "percent",
    "row",
]

Level = OneOf["block", "warn", "info"]
"""What a broken limit does: it refuses, it warns, or it is only told."""
# The first that occurs decides.
_PRECEDENCE: tuple[Decision, ...] = ("fail", "error", "inconclusive", "pending", "warn", "baseline", "pass")
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
    """A broken or undecided limit only warns at level "warn", and changes nothing at level "info".

    What could not be measured stays an error.
    """
    if level == "block":
        return line
    shown: Decision = "warn" if line.result.decision == "fail" else line.result.decision
    decision = line.decision
    if decision in ("fail", "warn", "inconclusive"):
        decision = "warn" if level == "warn" else "pass"
    return Row(msgspec.structs.replace(line.result, decision=shown), decision)


def decide(decisions: Iterable[Decision]) -> Decision:
    """Many decisions in one: the worst, where "error" and "inconclusive" are worse than "warn".

    None at all is an "error": a gate that checked nothing has passed nothing.
    """
    found = set(decisions)
    return next((decision for decision in _PRECEDENCE if decision in found), "error")


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
    relative = limit.max_drop is not None or limit.max_rise is not None
    comparable = before is not None and math.isfinite(before)
    if before is not None and finite and comparable:
        kept.append(limit.max_drop is None or before - value <= limit.max_drop + _SLACK)
        kept.append(limit.max_rise is None or value - before <= limit.max_rise + _SLACK)
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
            limit="" if rate is None else f"max {percent(rate)} %",
            detail=f"{flips:,} of {total:,} examples went from right to wrong",
            against=against,
            slice=part,
            examples=total,
            total=total,
            broken=flips,
        ),
        decision,
    )


def divergence_row(
    name: str, divergences: NDArray[np.float64], limit: float | None, *, against: str, percentile: float | None = None
) -> Row:
    """The mean of KL(baseline || candidate) over the examples in nats, float64 `[N]`, or a percentile of it."""
    # NaN and infinity are no JSON numbers; the detail says what happened instead.
    finite = bool(np.isfinite(divergences).all())
    value = None
    if finite:
        value = float(divergences.mean() if percentile is None else np.percentile(divergences, percentile))
    # A limit holds only where a number says so: what is not finite fails.
    held = limit is None or (value is not None and value <= limit)
    detail = ""
    if value is None:
        count = int(np.count_nonzero(~np.isfinite(divergences)))
        detail = f"not finite on {count:,} of {divergences.size:,} examples"
    elif not held and percentile is None:
        detail = f"mean of {divergences.size:,} examples, at most {divergences.max():.3g}"
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
            examples=divergences.size,
            total=divergences.size,
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
    return ", ".join(
        f"{word}{value:g} {unit}" if unit else f"{word}{percent(value)} {short}"
        for word, value, short in bounds
        if value is not None
    )


def percent(rate: float) -> str:
    """A rate in per cent with one decimal, or as many as it needs."""
    short = f"{100 * rate:.1f}"
    return short if math.isclose(float(short), 100 * rate, abs_tol=1e-9) else f"{100 * rate:.4g}"
