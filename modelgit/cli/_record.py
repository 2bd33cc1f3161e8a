"""Options of `mgit eval` that keep its verdicts, and what is said about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from modelgit.cli._commits import note_rows
from modelgit.cli._output import columns
from modelgit.cli._session import Session
from modelgit.errors import UsageError

if TYPE_CHECKING:
    from modelgit.objects import EvalRecord, Manifest
    from modelgit.repo.reviews.last_words import Attested

__all__ = [
    "attach",
    "budgets_of",
    "check_record_options",
    "record_options",
    "say_attached",
    "sign_option",
    "signing_key_of",
]

F = TypeVar("F", bound=Callable[..., Any])


def sign_option(text: str) -> Callable[[F], F]:
    """`--sign [KEY]`: None when it is not given, "" for the configured key."""
    return click.option("--sign", is_flag=False, flag_value="", metavar="[KEY]", help=text)


def record_options(command: F) -> F:
    """`--record` and `--sign`."""
    command = sign_option("With --record: sign with the ssh key in the file KEY (user.signing_key).")(command)
    keep = click.option("--record", is_flag=True, help="Attach the verdicts to REV as notes, which travel with it.")
    return keep(command)


def check_record_options(revision: str | None, *, record: bool, sign: str | None, noise_floor: bool) -> None:
    """Raise UsageError for options that do not go together."""
    if record and noise_floor:
        raise UsageError("--noise-floor gives no verdict that --record could attach", hint="leave one of them out")
    if sign is not None and not record:
        raise UsageError("--sign goes with --record", hint="`mgit eval REV --record --sign`")
    if record and revision is None:
        raise UsageError("--record attaches verdicts to a commit: which one?", hint="`mgit eval HEAD --record`")


def signing_key_of(session: Session, sign: str | None) -> Path | None:
    """The file of the key to sign with: asked for, or else the configured one; None where there is none.

    A key that is configured for other repositories signs nothing where nobody lists keys.  Raises UsageError for one
    that cannot sign, or that nobody would believe, before anything long begins.
    """
    from modelgit.repo.notes import allowed_signers, check_signing_key, signing_key

    repo = session.repository
    if sign is None and allowed_signers(repo) is None:
        return None
    key = signing_key(repo, sign)
    if key is not None:
        check_signing_key(repo, key)
    return key


def attach(
    session: Session,
    revision: str,
    records: Sequence[EvalRecord],
    *,
    key: Path | None,
    budget: float | None = None,
    law: Manifest | None = None,
) -> tuple[Attested, ...]:
    """Keep verdicts as notes about the weights of a revision, signed if there is a key.

    One of a suite that could not run here says nothing of the weights, and is left out.  `budget` is the wall time, in
    seconds, that stood for the suites' own; these are those of `law`, or of the work tree.
    """
    from modelgit.repo.notes import attach_verdicts
    from modelgit.repo.reviews.attested import attested_of

    repo = session.repository
    ran = [record for record in records if record.decision != "error"]
    for record in records:
        if record.decision == "error":
            session.output.warn(f"suite {record.suite} could not run here: no verdict of it is attached")
    if not ran:
        return ()
    budgets = budgets_of(session, ran, budget=budget, law=law)
    known = attach_verdicts(repo, repo.resolve(revision), ran, key=key, budgets=budgets)
    return tuple(attested_of(item) for item in known)


def budgets_of(
    session: Session, records: Sequence[EvalRecord], *, budget: float | None, law: Manifest | None
) -> dict[str, str]:
    """The wall time that each suite had ("5m", "" for no limit); arguments as for `attach`."""
    from modelgit.repo.gates.suites import recorded_suites, worktree_suites

    if budget is not None:
        return dict.fromkeys((record.suite for record in records), f"{budget:g}s")
    texts = worktree_suites(session.repository) if law is None else recorded_suites(session.repository, law)
    return {suite.name: suite.run.budget or "" for suite in texts.suites()}


def say_attached(session: Session, attached: Sequence[Attested]) -> None:
    """What was kept."""
    if attached:
        session.output.say("Attached; `mgit push` sends them with the branch:")
        session.output.say_lines(columns(note_rows(attached), indent=2))
