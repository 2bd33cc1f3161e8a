"""The labelled texts of the demo: read from the files of the packages, split, and written as JSON lines.

Questions: TREC, six classes of what an answer is (Li and Roth, "Learning Question Classifiers", 2002).  Reviews:
sentences of Rotten Tomatoes with their sentiment (Pang and Lee, "Seeing Stars", 2005).
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from modelgit.errors import IntegrityError

__all__ = ["Row", "TaskTexts", "mislabel", "read_questions", "read_reviews", "split_rows", "write_rows"]

_KINDS = {
    "ABBR": "abbreviation",
    "DESC": "description",
    "ENTY": "thing",
    "HUM": "person",
    "LOC": "place",
    "NUM": "number",
}
_SENTIMENTS = {"0": "negative", "1": "positive"}
_SOURCE = "rotten_tomatoes"


class Row(NamedTuple):
    """A text and the name of its label."""

    text: str
    label: str


class TaskTexts(NamedTuple):
    """The data of one task: `later` is a batch that comes in after the first training."""

    name: str
    labels: tuple[str, ...]
    max_length: int
    train: tuple[Row, ...]
    test: tuple[Row, ...]
    later: tuple[Row, ...] = ()


def read_questions(path: Path) -> list[Row]:
    """The questions of TREC, each once: lines of `KIND:detail text`."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        label, _, text = line.partition(" ")
        kind = _KINDS.get(label.partition(":")[0])
        if kind is None:
            raise IntegrityError(f"{path.name} has a question of the unknown kind {label[:40]!r}")
        rows.append(Row(text.strip(), kind))
    return _unambiguous(rows)


def read_reviews(path: Path) -> list[Row]:
    """The sentences of Rotten Tomatoes, each once: a CSV with the columns text, label, source."""
    with path.open(encoding="utf-8", newline="") as stream:
        rows = [
            Row(record["text"].strip(), _SENTIMENTS[record["label"]])
            for record in csv.DictReader(stream)
            if record["source"] == _SOURCE
        ]
    return _unambiguous(rows)


def _unambiguous(rows: Iterable[Row]) -> list[Row]:
    """Every text once, by text; those that occur with two labels are left out."""
    labels: dict[str, set[str]] = {}
    for row in rows:
        labels.setdefault(row.text, set()).add(row.label)
    return [Row(text, min(found)) for text, found in sorted(labels.items()) if text and len(found) == 1]


def split_rows(rows: Sequence[Row], *sizes: int, seed: int) -> tuple[tuple[Row, ...], ...]:
    """Disjoint parts of the given sizes, drawn by `seed`.  Raises IntegrityError when there are too few rows."""
    if sum(sizes) > len(rows):
        raise IntegrityError(f"the demo needs {sum(sizes)} labelled texts and found {len(rows)}")
    drawn = list(rows)
    random.Random(seed).shuffle(drawn)  # noqa: S311 - a split, not a secret
    parts, start = [], 0
    for size in sizes:
        parts.append(tuple(drawn[start : start + size]))
        start += size
    return tuple(parts)


def mislabel(rows: Sequence[Row], labels: Sequence[str], *, share: float, seed: int) -> tuple[Row, ...]:
    """`rows` with a wrong label on exactly `share` of them, rounded; which ones, and which labels, `seed` says."""
    draw = random.Random(seed)  # noqa: S311 - mistakes, not secrets
    changed = list(rows)
    for at in draw.sample(range(len(changed)), round(share * len(changed))):
        others = [label for label in labels if label != changed[at].label]
        changed[at] = Row(changed[at].text, draw.choice(others))
    return tuple(changed)


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """JSON lines with the fields `text` and `label`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text": row.text, "label": row.label}, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
