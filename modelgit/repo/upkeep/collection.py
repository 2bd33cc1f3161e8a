"""A collection under way: what is live, which packs go, which are written again, and how many bytes that frees.

Marking only ever adds: when another writer moves the root meanwhile, what the new root reaches is added to what is
known, and the swap is tried again.  The second try costs what is new, not the whole repository, so a collection gets
through beside steady writers; and what is live under any root that was seen stays, which keeps too much at worst.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from modelgit.objects import CommitId, ObjectId, Operation, OperationId, TensorSpec
from modelgit.progress import SILENT, Progress
from modelgit.remotes.receive import copy_records
from modelgit.repo.exchange.borrowers import lent_objects
from modelgit.repo.upkeep.reach import kept_objects, merge_roots, needed_objects
from modelgit.store.base import Located, is_external
from modelgit.store.packs import HEADER, packed_size
from modelgit.store.session import PACK_TARGET_BYTES

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = [
    "KEEP_DAYS",
    "KEEP_OPERATIONS",
    "REWRITE_ABOVE",
    "Key",
    "Marking",
    "Place",
    "imagined_packs",
    "pack_sizes",
    "place_of",
    "rewrite_records",
]

KEEP_OPERATIONS = 200
KEEP_DAYS = 30
REWRITE_ABOVE = 0.3  # share of dead bytes at which a pack is worth writing again

Place = tuple[str, int]
Key = tuple[str, bytes]


def place_of(item: Located) -> Place:
    """Where a record begins: pack and offset."""
    return item.pack, item.offset


class Marking:
    """What is live in the packs that were there when it was made.

    `prune_now` forgets all operations but the current one.  The weights of the commits `pruned` and the training state
    of the commits `expired` count as dead.  Records at the places `superseded` are never kept: other records have taken
    their place.  `added` are records that are about to be written (a dry run), in packs named `+0`, `+1`, ...
    """

    def __init__(
        self,
        repo: Repository,
        *,
        prune_now: bool = False,
        pruned: Collection[CommitId] = (),
        expired: Collection[CommitId] = (),
        superseded: Collection[Place] = (),
        added: Iterable[Located] = (),
    ) -> None:
        self._repo = repo
        self._prune_now = prune_now
        self._pruned = pruned
        self._expired = expired
        self._superseded = frozenset(superseded)
        self._operations: dict[OperationId, Operation] = {}
        self._views: set[OperationId] = set()
        self._seen: set[ObjectId] = set()
        self._records: dict[Key, list[Located]] = {}
        self.listed = repo.operations.listed()
        self.root = repo.roots.read()
        self.kept_operations: set[OperationId] = set()
        self.dropped_operations = 0
        self.live: set[Key] = set()
        self.needed: dict[Key, TensorSpec | None] = {}
        self.chosen: dict[Place, Located] = {}
        self.used: set[str] = set()
        repo.store.lookup.refresh()
        self.packs: dict[str, list[Located]] = {name: [] for name in sorted(repo.store.lookup.packs())}
        self.sizes = {name: (repo.store.packs_path / name).stat().st_size for name in self.packs}
        for item in (*repo.store.objects(), *added):
            if item.pack in self.packs or item.pack.startswith("+"):
                self.packs.setdefault(item.pack, []).append(item)
                if place_of(item) not in self._superseded:
                    self._records.setdefault((item.kind, item.digest), []).append(item)

    def mark(self) -> None:
        """Take in what the current root reaches."""
        self.root = self._repo.roots.read()
        roots = self._read_operations()
        kept = kept_objects(self._repo) | merge_roots(self._repo)
        fresh: list[Key] = []
        for object_id, spec in needed_objects(
            self._repo, roots, kept=kept, pruned=self._pruned, expired=self._expired, seen=self._seen
        ):
            key = (object_id.KIND, object_id.digest)
            if key not in self.live:
                self.live.add(key)
                fresh.append(key)
            self.needed.setdefault(key, spec)
        fresh += lent_objects(self._repo) - self.live
        self.live.update(fresh)
        while fresh:
            for item in self._choose(fresh.pop()):
                self.chosen[place_of(item)] = item
                self.used.add(item.pack)
                for key in item.needs:
                    if key not in self.live:
                        self.live.add(key)
                        fresh.append(key)

    def _read_operations(self) -> set[CommitId]:
        """Commits that the views of kept operations name and that were not looked at yet."""
        horizon_ms = (time.time() - KEEP_DAYS * 86400) * 1000
        kept: set[OperationId] = set()
        roots: set[CommitId] = set()
        current: OperationId | None = self.root.root.operation
        number = 0
        dropping = False
        self.dropped_operations = 0
        while current is not None and (current in self._operations or self._repo.operations.has(current)):
            operation = self._operations.get(current) or self._repo.operations.read(current)
            self._operations[current] = operation
            wanted = number == 0 if self._prune_now else number < KEEP_OPERATIONS or operation.time_ms > horizon_ms
            dropping = dropping or not wanted
            if dropping:
                self.dropped_operations += 1
            else:
                kept.add(current)
                if current not in self._views:
                    self._views.add(current)
                    roots |= operation.view.tips
            number += 1
            current = operation.parent
        self.kept_operations = kept
        return roots

    @property
    def history(self) -> set[OperationId]:
        """Every operation behind the current root, those that were published since the beginning included."""
        return set(self._operations)

    @property
    def stored(self) -> Collection[Key]:
        """Every object that there is a record of, needed or not."""
        return self._records.keys()

    def records_of(self, key: Key) -> list[Located]:
        """Every record of an object, kept or not."""
        return self._records.get(key, [])

    def chosen_of(self, key: Key) -> list[Located]:
        """The records of a live object that are kept and hold its bytes; else the one that says where these lie."""
        kept = [item for item in self.records_of(key) if place_of(item) in self.chosen and not item.is_leaf_table]
        return [item for item in kept if not is_external(item)] or kept

    def _choose(self, key: Key) -> list[Located]:
        """One record for each range of the object."""
        best: dict[tuple[int, int, bool], Located] = {}
        for item in self._records.get(key, ()):
            place = (item.start, item.stop, is_external(item))  # who stored an external object wants it to be here
            known = best.get(place)
            if known is None or _preference(item) < _preference(known):
                best[place] = item
        return list(best.values())

    # -- what follows from it

    def dead_packs(self) -> list[str]:
        """Packs of which nothing is kept."""
        return [name for name in self.packs if name not in self.used and not name.startswith("+")]

    def wasteful_packs(self, *, above: float, forced: Collection[Key] = ()) -> list[str]:
        """Packs that are partly dead: more than the share `above` of their bytes, or an object of `forced` in them."""
        found = []
        for name, records in self.packs.items():
            if name not in self.used or name.startswith("+"):
                continue
            dead = [item for item in records if place_of(item) not in self.chosen]
            total = sum(item.length for item in records)
            if dead and (
                sum(item.length for item in dead) > above * total
                or any((item.kind, item.digest) in forced for item in dead)
            ):
                found.append(name)
        return found

    def kept_records(self, packs: Iterable[str]) -> list[Located]:
        """The kept records of `packs`, in the order in which they lie there."""
        found = [item for name in packs for item in self.packs[name] if place_of(item) in self.chosen]
        return sorted(found, key=place_of)

    def size_of(self, packs: Iterable[str]) -> int:
        """Bytes of pack files."""
        return sum(self.sizes[name] for name in packs)


def _preference(item: Located) -> tuple[bool, int, str]:
    return item.base is not None, item.length, item.pack


def pack_sizes(records: Iterable[Located]) -> list[int]:
    """Bytes of the pack files that `rewrite_records` makes of `records`, without writing any."""
    packs: dict[str, list[Located]] = {}
    for item in imagined_packs(records):
        packs.setdefault(item.pack, []).append(item)
    return [packed_size(rows, rows[-1].offset + rows[-1].length) for rows in packs.values()]


def imagined_packs(records: Iterable[Located]) -> Iterator[Located]:
    """Where `records` would lie if they were written, in packs named `+0`, `+1`, ..."""
    number, offset = 0, len(HEADER)
    for item in records:
        if offset >= PACK_TARGET_BYTES:
            number, offset = number + 1, len(HEADER)
        yield item._replace(pack=f"+{number}", offset=offset)
        offset += item.length


def rewrite_records(repo: Repository, records: Sequence[Located], progress: Progress = SILENT) -> list[str]:
    """Copy records, as they are, into new packs; returns the names of these.  Holds a few megabytes at a time."""
    if not records:
        return []
    with repo.session() as session:
        copy_records(repo.store.read_part, records, session, task="rewrite", progress=progress)
        return session.seal()
