"""`fetch --repair`: objects that are damaged or missing here come from a remote; what is still sound is kept."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from modelgit.errors import IntegrityError, MgitError, RepositoryError
from modelgit.objects import BlobId, ObjectId, Record, TensorId, TensorSpec, id_class
from modelgit.patching.base import TensorReads
from modelgit.patching.encode import TensorWriter
from modelgit.patching.jobs import StoredObject, StoreJob
from modelgit.progress import SILENT, Progress
from modelgit.remotes.sync import fetch as fetch_objects
from modelgit.repo.exchange.remote import open_remote
from modelgit.repo.upkeep.fsck import Finding, reachable_objects
from modelgit.repo.upkeep.gc import retire_packs
from modelgit.repo.upkeep.pruned import pruned_commits
from modelgit.store.metadata import read_metadata, write_metadata
from modelgit.store.packs import read_index, verify_pack
from modelgit.store.session import PackSession

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["RepairReport", "repair"]


class RepairReport(Record, frozen=True, kw_only=True):
    """What was wrong, and what came from where.

    `packs` were damaged and are gone now; `salvaged` objects were still sound in them; `fetched` came from the remote.
    """

    packs: tuple[str, ...] = ()
    salvaged: int = 0
    fetched: int = 0
    bytes_received: int = 0


def repair(repo: Repository, remote: str, *, progress: Progress = SILENT) -> RepairReport:
    """Replace damaged packs, and bring objects that are missing, from `remote`.

    Whatever is still sound in a damaged pack is written again; the rest is fetched and checked against its id.  Only
    then are the damaged packs retired.  Raises IntegrityError or RemoteError, with nothing taken away, when the remote
    lacks something too.
    """
    with repo.writing(finish=False):
        damaged = _damaged_packs(repo, progress)
        findings: list[Finding] = []
        tips = repo.view().tips  # what only `undo` could reach is salvaged, not fetched
        roots: set[ObjectId] = set(tips)
        walk = reachable_objects(repo, roots, findings)
        salvaged = _salvage(repo, damaged, _with_needed(repo, walk), progress)
        transport = open_remote(repo, remote)
        try:
            root = repo.roots.read().root
            session = repo.store.session(epoch=root.epoch, condemned={*root.condemned, *damaged})
            result = fetch_objects(
                session,
                transport,
                tips,
                have=(),
                pruned=pruned_commits(repo),
                remote=remote,
                threads=repo.threads,
                progress=progress,
            )
        finally:
            transport.close()
        if damaged:
            retire_packs(repo, repo.roots.read(), sorted(damaged))
        return RepairReport(
            packs=tuple(sorted(damaged)),
            salvaged=salvaged,
            fetched=result.objects,
            bytes_received=result.bytes_received,
        )


def _damaged_packs(repo: Repository, progress: Progress) -> set[str]:
    repo.store.lookup.refresh()
    packs = sorted(repo.store.lookup.packs())
    damaged = set()
    progress.start("check packs", len(packs), unit="packs")
    for name in packs:
        progress.check()
        try:
            verify_pack(repo.store.packs_path / name)
            for _ in read_index(repo.store.packs_path / name):
                pass
        except (IntegrityError, RepositoryError):
            damaged.add(name)
        progress.advance("check packs", 1)
    progress.finish("check packs")
    return damaged


def _with_needed(
    repo: Repository, walk: dict[ObjectId, tuple[TensorSpec | None, str]]
) -> dict[ObjectId, tuple[TensorSpec | None, str]]:
    """`walk`, and what only records of these objects name: bases, and positions of masks."""
    found = dict(walk)
    pending = list(walk)
    while pending:
        object_id = pending.pop()
        spec, label = found[object_id]
        for kind, digest in {key for item in repo.store.locate(object_id) for key in item.needs}:
            needed = id_class(kind)(digest)
            if needed not in found:
                found[needed] = (spec if kind == object_id.KIND else None, label)
                pending.append(needed)
    return found


def _salvage(
    repo: Repository,
    damaged: set[str],
    walk: dict[ObjectId, tuple[TensorSpec | None, str]],
    progress: Progress,
) -> int:
    """Write sound objects that only damaged packs hold into new packs; returns how many."""
    if not damaged:
        return 0
    root = repo.roots.read().root
    reader = repo.reader()
    count = 0
    with repo.store.session(epoch=root.epoch, condemned={*root.condemned, *damaged}) as session:
        for object_id, (spec, label) in walk.items():
            progress.check()
            if session.has(object_id) or not repo.store.has(object_id):
                continue
            with contextlib.suppress(MgitError):  # then it has to come from the remote
                if isinstance(object_id, (TensorId, BlobId)):
                    reader.verify(object_id, spec)
                    _store_again(session, reader, object_id, spec, label)
                else:
                    write_metadata(session, object_id, read_metadata(repo.store, object_id))
                count += 1
        session.seal()
    return count


def _store_again(
    session: PackSession, reader: TensorReads, object_id: TensorId | BlobId, spec: TensorSpec | None, label: str
) -> None:
    source = StoredObject(reader, object_id, spec)
    job = StoreJob(label, source, spec, source.spec.size_bytes)
    for stored in TensorWriter(session, threads=1).store([job]):
        if stored.id != object_id:
            raise IntegrityError(f"object {object_id} changed while it was being read")
