"""`borrow`: objects that lie elsewhere on this machine, or in a published model, and are not stored again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from modelgit.errors import IntegrityError, NothingToDo, RepositoryError, UsageError
from modelgit.objects import BlobId, ObjectId, Record, TensorId, TensorSpec, is_source
from modelgit.patching.foreign import Relied, settle
from modelgit.patching.jobs import StoredObject, StoreJob
from modelgit.patching.materialise import TensorReader
from modelgit.progress import SILENT, Progress
from modelgit.remotes.base import Needed
from modelgit.remotes.receive import copy_records, verify_objects
from modelgit.remotes.selection import select_records
from modelgit.repo.exchange.borrowers import register, unregister
from modelgit.repo.exchange.hub import pinned
from modelgit.repo.exchange.lending import hash_lender
from modelgit.repo.layout import METADATA
from modelgit.repo.upkeep.fsck import Finding, reachable_objects
from modelgit.repo.upkeep.reach import commit_roots, kept_objects
from modelgit.store.base import covers, is_external, is_foreign
from modelgit.store.lenders import LenderLine

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["AddedLender", "CopyReport", "LenderState", "add", "copy", "lenders", "remove", "update"]


class LenderState(Record, frozen=True, kw_only=True):
    """A lender: "store", "files" or "hub", where it is, whether it is there, and what was checked of it."""

    kind: str
    target: str
    there: bool
    objects: int
    bytes: int


class AddedLender(NamedTuple):
    """A lender, and sentences about files of it that cannot be lent."""

    state: LenderState
    skipped: tuple[str, ...] = ()


class CopyReport(Record, frozen=True, kw_only=True):
    """What was copied, and how many external objects stay where they are."""

    objects: int
    bytes_added: int
    external: int


class _Leaf(NamedTuple):
    id: TensorId | BlobId
    spec: TensorSpec | None
    name: str


def lenders(repo: Repository) -> list[LenderState]:
    """All lenders, in the order in which they are asked."""
    return [_state(repo, line) for line in repo.store.lenders.lines]


def add(repo: Repository, target: str, *, tell: bool = False, progress: Progress = SILENT) -> AddedLender:
    """Borrow from `target`: a repository, a directory with checkpoints, a Hugging Face cache, or `hf:org/name@COMMIT`.

    Files are read once, now.  Nothing is written there, but with `tell` the place of this repository, so that the
    garbage collection of a lending repository spares what is borrowed (see `repo.borrowers`).  Raises RepositoryError
    for what cannot lend, ExternalAbsentError when a published model is not on this machine.
    """
    line = _line(repo, target, progress)
    if tell and line.kind != "store":
        raise UsageError(f"{line.target} is no repository that could be told", hint=f"`mgit borrow add {target}`")
    with repo.writing(finish=False):
        if tell:
            register(repo, line)
        skipped = _hash(repo, line, progress)
        known = repo.store.lenders.lines
        if line not in known:
            repo.store.lenders.records.write((*known, line))
        repo.store.lenders.reload()
        return AddedLender(_state(repo, line), skipped)


def update(repo: Repository, target: str | None = None, *, progress: Progress = SILENT) -> list[AddedLender]:
    """Look at lenders (or at one) again: hash what changed, and compare what is borrowed with its ids."""
    lines = repo.store.lenders.lines if target is None else (_known(repo, target),)
    with repo.writing(finish=False):
        found = [(line, _hash(repo, line, progress)) for line in lines]
        repo.store.lenders.reload()
        if any(line.kind == "store" for line in lines):
            _check_stores(repo)
        return [AddedLender(_state(repo, line), skipped) for line, skipped in found]


def remove(repo: Repository, target: str, *, force: bool = False) -> LenderState:
    """Borrow no more.  Raises RepositoryError when something is only there, unless `force`."""
    line = _known(repo, target)
    with repo.writing(finish=False):
        state = _state(repo, line)
        remaining = tuple(item for item in repo.store.lenders.lines if item != line)
        if not force and line.kind != "hub":
            lost = _only_there(repo, line)
            if lost:
                raise RepositoryError(
                    f"{lost} object{'s' if lost > 1 else ''} of this repository can only be read from {line.target}",
                    hint="`mgit borrow copy` brings them here; `--force` gives them up",
                )
        unregister(repo, line)
        repo.store.lenders.records.write(remaining)
        repo.store.lenders.records.forget(line)
        repo.store.lenders.reload()
        return state


def copy(repo: Repository, *, external: bool = False, progress: Progress = SILENT) -> CopyReport:
    """Store everything here that is borrowed and still needed; with `external`, what lies in published models, too.

    Every object is compared with its id.  Raises LenderError when a lender is gone or has changed; what was stored
    until then stays out of sight.
    """
    with repo.writing(finish=False):
        records: list[Needed] = []
        again: list[_Leaf] = []
        left = 0
        for leaf in _leaves(repo):
            own = [item for item in repo.store.locate(leaf.id) if not is_foreign(item)]
            if covers(own):
                continue
            rows = repo.store.portable(leaf.id)
            if any(is_external(item) for item in rows):
                if external:
                    again.append(leaf)
                else:
                    left += 1
            elif any(":" in item.pack for item in rows):
                records.append(Needed(leaf.id, leaf.name, leaf.spec))
            elif rows:
                again.append(leaf)
            else:
                raise repo.store.absence(leaf.id)
        if not records and not again:
            raise NothingToDo(
                "nothing is borrowed" + (f" but {left} objects of published models" if left else ""),
                hint="`mgit borrow copy --external` copies these, too" if left else None,
            )
        return _copy(repo, records, again, left, progress)


def _copy(repo: Repository, records: list[Needed], again: list[_Leaf], left: int, progress: Progress) -> CopyReport:
    with repo.session() as session:
        session.borrows = "none"
        selection = select_records(
            lambda ids: {object_id: repo.store.portable(object_id) for object_id in ids},
            records,
            lambda ids: {object_id for object_id in ids if not session.has(object_id)},
            where="the lender",
            lacking=IntegrityError,
        )
        copy_records(repo.store.read_part, selection.records, session, task="copy", progress=progress)
        verify_objects(session, selection.items, threads=repo.threads, where="the lender", progress=progress)
        reader = repo.reader()
        writer = repo.writer(session, progress=progress)
        sources = [StoredObject(reader, leaf.id, leaf.spec) for leaf in again]
        progress.start("store", sum(source.spec.size_bytes for source in sources))
        jobs = (
            StoreJob(leaf.name, source, leaf.spec, source.spec.size_bytes)
            for leaf, source in zip(again, sources, strict=True)
        )
        for leaf, stored in zip(again, writer.store(jobs), strict=True):
            if stored.id != leaf.id:
                raise IntegrityError(f"{leaf.id.KIND} {leaf.id} ({leaf.name}) changed while it was being read")
        progress.finish("store")
        session.seal()
    return CopyReport(objects=len(selection.items) + len(again), bytes_added=session.bytes_written, external=left)


def _leaves(repo: Repository) -> Iterator[_Leaf]:
    """Tensors and blobs that anything reaches.  Raises IntegrityError when metadata is damaged."""
    findings: list[Finding] = []
    roots: set[ObjectId] = {*commit_roots(repo), *kept_objects(repo)}
    walk = reachable_objects(repo, roots, findings)
    if findings:
        raise IntegrityError(f"{findings[0].subject}: {findings[0].problem}", hint="`mgit fsck` shows all damage")
    for object_id, (spec, label) in walk.items():
        if isinstance(object_id, TensorId | BlobId):
            yield _Leaf(object_id, spec, label)


def _only_there(repo: Repository, line: LenderLine) -> int:
    known = repo.store.lenders.objects()
    lost = 0
    for leaf in _leaves(repo):
        found = {lender for lender, _ in known.get((leaf.id.KIND, leaf.id.digest), ())}
        if line in found and not covers(repo.store.locate_known(leaf.id)):
            others = {lender for lender in found - {line} if lender.kind != "hub"}
            lost += not any(repo.store.lenders.is_there(lender) for lender in others)
    return lost


def _check_stores(repo: Repository) -> None:
    """Compare what only lending repositories have with its ids, if that was never done or is forgotten."""
    with repo.session() as session:
        session.borrows = "any"
        relied = [
            Relied(leaf.id, leaf.spec, leaf.name)
            for leaf in _leaves(repo)
            if session.has(leaf.id) and leaf.id in session.unchecked
        ]
        settle(session, TensorReader, relied)
        session.seal()


def _hash(repo: Repository, line: LenderLine, progress: Progress) -> tuple[str, ...]:
    if line.kind == "store":
        return ()
    root = repo.store.lenders.root_of(line)
    if root is None or not root.is_dir():
        raise RepositoryError(f"the lender {line.target} is not there", hint=f"`mgit borrow remove {line.target}`")
    known = tuple(repo.store.lenders.records.tables(line))
    hashed = hash_lender(root, known=known, threads=repo.threads, progress=progress)
    repo.store.lenders.records.add_table(line, hashed.table, replace=True)
    return hashed.skipped


def _line(repo: Repository, target: str, progress: Progress) -> LenderLine:
    if is_source(target):
        return LenderLine("hub", str(pinned(repo.environment, target, progress)))
    path = (repo.environment.cwd / target).resolve()
    for folder in (path / METADATA, path):
        if (folder / "format").is_file():
            if folder.resolve() == repo.paths.directory.resolve():
                raise UsageError(
                    "a repository cannot borrow from itself", hint="`mgit borrow list` shows whom it borrows from"
                )
            return _checked(LenderLine("store", str(folder)))
    if not path.is_dir():
        raise RepositoryError(
            f"there is no directory {path}", hint="name a repository, a directory of checkpoints, or hf:org/name@COMMIT"
        )
    if repo.paths.worktree is not None and path.is_relative_to(repo.paths.worktree.resolve()):
        raise UsageError(
            f"{target} lies in this repository's own work tree, which changes", hint="`mgit track` records it"
        )
    return _checked(LenderLine("files", str(path)))


def _checked(line: LenderLine) -> LenderLine:
    if not line.target.isprintable():
        raise UsageError(f"the path of a lender cannot hold control characters: {line.target!a}")
    return line


def _known(repo: Repository, target: str) -> LenderLine:
    wanted = {
        target,
        str((repo.environment.cwd / target).resolve()),
        str((repo.environment.cwd / target / METADATA).resolve()),
    }
    for line in repo.store.lenders.lines:
        if line.target in wanted:
            return line
    known = ", ".join(line.target for line in repo.store.lenders.lines)
    raise UsageError(
        f"nothing is borrowed from {target}", hint=f"lenders: {known}" if known else "`mgit borrow add PATH`"
    )


def _state(repo: Repository, line: LenderLine) -> LenderState:
    items = [item for found in repo.store.lenders.objects().values() for lender, item in found if lender == line]
    return LenderState(
        kind=line.kind,
        target=line.target,
        there=repo.store.lenders.is_there(line),
        objects=len({(item.kind, item.digest) for item in items}),
        bytes=sum({(item.kind, item.digest): item.size for item in items}.values()),
    )
