"""Reports of `mgit eval`: the files that a command line names, those that a suite names, and what GitHub reads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from msgspec.structs import replace

from modelgit.cli._commits import verdict_lines
from modelgit.objects import CheckResult, ComparedWith, EvalRecord, Flip, ManifestId

TASK = """
[task.probe]
model = "bot.safetensors"
adapter = "bert-classifier"
test = "probe.jsonl"
labels = ["no", "yes"]
"""
SUITE = """
task = "probe"

[data.probe]
path = "probe.jsonl"

[[test]]
name = "flips"
kind = "nfr"
data = "probe"
max = 0.01
"""


@pytest.fixture
def bot(mgit: Any, files: Any) -> Any:
    """A repository with a suite that cannot run, for there are no data."""
    (mgit.directory / "bot.safetensors").write_bytes(files.of_arrays(files.floats()))
    mgit("init")
    mgit("track", "bot.safetensors")
    config = mgit.directory / "mgit.toml"
    config.write_text(config.read_text() + TASK)
    (mgit.directory / "evals").mkdir()
    mgit.suite = mgit.directory / "evals" / "strict.toml"
    mgit.suite.write_text(SUITE)
    mgit("commit", "-m", "base", "--gate", "warn")
    return mgit


def test_reports_of_a_command_line(bot: Any, tmp_path: Path) -> None:
    summary = tmp_path / "summary.md"
    bot.values["GITHUB_STEP_SUMMARY"] = str(summary)
    options = ["--junit", "new/e.xml", "--markdown", str(tmp_path / "e.md"), "--html", "e.html", "--github"]
    ran = bot("eval", "--suite", "strict", *options, code=9)
    suite = ElementTree.parse(bot.directory / "new" / "e.xml").getroot().find("testsuite")
    assert suite is not None and (suite.get("name"), suite.get("errors")) == ("strict", "1")
    assert (tmp_path / "e.md").read_text().startswith("### ✗ strict: ERROR")
    assert summary.read_text() == (tmp_path / "e.md").read_text()
    assert (bot.directory / "e.html").read_text().startswith("<!doctype html>")
    lines = ran.out.splitlines()
    token = lines[0].removeprefix("::stop-commands::")
    assert len(token) == 32 and f"::{token}::" in lines
    assert lines[-1].startswith("::error file=evals/strict.toml,title=mgit strict%3A ")
    assert "wrote new/e.xml" in ran.err
    # Quietly all the same, and JSON stays one document when nobody asks for annotations.
    assert bot("eval", "--suite", "strict", "--json", "--junit", "new/e.xml", code=9).out.startswith("{")


def test_a_link_stays_and_what_it_leads_to_is_replaced(bot: Any, tmp_path: Path) -> None:
    target = tmp_path / "real.xml"
    target.write_text("old")
    (bot.directory / "link.xml").symlink_to(target)
    bot("eval", "--suite", "strict", "--junit", "link.xml", code=9)
    assert (bot.directory / "link.xml").is_symlink()
    assert target.read_text().startswith("<?xml")
    assert bot("eval", "--suite", "strict", "--markdown", os.devnull, code=9)
    assert not Path(os.devnull).is_file()


def test_a_suite_writes_reports_into_the_work_tree_and_nowhere_else(bot: Any, tmp_path: Path) -> None:
    (bot.directory / "notes.md").write_text("mine\n")
    bot("track", "notes.md")
    bot("commit", "-m", "notes", "--gate", "warn")
    (bot.directory / "out").symlink_to(tmp_path)

    def report(**paths: str) -> str:
        table = "".join(f'{name} = "{path}"\n' for name, path in paths.items())
        bot.suite.write_text(SUITE + "[report]\n" + table)
        return str(bot("eval", "--suite", "strict", code=9).err)

    assert "warning" not in report(junit="build/e.xml", markdown="build/e.md", html="build/e.html")
    assert ElementTree.parse(bot.directory / "build" / "e.xml").getroot().tag == "testsuites"
    assert (bot.directory / "build" / "e.md").read_text().startswith("### ✗ strict: ERROR")
    assert (bot.directory / "build" / "e.html").is_file()
    before = sorted(tmp_path.iterdir())
    for path in ("../e.md", str(tmp_path / "e.md"), "out/e.md", ".mgit/e.md", ".git/e.md", "mgit.toml", "notes.md"):
        said = report(markdown=path)
        assert "warning: suite strict: the report " in said
    assert sorted(tmp_path.iterdir()) == before
    assert (bot.directory / "notes.md").read_text() == "mine\n"


def test_a_terminal_counts_slices_that_pass_and_lists_what_broke() -> None:
    line = CheckResult(name="negative flips", test="intents", decision="pass", value=0.004, against="parent")
    tree = ManifestId.of(b"new")
    record = EvalRecord(
        candidate=tree,
        baseline=tree,
        suite="compat",
        suite_id="",
        results=(
            replace(line, limit="max 1.0 %", detail="2 of 412"),
            replace(line, against="tag:v1", decision="fail", value=0.0218),
            *(replace(line, against="tag:v1", slice=f"lang={name}") for name in ("en", "fr")),
            replace(line, against="tag:v1", slice="lang=de", decision="fail", value=0.08),
        ),
        decision="fail",
        seconds=2.0,
        baselines=tuple(ComparedWith(name=name, manifest=tree, weights="") for name in ("parent", "tag:v1")),
        flips=(Flip(test="intents", example="q\x1b7", gold="place", before="place", after="person"),) * 3,
        accepted=("q1: agreed",),
    )
    shown = ["".join(map(str, parts)).rstrip() for parts in verdict_lines([record], flips=1, shown_by="mgit eval")]
    assert shown == [
        f"eval compat, baselines parent {tree.short}, tag:v1 {tree.short} (5 metrics, 2.0 s)",
        "  intents: negative flips vs parent           0.4 %  pass  (limit 1.0 %: 2 of 412)",
        "  intents: negative flips vs tag:v1           2.2 %  FAIL",
        "  intents: negative flips vs tag:v1, lang=de  8.0 %  FAIL",
        "  2 slices within the limit",
        "  examples that broke were accepted: q1: agreed of `mgit eval accept --list`",
        r"  ↯ q\x1b7: place → person",
        "  and more: `mgit eval --show flips` lists them",
    ]
