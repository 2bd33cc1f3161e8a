"""One limit against one measurement: the lines of a verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelgit.config.schema import Limit
from modelgit.objects import CheckResult, Decision

__all__ = [
    "Row",
    "accuracy_check",
    "allowed_count",
    "failed",
    "flips_check",
    "kl_check",
    "limit_text",
    "needed_count",
    "percent",
    "row",
]

# Limits are decimal fractions: 0.01 of 4,000 is 40, whatever binary arithmetic makes of it.
_SLACK = 1e-9


@dataclass(frozen=True)
class Row:
    """A line of the verdict, and what it contributes to the decision of the suite, given the limit's level."""

    result: CheckResult
    decision: Decision


def row(result: CheckResult, limit: Limit) -> Row:
    """A broken or undecided limit only warns at level "warn", and changes nothing at level "info"."""
    decision = result.decision
    if limit.level == "block":
        return Row(result, decision)
    shown: Decision = "warn" if decision == "fail" else decision
    if shown in ("warn", "inconclusive"):
        decision = "warn" if limit.level == "warn" else "pass"
    return Row(msgspec.structs.replace(result, decision=shown), decision)


def failed(name: str, limit: Limit, reason: str, *, decision: Decision = "error") -> Row:
    """A line for what could not be measured ("error") or was left open ("inconclusive")."""
    return row(CheckResult(name=name, decision=decision, limit=limit_text(name, limit), detail=reason), limit)


def allowed_count(rate: float, total: int) -> int:
    """The most examples of `total` that make up at most `rate`."""
    return math.floor(rate * total + _SLACK)


def needed_count(rate: float, total: int) -> int:
    """The fewest examples of `total` that make up at least `rate`."""
    return math.ceil(rate * total - _SLACK)


def accuracy_check(limit: Limit, total: int, right: int, right_before: int | None) -> Row:
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
        ),
        limit,
    )


def flips_check(limit: Limit, total: int, flips: int | None) -> Row:
    """`flips` of `total` examples went from right to wrong; None without a baseline."""
    text = limit_text("negative flips", limit)
    if flips is None:
        return row(CheckResult(name="negative flips", decision="baseline", limit=text), limit)
    broken = limit.max is not None and flips > allowed_count(limit.max, total)
    return row(
        CheckResult(
            name="negative flips",
            decision="fail" if broken else "pass",
            value=flips / total,
            limit=text,
            detail=f"{flips:,} of {total:,} examples went from right to wrong",
        ),
        limit,
    )


def kl_check(limit: Limit, divergences: NDArray[np.float64] | None) -> Row:
    """The mean of KL(baseline || candidate) over the examples, in nats; None without a baseline."""
    text = limit_text("kl", limit)
    if divergences is None:
        return row(CheckResult(name="kl", decision="baseline", unit="nats", limit=text), limit)
    # NaN and infinity are no JSON numbers; the detail says what happened instead.
    finite = bool(np.isfinite(divergences).all())
    mean = float(divergences.mean()) if finite else None
    # A limit holds only where a number says so: what is not finite fails.
    held = limit.max is None or (mean is not None and mean <= limit.max)
    detail = ""
    if mean is None:
        count = int(np.count_nonzero(~np.isfinite(divergences)))
        detail = f"not finite on {count:,} of {divergences.size:,} examples"
    elif not held:
        detail = f"mean of {divergences.size:,} examples, at most {divergences.max():.3g}"
    return row(
        CheckResult(name="kl", decision="pass" if held else "fail", value=mean, unit="nats", limit=text, detail=detail),
        limit,
    )


def limit_text(name: str, limit: Limit) -> str:
    """The limit as it is shown: "max 1.0 %", "min 78.0 %, -0.5 pt", "max 0.05 nats"."""
    if name == "kl":
        return "" if limit.max is None else f"max {limit.max:g} nats"
    bounds = (("min", limit.min), ("max", limit.max))
    parts = [f"{word} {percent(value)} %" for word, value in bounds if value is not None]
    if limit.max_drop is not None:
        parts.append(f"-{percent(limit.max_drop)} pt")
    if limit.max_rise is not None:
        parts.append(f"+{percent(limit.max_rise)} pt")
    return ", ".join(parts)


def percent(rate: float) -> str:
    """A rate in per cent with one decimal, or as many as it needs."""
    short = f"{100 * rate:.1f}"
    return short if math.isclose(float(short), 100 * rate, abs_tol=1e-9) else f"{100 * rate:.4g}"
