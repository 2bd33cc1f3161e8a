"""Vocabularies of two sides become one: tokens keep their names, and rows of tables follow them.

An id means nothing by itself: two fine-tunes that each added a token gave it the same id.  Ours keeps its order; tokens
that theirs alone added come behind it, in theirs' order.  Where one side alone changed the vocabulary, it decides.

Tokens that the model of a tokenizer has learned (a list of words, pairs that are joined, pieces) come before those that
were added to it: the loader of tokenizer.json numbers these on from the size of the model, whatever the file says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from modelgit.merging.learned import Clash
from modelgit.merging.rows import RowPlan, Run, joined
from modelgit.merging.sentencepiece import PLAIN_FILES, read_model
from modelgit.objects.merges import SideName

__all__ = [
    "VOCABULARY_FILES",
    "Tables",
    "Vocabulary",
    "is_token_table",
    "json_object",
    "merge_vocabularies",
    "read_vocabulary",
    "row_plan",
    "stretches",
]

VOCABULARY_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    *PLAIN_FILES,
    "added_tokens.json",
    "tokenizer_config.json",
)
"""The files that say which row is which token: the first that is there, with the last two unless it is the first."""

_TABLES = frozenset(
    [
        "embed",
        "embed_in",
        "embed_out",
        "embed_tokens",
        "embedding",
        "embeddings",
        "lm_head",
        "shared",
        "tok_embeddings",
        "token_embd",
        "word_embeddings",
        "wte",
    ]
)
_HEADS = re.compile(r"(^|.*\.)(output|(predictions|lm_head)\.decoder|cls\.predictions)\Z")
_SHOWN = 24
_DIGITS = 19
_ORDER: tuple[SideName, ...] = ("ours", "theirs", "base")


@dataclass(frozen=True)
class Vocabulary:
    """Rows by token, the name of the file that says so, and the tokens that are not of the tokenizer's model."""

    ids: Mapping[str, int]
    source: str
    added: frozenset[str] = frozenset()

    @property
    def size(self) -> int:
        """The rows that have a token, and those before them."""
        return max(self.ids.values(), default=-1) + 1

    def learned(self) -> list[str]:
        """The tokens of the tokenizer's model, by row."""
        return sorted((token for token in self.ids if token not in self.added), key=self.ids.__getitem__)

    def is_dense(self) -> bool:
        """Whether each row has one token, those that were added behind the others, as loaders number them."""
        learned = len(self.ids) - len(self.added)
        return len({*self.ids.values()}) == self.size == len(self.ids) and all(
            self.ids[token] >= learned for token in self.added
        )


class Tables(NamedTuple):
    """The rows that a table has on each side; None where a side lacks it."""

    base: int | None
    ours: int
    theirs: int


def is_token_table(name: str, shape: tuple[int, ...], vocabulary: Vocabulary) -> bool:
    """Whether a tensor has a row for each token: by its name, and by having enough rows."""
    stem = name.removesuffix(".weight").removesuffix(".bias")
    named = stem.rpartition(".")[2] in _TABLES or _HEADS.match(stem) is not None
    return named and bool(shape) and shape[0] >= vocabulary.size


def json_object(data: bytes | None) -> dict[str, Any] | None:
    """A JSON object; None for anything else."""
    if data is None:
        return None
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def read_vocabulary(files: Mapping[str, bytes]) -> Vocabulary | None:
    """The vocabulary that files by name describe; None where none of them can be read."""
    table = json_object(files.get("tokenizer.json"))
    if table is not None:
        model = table.get("model")
        listed = model.get("vocab") if isinstance(model, dict) else None
        if isinstance(listed, list):
            listed = {str(item[0]): number for number, item in enumerate(listed) if isinstance(item, list) and item}
        added = table.get("added_tokens")
        entries = [item for item in added if isinstance(item, dict)] if isinstance(added, list) else []
        if not all(isinstance(item.get("content"), str) for item in entries):
            return None
        more = {item["content"]: item.get("id") for item in entries}
        return _checked(listed if isinstance(listed, dict) else {}, more, "tokenizer.json")
    settings = json_object(files.get("tokenizer_config.json")) or {}
    beside = {**_decoder(settings), **(json_object(files.get("added_tokens.json")) or {})}
    if "vocab.txt" in files:
        lines = files["vocab.txt"].decode("utf-8", "replace").split("\n")
        lines = lines[:-1] if not lines[-1] else lines
        return _checked({line.rstrip("\r"): row for row, line in enumerate(lines)}, beside, "vocab.txt")
    plain = json_object(files.get("vocab.json"))
    if plain is not None:
        return _checked(plain, beside, "vocab.json")
    for name in PLAIN_FILES:
        pieces = read_model(files[name]) if name in files else None
        # Pegasus puts a hundred tokens of its own before those of the file.
        if pieces is not None and "Pegasus" not in str(settings.get("tokenizer_class")):
            return _checked({piece.text: row for row, piece in enumerate(pieces.pieces)}, beside, name)
    return None


def _decoder(settings: Mapping[str, Any]) -> dict[Any, Any]:
    """Rows by added token, as a tokenizer_config.json names them."""
    table = settings.get("added_tokens_decoder")
    entries = table.items() if isinstance(table, dict) else ()
    named = {row: item.get("content") for row, item in entries if isinstance(item, dict) and _is_row(row)}
    return {token: int(row) for row, token in named.items() if isinstance(token, str)}


def _is_row(text: str) -> bool:
    # Python converts no text of thousands of digits; a row that long is none.
    return text.isdecimal() and len(text) < _DIGITS


def _checked(learned: Mapping[Any, Any], more: Mapping[Any, Any], source: str) -> Vocabulary | None:
    ids = {**learned, **more}
    if not ids or not all(type(token) is str and type(row) is int and row >= 0 for token, row in ids.items()):
        return None
    return Vocabulary(ids, source, frozenset(token for token in more if token not in learned))


def merge_vocabularies(base: Vocabulary | None, ours: Vocabulary, theirs: Vocabulary) -> Vocabulary | Clash:
    """The merged vocabulary, or what each side did to it where nobody can say what both of it would be."""
    before = None if base is None else base.ids
    if theirs.ids in (ours.ids, before):
        return ours
    if ours.ids == before:
        return theirs
    gone = [[token for token in before or () if token not in side.ids] for side in (ours, theirs)]
    if any(gone):
        words = [_removed(tokens) if tokens else "changed others" for tokens in gone]
        return Clash(words[0], words[1])
    learned = ours.learned()
    more = [token for token in theirs.learned() if token not in ours.ids or token in ours.added]
    added = ours.added.difference(more) | {token for token in theirs.added if token not in ours.ids}
    if ours.is_dense():
        mine = sorted(ours.added.difference(more), key=ours.ids.__getitem__)
        others = sorted(added.difference(mine), key=theirs.ids.__getitem__)
        order = [*learned, *more, *mine, *others]
        return Vocabulary({token: row for row, token in enumerate(order)}, ours.source, frozenset(added))
    if more and ours.added:
        return Clash(
            "has rows between its tokens, or added tokens before others", f"has {more[0][:_SHOWN]!r} in its model"
        )
    ids = dict(ours.ids)
    new = sorted((t for t in theirs.ids if t not in ids), key=lambda token: (theirs.ids[token], token))
    ids |= {token: row for row, token in enumerate(new, ours.size)}
    return Vocabulary(ids, ours.source, frozenset(added))


def _removed(tokens: list[str]) -> str:
    more = f" and {len(tokens) - 1} more" if len(tokens) > 1 else ""
    return f"removed {tokens[0][:_SHOWN]!r}{more}"


def row_plan(
    merged: Vocabulary,
    base: Vocabulary | None,
    ours: Vocabulary,
    theirs: Vocabulary,
    tables: Tables,
    *,
    like: SideName | None = None,
) -> RowPlan:
    """Where each row of a merged table is on the three sides.

    Rows without a token (tables are padded) are matched by their number; the result has as many as the tables say, or
    that of the side `like`.  `unfounded` are the rows of tokens that both
    sides have and the base, though it has the table, does not.
    """
    counts: dict[SideName, int | None] = {"base": tables.base, "ours": tables.ours, "theirs": tables.theirs}
    rows = max((counts[like] or 0) if like is not None else _three_way(tables), merged.size)
    tokens: list[str | None] = [None] * rows
    for known_token, row in merged.ids.items():
        tokens[row] = known_token
    sides: tuple[tuple[SideName, Vocabulary | None, int | None], ...] = (
        ("base", base, tables.base),
        ("ours", ours, tables.ours),
        ("theirs", theirs, tables.theirs),
    )
    named = {side: set(known.ids.values()) if known is not None else set() for side, known, _ in sides}
    found: dict[SideName, list[Run]] = {"base": [], "ours": [], "theirs": []}
    unfounded: list[int] = []
    for row, token in enumerate(tokens):
        here: dict[SideName, int] = {}
        for side, known, count in sides:
            if token is None:
                place = None if row in named[side] else row
            else:
                place = None if known is None else known.ids.get(token)
            if place is not None and place < (count or 0):
                here[side] = place
        both = "ours" in here and "theirs" in here
        if both and tables.base is not None and "base" not in here and token is not None:
            unfounded.append(row)
        elif not both or (tables.base is not None and "base" not in here):
            # One side alone has the row (or, of padding, both do and the base does not): it is that on all of them.
            source: SideName = next((side for side in _ORDER if side in here), "ours")
            run = Run(source, here.get(source, min(row, tables.ours - 1)), 1)
            for runs in found.values():
                runs.append(run)
            continue
        for side, runs in found.items():
            source = side if side in here else "ours"
            runs.append(Run(source, here[source], 1))
    base_runs = None if tables.base is None else joined(found["base"])
    return RowPlan(
        base=base_runs, ours=joined(found["ours"]), theirs=joined(found["theirs"]), unfounded=stretches(unfounded)
    )


def _three_way(tables: Tables) -> int:
    if tables.theirs in (tables.ours, tables.base):
        return tables.ours
    return tables.theirs if tables.ours == tables.base else max(tables.ours, tables.theirs)


def stretches(rows: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Sorted numbers as (start, stop) of consecutive ones."""
    found: list[tuple[int, int]] = []
    for row in rows:
        if found and found[-1][1] == row:
            found[-1] = (found[-1][0], row + 1)
        else:
            found.append((row, row + 1))
    return tuple(found)
