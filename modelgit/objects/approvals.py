"""Approvals: leave of an owner for one commit to replace one tip of a branch."""

from __future__ import annotations

from typing import Literal as OneOf

import msgspec

from modelgit.errors import IntegrityError, UsageError
from modelgit.objects.ids import CommitId
from modelgit.objects.policies import APPROVAL_KINDS, ApprovalKind
from modelgit.objects.statements import Plain, read_statement, time_of, write_statement

__all__ = ["Approval", "read_approval", "write_approval"]


class Approval(Plain, frozen=True, kw_only=True):
    """Leave for `commit` to replace `base` although it changes what the kinds `of` name, given at `time` by `author`.

    With `override` it may land whatever the policies of the branch say.
    """

    statement_type: OneOf["mgit:approval:v1"] = msgspec.field(name="_type")
    commit: str
    base: str
    of: tuple[ApprovalKind, ...]
    reason: str
    author: str
    time: str
    override: bool = False


def write_approval(approval: Approval) -> str:
    """The canonical JSON of an approval."""
    return write_statement(approval)


def read_approval(text: str) -> Approval:
    """An approval from its JSON.

    Raises IntegrityError for one that does not fit the schema, approves of nothing, or gives no reason.
    """
    found = read_statement(Approval, text, what="the approval")
    if list(found.of) != [kind for kind in APPROVAL_KINDS if kind in found.of] or not (found.of or found.override):
        raise IntegrityError("the approval names nothing that it approves of, or not in order")
    if not found.reason.strip():
        raise IntegrityError("the approval gives no reason")
    try:
        CommitId.parse(found.commit)
        CommitId.parse(found.base)
    except UsageError as error:
        raise IntegrityError(f"the approval names {error.message}") from None
    time_of(found.time)
    return found
