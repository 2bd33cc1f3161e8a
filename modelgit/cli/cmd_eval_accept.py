"""`mgit eval accept`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from modelgit.cli._format import plural
from modelgit.cli._options import command, json_option, pass_session
from modelgit.cli._output import Part, columns, dim, green, plain_data, yellow
from modelgit.cli._record import sign_option, signing_key_of
from modelgit.cli._session import Session
from modelgit.errors import UsageError

if TYPE_CHECKING:
    from modelgit.repo.gates.acceptances import ListedAcceptance

__all__ = ["accept"]


@command("accept", example="mgit eval accept flips --examples a17,b3 -m 'the new policy on refunds' --expires 30d")
@click.argument("test", required=False, metavar="[TEST]")
@click.option("--examples", metavar="IDS", help="Ids of examples that may break, with commas between them.")
@click.option("-m", "--message", metavar="TEXT", help="Why they may.")
@click.option("--expires", metavar="SPAN", help="From when on it no longer counts: 12h, 30d or 4w from now (never).")
@click.option("--suite", metavar="NAME", help="The suite, where several have a test of that name.")
@click.option("--list", "listing", is_flag=True, help="Show what is accepted.")
@sign_option("Sign with the ssh key in the file KEY (user.signing_key); a key that is configured signs without asking.")
@json_option
@pass_session
def accept(
    session: Session,
    test: str | None,
    examples: str | None,
    message: str | None,
    expires: str | None,
    suite: str | None,
    listing: bool,
    sign: str | None,
    as_json: bool,
) -> None:
    """Let examples of a test break, and say why.

    They no longer count as broken, and every verdict that this made a difference to names the acceptance.  Signed ones
    travel with a push and count wherever `evals/allowed_signers` lists the key; others count in this clone only.
    """
    from modelgit.repo.gates.acceptances import accept as keep
    from modelgit.repo.gates.acceptances import list_acceptances

    repo, output = session.repository, session.output
    if listing:
        if test is not None or examples is not None:
            raise UsageError("--list goes with nothing else", hint="`mgit eval accept --list`")
        found = list_acceptances(repo)
        if as_json:
            output.json("mgit.acceptances/1", {"acceptances": plain_data(found)})
        elif not found:
            output.say("nothing is accepted")
        else:
            output.lines(columns([_row(item) for item in found]))
        return
    usage = "`mgit eval accept TEST --examples ID,ID -m 'why'`"
    if test is None or examples is None:
        raise UsageError("which examples of which test may break?", hint=usage)
    if not (message or "").strip():
        raise UsageError("an acceptance needs a reason", hint=usage)
    ids = [item.strip() for item in examples.split(",") if item.strip()]
    keep(
        repo,
        test,
        ids,
        reason=message or "",
        suite=suite,
        expires=expires,
        key=signing_key_of(session, sign),
    )
    [item] = list_acceptances(repo)[:1]
    if as_json:
        output.json("mgit.acceptance/1", plain_data(item))
        return
    until = f" until {item.expires}" if item.expires else ""
    output.say(f"{plural(len(item.examples), 'example')} of {item.test} in suite {item.suite} may break{until}")
    if item.signers:
        output.say(f"signed {', '.join(item.signers)}")
    else:
        output.say("not signed: it counts in this clone only")
        output.say("hint: `mgit config set --user user.signing_key PATH` names the ssh key to sign with")


def _row(item: ListedAcceptance) -> list[Part]:
    shown = ", ".join(item.examples[:5]) + (f", … ({len(item.examples):,})" if len(item.examples) > 5 else "")
    state: Part = green("counts") if item.counts else yellow(item.problem)
    until = f"until {item.expires}" if item.expires else "for good"
    who = f"signed {', '.join(item.signers)}" if item.signers else item.author
    return [yellow(item.note.short), f"{item.suite} {item.test}", shown, state, until, who, dim(item.reason)]
