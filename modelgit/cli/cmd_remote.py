"""`mgit remote`."""

from __future__ import annotations

import click

from modelgit.cli._complete import complete_remote
from modelgit.cli._options import command, group, json_option, pass_session
from modelgit.cli._output import Part, blue, columns
from modelgit.cli._session import Session

__all__ = ["remote"]


@group(
    "remote",
    default="list",
    example="mgit remote add origin file:///srv/models/bot.mgit",
    foreign={
        "rm": "`mgit remote remove NAME` forgets a remote",
        "set-url": "`mgit remote remove NAME`, then `mgit remote add NAME URL`",
        "show": "`mgit remote` lists remotes and their URLs",
    },
)
def remote() -> None:
    """List, add or remove remote repositories."""


@command("add", example="mgit remote add origin file:///srv/models/bot.mgit")
@click.argument("name")
@click.argument("url")
@pass_session
def remote_add(session: Session, name: str, url: str) -> None:
    """Call the repository at URL by NAME.  A relative directory is seen from this repository's root."""
    from modelgit.repo.exchange.remote import add_remote

    add_remote(session.repository, name, url)
    session.output.say("Remote ", blue(name), f" is {url}")


@command("list", example="mgit remote list")
@json_option
@pass_session
def remote_list(session: Session, as_json: bool) -> None:
    """List remotes and their URLs."""
    from modelgit.repo.exchange.remote import remotes

    found = remotes(session.repository)
    if as_json:
        items = [{"name": name, "url": url} for name, url in found.items()]
        session.output.json("mgit.remote/1", {"remotes": items})
        return
    rows: list[list[Part]] = [[blue(name), url] for name, url in found.items()]
    session.output.lines(columns(rows))


@command("remove", example="mgit remote remove origin")
@click.argument("name", shell_complete=complete_remote)
@pass_session
def remote_remove(session: Session, name: str) -> None:
    """Forget a remote and where its branches were; the remote itself is not touched."""
    from modelgit.repo.exchange.remote import remove_remote

    remove_remote(session.repository, name)
    session.output.say("Forgot remote ", blue(name))


for _command in (remote_add, remote_list, remote_remove):
    remote.add_command(_command)
