"""`mgit blame`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from modelgit.cli._commits import when
from modelgit.cli._complete import complete_revision
from modelgit.cli._format import plural
from modelgit.cli._options import command, json_option, pass_session
from modelgit.cli._output import Part, columns, dim, plain_data, yellow
from modelgit.cli._session import Session
from modelgit.cli.cmd_cat_tensor import row_range
from modelgit.errors import UsageError

if TYPE_CHECKING:
    from modelgit.objects import CommitId
    from modelgit.repo.repository import Repository

__all__ = ["blame"]


@command("blame", example="mgit blame encoder.layer.0.output.dense.weight --rows 0:100")
@click.argument("name", required=False, metavar="[TENSOR]")
@click.argument("revision", required=False, default="HEAD", shell_complete=complete_revision, metavar="[REV]")
@click.option("--model", metavar="PATH", help="The model that has the tensor, if several have one of this name.")
@click.option("--rows", metavar="A:B", help="Only these rows of the first dimension (B excluded).")
@click.option("--example", metavar="ID", help="Say since which commit this example of a suite is right, or wrong.")
@click.option("--data", metavar="PATH", help="With --example: the data that have it, if several do.")
@json_option
@pass_session
def blame(
    session: Session,
    name: str | None,
    revision: str,
    model: str | None,
    rows: str | None,
    example: str | None,
    data: str | None,
    as_json: bool,
) -> None:
    """Say which commit gave TENSOR the values that it has in REV, row by row; without TENSOR, for all tensors.

    All tensors are told from metadata; the rows of one are compared with those of the commits that changed it.  With
    --example the argument is REV, and each model back along first parents is asked about that one example.
    """
    if example is not None:
        if rows is not None or model is not None:
            raise UsageError("--rows and --model are about a tensor", hint="`mgit blame --example ID [REV]`")
        _example(session, example, name or revision, data, as_json)
        return
    if data is not None:
        raise UsageError("--data goes with --example", hint="`mgit blame --example ID --data NAME`")
    if name is None:
        if rows is not None:
            raise UsageError("--rows says which rows of one tensor", hint="`mgit blame TENSOR --rows 0:10`")
        _tensors(session, revision, model, as_json)
        return
    _rows(session, name, revision, model, rows, as_json)


def _tensors(session: Session, revision: str, model: str | None, as_json: bool) -> None:
    from modelgit.repo.history.blame import blame_tensors

    repo = session.repository
    found = blame_tensors(repo, revision, model=model)
    if as_json:
        items = [{"model": line.model, "name": line.name, "commit": str(line.commit)} for line in found]
        session.output.json("mgit.blame/1", {"tensors": items})
        return
    several = len({line.model for line in found}) > 1
    table: list[list[Part]] = [
        [*_who(repo, line.commit), f"{line.model}:{line.name}" if several else line.name] for line in found
    ]
    session.output.hold()
    session.output.lines(columns(table))
    session.output.release()


def _rows(session: Session, name: str, revision: str, model: str | None, rows: str | None, as_json: bool) -> None:
    from modelgit.repo.history.blame import blame_rows
    from modelgit.repo.history.cat import find_tensor

    repo = session.repository
    chosen = None
    if rows is not None:
        chosen = row_range(find_tensor(repo, revision, name, model=model).tensor, rows)
    found = blame_rows(repo, name, revision, model=model, rows=chosen, progress=session.progress)
    if as_json:
        items = [{"start": line.start, "stop": line.stop, "commit": str(line.commit)} for line in found]
        session.output.json("mgit.blame-rows/1", {"name": name, "rows": items})
        return
    table: list[list[Part]] = [
        [*_who(repo, line.commit), f"{line.start:,}:{line.stop:,}", dim(plural(line.stop - line.start, "row"))]
        for line in found
    ]
    session.output.hold()
    session.output.lines(columns(table, right=(4,)))
    session.output.release()


def _example(session: Session, example: str, revision: str, data: str | None, as_json: bool) -> None:
    from modelgit.repo.gates.flips import blame_example

    repo = session.repository
    found = blame_example(repo, example, revision, data=data, progress=session.progress)
    if as_json:
        session.output.json("mgit.blame-example/1", plain_data(found))
        return
    state = "unlabelled" if found.now.right is None else "right" if found.now.right else "wrong"
    text = " ".join(found.text.split())
    session.output.line(f"{found.data}: {found.example}", dim(f"  {text[:70]}"))
    gold = f" (it is {found.gold})" if found.gold else ""
    if found.before is None:
        session.output.line(f"  {state} in all of the history: {found.now.predicted}{gold}")
    else:
        session.output.line(f"  {state} since")
        session.output.lines(columns([_who(repo, found.since)], indent=2))
        session.output.line(f"  {found.before.predicted} → {found.now.predicted}{gold}")
        for other in found.others:
            came = f"{state}, too" if other.right == found.now.right else "as before"
            session.output.line("  ", dim(f"merged from {other.commit.short}, which says {other.predicted} ({came})"))
    session.output.say(dim(f"{plural(found.looked, 'model')} asked"))


def _who(repo: Repository, commit: CommitId) -> list[Part]:
    record = repo.commit_at(commit)
    return [yellow(commit.short), record.author.name, dim(when(record.author)), record.subject[:50]]
