"""The forms in which `mgit check` gives its report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelgit.cli._output import plain_data

if TYPE_CHECKING:
    from modelgit.objects import CheckReport

__all__ = ["CHECK_FORMATS", "check_data", "check_document"]

CHECK_FORMATS = ("text", "json")


def check_data(report: CheckReport) -> dict[str, Any]:
    """What `--json` shows: the report, and the last word on it."""
    data: dict[str, Any] = plain_data(report)
    return {"outcome": report.outcome, "passed": report.passed, **data}


def check_document(report: CheckReport, form: str) -> str:
    """The whole document in one of `CHECK_FORMATS`."""
    if form == "json":
        import json

        return json.dumps({"schema": "mgit.check/1", **check_data(report)}, indent=2, ensure_ascii=True) + "\n"
    from modelgit.reporting.check_text import check_text

    return check_text(report)
