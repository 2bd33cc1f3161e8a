"""`mgit eval`."""

from __future__ import annotations

import contextlib
import math
import shlex
from typing import TYPE_CHECKING

import click

from modelgit.cli._commits import SHOWN_FLIPS, verdict_lines
from modelgit.cli._complete import complete_revision
from modelgit.cli._errors import Quit
from modelgit.cli._format import plural
from modelgit.cli._options import command, group, json_option, pass_session
from modelgit.cli._output import plain_data, yellow
from modelgit.cli._record import attach, budgets_of, check_record_options, record_options, say_attached, signing_key_of
from modelgit.cli._reports import Reports, no_commands, report_options, write_verdicts
from modelgit.cli._session import Session
from modelgit.cli.cmd_eval_accept import accept
from modelgit.cli.cmd_eval_suites import lint, noise_lines, selftest
from modelgit.config.suite_files import duration_s
from modelgit.errors import UsageError
from modelgit.objects import LETS_IN

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from modelgit.objects import EvalRecord

__all__ = ["evaluate", "exit_code_of"]

FAILED, INCONCLUSIVE, COULD_NOT_RUN = 1, 8, 9
_MORE_TIME = 4


@group("eval", default="run", implied=True, example="mgit eval main --suite smoke --baseline v1.0")
def evaluate() -> None:
    """Run suites: what a model must keep, and by how much it may change.

    `mgit eval REV` is short for `mgit eval run REV`, whose help has the options.
    """


def _seconds(_: click.Context, __: click.Parameter, text: str | None) -> float | None:
    return None if text is None else duration_s(text, where="`--budget`")


@command("run", example="mgit eval run main --suite smoke --baseline v1.0")
@click.argument("revision", required=False, shell_complete=complete_revision, metavar="[REV]")
@click.option("--suite", "suites", multiple=True, metavar="NAME", help="Run this suite; may be repeated (all suites).")
@click.option(
    "--baseline",
    "baselines",
    multiple=True,
    shell_complete=complete_revision,
    metavar="REV",
    help="Compare with REV in place of what the suites name (--record: of the parent); may be repeated.",
)
@click.option("--staged", is_flag=True, help="What `mgit commit` would run now: suites due at a commit, the work tree.")
@click.option(
    "--suites-from",
    shell_complete=complete_revision,
    metavar="REV",
    help="Suites and data as recorded at REV (a protected branch), not those of the work tree.",
)
@click.option("--full", is_flag=True, help="Look at every example.")
@click.option(
    "--fail-fast",
    is_flag=True,
    help="Look where failures are likely first, and leave a suite at its first broken limit.",
)
@click.option(
    "--budget", metavar="TIME", callback=_seconds, help="Wall time for all suites in place of their own (60s, 5m)."
)
@click.option(
    "--verify-cache",
    type=click.IntRange(min=1),
    metavar="N",
    help="First compute N random predictions of each cache again, and compare.",
)
@click.option(
    "--noise-floor",
    is_flag=True,
    help="Measure how many answers change when nothing changed: computed again, and (--baseline) by another seed.",
)
@click.option("--shadow", is_flag=True, help="Show what would happen, and end with 0 whatever it is.")
@click.option(
    "--show",
    type=click.Choice(["flips"]),
    metavar="flips",
    help=f"flips: list all examples that broke, not the first {SHOWN_FLIPS}.",
)
@record_options
@report_options(github=True)
@json_option
@pass_session
def run(
    session: Session,
    revision: str | None,
    suites: tuple[str, ...],
    baselines: tuple[str, ...],
    staged: bool,
    suites_from: str | None,
    full: bool,
    fail_fast: bool,
    budget: float | None,
    verify_cache: int | None,
    noise_floor: bool,
    shadow: bool,
    show: str | None,
    record: bool,
    sign: str | None,
    reports: Reports,
    as_json: bool,
) -> None:
    """Run suites on REV, or on the work tree as it would be committed, and compare with their baselines.

    Nothing is recorded but with --record, which attaches the verdicts to a commit that is there already: to its
    weights, as notes that travel with it.  Exit code 0: passed; 1: a limit is broken; 8: undecided; 9: a suite could
    not run or had no data.
    """
    from modelgit.repo.gates.evaluate import evaluate as run_suites
    from modelgit.repo.gates.suite_runs import EvalOptions

    if staged and revision is not None:
        raise UsageError("--staged is about the work tree, and a revision is named", hint=f"`mgit eval {revision}`")
    check_record_options(revision, record=record, sign=sign, noise_floor=noise_floor)
    repo = session.repository
    key = signing_key_of(session, sign) if record else None  # what is missing is told before anything runs
    if noise_floor:
        _show_noise(session, revision or "HEAD", suites, baselines, as_json)
        return
    verified: list[int] = []
    options = EvalOptions(
        baselines=baselines,
        keep_baselines=record,
        full=full,
        fail_fast=fail_fast,
        budget_s=budget,
        stages=("commit",) if staged else (),
        verify_cache=verify_cache or 0,
        verified=verified.append,
        all_flips=show == "flips",
    )
    law = repo.manifest_of(repo.resolve(suites_from)) if suites_from else None
    records = run_suites(repo, revision, suites=suites, options=options, law=law, progress=session.progress)
    code = exit_code_of(records)
    attached = attach(session, revision, records, key=key, budget=budget, law=law) if record and revision else ()
    if as_json:
        more = {"attached": plain_data(attached)} if record else {}
        session.output.json("mgit.eval/1", {"evaluations": plain_data(records), **more})
    else:
        parents = repo.parents_of(repo.resolve(revision)) if revision else [head] if (head := repo.head()) else []
        against = repo.resolve(baselines[0]) if baselines else next(iter(parents), None)
        flips = max((len(record.flips) for record in records), default=0) if show == "flips" else SHOWN_FLIPS
        with no_commands(session) if reports.github else contextlib.nullcontext():
            session.output.lines(
                verdict_lines(records, baseline=against, flips=flips, shown_by=f"mgit eval {revision or ''}".strip())
            )
        if verify_cache:
            session.output.say(_verified_words(sum(verified)))
        undecided = [record for record in records if _is_open(record)]
        if undecided:
            had = budgets_of(session, undecided, budget=budget, law=law)
            valued: dict[str, Sequence[str]] = {"--suite": [one.suite for one in undecided], "--baseline": baselines}
            valued |= {"--suites-from": [suites_from] if suites_from else []}
            flags = {"--staged": staged, "--full": full, "--fail-fast": fail_fast, "--record": record}
            typed = [revision] if revision else []
            typed += [word for name, values in valued.items() for value in values for word in (name, value)]
            typed += [name for name, given in flags.items() if given]
            typed += [] if sign is None else ["--sign", sign] if sign else ["--sign"]
            times = [had.get(one.suite, "") for one in undecided]
            session.output.say(f"hint: `{_longer(times, typed)}` goes on from what was computed")
        if shadow and code:
            session.output.say(yellow(f"Shadow: without --shadow this ends with {code}."))
    write_verdicts(session, records, reports)
    if record and not as_json:
        say_attached(session, attached)
    if code and not shadow:
        raise Quit(code)


def _is_open(record: EvalRecord) -> bool:
    """Whether the time of a suite was over before all of it was decided, and nothing worse is known of it."""
    open_lines = any(result.decision == "inconclusive" for result in record.results)
    return record.decision == "inconclusive" or (open_lines and record.decision in LETS_IN)


def _longer(had: Iterable[str], typed: Iterable[str]) -> str:
    """The command that was typed, with four times the time that suites had."""
    spent = max((duration_s(text, where="the budget") for text in had if text), default=1.0)
    seconds = max(1, math.ceil(_MORE_TIME * spent))
    time = f"{seconds}s" if seconds < 120 else f"{math.ceil(seconds / 60)}m"
    return shlex.join(["mgit", "eval", *typed, "--budget", time])


def _show_noise(
    session: Session, revision: str, suites: tuple[str, ...], baselines: tuple[str, ...], as_json: bool
) -> None:
    from modelgit.repo.gates.suite_checks import noise_floor

    repo = session.repository
    found = noise_floor(repo, revision, suites=suites, against=baselines, progress=session.progress)
    if as_json:
        session.output.json("mgit.eval-noise/1", {"floors": [plain_data(item) for item in found]})
    else:
        session.output.lines(noise_lines(found))


def _verified_words(count: int) -> str:
    if not count:
        return "No cached predictions yet: nothing was computed again."
    return f"Computed again: {plural(count, 'cached prediction')}, all as the weights give them."


def exit_code_of(records: Iterable[EvalRecord]) -> int:
    """A broken limit outweighs what could not run, and that what stayed undecided; only 0 is a pass."""
    decisions = {record.decision for record in records}
    for decision, code in (("fail", FAILED), ("error", COULD_NOT_RUN), ("inconclusive", INCONCLUSIVE)):
        if decision in decisions:
            return code
    return 0


for _item in (run, lint, selftest, accept):
    evaluate.add_command(_item)
