"""`mgit cherry-pick`."""

from __future__ import annotations

from functools import partial

import click

from modelgit.cli._complete import complete_revision
from modelgit.cli._options import command, pass_session
from modelgit.cli._picks import pick_options, run_picks
from modelgit.cli._session import Session

__all__ = ["cherry_pick"]


@command("cherry-pick", example="mgit cherry-pick tone~2")
@click.argument("revisions", nargs=-1, shell_complete=complete_revision, metavar="[REV]...")
@click.option("--mainline", type=click.IntRange(min=1), metavar="N", help="For a merge: compare with its N-th parent.")
@pick_options
@pass_session
def cherry_pick(
    session: Session,
    revisions: tuple[str, ...],
    mainline: int | None,
    go_on: bool,
    skip: bool,
    abort: bool,
    strategies: tuple[str, ...],
    gate: str,
) -> None:
    """Apply the change of each REV (or of each commit of A..B) to the current branch, as new commits.

    What only that commit changed is taken bit for bit; where this branch changed the same values, the two changes are
    added up.  Authors are kept.

    Conflicts stop it with the work tree untouched: `mgit resolve`, then `mgit cherry-pick --continue`.
    """
    from modelgit.repo.merges.picks import cherry_pick as start

    run_picks(
        session,
        "cherry-pick",
        partial(start, session.repository, revisions, mainline=mainline) if revisions else None,
        go_on=go_on,
        skip=skip,
        abort=abort,
        strategies=strategies,
        gate=gate,
    )
