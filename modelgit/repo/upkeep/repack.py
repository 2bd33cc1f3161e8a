"""`repack`: every object is coded again where that is smaller or quicker to read, and no id moves.

New records lie in sealed packs before an old one is given up; old packs then go through the same protocol as in a
garbage collection.  Whatever dies in between leaves two records of some objects, of which any can be read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, NamedTuple

from blake3 import blake3

from modelgit import __version__
from modelgit.codecs.base import Effort
from modelgit.errors import ConflictError, IntegrityError, MgitError
from modelgit.objects import BlobId, CommitId, ManifestId, Mask, MaskId, ObjectId, Record, Retention, TensorId, View
from modelgit.patching.chain import MAX_COST, anchor_of, chain_cost
from modelgit.patching.encode import TensorWriter
from modelgit.patching.jobs import StoredObject, StoreJob
from modelgit.patching.positions import Section
from modelgit.patching.recode import RecodingStore
from modelgit.patching.records import sections_of
from modelgit.progress import SILENT, Progress
from modelgit.repo.patches.masks import mask_sections
from modelgit.repo.upkeep.collection import REWRITE_ABOVE, Marking, imagined_packs, pack_sizes, place_of
from modelgit.repo.upkeep.gc import GcReport, finish_collection, tidy
from modelgit.repo.upkeep.pruned import pruned_commits
from modelgit.repo.upkeep.repack_plan import RepackItem, plan_repack
from modelgit.store.base import Located, is_external
from modelgit.store.durable import write_cache_file
from modelgit.store.metadata import read_metadata, read_record, write_metadata
from modelgit.store.session import PackSession

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["Reorganised", "RepackReport", "reorganise", "repack"]

_MARK_BYTES = 16


class RepackReport(Record, frozen=True, kw_only=True):
    """What a repacking did (or, dry, would do).

    `recoded` objects of `objects` got another record, `flattened` of them because reading them took too long and
    `reanchored` because they were coded against what nothing needs any more.  `bytes_before` and `bytes_after` are the
    sizes of all packs.
    """

    objects: int
    recoded: int
    flattened: int
    reanchored: int
    packs_before: int
    packs_rewritten: int
    packs_deleted: int
    bytes_before: int
    bytes_after: int
    operations_dropped: int
    effort: Effort
    dry_run: bool = False


class Reorganised(NamedTuple):
    """A repacking in detail: what it did, and what the collection at its end did."""

    report: RepackReport
    collected: GcReport


def repack(
    repo: Repository,
    *,
    effort: Effort | None = None,
    prune_now: bool = False,
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> RepackReport:
    """Code stored objects again with `effort` (that of the settings), against the best bases of their history.

    A record is replaced by a smaller one that is no slower to read than the bounds of `patching.chain` allow, by a
    larger one only where the present one passes these bounds or keeps an object alive that nothing else needs.
    `prune_now` forgets all operations but the current one first.  Raises ConflictError, with nothing changed, when a
    garbage collection took place meanwhile.
    """
    return reorganise(
        repo,
        effort=effort or repo.settings.storage.effort,
        prune_now=prune_now,
        pruned=pruned_commits(repo),
        dry_run=dry_run,
        progress=progress,
    ).report


def reorganise(
    repo: Repository,
    *,
    effort: Effort,
    prune_now: bool = False,
    pruned: Collection[CommitId] = (),
    expired: Collection[CommitId] = (),
    everything: bool = True,
    retention: Retention | None = None,
    still_right: Callable[[View], bool] | None = None,
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> Reorganised:
    """Code again, then collect garbage; without `everything` only what is coded against objects that nobody needs.

    `pruned`, `expired`, `retention` and `still_right` are those of `Marking` and `finish_collection`.
    """

    def look(**more: object) -> Marking:
        return Marking(repo, prune_now=prune_now, pruned=pruned, expired=expired, **more)  # type: ignore[arg-type]

    marking = look()
    marking.mark()
    session = None if dry_run else repo.session()
    try:
        work = _Recoding(repo, marking, session, effort, everything, progress)
        work.run()
        superseded, records = work.outcome()
        forced = {(key[0], key[1]) for key in work.changed} | _expired_manifests(repo, expired)
        above = 0.0 if everything or records or pruned or expired else REWRITE_ABOVE
        before = sum(marking.sizes.values())
        if work.has_moved_anchors:
            # Coding against fewer objects may cost more than giving up the others saves: then all stays as it is.
            imagined = look(superseded=superseded, added=records)
            would = finish_collection(repo, imagined, rewrite_above=above, forced=forced, dry_run=True)
            plain = finish_collection(repo, look(), rewrite_above=above, forced=forced, dry_run=True)
            if would.bytes_freed - sum(pack_sizes(records)) < plain.bytes_freed:
                work.forget()
                superseded, records = work.outcome()
                if session is not None:
                    session.abort()
        if dry_run:
            imagined = look(superseded=superseded, added=records)
            collected = finish_collection(repo, imagined, rewrite_above=above, forced=forced, dry_run=True)
            written = sum(pack_sizes(records))
            return Reorganised(work.report(collected, before, written), collected)
        with repo.writing():
            if session is not None and repo.roots.read().root.epoch != session.epoch:
                raise ConflictError(
                    "garbage was collected while objects were being coded again; nothing was changed",
                    hint="run the command again",
                )
            names = session.seal() if session is not None else []
            written = sum((repo.store.packs_path / name).stat().st_size for name in names)
            collected = finish_collection(
                repo,
                look(superseded=superseded),
                rewrite_above=above,
                forced=forced,
                retention=retention,
                still_right=still_right,
                progress=progress,
            )
            tidy(repo)
            repo.store.lookup.write_cache()
            work.remember()
    except BaseException:
        if session is not None:
            session.abort()
        raise
    return Reorganised(work.report(collected, before, written), collected)


def _expired_manifests(repo: Repository, expired: Collection[CommitId]) -> set[tuple[str, bytes]]:
    training = (repo.commit_at(commit).training for commit in expired)
    return {(manifest.KIND, manifest.digest) for manifest in training if manifest is not None}


class _Recoding:
    """The part that codes: wave by wave, so that what an item is compared with is settled before."""

    def __init__(
        self,
        repo: Repository,
        marking: Marking,
        session: PackSession | None,
        effort: Effort,
        everything: bool,
        progress: Progress,
    ) -> None:
        self._repo = repo
        self._marking = marking
        self._effort: Effort = effort
        self._everything = everything
        self._progress = progress
        self._dry = session is None
        self._plan = plan_repack(repo, marking)
        self._must_go: set[tuple[str, bytes]] = set(self._plan.tainted)
        self._reader = repo.reader()
        chosen = {key: marking.chosen_of(key) for key in marking.live}
        self._store = RecodingStore(
            repo.store,
            session,
            chosen,
            headroom=lambda key: self._plan.heights.get(key, 0.0),
            must_go=self._must_go,
        )
        self._sections = mask_sections(
            read_record(repo.store, MaskId(digest), Mask) for kind, digest in sorted(marking.needed) if kind == "mask"
        )
        self._readable: dict[tuple[str, bytes], bool] = {}
        self._known = self._read_marks() if everything else set()
        self._marks: set[bytes] = set()
        self._freed = False
        self._slow: set[tuple[str, bytes]] = set()
        self.changed: dict[tuple[str, bytes], ObjectId] = {}

    def run(self) -> None:
        """Code what is to be coded."""
        waves = [[item for item in wave if self._wanted(item)] for wave in self._plan.waves]
        self._progress.start("repack", sum(item.size for wave in waves for item in wave))
        writer = TensorWriter(
            self._store,
            threads=self._repo.threads,
            effort=self._effort,
            verify=True,
            reader=self._reader,
            progress=self._progress,
        )
        for wave in waves:
            jobs = []
            for item in wave:
                self._progress.check()
                if self._is_settled(item):
                    self._progress.advance("repack", item.size)
                else:
                    jobs.append(item)
            stored = writer.store([self._job(item) for item in jobs], task="repack")
            for item, done in zip(jobs, stored, strict=True):
                if done.id != item.id:
                    raise IntegrityError(
                        f"{item.name} ({item.id}) is damaged here", hint="`mgit fsck` shows what is affected"
                    )
            self._marks |= {self._mark(item) for item in wave}
        self._free_manifests()
        self.changed = {(item.id.KIND, item.id.digest): item.id for item in self._store.recoded}
        self._progress.finish("repack")

    def _free_manifests(self) -> None:
        """Write whole the manifests that are coded against one that nothing needs.

        A manifest of training state that is there says that all of it is there: it must not stay as a mere base.
        """
        for kind, digest in sorted(self._marking.needed):
            rows = self._marking.chosen_of((kind, digest)) if kind == "manifest" else []
            if any(row.base is not None and (kind, row.base) not in self._marking.needed for row in rows):
                self._must_go.add((kind, digest))
                self._freed = True
                manifest = ManifestId(digest)
                write_metadata(self._store, manifest, read_metadata(self._repo.store, manifest))

    def _wanted(self, item: RepackItem) -> bool:
        rows = self._marking.chosen_of(item.key)
        is_here = bool(item.size and rows) and not any(is_external(row) for row in rows)
        return is_here and (self._everything or item.key in self._must_go)

    def _is_settled(self, item: RepackItem) -> bool:
        """Whether nothing has to be tried: it can be read well enough, and was looked at before."""
        cost = chain_cost(self._store, item.id)
        if cost == float("inf") or not self._is_readable(item.key):
            return True  # damaged, or elsewhere: not ours to mend
        if cost > MAX_COST:
            self._slow.add(item.key)
        return item.key not in self._must_go and self._mark(item) in self._known

    def _job(self, item: RepackItem) -> StoreJob:
        anchors = (self._anchor(candidate) for candidate in item.candidates)
        found = [*item.candidates, *(anchor for anchor in anchors if anchor is not None)]
        bases = dict.fromkeys(base for base in found if self._is_readable((base.KIND, base.digest)))
        bases.pop(item.id, None)
        source = StoredObject(self._reader, item.id, item.spec)
        return StoreJob(item.name, source, item.spec, item.size, bases=tuple(bases), masks=tuple(self._masks(item)))

    def _masks(self, item: RepackItem) -> Iterator[Section]:
        """Positions that the record has now, and those of masks of the history for a tensor of that name."""
        if item.spec is not None:
            yield from sections_of(self._repo.store, item.id)
            yield from (section for spec, section in self._sections.get(item.name, ()) if spec == item.spec)

    def _is_readable(self, key: tuple[str, bytes]) -> bool:
        """Whether the object and what it is coded against are stored here, or lie elsewhere within reach."""
        known = self._readable.get(key)
        if known is None:
            rows = self._marking.chosen_of(key)
            known = bool(rows) and all(self._is_within_reach(row) for row in rows)
            self._readable[key] = known
        return known

    def _is_within_reach(self, row: Located) -> bool:
        if is_external(row):
            try:
                self._repo.store.foreign(row)
            except MgitError:
                return False
        return all(self._is_readable(key) for key in row.needs)

    def _anchor(self, candidate: TensorId | BlobId) -> TensorId | BlobId | None:
        anchor = anchor_of(self._store, candidate)
        return None if anchor is None or (anchor.KIND, anchor.digest) in self._plan.hidden else anchor

    def outcome(self) -> tuple[set[tuple[str, int]], list[Located]]:
        """Places of records that others replace, and these others as they would lie in packs."""
        superseded = {
            place_of(row)
            for key in self.changed
            for row in self._marking.records_of(key)
            if not row.is_leaf_table and not is_external(row)
        }
        return superseded, list(imagined_packs(row for item in self._store.recoded for row in item.after))

    @property
    def has_moved_anchors(self) -> bool:
        """Whether records may have become larger for nothing but the sake of what can be given up then."""
        return bool(self._plan.tainted & self.changed.keys()) and not self.flattened and not self._freed

    @property
    def flattened(self) -> set[tuple[str, bytes]]:
        """Objects that were coded again because reading them took too long."""
        return self._slow & self.changed.keys()

    def forget(self) -> None:
        """Nothing is to be replaced after all."""
        self._store.recoded.clear()
        self.changed = {}

    def report(self, collected: GcReport, before: int, written: int) -> RepackReport:
        """What it comes to."""
        return RepackReport(
            objects=sum(len(wave) for wave in self._plan.waves),
            recoded=len(self.changed),
            flattened=len(self.flattened),
            reanchored=len(self._plan.tainted & self.changed.keys()),
            packs_before=len(self._marking.sizes),
            packs_rewritten=collected.packs_rewritten,
            packs_deleted=collected.packs_deleted,
            bytes_before=before,
            bytes_after=before - collected.bytes_freed + written,
            operations_dropped=collected.operations_dropped,
            effort=self._effort,
            dry_run=self._dry,
        )

    # -- what was looked at before: a cache, so that a second repacking is quick

    def _mark(self, item: RepackItem) -> bytes:
        """Names an item with everything that decides how it is coded."""
        digest = blake3(f"{__version__} {self._effort} {item.id}".encode())
        for other in (item.id, *item.candidates):
            digest.update(f"{other} {chain_cost(self._store, other):.6f}".encode())
        for row in sorted(self._store.locate(item.id), key=lambda row: row.start):
            digest.update(f"{row.start} {row.length} {(row.base or b'').hex()} {(row.positions or b'').hex()}".encode())
        return digest.digest()[:_MARK_BYTES]

    def _read_marks(self) -> set[bytes]:
        try:
            data = self._repo.paths.repacked.read_bytes()
        except OSError:
            return set()
        if len(data) % _MARK_BYTES or blake3(data[:-_MARK_BYTES]).digest()[:_MARK_BYTES] != data[-_MARK_BYTES:]:
            return set()
        return {data[at : at + _MARK_BYTES] for at in range(0, len(data) - _MARK_BYTES, _MARK_BYTES)}

    def remember(self) -> None:
        """Write down what was looked at."""
        if self._everything:
            data = b"".join(sorted(self._marks))
            write_cache_file(self._repo.paths.repacked, data + blake3(data).digest()[:_MARK_BYTES])
