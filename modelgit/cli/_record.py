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
    from modelgit.objects import EvalRecord
    from modelgit.repo.attested import Attested

__all__ = ["attach", "check_record_options", "record_options", "say_attached", "sign_option", "signing_key_of"]

F = TypeVar("F", bound=Callable[..., Any])


def sign_option(text: str) -> Callable[[F], F]:
    """`--sign [KEY]`: None when it is not given, "" for the configured key."""
    return click.option("--sign", is_flag=False, flag_value="", metavar="[KEY]", help=text)


def record_options(command: F) -> F:
    """`--record` and `--sign`."""
    command = sign_option("With --record: sign with the ssh key in the file KEY (user.signing_key).")(command)
    keep = click.option("--record", is_flag=True, help="Attach the verdicts to REV as notes, which travel with it.")
    return keep(command)


def check_record_options(revision: str | None, *, record: bool, sign: str | None) -> None:
    """Raise UsageError for options that do not go together."""
    if sign is not None and not record:
        raise UsageError("--sign goes with --record", hint="`mgit eval REV --record --sign`")
    if record and revision is None:
        raise UsageError("--record attaches verdicts to a commit: which one?", hint="`mgit eval HEAD --record`")


def signing_key_of(session: Session, sign: str | None) -> Path | None:
    """The file of the key to sign with: asked for, or else the configured one; None where there is none."""
    from modelgit.repo.notes import signing_key

    return signing_key(session.repository, sign)


def attach(
    session: Session, revision: str, records: Sequence[EvalRecord], *, sign: str | None, budget: str = ""
) -> tuple[Attested, ...]:
    """Keep verdicts as notes about the weights of a revision, signed if there is a key."""
    from modelgit.repo.attested import attested_of
    from modelgit.repo.notes import attach_verdicts

    repo = session.repository
    key = signing_key_of(session, sign)
    known = attach_verdicts(repo, repo.resolve(revision), records, key=key, budget=budget)
    return tuple(attested_of(item) for item in known)


def say_attached(session: Session, attached: Sequence[Attested]) -> None:
    """What was kept."""
    if attached:
        session.output.say("Attached; `mgit push` sends them with the branch:")
        session.output.say_lines(columns(note_rows(attached), indent=2))
