"""`mgit bisect`."""

from __future__ import annotations

import shlex
import subprocess
from typing import TYPE_CHECKING

import click

from modelgit.cli._commits import patch_words, when
from modelgit.cli._complete import complete_revision
from modelgit.cli._errors import Quit
from modelgit.cli._format import plural, size
from modelgit.cli._options import command, group, json_option, pass_session
from modelgit.cli._output import dim, plain_data, red, yellow
from modelgit.cli._session import Session
from modelgit.errors import RepositoryError, UsageError

if TYPE_CHECKING:
    from modelgit.objects import CommitId
    from modelgit.repo.history.bisect import Answer, Step

__all__ = ["bisect"]

_SKIP = 125  # as in git: this commit cannot be tested
_CANNOT_RUN = (126, 127)  # of a shell
# What mgit's own commands say when they could not answer (see `mgit eval --help`): no word on the commit.
_OWN_SKIPS = (8, 9)
_OWN_FAILURES = (2, 3, 4, 5, 6, 7, 70)


@group(
    "bisect",
    default="log",
    example="mgit bisect start main v1.0\nmgit bisect run mgit eval --suite smoke --baseline v1.0",
    foreign={"new": "`mgit bisect bad`", "old": "`mgit bisect good`", "next": "`mgit bisect log` shows what is asked"},
)
def bisect() -> None:
    """Find the commit that broke something, by asking about few."""


@command("start", example="mgit bisect start main v1.0")
@click.argument("bad", required=False, shell_complete=complete_revision, metavar="[BAD]")
@click.argument("good", nargs=-1, shell_complete=complete_revision, metavar="[GOOD]...")
@click.option("--no-checkout", is_flag=True, help="Leave the work tree alone; commits are only named.")
@pass_session
def start(session: Session, bad: str | None, good: tuple[str, ...], no_checkout: bool) -> None:
    """Begin: BAD is broken, GOOD were not.  Either may be said later, with `bad` and `good`."""
    from modelgit.repo.history.bisect import start_bisection

    _say(session, start_bisection(session.repository, bad, good, checkout=not no_checkout, progress=session.progress))


def _answer(session: Session, answer: Answer, revisions: tuple[str, ...]) -> None:
    from modelgit.repo.history.bisect import mark

    _say(session, mark(session.repository, answer, revisions, progress=session.progress))


@command("good", example="mgit bisect good")
@click.argument("revisions", nargs=-1, shell_complete=complete_revision, metavar="[REV]...")
@pass_session
def good(session: Session, revisions: tuple[str, ...]) -> None:
    """The commit that was asked about (or REV) is good."""
    _answer(session, "good", revisions)


@command("bad", example="mgit bisect bad")
@click.argument("revisions", nargs=-1, shell_complete=complete_revision, metavar="[REV]")
@pass_session
def bad(session: Session, revisions: tuple[str, ...]) -> None:
    """The commit that was asked about (or REV) is bad."""
    _answer(session, "bad", revisions)


@command("skip", example="mgit bisect skip")
@click.argument("revisions", nargs=-1, shell_complete=complete_revision, metavar="[REV]...")
@pass_session
def skip(session: Session, revisions: tuple[str, ...]) -> None:
    """The commit that was asked about (or REV) cannot be tested."""
    _answer(session, "skip", revisions)


@command("reset", example="mgit bisect reset")
@pass_session
def reset(session: Session) -> None:
    """End it, and go back to where it began."""
    from modelgit.repo.history.bisect import reset_bisection

    session.output.say("Back on ", yellow(reset_bisection(session.repository, progress=session.progress)))


@command("log", example="mgit bisect log")
@json_option
@pass_session
def log(session: Session, as_json: bool) -> None:
    """Show what was answered so far, and what is asked."""
    from modelgit.repo.history.bisect import current_bisection

    state = current_bisection(session.repository)
    if as_json:
        session.output.json("mgit.bisect/1", {"bisection": None if state is None else plain_data(state)})
        return
    if state is None:
        session.output.say("no bisection is under way")
        return
    for words, commits in (("bad", (state.bad,) if state.bad else ()), ("good", state.good), ("skip", state.skipped)):
        for commit in commits:
            session.output.line(f"{words:<5}", yellow(commit.short), f"  {_subject(session, commit)}")
    if state.asked is not None:
        session.output.line("asked ", yellow(state.asked.short), f"  {_subject(session, state.asked)}")


@command(
    "run",
    example="mgit bisect run mgit eval --suite smoke --baseline v1.0",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("arguments", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND...")
@pass_session
def run(session: Session, arguments: tuple[str, ...]) -> None:
    """Let COMMAND answer until the first bad commit is found.

    Exit code 0 means good, 125 that the commit cannot be tested, 1 to 127 bad; anything else ends the run.  Of mgit's
    own commands 8 and 9 count as "cannot be tested", and what they say for a mistake ends the run.  `{rev}` in COMMAND
    is replaced by the id of the commit.
    """
    from modelgit.repo.history.bisect import current_step, mark

    repo = session.repository
    step = current_step(repo)
    if step.next is None and step.found is None and not step.suspects:
        raise UsageError(
            "there is nothing to ask before a bad and a good commit are named", hint="`mgit bisect bad REV`"
        )
    while step.next is not None:
        typed = [word.replace("{rev}", str(step.next)) for word in arguments]
        session.output.say("Running ", shlex.join(typed), dim(f"  at {step.next.short}"))
        step = mark(repo, _ask(session, typed), progress=session.progress)
        if step.next is not None:
            _say(session, step)
    _say(session, step)


def _ask(session: Session, typed: list[str]) -> Answer:
    """Run the command; raises RepositoryError when its exit code answers nothing."""
    try:
        code = subprocess.run(typed, cwd=session.environment.cwd, check=False).returncode
    except OSError as error:
        raise UsageError(
            f"cannot run {typed[0]}: {error.strerror or error}", hint="`mgit bisect run COMMAND`"
        ) from None
    own = typed[0].rpartition("/")[2] in ("mgit", "modelgit")
    if code == 0:
        return "good"
    if code == _SKIP or (own and code in _OWN_SKIPS):
        return "skip"
    if code in _CANNOT_RUN or not 0 < code < 128 or (own and code in _OWN_FAILURES):
        raise RepositoryError(
            f"`{shlex.join(typed)}` ended with {code}, which says nothing about the commit",
            hint="mend the command and run it again, or answer by hand: `mgit bisect skip`",
        )
    return "bad"


def _say(session: Session, step: Step) -> None:
    output = session.output
    if step.found is not None:
        commit = session.repository.commit_at(step.found)
        patch = session.repository.patch_of(step.found)
        output.line(yellow(step.found.short), red(" is the first bad commit"))
        output.line(f"  {commit.subject}", dim(f"  {commit.author.name}, {when(commit.author)}"))
        output.line("  ", dim(f"{patch_words(patch)}, {size(patch.bytes_added)}"))
        output.say("`mgit bisect reset` goes back to where you were")
    elif step.next is not None:
        left = plural(step.left - 1, "commit")
        output.line("Asking ", yellow(step.next.short), f"  {_subject(session, step.next)}")
        output.say(f"{left} in question, about {plural(max(1, step.questions), 'answer')} to go")
    elif step.suspects:
        output.line(f"The first bad commit is one of these {len(step.suspects)}; the others were skipped:")
        for suspect in step.suspects:
            output.line("  ", yellow(suspect.short), f"  {_subject(session, suspect)}")
        raise Quit(1)
    else:
        words = (
            "a bad commit: `mgit bisect bad REV`" if step.state.bad is None else "a good one: `mgit bisect good REV`"
        )
        output.say(f"Waiting for {words}")


def _subject(session: Session, commit: CommitId) -> str:
    return session.repository.commit_at(commit).subject


for _command in (start, good, bad, skip, reset, log, run):
    bisect.add_command(_command)
