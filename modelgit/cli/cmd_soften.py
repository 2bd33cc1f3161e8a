"""`mgit soften`."""

from __future__ import annotations

import click

from modelgit.cli._options import command, json_option, pass_session
from modelgit.cli._output import green, plain_data, red, yellow
from modelgit.cli._session import Session
from modelgit.cli.cmd_commit import say_commit

__all__ = ["soften"]


@command("soften", example="mgit soften -m 'refunds, at two thirds'")
@click.option("-m", "--message", metavar="TEXT", help="The message of the new commit.")
@json_option
@pass_session
def soften(session: Session, message: str | None, as_json: bool) -> None:
    """Blend the current commit with its parent, as little as the gate asks for.

    For a change that breaks a limit: record it with `mgit commit --gate warn`, then soften it.  The largest blend of
    the commit with its parent that passes the gate becomes a commit on top; `mgit undo` takes it back.
    """
    from modelgit.repo.merges.soften import soften as find_blend

    done = find_blend(session.repository, message=message, progress=session.progress)
    output = session.output
    if as_json:
        probes = [{"alpha": probe.alpha, "passed": probe.passed} for probe in done.probes]
        document = {"alpha": done.alpha, "of": done.of, "parent": done.parent, "probes": probes}
        output.json("mgit.soften/1", {**document, "commit": plain_data(done.commit.id)})
        return
    for probe in done.probes:
        verdict = green("passes") if probe.passed else red("refused")
        output.say(f"  {probe.alpha:6.1%} of ", yellow(done.of.short), f" over {done.parent.short}  ", verdict)
    say_commit(output, done.commit, note=f"   ({done.alpha:.1%} of the change)")
