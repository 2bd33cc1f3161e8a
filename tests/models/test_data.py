"""Reading examples: names, indices, missing labels, and errors that name file and line."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelgit.config.schema import TaskSettings
from modelgit.errors import UsageError
from modelgit.models.base import Example
from modelgit.models.data import read_examples

NAMED = TaskSettings(model="m", labels=("no", "yes"))
PLAIN = TaskSettings(model="m")


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def read(path: Path, task: TaskSettings = NAMED) -> tuple[Example, ...]:
    return read_examples(path, task, shown=path.name)[0]


def test_json_lines(tmp_path: Path) -> None:
    lines = '{"text": "a", "label": "yes"}\r\n\n{"text": "b", "label": 0, "id": "x7"}\n{"text": "c"}\n'
    assert read(write(tmp_path / "d.jsonl", "\ufeff" + lines)) == (
        Example("1", "a", 1),
        Example("x7", "b", 0),
        Example("4", "c", -1),
    )


def test_csv_with_quotes_newlines_and_other_fields(tmp_path: Path) -> None:
    text = 'kind,words,more\r\nyes,"a, ""b""\nc",1\r\n,d,2\r\n1,e,3\r\n'
    task = TaskSettings(model="m", labels=("no", "yes"), text="words", label="kind")
    assert read(write(tmp_path / "d.csv", text), task) == (
        Example("3", 'a, "b"\nc', 1),
        Example("4", "d", -1),
        Example("5", "e", 1),
    )


def test_names_that_look_like_indices_win(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", '{"text": "a", "label": 5}\n{"text": "b", "label": "1"}\n')
    assert [e.label for e in read(path, TaskSettings(model="m", labels=("1", "5")))] == [1, 0]


@given(
    st.lists(
        st.tuples(st.text(min_size=1).filter(str.strip), st.integers(-1, 30)),
        min_size=1,
        max_size=8,
    )
)
@settings(max_examples=60, deadline=None)
def test_both_formats_give_back_what_was_written(rows: list[tuple[str, int]]) -> None:
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerows([("text", "label"), *rows])
    with tempfile.TemporaryDirectory() as directory:
        lines = "\n".join(json.dumps({"text": text, "label": label}) for text, label in rows)
        try:
            one = read(write(Path(directory, "d.jsonl"), lines), PLAIN)
            other = read(write(Path(directory, "d.csv"), table.getvalue()), PLAIN)
        except UnicodeEncodeError:
            return
    assert [(e.text, e.label) for e in one] == rows
    assert [(e.text, e.label) for e in other] == rows


def test_the_fingerprint_covers_bytes_and_reading(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", '{"text": "a", "label": 1, "t": "b"}\n')
    prints = {
        read_examples(path, task, shown="d")[1]
        for task in (PLAIN, NAMED, TaskSettings(model="m", text="t"), TaskSettings(model="m", label="other"))
    }
    assert len(prints) == 4
    assert read_examples(path, TaskSettings(model="n", head="h"), shown="else")[1] in prints
    write(path, '{"text": "a", "label": 1, "t": "c"}\n')
    assert read_examples(path, PLAIN, shown="d")[1] not in prints


@pytest.mark.parametrize(
    ("name", "content", "message", "hint"),
    [
        ("d.jsonl", '{"text": "a"}\n{"text": ', r"d\.jsonl:2: not JSON", None),
        ("d.jsonl", b'{"text": "\xff"}', r"d\.jsonl:1: not JSON", None),
        ("d.jsonl", "[1]", r"d\.jsonl:1: a JSON list", None),
        ("d.jsonl", '{"text": "a"}\n\n{"words": "b"}', r"d\.jsonl:3: no field `text`", "`words`"),
        ("d.jsonl", '{"text": 3}', r"d\.jsonl:1: no text", None),
        ("d.jsonl", '{"text": "a", "label": "yse"}', r"d\.jsonl:1: `yse`.*did you mean `yes`", "no, yes"),
        ("d.jsonl", '{"text": "a", "label": 2}', r"d\.jsonl:1: label 2 is outside 0\.\.1", "labels ="),
        ("d.jsonl", '{"text": "a", "label": -2}', r"label -2", None),
        ("d.jsonl", '{"text": "a", "label": true}', "label is bool", None),
        ("d.jsonl", '{"text": "a", "label": 1.0}', "label is float", None),
        ("d.jsonl", '{"text": "a", "id": 1}\n{"text": "b", "id": "1"}', r"d\.jsonl:2: the id `1`.*line 1", None),
        ("d.jsonl", "\n\n", "no examples", None),
        ("d.csv", "text,label\na,yes,3\n", r"d\.csv:2: not 2 fields", None),
        ("d.csv", "text,label\na,yes\nb\n", r"d\.csv:3: not 2 fields", None),
        ("d.csv", 'text,label\n"a,yes\n', r"d\.csv:2: not CSV", None),
        ("d.csv", b"text,label\na,yes\n\xff,no\n", r"d\.csv:3: not UTF-8", None),
        ("d.xml", "a", "is none of", "jsonl"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, name, content, message, hint) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read(write(tmp_path / name, content))
    assert hint is None or hint in caught.value.hint


def test_names_without_a_list_of_labels_are_offered_one(tmp_path: Path) -> None:
    lines = "\n".join(f'{{"text": "a", "label": "{name}"}}' for name in ("HUM", "ABBR", "HUM"))
    with pytest.raises(UsageError, match=r"d\.jsonl:1: the label `HUM`") as caught:
        read(write(tmp_path / "d.jsonl", lines), PLAIN)
    assert 'labels = ["ABBR", "HUM"]' in caught.value.hint


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gone\.csv cannot be read"):
        read(tmp_path / "gone.csv")
