"""Labels of examples: names of the task or indices, and what to write when they are neither."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from modelgit.config.schema import TaskSettings
from modelgit.errors import UsageError, did_you_mean
from modelgit.models.records import Row

__all__ = ["UNLABELLED", "Labels"]

UNLABELLED = -1
_SHOWN_LABELS = 30


class Labels:
    """What a label may be, and the index it stands for.  `rows` are what a message lists names from."""

    def __init__(self, settings: TaskSettings, rows: Sequence[Row]) -> None:
        self.field = settings.label
        self.index_of = {name: index for index, name in enumerate(settings.labels)}
        if len(self.index_of) != len(settings.labels):
            raise UsageError("the task names one label twice", hint=f"labels are {', '.join(settings.labels)}")
        self.rows = rows

    def index(self, value: object, where: str) -> int:
        """The index of a name or of an index; UNLABELLED for none.  Raises UsageError that names `where`."""
        if value is None or value == "":
            return UNLABELLED
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise UsageError(f"{where}: the label is {type(value).__name__}, not a name or an index")
        if str(value) in self.index_of:  # names come first, so that labels may be called "0" or "5"
            return self.index_of[str(value)]
        text = str(value).strip()
        if not text.removeprefix("-").isdecimal():
            raise self._unknown(text, where)
        index = int(text)
        if index < UNLABELLED or (self.index_of and index >= len(self.index_of)):
            raise UsageError(
                f"{where}: label {index} is outside "
                + (f"0..{len(self.index_of) - 1}" if self.index_of else "the indices from 0"),
                hint="write `labels = [...]` under the task in mgit.toml, one name per class",
            )
        return index

    def _unknown(self, text: str, where: str) -> UsageError:
        if self.index_of:
            return UsageError(
                f"{where}: `{text}` is not a label of the task{did_you_mean(text, self.index_of)}",
                hint=f"labels are {', '.join(self.index_of)}",
            )
        found = sorted({str(value) for row in self.rows for value in _values(row.values.get(self.field))})
        names = msgspec.json.encode(found[:_SHOWN_LABELS]).decode().replace('","', '", "')
        return UsageError(
            f"{where}: the label `{text}` is a name, and the task lists no labels",
            hint=f"write `labels = {names}` under the task in mgit.toml, in the order of the head's outputs",
        )


def _values(value: object) -> list[object]:
    if isinstance(value, list):
        return [one for one in value if one not in (None, "")]
    return [] if value in (None, "") else [value]
