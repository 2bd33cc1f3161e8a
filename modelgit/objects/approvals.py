"""Approvals: leave of an owner for one commit to replace one tip of a branch, or to become a tag."""

from __future__ import annotations

from typing import Literal as OneOf

import msgspec

from modelgit.errors import IntegrityError, UsageError
from modelgit.objects.ids import CommitId
from modelgit.objects.policies import APPROVAL_KINDS, ApprovalKind
from modelgit.objects.refs import BRANCHES, TAGS, check_view_ref
from modelgit.objects.statements import Plain, read_statement, time_of, write_statement

__all__ = ["Approval", "read_approval", "write_approval"]


class Approval(Plain, frozen=True, kw_only=True):
    """Leave for `ref` to move to `commit`, which changes what the kinds `of` name over `base`.

    `ref` is the full name of a branch or a tag as a remote has it (`heads/main`), `policies` are the names of those
    that the leave is for, sorted; in statements of version 1, which count for nothing, there is neither.  `base` is the
    commit whose policies count: the tip that is replaced.  With `override` the commit may land whatever these policies
    say.
    """

    statement_type: OneOf["mgit:approval:v1", "mgit:approval:v2"] = msgspec.field(name="_type")
    commit: str
    base: str
    of: tuple[ApprovalKind, ...]
    reason: str
    author: str
    time: str
    override: bool = False
    ref: str = ""
    policies: tuple[str, ...] = ()


def write_approval(approval: Approval) -> str:
    """The canonical JSON of an approval."""
    return write_statement(approval)


def read_approval(text: str) -> Approval:
    """An approval from its JSON.

    Raises IntegrityError for one that does not fit the schema, approves of nothing, is for no branch or tag, or gives
    no reason.
    """
    found = read_statement(Approval, text, what="the approval")
    if list(found.of) != [kind for kind in APPROVAL_KINDS if kind in found.of] or not (found.of or found.override):
        raise IntegrityError("the approval names nothing that it approves of, or not in order")
    if not found.reason.strip():
        raise IntegrityError("the approval gives no reason")
    try:
        CommitId.parse(found.commit)
        CommitId.parse(found.base)
        if found.statement_type != "mgit:approval:v1":
            check_view_ref(found.ref)
    except UsageError as error:
        raise IntegrityError(f"the approval names {error.message}") from None
    if found.statement_type == "mgit:approval:v1":
        if found.ref or found.policies:
            raise IntegrityError("the approval is of version 1, and says what only later ones can")
    elif not found.ref.startswith((BRANCHES, TAGS)) or list(found.policies) != sorted(set(found.policies) - {""}):
        raise IntegrityError("the approval is for no branch or tag, or its policies are not in order")
    elif not found.policies:
        raise IntegrityError("the approval names no policy that it is for")
    time_of(found.time)
    return found
