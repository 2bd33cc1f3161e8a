"""What `cherry-pick`, `revert` and `rebase` have in common: options, going on, and what they say."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import click

from modelgit.cli._commits import refusal_lines
from modelgit.cli._format import plural
from modelgit.cli._merges import called, conflict_lines, parse_strategies, plan_lines
from modelgit.cli._output import dim, yellow
from modelgit.cli._session import Session
from modelgit.cli.cmd_commit import say_commit
from modelgit.errors import NegativeAnswer, UsageError

if TYPE_CHECKING:
    from modelgit.objects.merges import Verb
    from modelgit.repo.merges.picks import Picked

__all__ = ["pick_options", "run_picks"]

F = TypeVar("F", bound=Callable[..., object])
_DEFAULT = "task-arithmetic"


def pick_options(function: F) -> F:
    """`--continue`, `--skip`, `--abort`, `--strategy` and `--gate`."""
    options = (
        click.option("--continue", "go_on", is_flag=True, help="Go on after conflicts are resolved."),
        click.option("--skip", is_flag=True, help="Go on without the commit that waits."),
        click.option("--abort", is_flag=True, help="Give it up; nothing has moved."),
        click.option(
            "--strategy",
            "strategies",
            multiple=True,
            metavar="NAME|PATTERN=NAME",
            help=f"How values that overlap are combined ({_DEFAULT}); see `mgit merge`.",
        ),
        click.option(
            "--gate", type=click.Choice(["block", "warn"]), default="block", show_default=True, help="As for commit."
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def run_picks(
    session: Session,
    verb: Verb,
    start: Callable[..., Picked] | None,
    *,
    go_on: bool,
    skip: bool,
    abort: bool,
    strategies: tuple[str, ...],
    gate: str,
) -> None:
    """Start, go on, or give up.

    `start` takes the keyword arguments that all verbs share; it is None where no commit was named.
    """
    if sum((go_on, skip, abort)) > 1 or (start is None) != (go_on or skip or abort):
        raise UsageError(
            "name what to take, or one of --continue, --skip and --abort", hint=f"`mgit {verb} --help` shows how"
        )
    if strategies and start is None:
        raise UsageError("--strategy belongs to a start", hint=f"`mgit {verb} REV --strategy NAME`")
    from modelgit.repo.merges.merge import abort_merge
    from modelgit.repo.merges.picks import DEFAULT_STRATEGY, continue_picks

    repo = session.repository
    if abort:
        abort_merge(repo, verb=verb)
        session.output.say(f"Gave the {verb} up; branch and work tree are as they were.")
        return
    try:
        if start is None:
            done = continue_picks(repo, verb, gate=gate, skip=skip, progress=session.progress)
        else:
            chosen = parse_strategies(strategies)
            done = start(
                strategy=chosen.name or DEFAULT_STRATEGY,
                options=chosen.options,
                rules=chosen.rules,
                gate=gate,
                progress=session.progress,
            )
    except NegativeAnswer as refusal:
        _show_refusal(session, refusal)
        raise
    _say(session, done)


def _show_refusal(session: Session, refusal: NegativeAnswer) -> None:
    from modelgit.repo.gates.gate import RefusedWithRecords
    from modelgit.repo.merges.merge import StoppedMerge
    from modelgit.repo.merges.state import read_state

    repo, output = session.repository, session.output
    if isinstance(refusal, RefusedWithRecords):
        output.say_lines(refusal_lines(refusal))
    state = read_state(repo)
    if isinstance(refusal, StoppedMerge) and state is not None:
        ours, theirs = repo.view().branch or "HEAD", called(repo, state.source or state.theirs)
        output.say(f"At {theirs}: ", state.message.split("\n", 1)[0])
        output.say_lines(plan_lines(refusal.plan, ours=ours, theirs=theirs, strategy=state.strategy))
        output.say_lines(conflict_lines(refusal.open, ours=ours, theirs=theirs))


def _say(session: Session, done: Picked) -> None:
    output = session.output
    if done.before == done.after:
        output.say("Nothing to do: the branch is up to date.")
        return
    for result in done.results:
        combined = result.plan.counts.get("combine", 0) if result.plan else 0
        note = f"   ({plural(combined, 'tensor')} added up: {result.strategy})" if combined else "   (exact)"
        if result.commit is not None:
            say_commit(output, result.commit._replace(branch=session.repository.view().branch), note=note)
        for sentence in result.notes:
            output.say(dim("note: "), sentence)
    for commit in done.skipped:
        output.say("left out ", yellow(commit.short), ", which changes nothing here")
