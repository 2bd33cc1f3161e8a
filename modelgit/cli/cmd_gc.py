"""`mgit gc`."""

from __future__ import annotations

import click

from modelgit.cli._format import plural, size
from modelgit.cli._options import command, json_option, pass_session, prune_option
from modelgit.cli._output import plain_data
from modelgit.cli._session import Session

__all__ = ["gc"]


@command("gc", example="mgit gc --dry-run")
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be freed; change nothing.")
@prune_option
@json_option
@pass_session
def gc(session: Session, dry_run: bool, prune: str | None, as_json: bool) -> None:
    """Free space: drop what no branch, tag or undoable operation reaches.

    Commands that run meanwhile lose nothing.  Operations stay undoable for 30 days, and the last 200 in any case.
    """
    from modelgit.repo.upkeep.gc import collect

    report = collect(session.repository, prune_now=prune == "now", dry_run=dry_run, progress=session.progress)
    output = session.output
    if as_json:
        output.json("mgit.gc/1", plain_data(report))
        return
    verb = "Would free" if dry_run else "Freed"
    output.say(f"{verb} {size(report.bytes_freed)}: {_packs(report.packs_deleted, report.packs_rewritten)}")
    kept = f"{plural(report.objects_kept, 'object')} in {plural(report.packs_before, 'pack')} looked at"
    dropped = f", {plural(report.operations_dropped, 'operation')} forgotten" if report.operations_dropped else ""
    output.say(f"  {kept}{dropped}")


def _packs(deleted: int, rewritten: int) -> str:
    words = []
    if deleted:
        words.append(f"{plural(deleted, 'pack')} deleted")
    if rewritten:
        words.append(f"{plural(rewritten, 'pack')} written again")
    return ", ".join(words) or "nothing to collect"
