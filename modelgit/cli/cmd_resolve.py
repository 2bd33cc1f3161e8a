"""`mgit resolve`."""

from __future__ import annotations

import click

from modelgit.cli._format import plural
from modelgit.cli._merges import called, conflict_lines
from modelgit.cli._options import command, json_option, pass_session
from modelgit.cli._output import plain_data
from modelgit.cli._session import Session
from modelgit.errors import NothingToDo, UsageError

__all__ = ["resolve"]


@command("resolve", example="mgit resolve model.embed_tokens.weight --with grow-rows")
@click.argument("name", required=False, metavar="[NAME]")
@click.option("--take", type=click.Choice(["ours", "theirs", "base"]), help="Take one side's version.")
@click.option(
    "--with",
    "value",
    metavar="VALUE",
    help="A value (JSON) for a key, or a method for a tensor (combine, grow-rows) or a tokenizer (ours-first).",
)
@click.option(
    "--rows",
    multiple=True,
    metavar="FIRST:END=SIDE",
    help="Where rows of a tensor come from (ours, theirs, base or combine), without END up to the last; repeatable.",
)
@json_option
@pass_session
def resolve(
    session: Session, name: str | None, take: str | None, value: str | None, rows: tuple[str, ...], as_json: bool
) -> None:
    """Decide the conflict NAME (a tensor, a file, or FILE:KEY); without NAME, list the open ones.

    The decisions are kept until `mgit merge --continue` commits them or `mgit merge --abort` drops them (or `mgit
    cherry-pick`, revert or rebase, whichever waits).
    """
    from modelgit.objects.merges import Resolution
    from modelgit.repo.merges.merge import resolve_conflicts
    from modelgit.repo.merges.state import read_state

    repo, output = session.repository, session.output
    state = read_state(repo)
    if state is None:
        raise NothingToDo("no merge is under way", hint="`mgit merge BRANCH` starts one")
    ours = repo.view().branch or "HEAD"
    if name is None:
        if take is not None or value is not None or rows:
            raise UsageError("which conflict?", hint="`mgit resolve` lists them")
        if as_json:
            items = [{"id": conflict.id, **plain_data(conflict)} for conflict in state.conflicts]
            output.json("mgit.resolve/1", {"conflicts": items, "resolutions": state.resolutions})
            return
        output.lines(conflict_lines(state.conflicts, ours=ours, theirs=called(repo, state.source or state.theirs)))
        if not state.conflicts:
            output.say("all conflicts are resolved")
            output.say(f"hint: `mgit {state.name} --continue` goes on")
        return
    if as_json:
        raise UsageError("--json lists the open conflicts, and decides none", hint="`mgit resolve --json`")
    texts = [f"take {take}"] * (take is not None) + [f"with {value}"] * (value is not None)
    texts += [f"rows {','.join(rows)}"] * bool(rows)
    if len(texts) != 1:
        raise UsageError(
            f"say how {name} is decided",
            hint=f"`mgit resolve {name} --take ours`, or --with VALUE, or --rows 0:100=ours --rows 100:=theirs",
        )
    resolution = Resolution.parse(texts[0])
    left = resolve_conflicts(repo, name, resolution)
    output.say(f"Resolved {name}: {resolution}; {plural(len(left), 'conflict')} left")
    if not left:
        output.say(f"hint: `mgit {state.name} --continue` goes on")
