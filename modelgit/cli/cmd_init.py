"""`mgit init`."""

from __future__ import annotations

import os

import click

from modelgit.cli._options import command, pass_session
from modelgit.cli._session import Session

__all__ = ["init"]


@command("init", example="mgit init my-models")
@click.argument("directory", default=".", type=click.Path(file_okay=False))
@click.option("-b", "--branch", default="main", show_default=True, metavar="NAME", help="Name of the first branch.")
@pass_session
def init(session: Session, directory: str, branch: str) -> None:
    """Make an empty repository in DIRECTORY (here, if none is named).

    Nothing is recorded yet: `mgit track` says what is, `mgit commit` records it.
    """
    from modelgit.repo.repository import Repository

    with Repository.init(directory, branch=branch, environment=session.environment) as repo:
        place = os.path.relpath(repo.paths.directory, session.environment.cwd)
    session.output.say(f"Initialised an empty mgit repository in {place} (branch {branch})")
