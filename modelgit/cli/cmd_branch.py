"""`mgit branch`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from modelgit.cli._commits import when
from modelgit.cli._complete import complete_branch, complete_revision
from modelgit.cli._options import command, json_option, pass_session
from modelgit.cli._output import Part, blue, columns, dim, green, yellow
from modelgit.cli._session import Session
from modelgit.errors import UsageError

if TYPE_CHECKING:
    from modelgit.objects import CommitId

__all__ = ["branch"]


@command("branch", example="mgit branch refunds main~1")
@click.argument("name", required=False, shell_complete=complete_branch, metavar="[NAME]")
@click.argument("target", required=False, shell_complete=complete_revision, metavar="[REV]")
@click.option("-d", "--delete", is_flag=True, help="Delete NAME if something else reaches its commits.")
@click.option("-D", "force_delete", is_flag=True, help="Delete NAME, whatever it alone reaches.")
@click.option("-m", "--rename", is_flag=True, help="Rename NAME to REV (the second name).")
@click.option("-r", "--remotes", is_flag=True, help="List the branches of remotes.")
@click.option("-v", "--verbose", is_flag=True, help="List the tips' commits, too.")
@json_option
@pass_session
def branch(
    session: Session,
    name: str | None,
    target: str | None,
    delete: bool,
    force_delete: bool,
    rename: bool,
    remotes: bool,
    verbose: bool,
    as_json: bool,
) -> None:
    """List branches; with NAME make one at REV (the current commit) without switching to it.

    `mgit switch -c NAME` makes a branch and switches to it.  What was deleted comes back with `mgit undo`.
    """
    from modelgit.repo.branches import branches, create_branch, delete_branch, rename_branch

    if delete + force_delete + rename + remotes > 1:
        raise UsageError("-d, -D, -m and -r exclude each other", hint="`mgit branch --help` shows how it is used")
    repo = session.repository
    output = session.output
    if name is None:
        if delete or force_delete or rename:
            raise UsageError("which branch?", hint="`mgit branch` lists them")
        _list(session, branches(repo, remotes=remotes), verbose=verbose, as_json=as_json)
        return
    if remotes or verbose or as_json:
        raise UsageError("-r, -v and --json list branches and take no NAME", hint="`mgit branch -v`")
    if rename:
        if target is None:
            raise UsageError(f"rename {name} to what?", hint=f"`mgit branch -m {name} NEW`")
        rename_branch(repo, name, target)
        output.say("Branch ", blue(name), " is now ", blue(target))
    elif delete or force_delete:
        if target is not None:
            raise UsageError("only one branch at a time is deleted", hint=f"`mgit branch -d {name}`")
        tip = delete_branch(repo, name, force=force_delete)
        output.say("Deleted branch ", blue(name), " (was ", yellow(tip.short), "); `mgit undo` brings it back")
    else:
        commit = create_branch(repo, name, start=target)
        output.say("Branch ", blue(name), " is at ", yellow(commit.short))


def _list(session: Session, found: dict[str, CommitId], *, verbose: bool, as_json: bool) -> None:
    repo, output = session.repository, session.output
    view = repo.view()
    if as_json:
        items = [{"name": name, "commit": commit, "current": name == view.branch} for name, commit in found.items()]
        output.json("mgit.branch/1", {"branches": items, "current": view.branch, "head": view.head})
        return
    rows: list[list[Part]] = []
    if view.branch is None and view.head is not None:
        rows.append(["*", green(f"(detached at {view.head.short})")])
    elif view.branch is not None and view.head is None:
        rows.append(["*", green(view.branch), dim("no commits yet")])
    for name, commit_id in found.items():
        current = name == view.branch
        row: list[Part] = ["*" if current else " ", green(name) if current else name]
        if verbose:
            commit = repo.commit_at(commit_id)
            row += [yellow(commit_id.short), commit.subject, dim(when(commit.committer))]
        rows.append(row)
    output.lines(columns(rows, gap=1))
