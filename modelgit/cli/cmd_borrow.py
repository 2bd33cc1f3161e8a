"""`mgit borrow`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from modelgit.cli._format import plural, size
from modelgit.cli._options import command, group, json_option, pass_session
from modelgit.cli._output import Part, blue, bold, columns, dim, plain_data, red
from modelgit.cli._session import Session

if TYPE_CHECKING:
    from modelgit.cli._output import Output
    from modelgit.repo.exchange.borrow import AddedLender

__all__ = ["borrow"]

_WORDS = {"store": "repository", "files": "directory", "hub": "published model"}


@group("borrow", default="list", example="mgit borrow add /data/checkpoints/llama")
def borrow() -> None:
    """Use weights that lie elsewhere without storing them again.

    A lender is another repository on this machine, a directory of checkpoints, a Hugging Face cache, or a published
    model (hf:org/name@COMMIT).  It is only read, and every byte that is read is compared with its digest.
    """


@command("add", example="mgit borrow add hf:org/name@4f1c0b6f5d7e3a2b1c9d8e7f6a5b4c3d2e1f0a9b")
@click.argument("target", metavar="PATH|hf:org/name@COMMIT")
@click.option("--tell", is_flag=True, help="Write our place into a lending repository, so that its gc spares us.")
@pass_session
def borrow_add(session: Session, target: str, tell: bool) -> None:
    """Borrow from a repository, a directory of checkpoints, or a published model in the Hugging Face cache.

    Files are read once, now.  What lies in a directory or repository is still sent by `mgit push`; what lies in a
    published model is neither stored nor sent: others find it in their own cache.
    """
    from modelgit.repo.exchange.borrow import add

    _say(session.output, "Borrowing from", add(session.repository, target, tell=tell, progress=session.progress))


@command("list", example="mgit borrow list")
@json_option
@pass_session
def borrow_list(session: Session, as_json: bool) -> None:
    """List lenders, and whether they are there."""
    from modelgit.repo.exchange.borrow import lenders

    found = lenders(session.repository)
    if as_json:
        session.output.json("mgit.borrow/1", {"lenders": [plain_data(state) for state in found]})
        return
    rows: list[list[Part]] = []
    for state in found:
        known = f"{plural(state.objects, 'object')}, {size(state.bytes)}"
        rows.append([_WORDS[state.kind], bold(state.target), dim(known) if state.there else red("not there")])
    session.output.lines(columns(rows))


@command("update", example="mgit borrow update")
@click.argument("target", required=False, metavar="[LENDER]")
@pass_session
def borrow_update(session: Session, target: str | None) -> None:
    """Look at lenders again: hash files that came or changed, and check what is borrowed from repositories."""
    from modelgit.repo.exchange.borrow import update

    for added in update(session.repository, target, progress=session.progress):
        _say(session.output, "Looked at", added)


@command("remove", example="mgit borrow remove /data/checkpoints/llama")
@click.argument("target", metavar="LENDER")
@click.option("--force", is_flag=True, help="Even if something can only be read from there.")
@pass_session
def borrow_remove(session: Session, target: str, force: bool) -> None:
    """Borrow no more from a lender, which is not touched."""
    from modelgit.repo.exchange.borrow import remove

    state = remove(session.repository, target, force=force)
    session.output.say("No longer borrowing from ", bold(state.target))


@command("copy", example="mgit borrow copy")
@click.option("--external", is_flag=True, help="Also what lies in published models.")
@json_option
@pass_session
def borrow_copy(session: Session, external: bool, as_json: bool) -> None:
    """Store here everything that is borrowed, so that the lenders can go."""
    from modelgit.repo.exchange.borrow import copy

    report = copy(session.repository, external=external, progress=session.progress)
    if as_json:
        session.output.json("mgit.borrow-copy/1", plain_data(report))
        return
    session.output.say(f"Copied {plural(report.objects, 'object')}: {size(report.bytes_added)} added")
    if report.external:
        session.output.say(f"  {plural(report.external, 'object')} stay in published models")


@command("fetch", example="mgit borrow fetch")
@click.argument("source", required=False, metavar="[hf:org/name@COMMIT]")
@pass_session
def borrow_fetch(session: Session, source: str | None) -> None:
    """Download published models into the Hugging Face cache: SOURCE, or what this repository refers to and lacks.

    Needs `pip install 'modelgit[hub]'`; your own token and HF_ENDPOINT are used.
    """
    from modelgit.repo.exchange.hub import fetch_sources

    for name, count in fetch_sources(session.repository, source, progress=session.progress).items():
        session.output.say("Downloaded ", blue(name), f": {plural(count, 'file')}")


def _say(output: Output, verb: str, added: AddedLender) -> None:
    state = added.state
    output.say(f"{verb} {_WORDS[state.kind]} ", bold(state.target))
    if state.kind != "store":
        output.say(f"  {plural(state.objects, 'object')}, {size(state.bytes)}, need not be stored here")
    for sentence in added.skipped:
        output.warn(f"not borrowed: {sentence}")


for _command in (borrow_add, borrow_list, borrow_update, borrow_remove, borrow_copy, borrow_fetch):
    borrow.add_command(_command)
