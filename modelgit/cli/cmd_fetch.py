"""`mgit fetch`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from modelgit.cli._complete import complete_remote
from modelgit.cli._options import command, fisher_option, json_option, pass_session
from modelgit.cli._output import Output, blue, plain_data
from modelgit.cli._session import Session
from modelgit.cli._transfers import estimates_moved, move_lines, notes_moved, transferred
from modelgit.errors import UsageError

if TYPE_CHECKING:
    from modelgit.repo.exchange.sync import FetchedRefs

__all__ = ["fetch", "say_fetched"]


@command("fetch", example="mgit fetch origin --prune")
@click.argument("remote", default="origin", shell_complete=complete_remote, metavar="[REMOTE]")
@click.option("-p", "--prune", is_flag=True, help="Forget branches that the remote no longer has.")
@click.option("--repair", is_flag=True, help="Replace what is damaged or missing here by what REMOTE has.")
@fisher_option("Bring the Fisher estimates of these weights, too.")
@json_option
@pass_session
def fetch(session: Session, remote: str, prune: bool, repair: bool, fisher: bool, as_json: bool) -> None:
    """Get the branches and tags of REMOTE (origin); your branches and files stay as they are.

    Every object is checked against its id before it is used.
    """
    if repair:
        if fisher:
            raise UsageError("--fisher does not go with --repair", hint=f"`mgit fetch {remote} --fisher`")
        _repair(session, remote, as_json)
        return
    from modelgit.repo.exchange.sync import fetch as receive

    fetched = receive(session.repository, remote, prune=prune, fisher=fisher, progress=session.progress)
    if as_json:
        moved = [{"ref": ref, "old": old, "new": new} for ref, (old, new) in fetched.moved.items()]
        session.output.json("mgit.fetch/1", {**plain_data(fetched), "moved": plain_data(moved)})
        return
    say_fetched(session.output, fetched, fisher=fisher)


def _repair(session: Session, remote: str, as_json: bool) -> None:
    from modelgit.repo.exchange.repair import repair as mend

    report = mend(session.repository, remote, progress=session.progress)
    if as_json:
        session.output.json("mgit.repair/1", plain_data(report))
    elif not report.packs and not report.fetched:
        session.output.say("Nothing is damaged or missing")
    else:
        session.output.say(
            f"Replaced {len(report.packs)} damaged packs: {report.salvaged} objects were still sound, "
            f"{report.fetched} came from ",
            blue(remote),
        )


def say_fetched(output: Output, fetched: FetchedRefs, *, fisher: bool = False) -> None:
    """What came over, and what moved; `fisher`: whether estimates were asked for."""
    if fetched.moved or fetched.commits:
        what = transferred(len(fetched.commits), fetched.objects, fetched.bytes_received)
        output.say("From ", blue(fetched.remote), f": {what}")
        output.say_lines(move_lines((ref, old, new) for ref, (old, new) in fetched.moved.items()))
    elif not fetched.notes.notes:
        output.say("Nothing new on ", blue(fetched.remote))
    if words := notes_moved(fetched.notes.notes, "received"):
        output.say(words)
    for sentence in fetched.notes.refused:
        output.warn(sentence)
    if fisher:
        output.say(estimates_moved(fetched.fisher, "received"))
