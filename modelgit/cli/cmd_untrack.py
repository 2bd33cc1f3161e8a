"""`mgit untrack`."""

from __future__ import annotations

import click

from modelgit.cli._options import command, pass_session
from modelgit.cli._output import bold
from modelgit.cli._session import Session

__all__ = ["untrack"]


@command("untrack", example="mgit untrack models/old")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@pass_session
def untrack(session: Session, paths: tuple[str, ...]) -> None:
    """Stop recording each PATH.  The files stay where they are; earlier commits keep them."""
    from modelgit.repo.tracking.track import untrack as stop_tracking

    for path in paths:
        stopped = stop_tracking(session.repository, path)
        session.output.say("No longer tracking ", bold(stopped))
