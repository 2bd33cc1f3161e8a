"""`mgit revert`."""

from __future__ import annotations

from functools import partial

import click

from modelgit.cli._complete import complete_revision
from modelgit.cli._options import command, pass_session
from modelgit.cli._picks import pick_options, run_picks
from modelgit.cli._session import Session

__all__ = ["revert"]


@command("revert", example="mgit revert HEAD")
@click.argument("revisions", nargs=-1, shell_complete=complete_revision, metavar="[REV]...")
@click.option("--mainline", type=click.IntRange(min=1), metavar="N", help="For a merge: compare with its N-th parent.")
@pick_options
@pass_session
def revert(
    session: Session,
    revisions: tuple[str, ...],
    mainline: int | None,
    go_on: bool,
    skip: bool,
    abort: bool,
    strategies: tuple[str, ...],
    gate: str,
) -> None:
    """Take the change of each REV (or of each commit of A..B) back, as new commits.

    Reverting the last commit gives back the very bytes before it; where later commits changed the same values, the
    change is subtracted.

    Conflicts stop it with the work tree untouched: `mgit resolve`, then `mgit revert --continue`.
    """
    from modelgit.repo.merges.picks import revert as start

    run_picks(
        session,
        "revert",
        partial(start, session.repository, revisions, mainline=mainline) if revisions else None,
        go_on=go_on,
        skip=skip,
        abort=abort,
        strategies=strategies,
        gate=gate,
    )
