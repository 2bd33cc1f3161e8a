"""`mgit switch`."""

from __future__ import annotations

import click

from modelgit.cli._complete import complete_branch, complete_revision
from modelgit.cli._options import command, pass_session
from modelgit.cli._output import blue, yellow
from modelgit.cli._session import Session
from modelgit.errors import UsageError

__all__ = ["switch"]


@command("switch", example="mgit switch -c refunds main")
@click.argument("target", shell_complete=complete_branch, metavar="BRANCH")
@click.argument("start", required=False, shell_complete=complete_revision, metavar="[START]")
@click.option("-c", "--create", is_flag=True, help="Make BRANCH, at START or at the current commit.")
@click.option("--detach", is_flag=True, help="Look at any revision, without a branch.")
@click.option("--discard", is_flag=True, help="Overwrite changes; a copy stays in .mgit/rescue for 7 days.")
@pass_session
def switch(session: Session, target: str, start: str | None, create: bool, detach: bool, discard: bool) -> None:
    """Change to BRANCH and bring its files, bit for bit.

    Only files that differ are written.  A work tree with changes that would be lost is left alone.
    """
    if start is not None and not create:
        raise UsageError("a start belongs to a new branch", hint=f"`mgit switch -c {target} {start}`")
    if create and detach:
        raise UsageError("-c and --detach exclude each other", hint=f"`mgit switch -c {target}`")
    view = session.repository.switch(
        target, create=create, start=start, detach=detach, discard=discard, progress=session.progress
    )
    output = session.output
    if view.branch is None:
        output.say("At commit ", yellow(view.head.short if view.head else target), ", not on a branch")
        output.say("hint: `mgit switch -c NAME` keeps commits that you make here")
    else:
        output.say("Switched to a new branch " if create else "On branch ", blue(view.branch))
