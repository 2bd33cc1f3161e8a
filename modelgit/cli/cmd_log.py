"""`mgit log`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from modelgit.cli._commits import date_line, decorations, gate_mark, patch_words, when
from modelgit.cli._format import escape, size
from modelgit.cli._graph import Row, draw
from modelgit.cli._options import command, json_option, pass_session
from modelgit.cli._output import Output, Part, dim, plain_data, red, yellow
from modelgit.cli._session import Session
from modelgit.errors import UsageError

if TYPE_CHECKING:
    from modelgit.objects import MergeRecipe
    from modelgit.repo.history.log import LogEntry

__all__ = ["full_entry", "log"]

_NO_GUTTER = Row("", (), "")


@command("log", example="mgit log --graph --oneline -n 20")
@click.argument("revisions", nargs=-1, metavar="[REV]...")
@click.option("--graph", is_flag=True, help="Draw how commits descend from each other.")
@click.option("--oneline", is_flag=True, help="One line a commit.")
@click.option("-n", "--number", type=click.IntRange(min=0), metavar="N", help="Show the newest N commits only.")
@click.option("--compat", is_flag=True, help="Show how much can have broken since the last tag, from what is recorded.")
@json_option
@pass_session
def log(
    session: Session,
    revisions: tuple[str, ...],
    graph: bool,
    oneline: bool,
    number: int | None,
    compat: bool,
    as_json: bool,
) -> None:
    """Show the commits that REV (the current commit) descends from, children before parents; of several, of any.

    `A..B` shows what B has and A has not.  Reads no weights.  A line ends with the verdict of the gate, whoever signed
    it, and what the commit's patch takes.

    With --compat, the negative flips and the churn that were recorded for each commit since the last tag are added up:
    no evaluation against the tag can find more on the same examples.
    """
    if compat:
        if graph or oneline or number is not None or len(revisions) > 1:
            raise UsageError(
                "--compat is about one REV, and goes with none of --graph, --oneline and -n", hint="`mgit log --compat`"
            )
        from modelgit.cli._compat import show_compat

        show_compat(session, revisions[0] if revisions else "HEAD", as_json)
        return
    from modelgit.repo.history.log import log as read_log

    entries = list(read_log(session.repository, *revisions, limit=number))
    output = session.output
    if as_json:
        items = [
            {**plain_data(entry), "patch": {**plain_data(entry.patch), "tensors": len(entry.patch.tensors)}}
            for entry in entries
        ]
        output.json("mgit.log/1", {"commits": items})
        return
    if not entries:
        output.say("no commits yet")
        return
    bodies = _short_entries(entries) if oneline else [full_entry(entry) for entry in entries]
    gutters = (
        list(draw((entry.id, entry.commit.parents) for entry in entries)) if graph else [_NO_GUTTER] * len(entries)
    )
    output.hold()
    for body, gutter in zip(bodies, gutters, strict=True):
        _print_entry(output, body, gutter, spaced=not oneline)
    output.release()


def _print_entry(output: Output, body: list[list[Part]], gutter: Row, *, spaced: bool) -> None:
    output.line(dim(gutter.head) if gutter.head else "", *body[0])
    lines: list[list[Part]] = [*body[1:], *([[]] if spaced else [])]
    width = max([len(gutter.rest), *(len(edge) + 1 for edge in gutter.edges), 2 if gutter.head else 0])
    edges = list(gutter.edges)
    for parts in lines:
        left = edges.pop(0) if edges else gutter.rest
        output.line(dim(left.ljust(width)), *parts)
    for edge in edges:
        output.line(dim(edge))


def _short_entries(entries: Sequence[LogEntry]) -> list[list[list[Part]]]:
    """One line for each commit: id, names and subject, verdict, size, in columns."""
    subjects = [[*_named(entry.refs), entry.commit.subject] for entry in entries]
    widths = [sum(len(escape(str(part))) for part in parts) for parts in subjects]
    widest = min(max(widths, default=0), 72)
    marks = max((len(str(gate_mark(entry.verdict, entry.signers))) for entry in entries), default=0)
    lines: list[list[list[Part]]] = []
    for entry, parts, width in zip(entries, subjects, widths, strict=True):
        mark = gate_mark(entry.verdict, entry.signers)
        line: list[Part] = [yellow(entry.id.short), " ", *parts, " " * (widest - width + 3), mark]
        line += [" " * (marks - len(str(mark)) + 2), size(entry.patch.bytes_added)]
        lines.append([[*line, *([dim("  weights pruned")] if entry.pruned else [])]])
    return lines


def full_entry(entry: LogEntry) -> list[list[Part]]:
    """A commit in full: heading, author, date, message, what its patch is."""
    commit = entry.commit
    lines: list[list[Part]] = [["commit ", yellow(entry.id.short), " ", *decorations(entry.refs)]]
    if len(commit.parents) > 1:
        lines.append(["Merge:  ", " ".join(parent.short for parent in commit.parents)])
    lines.append(["Author: ", str(commit.author)])
    lines.append(["Date:   ", date_line(commit.author), dim(f"  ({when(commit.author)})")])
    if commit.recipe is not None:
        lines.append(["Recipe: ", _recipe(commit.recipe)])
    for name, value in commit.trailers.items():
        lines.append([f"{name.capitalize() + ': ':<8}", " ".join(value.split())])
    lines += [["Mask:   ", mask.short] for mask in entry.patch.masks]
    if entry.pruned is not None:
        lines.append(["Weights:", dim(f" pruned by retention on {entry.pruned}")])
    lines.append([])
    lines += [["    ", text] for text in commit.message.rstrip("\n").split("\n")]
    lines.append([])
    summary: list[Part] = ["    ", dim(f"{patch_words(entry.patch)}, {size(entry.patch.bytes_added)}"), "  "]
    lines.append([*summary, gate_mark(entry.verdict, entry.signers)])
    lines += [["    ", red(f"note {note.note.short}: {note.problem}")] for note in entry.attested if note.problem]
    return lines


def _recipe(recipe: MergeRecipe) -> str:
    options = [f"{name}={value}" for name, value in recipe.options.items() if value != ""]  # empty: not given
    words = [" ".join([recipe.strategy, *options])]
    words += [f"{pattern}={rule}" for pattern, rule in recipe.rules.items()]
    if recipe.resolutions:
        words.append(f"{len(recipe.resolutions)} resolved by hand")
    return "; ".join(words)


def _named(refs: Sequence[str]) -> list[Part]:
    return [*decorations(refs), " "] if refs else []
