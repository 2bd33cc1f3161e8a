"""The forms in which `mgit check` gives its report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import modelgit
from modelgit.cli._output import plain_data

if TYPE_CHECKING:
    from modelgit.objects import CheckReport

__all__ = ["CHECK_FORMATS", "check_data", "check_document"]

CHECK_FORMATS = ("text", "json", "github", "junit", "sarif", "markdown", "html")


def check_data(report: CheckReport) -> dict[str, Any]:
    """What `--json` shows: the report, and the last word on it."""
    data: dict[str, Any] = plain_data(report)
    return {"outcome": report.outcome, "passed": report.passed, **data}


def check_document(report: CheckReport, form: str) -> str:
    """The whole document: "junit", "sarif", "markdown" or "html"."""
    from modelgit.reporting.entries import check_groups

    if form == "markdown":
        from modelgit.reporting.markdown import check_markdown

        return check_markdown(report)
    if form == "html":
        from modelgit.reporting.verdict_html import check_html

        return check_html(report)
    if form == "junit":
        from modelgit.reporting.junit import junit_xml

        return junit_xml(check_groups(report))
    from modelgit.reporting.sarif import sarif_json

    return sarif_json(check_groups(report), version=modelgit.__version__)
