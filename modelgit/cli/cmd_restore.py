"""`mgit restore`."""

from __future__ import annotations

import click

from modelgit.cli._complete import complete_revision
from modelgit.cli._format import plural
from modelgit.cli._options import command, pass_session
from modelgit.cli._session import Session

__all__ = ["restore"]

_LISTED = 10


@command("restore", example="mgit restore --source main~2 models/bot")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--source", shell_complete=complete_revision, metavar="REV", help="The commit to take them from (HEAD).")
@pass_session
def restore(session: Session, paths: tuple[str, ...], source: str | None) -> None:
    """Bring files back as they are in a commit.  PATH is a file, a directory or a pattern.

    What is overwritten and recorded nowhere is kept in .mgit/rescue for 7 days.
    """
    from modelgit.repo.tracking.switch import restore as bring_back

    patterns = [session.tree_path(path) for path in paths]
    written = bring_back(session.repository, patterns, source=source, progress=session.progress)
    if not written:
        session.output.say("nothing differed")
        return
    session.output.say(f"Restored {plural(len(written), 'file')}")
    for path in written[:_LISTED]:
        session.output.say(f"  {path}")
    if len(written) > _LISTED:
        session.output.say(f"  and {len(written) - _LISTED} more")
