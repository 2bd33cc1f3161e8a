"""`mgit clone`."""

from __future__ import annotations

import os

import click

from modelgit.cli._format import plural
from modelgit.cli._options import command, fisher_option, pass_session
from modelgit.cli._output import blue, bold
from modelgit.cli._session import Session

__all__ = ["clone"]


@command("clone", example="mgit clone file:///srv/models/bot.mgit bot")
@click.argument("url")
@click.argument("target", required=False, metavar="[DIRECTORY]")
@click.option("-b", "--branch", metavar="NAME", help="Check out this branch.")
@click.option("--borrow", "lenders", multiple=True, metavar="PATH", help="Do not copy what PATH has (`mgit borrow`).")
@fisher_option("Bring its Fisher estimates, too.")
@pass_session
def clone(
    session: Session, url: str, target: str | None, branch: str | None, lenders: tuple[str, ...], fisher: bool
) -> None:
    """Copy the repository at URL into DIRECTORY (named after the URL), and check out its branch.

    Every object is checked against its id, and nothing that the remote holds is run.
    """
    from modelgit.repo.exchange.cloning import clone as copy
    from modelgit.repo.statistics import kept_estimates

    repo = copy(
        url,
        target,
        branch=branch,
        borrow=lenders,
        fisher=fisher,
        environment=session.environment,
        progress=session.progress,
    )
    with repo:
        view = repo.view()
        place = os.path.relpath(repo.worktree, session.environment.cwd)
        files = len(repo.manifest_of(view.head).files)
        estimates = len(kept_estimates(repo)) if fisher else 0
        code = any(task.entry is not None for task in repo.settings.task.values())
    session.output.say("Cloned into ", bold(place), ": branch ", blue(view.branch or "?"), f", {plural(files, 'file')}")
    if fisher:
        session.output.say(f"  {plural(estimates, 'Fisher estimate')} received")
    if code:
        session.output.say("mgit.toml names Python code; it does not run until you trust it.")
        session.output.say(f"hint: `mgit -C {place} trust --list` shows it")
