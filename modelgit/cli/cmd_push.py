"""`mgit push`."""

from __future__ import annotations

import click

from modelgit.cli._complete import complete_branch, complete_remote
from modelgit.cli._options import command, fisher_option, json_option, pass_session
from modelgit.cli._output import blue, plain_data
from modelgit.cli._session import Session
from modelgit.cli._transfers import estimates_moved, move_lines, notes_moved, policy_lines, ref_words, transferred
from modelgit.errors import UsageError

__all__ = ["push"]


@command("push", example="mgit push origin main --tags")
@click.argument("remote", default="origin", shell_complete=complete_remote, metavar="[REMOTE]")
@click.argument("branches", nargs=-1, shell_complete=complete_branch, metavar="[BRANCH]...")
@click.option("--tags", is_flag=True, help="Send all tags, too.")
@click.option("-d", "--delete", is_flag=True, help="Delete each BRANCH, or tag, on the remote.")
@click.option(
    "--force-with-lease",
    is_flag=True,
    help="Let a branch go back or aside, if the remote's is still where the last fetch saw it.",
)
@fisher_option("Send the Fisher estimates of these weights, too.")
@json_option
@pass_session
def push(
    session: Session,
    remote: str,
    branches: tuple[str, ...],
    tags: bool,
    delete: bool,
    force_with_lease: bool,
    fisher: bool,
    as_json: bool,
) -> None:
    """Send branches (the current one) to REMOTE (origin), and move the remote's, all or none.

    Sends the patches that the remote lacks.  If it has commits that are not here, or a policy of a branch or tag
    refuses it, nothing is changed.  `HERE:THERE` sends a branch under another name.
    """
    from modelgit.repo.exchange.sync import push as send
    from modelgit.repo.reviews.ref_policies import PushRefused

    if delete and not branches:
        raise UsageError("which branch is to be deleted?", hint=f"`mgit push {remote} --delete BRANCH`")
    if delete and (tags or force_with_lease or fisher):
        raise UsageError(
            "--delete goes with none of --tags, --force-with-lease and --fisher",
            hint=f"`mgit push {remote} --delete BRANCH`",
        )
    output = session.output
    try:
        result = send(
            session.repository,
            remote,
            branches,
            tags=tags,
            delete=delete,
            force_with_lease=force_with_lease,
            fisher=fisher,
            progress=session.progress,
        )
    except PushRefused as refusal:
        output.say_lines(line for item in refusal.refused for line in policy_lines(item))
        raise
    if as_json:
        output.json("mgit.push/2", plain_data(result))
        return
    if result.updates:
        output.say("To ", blue(remote), f": {transferred(result.commits, result.objects, result.bytes_sent)}")
        output.say_lines(move_lines((update.name, update.expected, update.new) for update in result.updates))
        output.say_lines(line for item in result.policies for line in policy_lines(item))
    elif not result.notes:
        output.say(blue(remote), " is up to date")
    if words := notes_moved(result.notes, "sent"):
        output.say(words)
    for ref, suites in result.due:
        name = ref_words(ref)
        # The branch of that name here may be at another commit, as after `mgit push origin topic:main`.
        pushed = next(update.new for update in result.updates if update.name == ref)
        revision = name if pushed is None or session.repository.view().refs.get(ref) == pushed else pushed.short
        output.say(f"{name} has verdicts that are pending: {', '.join(suites)}")
        output.say(f"hint: `mgit eval {revision} --record` attaches them, on any machine; then push again")
    if fisher:
        output.say(estimates_moved(result.fisher, "sent"))
