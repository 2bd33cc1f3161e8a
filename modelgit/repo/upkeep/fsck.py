"""`fsck`: every byte of every pack, every object that anything reaches, rebuilt and compared with its id."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING

from modelgit.errors import ExternalAbsentError, MgitError
from modelgit.objects import (
    BlobId,
    CommitId,
    ContentId,
    EvalRecord,
    EvalRecordId,
    FileContent,
    Literal,
    ManifestId,
    ObjectId,
    Record,
    TensorId,
    TensorSpec,
    id_class,
)
from modelgit.parallel import Workers
from modelgit.patching.files import check_table
from modelgit.progress import SILENT, Progress
from modelgit.repo.upkeep.pruned import pruned_commits
from modelgit.repo.upkeep.reach import children_of, commit_roots, damaged_mask_files, kept_objects
from modelgit.store.base import covers, is_external, is_foreign
from modelgit.store.metadata import read_record
from modelgit.store.packs import verify_pack

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["Finding", "FsckReport", "fsck", "reachable_objects"]


class Finding(Record, frozen=True, kw_only=True):
    """Something that is wrong: the object or pack, what it is called where it is used, and how it was noticed."""

    subject: str
    problem: str
    used_by: str = ""
    commits: int = 0


class FsckReport(Record, frozen=True, kw_only=True):
    """What was looked at, and what was found.

    `training_absent` counts commits whose training state is not kept here, `pruned` those whose weights retention took:
    no damage either.

    `borrowed` objects lie with lenders, `external` ones in published models; `absent` are those of them that are not on
    this machine, which is no damage.
    """

    packs: int
    objects: int
    commits: int
    operations: int
    findings: tuple[Finding, ...] = ()
    borrowed: int = 0
    external: int = 0
    absent: tuple[Finding, ...] = ()
    training_absent: int = 0
    pruned: int = 0

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings


def fsck(repo: Repository, *, quick: bool = False, progress: Progress = SILENT) -> FsckReport:
    """Check the repository; `quick` checks that everything is present without rebuilding tensors."""
    findings: list[Finding] = []
    repo.store.lookup.refresh()
    packs = sorted(repo.store.lookup.packs())
    progress.start("packs", len(packs), unit="packs")
    for name in packs:
        progress.check()
        if not quick:
            _collect(findings, f"pack {name[:16]}", "", partial(verify_pack, repo.store.packs_path / name))
        progress.advance("packs", 1)
    progress.finish("packs")
    roots = _roots(repo, findings)
    findings += [
        Finding(
            subject=f"mask file {file.name}", problem="it does not hold the id of a mask: give the mask a name again"
        )
        for file in damaged_mask_files(repo)
    ]
    operations = _count_operations(repo)
    walk = reachable_objects(repo, roots, findings)
    commits = sum(isinstance(object_id, CommitId) for object_id in walk)
    leaves = [
        (object_id, spec, label)
        for object_id, (spec, label) in walk.items()
        if isinstance(object_id, (TensorId, BlobId))
    ]
    progress.start("objects", len(leaves), unit="objects")
    reader = repo.reader()

    where: Counter[str] = Counter()
    absent: list[Finding] = []

    def check(leaf: tuple[ObjectId, TensorSpec | None, str]) -> tuple[str, Finding | None]:
        object_id, spec, label = leaf
        progress.check()
        place = ""
        try:
            records = [item for item in repo.store.locate(object_id) if not item.is_leaf_table]
            if not covers(records):
                raise repo.store.absence(object_id)
            if all(is_external(item) for item in records):
                place = "external"
                repo.store.foreign(records[0])
            elif any(is_foreign(item) and not is_external(item) for item in records):
                place = "borrowed"
            for kind, digest in (key for item in records for key in item.needs):
                needed = id_class(kind)(digest)
                if not repo.store.has(needed):
                    raise repo.store.absence(needed)
            if not quick and isinstance(object_id, (TensorId, BlobId)):
                reader.verify(object_id, spec)
        except ExternalAbsentError as error:
            return place or "absent", Finding(subject=str(object_id), problem=error.message, used_by=label)
        except MgitError as error:
            return "damage", Finding(subject=str(object_id), problem=error.message, used_by=label)
        finally:
            progress.advance("objects", 1)
        return place, None

    with Workers(repo.threads, name="mgit-fsck") as workers:
        for place, finding in workers.ordered(check, leaves, ahead=4 * repo.threads):
            where[place] += 1
            if finding is not None:
                (findings if place == "damage" else absent).append(finding)
    progress.finish("objects")
    damaged = {finding.subject for finding in (*findings, *absent)}
    for object_id, (_, label) in walk.items():
        if isinstance(object_id, ContentId) and not quick:
            _collect(findings, str(object_id), label, partial(_check_content, repo, object_id, label, damaged, walk))
    pruned = _pruned(repo, [])
    training_absent = sum(_lacks_training(repo, item) for item in walk if str(item) not in damaged)
    return FsckReport(
        packs=len(packs),
        objects=len(walk),
        commits=commits,
        operations=operations,
        findings=tuple(_with_users(repo, findings, roots)),
        borrowed=where["borrowed"],
        external=where["external"],
        absent=tuple(absent),
        training_absent=training_absent,
        pruned=sum(isinstance(item, CommitId) and item in pruned for item in walk),
    )


def _lacks_training(repo: Repository, object_id: ObjectId) -> bool:
    if not isinstance(object_id, CommitId):
        return False
    training = repo.commit_at(object_id).training
    return training is not None and not repo.store.has(training)


def _collect(findings: list[Finding], subject: str, label: str, work: Callable[[], object]) -> bool:
    try:
        work()
    except MgitError as error:
        findings.append(Finding(subject=subject, problem=error.message, used_by=label))
        return False
    return True


def _check_content(
    repo: Repository, object_id: ContentId, label: str, damaged: set[str], walk: Collection[ObjectId]
) -> None:
    """Compare a file's tensor table with its header, unless it is known why they cannot agree, or it was pruned."""
    if str(object_id) in damaged:
        return
    if any(str(child) in damaged or child not in walk for child, _ in children_of(repo, object_id)):
        return
    check_table(repo.reader(), read_record(repo.store, object_id, FileContent), shown=label or str(object_id))


def _roots(repo: Repository, findings: list[Finding]) -> set[ObjectId]:
    roots: set[ObjectId] = set()
    try:
        roots |= commit_roots(repo)
    except MgitError as error:
        findings.append(Finding(subject="operations", problem=error.message))
        with contextlib.suppress(MgitError):  # then the packs are all that can be checked
            roots |= set(repo.view().refs.values())
    try:
        return roots | kept_objects(repo)
    except MgitError as error:
        findings.append(Finding(subject="statistics", problem=error.message))
        return roots


def _count_operations(repo: Repository) -> int:
    count = 0
    with contextlib.suppress(MgitError):  # what is damaged is among the findings
        for _ in repo.operations.history(repo.roots.read().root.operation):
            count += 1
    return count


def reachable_objects(
    repo: Repository, roots: set[ObjectId], findings: list[Finding]
) -> dict[ObjectId, tuple[TensorSpec | None, str]]:
    """Everything reachable, as far as records can be read; what cannot be read is a finding, not the end."""
    seen: dict[ObjectId, tuple[TensorSpec | None, str]] = dict.fromkeys(roots, (None, ""))
    pruned = _pruned(repo, findings)
    thin: list[ManifestId] = []
    pending = sorted(roots)
    while pending:
        object_id = pending.pop()
        if isinstance(object_id, (TensorId, BlobId)):
            continue
        try:
            children = list(children_of(repo, object_id))
            if isinstance(object_id, EvalRecordId):
                read_record(repo.store, object_id, EvalRecord)
            if isinstance(object_id, CommitId) and object_id in pruned:
                manifest = repo.commit_at(object_id).manifest
                children = [child for child in children if child[0] != manifest]
                thin.append(manifest)
        except MgitError as error:
            findings.append(Finding(subject=str(object_id), problem=error.message, used_by=seen[object_id][1]))
            continue
        names = _names(repo, object_id)
        for child, spec in children:
            if child not in seen:
                seen[child] = (spec, names.get(child, seen[object_id][1]))
                pending.append(child)
        while not pending and thin:
            pending += _thin_files(repo, thin.pop(), seen, findings)
    return seen


def _pruned(repo: Repository, findings: list[Finding]) -> Collection[CommitId]:
    try:
        return pruned_commits(repo)
    except MgitError as error:
        findings.append(Finding(subject="retention", problem=error.message))
        return ()


def _thin_files(
    repo: Repository,
    manifest_id: ManifestId,
    seen: dict[ObjectId, tuple[TensorSpec | None, str]],
    findings: list[Finding],
) -> list[ObjectId]:
    """What is left of a manifest that pruned commits alone have: all but the contents of its weights; what to walk."""
    if manifest_id in seen:
        return []
    seen[manifest_id] = (None, "")
    try:
        manifest = repo.manifest_at(manifest_id)
    except MgitError as error:
        findings.append(Finding(subject=str(manifest_id), problem=error.message))
        return []
    weights = {path for model in manifest.models for path in model.weights}
    fresh: list[ObjectId] = []
    for entry in manifest.files:
        if entry.digest in seen:
            continue
        seen[entry.digest] = (None, entry.path)
        if entry.path not in weights:
            fresh.append(entry.digest)
        else:
            _collect(
                findings, str(entry.digest), entry.path, partial(read_record, repo.store, entry.digest, FileContent)
            )
    return fresh


def _names(repo: Repository, object_id: ObjectId) -> dict[ObjectId, str]:
    """What people call the children of a manifest or file."""
    from modelgit.objects import Manifest
    from modelgit.store.metadata import read_record

    if isinstance(object_id, ManifestId):
        return {entry.digest: entry.path for entry in read_record(repo.store, object_id, Manifest).files}
    if isinstance(object_id, ContentId):
        return {tensor.id: tensor.name for tensor in read_record(repo.store, object_id, FileContent).tensors}
    return {}


def _with_users(repo: Repository, findings: list[Finding], roots: set[ObjectId]) -> list[Finding]:
    """Count the commits that each damaged object is part of: people want to know what they lose."""
    if not findings:
        return []
    import msgspec

    wanted = {finding.subject for finding in findings}
    counts = dict.fromkeys(wanted, 0)
    for commit in _readable_commits(repo, roots):
        try:
            manifest = repo.manifest_of(commit)
        except MgitError:
            continue
        inside: set[str] = set()
        for entry in manifest.files:
            inside.add(str(entry.digest))
            try:
                content = repo.content_at(entry.digest)
            except MgitError:
                continue
            inside |= {str(tensor.id) for tensor in content.tensors}
            inside |= {str(segment.blob) for segment in content.segments if isinstance(segment, Literal)}
        for subject in wanted & inside:
            counts[subject] += 1
    return [msgspec.structs.replace(finding, commits=counts[finding.subject]) for finding in findings]


def _readable_commits(repo: Repository, roots: set[ObjectId]) -> set[CommitId]:
    seen: set[CommitId] = set()
    pending = [root for root in roots if isinstance(root, CommitId)]
    while pending:
        commit = pending.pop()
        if commit in seen:
            continue
        try:
            parents = repo.parents_of(commit)
        except MgitError:
            continue
        seen.add(commit)
        pending += parents
    return seen
