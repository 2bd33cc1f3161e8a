"""Examples of a task from a data file, checked record by record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import msgspec
from blake3 import blake3

from modelgit.config.schema import TaskSettings
from modelgit.errors import UsageError
from modelgit.models.base import Example
from modelgit.models.images import ImageSource, image_source
from modelgit.models.kinds import UNLABELLED_KINDS
from modelgit.models.labels import UNLABELLED, Labels
from modelgit.models.records import Row, read_rows
from modelgit.objects.ids import domain

__all__ = ["UNLABELLED", "read_examples"]

_STRUCTURED = ("token-classification", "question-answering", "image-classification")
# A token of most tokenizers is some four characters of text: blocks are about as long as what the model is fed.
_CHARACTERS_PER_TOKEN = 4


class _Content(NamedTuple):
    """What a record says beside its id."""

    text: str
    label: int = UNLABELLED
    fields: Mapping[str, object] = MappingProxyType({})


def read_examples(
    path: Path,
    settings: TaskSettings,
    *,
    shown: str,
    folder: Path | None = None,
    id_field: str = "id",
    also: frozenset[str] = frozenset(),
) -> tuple[tuple[Example, ...], str]:
    """The examples of a file in its order, and the fingerprint of the data.

    Which fields a record has depends on the kind of the task (docs/models.md).  For texts with one label they are
    `settings.text`, `settings.pair` where the task has pairs, and, optionally, `settings.label`: a name among
    `settings.labels` or an index, absent, null or empty for an example without a label.  The field `id_field`
    names the example; otherwise its line does.  The fields in `also`, and with an `entry` all, come along as
    `Example.fields`.

    The fingerprint is the BLAKE3 of the bytes (of the images, too) together with the settings that decide how they are
    read, in hex.  Paths of images are relative to `folder`, by default that of the file.  `shown` is how messages
    name the file.  Held are the records of the whole file; images are read when they are needed.  Raises UsageError
    that names file and line.
    """
    suffix = path.suffix.lower()
    if suffix == ".txt" and settings.kind in _STRUCTURED:
        raise UsageError(
            f"{shown} holds texts only, and the task is of kind `{settings.kind}`",
            hint="put its examples into a file FILE.jsonl, with a JSON object on each line",
        )
    blocks = _CHARACTERS_PER_TOKEN * settings.max_length if settings.split == "blocks" else None
    rows = list(
        read_rows(
            path,
            shown=shown,
            text=settings.text,
            columns=_columns(settings, also | {id_field}),
            block_characters=blocks,
        )
    )
    if not rows:
        raise UsageError(f"{shown} holds no examples")
    reader = _Reader(settings, rows, folder or path.parent)
    examples: list[Example] = []
    seen: dict[str, int] = {}
    piece = 1
    for at, row in enumerate(rows):
        where = f"{shown}:{row.line}"
        piece = piece + 1 if at and row.line == rows[at - 1].line else 1
        name = _name(row, where, piece, id_field)
        if name in seen:
            raise UsageError(f"{where}: the id `{name}` is already that of line {seen[name]}")
        seen[name] = row.line
        content = reader.read(row, where)
        more = {field: row.values[field] for field in also if field in row.values}
        fields = MappingProxyType({**more, **content.fields}) if more else content.fields
        examples.append(Example(name, content.text, content.label, fields))
    return tuple(examples), _fingerprint(path, settings, examples)


def _fingerprint(path: Path, settings: TaskSettings, examples: Sequence[Example]) -> str:
    suffix = path.suffix.lower()
    choices: tuple[object, ...] = (suffix, settings.text, settings.label, settings.labels)
    more = _choices(settings, suffix)
    reading = msgspec.json.encode((*choices, more) if more else choices)
    hasher = blake3(domain("data") + len(reading).to_bytes(8, "little") + reading)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            hasher.update(chunk)
    for example in examples:
        image = example.fields.get("image")
        if isinstance(image, ImageSource):
            hasher.update(image.digest)
    return hasher.hexdigest()


def _choices(settings: TaskSettings, suffix: str) -> dict[str, object]:
    """Settings beside those of a labelled text that decide how records are read."""
    more: dict[str, object] = {}
    if settings.kind not in (None, "sequence-classification"):
        more["kind"] = settings.kind
    if settings.pair is not None:
        more["pair"] = settings.pair
    if settings.kind == "question-answering":
        more["fields"] = (settings.question, settings.context, settings.answer, settings.answer_start)
    if settings.kind == "image-classification":
        more["fields"] = (settings.image,)
    if suffix == ".txt" and settings.split == "blocks":
        more["blocks"] = settings.max_length
    return more


def _columns(settings: TaskSettings, also: frozenset[str]) -> frozenset[str] | None:
    """The fields that are read; None for all of them, which an entry may want."""
    if settings.entry is not None:
        return None
    if settings.kind == "question-answering":
        return also | {settings.question, settings.context, settings.answer, settings.answer_start}
    if settings.kind == "image-classification":
        return also | {settings.image, settings.label}
    return also | {settings.text, settings.label} | ({settings.pair} if settings.pair else set())


def _name(row: Row, where: str, piece: int, field: str) -> str:
    value = row.values.get(field)
    if value is None or value == "":
        return str(row.line) if piece == 1 else f"{row.line}.{piece}"
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UsageError(f"{where}: the id is {type(value).__name__}, not a text or a number")
    return str(value)


class _Reader:
    """Records of one task as examples."""

    def __init__(self, settings: TaskSettings, rows: Sequence[Row], folder: Path) -> None:
        self.settings = settings
        self.labels = Labels(settings, rows)
        self.folder = folder

    def read(self, row: Row, where: str) -> _Content:
        settings = self.settings
        if settings.kind == "token-classification":
            content = self._tagged(row, where)
        elif settings.kind == "question-answering":
            content = self._question(row, where)
        elif settings.kind == "image-classification":
            content = self._image(row, where)
        else:
            content = self._plain(row, where)
        if settings.entry is None:
            return content
        return content._replace(fields=MappingProxyType({**row.values, **content.fields}))

    def _label(self, row: Row, where: str) -> int:
        if self.settings.kind in UNLABELLED_KINDS:
            return UNLABELLED
        return self.labels.index(row.values.get(self.settings.label), where)

    def _plain(self, row: Row, where: str) -> _Content:
        settings = self.settings
        # What an entry's model is fed may be anything: a record without a text is for its `encode` to judge.
        optional = settings.entry is not None and settings.text not in row.values
        text = "" if optional else self._text(row, where, "text", settings.text)
        fields = {} if settings.pair is None else {"pair": self._text(row, where, "pair", settings.pair)}
        return _Content(text, self._label(row, where), MappingProxyType(fields))

    def _text(self, row: Row, where: str, setting: str, field: str) -> str:
        text = row.values.get(field)
        if not isinstance(text, str) or not text.strip():
            raise self._missing(row, where, setting, field, "text")
        return text

    def _missing(self, row: Row, where: str, setting: str, field: str, what: str) -> UsageError:
        found = "no field" if field not in row.values else f"no {what} in the field"
        other = "" if self.settings.kind else ", or `kind` if its records are no texts with a label,"
        return UsageError(
            f"{where}: {found} `{field}`",
            hint=f'fields are {_listed(row.values)}; write `{setting} = "FIELD"`{other} under the task in mgit.toml',
        )

    def _tagged(self, row: Row, where: str) -> _Content:
        settings = self.settings
        words = row.values.get(settings.text)
        words = words.split() if isinstance(words, str) else words
        if not isinstance(words, list) or not words or not all(isinstance(word, str) and word for word in words):
            raise self._missing(row, where, "text", settings.text, "list of words")
        tags = row.values.get(settings.label)
        tags = tags.split() if isinstance(tags, str) else tags
        fields: dict[str, object] = {"words": tuple(words)}
        if tags is not None and tags != []:
            if not isinstance(tags, list) or len(tags) != len(words):
                count = len(tags) if isinstance(tags, list) else "no list of"
                raise UsageError(f"{where}: {count} tags in the field `{settings.label}` for {len(words)} words")
            fields["tags"] = tuple(self.labels.index(tag, where) for tag in tags)
        return _Content(" ".join(words), UNLABELLED, MappingProxyType(fields))

    def _question(self, row: Row, where: str) -> _Content:
        settings = self.settings
        question = self._text(row, where, "question", settings.question)
        context = self._text(row, where, "context", settings.context)
        fields: dict[str, object] = {"context": context}
        answer, start = row.values.get(settings.answer), row.values.get(settings.answer_start)
        if isinstance(answer, dict):  # SQuAD's record of several answers, of which the first counts
            texts, starts = answer.get("text"), answer.get("answer_start")
            answer = texts[0] if isinstance(texts, list) and texts else None
            start = starts[0] if isinstance(starts, list) and starts else None
        if answer not in (None, ""):
            begin = _whole_number(start)
            if not isinstance(answer, str) or begin is None or context[begin : begin + len(answer)] != answer:
                raise UsageError(
                    f"{where}: the answer does not stand in the context at character `{start}` (counted from 0)",
                    hint=f"the fields are `{settings.answer}` and `{settings.answer_start}`; write "
                    '`answer = "FIELD"` and `answer_start = "FIELD"` under the task in mgit.toml',
                )
            fields |= {"answer": answer, "answer_start": begin}
        return _Content(question, UNLABELLED, MappingProxyType(fields))

    def _image(self, row: Row, where: str) -> _Content:
        value = row.values.get(self.settings.image)
        if value is None or value == "":
            raise self._missing(row, where, "image", self.settings.image, "image")
        fields = {"image": image_source(value, folder=self.folder, where=where)}
        return _Content("", self._label(row, where), MappingProxyType(fields))


def _whole_number(value: object) -> int | None:
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _listed(values: Mapping[str, object]) -> str:
    return ", ".join(f"`{name}`" for name in values) or "absent"
