"""`mgit tag`."""

from __future__ import annotations

import click

from modelgit.cli._complete import complete_revision, complete_tag
from modelgit.cli._options import command, json_option, pass_session
from modelgit.cli._output import Part, columns, yellow
from modelgit.cli._session import Session
from modelgit.errors import UsageError

__all__ = ["tag"]


@command("tag", example="mgit tag v1.2 main")
@click.argument("name", required=False, shell_complete=complete_tag, metavar="[NAME]")
@click.argument("revision", required=False, shell_complete=complete_revision, metavar="[REV]")
@click.option("-d", "--delete", is_flag=True, help="Delete NAME.")
@click.option("-f", "--force", is_flag=True, help="Move NAME if it exists.")
@json_option
@pass_session
def tag(session: Session, name: str | None, revision: str | None, delete: bool, force: bool, as_json: bool) -> None:
    """List tags; with NAME, tag REV (the current commit)."""
    from modelgit.repo.branches import create_tag, delete_tag, tags

    repo, output = session.repository, session.output
    if name is None:
        if delete or force:
            raise UsageError("which tag?", hint="`mgit tag` lists them")
        found = tags(repo)
        if as_json:
            output.json("mgit.tag/1", {"tags": [{"name": key, "commit": commit} for key, commit in found.items()]})
            return
        rows: list[list[Part]] = [
            [key, yellow(commit.short), repo.commit_at(commit).subject] for key, commit in found.items()
        ]
        output.lines(columns(rows))
        return
    if as_json:
        raise UsageError("--json lists tags and takes no NAME", hint="`mgit tag --json`")
    if delete:
        if revision is not None or force:
            raise UsageError("-d takes one NAME and nothing else", hint=f"`mgit tag -d {name}`")
        commit = delete_tag(repo, name)
        output.say("Deleted tag ", yellow(name), f" (was {commit.short}); `mgit undo` brings it back")
    else:
        commit = create_tag(repo, name, target=revision, force=force)
        output.say("Tagged ", yellow(commit.short), f" as {name}")
