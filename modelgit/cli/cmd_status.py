"""`mgit status`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from modelgit.cli._format import plural
from modelgit.cli._options import command, json_option, pass_session
from modelgit.cli._output import Part, blue, columns, green, plain_data, red, yellow
from modelgit.cli._session import Session

if TYPE_CHECKING:
    from modelgit.repo.tracking.status import Status

__all__ = ["status"]

_LETTERS: dict[str, Part] = {"added": green("A"), "modified": yellow("M"), "deleted": red("D")}


@command("status", example="mgit status -v")
@click.option("-v", "--verbose", is_flag=True, help="List every changed tensor.")
@json_option
@pass_session
def status(session: Session, verbose: bool, as_json: bool) -> None:
    """Show the current branch, and what changed in the work tree since its last commit.

    A file is read only when its size or times changed, and then once.
    """
    found = session.repository.status(progress=session.progress)
    output = session.output
    if as_json:
        output.json("mgit.status/1", {**plain_data(found), "clean": found.is_clean})
        return
    output.line(*_heading(found))
    if found.merging is not None:
        from modelgit.cli._merges import called

        left = f"{plural(found.conflicts, 'conflict')} to resolve" if found.conflicts else "all conflicts resolved"
        words = {"merge": "Merging ", "cherry-pick": "Picking ", "revert": "Taking back ", "rebase": "Rebasing "}
        output.line(words.get(found.verb, "Merging "), blue(called(session.repository, found.merging)), f": {left}")
        verb = "`mgit resolve` lists and decides them" if found.conflicts else f"`mgit {found.verb} --continue` goes on"
        output.say(f"hint: {verb}; `mgit {found.verb} --abort` gives the {found.verb} up")
    if found.left_at is not None:
        output.line("The files are as at ", yellow(found.left_at.short), ": later commits were made without them")
        output.say("hint: `mgit restore .` brings them up to date")
    rows: list[list[Part]] = []
    tensors: dict[str, tuple[str, ...]] = {}
    for model in found.models:
        part = f"{len(model.tensors)} of {plural(model.total, 'tensor')}" if model.total else "all tensors are gone"
        rows.append([yellow("M") if model.total else red("D"), model.path, f"  {part}"])
        tensors[model.path] = model.tensors
    rows += [[_LETTERS.get(file.change, file.change), file.path] for file in found.files]
    rows += [[_LETTERS.get(file.change, file.change), file.path, "  (training state)"] for file in found.training]
    for row, parts in zip(rows, columns(rows, gap=1, indent=2), strict=True):
        output.line(*parts)
        if verbose:
            for name in tensors.get(str(row[1]), ()) if len(row) == 3 else ():
                output.line(f"      {name}")
    if found.is_clean:
        if found.tracked or found.head is not None:
            output.line("nothing to commit")
        else:
            output.line("nothing is tracked yet")
            output.say("hint: `mgit track PATH` says what to record")


def _heading(found: Status) -> list[Part]:
    if found.branch is None:
        return ["At commit ", yellow(found.head.short if found.head else "none"), ", not on a branch"]
    heading: list[Part] = ["On branch ", blue(found.branch)]
    if found.head is None:
        return [*heading, ", no commits yet"]
    if found.upstream is None:
        return heading
    if not found.ahead and not found.behind:
        return [*heading, ", level with ", blue(found.upstream)]
    words = []
    if found.ahead:
        words.append(f"{plural(found.ahead, 'commit')} ahead of")
    if found.behind:
        words.append(f"{found.behind if found.ahead else plural(found.behind, 'commit')} behind")
    return [*heading, ", ", " and ".join(words) + " ", blue(found.upstream)]
