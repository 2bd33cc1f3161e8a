"""Records of a data file, one after the other, with the line on which each stands."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from modelgit.errors import MissingExtraError, UsageError

__all__ = ["SUFFIXES", "Row", "read_rows"]

_PARQUET_ROWS = 1024


class Row(NamedTuple):
    """One record and the line on which it ends (CSV) or stands; in a Parquet file its number, from 1."""

    line: int
    values: Mapping[str, object]


def read_rows(
    path: Path, *, shown: str, text: str, columns: frozenset[str] | None, block_characters: int | None
) -> Iterator[Row]:
    """The records of a file, in its order.

    `text` is the field that the stretches of a .txt file become: its lines, or with `block_characters` what lies
    between empty lines, cut after at most that many characters.  `columns` are the fields that are wanted, None for
    all: others of a Parquet file are not read.  `shown` is how messages name the file.  Raises UsageError that names
    file and line, MissingExtraError for Parquet without pyarrow.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        yield from _parquet_rows(path, shown, columns)
    elif suffix == ".txt":
        for line, stretch in _stretches(_decoded(_content(path, shown), shown), block_characters):
            yield Row(line, {text: stretch})
    elif suffix in _READERS:
        yield from _READERS[suffix](_content(path, shown), shown)
    else:
        raise UsageError(
            f"{shown} is none of {', '.join(SUFFIXES)}",
            hint="name the file FILE.jsonl, with a JSON object on each line",
        )


def _content(path: Path, shown: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{shown} cannot be read: {error.strerror or error}") from error


def _decoded(content: bytes, shown: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{shown}:{line}: not UTF-8 text") from error


def _json_lines(content: bytes, shown: str) -> Iterator[Row]:
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            values = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UsageError(f"{shown}:{number}: not JSON: {error}") from error
        if not isinstance(values, dict):
            raise UsageError(f"{shown}:{number}: a JSON {type(values).__name__}, where an object is expected")
        yield Row(number, values)


def _csv_rows(content: bytes, shown: str) -> Iterator[Row]:
    yield from _table(csv.DictReader(io.StringIO(_decoded(content, shown), newline=""), strict=True), shown, "CSV")


def _tsv_rows(content: bytes, shown: str) -> Iterator[Row]:
    """Columns between tabs; a quotation mark is a character like any other, as in the tables of GLUE."""
    text = io.StringIO(_decoded(content, shown), newline="")
    yield from _table(csv.DictReader(text, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True), shown, "TSV")


def _table(reader: csv.DictReader[str], shown: str, kind: str) -> Iterator[Row]:
    try:
        for values in reader:
            if None in values or any(value is None for value in values.values()):
                raise UsageError(
                    f"{shown}:{reader.line_num}: not {len(reader.fieldnames or ())} fields, as the first line has"
                )
            yield Row(reader.line_num, values)
    except csv.Error as error:
        raise UsageError(f"{shown}:{reader.reader.line_num}: not {kind}: {error}") from error


def _stretches(text: str, block_characters: int | None) -> Iterator[tuple[int, str]]:
    """Stretches of a text and the line on which each begins."""
    held: list[str] = []
    for number, line in enumerate((*text.split("\n"), ""), start=1):
        if block_characters is None:
            if line.strip():
                yield number, line.rstrip("\r")
        elif line.strip():
            held.append(line.rstrip("\r"))
        elif held:
            for piece in _pieces("\n".join(held), block_characters):
                yield number - len(held), piece
            held.clear()


def _pieces(text: str, most: int) -> Iterator[str]:
    """`text` in pieces of at most `most` characters, cut at spaces where there are any."""
    while len(text) > most:
        cut = max(text.rfind(" ", 0, most + 1), text.rfind("\n", 0, most + 1))
        cut = cut if cut > 0 else most
        yield text[:cut]
        text = text[cut:].lstrip()
    if text.strip():
        yield text


def _parquet_rows(path: Path, shown: str, columns: frozenset[str] | None) -> Iterator[Row]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError(
            f"reading {shown} needs the `pyarrow` package", hint="`pip install 'modelgit[data]'`"
        ) from error
    try:
        with parquet.ParquetFile(path) as file:
            names = [name for name in file.schema_arrow.names if columns is None or name in columns]
            number = 0
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=names):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(number, values)
    except (pyarrow.ArrowException, OSError) as error:
        raise UsageError(f"{shown} is not a Parquet file that can be read: {error}") from error


_READERS: dict[str, Callable[[bytes, str], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".csv": _csv_rows,
    ".tsv": _tsv_rows,
}
SUFFIXES = (*_READERS, ".txt", ".parquet")
"""Endings of the names of files that can be read."""
