"""The forms in which `mgit check` gives its report."""

from __future__ import annotations

import json
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
    """The whole document in one of `CHECK_FORMATS`; "github" is the text and, below it, annotations."""
    from modelgit.reporting.check_text import check_text
    from modelgit.reporting.entries import check_groups

    if form == "json":
        return json.dumps({"schema": "mgit.check/1", **check_data(report)}, indent=2, ensure_ascii=True) + "\n"
    if form == "markdown":
        from modelgit.reporting.markdown import check_markdown

        return check_markdown(report)
    if form == "html":
        from modelgit.reporting.verdict_html import check_html

        return check_html(report)
    if form == "junit":
        from modelgit.reporting.junit import junit_xml

        return junit_xml(check_groups(report))
    if form == "sarif":
        from modelgit.reporting.sarif import sarif_json

        return sarif_json(check_groups(report), version=modelgit.__version__)
    if form == "github":
        from modelgit.reporting.github import annotation_lines

        return check_text(report) + "".join(f"{line}\n" for line in annotation_lines(check_groups(report)))
    return check_text(report)
