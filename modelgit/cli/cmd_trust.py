"""`mgit trust`."""

from __future__ import annotations

import click

from modelgit.cli._options import command, json_option, pass_session
from modelgit.cli._output import Part, columns, dim, green, yellow
from modelgit.cli._session import Session
from modelgit.errors import UsageError

__all__ = ["trust"]


@command("trust", example="mgit trust --list && mgit trust")
@click.option("--list", "only_list", is_flag=True, help="Show the code and whether it is trusted; change nothing.")
@click.option("--revoke", is_flag=True, help="Trust nothing any more.")
@json_option
@pass_session
def trust(session: Session, only_list: bool, revoke: bool, as_json: bool) -> None:
    """Allow the code that mgit.toml and the suites name to run on this machine.

    Trust is bound to the content of that code and lapses when it changes.  Look at the files before you trust them;
    what is new, changed or removed since the last time is marked.
    """
    from modelgit.repo.trust import changed_code, is_trusted, named_code
    from modelgit.repo.trust import revoke as trust_nothing
    from modelgit.repo.trust import trust as trust_code

    if only_list and revoke:
        raise UsageError("--list and --revoke exclude each other", hint="`mgit trust --list`")
    if as_json and not only_list:
        raise UsageError("--json goes with --list", hint="`mgit trust --list --json`")
    repo, output = session.repository, session.output
    if revoke:
        trust_nothing(repo)
        output.say("Trusting nothing.")
        return
    changes = {change.name: change.what for change in changed_code(repo)}
    if only_list:
        code, trusted = named_code(repo), is_trusted(repo)
        if as_json:
            output.json("mgit.trust/2", {"trusted": trusted, "code": code, "changes": changes})
            return
        code |= {name: "" for name, what in changes.items() if what == "removed"}
        rows: list[list[Part]] = [
            [name, dim(digest[:12]), yellow(changes.get(name, ""))] for name, digest in sorted(code.items())
        ]
        output.lines(columns(rows))
        if code:
            output.say(green("trusted") if trusted else yellow("not trusted"))
        else:
            output.say("mgit.toml names no code that would run")
        return
    for name in trust_code(repo):
        output.say("Trusting ", name, yellow(f"  {changes[name]}") if name in changes else "")
    for name in sorted(name for name, what in changes.items() if what == "removed"):
        output.say("No longer named: ", name, yellow("  removed"))
