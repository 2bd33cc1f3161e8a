"""What was measured, beside the bar that it is held to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

__all__ = ["Row", "as_json", "lines", "verdict"]


class Row(NamedTuple):
    """One figure.  `bar` is None for figures that are only reported; `unit` follows the numbers; `note` says how."""

    group: str
    what: str
    measured: float
    unit: str = ""
    bar: float | None = None
    side: Literal["at least", "at most"] = "at least"
    note: str = ""


def verdict(row: Row) -> str:
    """`met`, `NOT MET`, or nothing for a figure without a bar."""
    if row.bar is None:
        return ""
    met = row.measured >= row.bar if row.side == "at least" else row.measured <= row.bar
    return "met" if met else "NOT MET"


def lines(rows: Iterable[Row]) -> Iterator[str]:
    """The table in Markdown, a heading for each group."""
    group = None
    for row in rows:
        if row.group != group:
            group = row.group
            yield f"\n### {group}\n\n| what | measured | bar | | |\n|---|---|---|---|---|"
        bar = "" if row.bar is None else f"{row.side} {_number(row.bar)}"
        yield f"| {row.what} | {_number(row.measured)} {row.unit} | {bar} | {verdict(row)} | {row.note} |"


def as_json(rows: Iterable[Row]) -> list[dict[str, object]]:
    """The rows as objects, with their verdicts."""
    return [{**row._asdict(), "verdict": verdict(row)} for row in rows]


def _number(value: float) -> str:
    if value == int(value) and abs(value) < 1e6:
        return f"{value:,.0f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 100 else f"{value:.4g}"
