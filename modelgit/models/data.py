"""Labelled texts from JSON-lines and CSV files, checked line by line."""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec
from blake3 import blake3

from modelgit.config.schema import TaskSettings
from modelgit.errors import UsageError
from modelgit.models.base import Example
from modelgit.models.kinds import UNLABELLED_KINDS
from modelgit.objects.ids import domain

__all__ = ["UNLABELLED", "read_examples"]

UNLABELLED = -1
_SHOWN_LABELS = 30


class _Row(NamedTuple):
    """One record and the line on which it ends (CSV) or stands (JSON-lines)."""

    line: int
    values: Mapping[str, object]


def read_examples(path: Path, settings: TaskSettings, *, shown: str) -> tuple[tuple[Example, ...], str]:
    """The examples of a `.jsonl` or `.csv` file in its order, and the fingerprint of the data.

    Each record has the fields `settings.text` and, optionally, `settings.label`: a name among `settings.labels` or an
    index, absent, null or empty for an example without a label.  A field `id` names the example; otherwise its line
    does.  The fingerprint is the BLAKE3 of the bytes together with the settings that decide how they are read, in
    hex.  `shown` is how messages name the file.  Raises UsageError that names file and line.
    """
    readers = {".jsonl": _json_lines, ".csv": _csv_rows}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UsageError(f"{shown} is neither JSON-lines nor CSV", hint="name the file FILE.jsonl or FILE.csv")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{shown} cannot be read: {error.strerror or error}") from error
    rows = list(reader(content, shown))
    if not rows:
        raise UsageError(f"{shown} holds no examples")
    labels = _Labels(settings, rows)
    examples: list[Example] = []
    seen: dict[str, int] = {}
    for row in rows:
        where = f"{shown}:{row.line}"
        text = row.values.get(settings.text)
        if not isinstance(text, str) or not text.strip():
            found = "no field" if settings.text not in row.values else "no text in the field"
            raise UsageError(
                f"{where}: {found} `{settings.text}`",
                hint=f'fields are {_listed(row.values)}; write `text = "FIELD"` under the task in mgit.toml',
            )
        name = _name(row, where)
        if name in seen:
            raise UsageError(f"{where}: the id `{name}` is already that of line {seen[name]}")
        seen[name] = row.line
        label = UNLABELLED
        if settings.kind not in UNLABELLED_KINDS:
            label = labels.index(row.values.get(settings.label), where)
        examples.append(Example(name, text, label))
    return tuple(examples), _fingerprint(content, path.suffix.lower(), settings)


def _fingerprint(content: bytes, suffix: str, settings: TaskSettings) -> str:
    reading = msgspec.json.encode((suffix, settings.text, settings.label, settings.labels))
    return blake3(domain("data") + len(reading).to_bytes(8, "little") + reading + content).hexdigest()


def _name(row: _Row, where: str) -> str:
    value = row.values.get("id")
    if value is None or value == "":
        return str(row.line)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UsageError(f"{where}: the id is {type(value).__name__}, not a text or a number")
    return str(value)


class _Labels:
    """What a label may be, and the index it stands for."""

    def __init__(self, settings: TaskSettings, rows: list[_Row]) -> None:
        self.field = settings.label
        self.index_of = {name: index for index, name in enumerate(settings.labels)}
        if len(self.index_of) != len(settings.labels):
            raise UsageError("the task names one label twice", hint=f"labels are {', '.join(settings.labels)}")
        self.rows = rows

    def index(self, value: object, where: str) -> int:
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
            near = difflib.get_close_matches(text, self.index_of, n=1)
            asked = f"; did you mean `{near[0]}`?" if near else ""
            return UsageError(
                f"{where}: `{text}` is not a label of the task{asked}",
                hint=f"labels are {', '.join(self.index_of)}",
            )
        found = sorted(
            {str(row.values[self.field]) for row in self.rows if row.values.get(self.field) not in (None, "")}
        )
        names = msgspec.json.encode(found[:_SHOWN_LABELS]).decode().replace('","', '", "')
        return UsageError(
            f"{where}: the label `{text}` is a name, and the task lists no labels",
            hint=f"write `labels = {names}` under the task in mgit.toml, in the order of the head's outputs",
        )


def _json_lines(content: bytes, shown: str) -> Iterator[_Row]:
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            values = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{shown}:{number}: not JSON: {error}") from error
        if not isinstance(values, dict):
            raise UsageError(f"{shown}:{number}: a JSON {type(values).__name__}, where an object is expected")
        yield _Row(number, values)


def _csv_rows(content: bytes, shown: str) -> Iterator[_Row]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{shown}:{line}: not UTF-8 text") from error
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for values in reader:
            if None in values or any(value is None for value in values.values()):
                raise UsageError(
                    f"{shown}:{reader.line_num}: not {len(reader.fieldnames or ())} fields, as the first line has"
                )
            yield _Row(reader.line_num, values)
    except csv.Error as error:
        raise UsageError(f"{shown}:{reader.reader.line_num}: not CSV: {error}") from error


def _listed(values: Mapping[str, object]) -> str:
    return ", ".join(f"`{name}`" for name in values) or "absent"
