"""Notes: statements that are kept beside commits, about weights, suites or commits, signed or not."""

from __future__ import annotations

from typing import Literal as OneOf

from modelgit.objects.canonical import Record
from modelgit.objects.ids import EvalRecordId, NoteId

__all__ = ["KeptNote", "Note", "NoteKind"]

NoteKind = OneOf["test-result", "acceptance", "approval"]
"""What a statement is: the verdict of a suite on weights, leave for some examples of a test to break, or leave for a
commit to land on a branch."""


class Note(Record, frozen=True, kw_only=True):
    """A statement, and the signature over exactly its UTF-8 bytes; "" where nobody signed.

    A test result is an in-toto statement (`objects.attestations`), an acceptance one of `objects.acceptances`, an
    approval one of `objects.approvals`, all as canonical JSON.  `record` is the verdict that a test result sums up.
    """

    kind: NoteKind
    statement: str
    signature: str = ""
    record: EvalRecordId | None = None


class KeptNote(Record, frozen=True, kw_only=True):
    """A note that a repository keeps.

    `about` is the weights tree of a test result, the suite of an acceptance, the commit of an approval; `origin` the
    remote that it came from, "" for one that was made here.
    """

    id: NoteId
    kind: NoteKind
    about: str
    time_ms: int
    origin: str = ""
