"""Which commits were pruned: immutable records, one small file each; the root names the current one."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from pathlib import Path

from modelgit.errors import IntegrityError
from modelgit.objects import Pruning, Retention, RetentionId, decode, encode
from modelgit.store.durable import make_directory, write_durably

__all__ = ["RetentionLog"]

_NAME = re.compile(r"[0-9a-f]{64}\Z")


class RetentionLog:
    """Files `<path>/retention/<hex>`."""

    def __init__(self, path: Path) -> None:
        self._folder = path / "retention"

    def write(self, record: Retention) -> RetentionId:
        """Store a record durably; it counts once a root names it."""
        data = encode(record)
        object_id = RetentionId.of(data)
        make_directory(self._folder)
        write_durably(self._folder / object_id.hex, data)
        return object_id

    def read(self, object_id: RetentionId | None) -> Retention:
        """Read a record, an empty one for None.  Raises IntegrityError when it is missing or damaged."""
        if object_id is None:
            return Retention()
        try:
            data = (self._folder / object_id.hex).read_bytes()
        except FileNotFoundError:
            raise IntegrityError(f"the list of pruned commits ({object_id.short}) is missing") from None
        if RetentionId.of(data) != object_id:
            raise IntegrityError(f"the list of pruned commits ({object_id.short}) does not match its id")
        return decode(Retention, data, what="the list of pruned commits")

    def extended(self, current: RetentionId | None, prunings: Iterable[Pruning]) -> Retention | None:
        """The current record and what `prunings` add to it; None when they add nothing."""
        old = self.read(current).prunings
        known = {commit for item in old for commit in item.commits}
        fresh = []
        for item in prunings:
            commits = tuple(commit for commit in item.commits if commit not in known)
            if commits:
                fresh.append(Pruning(family=item.family, time_ms=item.time_ms, commits=commits))
        return Retention(prunings=(*old, *fresh)) if fresh else None

    def listed(self) -> set[RetentionId]:
        """Every record that there is a file of."""
        if not self._folder.is_dir():
            return set()
        names = [path.name for path in self._folder.iterdir() if _NAME.match(path.name)]
        return {RetentionId(bytes.fromhex(name)) for name in names}

    def remove(self, records: Iterable[RetentionId]) -> None:
        """Delete records that no root names any more."""
        for object_id in records:
            with contextlib.suppress(OSError):  # then it is deleted next time
                (self._folder / object_id.hex).unlink()
