"""`mgit approve`."""

from __future__ import annotations

import click

from modelgit.cli._complete import complete_revision
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
@click.option("-m", "--message", required=True, metavar="TEXT", help="What was looked at, or why it may land.")
@click.option("--override", is_flag=True, help="Let it land whatever the policies of the branch say.")
@sign_option("Sign with the ssh key in the file KEY; without it with the configured one (user.signing_key).")
@json_option
@pass_session
def approve(
    session: Session,
    revision: str | None,
    base: str,
    message: str,
    override: bool,
    sign: str | None,
    as_json: bool,
) -> None:
    """Sign leave for REV (HEAD) to replace REF with what it changes beside weights.

    That is code, classes that config files name, tokenizer, chat template and gate. The approval is of this very commit
    on this very tip; `mgit push` sends it.
    """
    from modelgit.repo.approve import approve as sign_approval
    from modelgit.repo.notes import signing_key

    repo = session.repository
    approved = sign_approval(repo, base, revision, reason=message, override=override, key=signing_key(repo, sign or ""))
    approval = approved.known.checked.approval
    output = session.output
    if as_json:
        output.json("mgit.approve/1", {"note": plain_data(approved.known.kept), "facts": plain_data(approved.facts)})
        return
    commit = repo.resolve(revision or "HEAD")
    who = ", ".join(approved.known.checked.signature.principals)
    output.say(f"Approved {commit.short} over {base} as {who}{': it may land all the same' if override else ''}")
    for kind in APPROVAL_KINDS:
        if approval is not None and kind in approval.of:
            output.say(f"  {_WORDS[kind]}: {', '.join(getattr(approved.facts, kind))}")
