"""`mgit eval lint`, `mgit eval selftest` and the noise floor: whether a suite can say what it is meant to say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from modelgit.cli._complete import complete_revision
from modelgit.cli._density import parse_share
from modelgit.cli._errors import Quit
from modelgit.cli._options import command, json_option, pass_session
from modelgit.cli._output import Part, columns, dim, green, plain_data, red, yellow
from modelgit.cli._session import Session
from modelgit.reporting.wording import rate

if TYPE_CHECKING:
    from collections.abc import Iterable

    from modelgit.repo.gates.suite_checks import NoiseFloor, SuiteLint

__all__ = ["lint", "noise_lines", "selftest"]


@command("lint", example="mgit eval lint")
@click.argument("suites", nargs=-1, metavar="[SUITE]...")
@json_option
@pass_session
def lint(session: Session, suites: tuple[str, ...], as_json: bool) -> None:
    """Read the suites and their data without running a model, and say what cannot be meant.

    For each limit on negative flips it says after how many examples it can be decided.  Exit code 1: something is
    wrong.
    """
    from modelgit.repo.gates.suite_checks import lint as lint_suites

    found = lint_suites(session.repository, suites)
    if as_json:
        session.output.json("mgit.eval-lint/1", {"suites": [plain_data(item) for item in found]})
    else:
        for item in found:
            session.output.lines(_lint_lines(item))
        if not found:
            session.output.say("There are no suites.")
    if any(item.findings for item in found):
        raise Quit(1)


def _lint_lines(item: SuiteLint) -> list[list[Part]]:
    lines: list[list[Part]] = [[f"suite {item.suite} ", dim(f"({item.place})")]]
    paints = {"error": red, "warning": yellow}
    lines += [["  ", paints[finding.level](f"{finding.level}: "), finding.message] for finding in item.findings]
    for data in item.data:
        words = f"{data.examples:,} examples, {data.labelled:,} with a label"
        lines.append([f"  data {data.name}: {words}  ", dim(data.fingerprint[:12])])
    rows: list[list[Part]] = [
        [
            power.test,
            f"at most {power.allowed:,} of {power.total:,}",
            f"can pass after {power.passes:,}" if power.passes else "passes only in full",
            f"fails after {power.fails:,} at twice the limit" if power.fails else "",
        ]
        for power in item.power
    ]
    return lines + columns(rows, indent=2)


@command("selftest", example="mgit eval selftest --suite smoke")
@click.argument("revision", default="HEAD", shell_complete=complete_revision, metavar="[REV]")
@click.option("--suite", "suites", multiple=True, metavar="NAME", help="Try this suite; may be repeated (all suites).")
@click.option(
    "--prune",
    default="50%",
    show_default=True,
    metavar="SHARE",
    help="How much of each weight matrix to set to zero, the smallest values first.",
)
@json_option
@pass_session
def selftest(session: Session, revision: str, suites: tuple[str, ...], prune: str, as_json: bool) -> None:
    """Try the suites on REV itself, which must pass, and on a pruned copy of it, which must not.

    A suite that lets the pruned copy pass would not see a broken model either.  Exit code 1: a suite is no test.
    """
    from modelgit.repo.gates.suite_checks import selftest as try_suites

    share = parse_share(prune, hint="`mgit eval selftest --prune 50%`")
    found = try_suites(session.repository, revision, suites=suites, share=share, progress=session.progress)
    if as_json:
        session.output.json("mgit.eval-selftest/1", {"suites": [plain_data(item) for item in found]})
    else:
        rows: list[list[Part]] = [
            [
                item.suite,
                f"the same weights: {item.same.decision}",
                f"pruned by {rate(item.share)}: {item.pruned.decision}",
                green("works") if item.works else red("is no test"),
                dim(item.reason),
            ]
            for item in found
        ]
        session.output.lines(columns(rows))
    if not found or not all(item.works for item in found):
        raise Quit(1)


def noise_lines(floors: Iterable[NoiseFloor]) -> list[list[Part]]:
    """How many answers change when nothing changed: a line for each set of examples."""
    rows: list[list[Part]] = [
        [
            f"{item.suite}, {item.data}",
            item.versus,
            f"{rate(item.negative / item.total)} broke ({item.negative:,} of {item.total:,})",
            f"{rate(item.positive / item.total)} mended",
            f"{rate(item.changed / item.total)} changed",
        ]
        for item in floors
    ]
    return columns(rows)
