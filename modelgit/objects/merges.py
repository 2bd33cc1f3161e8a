"""Merges as data: what was decided for every tensor and file, what is in conflict, and a merge that waits."""

from __future__ import annotations

import math
import re
from typing import Literal as OneOf

from modelgit.errors import UsageError
from modelgit.objects.canonical import Record
from modelgit.objects.ids import CommitId, ManifestId

__all__ = [
    "Action",
    "Conflict",
    "ConflictKind",
    "FileDecision",
    "MergePlan",
    "MergeState",
    "Overlap",
    "Resolution",
    "RowRange",
    "SideName",
    "TensorDecision",
    "Verb",
]

Action = OneOf["keep", "ours", "theirs", "both-same", "combine", "conflict"]
ConflictKind = OneOf[
    "shape",
    "dtype",
    "integer",
    "deleted-changed",
    "added-added",
    "text",
    "key",
    "binary",
    "signs",
    "tokens",
    "vocabulary",
    "learned",
]
SideName = OneOf["ours", "theirs", "base"]
RowSource = OneOf["ours", "theirs", "base", "combine"]

_SIDES: dict[str, SideName] = {"ours": "ours", "theirs": "theirs", "base": "base"}
_ROW_SOURCES: dict[str, RowSource] = {**_SIDES, "combine": "combine"}
_RANGE = re.compile(r"(\d{0,15}):(\d{0,15})=(ours|theirs|base|combine)\Z", re.ASCII)


class TensorDecision(Record, frozen=True, kw_only=True):
    """What becomes of one tensor.

    `keep`: no side changed it; `ours`, `theirs`: only that side did (or added or removed it); `both-same`: both did
    the same; `combine`: a strategy makes the value; `conflict`: somebody has to say.  `reason` is a few words.
    """

    model: str
    name: str
    action: Action
    reason: str


class FileDecision(Record, frozen=True, kw_only=True):
    """What becomes of one file without weights; `combine` means that its content has to be merged."""

    path: str
    action: Action
    reason: str


class Conflict(Record, frozen=True, kw_only=True):
    """Something that no rule decides.

    `path` is a model or a file; `item` the tensor or the dotted key inside it, "" for the whole.  `ours` and
    `theirs` are short descriptions for people (a shape, a value, "deleted").
    """

    path: str
    kind: ConflictKind
    item: str = ""
    ours: str = ""
    theirs: str = ""

    @property
    def id(self) -> str:
        """The name under which it is resolved: `PATH` or `PATH:ITEM`."""
        return f"{self.path}:{self.item}" if self.item else self.path


class RowRange(Record, frozen=True, kw_only=True):
    """Rows `start` up to `stop` (None: up to the last one) of a table, and what they become."""

    start: int
    stop: int | None
    source: RowSource

    @classmethod
    def parse(cls, text: str) -> RowRange:
        """Read `FIRST:END=ours|theirs|base|combine`.  Raises UsageError for anything else."""
        found = _RANGE.match(text.strip())
        if found is None:
            raise UsageError(
                f"not a range of rows: {text[:80]!r}",
                hint="write `--rows 0:30522=theirs --rows 30522:=ours` (or =base, or =combine)",
            )
        first, last, source = found.groups()
        start, stop = int(first or 0), int(last) if last else None
        if stop is not None and stop <= start:
            raise UsageError(
                f"there are no rows in {text.strip()[:80]}", hint="the first row, then the one after the last"
            )
        return cls(start=start, stop=stop, source=_ROW_SOURCES[source])

    def __str__(self) -> str:
        return f"{self.start}:{'' if self.stop is None else self.stop}={self.source}"


class Resolution(Record, frozen=True, kw_only=True):
    """What somebody said about a conflict.

    `take` a side, put in `value` (JSON text, or the name of a method), or take `rows` of a tensor from several sides.
    """

    take: SideName | None = None
    value: str | None = None
    rows: tuple[RowRange, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Resolution:
        """Read `take ours|theirs|base`, `with VALUE` or `rows RANGE,RANGE`.  Raises UsageError for anything else."""
        verb, _, rest = text.partition(" ")
        if verb == "take" and rest in _SIDES:
            return cls(take=_SIDES[rest])
        if verb == "with" and rest:
            return cls(value=rest)
        if verb == "rows" and rest:
            return cls(rows=_in_order([RowRange.parse(item) for item in rest.split(",")]))
        raise UsageError(
            f"not a resolution: {text[:80]!r}",
            hint="write `--take ours`, `--take theirs`, `--take base`, `--with VALUE` or `--rows RANGE=SIDE`",
        )

    def __str__(self) -> str:
        if self.rows:
            return "rows " + ",".join(str(item) for item in self.rows)
        return f"take {self.take}" if self.take is not None else f"with {self.value}"


def _in_order(ranges: list[RowRange]) -> tuple[RowRange, ...]:
    """Ranges sorted, every row once.  Raises UsageError where rows are missing or named twice."""
    ordered = sorted(ranges, key=lambda item: item.start)
    row: int | None = 0
    for item in ordered:
        if row is None or item.start < row:
            raise UsageError(f"row {item.start} is in two ranges", hint=f"each row once: `--rows {ordered[0]} …`")
        if item.start > row:
            missing = f"row {row} is" if item.start == row + 1 else f"rows {row} to {item.start - 1} are"
            raise UsageError(f"{missing} in no range", hint=f"`--rows {row}:{item.start}=ours`")
        row = item.stop
    return tuple(ordered)


class Overlap(Record, frozen=True, kw_only=True):
    """Of one tensor: how many values two sides or more changed, and how many of these moved in different directions."""

    model: str
    name: str
    values: int
    opposed: int

    @property
    def share(self) -> float:
        """The part of the values that the sides moved apart."""
        return self.opposed / self.values if self.values else 0.0

    def exceeds(self, limit: float) -> bool:
        """Whether that part is above `limit`, and by more than chance.

        Three standard deviations of a share of `limit`: of the few values of a bias, many disagree by accident.
        """
        chance = 3 * math.sqrt(self.values * limit * (1 - limit))
        return self.opposed > limit * self.values + chance


class MergePlan(Record, frozen=True, kw_only=True):
    """A three-way merge as far as ids alone decide it, sorted by path and name."""

    base: ManifestId | None
    ours: ManifestId | None
    theirs: ManifestId | None
    tensors: tuple[TensorDecision, ...] = ()
    files: tuple[FileDecision, ...] = ()
    conflicts: tuple[Conflict, ...] = ()

    @property
    def counts(self) -> dict[Action, int]:
        """How many tensors each action has; actions without any are left out."""
        found: dict[Action, int] = {}
        for decision in self.tensors:
            found[decision.action] = found.get(decision.action, 0) + 1
        return found


Verb = OneOf["merge", "cherry-pick", "revert", "rebase"]


class MergeState(Record, frozen=True, kw_only=True):
    """A merge that stopped at conflicts, kept between `merge` and `merge --continue`.

    `resolutions` maps a conflict's id to the text of a Resolution; `rules` maps a pattern of tensor names to a
    strategy; `conflicts` holds those that are still open.  Where `block_signs`, tensors of which more than the share
    `sign_limit` of the values moves in different directions are among them.

    A cherry-pick, revert or rebase (`verb`; "" is a merge) is a merge too, of `ours` and `theirs` with a `base` that it
    names: to pick a commit is to merge it with its parent as base, to revert one is to merge its parent with the commit
    as base.  `source` is that commit, `start` the commit at which the work tree is (None: at `ours`), `todo` are the
    commits that come after `source`, and `author` is who made it.
    """

    ours: CommitId
    theirs: CommitId
    base: CommitId | None
    message: str
    strategy: str
    options: dict[str, float | int | str | bool] = {}
    rules: dict[str, str] = {}
    resolutions: dict[str, str] = {}
    conflicts: tuple[Conflict, ...] = ()
    verb: str = ""
    source: CommitId | None = None
    start: CommitId | None = None
    todo: tuple[CommitId, ...] = ()
    author: str = ""
    sign_limit: float | None = None
    block_signs: bool = False

    @property
    def head(self) -> CommitId:
        """The commit that the work tree follows while this waits."""
        return self.start or self.ours

    @property
    def name(self) -> str:
        """The verb, as it is typed."""
        return self.verb or "merge"
