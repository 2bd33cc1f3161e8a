"""`mgit prune`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from modelgit.cli._format import plural, size
from modelgit.cli._options import command, json_option, pass_session
from modelgit.cli._output import Part, bold, columns, dim, plain_data, red, yellow
from modelgit.cli._session import Session

if TYPE_CHECKING:
    from modelgit.repo.upkeep.prune import PrunedFamily, PruneReport, RetentionDecision

__all__ = ["prune"]


@command("prune", example="mgit prune --dry-run")
@click.option("-n", "--dry-run", is_flag=True, help="Show which commits would lose their weights, and what that frees.")
@json_option
@pass_session
def prune(session: Session, dry_run: bool, as_json: bool) -> None:
    """Take the weights of commits that `[retention]` does not keep, and free their bytes.

    The commits stay: message, verdicts, patch and the table of tensors. Kept are all tagged commits, tips of branches,
    the history of other branches, and commits where branches part. This cannot be undone.
    """
    from modelgit.repo.upkeep.prune import prune as prune_repository

    report = prune_repository(session.repository, dry_run=dry_run, progress=session.progress)
    output = session.output
    if as_json:
        output.json("mgit.prune/1", plain_data(report))
        return
    if dry_run:
        for family in report.families:
            output.line(bold(family.family), dim(f"  {_counts(family)}"))
            output.lines(columns([_row(item) for item in family.commits], indent=2))
    output.say(_line(report))


def _counts(family: PrunedFamily) -> str:
    going = sum(item.kept is None and not item.pruned_before for item in family.commits)
    gone = sum(item.pruned_before for item in family.commits)
    before = f", {gone} pruned before" if gone else ""
    return f"{plural(len(family.commits), 'commit')}, {going} to prune{before}"


def _row(item: RetentionDecision) -> list[Part]:
    fate: Part = dim("pruned before") if item.pruned_before else red("prune") if item.kept is None else item.kept
    return [yellow(item.commit.short), item.branch, fate, dim(item.subject)]


def _line(report: PruneReport) -> str:
    saved = report.bytes_before - report.bytes_after
    verb = "Would prune" if report.dry_run else "Pruned"
    words = []
    if report.pruned or not report.expired:
        words.append(f"the weights of {plural(report.pruned, 'commit')}")
    if report.expired:
        words.append(f"the training state of {plural(report.expired, 'commit')}")
    if not report.pruned and not report.expired and not saved:
        return "Nothing to prune: retention keeps everything that is here"
    again = f"; {plural(report.reanchored, 'object')} coded again" if report.reanchored else ""
    frees = "would free" if report.dry_run else "freed"
    return (
        f"{verb} {' and '.join(words)}: {frees} {size(saved)}, "
        f"packs {size(report.bytes_before)} → {size(report.bytes_after)}"
        f"{again}"
    )
