"""`mgit du`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from modelgit.cli._complete import complete_revision
from modelgit.cli._format import plural, size
from modelgit.cli._options import command, json_option, pass_session
from modelgit.cli._output import Part, columns, dim, plain_data
from modelgit.cli._session import Session

if TYPE_CHECKING:
    from modelgit.repo.upkeep.usage import Usage, UsageRow

__all__ = ["du"]

_BY = ("kind", "tensor", "file", "commit", "pack", "ref")


@command("du", example="mgit du --by commit -n 10")
@click.argument("revisions", nargs=-1, shell_complete=complete_revision, metavar="[REV]...")
@click.option("--by", type=click.Choice(_BY), default="kind", show_default=True, help="What a row stands for.")
@click.option("-n", "--number", type=click.IntRange(min=1), default=25, show_default=True, help="Show N rows at most.")
@json_option
@pass_session
def du(session: Session, revisions: Sequence[str], by: str, number: int, as_json: bool) -> None:
    """Show what the stored bytes are for.  The rows add up to the size of the packs on disk.

    With revisions, only what these need is named. By commit, a row is what the commit brought, with what it alone needs
    and what it shares; by tensor, how each is coded; by ref, what `mgit gc --prune=now` would free if that branch or
    tag went.
    """
    from modelgit.repo.upkeep.usage import usage

    report = usage(session.repository, revisions, by=by)  # type: ignore[arg-type]
    output = session.output
    if as_json:
        output.json("mgit.du/1", plain_data(report))
        return
    output.hold()
    shown = report.rows[:number]
    output.lines(columns([_row(report, row) for row in shown], right=(0, 1)))
    if len(report.rows) > number:
        left = report.rows[number:]
        amount = f"{size(sum(row.bytes for row in left))} in " if by != "ref" else ""
        output.line(dim(f"and {amount}{plural(len(left), 'more row')} (-n)"))
    output.line()
    output.line(f"{size(report.total)} of packs", dim(_beside(report)))
    output.release()


def _row(report: Usage, row: UsageRow) -> list[Part]:
    part = f"{100 * row.bytes / report.total:.1f} %" if report.total else ""
    cells: list[Part] = [size(row.bytes), dim(part), row.name]
    if row.tensor is not None:
        use = row.tensor
        base = f" against {use.base}" if use.base else ""
        at = f"@{use.base_commit.short}" if use.base_commit is not None else ""
        under = f" under {use.mask.KIND} {use.mask.short}" if use.mask is not None else ""
        ratio = f"{use.raw_bytes / row.bytes:.2f}x" if row.bytes else ""
        cells.append(dim(f"{use.codec}{base}{at}{under}, {ratio}, read in {use.cost:.2f} passes"))
    elif row.unique is not None and row.shared is not None:
        cells.append(dim(f"{size(row.unique)} only here, {size(row.shared)} shared"))
        cells.append(dim(row.detail))
    else:
        cells.append(dim(", ".join(word for word in (_objects(row), row.detail) if word)))
    return cells


def _objects(row: UsageRow) -> str:
    return plural(row.objects, "object") if row.objects else ""


def _beside(report: Usage) -> str:
    words = [f"{name} {size(amount)}" for name, amount in sorted(report.beside.items(), key=lambda item: -item[1])]
    return f"; beside them: {', '.join(words[:6])}" if words else ""
