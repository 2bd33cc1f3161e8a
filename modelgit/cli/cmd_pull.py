"""`mgit pull`."""

from __future__ import annotations

import click

from modelgit.cli._complete import complete_branch, complete_remote
from modelgit.cli._options import command, fisher_option, pass_session
from modelgit.cli._output import blue, yellow
from modelgit.cli._session import Session
from modelgit.cli.cmd_fetch import say_fetched
from modelgit.cli.cmd_merge import say_merge, show_refusal
from modelgit.errors import NegativeAnswer

__all__ = ["pull"]


@command("pull", example="mgit pull origin main")
@click.argument("remote", default="origin", shell_complete=complete_remote, metavar="[REMOTE]")
@click.argument("branch", required=False, shell_complete=complete_branch, metavar="[BRANCH]")
@click.option("--strategy", metavar="NAME", help="How values that both sides changed are combined (fisher).")
@fisher_option("Bring the Fisher estimates of these weights, too; the merge uses them.")
@pass_session
def pull(session: Session, remote: str, branch: str | None, strategy: str | None, fisher: bool) -> None:
    """Fetch from REMOTE (origin), then merge its branch of the same name into the current one."""
    from modelgit.repo.exchange.sync import pull as bring

    repo, output = session.repository, session.output
    name = repo.view().branch or "HEAD"
    theirs = f"{remote}/{branch or name}"
    try:
        result = bring(repo, remote, branch, strategy=strategy, fisher=fisher, progress=session.progress)
    except NegativeAnswer as refusal:
        show_refusal(session, refusal, revision=theirs, ours=name, theirs=theirs, strategy=strategy or "")
        raise
    say_fetched(output, result.fetched, fisher=fisher)
    if result.merged is not None:
        say_merge(output, result.merged, ours=name, theirs=theirs)
    elif result.before == result.after:
        output.say(blue(name), " is up to date")
    elif result.after is not None:
        output.say(blue(name), " is now at ", yellow(result.after.short))
