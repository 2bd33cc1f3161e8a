"""Reading examples: names, indices, missing labels, and errors that name file and line."""

from __future__ import annotations

import csv
import io
import json
import sys
import tempfile
from pathlib import Path

import msgspec
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from modelgit.config.schema import TaskSettings
from modelgit.errors import MissingExtraError, UsageError
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
        ("d.jsonl", b"[" * 200_000, r"d\.jsonl:1: not JSON", None),
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


def test_the_fingerprint_of_labelled_texts_is_what_it_always_was(tmp_path: Path) -> None:
    content = b'{"text": "a", "label": "yes"}\n'
    path = write(tmp_path / "d.jsonl", content)
    reading = json.dumps([".jsonl", "text", "label", ["no", "yes"]], separators=(",", ":")).encode()
    old = blake3(b"mgit:data:v1\0" + len(reading).to_bytes(8, "little") + reading + content).hexdigest()
    assert read_examples(path, NAMED, shown="d")[1] == old
    for more in ({"kind": "sequence-classification"}, {"max_length": 9}, {"pooling": "first"}):
        assert read_examples(path, msgspec.structs.replace(NAMED, **more), shown="d")[1] == old
    for more in ({"pair": "text"}, {"kind": "causal-lm"}, {"kind": "regression"}):
        assert read_examples(path, msgspec.structs.replace(NAMED, **more), shown="d")[1] != old


def test_tables_with_tabs_take_quotation_marks_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path / "d.tsv", 'text\tlabel\nsay "a, b\tyes\n')
    assert read(path) == (Example("2", 'say "a, b', 1),)


def test_text_by_lines_and_by_blocks(tmp_path: Path) -> None:
    path = write(tmp_path / "d.txt", "one two\r\nthree\r\n\r\n\n" + "four " * 5 + "\nfive\n")
    assert [(e.id, e.text) for e in read(path, PLAIN)] == [
        ("1", "one two"),
        ("2", "three"),
        ("5", "four four four four four "),
        ("6", "five"),
    ]
    blocks = TaskSettings(model="m", kind="causal-lm", split="blocks", max_length=4)
    assert [(e.id, e.text) for e in read(path, blocks)] == [
        ("1", "one two\nthree"),
        ("5", "four four four"),
        ("5.2", "four four \nfive"),
    ]
    wider = msgspec.structs.replace(blocks, max_length=8)
    assert len({read_examples(path, task, shown="d")[1] for task in (PLAIN, blocks, wider)}) == 3


def test_parquet_gives_the_same_examples_and_reads_only_what_is_needed(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({"text": ["a", "b"], "label": [1, None], "id": ["x", "y"], "huge": [b"1" * 9, b"2"]})
    parquet.write_table(table, tmp_path / "d.parquet")
    assert read(tmp_path / "d.parquet") == (Example("x", "a", 1), Example("y", "b", -1))
    with_code = TaskSettings(model="m", entry="m:f")
    assert read(tmp_path / "d.parquet", with_code)[1].fields["huge"] == b"2"
    with pytest.raises(UsageError, match=r"d\.parquet:1: no field `words`"):
        read(tmp_path / "d.parquet", TaskSettings(model="m", text="words"))
    with pytest.raises(UsageError, match=r"bad\.parquet is not a Parquet file"):
        read(write(tmp_path / "bad.parquet", "PAR1"))


def test_parquet_without_its_package_says_what_to_install(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"d\.parquet") as caught:
        read(write(tmp_path / "d.parquet", ""))
    assert caught.value.hint == "`pip install 'modelgit[data]'`"


def test_language_models_need_no_labels_and_read_none(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", '{"text": "a", "label": "anything"}\n{"text": "b"}\n')
    for kind in ("causal-lm", "masked-lm", "sentence-embedding", "regression"):
        assert [e.label for e in read(path, TaskSettings(model="m", kind=kind))] == [-1, -1]


def test_an_entry_gets_the_whole_record_and_may_do_without_a_text(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", '{"x": [1, 2], "label": 1}\n')
    (example,) = read(path, TaskSettings(model="m", entry="m:f"))
    assert (example.text, example.label, example.fields["x"]) == ("", 1, [1, 2])
    with pytest.raises(UsageError, match="no field `text`") as caught:
        read(path, PLAIN)
    assert "kind" in caught.value.hint


PAIRS = TaskSettings(model="m", text="premise", pair="hypothesis")
TAGS = TaskSettings(model="m", kind="token-classification", labels=("O", "PER"), text="words", label="tags")
ANSWERS = TaskSettings(model="m", kind="question-answering")
IMAGES = TaskSettings(model="m", kind="image-classification")


@pytest.mark.parametrize(
    ("task", "content", "message", "hint"),
    [
        (PAIRS, '{"premise": "a", "hypotesis": "b"}', "no field `hypothesis`", 'pair = "FIELD"'),
        (TAGS, '{"words": 3}', "no list of words in the field `words`", "text ="),
        (TAGS, '{"words": ["a", "b"], "tags": ["O"]}', "1 tags in the field `tags` for 2 words", None),
        (TAGS, '{"words": "a b", "tags": "O PRE"}', "`PRE` is not a label", "O, PER"),
        (ANSWERS, '{"question": "a?"}', "no field `context`", 'context = "FIELD"'),
        (
            ANSWERS,
            '{"question": "a?", "context": "bcd", "answer": "c", "answer_start": 2}',
            "does not stand in the context at character `2`",
            "answer_start =",
        ),
        (IMAGES, '{"picture": "a.png"}', "no field `image`", 'image = "FIELD"'),
        (IMAGES, '{"image": "gone.png"}', r"the image gone\.png cannot be read", "relative to the data file"),
        (IMAGES, '{"image": "../a.png"}', "cannot be read", "relative to the data file"),
        (IMAGES, '{"image": [[1, 2], [3]]}', "differ in length", None),
        (IMAGES, '{"image": [["a"]]}', "no array of numbers", None),
    ],
)
def test_errors_of_other_kinds_name_file_and_line(tmp_path: Path, task, content, message, hint) -> None:
    path = write(tmp_path / "d.jsonl", "\n" + content)
    with pytest.raises(UsageError, match=rf"d\.jsonl:2: .*{message}") as caught:
        read(path, task)
    assert hint is None or hint in caught.value.hint


def test_a_text_file_is_no_file_of_answers(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds texts only"):
        read(write(tmp_path / "d.txt", "a"), ANSWERS)


def test_words_and_tags(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", "words,tags\nAda saw it,PER O 0\nno tags,\n")
    one, other = read(path, TAGS)
    assert (one.text, one.fields["words"], one.fields["tags"]) == ("Ada saw it", ("Ada", "saw", "it"), (1, 0, 0))
    assert "tags" not in other.fields
