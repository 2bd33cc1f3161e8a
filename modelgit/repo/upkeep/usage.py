"""`du`: what every byte of the packs is for.  The rows of every view add up to the size of the packs on disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from modelgit.errors import MgitError
from modelgit.objects import BlobId, CommitId, MaskId, Record, TensorId
from modelgit.objects.graph import ancestors
from modelgit.patching.chain import chain_cost
from modelgit.repo.upkeep.collection import Key, Marking, place_of
from modelgit.repo.upkeep.origins import MaskNames, Origin, commits_in_order, origins_of
from modelgit.repo.upkeep.pruned import pruned_commits
from modelgit.repo.upkeep.reach import kept_objects, merge_roots, needed_objects
from modelgit.store.base import Located, is_external

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["Grouping", "TensorUse", "Usage", "UsageRow", "codec_of", "usage"]

Grouping = Literal["kind", "tensor", "file", "commit", "pack", "ref"]
GARBAGE, BASES, UNDO, INDEX, REST = (
    "garbage (`mgit gc`)",
    "only as bases (`mgit repack`)",
    "only for undo (`mgit gc --prune=now`)",
    "pack headers and indices",
    "everything else",
)


class TensorUse(Record, frozen=True, kw_only=True):
    """How a tensor is stored: codec, base (None: whole), cost of reading in passes over it, raw and stored bytes.

    `mask` is the mask that its positions come from, or the blob that holds them.
    """

    codec: str
    base: str | None
    base_commit: CommitId | None
    cost: float
    raw_bytes: int
    mask: MaskId | BlobId | None = None


class UsageRow(Record, frozen=True, kw_only=True):
    """One row.

    `bytes` of all rows add up to the total, but for rows by ref, where they are what would be freed if only that ref
    went.  By commit, `bytes` are what the commit brought, `unique` what no other commit needs, `shared` what others
    need as well.
    """

    name: str
    bytes: int
    objects: int = 0
    detail: str = ""
    unique: int | None = None
    shared: int | None = None
    tensor: TensorUse | None = None


class Usage(Record, frozen=True, kw_only=True):
    """The rows, largest first, the size of all packs, and what lies beside the packs by directory."""

    by: Grouping
    rows: tuple[UsageRow, ...]
    total: int
    beside: dict[str, int]


def usage(repo: Repository, revisions: Sequence[str] = (), *, by: Grouping = "kind") -> Usage:
    """Account for every byte of the packs; with `revisions`, what they need by name and the rest in one row."""
    account = _Account(repo, {repo.resolve(revision) for revision in revisions})
    rows: list[UsageRow] = getattr(account, f"by_{by}")()
    return Usage(
        by=by,
        rows=tuple(sorted(rows, key=lambda row: (-row.bytes, row.name))),
        total=sum(account.marking.sizes.values()),
        beside=_beside(repo.paths.directory),
    )


class _Account:
    def __init__(self, repo: Repository, wanted: set[CommitId]) -> None:
        self._repo = repo
        self._pruned = pruned_commits(repo)
        self.marking = marking = Marking(repo, pruned=self._pruned)
        marking.mark()
        view = repo.view()
        tips = view.tips | merge_roots(repo)
        self._now = set(ancestors(tips, repo.parents_of))
        everything = {CommitId(digest) for kind, digest in marking.needed if kind == "commit"}
        self._commits = commits_in_order(repo, everything)
        current = [commit for commit in self._commits if commit in self._now]
        undone = [commit for commit in self._commits if commit not in self._now]
        self.origins = origins_of(repo, set(marking.needed), [*current, *undone])
        self._only: set[Key] | None = None
        if wanted:
            self._only = set()
            for commit in wanted:
                self._only |= self._keys_of(commit)
        self._masks = MaskNames(repo, self._commits)
        self._positions = {(BlobId.KIND, item.positions) for item in marking.chosen.values() if item.positions}
        self._sizes: dict[Key, int] = {}
        for rows in marking.packs.values():
            for item in rows:
                if place_of(item) in marking.chosen:
                    key = (item.kind, item.digest)
                    self._sizes[key] = self._sizes.get(key, 0) + item.length

    # -- partitions: every record is in one row

    def by_kind(self) -> list[UsageRow]:
        """Weights, metadata, masks, ..."""
        return self._partition(lambda origin: (origin.kind, ""))

    def by_file(self) -> list[UsageRow]:
        """The file that brought each object; other things by kind."""
        return self._partition(lambda origin: (origin.path or origin.kind, origin.kind))

    def by_commit(self) -> list[UsageRow]:
        """The commit that brought each object first, and what it shares with others."""
        rows = self._partition(lambda origin: (origin.commit.hex if origin.commit is not None else origin.kind, ""))
        unique, shared = self._shares()
        found = []
        for row in rows:
            commit = CommitId(bytes.fromhex(row.name)) if len(row.name) == 64 else None
            if commit is None:
                found.append(row)
                continue
            found.append(self._commit_row(commit, row.bytes, row.objects, unique, shared))
        named = {row.name for row in rows}
        found += [
            self._commit_row(commit, 0, 0, unique, shared)
            for commit in self._commits
            if commit.hex not in named and self._only is None
        ]
        return found

    def by_tensor(self) -> list[UsageRow]:
        """Every stored tensor and how it is coded; all else in one row."""
        rows = []
        rest = self._overhead() + sum(self._garbage().values())
        for key, size in self._sizes.items():
            origin = self.origins.get(key)
            if key[0] == "tensor" and origin is not None and self._is_wanted(key):
                commit = f"@{origin.commit.short}" if origin.commit is not None else ""
                rows.append(
                    UsageRow(
                        name=f"{origin.name}{commit}", bytes=size, objects=1, detail=origin.path, tensor=self._use(key)
                    )
                )
            else:
                rest += size
        return [*rows, UsageRow(name=REST, bytes=rest)]

    def by_pack(self) -> list[UsageRow]:
        """Every pack, and how much of it is needed."""
        rows = []
        for name, records in self.marking.packs.items():
            kept = [item for item in records if place_of(item) in self.marking.chosen]
            dead = sum(item.length for item in records) - sum(item.length for item in kept)
            detail = "nothing needed" if not kept else f"{dead} bytes not needed" if dead else ""
            rows.append(UsageRow(name=name[:16], bytes=self.marking.sizes[name], objects=len(kept), detail=detail))
        return rows

    def by_ref(self) -> list[UsageRow]:
        """What would be freed if a branch or tag went, and everything that only undo needs with it."""
        view = self._repo.view()
        whole = self._live_size(view.tips)
        rows = []
        for ref in sorted(view.refs):
            left = self._live_size(view.with_moved({ref: None}).tips)
            rows.append(UsageRow(name=ref, bytes=whole - left, detail=view.refs[ref].short))
        return rows

    # -- helpers

    def _partition(self, row_of: Callable[[Origin], tuple[str, str]]) -> list[UsageRow]:
        sizes: dict[tuple[str, str], int] = {}
        counts: dict[tuple[str, str], int] = {}

        def add(row: tuple[str, str], size: int, objects: int) -> None:
            sizes[row] = sizes.get(row, 0) + size
            counts[row] = counts.get(row, 0) + objects

        for key, size in self._sizes.items():
            origin = self.origins.get(key)
            if not self._is_wanted(key):
                add((REST, ""), size, 1)
            elif key in self._positions and key not in self.marking.needed:
                add(row_of(Origin("masks", "positions", "", None)), size, 1)
            elif key not in self.marking.needed or origin is None:
                add((BASES, ""), size, 1)
            elif origin.commit is not None and origin.commit not in self._now:
                add((UNDO, ""), size, 1)
            else:
                add(row_of(origin), size, 1)
        for size in self._garbage().values():
            add((GARBAGE, ""), size, 1)
        add((INDEX, ""), self._overhead(), 0)
        return [
            UsageRow(name=name, bytes=size, objects=counts[name, detail], detail=detail)
            for (name, detail), size in sizes.items()
        ]

    def _is_wanted(self, key: Key) -> bool:
        return self._only is None or key in self._only

    def _garbage(self) -> dict[tuple[str, int], int]:
        """Records that nothing keeps: what nobody needs, and second copies."""
        marking = self.marking
        rows = (item for records in marking.packs.values() for item in records)
        return {place_of(item): item.length for item in rows if place_of(item) not in marking.chosen}

    def _overhead(self) -> int:
        records = sum(item.length for rows in self.marking.packs.values() for item in rows)
        return sum(self.marking.sizes.values()) - records

    def _keys_of(self, commit: CommitId) -> set[Key]:
        """What a commit needs without its history."""
        record = self._repo.commit_at(commit)
        seen = {*record.parents}
        walk = needed_objects(self._repo, (commit,), pruned=self._pruned, seen=set(seen))
        return {(item.KIND, item.digest) for item, _ in walk}

    def _shares(self) -> tuple[dict[CommitId, int], dict[CommitId, int]]:
        """By commit: bytes of objects that it alone needs, and of those that others need as well."""
        needed_by: dict[CommitId, set[Key]] = {commit: self._keys_of(commit) for commit in self._commits}
        users: dict[Key, int] = {}
        for keys in needed_by.values():
            for key in keys:
                users[key] = users.get(key, 0) + 1
        unique = {c: self._sum(key for key in keys if users[key] == 1) for c, keys in needed_by.items()}
        shared = {c: self._sum(key for key in keys if users[key] > 1) for c, keys in needed_by.items()}
        return unique, shared

    def _sum(self, keys: Iterable[Key]) -> int:
        return sum(self._sizes.get(key, 0) for key in keys)

    def _commit_row(
        self,
        commit: CommitId,
        size: int,
        objects: int,
        unique: dict[CommitId, int],
        shared: dict[CommitId, int],
    ) -> UsageRow:
        return UsageRow(
            name=commit.short,
            bytes=size,
            objects=objects,
            detail=self._repo.commit_at(commit).subject,
            unique=unique.get(commit, 0),
            shared=shared.get(commit, 0),
        )

    def _use(self, key: Key) -> TensorUse:
        object_id = (TensorId if key[0] == "tensor" else BlobId)(key[1])
        rows = self.marking.chosen_of(key)
        base = next((row.base for row in rows if row.base is not None), None)
        origin = None if base is None else self.origins.get((key[0], base))
        return TensorUse(
            codec=codec_of(self._repo, object_id, rows),
            base=None if base is None else origin.name if origin else (TensorId(base)).short,
            base_commit=None if origin is None else origin.commit,
            cost=round(chain_cost(self._repo.store, object_id), 3),
            raw_bytes=sum(row.stop - row.start for row in rows),
            mask=next((self._masks.of(row.positions) for row in rows if row.positions is not None), None),
        )

    def _live_size(self, tips: Collection[CommitId]) -> int:
        """Bytes of what `tips` need, bases included."""
        kept = kept_objects(self._repo) | merge_roots(self._repo)
        pending = [
            (item.KIND, item.digest) for item, _ in needed_objects(self._repo, tips, kept=kept, pruned=self._pruned)
        ]
        live = set(pending)
        while pending:
            key = pending.pop()
            for row in self.marking.records_of(key):
                fresh = (
                    [other for other in row.needs if other not in live] if place_of(row) in self.marking.chosen else []
                )
                live.update(fresh)
                pending += fresh
        return self._sum(live)


def codec_of(repo: Repository, object_id: TensorId | BlobId, rows: Sequence[Located]) -> str:
    """The codec of an object's record, as reports call it; "elsewhere" for one that is only described here."""
    from modelgit.patching.encode import CORRECTED

    if not rows or any(map(is_external, rows)):
        return "elsewhere"
    try:
        found = repo.reader().record(object_id)
    except MgitError:
        return "damaged"
    if found is None:
        return "elsewhere"
    table = found[1]
    return CORRECTED if table.prelude_bytes else table.codec.name


def _beside(directory: Path) -> dict[str, int]:
    """Bytes of everything in the repository that is no pack, by its first directory."""
    found: dict[str, int] = {}
    for folder, _, names in os.walk(directory):
        inside = Path(folder).relative_to(directory)
        if inside.parts[:1] == ("packs",):
            continue
        for name in names:
            try:
                size = os.lstat(Path(folder) / name).st_size
            except FileNotFoundError:
                continue
            place = inside.parts[0] if inside.parts else name
            found[place] = found.get(place, 0) + size
    return found
