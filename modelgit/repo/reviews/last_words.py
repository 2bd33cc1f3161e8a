"""The word that counts on a commit: its own verdicts, and the notes about its weights."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from modelgit.objects import Commit, Decision, NoteId, worst_decision

__all__ = ["Attested", "last_word", "words_of"]


class Attested(NamedTuple):
    """A note about the weights of a commit.

    `signers` are the names of the key that signed, empty for a note that is unsigned or whose signature does not count;
    `problem` says why.  `counts`: it is signed well, or was made in this clone.  `time_s` is when it was made, as it
    says (seconds since 1970), None for one that cannot be read.
    """

    note: NoteId
    suite: str
    decision: Decision
    signers: tuple[str, ...]
    counts: bool
    problem: str = ""
    time_s: int | None = None
    origin: str = ""


def last_word(commit: Commit, attested: Collection[Attested]) -> tuple[Decision | None, tuple[str, ...]]:
    """The worst word on a commit, and who signed one that counts.

    For each suite the newest note that counts stands in place of the verdict that the commit was recorded with.
    """
    found = set(words_of(commit, attested).values())
    signers = dict.fromkeys(name for note in _newest(attested).values() for name in note.signers)
    # That one suite had nothing to compare with is no news where another one passed.
    told = found - {"baseline"} or found
    return worst_decision(told) if told else None, tuple(signers)


def words_of(commit: Commit, attested: Iterable[Attested]) -> dict[str, Decision]:
    """The word that counts on a commit, by suite (see `last_word`)."""
    words: dict[str, Decision] = {verdict.suite: verdict.decision for verdict in commit.verdicts}
    return words | {suite: note.decision for suite, note in _newest(attested).items()}


def _newest(attested: Iterable[Attested]) -> dict[str, Attested]:
    found: dict[str, Attested] = {}
    for note in attested:
        if note.counts:
            found.setdefault(note.suite, note)
    return found
