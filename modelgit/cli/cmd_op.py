"""`mgit op`."""

from __future__ import annotations

import itertools
import time

import click

from modelgit.cli._format import ago
from modelgit.cli._options import command, group, json_option, pass_session
from modelgit.cli._output import Part, columns, dim, plain_data, yellow
from modelgit.cli._session import Session

__all__ = ["op"]


@group("op", default="log", example="mgit op log -n 10")
def op() -> None:
    """Show what was done in this repository: every move of a branch, a tag or the work tree is an operation."""


@command("log", example="mgit op log -n 10")
@click.option("-n", "--number", type=click.IntRange(min=0), metavar="N", help="Show the newest N operations only.")
@json_option
@pass_session
def op_log(session: Session, number: int | None, as_json: bool) -> None:
    """List operations, newest first.  `mgit undo` takes the first one back."""
    from modelgit.repo.tracking.undo import operation_log

    found = list(itertools.islice(operation_log(session.repository), number))
    if as_json:
        items = [{"id": operation_id, **plain_data(operation)} for operation_id, operation in found]
        session.output.json("mgit.op-log/1", {"operations": items})
        return
    now_s = time.time()
    rows: list[list[Part]] = [
        [
            yellow(operation_id.short),
            operation.description,
            dim(ago(now_s - operation.time_ms / 1000)),
            operation.author,
        ]
        for operation_id, operation in found
    ]
    session.output.hold()
    session.output.lines(columns(rows))
    session.output.release()


op.add_command(op_log)
