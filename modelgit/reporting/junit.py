"""Reports as JUnit XML, in the dialect that the usual readers share (Jenkins, GitLab, Azure, actions of GitHub).

The schema followed is junit-10.xsd of Jenkins' xUnit plug-in.  No times of day and no host, so that equal verdicts give
equal files but for how long they took.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape, quoteattr

from modelgit.reporting.entries import Entry, Group
from modelgit.reporting.wording import printable

__all__ = ["junit_xml"]


def junit_xml(groups: Sequence[Group]) -> str:
    """The document.  A broken limit is a failure; what was not decided or could not run is an error, never skipped.

    Readers show skipped tests as harmless, and what is no pass is not harmless.
    """
    cases = [entry for group in groups for entry in group.entries]
    seconds = sum(group.seconds for group in groups)
    lines = ['<?xml version="1.0" encoding="UTF-8"?>']
    lines.append(f'<testsuites name="mgit" {_counts(cases)} time="{seconds:.3f}">')
    for group in groups:
        counts = _counts(group.entries)
        lines.append(f'  <testsuite name={_attribute(group.name)} {counts} skipped="0" time="{group.seconds:.3f}">')
        lines.append("    <properties>")
        for name, value in group.properties.items():
            lines.append(f"      <property name={_attribute(name)} value={_attribute(value)}/>")
        lines.append("    </properties>")
        for entry in group.entries:
            lines += _case(group, entry)
        lines.append("  </testsuite>")
    lines.append("</testsuites>")
    return "\n".join(lines) + "\n"


def _counts(entries: Sequence[Entry]) -> str:
    broken = [entry for entry in entries if entry.level == "error"]
    failures = sum(entry.kind == "fail" for entry in broken)
    return f'tests="{len(entries)}" failures="{failures}" errors="{len(broken) - failures}"'


def _case(group: Group, entry: Entry) -> Iterator[str]:
    yield f"    <testcase classname={_attribute(group.name)} name={_attribute(entry.name)}>"
    if entry.level != "error":
        said = entry.text if entry.level == "ok" else f"{entry.kind}: {entry.text}"
        yield f"      <system-out>{_text(said)}</system-out>"
    else:
        tag = "failure" if entry.kind == "fail" else "error"
        attributes = f"type={_attribute(entry.kind)} message={_attribute(entry.message)}"
        yield f"      <{tag} {attributes}>{_text(entry.text)}</{tag}>"
    yield "    </testcase>"


def _attribute(value: str) -> str:
    return quoteattr(printable(value))


def _text(value: str) -> str:
    """Text of several lines; XML has no way to write most control characters, so they are written out."""
    return "\n".join(escape(printable(line)) for line in value.split("\n"))
