"""`mgit repack`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from modelgit.cli._format import plural, size
from modelgit.cli._options import command, json_option, pass_session, prune_option
from modelgit.cli._output import plain_data
from modelgit.cli._session import Session

if TYPE_CHECKING:
    from modelgit.repo.upkeep.repack import RepackReport

__all__ = ["repack"]


@command("repack", example="mgit repack --effort tight --dry-run")
@click.option(
    "--effort",
    type=click.Choice(["fast", "balanced", "tight"]),
    help="How much time coding may take for how little space (else `storage.effort`).",
)
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be gained, exactly; change nothing.")
@prune_option
@json_option
@pass_session
def repack(session: Session, effort: str | None, dry_run: bool, prune: str | None, as_json: bool) -> None:
    """Store everything smaller: code stored tensors again, against the best bases that their history has.

    No id changes, and nothing is lost when it is interrupted. Tensors that are slow to read because many patches lie on
    each other are stored anew. A second run straight after does nothing. Garbage goes as well, as with `mgit gc`.
    """
    from modelgit.repo.upkeep.repack import repack as repack_repository

    report = repack_repository(
        session.repository,
        effort=effort,  # type: ignore[arg-type]
        prune_now=prune == "now",
        dry_run=dry_run,
        progress=session.progress,
    )
    output = session.output
    if as_json:
        output.json("mgit.repack/1", plain_data(report))
        return
    output.say(_line(report))
    output.say(f"  {plural(report.objects, 'object')} looked at, {_details(report)}")


def _line(report: RepackReport) -> str:
    saved = report.bytes_before - report.bytes_after
    if not saved and not report.recoded:
        return f"Nothing to gain: {size(report.bytes_before)} of packs stay as they are"
    verb = "Would save" if report.dry_run else "Saved"
    if saved < 0:
        verb, saved = ("Would need" if report.dry_run else "Needed"), -saved
    return f"{verb} {size(saved)}: packs {size(report.bytes_before)} → {size(report.bytes_after)}"


def _details(report: RepackReport) -> str:
    words = [f"{report.recoded:,} coded again"]
    if report.flattened:
        words.append(f"{report.flattened:,} of them to be read faster")
    if report.reanchored:
        words.append(f"{report.reanchored:,} of them to let others go")
    if report.operations_dropped:
        words.append(f"{plural(report.operations_dropped, 'operation')} forgotten")
    return ", ".join(words)
