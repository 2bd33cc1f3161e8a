"""`mgit snapshot`."""

from __future__ import annotations

import click

from modelgit.cli._complete import complete_revision
from modelgit.cli._options import command, json_option, pass_session
from modelgit.cli._session import Session

__all__ = ["snapshot"]


@command("snapshot", example="mgit snapshot v1.2 --model models/bot")
@click.argument("revision", required=False, default="HEAD", shell_complete=complete_revision, metavar="[REV]")
@click.option("--model", metavar="PATH", help="The model, if the commit has several.")
@json_option
@pass_session
def snapshot(session: Session, revision: str, model: str | None, as_json: bool) -> None:
    """Print the path of a read-only directory that holds a model as it was, for programs that load one.

    It lies in the repository's cache, is made once for a commit's files and shares what it can with other snapshots and
    with your files.  `mgit gc` removes those that nobody asked for in 30 days.
    """
    path = session.repository.snapshot(revision, model=model, progress=session.progress)
    if as_json:
        session.output.json("mgit.snapshot/1", {"path": str(path)})
    else:
        session.output.line(str(path))
