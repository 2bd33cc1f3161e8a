"""`mgit merge`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from modelgit.cli._commits import refusal_lines
from modelgit.cli._complete import complete_revision
from modelgit.cli._errors import Quit
from modelgit.cli._format import plural
from modelgit.cli._merges import (
    ChosenStrategy,
    called,
    conflict_lines,
    heading,
    parse_strategies,
    plan_lines,
    sign_lines,
)
from modelgit.cli._options import command, json_option, pass_session
from modelgit.cli._output import Output, blue, columns, dim, plain_data, yellow
from modelgit.cli._search import search_merge
from modelgit.cli._session import Session
from modelgit.cli.cmd_commit import say_commit
from modelgit.errors import NegativeAnswer, UsageError

if TYPE_CHECKING:
    from modelgit.repo.merges.merge import MergeResult

__all__ = ["merge", "say_merge", "show_refusal"]


@command("merge", example="mgit merge tone --strategy fisher --strategy 'lm_head.*=ours'")
@click.argument("revisions", nargs=-1, shell_complete=complete_revision, metavar="[REV]...")
@click.option("--plan", "only_plan", is_flag=True, help="Show what would be merged how; change nothing.")
@click.option("--dry-run", is_flag=True, help="Compute and gate the merge, say what it would be, and keep nothing.")
@click.option("--continue", "go_on", is_flag=True, help="Finish the merge that waits for resolutions.")
@click.option("--abort", is_flag=True, help="Give up the merge that waits.")
@click.option(
    "--strategy",
    "strategies",
    multiple=True,
    metavar="NAME|PATTERN=NAME",
    help="How values that both sides changed are combined (fisher, or what `[merge]` of mgit.toml says), or those of "
    "tensors that match PATTERN; "
    "options follow a space: 'average weights=2,1'.",
)
@click.option(
    "--search", is_flag=True, help="Try many strategies on the suites' data; merge with the best that passes."
)
@click.option(
    "--candidate", "candidates", multiple=True, metavar="STRATEGY", help="With --search: try this; repeatable."
)
@click.option(
    "--search-suite",
    "suites",
    multiple=True,
    metavar="SUITE",
    help="With --search: score by this suite, and not by all; repeatable.",
)
@click.option(
    "--search-data", "data", multiple=True, metavar="SUITE=FILE", help="With --search: score a suite on FILE instead."
)
@click.option("--exhaustive", is_flag=True, help="With --search: score every candidate on all of the data.")
@click.option(
    "--replay", metavar="COMMIT", help="Make a recorded merge again from its recipe; end with 1 if it differs."
)
@click.option("--list-strategies", is_flag=True, help="List the strategies and their options.")
@click.option(
    "--sign-limit",
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    help="Name tensors in which more of what both sides changed moved in different directions (0.6).",
)
@click.option(
    "--block-signs/--no-block-signs", default=None, help="Such tensors are conflicts, or are just named (the default)."
)
@click.option("-m", "--message", metavar="TEXT", help="The message of the merge commit.")
@click.option("--no-ff", is_flag=True, help="Make a merge commit even if the branch could just move forward.")
@click.option("--allow-unrelated", is_flag=True, help="Merge a history that has no commit in common with this one.")
@click.option("--gate", type=click.Choice(["block", "warn"]), default="block", show_default=True, help="As for commit.")
@json_option
@pass_session
def merge(
    session: Session,
    revisions: tuple[str, ...],
    only_plan: bool,
    dry_run: bool,
    go_on: bool,
    abort: bool,
    strategies: tuple[str, ...],
    search: bool,
    candidates: tuple[str, ...],
    suites: tuple[str, ...],
    data: tuple[str, ...],
    exhaustive: bool,
    replay: str | None,
    list_strategies: bool,
    sign_limit: float | None,
    block_signs: bool | None,
    message: str | None,
    no_ff: bool,
    allow_unrelated: bool,
    gate: str,
    as_json: bool,
) -> None:
    """Combine REV with the current branch, or several REVs with it at once.

    What only one side changed is taken; values that both changed are combined by a strategy; what nobody can decide
    for you is a conflict: the work tree stays untouched, the exit code is 1, and `mgit resolve` goes on.
    """
    if list_strategies:
        _list_strategies(session, as_json=as_json)
        return
    if replay is not None:
        _replay(session, replay)
        return
    revision = revisions[0] if revisions else None
    if (candidates or suites or data or exhaustive) and not search:
        raise UsageError(
            "--candidate, --search-suite, --search-data and --exhaustive go with --search",
            hint="`mgit merge REV --search`",
        )
    if search:
        if len(revisions) != 1 or only_plan or dry_run or go_on or abort or no_ff or allow_unrelated:
            raise UsageError(
                "--search merges one REV, and goes with --strategy, -m, --gate and its own options alone",
                hint=f"`mgit merge {revision or 'REV'} --search`; `mgit undo` takes the merge back",
            )
        search_merge(
            session,
            revisions[0],
            strategies=strategies,
            candidates=candidates,
            suites=suites,
            data=data,
            exhaustive=exhaustive,
            message=message,
            gate=gate,
            as_json=as_json,
        )
        return
    if len(revisions) > 1:
        if only_plan or dry_run or go_on or abort or no_ff or allow_unrelated or as_json or block_signs or sign_limit:
            raise UsageError(
                "several REVs are merged at once, with --strategy, -m and --gate alone",
                hint=f"`mgit merge {revisions[0]}` merges one",
            )
        _merge_many(session, revisions, parse_strategies(strategies), message=message, gate=gate)
        return
    if sum((only_plan, go_on, abort)) > 1 or (revision is None) != (go_on or abort):
        raise UsageError(
            "give a REV, or one of --continue and --abort", hint="`mgit merge --help` shows how it is used"
        )
    if as_json and not only_plan:
        raise UsageError(
            "--json goes with --plan, --search or --list-strategies",
            hint=f"`mgit merge {revision or 'REV'} --plan --json`",
        )
    if dry_run and (go_on or abort or only_plan):
        raise UsageError("--dry-run belongs to a merge that starts", hint="`mgit merge REV --dry-run`")
    if strategies and (go_on or abort or only_plan):
        raise UsageError("--strategy belongs to a merge that starts", hint="`mgit merge REV --strategy NAME`")
    if (go_on or abort) and (sign_limit is not None or block_signs is not None):
        raise UsageError("--sign-limit belongs to a merge that starts", hint="`mgit merge REV --sign-limit 0.6`")
    chosen = parse_strategies(strategies)
    if abort:
        from modelgit.repo.merges.merge import abort_merge

        abort_merge(session.repository)
        session.output.say("Gave the merge up; the work tree is as it was.")
    elif only_plan and revision is not None:
        _plan(session, revision, sign_limit=sign_limit, as_json=as_json)
    else:
        _merge(
            session,
            revision,
            chosen,
            message=message,
            fast_forward=not no_ff,
            unrelated=allow_unrelated,
            signs=(sign_limit, block_signs),
            gate=gate,
            dry_run=dry_run,
        )


def _merge(
    session: Session,
    revision: str | None,
    chosen: ChosenStrategy,
    *,
    message: str | None,
    fast_forward: bool,
    unrelated: bool,
    signs: tuple[float | None, bool | None],
    gate: str,
    dry_run: bool,
) -> None:
    from modelgit.repo.merges.merge import continue_merge
    from modelgit.repo.merges.merge import merge as start_merge
    from modelgit.repo.merges.state import read_state

    repo, output = session.repository, session.output
    ours = repo.view().branch or "HEAD"
    state = read_state(repo) if revision is None else None
    theirs = revision or (called(repo, state.theirs) if state else "theirs")
    try:
        if revision is None:
            result = continue_merge(repo, message=message, gate=gate, progress=session.progress)
        else:
            result = start_merge(
                repo,
                revision,
                strategy=chosen.name,
                options=chosen.options,
                rules=chosen.rules,
                message=message,
                fast_forward=fast_forward,
                unrelated=unrelated,
                sign_limit=signs[0],
                block_signs=signs[1],
                gate=gate,
                dry_run=dry_run,
                progress=session.progress,
            )
    except NegativeAnswer as refusal:
        show_refusal(session, refusal, revision=revision, ours=ours, theirs=theirs, strategy=chosen.name or "")
        raise
    say_merge(output, result, ours=ours, theirs=theirs)


def _merge_many(
    session: Session, revisions: tuple[str, ...], chosen: ChosenStrategy, *, message: str | None, gate: str
) -> None:
    from modelgit.repo.gates.gate import RefusedWithRecords
    from modelgit.repo.merges.octopus import merge_many

    repo, output = session.repository, session.output
    try:
        done = merge_many(
            repo,
            revisions,
            strategy=chosen.name,
            options=chosen.options,
            rules=chosen.rules,
            message=message,
            gate=gate,
            progress=session.progress,
        )
    except RefusedWithRecords as refusal:
        output.say_lines(refusal_lines(refusal))
        raise
    output.say(f"Merging {', '.join(revisions)} into ", blue(repo.view().branch or "HEAD"), f", base {done.base.short}")
    output.say_lines(sign_lines(done.signs))
    for sentence in done.notes:
        output.say(dim("note: "), sentence)
    note = f"   ({done.strategy}; {plural(done.combined, 'tensor')} combined from {len(done.sides)} sides)"
    say_commit(output, done.commit, note=note if done.combined else "")


def show_refusal(
    session: Session, refusal: NegativeAnswer, *, revision: str | None, ours: str, theirs: str, strategy: str
) -> None:
    """What a merge that stopped has to say: its plan and conflicts, or the verdicts of the gate.

    `revision` names what is merged, where that has not been said before.
    """
    from modelgit.repo.gates.gate import RefusedWithRecords
    from modelgit.repo.merges.merge import StoppedMerge

    repo, output = session.repository, session.output
    if isinstance(refusal, RefusedWithRecords):
        output.say_lines(refusal_lines(refusal))
    if isinstance(refusal, StoppedMerge):
        if revision is not None:
            base = refusal.sides.base_id
            output.say(*heading(revision, repo.resolve(revision), ours, repo.resolve("HEAD"), base))
        used = strategy or repo.settings.merge.strategy.partition(" ")[0]
        output.say_lines(plan_lines(refusal.plan, ours=ours, theirs=theirs, strategy=used))
        output.say_lines(conflict_lines(refusal.open, ours=ours, theirs=theirs))


def say_merge(output: Output, result: MergeResult, *, ours: str, theirs: str) -> None:
    """What a merge did."""
    if result.kind == "up-to-date":
        output.say("Already up to date with ", blue(theirs))
        return
    if result.kind == "fast-forward":
        output.say(blue(ours), f" {result.ours.short} → ", yellow(result.theirs.short), " (fast-forward)")
        return
    output.say(*heading(theirs, result.theirs, ours, result.ours, result.base))
    if result.plan is not None:
        lines = plan_lines(
            result.plan,
            ours=ours,
            theirs=theirs,
            strategy=result.strategy,
            overlaps=result.overlaps,
        )
        output.say_lines(lines)
    output.say_lines(sign_lines(result.signs))
    for sentence in result.notes:
        output.say(dim("note: "), sentence)
    if result.commit is not None:
        combined = result.plan.counts.get("combine", 0) if result.plan else 0
        words = [f"{plural(combined, 'tensor')} combined"] if combined else []
        words += [f"{result.resolved} resolved by hand"] if result.resolved else []
        note = f"   ({result.strategy}; {', '.join(words)})" if words else ""
        place = "dry run" if result.kind == "dry-run" else None
        say_commit(output, result.commit, note=note, place=place)
    if result.kind == "dry-run":
        output.say("Dry run: the merge was computed and gated, and nothing was kept.")


def _plan(session: Session, revision: str, *, sign_limit: float | None, as_json: bool) -> None:
    from modelgit.repo.merges.merge import plan_merge

    repo, output = session.repository, session.output
    planned = plan_merge(repo, revision, sign_limit=sign_limit, progress=session.progress)
    sides, plan = planned.sides, planned.plan
    if as_json:
        overlaps = [
            {**plain_data(item), "share": round(item.share, 6), "soft_conflict": item in planned.signs}
            for item in planned.overlaps
        ]
        known = {
            "base_commit": sides.base_id,
            "counts": plan.counts,
            "sign_limit": planned.sign_limit,
            "notes": planned.notes,
        }
        output.json("mgit.merge-plan/1", {**plain_data(plan), **known, "overlaps": overlaps})
        return
    view = repo.view()
    head = repo.resolve("HEAD")
    ours = view.branch or "HEAD"
    output.line(*heading(revision, repo.resolve(revision), view.branch, head, sides.base_id))
    output.lines(plan_lines(plan, ours=ours, theirs=revision, strategy="combine", overlaps=planned.overlaps))
    output.lines(sign_lines(planned.signs))
    output.lines([[dim("note: "), sentence] for sentence in planned.notes])
    output.lines(conflict_lines(plan.conflicts, ours=ours, theirs=revision))


def _replay(session: Session, revision: str) -> None:
    from modelgit.repo.merges.replay import replay

    found = replay(session.repository, revision, progress=session.progress)
    output = session.output
    if found.is_same:
        output.line(yellow(found.commit.short), f" made again: every byte is the same (tree {found.made.short})")
        return
    output.line(yellow(found.commit.short), f" made again: {plural(len(found.differing), 'difference')}")
    output.lines([[f"  {name}"] for name in found.differing])
    raise Quit(1)


def _list_strategies(session: Session, *, as_json: bool) -> None:
    from modelgit.merging.base import STRATEGIES
    from modelgit.merging.options import recipe_form

    if as_json:
        known = [STRATEGIES.get(name) for name in STRATEGIES]
        items = [
            {
                "name": item.name,
                "summary": item.summary,
                "scope": item.scope,
                "needs": sorted(item.needs),
                "options": {option.name: recipe_form(option.default) for option in item.options},
            }
            for item in known
        ]
        session.output.json("mgit.merge-strategies/1", {"strategies": items})
        return
    for name in STRATEGIES:
        strategy = STRATEGIES.get(name)
        session.output.line(blue(name), "  ", strategy.summary)
        rows = [[f"{option.name}={recipe_form(option.default)}"] for option in strategy.options]
        session.output.lines(columns(rows, indent=6))
