"""`mgit rebase`."""

from __future__ import annotations

from functools import partial

import click

from modelgit.cli._complete import complete_revision
from modelgit.cli._options import command, pass_session
from modelgit.cli._picks import pick_options, run_picks
from modelgit.cli._session import Session

__all__ = ["rebase"]


@command("rebase", example="mgit rebase main")
@click.argument("upstream", required=False, shell_complete=complete_revision, metavar="[UPSTREAM]")
@pick_options
@pass_session
def rebase(
    session: Session,
    upstream: str | None,
    go_on: bool,
    skip: bool,
    abort: bool,
    strategies: tuple[str, ...],
    gate: str,
) -> None:
    """Make the commits that UPSTREAM lacks again on top of it, and move the current branch there.

    Each change is added to what UPSTREAM has; what does not overlap stays exact.  The branch moves once, at the end,
    and `mgit undo` takes that back.  Conflicts stop it with the work tree untouched.
    """
    from modelgit.repo.merges.picks import rebase as start

    run_picks(
        session,
        "rebase",
        partial(start, session.repository, upstream) if upstream is not None else None,
        go_on=go_on,
        skip=skip,
        abort=abort,
        strategies=strategies,
        gate=gate,
    )
