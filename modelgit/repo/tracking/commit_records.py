"""The records of a commit: manifest, patch, verdicts and the commit itself, appended to a session in this order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from modelgit.errors import RepositoryError
from modelgit.objects import (
    Commit,
    CommitId,
    EvalRecord,
    EvalRecordId,
    Manifest,
    ManifestId,
    MaskId,
    MergeRecipe,
    Patch,
    PatchId,
    Verdict,
    encode,
)
from modelgit.objects.paths import find_twins
from modelgit.patching.jobs import Stored
from modelgit.repo.changes import Changes
from modelgit.repo.tracking.training import TrainingState
from modelgit.store.metadata import write_metadata, write_record
from modelgit.store.session import PackSession

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["NO_TRAINING_STATE", "CommitResult", "count_encodings", "write_commit"]

NO_TRAINING_STATE = TrainingState()


class CommitResult(NamedTuple):
    """A commit that was made.

    `encodings` counts changed tensors by codec; `bytes_added` is what the records take in the store; `raw_bytes` is the
    size of the whole tree; `evaluations` are the verdicts that let it in; `training` has the files of training state
    recorded beside the tree, which take `training_bytes` of `bytes_added`; `unmatched` are the modules of declared
    adapters that no tensor is the weight of.
    """

    id: CommitId
    branch: str | None
    commit: Commit
    patch: Patch
    manifest: Manifest
    encodings: dict[str, int]
    bytes_added: int
    raw_bytes: int
    evaluations: tuple[EvalRecord, ...]
    is_first: bool
    training: Manifest = Manifest()
    training_bytes: int = 0
    unmatched: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """One line: a notebook shows what its last expression gives, and a manifest fills pages."""
        tensors = len(self.patch.tensors)
        where = self.branch or "detached"
        return f"CommitResult({self.id.short} on {where}, {tensors} tensors changed, {self.bytes_added} bytes added)"


def write_commit(
    repo: Repository,
    session: PackSession,
    manifest: Manifest,
    before: Manifest,
    changes: Changes,
    *,
    message: str,
    parents: tuple[CommitId, ...],
    author: str | None = None,
    evaluations: Sequence[EvalRecord] = (),
    masks: tuple[MaskId, ...] = (),
    recipe: MergeRecipe | None = None,
    trailers: Mapping[str, str] | None = None,
    encodings: Mapping[str, int] | None = None,
    training: TrainingState = NO_TRAINING_STATE,
    exact: bool = True,
) -> CommitResult:
    """Append manifest, patch, verdicts and commit to the session; the caller seals it and moves the root.

    Raises RepositoryError for paths that cannot lie beside each other: nobody could check such a commit out.
    """
    _refuse_twins(manifest)
    base = None
    if parents:
        old = encode(before)
        base = (ManifestId.of(old), old)
    data = encode(manifest)
    manifest_id = ManifestId.of(data)
    if not session.has(manifest_id):
        write_metadata(session, manifest_id, data, base=base)
    patch = Patch(
        base=base[0] if base else None,
        tensors=changes.tensors,
        files=changes.files,
        masks=masks,
        exact=exact,
        bytes_added=session.bytes_written,
    )
    patch_id = write_record(session, PatchId, patch)
    verdicts = tuple(
        Verdict(suite=record.suite, decision=record.decision, record=write_record(session, EvalRecordId, record))
        for record in evaluations
    )
    signature = repo.signature(author=author)
    made = Commit(
        parents=parents,
        manifest=manifest_id,
        patch=patch_id,
        author=signature,
        committer=repo.signature(),
        message=message.rstrip() + ("\n" if "\n" in message.rstrip() else ""),
        trailers=dict(trailers or {}),
        verdicts=verdicts,
        recipe=recipe,
        training=training.id,
    )
    commit_id = write_record(session, CommitId, made)
    return CommitResult(
        id=commit_id,
        branch=None,
        commit=made,
        patch=patch,
        manifest=manifest,
        encodings=dict(encodings or {}),
        bytes_added=patch.bytes_added,
        raw_bytes=sum(entry.size for entry in manifest.files),
        evaluations=tuple(evaluations),
        is_first=not parents,
        training=training.manifest,
    )


def _refuse_twins(manifest: Manifest) -> None:
    twins = find_twins(entry.path for entry in manifest.files)
    if twins is None:
        return
    first, second = sorted(twins)
    if second.startswith(f"{first}/"):
        problem = f"{first!a} would be a file and, because of {second!a}, a directory"
    else:
        problem = f"{first!a} and {second!a} are one name on file systems that ignore case or Unicode form"
    raise RepositoryError(problem, hint="rename one of them (in a merge: on its branch), then run the command again")


def count_encodings(stored: Mapping[str, Sequence[Stored]]) -> dict[str, int]:
    """How many tensors were written, by codec."""
    counted = Counter(
        item.codec for items in stored.values() for item in items if item.id.KIND == "tensor" and item.codec != "known"
    )
    return dict(sorted(counted.items()))
