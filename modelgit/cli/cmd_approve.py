"""`mgit approve`."""

from __future__ import annotations

import click

from modelgit.cli._complete import complete_branch, complete_revision
from modelgit.cli._options import command, json_option, pass_session
from modelgit.cli._output import plain_data
from modelgit.cli._record import sign_option
from modelgit.cli._session import Session
from modelgit.objects.policies import APPROVAL_KINDS

__all__ = ["approve"]

_WORDS = {
    "code": "code",
    "auto_map": "classes that config files name",
    "tokenizer": "tokenizer",
    "chat_template": "chat template",
    "gate": "gate",
}


@command("approve", example="mgit approve refunds --base origin/main -m 'read modeling_bot.py line by line'")
@click.argument("revision", required=False, shell_complete=complete_revision, metavar="[REV]")
@click.option(
    "--base", required=True, shell_complete=complete_revision, metavar="REF", help="The tip that REV is to replace."
)
@click.option(
    "--branch", shell_complete=complete_branch, metavar="NAME", help="The branch that it is for (the one that REF is)."
)
@click.option("--tag", metavar="NAME", help="It is for a tag that is to name REV, which the policies of REF protect.")
@click.option("-m", "--message", required=True, metavar="TEXT", help="What was looked at, or why it may land.")
@click.option("--override", is_flag=True, help="Let it land whatever the policies of the branch say.")
@sign_option("Sign with the ssh key in the file KEY; without it with the configured one (user.signing_key).")
@json_option
@pass_session
def approve(
    session: Session,
    revision: str | None,
    base: str,
    branch: str | None,
    tag: str | None,
    message: str,
    override: bool,
    sign: str | None,
    as_json: bool,
) -> None:
    """Sign leave for REV (HEAD) to replace REF with what it changes beside weights.

    That is code, classes that config files name, tokenizer, chat template and gate. The approval is of this very commit
    on this very tip, for one branch (or tag) and the policies that protect it; `mgit push` sends it.
    """
    from modelgit.policy.base import shown_ref
    from modelgit.repo.notes import signing_key
    from modelgit.repo.reviews.approve import approve as sign_approval

    repo = session.repository
    approved = sign_approval(
        repo,
        base,
        revision,
        reason=message,
        branch=branch,
        tag=tag,
        override=override,
        key=signing_key(repo, sign or ""),
    )
    approval = approved.known.checked.approval
    output = session.output
    if as_json:
        document = {"note": plain_data(approved.known.kept), "approval": plain_data(approval)}
        output.json("mgit.approve/2", {**document, "facts": plain_data(approved.facts)})
        return
    commit = repo.resolve(revision or "HEAD")
    who = ", ".join(approved.known.checked.signature.principals)
    whither = "" if approval is None else f" for {shown_ref(approval.ref)} (policy {', '.join(approval.policies)})"
    output.say(
        f"Approved {commit.short} over {base}{whither} as {who}{': it may land all the same' if override else ''}"
    )
    for kind in APPROVAL_KINDS:
        if approval is not None and kind in approval.of:
            output.say(f"  {_WORDS[kind]}: {', '.join(getattr(approved.facts, kind))}")
