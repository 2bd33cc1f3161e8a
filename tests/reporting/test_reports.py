"""JUnit, SARIF, annotations, Markdown and HTML of verdicts and checks, with names that try to break out of them."""

from __future__ import annotations

import json
import re
import string
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from msgspec.structs import replace

from modelgit.objects import CheckReport, CheckResult, CheckSection, EvalRecord
from modelgit.reporting.entries import Group, check_groups, verdict_groups
from modelgit.reporting.github import annotation_lines
from modelgit.reporting.junit import junit_xml
from modelgit.reporting.markdown import check_markdown, verdict_markdown
from modelgit.reporting.sarif import sarif_json
from modelgit.reporting.verdict_html import check_html, verdict_html
from modelgit.reporting.verdict_text import check_cells
from modelgit.reporting.wording import printable

FILES = {"compat": "evals/compat.toml"}


@pytest.fixture(params=["verdicts", "check"])
def groups(request: pytest.FixtureRequest, verdict: EvalRecord, hostile: EvalRecord, check: CheckReport) -> list[Group]:
    if request.param == "check":
        return check_groups(check, files=FILES)
    return verdict_groups([verdict, hostile], files=FILES)


def errors(groups: list[Group]) -> list[str]:
    return [entry.name for group in groups for entry in group.entries if entry.level == "error"]


def test_a_group_has_an_error_exactly_when_its_verdict_lets_nothing_in(verdict: EvalRecord) -> None:
    line = CheckResult(name="a", decision="pass")
    for decision in ("pass", "info", "warn", "baseline", "fail", "error", "inconclusive", "pending"):
        for results in ((), (line,), (replace(line, decision="inconclusive"),), (replace(line, decision="fail"),)):
            record = replace(verdict, decision=decision, results=results)
            assert bool(errors(verdict_groups([record]))) == (decision not in ("pass", "info", "warn", "baseline"))


def test_a_part_of_a_check_has_an_error_exactly_when_it_does_not_pass(check: CheckReport) -> None:
    for section in check.sections:
        for outcome in ("pass", "warn", "skip", "fail", "error", "inconclusive"):
            report = replace(check, sections=(replace(section, outcome=outcome),))
            assert bool(errors(check_groups(report))) == (not report.passed), (section.name, outcome)


def test_every_text_of_an_entry_is_printable(groups: list[Group]) -> None:
    for group in groups:
        for entry in group.entries:
            for text in (group.name, entry.rule, entry.name, entry.message, *entry.details, entry.file):
                assert text == printable(text)


JUNIT = {
    # element: (parents, required attributes, other attributes), from junit-10.xsd
    "testsuites": ({None}, set(), {"name", "time", "tests", "failures", "errors"}),
    "testsuite": ({"testsuites"}, {"name", "tests", "failures", "errors"}, {"skipped", "time"}),
    "properties": ({"testsuite"}, set(), set()),
    "property": ({"properties"}, {"name", "value"}, set()),
    "testcase": ({"testsuite"}, {"name"}, {"classname", "time"}),
    "failure": ({"testcase"}, set(), {"type", "message"}),
    "error": ({"testcase"}, set(), {"type", "message"}),
    "system-out": ({"testcase"}, set(), set()),
}


def test_junit_is_what_readers_take(groups: list[Group]) -> None:
    root = ElementTree.fromstring(junit_xml(groups))

    def walk(element: ElementTree.Element, parent: str | None) -> None:
        parents, required, others = JUNIT[element.tag]
        assert parent in parents
        assert required <= set(element.attrib) <= required | others
        for child in element:
            walk(child, element.tag)

    walk(root, None)
    suites = list(root)
    assert [suite.get("name") for suite in suites] == [group.name for group in groups]
    for node in (root, *suites):
        assert int(node.get("tests", "")) == len(list(node.iter("testcase")))
        assert int(node.get("failures", "")) == len(list(node.iter("failure")))
        assert int(node.get("errors", "")) == len(list(node.iter("error")))
    broken = [case.get("name") for case in root.iter("testcase") if len(case) and case[0].tag in ("failure", "error")]
    assert broken == errors(groups)


def test_golden_junit(verdict: EvalRecord) -> None:
    text = junit_xml(verdict_groups([replace(verdict, versions={}, results=verdict.results[1:3])]))
    assert (
        text
        == f"""\
<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="mgit" tests="2" failures="1" errors="0" time="3.142">
  <testsuite name="compat" tests="2" failures="1" errors="0" skipped="0" time="3.142">
    <properties>
      <property name="verdict" value="fail"/>
      <property name="candidate" value="{verdict.candidate}"/>
      <property name="weights" value="b3:77"/>
      <property name="baseline parent" value="{verdict.baselines[0].commit}"/>
      <property name="baseline tag:v1" value="{verdict.baselines[1].commit}"/>
      <property name="suite" value="b3:5e"/>
      <property name="stage" value="commit"/>
      <property name="sampling" value="adaptive"/>
      <property name="alpha" value="0.05"/>
      <property name="examples" value="412"/>
      <property name="seed" value="7"/>
    </properties>
    <testcase classname="compat" name="intents-flips: negative flips vs parent">
      <system-out>0.4 %, limit 1.0 %: 2 of 412</system-out>
    </testcase>
    <testcase classname="compat" name="intents-flips: negative flips vs tag:v1">
      <failure type="fail" message="2.2 %, limit 2.0 %: 9 of 412">2.2 %, limit 2.0 %: 9 of 412
q7: place → person (right: place)
q9: time → date (right: time)</failure>
    </testcase>
  </testsuite>
</testsuites>
"""
    )


def test_golden_annotations(verdict: EvalRecord) -> None:
    assert annotation_lines(verdict_groups([verdict], files=FILES)) == [
        "::error file=evals/compat.toml,title=mgit compat%3A intents-flips%3A negative flips vs tag%3Av1::"
        "2.2 %25, limit 2.0 %25: 9 of 412%0Aq7: place → person (right: place)%0Aq9: time → date (right: time)",
        "::error file=evals/compat.toml,title=mgit compat%3A intents-flips%3A negative flips vs tag%3Av1%2C lang=de::"
        "8.0 %25, limit 5.0 %25",
        "::warning file=evals/compat.toml,title=mgit compat%3A kl::0.07 nats, limit 0.05 nats",
    ]
    passed = replace(verdict, decision="pass", results=verdict.results[:2])
    assert annotation_lines(verdict_groups([passed])) == ["::notice title=mgit::2 checks passed"]


# As the runner reads a line: the command up to the first blank, properties up to the next "::", the rest is data.
COMMAND = re.compile(r"::(error|warning|notice) ((?:file|title)=[^:,]*(?:,title=[^:,]*)?)::(.*)")


def test_a_limit_that_is_only_told_reads_info_in_every_report(verdict: EvalRecord) -> None:
    told = replace(verdict.results[2], decision="info")
    parts = tuple(replace(verdict.results[3], decision="info", slice=f"lang={name}") for name in ("de", "fr"))
    record = replace(verdict, decision="pass", results=(verdict.results[0], told, *parts))
    groups = verdict_groups([record], files=FILES)
    assert [entry.level for entry in groups[0].entries] == ["ok", "note", "note", "note"]
    assert "<system-out>info: 2.2 %, limit 2.0 %: 9 of 412" in junit_xml(groups)
    assert [line.partition(" ")[0] for line in annotation_lines(groups)] == ["::notice"] * 3
    assert [result["level"] for result in json.loads(sarif_json(groups, version="1"))["runs"][0]["results"]] == (
        ["note"] * 3
    )
    assert "| info | 9 of 412 |" in verdict_markdown([record])
    page = verdict_html([record])
    assert '<b class="note">info</b>' in page and '<rect class="note"' in page
    assert check_cells(record, told).word == "info"


def test_annotations_are_one_command_a_line(groups: list[Group]) -> None:
    lines = annotation_lines(groups)
    for line in lines:
        assert COMMAND.fullmatch(line)
        assert line.isprintable()
    assert sum(line.startswith("::error") for line in lines) == min(10, len(errors(groups)))


def test_annotations_beyond_what_is_shown_are_counted(verdict: EvalRecord) -> None:
    results = tuple(CheckResult(name=f"t{number}", decision="fail") for number in range(25))
    lines = annotation_lines(verdict_groups([replace(verdict, results=results)]))
    assert len(lines) == 10
    assert lines[-1] == "::error title=mgit::and 16 more; the summary lists them"


def test_sarif_has_what_the_schema_requires(groups: list[Group]) -> None:
    text = sarif_json(groups, version="1.2")
    document = json.loads(text)
    assert document["version"] == "2.1.0"
    assert document["$schema"].endswith("sarif-schema-2.1.0.json")
    (run,) = document["runs"]
    driver = run["tool"]["driver"]
    assert (driver["name"], driver["version"]) == ("mgit", "1.2")
    ids = [rule["id"] for rule in driver["rules"]]
    assert len(set(ids)) == len(ids)
    for result in run["results"]:
        assert result["level"] in ("error", "warning", "note")
        assert result["message"]["text"]
        assert ids[result["ruleIndex"]] == result["ruleId"]
        (location,) = result["locations"]
        uri = location["physicalLocation"]["artifactLocation"]["uri"]
        assert set(uri) <= set(string.ascii_letters + string.digits + "-._~/%")
        assert all(isinstance(value, str) for value in result["partialFingerprints"].values())
        # Links and placeholders are written out (3.11.5, 3.11.6).
        assert not re.search(r"(?<!\\)(?:\\\\)*\[", result["message"]["text"])
    assert sum(result["level"] == "error" for result in run["results"]) == len(errors(groups))
    assert text == sarif_json(groups, version="1.2")


class Page(HTMLParser):
    """Collects what a browser would see, and refuses elements that are closed in the wrong order."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.open: list[str] = []
        self.shown: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.shown.append(data)


def test_pages_are_self_contained_and_hold_no_foreign_markup(
    verdict: EvalRecord, hostile: EvalRecord, check: CheckReport
) -> None:
    for source in (verdict_html([verdict, hostile]), check_html(check)):
        page = Page()
        page.feed(source)
        page.close()
        assert page.open == []
        assert not page.tags & {"script", "img", "link", "iframe", "a", "object", "form", "style/"}
        assert not {name for name in page.attributes if name.startswith("on")} | page.attributes & {"src", "href"}
        assert "default-src 'none'" in source
        assert 'name="color-scheme" content="light dark"' in source
        assert "<script>alert(1)</script>" in "".join(page.shown)
        assert "q7" in "".join(page.shown)
        assert all(c.isprintable() or c == "\n" for c in source)


def test_slices_are_bars_on_one_scale(verdict: EvalRecord) -> None:
    source = verdict_html([verdict])
    bars = re.findall(r'<rect class="(\w+)" x="\d+" y="\d+" width="([\d.]+)"', source)
    assert bars == [("bad", "320"), ("good", "80")]


def test_golden_markdown(verdict: EvalRecord) -> None:
    assert verdict_markdown([verdict]).splitlines() == [
        "### ✗ compat: FAIL",
        "",
        r"baselines parent 0b77f1ac9e21, tag\:v1 91cd04e6b7aa, 412 examples, candidate tree 5ca1ab1e0000",
        "",
        "| check | baseline | candidate | limit | verdict | |",
        "|---|---:|---:|---|---|---|",
        "| accuracy | 91.2 % | 91.0 % -0.2 pt | -0.5 pt | pass |  |",
        r"| intents-flips\: negative flips vs parent |  | 0.4 % | max 1.0 % | pass | 2 of 412 |",
        r"| intents-flips\: negative flips vs tag\:v1 |  | 2.2 % | max 2.0 % | FAIL | 9 of 412 |",
        r"| intents-flips\: negative flips vs tag\:v1, lang=de |  | 8.0 % | max 5.0 % | FAIL |  |",
        r"| intents-flips\: negative flips vs tag\:v1, lang=en |  | 2.0 % |  | pass |  |",
        "| kl |  | 0.07 nats | max 0.05 nats | warn |  |",
        "",
        "<details><summary>Right before and wrong now (2 known)</summary>",
        "",
        "| test | against | example | right | before | now |",
        "|---|---|---|---|---|---|",
        r"| intents-flips | tag\:v1 | q7 | place | place | person |",
        r"| intents-flips | tag\:v1 | q9 | time | time | date |",
        "",
        "</details>",
        "",
    ]


def test_markdown_shows_markup_as_text(hostile: EvalRecord, check: CheckReport) -> None:
    for text in (verdict_markdown([hostile]), check_markdown(check)):
        own = re.sub(r"</?details>|</?summary>", "", text)
        assert "<" not in own
        # Colons, so that no address becomes a link.
        assert not re.search(r"(?<!\\)(?:`|:/|::)", text)
        # A row has as many cells as its table, whatever is in them.
        for row in re.findall(r"^\|.*$", text, re.MULTILINE):
            assert len(re.findall(r"(?<!\\)\|", row)) in (4, 7)


def test_golden_markdown_of_a_check(check: CheckReport) -> None:
    small = replace(check, base="main", sections=check.sections[:2])
    assert check_markdown(small).splitlines() == [
        "## ✗ mgit check: HEAD (91cd04e6b7aa) against main",
        "",
        "| | part | |",
        "|---|---|---|",
        "| ✓ | objects | 611 of 611 verified |",
        "| ✗ | values | 2 NaN |",
        "",
        "### values",
        "",
        "- **error** w holds 2 NaN (models/bot/model.safetensors, w, 0b77f1ac9e21)",
        "  - row 1",
        "  - row 2",
        r"  - hint: \`mgit diff main\~1 main\`",
        "",
    ]


def test_markdown_fits_a_step_summary(verdict: EvalRecord) -> None:
    """Flips go first, then rows that pass; what is broken stays, and what is missing is said."""
    many = tuple(replace(verdict.flips[0], example="x" * 200 + str(number)) for number in range(500))
    passing = tuple(CheckResult(name=f"pass {number}", decision="pass", detail="d" * 250) for number in range(300))
    record = replace(verdict, flips=many, results=(*passing, *verdict.results))
    assert len(verdict_markdown([record]).encode()) > 200_000
    for limit in (150_000, 50_000, 2_000, 200):
        text = verdict_markdown([record], max_bytes=limit)
        assert len(text.encode()) <= limit
        assert ("lang=de" in text) == (limit >= 2_000)
        assert ("pass 299" in text) == (limit >= 150_000)
        assert "x" * 200 not in text
    assert "301 more checks pass." not in text
    assert "more lines did not fit." in text


def test_a_section_without_findings_says_why(check: CheckReport) -> None:
    section = CheckSection(name="signature", outcome="error", summary="no key", seconds=0.0)
    (group,) = check_groups(replace(check, sections=(section,)))
    (entry,) = group.entries
    assert (entry.level, entry.kind) == ("error", "error")
    assert entry.message == "no key (could not be evaluated, which is not a pass)"
