"""`mgit flips`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import click

from modelgit.cli._complete import complete_revision
from modelgit.cli._format import plural
from modelgit.cli._options import command, json_option, pass_session
from modelgit.cli._output import Painted, Part, columns, dim, green, red, yellow
from modelgit.cli._session import Session
from modelgit.errors import UsageError
from modelgit.reporting.wording import rate

if TYPE_CHECKING:
    from modelgit.repo.gates.flips import DataFlips, FlippedExample

__all__ = ["flips"]

_WIDTH = 60
_MARKS = {"negative": red("✗"), "positive": green("✓"), "changed": yellow("~")}


@command("flips", example="mgit flips v1.0..main --suite compat")
@click.argument("range_", metavar="A..B", shell_complete=complete_revision)
@click.option("--suite", "suites", multiple=True, metavar="NAME", help="Only the data of this suite; may be repeated.")
@click.option("--data", metavar="PATH", help="Only these data: a path, or a name in a suite.")
@click.option("--positive", is_flag=True, help="List what went from wrong to right, too.")
@click.option("--all", "everything", is_flag=True, help="List every example with another prediction.")
@click.option(
    "-n", "--number", type=click.IntRange(min=0), default=20, show_default=True, metavar="N", help="List N at most."
)
@json_option
@pass_session
def flips(
    session: Session,
    range_: str,
    suites: tuple[str, ...],
    data: str | None,
    positive: bool,
    everything: bool,
    number: int,
    as_json: bool,
) -> None:
    """List the examples that A had right and B has wrong (A: the parent of B, when only B is given).

    Predictions come from the cache of evaluations; what is missing there is computed, and kept.
    """
    from modelgit.repo.gates.flips import flips as find_flips

    old, dots, new = range_.partition("..")
    if not dots:
        old, new = f"{range_}~1", range_
    if not old or new.startswith("."):
        raise UsageError(f"{range_} is no range", hint="`mgit flips A..B`")
    wanted = {"negative"} | ({"positive"} if positive else set())
    if everything:
        wanted = set(_MARKS)
    found = find_flips(session.repository, old, new or "HEAD", suites=suites, data=data, progress=session.progress)
    if as_json:
        session.output.json("mgit.flips/1", {"data": [_plain(item, wanted) for item in found]})
        return
    session.output.hold()
    for item in found:
        _print(session, item, wanted, number)
    session.output.release()


def _print(session: Session, found: DataFlips, wanted: set[str], number: int) -> None:
    counts = found.counts
    heading: list[Part] = [f"{found.data} ({', '.join(found.suites)}): "]
    if counts.total:
        heading += [
            red(plural(counts.negative, "negative flip")),
            f" ({rate(counts.negative_rate)}), {counts.positive:,} positive ({rate(counts.positive_rate)})",
            f" of {counts.total:,} labelled examples",
        ]
    else:
        heading.append(f"{plural(len(found.examples), 'prediction')} changed of {found.total:,}, none of them labelled")
    session.output.line(*heading)
    if counts.total:
        session.output.line("  ", dim(_measures(found)))
    chosen = [item for item in found.examples if item.kind in wanted or not counts.total]
    session.output.lines(columns([_row(item) for item in chosen[:number]], indent=2))
    if len(chosen) > number:
        session.output.line("  ", dim(f"and {len(chosen) - number:,} more (-n {len(chosen)} lists all)"))


def _measures(found: DataFlips) -> str:
    """What the table of right and wrong says, for the reader; the gate decides by the limits of suites."""
    from modelgit.evals.metrics import clopper_pearson, mcnemar_exact

    counts = found.counts
    low, high = clopper_pearson(counts.negative, counts.total)
    words = [f"accuracy {rate(counts.old_accuracy)} → {rate(counts.new_accuracy)}"]
    words.append(f"churn {rate(len(found.examples) / found.total)}")
    shares = (("BTC", counts.trust_compatibility), ("BEC", counts.error_compatibility))
    words += [f"{name} {rate(value)}" for name, value in shares if not math.isnan(value)]
    words.append(f"negative flips of the population {rate(low)} to {rate(high)} (95 %)")
    words.append(f"McNemar p = {mcnemar_exact(counts.negative, counts.positive):.2g}")
    return "; ".join(words)


def _row(item: FlippedExample) -> list[Part]:
    mark: Painted = _MARKS[item.kind]
    text = " ".join(item.text.split())
    shown = text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"
    gold = f"is {item.gold}" if item.gold else ""
    return [mark, item.example, gold, f"{item.before} → {item.after}", dim(f"margin {item.margin:.2f}"), dim(shown)]


def _plain(found: DataFlips, wanted: set[str]) -> dict[str, object]:
    counts = found.counts
    return {
        "data": found.data,
        "suites": found.suites,
        "total": found.total,
        "labelled": counts.total,
        "negative": counts.negative,
        "positive": counts.positive,
        "changed": sum(item.kind == "changed" for item in found.examples),
        "churn": len(found.examples) / found.total if found.total else None,
        "measures": _numbers(found) if counts.total else None,
        "examples": [item._asdict() for item in found.examples if item.kind in wanted],
    }


def _numbers(found: DataFlips) -> dict[str, object]:
    from modelgit.evals.metrics import clopper_pearson, mcnemar_exact

    counts = found.counts
    shares = {
        "accuracy_before": counts.old_accuracy,
        "accuracy": counts.new_accuracy,
        "negative_rate": counts.negative_rate,
        "positive_rate": counts.positive_rate,
        "relative_negative_rate": counts.relative_negative_rate,
        "trust_compatibility": counts.trust_compatibility,
        "error_compatibility": counts.error_compatibility,
        "negative_impact": counts.negative_impact,
    }
    return {
        **{name: None if math.isnan(value) else value for name, value in shares.items()},  # JSON has no NaN
        "negative_interval_95": clopper_pearson(counts.negative, counts.total),
        "mcnemar_p": mcnemar_exact(counts.negative, counts.positive),
    }
