"""Reports that commands write to files and to GitHub: `--junit`, `--markdown`, `--html`, `--sarif`, `--github`."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

from modelgit.cli._session import Session
from modelgit.errors import MgitError, RepositoryError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from modelgit.config.suites import ReportSettings
    from modelgit.objects import CheckReport, EvalRecord
    from modelgit.reporting.entries import Group

__all__ = [
    "Reports",
    "no_commands",
    "report_options",
    "write_check",
    "write_report",
    "write_verdicts",
]

F = TypeVar("F", bound=Callable[..., Any])
_SUFFIXES = {"junit": (".xml",), "markdown": (".md",), "html": (".html", ".htm")}


@dataclass(frozen=True, kw_only=True)
class Reports:
    """What a command line asked for: files as they were typed, and whether GitHub reads along."""

    junit: str | None = None
    markdown: str | None = None
    html: str | None = None
    sarif: str | None = None
    github: bool = False


def report_options(*, sarif: bool = False, github: bool = False) -> Callable[[F], F]:
    """Add the options to a command, which gets them as one argument `reports`."""

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def collect(*arguments: Any, **values: Any) -> Any:
            names = ("junit", "markdown", "html", "sarif", "github")
            asked = {name: values.pop(name) for name in names if name in values}
            return function(*arguments, reports=Reports(**asked), **values)

        options = [
            click.option("--junit", metavar="FILE", help="Write JUnit XML, too."),
            click.option("--markdown", metavar="FILE", help="Write Markdown, too."),
            click.option("--html", metavar="FILE", help="Write one self-contained page, too."),
        ]
        if sarif:
            options.append(click.option("--sarif", metavar="FILE", help="Write SARIF, too."))
        if github:
            text = "In a GitHub action: annotations, and the summary of the step."
            options.append(click.option("--github", is_flag=True, help=text))
        decorated: Any = collect
        for option in reversed(options):
            decorated = option(decorated)
        return decorated  # type: ignore[no-any-return]

    return decorate


@contextlib.contextmanager
def no_commands(session: Session) -> Iterator[None]:
    """Keep GitHub's runner from taking lines that are printed meanwhile for commands.

    It looks for them in every line of a log, and names of tests and models are foreign.
    """
    import secrets

    token = secrets.token_hex(16)
    session.output.raw(f"::stop-commands::{token}\n")
    try:
        yield
    finally:
        session.output.raw(f"::{token}::\n")


def write_verdicts(session: Session, records: Sequence[EvalRecord], reports: Reports) -> None:
    """Write what was asked for about verdicts, and what suites of the work tree ask for, each about its own.

    Raises RepositoryError when a disk refuses.
    """
    files, settings = _of_worktree(session, [record.suite for record in records])
    _write_records(session, records, reports, files)
    for record in records:
        if record.suite in settings:
            own = _suite_reports(session, record.suite, settings[record.suite])
            if own is not None:
                _write_records(session, [record], own, files)


def write_check(session: Session, report: CheckReport, reports: Reports, *, github: bool = False) -> None:
    """Write what was asked for about a check, and tell GitHub.  Raises RepositoryError when a disk refuses."""
    from modelgit.reporting.entries import check_groups
    from modelgit.reporting.markdown import check_markdown
    from modelgit.reporting.verdict_html import check_html

    suites = [section.evaluation.suite for section in report.sections if section.evaluation is not None]
    files, _ = _of_worktree(session, suites)
    _write(
        session,
        replace(reports, github=github),
        check_groups(report, files=files),
        markdown=functools.partial(check_markdown, report),
        html=functools.partial(check_html, report),
    )


def write_report(path: Path, text: str) -> None:
    """Replace `path` by `text`, all of it or nothing; a pipe or a terminal is written to.

    Raises RepositoryError when the disk refuses.
    """
    from modelgit.store.durable import make_directory, write_durably

    data = text.encode()
    # What a link points to is replaced, and not the link.
    path = path.resolve()
    if path.exists() and not path.is_file():
        try:
            path.write_bytes(data)
        except OSError as error:
            raise RepositoryError(f"cannot write {path}: {error.strerror or error}") from error
        return
    make_directory(path.parent)
    write_durably(path, data)


def _of_worktree(session: Session, names: Sequence[str]) -> tuple[dict[str, str], dict[str, ReportSettings]]:
    """Where the work tree writes the suites in `names` that it has, relative to the root, and which reports they want.

    Nothing where the work tree's suites cannot be read: those that ran were others, and there is a verdict to tell.
    """
    from modelgit.config.suite_files import suite_path
    from modelgit.repo.gates.suites import worktree_suites
    from modelgit.repo.layout import PROJECT_CONFIG

    try:
        texts = worktree_suites(session.repository)
        known = dict.fromkeys(texts.settings.eval, PROJECT_CONFIG) | {name: suite_path(name) for name in texts.files}
        files = {name: known[name] for name in names if name in known}
        suites = texts.suites(list(files)) if files else ()
    except MgitError:
        return {}, {}
    return files, {suite.name: suite.report for suite in suites}


def _write_records(session: Session, records: Sequence[EvalRecord], reports: Reports, files: Mapping[str, str]) -> None:
    if reports == Reports():
        return  # nobody pays for loading what writes reports
    from modelgit.reporting.entries import verdict_groups
    from modelgit.reporting.markdown import verdict_markdown
    from modelgit.reporting.verdict_html import verdict_html

    _write(
        session,
        reports,
        verdict_groups(records, files=files),
        markdown=functools.partial(verdict_markdown, records),
        html=functools.partial(verdict_html, records),
    )


def _suite_reports(session: Session, suite: str, asked: ReportSettings) -> Reports | None:
    """The files that a suite names, as far as they may be written.

    A suite comes from whoever made the repository: what lies outside of the work tree, is recorded in it, or does not
    look like a report is not written, and a warning says so.
    """
    paths: dict[str, str] = {}
    for name, suffixes in _SUFFIXES.items():
        text = getattr(asked, name)
        if text:
            try:
                paths[name] = str(_inside(session, text, suffixes))
            except UsageError as error:
                session.output.warn(f"suite {suite}: {error.message}")
    if not paths:
        return None
    return Reports(junit=paths.get("junit"), markdown=paths.get("markdown"), html=paths.get("html"))


def _write(
    session: Session,
    reports: Reports,
    groups: Sequence[Group],
    *,
    markdown: Callable[..., str],
    html: Callable[[], str],
) -> None:
    from modelgit import __version__
    from modelgit.reporting.junit import junit_xml
    from modelgit.reporting.sarif import sarif_json

    texts: list[tuple[str | None, Callable[[], str]]] = [
        (reports.junit, lambda: junit_xml(groups)),
        (reports.markdown, markdown),
        (reports.html, html),
        (reports.sarif, lambda: sarif_json(groups, version=__version__)),
    ]
    for name, text in texts:
        if name is not None:
            write_report(session.path(name), text())
            session.output.say(f"wrote {name}")
    if reports.github:
        _tell_github(session, groups, markdown)


def _tell_github(session: Session, groups: Sequence[Group], markdown: Callable[..., str]) -> None:
    from modelgit.reporting.github import annotation_lines
    from modelgit.reporting.markdown import STEP_SUMMARY_BYTES

    session.output.raw("".join(f"{line}\n" for line in annotation_lines(groups)))
    summary = session.environment.step_summary
    if summary is None:
        return
    try:
        written = summary.stat().st_size if summary.exists() else 0
        text = markdown(max_bytes=max(0, STEP_SUMMARY_BYTES - written))
        with summary.open("ab") as file:
            file.write(text.encode())
    except OSError as error:
        raise RepositoryError(f"cannot write the step's summary {summary}: {error.strerror or error}") from error


def _inside(session: Session, text: str, suffixes: tuple[str, ...]) -> Path:
    """The file that a suite means by `text`.  Raises UsageError when it may not be written."""
    from modelgit.repo.layout import METADATA

    repo = session.repository
    if repo.worktree is None:
        raise UsageError(f"no work tree to write {text} to")
    root = repo.worktree.resolve()
    path = (root / text).resolve()
    if not path.is_relative_to(root) or path.suffix not in suffixes:
        raise UsageError(f"the report {text} is not a {suffixes[0]} file inside of the repository; it is not written")
    relative = path.relative_to(root)
    if {METADATA, ".git"} & set(relative.parts) or path.is_dir():
        raise UsageError(f"the report {text} may not be written there")
    manifest = repo.manifest_of(repo.head())
    if manifest.file(relative.as_posix()) is not None:
        raise UsageError(f"the report {text} would replace a recorded file; it is not written")
    return path
