"""Every error that a user or a caller can meet, grouped by what a handler would do about it.

A message is one sentence that names the object; a hint is one command to type.  Nothing here formats for a
terminal: the command line does that, in one place.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "BugError",
    "CheckFailed",
    "CheckpointFormatError",
    "ConflictError",
    "ExternalAbsentError",
    "GateRefused",
    "IntegrityError",
    "LenderError",
    "MergeConflicts",
    "MgitError",
    "MissingExtraError",
    "NegativeAnswer",
    "NothingToDo",
    "RemoteError",
    "RepositoryError",
    "RootMoved",
    "UnknownRevision",
    "UsageError",
    "WeightsPruned",
    "did_you_mean",
]


class MgitError(Exception):
    """Root of all declared errors.

    `code` is stable and machine-readable, `exit_code` is what the command line returns, `hint` says what to type.
    """

    code = "error"
    exit_code = 70

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if hint:
            self.add_note(f"hint: {hint}")  # tracebacks in notebooks and scripts show it, too


class NegativeAnswer(MgitError):
    """The command worked and the answer is no (gate failed, conflicts, check failed)."""

    code = "negative"
    exit_code = 1


class GateRefused(NegativeAnswer):
    """The evaluation gate refused the candidate; nothing was recorded."""

    code = "gate-refused"


class MergeConflicts(NegativeAnswer):
    """A merge stopped at conflicts; the work tree is untouched."""

    code = "merge-conflicts"

    def __init__(self, message: str, *, hint: str | None = None, conflicts: tuple[object, ...] = ()) -> None:
        super().__init__(message, hint=hint)
        self.conflicts = conflicts


class CheckFailed(NegativeAnswer):
    """A check (fsck with findings is an IntegrityError; this is for policies and patches) did not pass."""

    code = "check-failed"


class NothingToDo(NegativeAnswer):
    """There was nothing to commit, undo, resolve or push."""

    code = "nothing-to-do"


class UsageError(MgitError):
    """The command or the call was put wrongly: a bad option, a bad name, a bad value."""

    code = "usage"
    exit_code = 2


class RepositoryError(MgitError):
    """The repository is not in a state in which this can be done."""

    code = "repository"
    exit_code = 3


class UnknownRevision(RepositoryError):
    """No commit, branch or tag answers to this name."""

    code = "unknown-revision"


class ConflictError(RepositoryError):
    """Somebody else changed the repository or holds it; try again."""

    code = "conflict"


class RootMoved(ConflictError):
    """The compare-and-swap of the root lost: another writer published first."""

    code = "root-moved"


class IntegrityError(MgitError):
    """Stored bytes are not what their id, checksum or declared size says."""

    code = "integrity"
    exit_code = 4


class WeightsPruned(IntegrityError):
    """The commit is there, and its weights were taken by retention: missing, and no damage."""

    code = "weights-pruned"


class LenderError(IntegrityError):
    """An object is borrowed, and the lender is gone, has changed, or gives other bytes than it did."""

    code = "lender"


class ExternalAbsentError(LenderError):
    """An object lies in a published model that is not on this machine; nothing is damaged."""

    code = "external-absent"


class RemoteError(MgitError):
    """A remote could not be reached, refused, or does not hold what it should."""

    code = "remote"
    exit_code = 5


class MissingExtraError(MgitError):
    """An optional dependency is needed and not installed."""

    code = "missing-extra"
    exit_code = 6


class CheckpointFormatError(MgitError):
    """A checkpoint file is malformed, hostile, or not what its name says."""

    code = "checkpoint-format"
    exit_code = 7


class BugError(MgitError):
    """modelgit broke one of its own promises."""

    code = "bug"
    exit_code = 70


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean `NEAREST`?` to end a message about an unknown name with; "" where no known one is near."""
    import difflib  # only where something went wrong

    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean `{near[0]}`?" if near else ""
