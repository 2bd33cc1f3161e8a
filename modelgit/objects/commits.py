"""Commits."""

from __future__ import annotations

from modelgit.objects.canonical import Record
from modelgit.objects.evaluations import Decision
from modelgit.objects.ids import CommitId, EvalRecordId, FisherId, ManifestId, PatchId

__all__ = ["Commit", "MergeRecipe", "Signature", "UsedFisher", "Verdict"]


class Signature(Record, frozen=True, kw_only=True):
    """Who and when: `name` and `mail`, seconds since the epoch (UTC) and the author's offset in minutes."""

    name: str
    mail: str
    time_s: int
    offset_min: int = 0

    def __str__(self) -> str:
        return f"{self.name} <{self.mail}>"


class UsedFisher(Record, frozen=True, kw_only=True):
    """Where the Fisher information of one side of a merged model came from.

    `how` is `kept`, `received` (from a remote), `made` (for this merge) or `none`; `words` say more, for people.
    """

    model: str
    side: str
    how: str
    words: str
    estimate: FisherId | None = None


class MergeRecipe(Record, frozen=True, kw_only=True):
    """How a merge commit was made: enough to make it again, bit for bit.

    `strategy` and `rules` are those that ran: `average` where `fisher` was asked for and no side had an estimate.
    `theirs` is the commit whose side was taken in where that is no parent: of a cherry-pick, revert or rebase.
    """

    base: CommitId | None
    strategy: str
    options: dict[str, float | int | str | bool] = {}
    rules: dict[str, str] = {}
    resolutions: dict[str, str] = {}
    statistics: dict[str, str] = {}
    fishers: tuple[UsedFisher, ...] = ()
    theirs: CommitId | None = None


class Verdict(Record, frozen=True, kw_only=True):
    """The verdict of one suite: its last word, so that a log need not open the `record`."""

    suite: str
    decision: Decision
    record: EvalRecordId


class Commit(Record, frozen=True, kw_only=True):
    """A patch with a proof: parents, the manifest (the proof) and the patch (what changed).

    `verdicts` are those that let the commit in; `trailers` are key/value notes, `recipe` tells how a merge
    was made.  `training` names the files of training state that were recorded beside the model; it may be absent from a
    store that has the commit.  `signature` is an ssh signature over the canonical bytes of the commit without it.
    """

    parents: tuple[CommitId, ...]
    manifest: ManifestId
    patch: PatchId
    author: Signature
    committer: Signature
    message: str
    trailers: dict[str, str] = {}
    verdicts: tuple[Verdict, ...] = ()
    recipe: MergeRecipe | None = None
    signature: str | None = None
    training: ManifestId | None = None

    @property
    def subject(self) -> str:
        """The first line of the message."""
        return self.message.split("\n", 1)[0]
